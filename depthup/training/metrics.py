"""Metrics as JSON lines: an object a step, flushed at once, cut back to the checkpoint on resume; other loggers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import TrainingError
from ..files import write_text


class Logger(Protocol):
    """Anything that takes the lines of the metrics as they are written."""

    def write(self, values: Mapping[str, Any]) -> object: ...

    def close(self) -> object: ...


class MetricsFile:
    """Appends to ``path``. Lines of steps after ``resumed_step``, left by an interrupted run, are dropped first.

    Args:
        path: The file.
        resumed_step: Where the run goes on; 0 begins anew.
        loggers: Also receive each line; closed with the file.
        writes: Whether this process writes; one of several ranks does.
    """

    def __init__(self, path: Path, resumed_step: int = 0, loggers: Sequence[Logger] = (), writes: bool = True) -> None:
        self.path, self.loggers, self._writes = path, loggers, writes
        self._file: IO[str] | None = None
        self.cut(resumed_step)

    def cut(self, step: int) -> None:
        """Drop the lines of steps after ``step``."""
        if not self._writes:
            return
        if self._file is not None:
            self._file.close()
        found = read_metrics(self.path) if self.path.exists() else ()
        kept = [line for line in found if step > 0 and line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def write(self, values: dict[str, Any]) -> None:
        """Append one line."""
        if self._file is None:
            return
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for logger in self.loggers:
            logger.write(values)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        for logger in self.loggers:
            logger.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; a last line cut by a kill is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


# -- other loggers -----------------------------------------------------------------------------------------------------


class TensorBoard:
    """Scalars for TensorBoard, in a folder of their own (needs the package tensorboard)."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                "the logger tensorboard needs its package", next_step="pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard" / name))

    def write(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(key, value, values["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Scalars for Weights & Biases (needs the package wandb; ``WANDB_PROJECT``, ``WANDB_MODE`` are its own)."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            import wandb  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise TrainingError("the logger wandb needs its package", next_step="pip install wandb") from error
        self._run = wandb.init(name=name, dir=str(folder), id=name, resume="allow")

    def write(self, values: Mapping[str, Any]) -> None:
        self._run.log({key: value for key, value in values.items() if key != "step"}, step=values["step"])

    def close(self) -> None:
        self._run.finish()


# name in a recipe -> logger of a folder and a run's name
LOGGERS: dict[str, Callable[[Path, str], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
