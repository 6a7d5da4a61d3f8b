"""Shrink any configuration class of transformers to a tiny model, by the names of its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from . import Specimen

torch.set_num_threads(1)

NUM_LAYERS = 7  # odd: the upper copy falls out of step with any period of 2
VOCAB_SIZE = 320
FIRST_SPECIAL = 300  # tokens from here on stand for images and the like

DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers", "depth",
    "num_blocks",
)  # fmt: skip
# The encoder beside a decoder has a depth of its own, so that nobody takes the one for the other.
ENCODER_DEPTHS = ("encoder_layers", "num_encoder_layers")
NUM_ENCODER_LAYERS = 5

# What a field becomes, by its name, where its default is a number (or the name is in ``ALWAYS``).
SIZES: dict[str, Any] = {
    **dict.fromkeys(DEPTHS, NUM_LAYERS),
    **dict.fromkeys(ENCODER_DEPTHS, NUM_ENCODER_LAYERS),
    **dict.fromkeys((
        "hidden_size", "d_model", "n_embd", "dim", "embed_dim", "hidden_dim", "embedding_size", "embedding_dim",
        "word_embed_proj_dim", "emb_dim", "attention_hidden_size", "lru_width", "backbone_hidden_size",
        "encoder_hidden_size", "projection_dim", "projector_hidden_size", "out_hidden_size", "text_hidden_size",
        "output_proj_dims", "pooler_output_size", "input_embedding_size", "output_embedding_size",
        "cross_attention_hidden_size", "hidden_size_global", "residual_channels", "output_dim",
        "output_hidden_size", "decoder_hidden_size", "pronunciation_embed_dim", "shape_embed_dim",
        "router_hidden_size", "prompt_mid_dim", "adapter_out_dim",
    ), 32),
    **dict.fromkeys((
        "intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "n_inner", "d_inner",
        "dff", "dim_ff", "d_ff", "mlp_dim", "intermediate_size_mlp", "dense_intermediate_size", "feed_forward_size",
        "prefix_dense_intermediate_size", "shared_intermediate_size", "decoder_intermediate_size",
    ), 48),
    **dict.fromkeys((
        "moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
        "expert_ffn_hidden_size", "shared_experts_intermediate_size",
    ), 16),
    **dict.fromkeys((
        "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
        "attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads", "index_n_heads",
        "decoder_num_attention_heads", "encoder_num_attention_heads", "swa_num_attention_heads", "linear_num_heads",
    ), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys((
        "head_dim", "swa_head_dim", "dim_head", "d_head", "d_kv", "kv_channels", "attention_head_size",
        "attention_head_dim", "index_head_dim", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim",
        "global_head_dim", "indexer_head_dim", "query_pre_attn_scalar",
    ), 8),
    **dict.fromkeys((
        "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "o_lora_rank",
        "laurel_rank", "gated_norm_rank", "adapter_rank", "hc_lowrank", "hidden_size_per_layer_input",
    ), 8),
    **dict.fromkeys((
        "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "zero_expert_num",
    ), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k"), 2),
    **dict.fromkeys((
        "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "max_source_positions",
        "max_target_positions", "max_seq_length", "original_max_position_embeddings",
    ), 128),
    **dict.fromkeys((
        "sliding_window", "attention_chunk_size", "window_size", "local_attention", "attention_window_size",
        "sliding_window_size", "keep_window_size", "index_topk", "chunk_size", "mamba_chunk_size", "block_size",
    ), 8),
    "vocab_size": VOCAB_SIZE, "vocab_size_per_layer_input": VOCAB_SIZE, "n_group": 1, "topk_group": 1,
    "mamba_d_state": 4, "state_size": 4, "ssm_state_size": 4, "mamba_n_heads": 8, "mamba_num_heads": 8,
    "mamba_head_dim": 8, "mamba_d_ssm": 64, "n_groups": 1, "mamba_n_groups": 1, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "rotary_dim": 4, "time_step_rank": 4,
    "num_mel_bins": 16, "image_size": 32, "patch_size": 16, "type_vocab_size": 2, "max_window_layers": 3,
}  # fmt: skip
ALWAYS = frozenset({"num_key_value_heads"})  # set although the default is None
KEPT = {"num_key_value_heads": (0, 1), "num_experts_per_tok": (0, 1), "moe_topk": (0, 1)}  # defaults that say more


def tiny_config(model_type: str | type[PreTrainedConfig], **fields: Any) -> PreTrainedConfig:
    """The configuration, each size made tiny by the name of its field; ``fields`` are taken as they are.

    A field that is itself a configuration may be given as a dict of the fields that differ from its tiny form.
    """
    kind = CONFIG_MAPPING[model_type] if isinstance(model_type, str) else model_type
    values: dict[str, Any] = {}
    specials = iter(range(FIRST_SPECIAL, VOCAB_SIZE))
    for field in dataclasses.fields(kind):
        name, default = field.name, field.default
        if name in fields or isinstance(default, bool):
            continue
        if name in SIZES and (isinstance(default, int) or name in ALWAYS):
            values[name] = default if default in KEPT.get(name, (0,)) else SIZES[name]
        elif name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
            values[name] = 0
        elif name in ("forced_eos_token_id", "forced_bos_token_id"):
            values[name] = None
        elif name.endswith(("_token_id", "_token_index")) and isinstance(default, int):
            values[name] = next(specials)
    if "kv_lora_rank" in values and "num_key_value_heads" in values:
        values["num_key_value_heads"] = SIZES["num_attention_heads"]  # latent attention has no groups
    for name in kind.sub_configs:
        own = fields.pop(name, {})
        if isinstance(own, dict):
            part = _part(kind, name, own)
            if part is None:
                continue
            own = tiny_config(part, **{key: value for key, value in own.items() if key != "model_type"})
        values[name] = own
    return kind(**{**values, **fields})


def _part(kind: type[PreTrainedConfig], name: str, own: dict[str, Any]) -> Any:
    """The class of a nested configuration: what the row says, else the class's own, else that of the default."""
    if "model_type" in own:
        return own["model_type"]
    stated = kind.sub_configs[name]
    if stated is not transformers.AutoConfig:
        return stated
    if name in kind.sub_configs_defaults and kind.sub_configs_defaults[name].model_type:
        return kind.sub_configs_defaults[name].model_type
    default = getattr(kind(), name, None)
    return None if default is None else type(default)


