"""Which tensors of a layer end its residual branches: silence them, and the layer hands its input on unchanged.

A layer adds what its branches (attention, MLP, experts, a state-space mixer) compute to the residual stream. A branch
ends in a linear map, or in a norm or a learned scale behind it. Which tensors these are is decided from the names on
disk, for the families of :data:`PROVEN` alone: of each of them a test shows that the model with silenced layers gives
the logits of the base, and names prove nothing (MiniMax has the names of Llama, and normalises the stream itself).
Within a family, every part of the layer must be accounted for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint.names import Stack
from ..checkpoint.reader import Tensor
from ..errors import CheckpointError

# Model types whose layers add to a stream that they do not change otherwise.
PROVEN = frozenset({
    "afmoe", "aimv2_text_model", "aimv2_vision_model", "altclip_vision_model", "apertus", "arcee", "aria_text",
    "audio-spectrogram-transformer", "audioflamingo3_encoder", "axk1", "axk2", "bailing_hybrid", "bamba", "beit",
    "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "blip_2_vision_model", "blip_vision_model", "bloom",
    "canary_decoder", "chinese_clip_vision_model", "clip_text_model",
    "clip_vision_model", "clipseg_text_model", "clipseg_vision_model", "codegen", "cohere", "cohere2",
    "cohere2_moe", "cohere_compass_text", "cohere_compass_vision", "cpmant", "ctrl", "cwm", "data2vec-vision",
    "dbrx", "decision_transformer", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deit", "diffllama", "dinov2",
    "dinov2_with_registers", "dinov3_vit", "doge", "dots1", "dots3_note_text", "dpt", "ernie4_5", "ernie4_5_moe",
    "ernie4_5_vl_moe_text", "ernie4_5_vl_moe_vision", "esm", "esmc", "eurobert", "exaone4", "exaone4_5_vision",
    "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flava_image_model", "flava_multimodal_model",
    "flava_text_model", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma4_text",
    "gemma4_unified_text", "git_vision_model", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v_moe_text",
    "glm4v_moe_vision", "glm4v_text", "glm4v_vision", "glm5_next_vision", "glm_moe_dsa", "glm_ocr_text",
    "glm_ocr_vision", "glmasr_encoder", "got_ocr2_vision", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa",
    "granitemoehybrid", "granitemoeshared", "groupvit_text_model", "helium", "hubert", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "hunyuan_vl_text", "hy_v3", "hyperclovax", "idefics2_vision", "idefics3_vision",
    "idefics_vision", "ijepa", "imagegpt", "inkling2_vision", "instructblip_vision_model", "internlm3",
    "internvl_vision", "iquestcoder", "jais2", "jamba", "janus_vision_model", "jetmoe", "kimi_linear", "kolibri1",
    "kosmos_2_text_model", "kosmos_2_vision_model", "laguna", "lfm2", "lfm2_moe", "lfm3", "lfm3_vl_vision",
    "llama", "llama4_text", "llama4_vision_model", "longt5", "m2m_100", "mamba", "mamba2", "mbart",
    "megatron-bert", "mellum", "metaclip_2_text_model", "metaclip_2_vision_model", "mimo_v2_flash", "minicpm3",
    "minimax_m2", "minimax_m3_vl_text", "minimax_m3_vl_vision", "ministral", "ministral3", "mistral",
    "mistral_large4_text", "mixtral", "mlcd_vision_model", "modernbert", "modernbert-decoder", "moonshine",
    "moss_transcribe_diarize_audio", "mpt", "mt5", "muse_glimmer_vision", "musicgen_decoder", "nanochat",
    "nemotron", "nemotron_h", "nllb-moe", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe",
    "openai_privacy_filter", "opt", "ovis2_vision", "owlv2_text_model", "owlv2_vision_model", "owlvit_text_model",
    "owlvit_vision_model", "paddleocr_vl_text", "paddleocr_vl_vision", "patchtsmixer", "pegasus", "pegasus_x",
    "persimmon", "phi", "phi3", "phimoe", "pix2struct_text_model", "pixio", "pixtral", "pop2piano",
    "qianfan_ocr_vision", "qwen2", "qwen2_5_vl_text", "qwen2_5_vl_vision", "qwen2_audio_encoder", "qwen2_moe",
    "qwen2_vl_text", "qwen2_vl_vision", "qwen3", "qwen3_5_moe_text", "qwen3_5_moe_vision", "qwen3_5_text",
    "qwen3_5_vision", "qwen3_asr_encoder", "qwen3_moe", "qwen3_next", "qwen3_vl_moe_text", "qwen3_vl_moe_vision",
    "qwen3_vl_text", "qwen3_vl_vision", "qwen4_exp_vision", "radio", "recurrent_gemma", "reformer",
    "roberta-prelayernorm", "sam3_vit_model", "sam_vision_model", "seamless_m4t", "seamless_m4t_v2", "seed_oss",
    "seggpt", "siglip2_text_model", "siglip2_vision_model", "siglip_text_model", "siglip_vision_model", "smollm3",
    "smolvlm_vision", "solar_open", "speech_to_text", "stablelm", "starcoder2", "switch_transformers", "t5",
    "t5_gemma_module", "t5gemma2_decoder", "t5gemma2_text", "timesfm", "timesformer", "tipsv2_text_model",
    "tipsv2_vision_model", "udop", "ultrabert", "umt5", "vaultgemma", "video_llama_3_vision", "videomae",
    "videoprism_vision_model", "vilt", "vit", "vit_mae", "vit_msn", "vitpose_backbone", "vivit", "vjepa2",
    "voxtral_encoder", "voxtral_realtime_encoder", "voxtral_realtime_text", "wav2vec2", "whisper",
    "xclip_text_model", "xglm", "xlm-roberta-xl", "xlstm", "youtu",
})  # fmt: skip
# Families that are of that form with one setting alone: the key, the value it must have, and what it is if left out.
NEEDS: dict[str, tuple[str, bool, bool]] = {
    "opt": ("do_layer_norm_before", True, True),
    "bloom": ("apply_residual_connection_post_layernorm", False, False),
    "hubert": ("do_stable_layer_norm", True, False),
    "wav2vec2": ("do_stable_layer_norm", True, False),
}
# The last linear map of a branch, by the name of its module.
_LAST = re.compile(
    r"(?:^|\.)(?:o_proj|out_proj|c_proj|down_proj|fc2|fc_out|w2|wo|Wo|wo_b|w_out|dense_4h_to_h|linear_out|proj_down"
    r"|output_linear|output_dense|weights_out|linear_fc2|lin2|temporal_dense|per_layer_projection|attention_out"
    r"|down_embed|output\.dense|feed_forward\.value|ffn?\.(?:2|layer_2)"
    r"|[A-Za-z_]*(?:attn|attention|Attention)\.(?:dense|output|o|proj|projection(?:_layer)?))$"
    r"|^(?:mlp|self_attention\.experts)$"
)
# The first linear maps of an MLP: beside them there must be a last one.
_FIRST = frozenset({
    "gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "input_linear",
    "proj_up", "wi", "wi_0", "Wi", "weights_in", "linear_fc1", "lin1", "intermediate_dense", "per_layer_input_gate",
})  # fmt: skip
# Parts that choose experts or tokens and write nothing into the stream.
_CHOICE = re.compile(r"(?:^|\.)(?:gate|router|indexer|compressor)(?:\.|$)")
_NORM = re.compile(r"norm|^ln", re.IGNORECASE)
_ATTENTION = re.compile(r"att|mixer|mamba|conv|temporal", re.IGNORECASE)
# Norms at the end of a branch, by the branch: attention (or what stands in its place), MLP, per-layer input. The names
# of the second group are such norms only where the layer has one of the third.
_AFTER = (
    re.compile(r"^post_(?:(?:self|cross)_attn_layernorm|attn_norm|operator_norm|norm1)$"),
    re.compile(r"^post_(?:feedforward_layernorm|mlp_layernorm|ffn_norm|norm2)$"),
    re.compile(r"^post_per_layer_input_norm$"),
)
_AFTER_ATTENTION = frozenset({"post_attention_layernorm", "feedforward_layer_norm"})
_BEFORE_MLP = frozenset({"pre_feedforward_layernorm", "pre_mlp_layernorm", "post_feedforward_layernorm"})
_SCALES = re.compile(r"(?:^|\.)(?:lambda_?[12]|gamma_?[12]|ls_?[12](?:\.gamma)?|layer_scale[12]\.lambda1)$")
# What a module's tensors are called at the end, those of quantised maps included.
_LEAVES = frozenset({
    "weight", "bias", "scales", "qweight", "qzeros", "g_idx", "weight_packed", "weight_shape", "weight_scale",
    "weight_zero_point", "weight_g_idx", "weight_scale_inv", "input_scale",
})  # fmt: skip
_FLOATS = frozenset({
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
})  # fmt: skip
_GAINS = frozenset({"layer_scalar", "input_residual", "post_attention_residual"})
# Families whose norms multiply by 1 + weight.
_ONE_PLUS = frozenset({"gemma2", "gemma3_text", "t5_gemma_module", "t5gemma2_text", "t5gemma2_decoder"})


@dataclass(frozen=True)
class Residual:
    """How a layer's branches reach the stream.

    Attributes:
        outputs: For each tensor (suffix) that ends a branch, the value at which the branch adds nothing: 0, or -1 for
            norms that multiply by 1 + weight. Of a quantised map these are the scales.
        gains: For each tensor that multiplies the stream itself, the value at which it does not: 1.
    """

    outputs: Mapping[str, float]
    gains: Mapping[str, float]


def adds_to_stream(config: Mapping[str, Any], stack: Stack) -> bool:
    """Whether layers of this family are proven to add to a stream that they do not change otherwise."""
    scope = stack.fields(config)
    kind = str(scope.get("model_type"))
    key, needed, default = NEEDS.get(kind, ("", True, True))
    return kind in PROVEN and scope.get(key, default) is needed


def find_residual(config: Mapping[str, Any], stack: Stack, layer: Mapping[str, Tensor]) -> Residual:
    """How the branches of one layer, given by its tensors, reach the stream.

    A norm behind a branch (Gemma 2, OLMo 2, GLM 4) is silenced in place of the linear map before it: the norm would
    blow up whatever small numbers the first training step puts there to full size.

    Raises:
        CheckpointError: The family is not in :data:`PROVEN`, the layer has a part that is not understood, or a tensor
            to be silenced is quantised in a form in which it cannot be.
    """
    scope = stack.fields(config)
    kind = str(scope.get("model_type"))
    if kind not in PROVEN:
        raise CheckpointError(
            f"it is not proven that a {kind} layer can hand its input on unchanged; post-norm layers (BERT), and"
            " such as mix several streams or scale them by depth, cannot",
            next_step="start the new layers as copies, or in a way that does not touch the residual outputs",
        )
    if kind in NEEDS:
        key, needed, default = NEEDS[kind]
        if scope.get(key, default) is not needed:
            raise CheckpointError(
                f"a {kind} layer with {key} = {str(not needed).lower()} normalises the stream itself, and no weights"
                " make it hand its input on unchanged",
                next_step="start the new layers as copies",
            )
    if "shared" in (scope.get("indexer_types") or ()):
        raise CheckpointError(
            "a layer that chooses tokens (indexer_types) hands its choice to the next ones, so a copy of it between"
            " them changes what they compute, whatever it writes into the stream",
            next_step="start the new layers as copies",
        )
    modules = {suffix: _module(suffix) for suffix in layer}
    last = {suffix for suffix, module in modules.items() if _LAST.search(module) and not _CHOICE.search(module)}
    _require_complete(kind, modules, last)
    ends = _ends(modules, last)
    outputs = {
        suffix: -1.0 if kind in _ONE_PLUS and _NORM.search(modules[suffix]) and suffix.endswith("weight") else 0.0
        for suffix in _silencing(ends, modules, layer)
    }
    return Residual(outputs, {suffix: 1.0 for suffix in layer if suffix in _GAINS})


def _module(suffix: str) -> str:
    """``mlp.down_proj.weight`` -> ``mlp.down_proj``, and so for the parts of a quantised weight."""
    head, _, leaf = suffix.rpartition(".")
    if leaf in _LEAVES:
        return head
    return re.sub(r"_(?:bias|blocks|scales)$", "", suffix)


def _child(module: str) -> str:
    """The part of a layer that a module belongs to: T5's ``layer.0.SelfAttention.q`` -> ``layer.0.SelfAttention``."""
    parts = module.split(".")
    count = next((i for i, part in enumerate(parts) if part != "layer" and not part.isdigit()), 0)
    return ".".join(parts[: count + 1])


