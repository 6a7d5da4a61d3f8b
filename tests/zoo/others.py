"""What fits nowhere else: detectors, segmenters, readers of documents, series of numbers, models that speak."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs, placed
from .shrink import row


def _stacks(
    family: str, model: str, model_type: str | None = None, *, stacks: dict[str, str], **how: Any
) -> list[Specimen]:
    """One model, a row for each of its stacks: name of the row -> prefix on disk."""
    how = {"model": model, "generates": False, **how}
    return [row(f"{family}/{name}", model_type or family, stack=prefix, **how) for name, prefix in stacks.items()]


SPECIMENS = [
    # Several stacks.
    *_stacks(
        "blip-2",
        "Blip2ForConditionalGeneration",
        inputs=placed.queried,
        num_query_tokens=4,
        image_token_index=319,
        qformer_config={"num_hidden_layers": 6},
        stacks={
            "vision": "vision_model.encoder.layers",
            "qformer": "qformer.encoder.layer",
            "text": "language_model.model.decoder.layers",
        },
    ),
    *_stacks(
        "instructblip",
        "InstructBlipForConditionalGeneration",
        inputs=placed.queried,
        num_query_tokens=4,
        image_token_index=319,
        qformer_config={"num_hidden_layers": 6},
        stacks={
            "vision": "vision_model.encoder.layers",
            "qformer": "qformer.encoder.layer",
            "text": "language_model.model.decoder.layers",
        },
    ),
    *_stacks(
        "bridgetower",
        "BridgeTowerModel",
        inputs=inputs.image_and_text,
        stacks={
            "vision": "vision_model.visual.transformer.resblocks",
            "text": "text_model.encoder.layer",
            "cross": "cross_modal_text_layers",
        },
        num_hidden_layers=5,
        hidden_size=64,
        vision_config={"hidden_size": 64, "num_hidden_layers": 7},
        text_config={"hidden_size": 64},
    ),
    *_stacks(
        "flava",
        "FlavaModel",
        inputs=inputs.image_and_text,
        stacks={
            "image": "image_model.encoder.layer",
            "text": "text_model.encoder.layer",
            "multimodal": "multimodal_model.encoder.layer",
        },
    ),
    *_stacks(
        "lxmert",
        "LxmertForPreTraining",
        inputs=inputs.regions,
        visual_feat_dim=8,
        num_qa_labels=4,
        num_object_labels=4,
        num_attr_labels=4,
        l_layers=7,
        x_layers=5,
        r_layers=3,
        stacks={
            "text": "lxmert.encoder.layer",
            "cross": "lxmert.encoder.x_layers",
            "vision": "lxmert.encoder.r_layers",
        },
    ),
    *_stacks(
        "vision-encoder-decoder",
        "VisionEncoderDecoderModel",
        inputs=inputs.image_to_text,
        stacks={"encoder": "encoder.encoder.layer", "decoder": "decoder.bert.encoder.layer"},
    ),
    *_stacks(
        "pix2struct",
        "Pix2StructForConditionalGeneration",
        inputs=inputs.flattened,
        stacks={"encoder": "encoder.encoder.layer", "decoder": "decoder.layer"},
        vision_config={"patch_embed_hidden_size": 32, "seq_len": 64},
    ),
    *_stacks(
        "florence2",
        "Florence2ForConditionalGeneration",
        inputs=placed.pictured_to_text,
        vision_config={
            "embed_dim": [8, 16, 24, 32],
            "num_heads": [1, 2, 2, 2],
            "num_groups": [1, 2, 2, 2],
            "depths": [1, 1, 2, 1],
            "projection_dim": 32,
            "window_size": 4,
        },
        stacks={
            "vision": "model.vision_tower.blocks",
            "encoder": "model.language_model.encoder.layers",
            "decoder": "model.language_model.decoder.layers",
        },
    ),
    *_stacks(
        "clipseg-segmentation",
        "CLIPSegForImageSegmentation",
        "clipseg",
        inputs=inputs.image_and_text,
        extract_layers=[1, 3, 5],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        stacks={
            "vision": "clip.vision_model.encoder.layers",
            "text": "clip.text_model.encoder.layers",
            "decoder": "decoder.layers",
        },
    ),
    *_stacks(
        "owlvit-detection",
        "OwlViTForObjectDetection",
        "owlvit",
        inputs=inputs.image_and_text,
        stacks={"vision": "owlvit.vision_model.encoder.layers", "text": "owlvit.text_model.encoder.layers"},
    ),
    *_stacks(
        "sam",
        "SamModel",
        inputs=inputs.pointed,
        vision_config={"global_attn_indexes": [1, 3, 6], "window_size": 1, "output_channels": 32, "num_pos_feats": 16},
        mask_decoder_config={"num_hidden_layers": 5},
        stacks={"vision": "vision_encoder.layers", "mask": "mask_decoder.transformer.layers"},
    ),
    # Documents.
    row(
        "layoutlmv3-image",
        "layoutlmv3",
        model="LayoutLMv3Model",
        inputs=inputs.boxes_and_image,
        generates=False,
        max_2d_position_embeddings=128,
        coordinate_size=4,
        shape_size=8,
        input_size=32,
    ),
    row("vilt", model="ViltModel", inputs=inputs.image_and_text, generates=False),
    row(
        "visual_bert",
        model="VisualBertForPreTraining",
        inputs=inputs.seen_regions,
        generates=False,
        visual_embedding_dim=8,
    ),
    # Text and image in one encoder.
    *_stacks(
        "modernvbert",
        "ModernVBertForMaskedLM",
        pixel_shuffle_factor=1,
        inputs=placed.pictured_one_tile,
        stacks={"vision": "model.vision_model.encoder.layers", "text": "model.text_model.layers"},
    ),
    *_stacks(
        "ultravbert",
        "UltraVBertForMaskedLM",
        pixel_shuffle_factor=1,
        inputs=placed.pictured_one_tile,
        stacks={"vision": "model.vision_model.encoder.layers", "text": "model.text_model.layers"},
    ),
    # Sound.
    *_stacks(
        "clap",
        "ClapModel",
        inputs=inputs.clap,
        audio_config={
            "patch_embeds_hidden_size": 8,
            "num_attention_heads": [1, 2, 2, 2],
            "depths": [1, 1, 2, 1],
            "spec_size": 64,
            "num_mel_bins": 64,
            "window_size": 2,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "patch_size": 4,
        },
        stacks={"text": "text_model.encoder.layer", "audio": "audio_model.audio_encoder.layers"},
    ),
    *_stacks(
        "seamless_m4t",
        "SeamlessM4TForSpeechToText",
        inputs=inputs.spectrum_and_text,
        feature_projection_input_dim=16,
        speech_encoder_layers=5,
        speech_encoder_attention_heads=4,
        speech_encoder_intermediate_size=48,
        num_conv_pos_embeddings=16,
        stacks={"speech": "speech_encoder.encoder.layers", "decoder": "text_decoder.layers"},
    ),
    *_stacks(
        "seamless_m4t_v2",
        "SeamlessM4Tv2ForTextToText",
        inputs=inputs.texts,
        stacks={"encoder": "text_encoder.layers", "decoder": "text_decoder.layers"},
    ),
    *_stacks(
        "musicgen",
        "MusicgenForConditionalGeneration",
        inputs=inputs.musicgen,
        audio_encoder={"num_filters": 2, "hidden_size": 8, "codebook_size": 16, "codebook_dim": 8},
        stacks={"text": "text_encoder.encoder.block", "decoder": "decoder.model.decoder.layers"},
    ),
    row(
        "vits",
        model="VitsModel",
        stack="text_encoder.encoder.layers",
        inputs=inputs.text,
        generates=False,
        num_hidden_layers=6,
        noise_scale=0.0,
        noise_scale_duration=0.0,
        upsample_initial_channel=16,
        flow_size=16,
        duration_predictor_filter_channels=8,
    ),
    # Series.
    row(
        "timesfm",
        model="TimesFmModelForPrediction",
        inputs=inputs.series,
        generates=False,
        horizon_length=8,
        patch_length=8,
        context_length=64,
    ),
    row(
        "patchtst",
        model="PatchTSTForPrediction",
        inputs=inputs.past,
        generates=False,
        context_length=32,
        patch_length=8,
        patch_stride=8,
    ),
    row(
        "patchtsmixer",
        model="PatchTSMixerForPrediction",
        inputs=inputs.past,
        generates=False,
        context_length=32,
        d_model=8,
    ),
    *_stacks(
        "informer",
        "InformerModel",
        inputs=inputs.forecast,
        prediction_length=4,
        context_length=16,
        lags_sequence=[1, 2],
        num_time_features=1,
        stacks={"encoder": "encoder.layers", "decoder": "decoder.layers"},
    ),
    *_stacks(
        "autoformer",
        "AutoformerModel",
        inputs=inputs.forecast,
        prediction_length=4,
        context_length=16,
        lags_sequence=[1, 2],
        num_time_features=1,
        stacks={"encoder": "encoder.layers", "decoder": "decoder.layers"},
    ),
    *_stacks(
        "time_series_transformer",
        "TimeSeriesTransformerModel",
        inputs=inputs.forecast,
        prediction_length=4,
        context_length=16,
        lags_sequence=[1, 2],
        num_time_features=1,
        stacks={"encoder": "encoder.layers", "decoder": "decoder.layers"},
    ),
    row(
        "decision_transformer",
        model="DecisionTransformerModel",
        inputs=inputs.episode,
        generates=False,
        use_cache=False,
    ),
]
