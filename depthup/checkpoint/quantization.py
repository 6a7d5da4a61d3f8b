"""Quantised checkpoints: what their configs say of modules by name follows the plan, as their tensors do.

Scales, zero points, packed weights and code books lie under their layer's name and move with it. Beside them a config
may name modules: those left in full width, those quantised otherwise. Each format reads these names in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..layers import LayerPlan
from .names import Stack
from .plain_json import read_object
from .reader import Tensor
from .selectors import (
    Modules,
    Rule,
    carry_fields,
    dynamic,
    globbed,
    named_or_searched,
    prefixed,
    qualified,
    searched,
)

# Objects of config.json that describe how weights are quantised (the last is MLX's).
CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
# Files beside config.json that do: GPTQ, AWQ, ModelOpt, EXL and AutoRound.
SIDE_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
# vLLM's scales of the key-value cache: rank -> layer -> number.
CACHE_SCALES = "kv_cache_scales.json"

# How what stands below a field is read; all other fields are read by the form of each string.
_RULES: dict[str, Rule | None] = {
    "dataset": None, "tokenizer": None, "meta": None, "nsamples": None,  # what the weights were calibrated on
    "dynamic": dynamic, "module_quant_configs": searched, "extra_config": named_or_searched,
    "ignore": prefixed, "targets": prefixed, "fqn_to_config": qualified, "module_fqn_to_config": qualified,
    "exclude_modules": globbed, "quantized_layers": globbed, "exclude": globbed, "layer_quant_config": globbed,
}  # fmt: skip
_INNER = ("weight", "centroids", "res_centroids")  # what stands below a linear map: bitsandbytes, VPTQ
_DESCRIBED = "tensor_names"  # torchao: which tensors the file's metadata describes
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_WEIGHTS = (".weight", ".bias")
_GLOBBING = {"modelopt": ("ignore", "targets")}  # methods that read these fields as shell patterns


def carry_quantization(
    config: Mapping[str, Any], stack: Stack, plan: LayerPlan, names: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """A config whose quantisation names the target's modules, and what was changed, one line each.

    Args:
        config: The base's ``config.json``, or an object in it.
        stack: The stack that grows.
        plan: One source for each target layer.
        names: Names on disk of the base's tensors.

    Raises:
        CheckpointError: A selector depends on a layer's index in a way that cannot be written for the target.
    """
    modules: Modules | None = None
    result, changes = dict(config), []
    for key, value in config.items():
        if key in CONFIG_KEYS and isinstance(value, dict):
            modules = modules or Modules.of(names, stack, plan)
            result[key] = carry_fields(value, modules, _rules(value), where=key)
            if result[key] != value:
                changes.append(f"{key}: layers named by index -> named by the plan")
        elif stack.scope[:1] == (key,):
            result[key], more = carry_quantization(value, replace(stack, scope=stack.scope[1:]), plan, names)
            changes += [f"{key}.{line}" for line in more]
    return result, changes


def carry_side_files(folder: Path, stack: Stack, plan: LayerPlan, names: Iterable[str]) -> dict[str, Any]:
    """The quantisation files beside a base's config that name layers, by name, with their contents for the target.

    Raises:
        CheckpointError: A file is no JSON, or see :func:`carry_quantization`.
    """
    result = {}
    for file in (*SIDE_FILES, CACHE_SCALES):
        path = folder / file
        if not path.is_file():
            continue
        value = read_object(path)
        if file == CACHE_SCALES:
            carried = _carry_cache_scales(value, stack, plan)
        else:
            modules = Modules.of(names, stack, plan)
            carried = carry_fields(value, modules, _rules(value), where=file)
        if carried != value:
            result[file] = carried
    return result


def carry_metadata(metadata: Mapping[str, str], stack: Stack, plan: LayerPlan) -> dict[str, str]:
    """What the target's files say of their tensors in their headers: torchao's descriptions, by tensor; else nothing.

    Raises:
        CheckpointError: The list of the described tensors is no list of names.
    """
    if _DESCRIBED not in metadata:
        return {}
    try:
        names = json.loads(metadata[_DESCRIBED])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{_DESCRIBED} in the header of the weights is no list of names", next_step="get the weights again"
        )

    def copies(name: str) -> list[str]:
        place = stack.split(name)
        if place is None:
            return [name]
        if place[0] >= plan.num_base_layers:
            return [stack.name(place[0] - plan.num_base_layers + plan.num_target_layers, place[1])]
        return [stack.name(target, place[1]) for target in plan.targets_of(place[0])]

    result = {new: value for name, value in metadata.items() for new in copies(name)}
    result[_DESCRIBED] = json.dumps([new for name in names for new in copies(name)])
    return result


def layer_forms(
    layers: Mapping[int, Mapping[str, Tensor]], config: Mapping[str, Any], stack: Stack
) -> dict[int, dict[str, tuple[int, ...]]]:
    """What the layers of one kind must have in common, by layer: names, with shapes.

    These are the tensors; in a quantised checkpoint, where some layers may be left in full width or have other bits,
    the modules, and the shapes of the floating-point weights that all layers have.

    Args:
        layers: The tensors of each layer by suffix.
        config: The raw ``config.json``.
        stack: The stack that they are of.
    """
    holders = [config]
    for key in stack.scope:
        holders.append(holders[-1][key])
    if not any(isinstance(holder.get(key), dict) for holder in holders for key in CONFIG_KEYS):
        return {layer: {suffix: tensor.shape for suffix, tensor in held.items()} for layer, held in layers.items()}
    plain = [{name for name, tensor in held.items() if tensor.dtype in _FLOATS and name.endswith(_WEIGHTS)}
             for held in layers.values()]  # fmt: skip
    common = set.intersection(*plain) if plain else set()
    return {
        layer: {**dict.fromkeys(_modules(held), ()), **{name: held[name].shape for name in common}}
        for layer, held in layers.items()
    }


def _modules(names: Iterable[str]) -> Iterator[str]:
    """The modules that hold tensors, and those around them; ``up_proj.weight.absmax`` is one of ``up_proj``."""
    for name in names:
        parts = name.split(".")
        depth = min([parts.index(inner) for inner in _INNER if inner in parts], default=len(parts) - 1)
        yield from (".".join(parts[:i]) for i in range(1, depth + 1))


def _rules(value: Any) -> Mapping[str, Rule | None]:
    method = str(value.get("quant_method", "")) if isinstance(value, dict) else ""
    return {**_RULES, **dict.fromkeys(_GLOBBING.get(method, ()), globbed)}


def _carry_cache_scales(value: Any, stack: Stack, plan: LayerPlan) -> Any:
    """Each object with one key for each layer, ``"0"`` to ``str(n - 1)``, gets one for each target layer."""
    if not isinstance(value, dict):
        return value
    by_layer = value.keys() == {str(layer) for layer in range(stack.num_layers)}
    if by_layer and not any(isinstance(item, dict) for item in value.values()):
        return {str(target): value[str(source)] for target, source in enumerate(plan.sources)}
    return {key: _carry_cache_scales(item, stack, plan) for key, item in value.items()}
