"""Models of images and of video: transformers of patches, and those in stages, which have no one stack of layers."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs
from .shrink import row


def _image(family: str, model: str, model_type: str | None = None, **how: Any) -> Specimen:
    return row(
        family,
        model_type or family.partition("/")[0],
        **{"model": model, "inputs": inputs.image, "generates": False, **how},
    )


def _stages(family: str, model: str, stack: str, **how: Any) -> Specimen:
    """A model whose layers stand in stages of unlike width; ``stack`` is the list of stages."""
    return _image(family, model, stack=stack, **how)


def _dual(family: str, model: str, model_type: str | None = None, **how: Any) -> list[Specimen]:
    """A tower for images and one for text, one row each."""
    how = {"model": model, "inputs": inputs.image_and_text, "generates": False, **how}
    return [row(f"{family}/{stack}", model_type or family, stack=stack, **how) for stack in ("vision", "text")]


_FOUR: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "embedding_size": 8, "patch_size": 4,
                         "image_size": 64}  # fmt: skip
_PYRAMID: dict[str, Any] = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 3, 4],
}
_SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 4,
                         "patch_size": 4, "image_size": 128}  # fmt: skip
_JEPA: dict[str, Any] = {"crop_size": 32, "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 4,
                         "pred_num_hidden_layers": 5}  # fmt: skip
_PRISM: dict[str, Any] = {"inputs": inputs.prism, "num_frames": 4, "image_size": 32, "tubelet_size": [1, 16, 16],
                          "num_spatial_layers": 7, "num_temporal_layers": 5, "num_auxiliary_layers": 0}  # fmt: skip
_NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}

SPECIMENS = [
    _image("aimv2_vision_model", "Aimv2VisionModel"),
    _image("beit", "BeitForImageClassification", use_relative_position_bias=True),
    _image("beit-shared", "BeitForImageClassification", "beit", use_shared_relative_position_bias=True),
    _image("data2vec-vision", "Data2VecVisionForImageClassification", use_relative_position_bias=True),
    _image("deit", "DeiTForImageClassification"),
    _image("dinov2", "Dinov2ForImageClassification"),
    _image("dinov2-backbone", "Dinov2Backbone", "dinov2", out_indices=[2, 4, 7]),
    _image("dinov2_with_registers", "Dinov2WithRegistersForImageClassification"),
    _image("dinov3_vit", "DINOv3ViTModel"),
    _image("dpt", "DPTForDepthEstimation", backbone_out_indices=[1, 3, 4, 6], backbone_config=None, **_NECK),
    _image(
        "depth_anything",
        "DepthAnythingForDepthEstimation",
        reassemble_hidden_size=32,
        **_NECK,
        patch_size=16,
        stack="backbone.encoder.layer",
        backbone_config={"out_indices": [2, 4, 6, 7], "reshape_hidden_states": False},
    ),
    _image("ijepa", "IJepaForImageClassification"),
    _image("imagegpt", "ImageGPTModel", inputs=inputs.text),
    _image(
        "mgp-str",
        "MgpstrForSceneTextRecognition",
        num_character_labels=16,
        num_bpe_labels=16,
        num_wordpiece_labels=16,
        image_size=[32, 32],
        patch_size=16,
        max_token_length=5,
    ),
    _image("mlcd_vision_model", "MLCDVisionModel"),
    _image("pixio", "PixioModel"),
    _image("pixtral", "PixtralVisionModel"),
    _image("radio", "RadioModel"),
    _image("sam_vision_model", "SamVisionModel", global_attn_indexes=[1, 3, 6], window_size=1),
    _image(
        "sapiens2",
        "Sapiens2Model",
        num_first_full_attention_layers=2,
        num_last_full_attention_layers=2,
        num_key_value_attention_heads=2,
    ),
    _image(
        "seggpt",
        "SegGptForImageSegmentation",
        inputs=inputs.prompted_image,
        image_size=[64, 32],
        pretrain_image_size=32,
        merge_index=1,
        intermediate_hidden_state_indices=[2, 3, 4, 6],
        decoder_hidden_size=8,
    ),
    _image("sam3_vit_model", "Sam3ViTModel"),
    _image("timesformer", "TimesformerForVideoClassification", inputs=inputs.video, num_frames=4),
    _image("videomae", "VideoMAEForVideoClassification", inputs=inputs.video, num_frames=4),
    _image(
        "videomae-pretraining/encoder",
        "VideoMAEForPreTraining",
        "videomae",
        inputs=inputs.masked_video,
        num_frames=4,
        stack="videomae.encoder.layer",
    ),
    _image(
        "videomae-pretraining/decoder",
        "VideoMAEForPreTraining",
        "videomae",
        inputs=inputs.masked_video,
        num_frames=4,
        stack="decoder.decoder_layers",
    ),
    _image("videoprism/spatial", "VideoPrismVisionModel", "videoprism_vision_model", stack="spatial_layers", **_PRISM),
    _image(
        "videoprism/temporal", "VideoPrismVisionModel", "videoprism_vision_model", stack="temporal_layers", **_PRISM
    ),
    _image("vit", "ViTForImageClassification"),
    _image("vit_mae/encoder", "ViTMAEForPreTraining", "vit_mae", inputs=inputs.masked_image, stack="vit.encoder.layer"),
    _image(
        "vit_mae/decoder",
        "ViTMAEForPreTraining",
        "vit_mae",
        inputs=inputs.masked_image,
        stack="decoder.decoder_encoder.layer",
    ),
    _image("vit_msn", "ViTMSNForImageClassification"),
    _image(
        "vitdet",
        "VitDetModel",
        window_block_indices=[0, 1, 3, 4],
        residual_block_indices=[2, 5],
        window_size=2,
        image_size=64,
    ),
    _image(
        "vitpose",
        "VitPoseForPoseEstimation",
        stack="backbone.encoder.layer",
        backbone_config={"image_size": [32, 32], "part_features": 8, "out_indices": [7], "num_experts": 1},
    ),
    _image("vivit", "VivitForVideoClassification", inputs=inputs.video, num_frames=4),
    _image("vjepa2/encoder", "VJEPA2Model", inputs=inputs.clip, stack="encoder.layer", **_JEPA),
    _image("vjepa2/predictor", "VJEPA2Model", inputs=inputs.clip, stack="predictor.layer", **_JEPA),
    _image("yolos", "YolosForObjectDetection", image_size=[32, 32], num_detection_tokens=4),
    _image(
        "zoedepth",
        "ZoeDepthForDepthEstimation",
        **_NECK,
        bottleneck_features=8,
        bin_embedding_dim=8,
        stack="backbone.encoder.layer",
        num_relative_features=8,
        num_attractors=[4, 2, 1, 1],
        backbone_config={"out_indices": [2, 4, 6, 7], "reshape_hidden_states": False},
    ),
    # Text and image side by side.
    *_dual("aimv2", "Aimv2Model"),
    *_dual(
        "align", "AlignModel", vision_config={"width_coefficient": 0.1, "depth_coefficient": 1.0, "hidden_dim": 128}
    ),
    *_dual("altclip", "AltCLIPModel"),
    *_dual("chinese_clip", "ChineseCLIPModel"),
    *_dual("clip", "CLIPModel"),
    *_dual("clipseg", "CLIPSegModel"),
    *_dual("groupvit", "GroupViTModel"),
    *_dual("metaclip_2", "MetaClip2Model"),
    *_dual("owlvit", "OwlViTModel"),
    *_dual("owlv2", "Owlv2Model"),
    *_dual("siglip", "SiglipModel"),
    *_dual("siglip2", "Siglip2Model", inputs=inputs.patches_and_text),
    *_dual("tipsv2", "Tipsv2Model"),
    *_dual("vision-text-dual-encoder", "VisionTextDualEncoderModel"),
    *_dual(
        "xclip",
        "XCLIPModel",
        inputs=inputs.clip_and_text,
        projection_dim=32,
        prompt_num_attention_heads=4,
        vision_config={"mit_hidden_size": 32, "mit_intermediate_size": 48, "mit_num_attention_heads": 4},
    ),
    # Stages: what is indexed are stages of unlike width, so there is nothing to up-scale.
    _stages("bit", "BitForImageClassification", "bit.encoder.stages", **_FOUR, num_groups=4),
    _stages("convnext", "ConvNextForImageClassification", "convnext.encoder.stages", **_FOUR),
    _stages("convnextv2", "ConvNextV2ForImageClassification", "convnextv2.encoder.stages", **_FOUR),
    _stages(
        "cvt",
        "CvtForImageClassification",
        "cvt.encoder.stages",
        embed_dim=[8, 24, 48],
        depth=[1, 2, 3],
        num_heads=[1, 3, 6],
    ),
    _stages("dinov3_convnext", "DINOv3ConvNextModel", "stages", **_FOUR),
    _stages("donut-swin", "DonutSwinModel", "encoder.layers", **_SWIN),
    _stages(
        "efficientnet",
        "EfficientNetForImageClassification",
        "efficientnet.encoder.blocks",
        width_coefficient=0.1,
        depth_coefficient=1.0,
        hidden_dim=128,
    ),
    _stages(
        "focalnet",
        "FocalNetForImageClassification",
        "focalnet.encoder.stages",
        embed_dim=8,
        depths=[1, 1, 2, 1],
        hidden_sizes=[16, 32, 64, 64],
    ),
    _stages("glpn", "GLPNForDepthEstimation", "glpn.encoder.block", **_PYRAMID, decoder_hidden_size=8),
    _stages(
        "hgnet_v2",
        "HGNetV2ForImageClassification",
        "encoder.stages",
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 16, 32],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 16, 32, 32],
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 2, 1],
    ),
    _stages(
        "hiera",
        "HieraForImageClassification",
        "hiera.encoder.stages",
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 1, 2, 2],
        image_size=[64, 64],
    ),
    _stages(
        "levit",
        "LevitForImageClassification",
        "levit.encoder.stages",
        hidden_sizes=[16, 32, 48],
        depths=[1, 1, 2],
        num_attention_heads=[2, 2, 2],
        key_dim=[4, 4, 4],
    ),
    _stages("mobilenet_v1", "MobileNetV1ForImageClassification", "mobilenet_v1.layer", depth_multiplier=0.1),
    _stages("mobilenet_v2", "MobileNetV2ForImageClassification", "mobilenet_v2.layer", depth_multiplier=0.1),
    _stages(
        "mobilevit",
        "MobileViTForImageClassification",
        "mobilevit.encoder.layer",
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        patch_size=2,
    ),
    _stages(
        "mobilevitv2",
        "MobileViTV2ForImageClassification",
        "mobilevitv2.encoder.layer",
        width_multiplier=0.25,
        patch_size=2,
        image_size=64,
    ),
    _stages("poolformer", "PoolFormerForImageClassification", "poolformer.encoder.block", **_FOUR),
    _stages("pvt", "PvtForImageClassification", "pvt.encoder.block", **_PYRAMID, image_size=64),
    _stages("pvt_v2", "PvtV2ForImageClassification", "pvt_v2.encoder.layers", **_PYRAMID),
    _stages("regnet", "RegNetForImageClassification", "regnet.encoder.stages", **_FOUR, groups_width=4),
    _stages("resnet", "ResNetForImageClassification", "resnet.encoder.stages", **_FOUR),
    _stages("segformer", "SegformerForImageClassification", "segformer.encoder.block", **_PYRAMID),
    _stages(
        "swiftformer",
        "SwiftFormerForImageClassification",
        "swiftformer.encoder.network",
        embed_dims=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
    ),
    _stages("swin", "SwinForImageClassification", "swin.encoder.layers", **_SWIN),
    _stages(
        "swin2sr",
        "Swin2SRForImageSuperResolution",
        "swin2sr.encoder.stages",
        embed_dim=24,
        depths=[2] * 6,
        num_heads=[2] * 6,
        window_size=4,
        patch_size=1,
    ),
    _stages("swinv2", "Swinv2ForImageClassification", "swinv2.encoder.layers", **_SWIN),
    _stages(
        "textnet",
        "TextNetForImageClassification",
        "textnet.encoder.stages",
        hidden_sizes=[8, 8, 16, 24, 32],
        stem_out_channels=8,
        image_size=[64, 64],
    ),
]
