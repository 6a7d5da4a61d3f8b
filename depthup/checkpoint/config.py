"""Carry a raw ``config.json`` over to a layer plan: no config class is needed, no field is lost.

What depends on a layer's index is re-indexed, written out as an explicit list, or refused with the reason. The
fields are those of transformers' configs (a scan of 642 of them found these kinds of field).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, PlanError
from ..layers import LayerPlan
from .names import Stack

# One value for each layer.
LAYER_LISTS = frozenset({
    "layer_types", "mlp_layer_types", "layers_block_type", "attention_layers", "attn_layers", "no_rope_layers",
    "indexer_types", "sliding_windows", "activation_sparsity_pattern", "num_attention_heads_per_layer",
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
    "scale_attn_by_inverse_layer_idx": "attention is divided by the layer's index + 1, so a copy would compute another function",
    "num_kv_shared_layers": "the last layers use the keys and values of earlier ones",
    "num_nextn_predict_layers": "a multi-token-prediction block is stored behind the last layer",
    "hidden_size_per_layer_input": "the embedding table has a part for each layer",
}  # fmt: skip
# What each layer is when the config does not list it, for families whose older checkpoints leave the list out.
_SLIDING, _FULL = "sliding_attention", "full_attention"
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
    _imply_layer_types(scope, stack.num_layers, put)
    for key in list(scope):
        value = scope[key]
        if isinstance(value, list) and (key in INDEX_LISTS):
            put(key, [target for target, source in enumerate(plan.sources) if source in value])
        elif isinstance(value, list) and _is_per_layer(key, value, stack, lists or {}):
            put(key, plan.reindex(value))
    for key in [key for key in (*PERIODS, *THRESHOLDS) if key in scope]:
        _carry_number(key, scope, plan, put, changes)
    for key in stack.depth_keys:
        put(key, plan.num_target_layers)
    # A model of several parts may repeat the text depth at the top.
    for key in stack.depth_keys:
        if stack.scope and result.get(key) == stack.num_layers:
            result[key] = plan.num_target_layers
            changes.append(f"{key} (top level): {stack.num_layers} -> {plan.num_target_layers}")
    return ConfigEdit(result, tuple(changes))


def is_described_by_layer(config: Mapping[str, Any], stack: Stack) -> bool:
    """Whether the config says for each layer what kind it is, so that layers with unlike tensors can be told apart."""
    scope: Any = config
    for key in stack.scope:
        scope = scope[key]
    return any(isinstance(scope.get(key), list) for key in (*LAYER_LISTS, *INDEX_LISTS))


def _refuse_inexpressible(scope: Mapping[str, Any]) -> None:
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


def _is_per_layer(key: str, value: list[Any], stack: Stack, lists: Mapping[str, str]) -> bool:
    if key in lists:
        return lists[key] == "layers"
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


def _carry_number(
    key: str, scope: dict[str, Any], plan: LayerPlan, put: Callable[[str, Any], None], changes: list[str]
) -> None:
    """Keep a period or a threshold if it still says the same of every layer; else drop it, or refuse the plan."""
    value = scope[key]
    if type(value) is not int or value < 1 or (key in PERIODS and value == 1):
        return
    n, s = plan.num_base_layers, plan.num_target_layers
    if key in THRESHOLDS and value >= n:
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
