"""What the forward of each kind of model takes: small, random, seeded. Each function takes the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .shrink import FIRST_SPECIAL

Inputs = dict[str, Tensor]


def _noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tokens(num_tokens: int, num_rows: int = 2, seed: int = 1, below: int = FIRST_SPECIAL) -> Tensor:
    return torch.randint(1, below, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


def _square(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[-2], value[-1])


def text(model: PreTrainedModel) -> Inputs:
    """Token ids [2, 24], none of them special."""
    return {"input_ids": _tokens(24)}


def texts(model: PreTrainedModel) -> Inputs:
    """Token ids of an encoder and of its decoder."""
    return {"input_ids": _tokens(24), "decoder_input_ids": _tokens(12, seed=2)}


def boxes(model: PreTrainedModel) -> Inputs:
    """Token ids [2, 24] with a box [x0, y0, x1, y1] on the page for each."""
    corners = torch.randint(0, 60, (2, 24, 2), generator=torch.Generator().manual_seed(3))
    return {**text(model), "bbox": torch.cat([corners, corners + 20], dim=-1)}


def float_boxes(model: PreTrainedModel) -> Inputs:
    """As :func:`boxes`, in parts of the page."""
    found = boxes(model)
    return {**found, "bbox": found["bbox"] / 100}


def texts_and_boxes(model: PreTrainedModel) -> Inputs:
    """As :func:`texts`, with a box in parts of the page for each token of the encoder."""
    return {**texts(model), "bbox": float_boxes(model)["bbox"]}


def question(model: PreTrainedModel) -> Inputs:
    """Token ids, one of which is the question token in each row."""
    found = text(model)
    found["input_ids"][:, 3] = model.config.question_token_id
    return found


def image(model: PreTrainedModel) -> Inputs:
    """Pixels [2, channels, height, width] of the size that the config of the vision part states."""
    config: Any = model.config
    config = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3
    return {"pixel_values": _noise(2, channels, *_square(getattr(config, "image_size", 32)))}


def image_and_text(model: PreTrainedModel) -> Inputs:
    """Pixels and token ids, side by side as in CLIP."""
    return {**text(model), **image(model)}


def video(model: PreTrainedModel) -> Inputs:
    """Pixels [2, frames, channels, height, width]."""
    config: Any = model.config
    return {"pixel_values": _noise(2, config.num_frames, config.num_channels, *_square(config.image_size))}


def wave(model: PreTrainedModel) -> Inputs:
    """Samples [2, 2000]."""
    return {"input_values": _noise(2, 2000)}


def wave_and_text(model: PreTrainedModel) -> Inputs:
    """Samples, and the token ids of the decoder."""
    return {**wave(model), "decoder_input_ids": _tokens(12)}


def spectrum(model: PreTrainedModel) -> Inputs:
    """Mel features [2, frames, bins]."""
    config: Any = model.config
    config = getattr(config, "encoder_config", None) or getattr(config, "audio_config", None) or config
    named = (getattr(config, key, None) for key in ("num_mel_bins", "feature_projection_input_dim", "input_dim"))
    bins = getattr(config, "input_feat_per_channel", None) or next(value for value in named if value)
    return {"input_features": _noise(2, 40, bins)}


def stacked_spectrum(model: PreTrainedModel) -> Inputs:
    """Mel features [2, frames, 4 x bins], four frames put together."""
    return {"input_features": _noise(2, 40, 4 * model.config.encoder_config.num_mel_bins)}


def patches_of_sound(model: PreTrainedModel) -> Inputs:
    """A spectrogram [2, frames, bins] of the one length that the model takes."""
    return {"input_values": _noise(2, model.config.max_length, model.config.num_mel_bins)}


def spectrum_and_text(model: PreTrainedModel) -> Inputs:
    """Mel features, and the token ids of the decoder."""
    return {**spectrum(model), "decoder_input_ids": _tokens(12)}


def whisper(model: PreTrainedModel) -> Inputs:
    """Mel features [2, bins, frames] of the one length that Whisper takes, and the token ids of the decoder."""
    frames = 2 * model.config.max_source_positions
    return {"input_features": _noise(2, model.config.num_mel_bins, frames), "decoder_input_ids": _tokens(12)}


def prompted_image(model: PreTrainedModel) -> Inputs:
    """An image, and a prompt of an image with its mask."""
    pixels = image(model)["pixel_values"][:, :, : model.config.image_size[0] // 2]
    return {"pixel_values": pixels, "prompt_pixel_values": pixels.flip(0), "prompt_masks": pixels.roll(3, -1)}


def masked_video(model: PreTrainedModel) -> Inputs:
    """A video, and which of its patches are masked, as many in each row."""
    config: Any = model.config
    per_frame = (config.image_size // config.patch_size) ** 2
    num_patches = config.num_frames // config.tubelet_size * per_frame
    masked = torch.arange(num_patches).expand(2, -1) % 2 == 0
    return {**video(model), "bool_masked_pos": masked}


def masked_image(model: PreTrainedModel) -> Inputs:
    """An image, and the noise that decides which of its patches are masked."""
    found = image(model)
    return {**found, "noise": _noise(2, (model.config.image_size // model.config.patch_size) ** 2, seed=4)}


def clip(model: PreTrainedModel) -> Inputs:
    """A video under V-JEPA's names."""
    config: Any = model.config
    return {"pixel_values_videos": _noise(2, config.frames_per_clip, 3, config.crop_size, config.crop_size)}


