"""What ``depthup.json`` tells of how a model came to be, for one that grows once more or is undone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ..checkpoint.plain_json import read_object
from ..errors import CheckpointError, PlanError
from ..layers import LayerPlan
from .manifest import MANIFEST_NAME, read_manifest

_MAX_STEPS = 100  # surgeries, one after another, that made a model


@dataclass(frozen=True)
class Step:
    """One surgery: the name of its base's folder, the prefix of the stack that it worked on, its plan."""

    base: str
    stack: str
    plan: LayerPlan

    def to_json(self) -> dict[str, Any]:
        return {"base": self.base, "stack": self.stack, "plan": self.plan.to_json()}


def read_history(folder: str | os.PathLike[str]) -> tuple[Step, ...]:
    """The surgeries that made a checkpoint, first to last; empty for a folder without a manifest.

    Raises:
        CheckpointError: The manifest is not one that surgery wrote.
    """
    path = Path(folder) / MANIFEST_NAME
    if not os.path.lexists(path):
        return ()
    try:
        match read_object(path):
            case {"base": {"name": str(name)}, "stack": str(stack), "plan": plan, **rest}:
                earlier: Any = rest.get("history", [])
                if not isinstance(earlier, list) or len(earlier) > _MAX_STEPS:
                    raise TypeError(f"at most {_MAX_STEPS}")
                steps = [Step(str(step["base"]), str(step["stack"]), LayerPlan.from_json(step["plan"]))
                         for step in earlier]  # fmt: skip
                return (*steps, Step(name, stack, LayerPlan.from_json(plan)))
    except (CheckpointError, PlanError) as error:
        raise _unusable(path, error.problem) from error
    except (TypeError, KeyError) as error:
        raise _unusable(path, f"its history is no list of steps ({error})") from error
    raise _unusable(path, "it has no base, stack and plan")


def extend_history(folder: Path, stack: str, plan: LayerPlan) -> tuple[Step, ...]:
    """The surgeries that made a base, and the one of ``plan`` on it.

    Raises:
        CheckpointError: The base's manifest cannot be read, or tells of another depth than the base has.
    """
    steps = (*read_history(folder), Step(folder.resolve().name, stack, plan))
    try:
        original_layers(steps)
    except PlanError as error:
        raise _unusable(folder / MANIFEST_NAME, error.problem) from error
    return steps


def original_layers(history: tuple[Step, ...]) -> LayerPlan:
    """The layer of the very first base that each layer of the last step's stack comes from, however it started.

    Raises:
        PlanError: A plan of the history does not fit the one before it.
    """
    plans = [step.plan for step in history if step.stack == history[-1].stack]
    return reduce(LayerPlan.then, [LayerPlan(plan.num_base_layers, plan.sources) for plan in plans])


def undo_plan(folder: str | os.PathLike[str] | None, num_layers: int, stack: str | None = None) -> LayerPlan:
    """The plan that gives back the base of a checkpoint of this depth which surgery made.

    Args:
        folder: The checkpoint.
        num_layers: Its depth.
        stack: The stack that shrinks; the one of the last surgery by default.

    Raises:
        CheckpointError: The folder does not tell how it was made, its depth is not what it tells, or its last step was
            no surgery on layers.
        PlanError: The target does not hold its whole base.
    """
    history = read_history(folder) if folder is not None else ()
    steps = [step for step in history if stack in (None, step.stack)]
    if folder is not None and history and "upcycling" in (read_manifest(Path(folder)) or {}):
        raise CheckpointError(
            f"{folder} was upcycled from {history[-1].base}: no plan of layers makes one feed-forward of its experts",
            next_step=f"take {history[-1].base} itself",
        )
    if folder is None or not steps:
        raise CheckpointError(
            f"{folder or 'a depth alone'} does not say how it was made: no {MANIFEST_NAME} of surgery on these layers",
            next_step="name the layers to keep with --layers, or those to leave out with --drop",
        )
    if steps[-1].plan.num_target_layers != num_layers:
        raise _unusable(
            Path(folder) / MANIFEST_NAME,
            f"it tells of {steps[-1].plan.num_target_layers} layers, and there are {num_layers}",
        )
    return steps[-1].plan.undo()


def _unusable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} does not tell how the checkpoint was made: {why}",
        next_step="remove the file if another tool changed the folder; then depthup takes the model as it is",
    )
