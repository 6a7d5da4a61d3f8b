"""Metrics as JSON lines: one object a step, flushed at once, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import write_text


class MetricsFile:
    """Appends to ``path``. Lines of steps after ``resumed_step``, left by an interrupted run, are dropped first."""

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        self.path = path
        found = read_metrics(path) if path.exists() else ()
        kept = [line for line in found if resumed_step > 0 and line["step"] <= resumed_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def write(self, values: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; a last line cut by a kill is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
