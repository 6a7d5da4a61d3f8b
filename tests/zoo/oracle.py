"""The model that a target should be, built in memory from modules of the loaded base. Nothing here reads depthup.

Layers are copied as they stand: each keeps the index, the kind and the config of its source, so it computes what its
source does wherever it is put. What stands around the layers and knows their number or their kinds is carried over by
the plan. A target whose logits differ has layers that became something else.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

CONTAINERS = (nn.ModuleList, nn.Sequential)
_INDICES = {"layer_idx", "layer_id", "layer_index", "layer_number"}


class OracleError(Exception):
    """The expected model cannot be built by these rules."""


def grown_lists(base: PreTrainedModel, target: PreTrainedModel, num_base: int, num_target: int) -> list[str]:
    """Names of the outermost lists of modules that have n members in the base and s in the target."""
    after = dict(target.named_modules())
    found: list[str] = []
    for name, module in base.named_modules():
        other, inner = after.get(name), name.startswith(tuple(f"{f}." for f in found))
        if not isinstance(module, CONTAINERS) or not isinstance(other, CONTAINERS) or inner:
            continue
        if (len(module), len(other)) == (num_base, num_target):
            found.append(name)
    return found


def rearranged(base: PreTrainedModel, target: PreTrainedModel, lists: Sequence[str], sources: Sequence[int],
               num_base: int) -> PreTrainedModel:  # fmt: skip
    """The base with the layers of ``lists`` in the order of ``sources``. ``target`` shows only where sizes changed."""
    expected = copy.deepcopy(base)
    for name in lists:
        layers = base.get_submodule(name)
        copies = [copy.deepcopy(layers[source]) for source in sources]
        whole = nn.Sequential(*copies) if isinstance(layers, nn.Sequential) else nn.ModuleList(copies)
        expected.set_submodule(name, whole)
    carry = _Carry(num_base, tuple(sources))
    around = [name for name, _ in expected.named_modules() if not name.startswith(tuple(f"{f}." for f in lists))]
    seen: set[int] = set()
    for name in around:
        module, other = expected.get_submodule(name), _submodule(target, name)
        if other is not None:
            carry.module(module, other, seen)
    return expected


def renumber(expected: PreTrainedModel, base: PreTrainedModel, lists: Sequence[str], sources: Sequence[int]) -> None:
    """Give each layer of a rearranged base the index of its new place: its slot in a cache that cannot be left out."""
    for name in lists:
        first, second = ([*layer.modules()] for layer in base.get_submodule(name)[:2])
        for target, (layer, source) in enumerate(zip(expected.get_submodule(name), sources, strict=True)):
            for module, one, other in zip(layer.modules(), first, second, strict=False):
                for key in _INDICES & vars(module).keys():
                    step = (vars(other).get(key) or 0) - (vars(one).get(key) or 0)
                    vars(module)[key] += step * (target - source)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


@dataclasses.dataclass(frozen=True)
class _Carry:
    """Whatever is counted or listed by layers, carried from the base's n layers to the plan's s."""

    num_base: int
    sources: tuple[int, ...]

    def module(self, module: nn.Module, other: nn.Module, seen: set[int]) -> None:
        """Change a module outside the layers in place."""
        for store in ("_parameters", "_buffers"):
            for key, tensor in module.__dict__[store].items():
                shape = getattr(getattr(other, key, None), "shape", None)
                if tensor is not None and shape is not None and tensor.shape != shape:
                    grown = self.tensor(tensor.detach(), shape, key)
                    module.__dict__[store][key] = nn.Parameter(grown, False) if store == "_parameters" else grown
        self.fields(module, other, seen)

    def fields(self, mine: Any, other: Any, seen: set[int]) -> None:
        """Change the plain attributes of a module or a config in place, nested configs too."""
        if id(mine) in seen:
            return
        seen.add(id(mine))
        for key, value in list(vars(mine).items()):
            after = vars(other).get(key)
            if isinstance(value, PreTrainedConfig) and isinstance(after, PreTrainedConfig):
                self.fields(value, after, seen)
            elif key == "_heterogeneity_spec" and after is not None:  # transformers' per_layer_config
                grown = self.value(value.per_layer_overrides, after.per_layer_overrides, by_layer=True)
                vars(mine)[key] = dataclasses.replace(value, per_layer_overrides=grown)
            elif not key.startswith("_") or isinstance(value, (list, tuple)):
                vars(mine)[key] = self.value(value, after)

    def value(self, value: Any, after: Any, by_layer: bool = False) -> Any:
        """A value that speaks of n layers, made to speak of s. ``after`` shows which values do."""
        n, s = self.num_base, len(self.sources)
        if type(value) is int and type(after) is int and value != after:
            grown = value // n * s if value and value % n == 0 else value
            return after if after in (grown, self.tapped(value, 0), self.tapped(value, 1)) else value
        if _plain(value) and _plain(after) and list(value) != list(after):
            indices = [i for i, source in enumerate(self.sources) if source in value]
            if len(value) == n and len(after) == s and list(after) != indices:
                return type(value)(value[source] for source in self.sources)
            if all(type(item) is int for item in (*value, *after)):
                taps = [[self.tapped(item, offset) for item in value] for offset in (0, 1)]
                return type(value)(after if list(after) in taps else indices)
            if all(isinstance(item, str) for item in (*value, *after)):
                return type(value)(self.stages(value))
        if by_layer:
            return {i: value[source] for i, source in enumerate(self.sources) if source in value}
        return value

    def tapped(self, index: int, offset: int) -> int | None:
        """What a number that names what layer ``index - offset`` puts out becomes: it goes to the layer's last copy."""
        if index < offset:
            return index  # counted from the end, or what goes in
        return max((i + offset for i, source in enumerate(self.sources) if source == index - offset), default=None)

    def stages(self, names: Sequence[str]) -> list[str]:
        """``stem, stage1, ... stage{n}`` up to s; of a choice of them, the stage of the last copy."""
        if list(names) == ["stem", *(f"stage{i}" for i in range(1, self.num_base + 1))]:
            return ["stem", *(f"stage{i}" for i in range(1, len(self.sources) + 1))]
        return [re.sub(r"(?<=^stage)[0-9]+$", lambda match: str(self.tapped(int(match[0]), 1)), name) for name in names]

    def tensor(self, tensor: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """A tensor one of whose axes speaks of layers: its slices by the plan."""
        n = self.num_base
        differing = [axis for axis, (a, b) in enumerate(zip(tensor.shape, shape, strict=True)) if a != b]
        if len(differing) == 1 and (places := slices(tensor.shape[differing[0]], shape[differing[0]], n, self.sources)):
            return torch.cat([tensor.narrow(differing[0], start, length) for start, length in places], dim=differing[0])
        raise OracleError(f"{name} of shape {tuple(tensor.shape)} became {tuple(shape)}, for which there is no rule")


def slices(before: int, after: int, num_base: int, sources: Sequence[int]) -> list[tuple[int, int]]:
    """Where the slices of a longer axis come from, (start, length); empty where no rule fits.

    The axis has a part for each layer, or one more in front (for what goes in), or none for the last layer.
    """
    n, s = num_base, len(sources)
    if before % n == 0 and after == before // n * s:
        width = before // n
        return [(source * width, width) for source in sources]
    if (before, after) == (n + 1, s + 1):
        return [(0, 1), *((source + 1, 1) for source in sources)]
    if (before, after) == (n - 1, s - 1) and n - 1 not in sources[:-1]:
        return [(source, 1) for source in sources[:-1]]
    return []


def _plain(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not any(isinstance(item, (Tensor, nn.Module)) for item in value)


def record_layers(model: PreTrainedModel, lists: Sequence[str]) -> tuple[dict[tuple[str, int], Tensor], list[Any]]:
    """Hooks that keep what each layer of ``lists`` puts out when it is first called, and the handles to remove them."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(key: tuple[str, int]) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = next(tensors(output), None)
            if key not in kept and tensor is not None:
                kept[key] = tensor.detach().clone()

        return hook

    handles = [
        layer.register_forward_hook(keep((name, i)))
        for name in lists
        for i, layer in enumerate(model.get_submodule(name))
    ]
    return kept, handles


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a nested output, in order; caches are left out."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if "past_key_values" not in key and "cache" not in key:
                yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