def _require_complete(kind: str, modules: Mapping[str, str], last: set[str]) -> None:
    covered = {_child(modules[suffix]) for suffix in last}
    if "output" in covered:
        covered.add("intermediate")  # BERT's names: one MLP, two parts of the layer
    holders = {modules[suffix].rpartition(".")[0] for suffix in last}
    strange = set()
    for suffix, module in modules.items():
        holder, _, name = module.rpartition(".")
        begins = name in _FIRST and not _CHOICE.search(module)
        known = _NORM.search(module) or _CHOICE.search(module) or suffix in _GAINS or _SCALES.search(suffix)
        if (begins and holder not in holders) or not (begins or known or _child(module) in covered):
            strange.add(module)
    if strange or not last:
        raise CheckpointError(
            f"depthup does not know what {', '.join(sorted(strange)[:3]) or 'each tensor'} of this {kind} layer does to"
            " the residual stream",
            next_step="start the new layers as copies",
        )


def _ends(modules: Mapping[str, str], last: set[str]) -> set[str]:
    """The suffixes that end the branches: learned scales, else norms behind a branch, else its last linear maps."""
    scales = {suffix for suffix in modules if _SCALES.search(suffix)}
    if scales:
        return scales
    children = {_child(module) for module in modules.values()}
    norms = [{child for child in children if pattern.search(child)} for pattern in _AFTER]
    if children & _BEFORE_MLP:
        norms[0] |= children & _AFTER_ATTENTION

    def branch(suffix: str) -> int:
        child = _child(modules[suffix])
        return 2 if child.startswith("per_layer_") else 0 if _ATTENTION.search(child) else 1

    plain = {suffix for suffix in last if not norms[branch(suffix)]}
    return plain | {suffix for suffix, module in modules.items() if any(_child(module) in found for found in norms)}