# The first mapping that knows the configuration names the class.
_MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "MODEL_FOR_MASKED_LM_MAPPING", "MODEL_MAPPING",
)  # fmt: skip


def model_class(config: PreTrainedConfig, name: str | None = None) -> type[PreTrainedModel]:
    """The class called ``name``, else the most specific class that takes this configuration."""
    if name is not None:
        return getattr(transformers, name)
    for mapping in _MAPPINGS:
        found = getattr(modeling_auto, mapping).get(type(config), None)
        if found is not None:
            return found[0] if isinstance(found, tuple) else found
    raise LookupError(f"no class takes {type(config).__name__}")


def randomise(model: PreTrainedModel, seed: int = 0, scale: float = 0.05) -> None:
    """Noise on each parameter and on each stored float buffer, in place: no two layers share a tensor."""
    generator = torch.Generator().manual_seed(seed)
    stored = model.state_dict()
    floats = dict(model.named_parameters(remove_duplicate=True))
    floats |= {name: value for name, value in model.named_buffers(remove_duplicate=True) if name in stored}
    with torch.no_grad():
        for name, value in floats.items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator).to(value.dtype) * scale
                value.nan_to_num_(0.0, 0.0, 0.0)
                value.add_(noise.abs() if name.endswith("running_var") else noise)


def build(
    model_type: str, model: str | None, seed: int, prepare: Callable[[Any], None] | None, fields: dict[str, Any]
) -> PreTrainedModel:
    """The tiny model of a row, in evaluation mode, float32 throughout."""
    torch.manual_seed(seed)
    config = tiny_config(model_type, **fields)
    built = model_class(config, model)(config).float().eval()
    randomise(built, seed)
    if prepare is not None:
        with torch.no_grad():
            prepare(built)
    return built


def text_inputs(model: PreTrainedModel, num_tokens: int = 24, num_rows: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Random token ids [num_rows, num_tokens], none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(1, FIRST_SPECIAL, (num_rows, num_tokens), generator=generator)}


def row(
    family: str,
    model_type: str | None = None,
    *,
    stack: str | None = None,
    model: str | None = None,
    inputs: Callable[[PreTrainedModel], dict[str, Tensor]] = text_inputs,
    generates: bool = True,
    prepare: Callable[[Any], None] | None = None,
    seed: int = 0,
    edit: Callable[[Path], object] | None = None,
    **fields: Any,
) -> Specimen:
    """One row of a table.

    Args:
        family: Name of the row; also the model type where ``model_type`` is not given.
        model_type: Key of transformers' CONFIG_MAPPING.
        stack: See :class:`zoo.Specimen`.
        model: Name of the class; by default the most specific one that takes the configuration.
        inputs: What ``forward`` takes, from the model.
        generates: Whether ``generate`` with a cache makes sense.
        prepare: Called with the random model, to put right what noise cannot (under ``no_grad``).
        seed: Of the weights.
        edit: See :class:`zoo.Specimen`.
        fields: Fields of the configuration that the shrinker cannot guess.
    """
    kind = model_type or family
    return Specimen(family, kind, stack, partial(build, kind, model, seed, prepare, fields), inputs, generates, edit)
