"""Carry a raw ``config.json`` over to a layer plan: no config class is needed, no field is lost.

What depends on a layer's index is re-indexed, written out as an explicit list, or refused with the reason. The
fields are those of transformers' configs (a scan of 642 of them found these kinds of field).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, PlanError, nearest
from ..layers import LayerPlan
from .names import Stack

# One value for each layer.
LAYER_LISTS = frozenset({
    "layer_types", "mlp_layer_types", "layers_block_type", "attention_layers", "attn_layers", "no_rope_layers",
    "layer_rope_theta", "indexer_types", "sliding_windows", "activation_sparsity_pattern",
    "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer", "layers_num_experts", "block_configs", "intermediate_size",
})  # fmt: skip
# Indices of the layers that are special.
INDEX_LISTS = frozenset({
    "mlp_only_layers", "moe_layers", "cross_attention_layers", "full_attn_idxs", "attn_layer_indices",
    "hybrid_layer_ids", "fullatt_block_indexes",
})  # fmt: skip
# Lists that may have as many values as there are layers by chance, and say nothing of layers.
OTHER_LISTS = frozenset({
    "architectures", "eos_token_id", "bos_token_id", "pad_token_id", "id2label", "label2id", "begin_suppress_tokens",
    "suppress_tokens", "bad_words_ids", "keys_to_ignore_at_inference", "summary_proj_to_labels",
})  # fmt: skip
# A layer is special by its index modulo this / because its index is below this. The list on the right, when the
# config has it, decides instead.
PERIODS = {
    "sliding_window_pattern": "layer_types", "_sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types", "global_attn_every_n_layers": "layer_types",
    "attn_layer_period": "layers_block_type", "expert_layer_period": None, "decoder_sparse_step": None,
    "interleave_moe_layer_step": "moe_layers", "no_rope_layer_interval": "no_rope_layers",
    "cross_attention_frequency": None, "moe_layer_interval": None,
}  # fmt: skip
THRESHOLDS = {
    "max_window_layers": "layer_types", "first_k_dense_replace": "mlp_layer_types", "num_dense_layers": None,
    "moe_layer_start_index": None, "moe_layer_end_index": None,
}  # fmt: skip
# Not zero, false or null: what a layer computes, or stores, depends on its index in a way no config field can say.
REFUSED = {
    "scale_attn_by_inverse_layer_idx": "attention is divided by the layer's index + 1: a copy would compute otherwise",
    "num_kv_shared_layers": "the last layers use the keys and values of earlier ones",
    "num_nextn_predict_layers": "a multi-token-prediction block is stored behind the last layer",
    "hidden_size_per_layer_input": "the embedding table has a part for each layer",
}  # fmt: skip
# What each layer is when the config does not list it, for families whose older checkpoints leave the list out.
_SLIDING, _FULL = "sliding_attention", "full_attention"
# Families whose classes fill in kinds of layers by a rule of their own when the config says nothing: refused then.
UNSTATED = frozenset({
    "afmoe", "cohere2", "cohere2_moe", "cwm", "deepseek_v32", "exaone4", "exaone_moe", "glm_moe_dsa", "gpt_oss",
    "granite_swa", "granitemoe_swa", "lfm2", "llama4_text", "mimo_v2_flash", "modernbert-decoder", "olmo3",
    "olmo_hybrid", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "smollm3", "zamba",
})  # fmt: skip
# Families in which a layer computes something else in another place, without a field that says so.
INDEX_DEPENDENT = {"diffllama": "the weight of its second softmax is a function of the layer's index"}
IMPLIED_LAYER_TYPES: dict[str, Callable[[Mapping[str, Any], int], str]] = {
    "gemma2": lambda config, i: _FULL if i % 2 else _SLIDING,
    "gemma3_text": lambda config, i: _SLIDING if (i + 1) % config.get("sliding_window_pattern", 6) else _FULL,
    "qwen2": lambda config, i: _qwen(config, i),
    "qwen3": lambda config, i: _qwen(config, i),
}


@dataclass(frozen=True)
class ConfigEdit:
    """A target's config, and what was changed, one line each."""

    config: dict[str, Any]
    changes: tuple[str, ...]


