"""Methods of adapters, and what ``adapter_config.json`` says of layers, carried over to a plan.

Names of methods and fields, and how they are read: peft 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..checkpoint.names import Stack
from ..checkpoint.selectors import Modules, Selects, carry_fields, carry_selector, general, pattern
from ..errors import CheckpointError, shown
from ..layers import LayerPlan

# Methods whose tensors lie under the layer that they change, and the word that their names begin with.
LAYERED = {
    "LORA": "lora_", "ADALORA": "lora_", "IA3": "ia3_", "LOHA": "hada_", "LOKR": "lokr_", "OFT": "oft_",
    "BOFT": "boft_", "HRA": "hra_", "VERA": "vera_lambda_", "PVERA": "pvera_lambda_", "VBLORA": "vblora_",
    "RANDLORA": "randlora_", "FOURIERFT": "fourierft_", "WAVEFT": "waveft_", "C3A": "c3a_", "ROAD": "road_",
    "SHIRA": "shira_", "SUPERTUNING": "supertuning_", "MISS": "miss_", "DELORA": "delora_", "GLORA": "glora_",
    "GRALORA": "gralora_", "HIRA": "hira_", "DEFT": "deft_", "PEANUT": "peanut_", "PSOFT": "psoft_", "OSF": "osf_",
    "BEFT": "beft_", "POLY": "poly_", "LN_TUNING": "ln_tuning_", "ADAPTION_PROMPT": "adaption_",
    "TRAINABLE_TOKENS": "trainable_tokens_",
}  # fmt: skip
# Methods that put tokens before the text: one tensor, which says nothing of layers.
PROMPTS = frozenset({"PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"})
# Methods that put keys and values before those of the text: one tensor with a part for each layer.
CACHES = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
# Methods that hang on the number or the order of layers in a way that no field can say.
REFUSED = {
    "XLORA": "its classifier puts out scales for each adapted layer",
    "FROD": "its shared basis is computed from the weights of all layers together",
    "LILY": "layers next to each other share its tensors",
    "UNILORA": "all layers share one vector, in places drawn by their order",
    "TINYLORA": "layers share its vectors in groups formed by their order",
    "SHADOW": "a second, smaller model runs beside the layers",
}
ROOT = "base_model.model."  # what peft puts before the names of the model's modules
# Fields whose items (or whose pattern) select modules.
_SELECTING = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "target_parameters")
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


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) is int


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_ranges(value: Any) -> bool:
    return isinstance(value, list) and all(_are_numbers(pair) and len(pair) == 2 for pair in value)


_NAME, _NUMBER, _TABLE = ("a name", _is_name), ("a number", _is_number), ("an object", _is_table)
_NAMES = ("a list of names", _are_names)
_PATTERN = ("a pattern or a list of names", lambda value: _is_name(value) or _are_names(value))
_NUMBERS = ("a number or a list of numbers", lambda value: _is_number(value) or _are_numbers(value))
_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "peft_type": _NAME, "base_model_name_or_path": _NAME, "target_modules": _PATTERN, "exclude_modules": _PATTERN,
    "feedforward_modules": _PATTERN, "layers_pattern": _PATTERN, "modules_to_save": _NAMES, "target_parameters": _NAMES,
    "layers_to_transform": _NUMBERS, "layer_replication": ("a list of pairs of numbers", _are_ranges),
    "rank_pattern": _TABLE, "alpha_pattern": _TABLE, "adapter_layers": _NUMBER, "num_layers": _NUMBER,
    "token_dim": _NUMBER, "num_transformer_submodules": _NUMBER,
}  # fmt: skip


def require_forms(config: Mapping[str, Any], path: object) -> None:
    """Raise :class:`CheckpointError` if a field that speaks of layers has a value of another type than peft writes."""
    for key, (form, fits) in _FORMS.items():
        value = config.get(key)
        if value is not None and not fits(value):
            raise CheckpointError(
                f"{path} has {key} = {shown(value)}", allowed=f"{form}, or null", next_step="get this file again"
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
        try:
            match = re.match(rf"{start}{container}\.(\d+)\.", name)
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"layers_pattern has '{shown(container)}', which is no regular expression: {error}",
                next_step="correct it in adapter_config.json",
            ) from error
        if match:
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
        elif (key == "target_svd_config" or key.endswith("_pattern")) and isinstance(value, dict):
            result[key] = carry_fields(value, modules, dict.fromkeys(value), where=key, rule=_ranked)
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
    return f"list of {len(value)}" if isinstance(value, list) and len(value) > 8 else shown(value)
