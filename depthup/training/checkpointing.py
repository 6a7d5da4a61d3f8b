"""Training state on disk: model, optimizer and step, in torch's distributed checkpoint format, whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from ..files import sync_folder, write_json

_COMMIT = "committed.json"  # written last: a state without it is not one


def save_state(folder: Path, model: nn.Module, optimizer: Optimizer, counters: dict[str, int]) -> None:
    """Save the state as ``folder/step-N`` and remove older ones once it is whole.

    Args:
        folder: Where states are kept.
        model: Its parameters and buffers are saved.
        optimizer: Its moments are saved.
        counters: ``step`` (N) and whatever else the loop counts.
    """
    folder.mkdir(exist_ok=True)
    final = folder / f"step-{counters['step']:08}"
    if (final / _COMMIT).exists():
        return
    temporary = final.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    with _quiet():
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=temporary, no_dist=True)
    write_json(temporary / _COMMIT, counters)
    sync_folder(temporary)
    os.rename(temporary, final)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other)


def load_state(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, int] | None:
    """Restore the newest whole state into model and optimizer; returns its counters, or None if there is none."""
    whole = sorted(path for path in folder.glob("step-*") if (path / _COMMIT).exists())
    if not whole:
        return None
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    with _quiet():
        dcp.load(state, checkpoint_id=whole[-1], no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    counters: dict[str, int] = json.loads((whole[-1] / _COMMIT).read_text())
    return counters


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's note that no process group is in use: one device is what is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
