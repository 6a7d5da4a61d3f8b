"""The rest of the models of several parts: the text stack alone where the other part is hard to feed."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs, placed
from .shrink import row


def _text(family: str, model: str, model_type: str | None = None, stack: str = "text", **how: Any) -> Specimen:
    """The text stack of a model of several parts, fed with text alone."""
    how = {"model": model, "inputs": inputs.text, "generates": False, **how}
    return row(f"{family}/text", model_type or family, stack=stack, **how)


def _parts(family: str, model: str, fed: Any, stacks: dict[str, str], **how: Any) -> list[Specimen]:
    """A row for each of some stacks: name of the row -> prefix on disk."""
    how = {"model": model, "inputs": fed, "generates": False, **how}
    return [row(f"{family}/{name}", family, stack=prefix, **how) for name, prefix in stacks.items()]


_ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}

SPECIMENS = [
    row(
        "blt/global",
        "blt",
        stack="model.global_transformer.layers",
        model="BltForCausalLM",
        inputs=inputs.text,
        generates=False,
    ),
    row("moshi/text", "moshi", model="MoshiForCausalLM", inputs=inputs.text),
    _text(
        "chameleon",
        "ChameleonForConditionalGeneration",
        stack="model.layers",
        vocabulary_map={"<image>": 4},
        vq_config={
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "num_embeddings": 16,
            "latent_channels": 8,
            "embed_dim": 8,
            "resolution": 32,
        },
    ),
    _text("colmodernvbert", "ColModernVBertForRetrieval"),
    _text("colpali", "ColPaliForRetrieval"),
    _text("colqwen2", "ColQwen2ForRetrieval", vlm_config={"text_config": _ROPE}),
    _text("cosmos3_edge", "Cosmos3EdgeForConditionalGeneration", stack="layers", text_config=_ROPE),
    _text("cosmos3_omni", "Cosmos3OmniForConditionalGeneration", stack="layers"),
    _text("deepseek_vl_hybrid", "DeepseekVLHybridForConditionalGeneration", stack="model.language_model.layers"),
    _text(
        "dots3_note",
        "Dots3NoteForConditionalGeneration",
        stack="model.layers",
        text_config={"per_layer_config": {}, "head_dim": 16},
        vision_config={"per_layer_config": {}, "adapter_in_dim": 32},
        audio_config={"adapter_input_size": 32},
    ),
    _text("embedding_gemma2", "EmbeddingGemma2Model"),
    _text(
        "emu3",
        "Emu3ForConditionalGeneration",
        stack="text_model.model.layers",
        vocabulary_map={"<image>": 4},
        vq_config={"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "codebook_size": 16},
    ),
    _text("evolla", "EvollaForProteinText2Text", stack="model.layers"),
    _text("fuyu", "FuyuForCausalLM"),
    _text("gemma4", "Gemma4ForConditionalGeneration"),
    _text(
        "gemma4_unified",
        "Gemma4UnifiedForConditionalGeneration",
        vision_config={"mm_embed_dim": 32, "mm_posemb_size": 32},
    ),
    _text("glm_image", "GlmImageModel", text_config=_ROPE),
    _text("glmga", "Glm46VForConditionalGeneration", text_config=_ROPE),
    _text("granite_docling", "GraniteDoclingForConditionalGeneration"),
    _text("higgs_audio_v2", "HiggsAudioV2ForConditionalGeneration", stack="model.layers"),
    _text("kosmos-2.5", "Kosmos2_5ForConditionalGeneration", text_config={"layers": 7}),
    _text("minicpm_ocr", "MiniCPMOcrForConditionalGeneration"),
    _text("minicpmv4_6", "MiniCPMV4_6ForConditionalGeneration"),
    _text("minicpmv4_7", "MiniCPMV4_7ForConditionalGeneration"),
    _text("mistral4", "Mistral4ForCausalLM", stack="model.layers"),
    _text(
        "molmo2",
        "Molmo2ForConditionalGeneration",
        stack="model.transformer.blocks",
        adapter_config={"vision_feature_layer": [6, 4]},
    ),
    _text(
        "muse_spark",
        "MuseSparkForConditionalGeneration",
        audio_config={"num_hidden_layers": 4, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    ),
    _text(
        "phi4_multimodal",
        "Phi4MultimodalForCausalLM",
        stack="model.layers",
        audio_config={"nemo_conv_channels": 16, "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32},
    ),
    _text("pp_chart2table", "GotOcr2ForConditionalGeneration"),
    _text(
        "qwen2_5_omni_thinker", "Qwen2_5OmniThinkerForConditionalGeneration", stack="model.layers", text_config=_ROPE
    ),
    _text(
        "qwen3_omni_moe_thinker",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        stack="model.layers",
        audio_config={"downsample_hidden_size": 8},
    ),
    _text("step3p7", "Step3p7ForConditionalGeneration", stack="model.layers", text_config={"sliding_window": 8}),
    _text("unlimited_ocr", "UnlimitedOcrForConditionalGeneration", stack="model.layers"),
    # The other parts of some of them.
    *_parts(
        "gemma4",
        "Gemma4ForConditionalGeneration",
        placed.gemma4,
        {"vision": "model.vision_tower.encoder.layers", "audio": "model.audio_tower.layers"},
    ),
    *_parts("cosmos3_omni", "Cosmos3OmniForConditionalGeneration", placed.pictured_kinds, {"vision": "blocks"}),
    *_parts(
        "qwen2_5_omni_thinker",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        placed.seen_and_heard,
        {"vision": "visual.blocks", "audio": "audio_tower.layers"},
        text_config=_ROPE,
        vision_config={"window_size": 64, "fullatt_block_indexes": [1, 3, 6]},
    ),
    *_parts(
        "molmo2",
        "Molmo2ForConditionalGeneration",
        placed.molmo,
        {"vision": "model.vision_backbone.image_vit.transformer.resblocks"},
        adapter_config={"vision_feature_layer": [6, 4]},
        image_patch_id=310,
        vision_config={"num_position_embeddings": 16},
    ),
    *_parts(
        "minicpmv4_6",
        "MiniCPMV4_6ForConditionalGeneration",
        placed.pictured_targets,
        {"vision": "model.vision_tower.encoder.layers"},
        vision_config={"insert_layer_id": 2},
        insert_layer_id=2,
        image_token_id=310,
        video_token_id=311,
    ),
    *_parts(
        "granite_docling",
        "GraniteDoclingForConditionalGeneration",
        placed.pictured_tile_mask,
        {"vision": "model.vision_model.encoder.layers"},
        vision_config={"deepstack_visual_indexes": [1, 3, 5], "scale_factor": 2},
    ),
    *_parts(
        "step3p7",
        "Step3p7ForConditionalGeneration",
        placed.pictured,
        {"vision": "vision_model.transformer.resblocks"},
        text_config={"sliding_window": 8},
    ),
]
