"""Freeze map: which layers of a grown checkpoint are new, written beside it as ``freeze_map.json`` for any trainer.

LLaMA Pro, LESA and OpT-DeUS train the new layers alone; a trainer needs their names. The file has them as they stand on
disk: layer numbers, prefixes, regular expressions. In memory transformers gives some tensors other names (it fuses the
experts of a mixture, and drops or adds outer prefixes), so :meth:`FreezeMap.groups` goes by the number of the layer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint.indices import indexed_prefixes
from ..checkpoint.names import Stack
from ..checkpoint.plain_json import read_object
from ..errors import CheckpointError, PlanError
from ..files import write_text
from ..layers import COPY, LayerPlan

FREEZE_MAP_NAME = "freeze_map.json"
_NOTE = (
    "Names are those on disk. transformers renames some tensors when it loads: in memory, go by the numbers of the"
    " layers, as in model.get_submodule('model.layers.9'), or by depthup.growth.freeze.read_freeze_map(folder)"
    ".groups(name for name, _ in model.named_parameters())."
)


@dataclass(frozen=True)
class FreezeMap:
    """Which layers of a target are new.

    Attributes:
        prefix: What stands before a layer's number on disk, ``model.layers``.
        plan: The plan that made the target.
        companions: Prefixes of other lists with a member for each layer (rare).
        adapters: What the names of adapters at seams begin with (of a looped model); they are in the group ``seam``.
    """

    prefix: str
    plan: LayerPlan
    companions: tuple[str, ...] = ()
    adapters: str | None = None

    @property
    def new(self) -> tuple[int, ...]:
        """Layers that start otherwise than as a copy, and all copies of a base layer but the first."""
        return self.plan.new

    @property
    def original(self) -> tuple[int, ...]:
        """The first plain copy of each base layer."""
        return tuple(sorted(set(range(self.plan.num_target_layers)) - set(self.new)))

    @cached_property
    def layers_to_seam(self) -> tuple[int | None, ...]:
        """How many layers lie between each layer and the nearest seam: 0 for the two at a seam; None without seams."""
        at_seam = {layer for seam in self.plan.seams for layer in (seam.target_layer - 1, seam.target_layer)}
        layers = range(self.plan.num_target_layers)
        below, above = (_steps_since(order, at_seam) for order in (layers, reversed(layers)))
        return tuple(min((i for i in pair if i is not None), default=None)
                     for pair in zip(below, reversed(above), strict=True))  # fmt: skip

    def near_seam(self, within: int = 1) -> tuple[int, ...]:
        """The ``within`` layers on each side of each seam."""
        return tuple(i for i, distance in enumerate(self.layers_to_seam) if distance is not None and distance < within)

    def groups(self, names: Iterable[str], *, within: int = 0) -> dict[str, list[str]]:
        """Names of tensors, on disk or in memory, as four groups for an optimiser; each name is in one of them.

        Args:
            names: All of them, as from ``model.named_parameters()``.
            within: Original layers so near a seam (see :meth:`near_seam`) are in ``seam``, not in ``original``.

        Returns:
            ``new``, ``seam``, ``original``, and ``outside`` (embeddings, last norm, head), each in the given order.

        Raises:
            CheckpointError: The names hold no layers of this number, or several stacks of them that are equally like.
        """
        names = list(names)
        prefix = self._prefix_among(names)
        outer = prefix.removesuffix(self.prefix) if prefix.endswith(self.prefix) else ""
        place = self._placer(prefix, tuple(outer + companion for companion in self.companions))
        kinds = dict.fromkeys(self.original, "original") | dict.fromkeys(self.near_seam(within), "seam")
        kinds |= dict.fromkeys(self.new, "new")
        groups: dict[str, list[str]] = {"new": [], "seam": [], "original": [], "outside": []}
        for name in names:
            layer = place(name)
            outside = "seam" if self._is_adapter(name) else "outside"
            groups[outside if layer is None else kinds[layer]].append(name)
        return groups

    def _is_adapter(self, name: str) -> bool:
        return self.adapters is not None and f".{self.adapters}" in f".{name}"

    def sources(self, names: Iterable[str]) -> dict[str, str | None]:
        """Name of each tensor of a layer, on disk or in memory -> the base's name of its source; None if it is no copy.

        Raises:
            CheckpointError: See :meth:`groups`.
        """
        names = list(names)
        prefix = self._prefix_among(names)
        stack = Stack(prefix, self.plan.num_target_layers, (), ())
        copied = [init.kind == COPY.kind for init in self.plan.inits] or [True] * self.plan.num_target_layers
        found: dict[str, str | None] = {}
        for name in names:
            place = stack.split(name)
            if place is not None and place[0] < stack.num_layers:
                layer, suffix = place
                found[name] = stack.name(self.plan.sources[layer], suffix) if copied[layer] else None
        return found

    def _placer(self, prefix: str, companions: tuple[str, ...]) -> Callable[[str], int | None]:
        stack = Stack(prefix, self.plan.num_target_layers, (), (), companions=companions)

        def layer(name: str) -> int | None:
            found = stack.split(name)  # blocks behind the last layer are no layers
            return found[0] if found and found[0] < stack.num_layers else None

        return layer

    def _prefix_among(self, names: Sequence[str]) -> str:
        layers = set(range(self.plan.num_target_layers))
        found = [prefix for prefix, indices in indexed_prefixes(names).items() if indices >= layers]
        alike = {prefix: _num_common_parts(prefix, self.prefix) for prefix in found}
        best = [prefix for prefix in found if alike[prefix] == max(alike.values())]
        if len(best) != 1:
            raise CheckpointError(
                f"there are {len(best)} stacks of {len(layers)} layers like {self.prefix}: {', '.join(best)[:200]}",
                allowed="the names of all parameters of one model, with the depth that freeze_map.json tells",
            )
        return best[0]

    def text(self, names: Iterable[str]) -> str:
        """The file: JSON, one layer a line, with the names on disk of the target's tensors."""
        place = self._placer(self.prefix, self.companions)
        new = set(self.new)
        rows = [
            json.dumps({
                "layer": layer, "source": self.plan.sources[layer], "init": str(self.plan.init(layer)),
                "new": layer in new, "layers_to_seam": self.layers_to_seam[layer],
            })
            for layer in range(self.plan.num_target_layers)
        ]  # fmt: skip
        fields = {
            "stack": self.prefix, "companions": self.companions, "plan": self.plan.to_json(), "note": _NOTE,
            **({"adapters": self.adapters} if self.adapters else {}),
        }  # fmt: skip
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
        lines.append('"layers": [\n  ' + ",\n  ".join(rows) + "\n ]")
        alone = [name for name in names if place(name) is None]
        adapters = {"names": sorted(filter(self._is_adapter, alone))} if self.adapters else {}
        groups = {
            "new": self._group(self.new),
            "original": self._group(self.original),
            "seam": {"within": 1, **self._group(self.near_seam()), **adapters},
            "outside": {"names": sorted(name for name in alone if not self._is_adapter(name))},
        }
        held = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in groups.items()]
        lines.append('"groups": {\n  ' + ",\n  ".join(held) + "\n }")
        return "{\n " + ",\n ".join(lines) + "\n}\n"

    def _group(self, layers: Sequence[int]) -> dict[str, Any]:
        stacks = (self.prefix, *self.companions)
        anywhere, numbers = "|".join(map(re.escape, stacks)), "|".join(map(str, layers))
        return {
            "layers": list(layers),
            "prefixes": [f"{stack}.{layer}." for layer in layers for stack in stacks],
            "regex": rf"^(?:{anywhere})\.(?:{numbers})\." if layers else None,
        }


