"""What the fields of a config say of layers: tables of names, as transformers' configuration classes read them.

Kinds of field: a value for each layer, indices of special layers, indices of layers that are tapped, a period, a
threshold; and, for families whose checkpoints may leave a list out, the list that their class would fill in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..errors import CheckpointError, shown

# One value for each layer.
LAYER_LISTS = frozenset({
    "layer_types", "mlp_layer_types", "layers_block_type", "attention_layers", "attn_layers", "no_rope_layers",
    "layer_rope_theta", "indexer_types", "sliding_windows", "activation_sparsity_pattern",
    "attention_window", "num_attention_heads_per_layer", "num_key_value_heads_per_layer", "layers_num_experts",
    "block_configs", "intermediate_size", "num_query_heads", "num_kv_heads", "ffn_multipliers", "block_types",
})  # fmt: skip
# Of an encoder and a decoder, these speak of the encoder's layers.
ENCODER_LISTS = frozenset({"attention_window"})
# Objects with one entry for a layer, by its index as text.
LAYER_TABLES = frozenset({"per_layer_config"})
# Indices of the layers that are special: each copy of a special layer is special.
INDEX_LISTS = frozenset({
    "mlp_only_layers", "moe_layers", "cross_attention_layers", "full_attn_idxs", "attn_layer_indices",
    "hybrid_layer_ids", "fullatt_block_indexes", "window_block_indexes", "global_attn_indexes", "window_block_indices",
    "local_layer_ids", "global_layer_ids", "rope_scaling_layers",
    "residual_block_indices", "attn_layer_idx", "attn_layer_idxs", "hyena_layer_idxs", "hcl_layer_idxs",
    "hcm_layer_idxs", "hcs_layer_idxs",
})  # fmt: skip
# Indices of layers whose output something else takes in, one of it for each index: the last copy takes the place.
# With the offset of the index: hidden state i is what layer i - 1 puts out.
TAPS = {
    "deepstack_visual_indexes": 0, "out_indices": 1, "intermediate_layers_indices": 1, "backbone_out_indices": 0,
    "intermediate_hidden_state_indices": 0,
}  # fmt: skip
# The same, in the config around the vision stack.
OUTER_TAPS = {"vision_feature_layer": 1, "feature_layer": 1, "extract_layers": 0}
# One index for each layer, of the layer whose keys and values it uses: carried where each uses its own.
SELF_LISTS = frozenset({"kv_source_layers"})
# The index of the layer behind which something is put in: carried where all layers up to it stay in their places.
INSERTIONS = frozenset({"insert_layer_id", "merge_index"})
# Lists that may have as many values as there are layers by chance, and say nothing of layers.
OTHER_LISTS = frozenset({
    "architectures", "eos_token_id", "bos_token_id", "pad_token_id", "id2label", "label2id", "begin_suppress_tokens",
    "suppress_tokens", "bad_words_ids", "keys_to_ignore_at_inference", "summary_proj_to_labels", "image_mean",
    "image_std", "conv_dim", "conv_stride", "conv_kernel", "tdnn_dim", "tdnn_kernel", "tdnn_dilation", "image_size",
    "patch_size", "attention_types", "mtp_layers_block_type", "mtp_layer_types",
    "type_vocab_sizes", "upsample_kernel_sizes", "upsample_rates", "resblock_kernel_sizes", "resblock_dilation_sizes",
    "encode_proj_layers", "summary_idxs",
})  # fmt: skip
# A layer is special by its index modulo this / because its index is below this. The list on the right, when the
# config has it, decides instead.
PERIODS: dict[str, str | None] = {
    "sliding_window_pattern": "layer_types", "_sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types", "global_attn_every_n_layers": "layer_types",
    "layer_group_size": "layer_types", "attn_layer_period": "layers_block_type", "expert_layer_period": None,
    "decoder_sparse_step": None, "encoder_sparse_step": None, "interleave_moe_layer_step": "moe_layers",
    "no_rope_layer_interval": "no_rope_layers", "cross_attention_frequency": None, "cross_layer_interval": None,
    "moe_layer_interval": None, "moe_layer_freq": "mlp_layer_types", "n_layers_per_attn_res_block": None,
    "global_attention_frequency": None, "prefix_dense_sliding_window_pattern": "layer_types",
    "dense_attention_every_n_layers": None, "moe_layer_frequency": None,
}  # fmt: skip
THRESHOLDS: dict[str, str | None] = {
    "max_window_layers": "layer_types", "first_k_dense_replace": "mlp_layer_types", "num_dense_layers": None,
    "moe_layer_start_index": None, "moe_layer_end_index": None, "num_first_full_attention_layers": "layer_types",
}  # fmt: skip
# Not zero, false or null: what a layer computes depends on its index in a way no config field can say.
REFUSED = {
    "scale_attn_by_inverse_layer_idx": "attention is divided by the layer's index + 1: a copy would compute otherwise",
    "position_encoding_2d": "ChatGLM-6B multiplies each residual by sqrt(2 * depth)",
    "use_cla": "layers next to each other share keys and values",
}
# The same, of an encoder's layers.
ENCODER_REFUSED = {"distil": "convolutions that halve the sequence stand between the layers, one fewer than these"}
# Families in which a layer computes something else in another place, or at another depth, and no field says so.
INDEX_DEPENDENT = {
    "diffllama": "the weight of its second softmax is a function of the layer's index",
    "beam": "the weights of its residual additions are functions of the layer's index",
    "albert": "all of its layers share one set of weights; num_hidden_layers alone makes it deeper",
    "esmc": "each residual branch is divided by a function of the depth",
    "neomme": "its first and its last global layer take in embeddings of the tokens once more",
    "granite_speech5_encoder": "its middle layer, by the depth, takes in predictions; some halve the sequence",
    "granite_speech_encoder": "its middle layer, by the depth, takes in predictions",
    "granite_speech_plus_encoder": "its middle layer, by the depth, takes in predictions",
    "hrm_text": "its two stacks are run in cycles whose depth one number states for both",
    "inkling2_text": "each block of layers reads weights that stand beside the layers, one set for each block",
    "zamba": "its hybrid layers share one block, which the first of them stores",
    "zamba2": "its hybrid layers share blocks in turn, which hold an adapter for each hybrid layer",
}


def speaks_of_a_backbone(key: str, value: Any) -> bool:
    """Whether a ``layer_types`` names the blocks of a convolution backbone, not layers: basic, bottleneck."""
    return key == "layer_types" and bool(value) and all(kind in ("basic", "bottleneck") for kind in value)


Kinds: TypeAlias = Callable[[Mapping[str, Any], int, int], Any]  # (config, layer, number of layers) -> its value
_SLIDING, _FULL, _LINEAR, _INDEXED = "sliding_attention", "full_attention", "linear_attention", "indexed_attention"


def _number(config: Mapping[str, Any], key: str, default: int, least: int) -> int:
    """A whole number of a config, the class's default where it is not said."""
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int or value < least:
        raise CheckpointError(
            f"config.json says {key} = {shown(value)}, and the kinds of layers of this model hang on it",
            allowed=f"a whole number, at least {least}",
            next_step="correct it, or get config.json again",
        )
    return value


