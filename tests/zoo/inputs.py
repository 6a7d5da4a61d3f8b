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
