"""Detectors, segmenters and readers of depth: a backbone, queries or a neck on top, heads of which some go by layers."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs
from .shrink import row


def _stacks(
    family: str, model: str, model_type: str | None = None, *, stacks: dict[str, str], **how: Any
) -> list[Specimen]:
    """One model, a row for each of its stacks: name of the row -> prefix on disk."""
    how = {"model": model, "generates": False, "inputs": inputs.square, **how}
    return [row(f"{family}/{name}", model_type or family, stack=prefix, **how) for name, prefix in stacks.items()]


_RESNET: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "embedding_size": 8,
                           "layer_type": "basic", "out_indices": [2, 3, 4]}  # fmt: skip
_HGNET: dict[str, Any] = {"stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 24], "stage_mid_channels": [8] * 4,
                          "stage_out_channels": [16, 16, 24, 32], "hidden_sizes": [16, 16, 24, 32],
                          "depths": [1, 1, 1, 1], "out_indices": [2, 3, 4]}  # fmt: skip
_QUERIES: dict[str, Any] = {"encoder_in_channels": [16, 24, 32], "decoder_in_channels": [32] * 3, "encoder_hidden_dim": 32,
                            "num_queries": 6, "num_denoising": 0, "decoder_layers": 7}  # fmt: skip
_SWIN: dict[str, Any] = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4],
                         "window_size": 2, "patch_size": 4, "image_size": 64, "out_indices": [1, 2, 3, 4]}  # fmt: skip
_NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "patch_size": 16,
                         "reassemble_hidden_size": 32}  # fmt: skip
_TAPS: dict[str, Any] = {"out_indices": [2, 4, 6, 7], "reshape_hidden_states": False}
_LIST, _DECODER = "model.encoder.encoder", "model.decoder.layers"

SPECIMENS = [
    *_stacks("rt_detr", "RTDetrForObjectDetection", **_QUERIES, backbone_config=_RESNET, stacks={"decoder": _DECODER}),
    *_stacks(
        "rt_detr_v2", "RTDetrV2ForObjectDetection", **_QUERIES, backbone_config=_RESNET, stacks={"decoder": _DECODER}
    ),
    *_stacks("d_fine", "DFineForObjectDetection", **_QUERIES, backbone_config=_HGNET, stacks={"decoder": _DECODER}),
    *_stacks("deimv2", "Deimv2ForObjectDetection", **_QUERIES, backbone_config=_HGNET, stacks={"decoder": _DECODER}),
    *_stacks(
        "pp_doclayout_v2",
        "PPDocLayoutV2ForObjectDetection",
        **_QUERIES,
        class_thresholds=[0.5] * 40,
        class_order=[0] * 40,
        backbone_config=_HGNET,
        reading_order_config={
            "num_hidden_layers": 5,
            "coordinate_size": 4,
            "shape_size": 8,
            "global_pointer_head_size": 8,
        },
        stacks={"decoder": _DECODER, "reading": "reading_order.encoder.layer"},
    ),
    *_stacks(
        "pp_doclayout_v3",
        "PPDocLayoutV3ForObjectDetection",
        **_QUERIES,
        backbone_config=_HGNET,
        stacks={"decoder": _DECODER},
    ),
    *_stacks(
        "lw_detr",
        "LwDetrForObjectDetection",
        num_queries=6,
        decoder_layers=5,
        group_detr=2,
        projector_scale_factors=[1.0],
        decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4,
        backbone_config={
            "image_size": 64,
            "num_windows": 4,
            "window_block_indices": [0, 1, 3, 5],
            "out_indices": [2, 4, 5, 7],
        },
        stacks={"vision": "model.backbone.backbone.encoder.layer", "decoder": _DECODER},
    ),
    *_stacks(
        "grounding-dino",
        "GroundingDinoForObjectDetection",
        inputs=inputs.square_and_text,
        backbone_config=_SWIN,
        num_queries=6,
        num_feature_levels=4,
        encoder_layers=5,
        max_text_len=8,
        stacks={"text": "model.text_backbone.encoder.layer", "encoder": "model.encoder.layers", "decoder": _DECODER},
    ),
    *_stacks(
        "mm-grounding-dino",
        "MMGroundingDinoForObjectDetection",
        inputs=inputs.square_and_text,
        backbone_config=_SWIN,
        num_queries=6,
        num_feature_levels=4,
        encoder_layers=5,
        max_text_len=8,
        stacks={"decoder": _DECODER},
    ),
    *_stacks(
        "mask2former",
        "Mask2FormerModel",
        backbone_config=_SWIN,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=48,
        dim_feedforward=48,
        num_queries=6,
        decoder_layers=8,
        stacks={"encoder": "pixel_level_module.decoder.encoder.layers", "decoder": "transformer_module.decoder.layers"},
    ),
    *_stacks(
        "maskformer",
        "MaskFormerModel",
        backbone_config=_SWIN,
        fpn_feature_size=32,
        mask_feature_size=32,
        decoder_config={"num_queries": 6, "encoder_layers": 3},
        stacks={"decoder": "transformer_module.decoder.layers"},
    ),
    *_stacks(
        "oneformer",
        "OneFormerModel",
        inputs=inputs.square_and_task,
        backbone_config=_SWIN,
        conv_dim=32,
        mask_dim=32,
        encoder_feedforward_dim=48,
        dim_feedforward=48,
        num_queries=6,
        decoder_layers=8,
        stacks={"encoder": "pixel_level_module.decoder.encoder.layers", "decoder": "transformer_module.decoder.layers"},
    ),
    *_stacks(
        "upernet",
        "UperNetForSemanticSegmentation",
        auxiliary_channels=8,
        auxiliary_in_channels=24,
        backbone_config={**_RESNET, "model_type": "resnet", "out_indices": [1, 2, 3, 4]},
        stacks={"vision": "backbone.encoder.stages"},
    ),
    *_stacks(
        "vitmatte",
        "VitMatteForImageMatting",
        inputs=inputs.square_with_trimap,
        convstream_hidden_sizes=[8, 8, 8],
        fusion_hidden_sizes=[8, 8, 8, 8],
        backbone_config={"model_type": "vitdet", "num_channels": 4, "image_size": 64, "out_indices": [7]},
        stacks={"vision": "backbone.encoder.layer"},
    ),
    *_stacks(
        "prompt_depth_anything",
        "PromptDepthAnythingForDepthEstimation",
        inputs=inputs.image,
        backbone_config=_TAPS,
        **_NECK,
        stacks={"vision": "backbone.encoder.layer"},
    ),
    *_stacks(
        "chmv2",
        "CHMv2ForDepthEstimation",
        inputs=inputs.image,
        fusion_hidden_size=8,
        head_hidden_size=8,
        number_output_channels=8,
        post_process_channels=[8, 8, 8, 8],
        reassemble_factors=[4, 2, 1, 0.5],
        backbone_config={"out_indices": [2, 4, 6, 7], "reshape_hidden_states": True, "return_class_token": True},
        stacks={"vision": "backbone.layer"},
    ),
    *_stacks(
        "sam3",
        "Sam3Model",
        inputs=inputs.image_and_text,
        vision_config={"fpn_hidden_size": 32},
        stacks={
            "vision": "vision_encoder.backbone.layers",
            "text": "text_encoder.text_model.encoder.layers",
            "encoder": "detr_encoder.layers",
            "decoder": "detr_decoder.layers",
        },
    ),
    *_stacks(
        "sam_hq",
        "SamHQModel",
        inputs=inputs.pointed,
        stacks={"vision": "vision_encoder.layers"},
        vision_config={"global_attn_indexes": [1, 3, 6], "window_size": 1, "output_channels": 32, "num_pos_feats": 16},
        mask_decoder_config={"vit_dim": 32, "num_hidden_layers": 2},
    ),
    *_stacks(
        "superglue",
        "SuperGlueForKeypointMatching",
        inputs=inputs.two_squares,
        stacks={"gnn": "gnn.layers"},
        keypoint_encoder_sizes=[8, 16],
        gnn_layers_types=["self", "cross"] * 3,
        keypoint_detector_config={"descriptor_decoder_dim": 32},
    ),
    *_stacks(
        "lightglue",
        "LightGlueForKeypointMatching",
        inputs=inputs.two_squares,
        stacks={"layers": "transformer_layers"},
        descriptor_dim=32,
    ),
]
