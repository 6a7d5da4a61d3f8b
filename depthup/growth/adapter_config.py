"""What ``adapter_config.json`` says of layers, carried over to a plan (fields and their reading: peft 0.21)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..checkpoint.names import Stack
from ..checkpoint.selectors import Modules, Selects, carry_fields, carry_selector, general, pattern
from ..errors import CheckpointError
from ..layers import LayerPlan

ROOT = "base_model.model."  # what peft puts before the names of the model's modules
# Fields whose items (or whose pattern) select modules.
_SELECTING = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "target_parameters")
_TEXTS, _NUMBERS, _NUMBER = "a list of names", "a number or a list of numbers", "a number"
_FORMS = {
    "peft_type": "a name", "base_model_name_or_path": "a name",
    "target_modules": f"a pattern or {_TEXTS}", "exclude_modules": f"a pattern or {_TEXTS}",
    "feedforward_modules": f"a pattern or {_TEXTS}", "layers_pattern": f"a name or {_TEXTS}",
    "modules_to_save": _TEXTS, "target_parameters": _TEXTS,
    "layers_to_transform": _NUMBERS, "layer_replication": "a list of pairs of numbers",
    "rank_pattern": "an object", "alpha_pattern": "an object",
    "adapter_layers": _NUMBER, "num_layers": _NUMBER, "token_dim": _NUMBER, "num_transformer_submodules": _NUMBER,
}  # fmt: skip
# Fields that say nothing of layers.
_APART = frozenset({
    "auto_mapping", "base_model_name_or_path", "loftq_config", "megatron_config", "runtime_config", "eva_config",
    "trainable_token_indices", "tokenizer_kwargs", "layers_pattern", "layers_to_transform", "peft_type", "task_type",
    "revision", "token_indices", "cpt_token_ids",
})  # fmt: skip


def grow_adapter_config(
    config: Mapping[str, Any],
    names: Iterable[str],
    word: str | None,
    stack: Stack,
    plan: LayerPlan,
    base_model: str | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The grown adapter's config, and what was changed, one line each.

    Args:
        config: The raw ``adapter_config.json``.
        names: Names of the adapter's tensors.
        word: What their last parts begin with, ``lora_``; None for prompts.
        stack: The stack of layers, its prefix as in the tensors' names.
        plan: One source for each target layer.
        base_model: What ``base_model_name_or_path`` is to say, or None to leave it.

    Raises:
        CheckpointError: A field cannot be carried over.
    """
    if config.get("layer_replication"):
        ranges = ",".join(f"{start}-{stop - 1}" for start, stop in config["layer_replication"])
        raise CheckpointError(
            f"the adapter stacks its base model's layers itself when it is loaded (layer_replication = {ranges})",
            next_step=f"write that stack with `depthup upscale BASE OUT --layers {ranges}`, take layer_replication out"
            " of adapter_config.json, and grow the adapter as one for OUT",
        )
    result = dict(config)
    counted = config.get("layers_to_transform") not in (None, [])
    modules = _modules(names, word, stack, plan, counted) if word is not None and stack.prefix else None
    if modules is not None:
        result.update(_carried(config, modules))
        _require_the_same(config, result, modules)
    if type(config.get("adapter_layers")) is int:  # adaption prompts: the last so many layers
        result["adapter_layers"] = sum(
            source >= plan.num_base_layers - config["adapter_layers"] for source in plan.sources
        )
    if config.get("num_layers") == plan.num_base_layers:
        result["num_layers"] = plan.num_target_layers
    if base_model is not None:
        result["base_model_name_or_path"] = base_model
        if "revision" in result:
            result["revision"] = None
    changes = [f"{key}: {_short(config.get(key))} -> {_short(result[key])}"
               for key in result if result[key] != config.get(key)]  # fmt: skip
    if base_model is None and config.get("base_model_name_or_path"):
        changes.append(
            f"base_model_name_or_path: still {config['base_model_name_or_path']}, the model before growth; name the"
            " up-scaled one with --base-model, or when the adapter is loaded"
        )
    return result, tuple(changes)


def require_forms(config: Mapping[str, Any], path: object) -> None:
    """Raise :class:`CheckpointError` if a field that speaks of layers has a value of another type than peft writes."""
    for key, form in _FORMS.items():
        value = config.get(key)
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        numbers = isinstance(value, list) and all(type(item) is int for item in value)
        pairs = isinstance(value, list) and all(isinstance(p, list) and [*map(type, p)] == [int, int] for p in value)
        fits = {
            "a name": isinstance(value, str),
            "a number": type(value) is int,
            "an object": isinstance(value, dict),
            _TEXTS: texts,
            f"a pattern or {_TEXTS}": texts or isinstance(value, str),
            f"a name or {_TEXTS}": texts or isinstance(value, str),
            _NUMBERS: numbers or type(value) is int,
            "a list of pairs of numbers": pairs,
        }
        if value is not None and not fits[form]:
            raise CheckpointError(
                f"{path} has {key} = {str(value)[:80]}", allowed=f"{form}, or null", next_step="get this file again"
            )


