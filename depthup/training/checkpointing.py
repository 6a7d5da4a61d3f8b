"""Training state on disk: model, optimizer, guard and counters, in torch's distributed checkpoint format.

A state is written beside its place, sharded over the ranks and, on GPUs, while training goes on; it counts when it lies
under its name with a commit mark that lists its files and their sizes. A run resumes from the newest state that is
whole, with any number of ranks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from ..files import require_space, sync_folder, write_json
from .guard import Guard
from .parallel import World, alone

_COMMIT = "committed.json"  # written last: a state without it is not one
_PARTIAL = ".tmp"
_OPTIONS = StateDictOptions(strict=True)


class States:
    """The saved states of a run, ``step-N`` in one folder.

    Args:
        folder: Where they are kept; made when the first is saved.
        model: As it is trained: on its device, sharded or not.
        optimizer: Of that model.
        guard: Its window is saved along.
        world: The ranks that write together.
        num_kept: Newest states that stay.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: Optimizer,
        guard: Guard | None = None,
        world: World | None = None,
        num_kept: int = 1,
    ) -> None:
        self.folder, self.num_kept = folder, num_kept
        self.model, self.optimizer, self.guard = model, optimizer, guard
        self.world = world or alone()
        self._saving: tuple[Future[Any], Path, dict[str, int]] | None = None

    def save(self, counters: dict[str, int], *, wait: bool = True) -> None:
        """Save the state of step ``counters["step"]``; older states go once it is whole.

        Args:
            counters: ``step`` and whatever else the loop counts.
            wait: Until it lies whole on the disk; otherwise training may go on, and :meth:`poll` commits it.

        Raises:
            OutputError: The disk has too little room; nothing was written.
        """
        self.finish()
        final = self.folder / f"step-{counters['step']:08}"
        if is_whole(final):
            return
        partial = final.with_suffix(_PARTIAL)
        if self.world.is_first:
            self.folder.mkdir(exist_ok=True)
            require_space(self.folder, _num_bytes(self.model, self.optimizer))
            shutil.rmtree(partial, ignore_errors=True)
        self.world.wait()
        distributed = self.world.mesh is not None
        with _quiet():
            if wait or not distributed:
                dcp.save(self._state(), checkpoint_id=partial, no_dist=not distributed)
                done: Future[Any] = Future()
                done.set_result(None)
            else:
                done = dcp.async_save(self._state(), checkpoint_id=partial)  # type: ignore[assignment]
        self._saving = (done, final, counters)
        if wait:
            self.finish()

    def poll(self) -> None:
        """Commit a state whose files have all been written meanwhile."""
        if self._saving is not None and self._saving[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the state that is being written, and commit it.

        The first rank's part ends last: it gathers what the others wrote. So it commits alone.
        """
        if self._saving is None:
            return
        done, final, counters = self._saving
        done.result()
        self._saving = None
        if not self.world.is_first:
            return
        partial = final.with_suffix(_PARTIAL)
        files = {path.name: path.stat().st_size for path in partial.iterdir()}
        write_json(partial / _COMMIT, {**counters, "files": files})
        sync_folder(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        sync_folder(self.folder)
        kept = sorted(path for path in self.folder.glob("step-*") if is_whole(path))[-self.num_kept :]
        for other in self.folder.iterdir():
            if other not in kept:
                shutil.rmtree(other)

    def load(self) -> dict[str, int] | None:
        """Restore the newest whole state; returns its counters, or None if there is none."""
        whole = sorted(path for path in self.folder.glob("step-*") if is_whole(path))
        if not whole:
            return None
        state = self._state()
        with _quiet():
            dcp.load(state, checkpoint_id=whole[-1], no_dist=self.world.mesh is None)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=_OPTIONS,
        )
        if self.guard is not None:
            self.guard.restore(state["guard"])
        counters: dict[str, Any] = json.loads((whole[-1] / _COMMIT).read_text())
        counters.pop("files")
        return counters

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer, options=_OPTIONS)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer}
        return state if self.guard is None else {**state, "guard": self.guard.state()}


def is_whole(state: Path) -> bool:
    """Whether a state is committed and all files that its mark lists lie there in full."""
    try:
        files = json.loads((state / _COMMIT).read_text())["files"]
        return all((state / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _num_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    trained = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()
                  if isinstance(tensor, Tensor))  # fmt: skip
    return weights + trained * (12 if any("master" in s for s in optimizer.state.values()) else 8)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's note that no process group is in use: one device is what is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
