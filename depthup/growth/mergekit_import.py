"""A plan from the YAML of mergekit, as far as one layer plan on one model can say the same; the rest is refused.

Stacks of ``passthrough``, the older format of its command ``bakllama``, and slices of ``linear`` or ``slerp`` whose two
sources are one model (which mergekit 0.1.5 takes only under two spellings, such as ``base`` and ``base/``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import isclose
from pathlib import Path
from typing import Any

import yaml

from ..errors import PlanError, nearest, shown
from ..layers import COPY, Init, LayerPlan, require_depth
from .mergekit import TensorNames

_KEYS = frozenset({
    "slices", "modules", "merge_method", "parameters", "base_model", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template",
})  # fmt: skip
_NOT_FOLLOWED = {
    "dtype": "each tensor keeps the type that it has on disk",
    "out_dtype": "each tensor keeps the type that it has on disk",
    "tokenizer_source": "the base's tokenizer goes along",
    "tokenizer": "the base's tokenizer goes along",
    "chat_template": "the base's template goes along",
}


_OPENING = dict.fromkeys(b"[{", 1) | dict.fromkeys(b"]}", -1)
_MAX_DEPTH = 100


@dataclass(frozen=True)
class Imported:
    """A plan that a file says, and what the file says besides that surgery does otherwise, one line each."""

    plan: LayerPlan
    notes: tuple[str, ...]


def read_mergekit(path: str | os.PathLike[str], names: TensorNames) -> Imported:
    """The plan that a mergekit YAML says of the model with these names; which model the file names is not looked at.

    Raises:
        PlanError: The file cannot be read, or says what is no layer plan of one model.
    """
    try:
        text = Path(path).read_bytes()
        if max(accumulate((_OPENING.get(byte, 0) for byte in text), initial=0)) > _MAX_DEPTH:
            raise RecursionError("its lists are nested too deep")  # the parser would take minutes to find that out
        value = yaml.safe_load(text)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise PlanError(f"{path} is no YAML file: {error}", next_step="see mergekit's own examples") from error
    return from_mergekit(value, names)


def from_mergekit(value: Any, names: TensorNames) -> Imported:
    """:func:`read_mergekit` of what the YAML holds."""
    config = _mapping(_modern(value), _KEYS, "the file")
    method = shown(config.get("merge_method"))
    if method not in _STARTS:
        raise PlanError(
            f"merge_method '{method}' is no stack of the layers of one model",
            allowed="passthrough, or linear and slerp within one model",
            next_step="merge with mergekit first, then up-scale what it wrote",
        )
    if isinstance(config.get("modules"), dict) and len(config["modules"]) == 1:
        (module,) = config["modules"].values()
        module = _mapping(module, {"slices", "parameters"}, "modules")
    else:
        module = {"slices": config.get("slices")}
    slices = [_mapping(entry, {"sources", "base_model", "parameters"}, "slices") for entry in _list(module, "slices")]
    sources = [[_source(entry, names.stack.num_layers) for entry in _list(part, "sources")] for part in slices]
    _require_one_model(config, slices, sources)
    layers: list[int] = []
    inits: list[Init] = []
    for part, held in zip(slices, sources, strict=True):
        scopes = (part.get("parameters"), module.get("parameters"), config.get("parameters"))
        base_model = part.get("base_model") or config.get("base_model")
        require_depth(len(layers) + held[0].stop - held[0].start)
        lengths = {source.stop - source.start for source in held}
        if len(lengths) != 1:
            raise PlanError(f"the sources of one slice have {sorted(lengths)} layers", allowed="equal numbers")
        for index in range(length := lengths.pop()):
            view = _View(held, scopes, index, index / (length - 1) if length > 1 else 1.0, names, base_model)
            layer, init = _STARTS[method](view)
            layers.append(layer)
            inits.append(init)
        if method == "passthrough":
            _require_outside_unscaled(_View(held, scopes, 0, 0.0, names, base_model))
    notes = [f"{key} is not followed: {why}" for key, why in _NOT_FOLLOWED.items() if config.get(key) is not None]
    if any(init.kind == "slerp" for init in inits):
        notes.append("slerp is taken over each whole tensor; mergekit 0.1.5 takes it row by row")
    return Imported(LayerPlan(names.stack.num_layers, tuple(layers), tuple(inits)), tuple(notes))


@dataclass(frozen=True)
class _Source:
    model: str
    start: int
    stop: int
    parameters: Any


@dataclass(frozen=True)
class _View:
    """One layer of a slice: where it comes from, and the settings that hold for it, the nearest first."""

    sources: list[_Source]
    scopes: tuple[Any, ...]
    index: int
    t: float
    names: TensorNames
    base_model: Any

    def layer(self, which: int) -> int:
        return self.sources[which].start + self.index

    def setting(self, key: str, which: int | None, default: float) -> dict[str, float]:
        """The value of a parameter for each suffix of the layer, for one source or for all."""
        layer = self.layer(which or 0)
        found = ((suffix, self.value(key, which, self.names.stack.name(layer, suffix)))
                 for suffix in self.names.layer)  # fmt: skip
        return {suffix: default if value is None else value for suffix, value in found}

    def value(self, key: str, which: int | None, name: str) -> float | None:
        own = () if which is None else (self.sources[which].parameters,)
        for scope in (*own, *self.scopes):
            settings = _mapping(scope or {}, {"scale", "weight", "t", "normalize"}, "parameters")
            value = _evaluate(settings[key], name, self.t) if key in settings else None
            if value is not None:
                return value
        return None

    def single(self, key: str, which: int | None, default: float) -> float:
        values = set(self.setting(key, which, default).values())
        if len(values) != 1:
            raise PlanError(f"{key} is {sorted(values)[:4]} within one layer", allowed="one value for a whole layer")
        return values.pop()


def _passthrough(view: _View) -> tuple[int, Init]:
    if len(view.sources) != 1:
        raise PlanError(f"a passthrough slice has {len(view.sources)} sources", allowed="one source a slice")
    layer, scales = view.layer(0), view.setting("scale", 0, 1.0)
    if set(scales.values()) == {1.0}:
        return layer, COPY
    outputs = view.names.outputs
    factors = {scales[suffix] for suffix in outputs}
    odd = [suffix for suffix, scale in scales.items() if suffix not in outputs and scale != 1]
    if odd or len(factors) != 1:
        suffix = odd[0] if odd else min(outputs)
        raise PlanError(
            f"base layer {layer} is scaled in a way that no start of a layer has: {suffix} by {scales[suffix]:g}",
            allowed=f"one factor for all of {', '.join(sorted(outputs)[:4])}, and 1 for all others",
        )
    factor = factors.pop()
    return layer, Init("attenuated", (factor,)) if factor else Init("identity")


def _linear(view: _View) -> tuple[int, Init]:
    if len(view.sources) == 1:
        return view.layer(0), COPY
    first, second = (view.single("weight", which, 1.0) for which in _two(view))
    total = first + second
    if not total or (not view.single("normalize", None, 1.0) and not isclose(total, 1.0)):
        raise PlanError(f"the weights {first:g} and {second:g} are no shares of two layers")
    return _mean("average", view.layer(0), view.layer(1), second / total)


def _slerp(view: _View) -> tuple[int, Init]:
    share = view.single("t", None, 0.5)
    models = [view.sources[which].model for which in _two(view)]
    one, other = view.layer(0), view.layer(1)
    if models.count(view.base_model) == 1 and view.base_model == models[1]:
        one, other = other, one
    elif models.count(view.base_model) != 1 and share != 0.5:
        raise PlanError(
            f"t = {share:g}, and base_model does not tell which of two sources it counts from",
            next_step="spell the model of the two sources in two ways (base and base/), and name one as base_model",
        )
    return _mean("slerp", one, other, share)


def _mean(kind: str, layer: int, other: int, share: float) -> tuple[int, Init]:
    if share in (0.0, 1.0):
        return (other if share else layer), COPY
    return layer, Init(kind, (float(other), share))


_STARTS = {"passthrough": _passthrough, "linear": _linear, "slerp": _slerp}


def _two(view: _View) -> tuple[int, int]:
    if len(view.sources) != 2:
        raise PlanError(f"a slice mixes {len(view.sources)} layers", allowed="two layers into one")
    return 0, 1


def _modern(value: Any) -> Any:
    """The older format of the command ``bakllama`` in the newer one."""
    if not isinstance(value, dict) or "layer_slices" not in value:
        return value
    old = _mapping(value, {"layer_slices", "embedding_source", "lm_head_source"}, "the file")
    slices = []
    for entry in _list(old, "layer_slices"):
        part = _mapping(entry, {"model", "start", "end", "scale"}, "layer_slices")
        scale = {} if part.get("scale") is None else {"scale": {"filter": "down_proj", "value": part["scale"]}}
        source = {"model": part.get("model"), "layer_range": [part.get("start"), part.get("end")], "parameters": scale}
        slices.append({"sources": [source]})
    others = {str(old[key]) for key in ("embedding_source", "lm_head_source") if old.get(key) is not None}
    extra = {"base_model": others.pop()} if len(others) == 1 else {}
    if others:
        raise PlanError("embeddings and head come from two models", allowed="one model")
    return {"merge_method": "passthrough", "slices": slices, **extra}


def _source(value: Any, num_layers: int) -> _Source:
    entry = _mapping(value, {"model", "layer_range", "parameters"}, "sources")
    match entry:
        case {"model": str(model), "layer_range": [int(start), int(stop)]} if "+" not in model:
            pass
        case {"model": str(model)} if "+" in model:
            raise PlanError(
                f"'{model}' is a model with an adapter", next_step="merge the adapter first, then name what it gave"
            )
        case _:
            raise PlanError(
                f"a source is {shown(entry)}", allowed="model: NAME and layer_range: [first, behind the last]"
            )
    if not 0 <= start < stop <= num_layers:
        raise PlanError(
            f"layer_range [{start}, {stop}] of a base of {num_layers} layers",
            allowed=f"0 <= first < second <= {num_layers}: the second number is behind the last layer",
        )
    return _Source(model, start, stop, entry.get("parameters"))


def _require_one_model(config: Mapping[str, Any], slices: list[Any], sources: list[list[_Source]]) -> None:
    named = [source.model for held in sources for source in held]
    named += [str(part["base_model"]) for part in (config, *slices) if part.get("base_model")]
    models = {os.path.normpath(name): name for name in named}
    if len(models) > 1:
        raise PlanError(
            f"the file takes layers of {len(models)} models: {', '.join(sorted(models.values()))[:300]}",
            allowed="one model",
            next_step="merge them with mergekit; a plan grows one base",
        )


def _require_outside_unscaled(view: _View) -> None:
    for name in view.names.outside:
        if view.value("scale", 0, name) not in (None, 1.0):
            raise PlanError(f"{name} is scaled, which is no layer", allowed="a scale of layers only, by filters")


def _evaluate(setting: Any, name: str, t: float, depth: int = 0) -> float | None:
    """A number, a gradient over the slice, or the first condition whose filter is a part of the name."""
    if depth > 2:  # in YAML a list may hold itself
        raise PlanError("a parameter has conditions within conditions", allowed="numbers, gradients, conditions")
    match setting:
        case [] | None:
            return None
        case {"value": value, **rest} if not rest.keys() - {"filter"}:
            part = rest.get("filter")
            return _evaluate(value, name, t, depth + 1) if part in (None, "*") or str(part) in name else None
        case [*numbers] if not any(isinstance(number, dict) for number in numbers):
            low = min(int(t * (len(numbers) - 1)), max(len(numbers) - 2, 0))
            above = t * (len(numbers) - 1) - low
            ends = [_number(number) for number in numbers[low : low + 2]]
            return ends[0] if not above else (1 - above) * ends[0] + above * ends[1]
        case [*conditions]:
            return next((found for one in conditions if (found := _evaluate(one, name, t, depth + 1)) is not None),
                        None)  # fmt: skip
    return _number(setting)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise PlanError(f"'{shown(value)}' is no number, no gradient and no condition with a filter") from None


def _mapping(value: Any, keys: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{where}: {shown(value)} is no mapping", allowed=", ".join(sorted(keys)))
    for key in value:
        if key not in keys:
            raise PlanError(f"{where}: depthup does not know '{shown(key)}'{nearest(shown(key), keys)}",
                            allowed=", ".join(sorted(keys)))  # fmt: skip
    return value


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    held = value.get(key)
    if not isinstance(held, list) or not held:
        raise PlanError(f"there is no list of {key}: {shown(held)}", allowed="a stack of slices of one model")
    return held