def grow_config(
    config: Mapping[str, Any], stack: Stack, plan: LayerPlan, lists: Mapping[str, str] | None = None
) -> ConfigEdit:
    """The config of the target.

    Args:
        config: The base's raw ``config.json``.
        stack: The stack that the plan is for.
        plan: One source for each target layer.
        lists: For lists of n values that depthup does not know: ``"layers"`` (re-index) or ``"keep"``, by key.

    Raises:
        CheckpointError: A field cannot be carried over.
        PlanError: The plan breaks a period or a threshold that this config can only state as a number.
    """
    result = copy.deepcopy(dict(config))
    result.pop("_name_or_path", None)
    scope: dict[str, Any] = result
    for key in stack.scope:
        scope = scope[key]
    changes: list[str] = []

    def put(key: str, value: Any) -> None:
        before = scope.get(key)
        if before != value:
            scope[key] = value
            changes.append(f"{key}: {_short(before)} -> {_short(value)}")

    _refuse_inexpressible(scope)
    _refuse_misspelt(scope, lists or {})
    _imply_layer_types(scope, stack.num_layers, put)
    for key in list(scope):
        value = scope[key]
        if isinstance(value, list) and (key in INDEX_LISTS):
            put(key, [target for target, source in enumerate(plan.sources) if source in value])
        elif isinstance(value, list) and _is_per_layer(key, value, stack, lists or {}):
            put(key, plan.reindex(value))
    for key in [key for key in (*PERIODS, *THRESHOLDS) if key in scope]:
        _carry_number(key, scope, plan, put, changes)
    if "quantization_config" in result:
        put_names = _carry_names(result["quantization_config"], stack, plan)
        if put_names != result["quantization_config"]:
            result["quantization_config"] = put_names
            changes.append("quantization_config: layers named by index -> named by the plan")
    for key in stack.depth_keys:
        put(key, plan.num_target_layers)
    # A model of several parts may repeat the text depth at the top.
    for key in stack.depth_keys:
        if stack.scope and result.get(key) == stack.num_layers:
            result[key] = plan.num_target_layers
            changes.append(f"{key} (top level): {stack.num_layers} -> {plan.num_target_layers}")
    return ConfigEdit(result, tuple(changes))


def layer_kinds(config: Mapping[str, Any], stack: Stack) -> list[tuple[str, ...]]:
    """What the config says of each layer by its index; layers of one kind should hold tensors of one form."""
    scope: Any = config
    for key in stack.scope:
        scope = scope[key]
    layers = range(stack.num_layers)
    facts: list[list[Any]] = []
    for key, value in scope.items():
        if isinstance(value, list) and key in LAYER_LISTS and len(value) == stack.num_layers:
            facts.append(value)
        elif isinstance(value, list) and key in INDEX_LISTS:
            facts.append([layer in value for layer in layers])
        elif type(value) is int and value > 0 and isinstance(scope.get((PERIODS | THRESHOLDS).get(key) or ""), list):
            continue  # the list on its right says it
        elif type(value) is int and value > 0 and key in PERIODS:
            facts.append([layer % value for layer in layers])
        elif type(value) is int and value > 0 and key in THRESHOLDS:
            facts.append([layer < value for layer in layers])
    return [tuple(str(fact[layer]) for fact in facts) for layer in layers]


def _refuse_misspelt(scope: Mapping[str, Any], lists: Mapping[str, str]) -> None:
    for key, what in lists.items():
        if not isinstance(scope.get(key), list):
            raise CheckpointError(f"the config has no list '{key}'{nearest(key, scope)}", next_step="see --config-list")
        if what not in ("layers", "keep"):
            raise CheckpointError(f"'{what}' says nothing of the list '{key}'", allowed="layers, keep")


def _refuse_inexpressible(scope: Mapping[str, Any]) -> None:
    if reason := INDEX_DEPENDENT.get(str(scope.get("model_type"))):
        raise CheckpointError(
            f"the model is a {scope['model_type']}: {reason}",
            next_step="this model cannot be up-scaled layer by layer yet",
        )
    for key, reason in REFUSED.items():
        if scope.get(key):
            raise CheckpointError(
                f"the config has {key} = {_short(scope[key])}: {reason}",
                next_step="this model cannot be up-scaled layer by layer yet",
            )