# -- how peft reads selectors -----------------------------------------------------------------------------------------


def _ending(selector: str) -> Selects:
    return lambda name: name == selector or name.endswith(f".{selector}")


def _whole(selector: str) -> Selects:
    return pattern(selector, re.Pattern.fullmatch)


def _ranked(selector: str) -> Selects:
    """Keys of ``rank_pattern`` and its like."""
    return pattern(rf"(.*\.)?({selector})$")


def _anywhere(selector: str) -> Selects:
    """``modules_to_save``."""
    return pattern(rf"(^|.*\.){selector}($|\..*)")


def _is_adapted(config: Mapping[str, Any], name: str) -> bool:
    """Whether peft puts an adapter on a module (``check_target_module_exists``)."""
    excluded, saved, target = (config.get(key) for key in ("exclude_modules", "modules_to_save", "target_modules"))
    if isinstance(excluded, str):
        if _whole(excluded)(name):
            return False
    elif any(_ending(item)(name) for item in excluded or []):
        return False
    if any(_anywhere(item)(name) for item in saved or []):
        return False
    if not isinstance(target, list):
        return isinstance(target, str) and _whole(target)(name)
    if name in target:
        return True
    wanted = config.get("layers_to_transform")
    found = any(_ending(item)(name) for item in target)
    if not found or wanted is None or wanted == []:
        return found
    stated = config.get("layers_pattern") or [r"[^.]*"]
    for container in [stated] if isinstance(stated, str) else stated:
        start = r".*?\." if container == r"[^.]*" else r"(?:^|.*?\.)"
        if match := re.match(rf"{start}{container}\.(\d+)\.", name):
            return int(match[1]) in (wanted if isinstance(wanted, list) else [wanted])
    return False


# -- carrying ---------------------------------------------------------------------------------------------------------


def _modules(names: Iterable[str], word: str, stack: Stack, plan: LayerPlan, counted: bool) -> Modules:
    """The modules that the adapter is on, by the model's own names; each is taken to be in every layer.

    So it is in other stacks if ``counted``: the fields then choose layers by a number that may speak of these too.
    """
    inner = Stack(stack.prefix.removeprefix(ROOT), stack.num_layers, (), ())
    kinds: dict[str, None] = {}
    others: dict[str, None] = {}
    for name in names:
        parts = name.removeprefix(ROOT).split(".")
        ends = [i for i, part in enumerate(parts) if part.startswith(word) or part == "base_layer"]
        module = ".".join(parts[: ends[0]] if ends else parts[:-1])
        if place := inner.split(f"{module}."):
            kinds[place[1].removesuffix(".")] = None
        else:
            numbers = range(max(stack.num_layers, plan.num_target_layers)) if counted else ()
            others |= dict.fromkeys([module, *(re.sub(r"\.\d+\.", f".{i}.", module, count=1) for i in numbers)])
    inside = (inner.name(layer, kind) for layer in range(stack.num_layers) for kind in kinds)
    return Modules.of([*others, *inside], inner, plan)


def _carried(config: Mapping[str, Any], modules: Modules) -> dict[str, Any]:
    """The fields that select modules."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if key in _SELECTING:
            result[key] = _carried_selection(key, value, modules)
        elif key == "target_svd_config" or (key.endswith("_pattern") and isinstance(value, dict)):
            result[key] = carry_fields(value, modules, dict.fromkeys(value or {}), where=key, rule=_ranked)
        elif key not in _APART and isinstance(value, list | dict):
            result[key] = carry_fields(value, modules, {}, where=key, rule=general)
    wanted = config.get("layers_to_transform")
    if wanted is not None and wanted != []:
        named = wanted if isinstance(wanted, list) else [wanted]
        targets = [target for target, source in enumerate(modules.plan.sources) if source in named]
        result["layers_to_transform"] = targets[0] if isinstance(wanted, int) and len(targets) == 1 else targets
    return result


def _carried_selection(key: str, value: Any, modules: Modules) -> Any:
    if isinstance(value, str) and value != "all-linear":
        several = carry_selector(value, _whole, modules, where=key, alone=True)
        return several[0] if len(several) == 1 else several  # names, which peft reads by their ends
    rule = _anywhere if key == "modules_to_save" else _ending
    return carry_fields(value, modules, {}, where=key, rule=rule) if isinstance(value, list) else value


def _require_the_same(before: Mapping[str, Any], after: Mapping[str, Any], modules: Modules) -> None:
    """All fields together must put adapters on the copies of the modules that had one, and on no other."""
    for target, source in modules.pairs(modules.stack.prefix):
        if _is_adapted(before, source) != _is_adapted(after, target):
            raise CheckpointError(
                f"the fields of adapter_config.json select '{source}' {'not ' * (not _is_adapted(before, source))}and"
                f" would select its copy '{target}' otherwise",
                next_step="list the full names of the modules in target_modules, without layers_to_transform",
            )


def _short(value: Any) -> str:
    return f"list of {len(value)}" if isinstance(value, list) and len(value) > 8 else str(value)
