"""Language models that see or hear: a stack of text, and one of images or of sound in front of it."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs, placed
from .shrink import row


def _seeing(
    family: str, model: str, model_type: str | None = None, text: str = "text", vision: str = "vision", **how: Any
) -> list[Specimen]:
    """A language model with an image encoder twice: once the text stack grows, once the vision stack.

    ``text`` and ``vision`` are words that the prefixes hold, or the whole prefixes.
    """
    how = {"model": model, "inputs": placed.pictured, "generates": False, **how}
    named = {"text": text, "vision": vision}
    return [row(f"{family}/{stack}", model_type or family, stack=prefix, **how) for stack, prefix in named.items()]


def _seeing_grid(family: str, model: str, model_type: str | None = None, **how: Any) -> list[Specimen]:
    return _seeing(family, model, model_type, **{"inputs": placed.pictured_grid, **how})


_MLLAMA: dict[str, Any] = {"attention_heads": 4, "num_global_layers": 5, "intermediate_layers_indices": [1, 3, 5],
                           "vision_output_dim": 128, "max_num_tiles": 4, "supported_aspect_ratios": [[1, 1], [1, 2]]}  # fmt: skip
_SMALL: dict[str, Any] = {"image_size": [32, 32], "patch_size": [8, 8]}
_GRANITE: dict[str, Any] = {"input_dim": 32, "context_size": 8, "max_pos_emb": 16}
_TILES: dict[str, Any] = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
_WINDOWS: dict[str, Any] = {"window_size": 64, "fullatt_block_indexes": [1, 3, 6]}
_DEEP: dict[str, Any] = {"vision_config": {"deepstack_visual_indexes": [1, 3, 5]}}
_LLAMA4: dict[str, Any] = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32,
                           "intermediate_size": 128}  # fmt: skip
_QWEN4: dict[str, Any] = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
                          "indexer_compress_ratio": 2}  # fmt: skip
_ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}


def _hearing(family: str, model: str, audio: str, model_type: str | None = None, **how: Any) -> list[Specimen]:
    """A language model with an encoder of sound, whose layers stand at ``audio``, twice."""
    how = {"model": model, "inputs": placed.heard, "generates": False, **how}
    named = {"text": "text", "audio": audio}
    return [row(f"{family}/{stack}", model_type or family, stack=prefix, **how) for stack, prefix in named.items()]


SPECIMENS = [
    *_seeing("aria", "AriaForConditionalGeneration", projector_patch_to_query_dict={"4": 2}),
    *_seeing("aya_vision", "AyaVisionForConditionalGeneration"),
    *_seeing("cohere2_vision", "Cohere2VisionForConditionalGeneration"),
    *_seeing("deepseek_vl", "DeepseekVLForConditionalGeneration"),
    *_seeing("gemma3", "Gemma3ForConditionalGeneration", mm_tokens_per_image=4),
    *_seeing("got_ocr2", "GotOcr2ForConditionalGeneration"),
    *_seeing("idefics2", "Idefics2ForConditionalGeneration", inputs=placed.pictured_one_tile),
    *_seeing("idefics3", "Idefics3ForConditionalGeneration", inputs=placed.pictured_one_tile),
    *_seeing("internvl", "InternVLForConditionalGeneration", vision_config=_SMALL),
    *_seeing(
        "janus",
        "JanusForConditionalGeneration",
        vision_config={"depth": 2},
        vq_config={"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_embeddings": 16},
    ),
    *_seeing("llama4", "Llama4ForConditionalGeneration", vision_config=_LLAMA4),
    *_seeing("llava", "LlavaForConditionalGeneration"),
    *_seeing("llava_next", "LlavaNextForConditionalGeneration", **_TILES, inputs=placed.pictured_tiles),
    *_seeing("llava_next_video", "LlavaNextVideoForConditionalGeneration", **_TILES, inputs=placed.pictured_tiles),
    *_seeing("llava_onevision", "LlavaOnevisionForConditionalGeneration", **_TILES, inputs=placed.pictured_tiles),
    *_seeing("lighton_ocr", "LightOnOcrForConditionalGeneration", inputs=placed.pictured_sized),
    *_seeing("mistral3", "Mistral3ForConditionalGeneration", inputs=placed.pictured_sized),
    *_seeing("mistral_large4", "MistralLarge4ForConditionalGeneration", text="layers", inputs=placed.pictured_sized),
    *_seeing("ovis2", "Ovis2ForConditionalGeneration"),
    *_seeing("paligemma", "PaliGemmaForConditionalGeneration"),
    *_seeing("qianfan_ocr", "QianfanOCRForConditionalGeneration", vision_config=_SMALL),
    *_seeing(
        "shieldgemma2", "ShieldGemma2ForImageClassification", mm_tokens_per_image=4, yes_token_index=5, no_token_index=6
    ),
    *_seeing("smolvlm", "SmolVLMForConditionalGeneration", inputs=placed.pictured_one_tile),
    *_seeing("video_llava", "VideoLlavaForConditionalGeneration"),
    *_seeing("vipllava", "VipLlavaForConditionalGeneration", vision_feature_layer=[-2, -4, 2]),
    *_seeing_grid(
        "cohere_compass",
        "CohereCompassForConditionalGeneration",
        inputs=placed.pictured_kinds,
        **_DEEP,
        text_config={"rope_parameters": {"full_attention": _ROPE["rope_parameters"]}},
    ),
    *_seeing_grid(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeForConditionalGeneration",
        inputs=placed.pictured_kinds,
        text_config={
            "moe_intermediate_size": [16, 16],
            "rope_parameters": {**_ROPE["rope_parameters"], "mrope_section": [1, 1, 2]},
        },
    ),
    *_seeing_grid("exaone4_5", "Exaone4_5_ForConditionalGeneration", vision_config=_WINDOWS),
    *_seeing_grid("glm46v", "Glm46VForConditionalGeneration", inputs=placed.pictured_kinds, text_config=_ROPE),
    *_seeing_grid("glm4v", "Glm4vForConditionalGeneration", inputs=placed.pictured_kinds, text_config=_ROPE),
    *_seeing_grid(
        "glm4v_moe",
        "Glm4vMoeForConditionalGeneration",
        inputs=placed.pictured_kinds,
        text_config={"rope_parameters": {**_ROPE["rope_parameters"], "partial_rotary_factor": 1.0}},
    ),
    *_seeing_grid(
        "glm5_next", "Glm5NextForConditionalGeneration", inputs=placed.pictured_kinds, text_config={"index_topk": 16}
    ),
    *_seeing_grid("glm_ocr", "GlmOcrForConditionalGeneration", inputs=placed.pictured_kinds, text_config=_ROPE),
    *_seeing_grid(
        "hunyuan_vl",
        "HunYuanVLForConditionalGeneration",
        vision="vit.layers",
        inputs=placed.pictured_kinds,
        text_config={"head_dim": 8, **_ROPE},
    ),
    *_seeing_grid("hyperclovax_vision_v2", "HyperCLOVAXVisionV2ForConditionalGeneration", vision_config=_WINDOWS),
    *_seeing_grid(
        "inkling2", "Inkling2ForConditionalGeneration", text="model.llm.layers", inputs=placed.pictured_blocks
    ),
    *_seeing_grid(
        "kimi_k25", "Kimi_K25ForConditionalGeneration", inputs=placed.pictured_squares, projection_hidden_size=32
    ),
    *_seeing_grid("lfm3_vl", "Lfm3VlForConditionalGeneration"),
    *_seeing_grid("minimax_m3_vl", "MiniMaxM3SparseForConditionalGeneration"),
    *_seeing_grid("muse_glimmer", "MuseGlimmerForConditionalGeneration", out_hidden_size=128),
    *_seeing_grid(
        "paddleocr_vl", "PaddleOCRVLForConditionalGeneration", inputs=placed.pictured_squares_kinds, text_config=_ROPE
    ),
    *_seeing_grid(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        inputs=placed.pictured_kinds,
        vision_config=_WINDOWS,
        text_config=_ROPE,
    ),
    *_seeing_grid("qwen2_vl", "Qwen2VLForConditionalGeneration", inputs=placed.pictured_kinds, text_config=_ROPE),
    *_seeing_grid("qwen3_5", "Qwen3_5ForConditionalGeneration", inputs=placed.pictured_kinds),
    *_seeing_grid("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", inputs=placed.pictured_kinds),
    *_seeing_grid("qwen3_vl", "Qwen3VLForConditionalGeneration", inputs=placed.pictured_kinds, **_DEEP),
    *_seeing_grid("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", inputs=placed.pictured_kinds, **_DEEP),
    *_seeing_grid("qwen4_exp", "Qwen4ExpForConditionalGeneration", inputs=placed.pictured_kinds, text_config=_QWEN4),
    *_seeing_grid("video_llama_3", "VideoLlama3ForConditionalGeneration", inputs=placed.pictured_merged),
    # Images under names of their own.
    *_seeing(
        "blip",
        "BlipForConditionalGeneration",
        inputs=inputs.image_and_text,
        text_config={"encoder_hidden_size": 32, "sep_token_id": 3},
    ),
    *_seeing("git", "GitForCausalLM", inputs=inputs.image_and_text),
    *_seeing("idefics", "IdeficsForVisionText2Text", inputs=inputs.idefics),
    *_seeing(
        "kosmos-2",
        "Kosmos2ForConditionalGeneration",
        inputs=inputs.kosmos,
        latent_query_num=4,
        text_config={"layers": 7},
    ),
    *_seeing("lfm2_vl", "Lfm2VlForConditionalGeneration", inputs=placed.pictured_shapes, projector_hidden_size=32),
    *_seeing(
        "mllama",
        "MllamaForConditionalGeneration",
        inputs=inputs.mllama,
        text_config={"cross_attention_layers": [1, 4]},
        vision_config=_MLLAMA,
    ),
    row(
        "mllama/global",
        "mllama",
        model="MllamaForConditionalGeneration",
        inputs=inputs.mllama,
        generates=False,
        stack="vision_model.global_transformer.layers",
        text_config={"cross_attention_layers": [1, 4]},
        vision_config=_MLLAMA,
    ),
    # Sound.
    *_hearing("audioflamingo3", "AudioFlamingo3ForConditionalGeneration", "audio_tower.layers"),
    *_hearing(
        "fun_asr_nano",
        "FunAsrNanoForConditionalGeneration",
        "model.audio_tower.layers",
        inputs=placed.heard_stacked,
        adaptor_config={"intermediate_size": 8},
    ),
    *_hearing(
        "glmasr", "GlmAsrForConditionalGeneration", "audio_tower.layers", audio_config={"intermediate_size": 128}
    ),
    *_hearing(
        "granite_speech",
        "GraniteSpeechForConditionalGeneration",
        "encoder.layers",
        inputs=placed.heard_frames,
        window_size=15,
        encoder_config=_GRANITE,
    ),
    *_hearing(
        "granite_speech_plus",
        "GraniteSpeechPlusForConditionalGeneration",
        "encoder.layers",
        inputs=placed.heard_frames,
        window_size=15,
        encoder_config=_GRANITE,
    ),
    *_hearing(
        "moss_transcribe_diarize",
        "MossTranscribeDiarizeForConditionalGeneration",
        "model.audio_tower.layers",
        inputs=placed.heard_chunks,
    ),
    *_hearing(
        "musicflamingo", "MusicFlamingoForConditionalGeneration", "audio_tower.layers", inputs=placed.heard_quarter
    ),
    *_hearing("qwen2_audio", "Qwen2AudioForConditionalGeneration", "audio_tower.layers", inputs=placed.heard_quarter),
    *_hearing(
        "qwen3_asr",
        "Qwen3ASRForConditionalGeneration",
        "model.audio_tower.layers",
        inputs=placed.heard_hundreds,
        audio_config={"downsample_hidden_size": 8},
    ),
    *_hearing(
        "voxtral",
        "VoxtralForConditionalGeneration",
        "audio_tower.layers",
        inputs=placed.heard_plain,
        audio_token_id=319,
        audio_config={"intermediate_size": 128},
    ),
    *_hearing(
        "voxtral_realtime",
        "VoxtralRealtimeForConditionalGeneration",
        "audio_tower.layers",
        inputs=placed.heard_along,
        audio_config={"intermediate_size": 128},
    ),
]