def _imply_layer_types(scope: dict[str, Any], num_layers: int, put: Callable[[str, Any], None]) -> None:
    rule = IMPLIED_LAYER_TYPES.get(str(scope.get("model_type")))
    if rule is not None and scope.get("layer_types") is None:
        kinds = [rule(scope, layer) for layer in range(num_layers)]
        if len(set(kinds)) > 1:
            put("layer_types", kinds)
    stated = any(scope.get(key) for key in (*LAYER_LISTS, *INDEX_LISTS, *PERIODS))
    if scope.get("model_type") in UNSTATED and not stated:
        raise CheckpointError(
            f"the layers of {scope['model_type']} are of several kinds, and the config does not say which is which",
            next_step="load and save the base with transformers once, which writes the list (layer_types)",
        )


def _is_per_layer(key: str, value: list[Any], stack: Stack, lists: Mapping[str, str]) -> bool:
    if key in lists:
        return lists[key] == "layers"
    if key == "no_rope_layers" and not value:
        return False  # Llama 4 writes an empty list for "not said"
    if key in LAYER_LISTS:
        if len(value) != stack.num_layers:
            raise CheckpointError(
                f"config.json lists {len(value)} {key} for {stack.num_layers} layers",
                next_step="run `depthup check` on the base; another tool may have left it inconsistent",
            )
        return True
    if len(value) == stack.num_layers and key not in OTHER_LISTS:
        raise CheckpointError(
            f"config.json has a list '{key}' of {len(value)} values, as many as there are layers, and depthup does"
            " not know whether it has one for each layer",
            next_step=f"say so with --config-list {key}=layers, or --config-list {key}=keep",
        )
    return False


def _carry_names(value: Any, stack: Stack, plan: LayerPlan) -> Any:
    """Names of modules inside lists and as keys: a layer's name becomes one for each target layer copied from it."""
    if isinstance(value, list):
        return [new for item in value for new in (_names(item, stack, plan) if isinstance(item, str)
                                                  else [_carry_names(item, stack, plan)])]  # fmt: skip
    if isinstance(value, dict):
        return {new: _carry_names(item, stack, plan) for key, item in value.items() for new in _names(key, stack, plan)}
    return value


def _names(name: str, stack: Stack, plan: LayerPlan) -> list[str]:
    match = re.search(rf"(?:^|\.){re.escape(stack.prefix.rpartition('.')[2])}\.(\d+)(?=\.|$)", name)
    if match is None:
        return [name]
    return [name[: match.start(1)] + str(target) + name[match.end(1) :] for target in plan.targets_of(int(match[1]))]


def _carry_number(
    key: str, scope: dict[str, Any], plan: LayerPlan, put: Callable[[str, Any], None], changes: list[str]
) -> None:
    """Keep a period or a threshold if it still says the same of every layer; else drop it, or refuse the plan."""
    value = scope[key]
    if type(value) is not int or value < 1 or (key in PERIODS and value == 1):
        return
    n, s = plan.num_base_layers, plan.num_target_layers
    if key in THRESHOLDS and value >= n - (key == "moe_layer_end_index"):  # an inclusive end
        put(key, value + s - n)  # "all layers are below it" stays so
        return
    if key == "max_window_layers" and not scope.get("use_sliding_window"):
        return  # no layer slides, the threshold says nothing
    if _holds(key, value, plan):
        return
    decided_by = (PERIODS | THRESHOLDS)[key]
    if decided_by is not None and isinstance(scope.get(decided_by), list):
        del scope[key]
        changes.append(f"{key}: {value} -> removed, {decided_by} says it for each layer")
        return
    fitting = [m for m in range((n + 1) // 2) if _holds(key, value, LayerPlan.upscale(n, m))]
    raise PlanError(
        f"the config says {key} = {value} of all layers, and the plan {plan.text} breaks that",
        allowed=f"for depth up-scaling m in {fitting}" if fitting else "no m keeps it",
    )


def _holds(key: str, value: int, plan: LayerPlan) -> bool:
    pairs = enumerate(plan.sources)
    if key in PERIODS:
        return all(target % value == source % value for target, source in pairs)
    return all((target < value) == (source < value) for target, source in pairs)


def _qwen(config: Mapping[str, Any], layer: int) -> str:
    slides = config.get("use_sliding_window") and config.get("sliding_window") is not None
    return _SLIDING if slides and layer >= config.get("max_window_layers", 28) else _FULL


def _short(value: Any) -> str:
    return f"list of {len(value)}" if isinstance(value, list) else str(value)