def _silencing(ends: set[str], modules: Mapping[str, str], layer: Mapping[str, Tensor]) -> Iterator[str]:
    """Of the tensors of each end those that silence it: weight and bias; of a quantised map its scales instead.

    Whatever GPTQ, AWQ and compressed-tensors pack, they multiply by the scales; a byte 0 of an 8-bit float or of
    MXFP4's blocks is the number 0.
    """
    for module in sorted({modules[suffix] for suffix in ends}):
        parts = [suffix for suffix in sorted(ends) if modules[suffix] == module]
        weights = [suffix for suffix in parts if _is_weight(suffix, module) and layer[suffix].dtype in _FLOATS]
        scales = [suffix for suffix in parts if suffix.rpartition(".")[2] in ("scales", "weight_scale")]
        blocks = [suffix for suffix in parts if suffix == f"{module}_blocks"]
        biases = [suffix for suffix in parts if suffix.endswith("bias")]
        if not (weights or scales or blocks or biases == parts):
            raise CheckpointError(
                f"{module} is stored as {', '.join(sorted({layer[suffix].dtype for suffix in parts}))}, a quantised"
                " form in which depthup cannot make it zero",
                allowed="float types, FP8, GPTQ, AWQ, compressed-tensors, MXFP4",
                next_step="up-scale the unquantised model, or start the new layers as copies",
            )
        yield from (weights or scales or blocks) + biases


def _is_weight(suffix: str, module: str) -> bool:
    return suffix in (f"{module}.weight", module)
