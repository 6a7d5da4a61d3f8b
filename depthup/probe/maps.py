"""Heat maps over runs of layers [i, j): what the model loses without them, and with them twice.

A map of n layers has n (n + 1) / 2 runs. What the plans begin with is run once, a stride leaves runs out, and every
loss is written down as it is found, so that a stopped probe goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoint.config import grow_config
from ..errors import DepthupError
from ..layers import LayerPlan
from .similarity import rounded
from .virtual import Loss, Tower, count_layers, iterate_losses, summarise

Kind = Literal["drop", "duplicate"]
MAX_POSITIONS = 16  # places where a run may begin or end, unless a stride is given
Progress = Callable[[int], object]


def map_positions(num_layers: int, stride: int | None = None) -> tuple[int, ...]:
    """Where runs begin and end: 0, stride, 2 stride ... and n.

    Args:
        num_layers: n.
        stride: 1 tries every run; left out, the smallest with at most :data:`MAX_POSITIONS` steps.
    """
    stride = stride or -(-num_layers // MAX_POSITIONS)
    return (*range(0, num_layers, stride), num_layers)


def map_plans(kind: Kind, num_layers: int, positions: Sequence[int]) -> dict[tuple[int, int], LayerPlan]:
    """The plan of each run [i, j): the base without it, or [0, j) and then [i, n), which is RYS's (i, j)."""
    runs = [run for run in combinations(positions, 2) if kind == "duplicate" or run != (0, num_layers)]
    if kind == "drop":
        return {(i, j): LayerPlan.drop(num_layers, range(i, j)) for i, j in runs}
    return {(i, j): LayerPlan(num_layers, (*range(j), *range(i, num_layers))) for i, j in runs}


def can_run(tower: Tower, plan: LayerPlan) -> bool:
    """Whether the model's config can say the plan (see :func:`~depthup.checkpoint.config.grow_config`)."""
    try:
        grow_config(tower.config, tower.stack, plan)
    except DepthupError:
        return False
    return True


def map_json(positions: Sequence[int], losses: Mapping[tuple[int, int], Loss]) -> dict[str, Any]:
    """A map as ``probe.json`` has it: ``cells`` of [i, j, loss, difference to the base, its standard error]."""
    cells = [[i, j, one.mean, one.difference, one.difference_error] for (i, j), one in losses.items()]
    return {"positions": list(positions), "cells": rounded(cells)}


class Ledger:
    """Losses that are found, kept in a file as they come, for one model and one set of rows.

    Args:
        path: The file; one of another model or other rows is begun anew. None keeps nothing.
        key: Names model and rows, see :func:`ledger_key`.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self.known: dict[str, list[float]] = {}
        if path is None:
            return
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [value for line in lines if (value := _read(line))]
        if found and found[0].get("key") == key:
            self.known = {one["layers"]: one["rows"] for one in found[1:] if one.keys() == {"layers", "rows"}}
        _write(path, [{"key": key}, *({"layers": layers, "rows": rows} for layers, rows in self.known.items())])

    def losses(
        self, tower: Tower, plans: Iterable[LayerPlan], rows: Tensor, progress: Progress | None = None
    ) -> dict[LayerPlan, Loss]:
        """The loss of each plan; those that are known are not run again.

        Args:
            tower: The model.
            plans: The plans; those that the config cannot say are left out of the result.
            rows: The first rows of those that the key was made from, [rows, tokens].
            progress: See :func:`~depthup.probe.virtual.zero_step_losses`; what is known counts nothing.
        """
        wanted = [plan for plan in dict.fromkeys([tower.base_plan, *plans]) if can_run(tower, plan)]
        missing = self.missing(wanted, len(rows))
        for place, found in iterate_losses(tower, missing, rows, progress):
            self.known[missing[place].text] = found.tolist()
            if self.path is not None:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"layers": missing[place].text, "rows": found.tolist()}) + "\n")
        values = {plan: torch.tensor(self.known[plan.text][: len(rows)]).double() for plan in wanted}
        return {plan: summarise(plan, found, values[tower.base_plan]) for plan, found in values.items()}

    def missing(self, plans: Iterable[LayerPlan], num_rows: int) -> list[LayerPlan]:
        """Plans whose loss is not known on so many rows."""
        return [plan for plan in dict.fromkeys(plans) if len(self.known.get(plan.text, ())) < num_rows]

    def count(self, tower: Tower, plans: Iterable[LayerPlan], num_rows: int) -> int:
        """Layers that :meth:`losses` will run."""
        wanted = [plan for plan in dict.fromkeys([tower.base_plan, *plans]) if can_run(tower, plan)]
        return count_layers(tower, self.missing(wanted, num_rows))


def ledger_key(tower: Tower, rows: Tensor) -> str:
    """SHA-256 of the config, of the first numbers of each of the model's tensors, and of the rows."""
    digest = hashlib.sha256(json.dumps(tower.config, sort_keys=True, default=str).encode())
    for name, value in tower.model.state_dict().items():
        digest.update(f"{name}{list(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten()[:256].float().cpu().numpy().tobytes())
    digest.update(rows.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # cut off when the run was killed
        return None
    return value if isinstance(value, dict) else None


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