def write_freeze_map(folder: Path, stack: Stack, plan: LayerPlan, names: Iterable[str]) -> None:
    """Write the freeze map of a target whose tensors have these names on disk."""
    write_text(folder / FREEZE_MAP_NAME, FreezeMap(stack.prefix, plan, stack.companions).text(names))


def read_freeze_map(folder: str | os.PathLike[str]) -> FreezeMap:
    """The freeze map beside a checkpoint.

    Raises:
        CheckpointError: There is none, or it is not one that surgery wrote.
    """
    path = Path(folder) / FREEZE_MAP_NAME
    if not os.path.lexists(path):
        raise CheckpointError(
            f"there is no {path}", next_step="name a folder that `depthup upscale` wrote; it lies beside the weights"
        )
    try:
        match read_object(path):
            case {"stack": str(prefix), "plan": plan, **rest}:
                companions: Any = rest.get("companions", [])
                adapters = rest.get("adapters")
                return FreezeMap(
                    prefix, LayerPlan.from_json(plan), tuple(str(companion) for companion in companions),
                    str(adapters) if adapters else None,
                )  # fmt: skip
    except (CheckpointError, PlanError) as error:
        raise CheckpointError(f"{path} cannot be used: {error.problem}", next_step="make the target again") from error
    except TypeError as error:
        raise CheckpointError(f"{path} lists no companions", next_step="make the target again") from error
    raise CheckpointError(f"{path} has no stack and no plan", next_step="make the target again")


def _steps_since(layers: Iterable[int], marked: set[int]) -> list[int | None]:
    """How many steps before each layer the last marked one stood; None before the first."""
    steps: list[int | None] = []
    for layer in layers:
        before = steps[-1] if steps else None
        steps.append(0 if layer in marked else None if before is None else before + 1)
    return steps


def _num_common_parts(one: str, other: str) -> int:
    """How many dotted parts at their ends two prefixes have in common."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    parts = [a == b for a, b in pairs]
    return parts.index(False) if False in parts else len(parts)