def prism(model: PreTrainedModel) -> Inputs:
    """A video under VideoPrism's name."""
    return {"pixel_values_videos": video(model)["pixel_values"]}


def patches_and_text(model: PreTrainedModel) -> Inputs:
    """Patches in a row, as SigLIP 2 takes images, and token ids."""
    config: Any = model.config.vision_config
    side = int(config.num_patches**0.5)
    patches = _noise(2, config.num_patches, config.num_channels * config.patch_size**2)
    shapes = torch.tensor([[side, side]] * 2)
    return {**text(model), "pixel_values": patches, "spatial_shapes": shapes,
            "pixel_attention_mask": torch.ones(2, config.num_patches, dtype=torch.long)}  # fmt: skip


def clip_and_text(model: PreTrainedModel) -> Inputs:
    """A video, and token ids."""
    config: Any = model.config.vision_config
    return {**text(model), "pixel_values": _noise(2, config.num_frames, 3, config.image_size, config.image_size)}


def _leaves(features: Any) -> list[Tensor]:
    if isinstance(features, Tensor):
        return [features]
    return [leaf for item in features for leaf in _leaves(item)]


def _placed(token: int, features: Any, parts: Inputs) -> Inputs:
    """Token ids in two rows with as many placeholders as the encoder of the other kind puts out vectors."""
    found = getattr(features, "pooler_output", features)
    found = features.last_hidden_state if found is None else found
    num_places = sum(leaf.shape[:-1].numel() for leaf in _leaves(found)) // 2
    ids = _tokens(num_places + 10)
    ids[:, 4 : 4 + num_places] = token
    return {"input_ids": ids, **parts}


def _owner(model: PreTrainedModel, method: str) -> Any:
    inner: Any = getattr(model, "model", model)
    return inner if method in dir(inner) else model


def _token(model: PreTrainedModel, kind: str) -> int:
    config: Any = model.config
    found = (getattr(config, f"{kind}_token_{end}", None) for end in ("id", "index"))
    return int(next(token for token in found if token is not None))


def _pictured(model: PreTrainedModel, parts: Inputs) -> Inputs:
    with torch.no_grad():
        features = _owner(model, "get_image_features").get_image_features(**parts)
    return _placed(_token(model, "image"), features, parts)


def pictured(model: PreTrainedModel) -> Inputs:
    """Token ids with the places of an image in each row, and the images."""
    return _pictured(model, image(model))


def pictured_sized(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, and the size of each image."""
    pixels = image(model)["pixel_values"]
    return _pictured(model, {"pixel_values": pixels, "image_sizes": torch.tensor([pixels.shape[-2:]] * 2)})


def pictured_tiles(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, with three tiles for each image, and its size."""
    pixels = image(model)["pixel_values"]
    side = pixels.shape[-1]
    tiles = torch.stack([pixels, pixels.flip(-1), pixels.flip(-2)], dim=1)
    return _pictured(model, {"pixel_values": tiles, "image_sizes": torch.tensor([[side, 2 * side]] * 2)})


def pictured_one_tile(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, with one tile for each image."""
    return _pictured(model, {"pixel_values": image(model)["pixel_values"][:, None]})


def pictured_grid(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, the images as patches in a row and their grids [time, height, width], as in Qwen2-VL."""
    config: Any = model.config.vision_config
    width = 3 * (getattr(config, "temporal_patch_size", None) or getattr(config, "patch_temporal", 1)) * config.patch_size**2
    grid = torch.tensor([[1, 4, 4]] * 2)
    return _pictured(model, {"pixel_values": _noise(32, width), "image_grid_thw": grid})


def pictured_kinds(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_grid`, and the kind of each token: 0 of text, 1 of an image."""
    found = pictured_grid(model)
    kinds = (found["input_ids"] == _token(model, "image")).long()
    extra = {"moe_mm_token_type_ids": kinds} if model.config.model_type == "ernie4_5_vl_moe" else {}
    return {**found, "mm_token_type_ids": kinds, **extra}


def pictured_squares(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_grid`, each patch a square of its own."""
    side = model.config.vision_config.patch_size
    return _pictured(model, {"pixel_values": _noise(32, 3, side, side), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)})


def pictured_merged(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_grid`, and by how much each image is merged."""
    found = {"pixel_values": _noise(32, 3 * model.config.vision_config.patch_size**2),
             "image_grid_thw": torch.tensor([[1, 4, 4]] * 2), "image_merge_sizes": torch.tensor([2, 2])}  # fmt: skip
    return _pictured(model, found)


def pictured_blocks(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_grid`, four patches in one square."""
    side = 2 * model.config.vision_config.patch_size
    parts = {"pixel_values": _noise(8, side, side, 3), "image_grid_thw": torch.tensor([[1, 2, 2]] * 2)}
    return _pictured(model, parts)


def pictured_squares_kinds(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_squares`, and the kind of each token."""
    found = pictured_squares(model)
    return {**found, "mm_token_type_ids": (found["input_ids"] == _token(model, "image")).long()}