def _every(period: int | str, special: str, other: str, offset: int = 1, default: int = 4) -> Kinds:
    """Layers whose ``(index + offset)`` is a multiple of the period, a number or a key of the config, are special."""

    def kind(config: Mapping[str, Any], layer: int, num_layers: int) -> str:
        step = _number(config, period, default, 1) if isinstance(period, str) else period
        return special if not (layer + offset) % step else other

    return kind


def _all(value: str) -> Kinds:
    return lambda config, layer, num_layers: value


def _from(threshold: str, default: int) -> Kinds:
    """``dense`` below a threshold of the config, ``sparse`` from there on."""
    return lambda config, layer, num_layers: "dense" if layer < _number(config, threshold, default, 0) else "sparse"


def _window(config: Mapping[str, Any], layer: int, num_layers: int) -> str:
    slides = config.get("use_sliding_window") and config.get("sliding_window") is not None
    return _SLIDING if slides and layer >= _number(config, "max_window_layers", 28, 0) else _FULL


def _smollm3(config: Mapping[str, Any], layer: int, num_layers: int) -> int:
    return int((layer + 1) % _number(config, "no_rope_layer_interval", 4, 1) != 0)


def _dots1(config: Mapping[str, Any], layer: int, num_layers: int) -> str:
    slides = config.get("sliding_window", 4096) is not None and layer >= config.get("max_window_layers", 62)
    return _SLIDING if slides else _FULL


def _gpt_neo(config: Mapping[str, Any], layer: int, num_layers: int) -> str:
    """``attention_types`` is a list of (kinds, how many times they follow one another)."""
    runs = config.get("attention_types") or [[["global", "local"], 12]]
    kinds = [kind for part, times in runs for kind in part * times]
    return str(kinds[layer]) if layer < len(kinds) else "global"


def _gemma3n(config: Mapping[str, Any], layer: int, num_layers: int) -> float:
    return 0.95 if layer < 10 < num_layers else 0.0


def _gemma4(config: Mapping[str, Any], layer: int, num_layers: int) -> str:
    return _SLIDING if (layer + 1) % 6 and layer + 1 < num_layers else _FULL


# What each layer is when the config does not list it, for families whose checkpoints leave the list out.
IMPLIED: dict[str, dict[str, Kinds]] = {
    "afmoe": {"layer_types": _every("global_attn_every_n_layers", _FULL, _SLIDING)},
    "bailing_hybrid": {"layer_types": _every("layer_group_size", _FULL, _LINEAR, default=6),
                       "mlp_layer_types": _from("first_k_dense_replace", 2)},
    "cohere2": {"layer_types": _every("sliding_window_pattern", _FULL, _SLIDING)},
    "cwm": {"layer_types": _every(4, _FULL, _SLIDING, offset=0)},
    "deepseek_v32": {"layer_types": _all(_INDEXED), "mlp_layer_types": _from("first_k_dense_replace", 3)},
    "dots1": {"layer_types": _dots1},
    "exaone4": {"layer_types": _every("sliding_window_pattern", _FULL, _SLIDING)},
    "exaone_moe": {"layer_types": _every("sliding_window_pattern", _FULL, _SLIDING),
                   "mlp_layer_types": _from("first_k_dense_replace", 1)},
    "gemma2": {"layer_types": _every(2, _FULL, _SLIDING)},
    "gemma3_text": {"layer_types": _every("sliding_window_pattern", _FULL, _SLIDING, default=6)},
    "gemma3n_text": {"layer_types": _every(5, _FULL, _SLIDING), "activation_sparsity_pattern": _gemma3n},
    "gemma4_text": {"layer_types": _gemma4},
    "gemma4_unified_text": {"layer_types": _gemma4},
    "glm4_moe_lite": {"mlp_layer_types": lambda config, layer, n: "sparse" if layer else "dense"},
    "gpt_neo": {"attention_layers": _gpt_neo},
    "gpt_oss": {"layer_types": _every(2, _FULL, _SLIDING)},
    "granite_swa": {"layer_types": _every(4, _FULL, _SLIDING, offset=0)},
    "granitemoe_swa": {"layer_types": _every(4, _FULL, _SLIDING, offset=0)},
    "hy_v3": {"mlp_layer_types": lambda config, layer, n: "sparse" if layer else "dense"},
    "kolibri1": {"layer_types": _every(5, _FULL, _SLIDING)},
    "minimax": {"layer_types": _every(2, _LINEAR, _FULL)},
    "modernbert": {"layer_types": _every("global_attn_every_n_layers", _FULL, _SLIDING, offset=0, default=3)},
    "modernbert-decoder": {"layer_types": _every("global_attn_every_n_layers", _FULL, _SLIDING, offset=0, default=3)},
    "olmo3": {"layer_types": _every(4, _FULL, _SLIDING)},
    "qwen2": {"layer_types": _window},
    "qwen2_5_vl_text": {"layer_types": _window},
    "qwen2_vl_text": {"layer_types": _window},
    "qwen3": {"layer_types": _window},
    "qwen3_5_text": {"layer_types": _every("full_attention_interval", _FULL, _LINEAR)},
    "qwen3_5_moe_text": {"layer_types": _every("full_attention_interval", _FULL, _LINEAR)},
    "qwen3_next": {"layer_types": _every("full_attention_interval", _FULL, _LINEAR)},
    "smollm3": {"no_rope_layers": _smollm3},
    "t5_gemma_module": {"layer_types": _every(2, _FULL, _SLIDING)},
    "vaultgemma": {"layer_types": _every(2, _FULL, _SLIDING)},
}  # fmt: skip
# Families whose classes fill in kinds of layers by rules of their own: the class is asked when these are left out.
_KINDS, _BOTH = ("layer_types",), ("layer_types", "mlp_layer_types")
UNSTATED = {
    "axk1": ("mlp_layer_types",), "axk2": _BOTH, "cohere2_moe": _BOTH, "cohere_compass_text": _KINDS,
    "deepseek_v4": _BOTH, "diffusion_gemma_text": _KINDS, "dots3_note_text": _BOTH, "embedding_gemma2_text": _KINDS,
    "ernie4_5_vl_moe_text": ("mlp_layer_types",), "flint": _KINDS, "glm5_next_text": (*_BOTH, "indexer_types"),
    "glm_moe_dsa": (*_BOTH, "indexer_types"), "hy_v4": (*_BOTH, "indexer_types"), "inkling_text": _BOTH,
    "exaone4_5_vision": ("fullatt_block_indexes",), "got_ocr2_vision": ("global_attn_indexes",), "kimi_linear": _BOTH,
    "lfm3": _KINDS, "lfm3_vl_vision": _KINDS, "llama4_text": ("no_rope_layers",),
    "mimo_v2_flash": _BOTH, "minimax_m3_vl_text": _BOTH, "mistral_large4_text": (*_BOTH, "no_rope_layers"),
    "nemotron_h": ("layers_block_type",), "muse_glimmer_text": _KINDS,
    "muse_glimmer_vision": _KINDS, "muse_spark_text": _BOTH, "muse_spark_vision": _KINDS,
    "olmo_hybrid": _KINDS, "qwen2_5_vl_vision": ("fullatt_block_indexes",),
    "qwen3_vl_vision": ("deepstack_visual_indexes",), "qwen3_vl_moe_vision": ("deepstack_visual_indexes",),
    "sam3_vit_model": ("global_attn_indexes",), "sam_vision_model": ("global_attn_indexes",),
    "sam_hq_vision_model": ("global_attn_indexes",), "qwen4_exp_text": _KINDS, "step3p5": _BOTH,
    "t5gemma2_decoder": _KINDS,
    "t5gemma2_text": _KINDS, "ultrabert": _KINDS, "zaya": _KINDS,
}  # fmt: skip
# Families that read ``mlp_only_layers`` beside ``decoder_sparse_step``: a broken period is written out there.
MLP_ONLY = frozenset({
    "flint", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe_text", "qwen3_omni_moe_talker_text",
    "qwen3_vl_moe_text",
})  # fmt: skip
# Families whose first layers, or last ones, hold other tensors than the rest, by a rule of their class: (first, last).
SPECIAL_ENDS = {
    "gpt_neox_japanese": (0, 1), "modernbert": (1, 0), "modernbert-decoder": (1, 0), "rwkv": (1, 0), "rwkv5": (1, 0),
    "rwkv6": (1, 0), "rwkv7": (1, 0), "zaya": (1, 0), "fun_asr_nano_encoder": (1, 1),
}  # fmt: skip
# Stored in the first layer alone and used in all: it stays in the first layer, whichever layer that comes from.
STORED_FIRST = re.compile(r"(?:^|\.)(?:(?:global_)?relative_attention_bias|rel_attn_embed)\.weight$")
# Families with several lists side by side that have a member for each layer: the main one, and those that go along.
COMPANIONS = {
    "flaubert": ("attentions", ("layer_norm1", "ffns", "layer_norm2")),
    "xlm": ("attentions", ("layer_norm1", "ffns", "layer_norm2")),
    "d_fine": ("layers", ("bbox_embed", "class_embed", "lqe_layers")),
    "deimv2": ("layers", ("bbox_embed", "class_embed", "lqe_layers")),
    "pp_doclayout_v2": ("layers", ("bbox_embed", "class_embed")),
    "rt_detr": ("layers", ("bbox_embed", "class_embed")),
    "rt_detr_v2": ("layers", ("bbox_embed", "class_embed")),
}
# Families in which one number is the depth of two stacks: both grow, by one plan.
TWINS = frozenset({"blt", "idefics", "mimi", "video_llava"})
# Families whose prefixes do not tell which part of the config speaks of them: prefix -> part ("": none does).
PLACES = {"cosmos3_omni": {"blocks": "vision_config"}, "unlimited_ocr": {"model.sam_model.blocks": ""}}
# Families whose decoder's cache has as many places as the encoder has layers, in transformers' classes.
CACHE_BY_ENCODER = frozenset({"longt5", "mt5", "switch_transformers", "t5", "udop", "umt5"})
# Switches that, when they are on, make layers differ by their index modulo a number.
SWITCHED_PERIODS = {"stagger_local_blocks": 2}
# Models other parts of which hang on the layers of a stack in a way that depthup does not carry over yet.
NOT_CARRIED = {
    "bridgetower": "its cross-modal layers are counted from the end of the text and the vision stack",
    "pp_doclayout_v3": "a head for each decoder layer stands elsewhere",
    "dpt": "its head takes in what certain layers put out, and the proof of that failed",
    "sam3": "its detector's parts state their depths for one another",
    "sam3_video": "its detector's parts state their depths for one another",
    "looped": "it visits its layers in an order of its own; `depthup unroll` makes an ordinary model of it",
}
