"""What the forward of each kind of model takes: small, random, seeded. Each function takes the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .shrink import FIRST_SPECIAL

Inputs = dict[str, Tensor]


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Random numbers, the same for a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(num_tokens: int, num_rows: int = 2, seed: int = 1, below: int = FIRST_SPECIAL) -> Tensor:
    """Random token ids [num_rows, num_tokens], none of them special."""
    return torch.randint(1, below, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


def square_of(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[-2], value[-1])


def text(model: PreTrainedModel) -> Inputs:
    """Token ids [2, 24], none of them special."""
    return {"input_ids": tokens(24)}


def texts(model: PreTrainedModel) -> Inputs:
    """Token ids of an encoder and of its decoder."""
    return {"input_ids": tokens(24), "decoder_input_ids": tokens(12, seed=2)}


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
    return {"pixel_values": noise(2, channels, *square_of(getattr(config, "image_size", 32)))}


def image_and_text(model: PreTrainedModel) -> Inputs:
    """Pixels and token ids, side by side as in CLIP."""
    return {**text(model), **image(model)}


def video(model: PreTrainedModel) -> Inputs:
    """Pixels [2, frames, channels, height, width]."""
    config: Any = model.config
    return {"pixel_values": noise(2, config.num_frames, config.num_channels, *square_of(config.image_size))}


def wave(model: PreTrainedModel) -> Inputs:
    """Samples [2, 2000]."""
    return {"input_values": noise(2, 2000)}


def wave_and_text(model: PreTrainedModel) -> Inputs:
    """Samples, and the token ids of the decoder."""
    return {**wave(model), "decoder_input_ids": tokens(12)}


def spectrum(model: PreTrainedModel) -> Inputs:
    """Mel features [2, frames, bins]."""
    config: Any = model.config
    config = getattr(config, "encoder_config", None) or getattr(config, "audio_config", None) or config
    named = (getattr(config, key, None) for key in ("num_mel_bins", "feature_projection_input_dim", "input_dim"))
    bins = getattr(config, "input_feat_per_channel", None) or next(value for value in named if value)
    return {"input_features": noise(2, 40, bins)}


def stacked_spectrum(model: PreTrainedModel) -> Inputs:
    """Mel features [2, frames, 4 x bins], four frames put together."""
    return {"input_features": noise(2, 40, 4 * model.config.encoder_config.num_mel_bins)}


def patches_of_sound(model: PreTrainedModel) -> Inputs:
    """A spectrogram [2, frames, bins] of the one length that the model takes."""
    return {"input_values": noise(2, model.config.max_length, model.config.num_mel_bins)}


def spectrum_and_text(model: PreTrainedModel) -> Inputs:
    """Mel features, and the token ids of the decoder."""
    return {**spectrum(model), "decoder_input_ids": tokens(12)}


def whisper(model: PreTrainedModel) -> Inputs:
    """Mel features [2, bins, frames] of the one length that Whisper takes, and the token ids of the decoder."""
    frames = 2 * model.config.max_source_positions
    return {"input_features": noise(2, model.config.num_mel_bins, frames), "decoder_input_ids": tokens(12)}


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
    return {**found, "noise": noise(2, (model.config.image_size // model.config.patch_size) ** 2, seed=4)}


def clip(model: PreTrainedModel) -> Inputs:
    """A video under V-JEPA's names."""
    config: Any = model.config
    return {"pixel_values_videos": noise(2, config.frames_per_clip, 3, config.crop_size, config.crop_size)}


def prism(model: PreTrainedModel) -> Inputs:
    """A video under VideoPrism's name."""
    return {"pixel_values_videos": video(model)["pixel_values"]}


def patches_and_text(model: PreTrainedModel) -> Inputs:
    """Patches in a row, as SigLIP 2 takes images, and token ids."""
    config: Any = model.config.vision_config
    side = int(config.num_patches**0.5)
    patches = noise(2, config.num_patches, config.num_channels * config.patch_size**2)
    shapes = torch.tensor([[side, side]] * 2)
    return {**text(model), "pixel_values": patches, "spatial_shapes": shapes,
            "pixel_attention_mask": torch.ones(2, config.num_patches, dtype=torch.long)}  # fmt: skip


def clip_and_text(model: PreTrainedModel) -> Inputs:
    """A video, and token ids."""
    config: Any = model.config.vision_config
    return {**text(model), "pixel_values": noise(2, config.num_frames, 3, config.image_size, config.image_size)}


def idefics(model: PreTrainedModel) -> Inputs:
    """Token ids, one image for each row, and which tokens may look at it."""
    return {**text(model), "pixel_values": image(model)["pixel_values"][:, None],
            "image_attention_mask": torch.ones(2, 24, 1, dtype=torch.long)}  # fmt: skip


def kosmos(model: PreTrainedModel) -> Inputs:
    """Token ids, images, and the places of the images among the tokens."""
    places = torch.zeros(2, 24, dtype=torch.long)
    places[:, 2 : 2 + model.config.latent_query_num] = 1
    return {**image_and_text(model), "image_embeds_position_mask": places}


def mllama(model: PreTrainedModel) -> Inputs:
    """Token ids, and one image of two tiles for each row, which every token may look at."""
    pixels = image(model)["pixel_values"]
    tiles = torch.stack([pixels, pixels.flip(-1), pixels, pixels], dim=1)[:, None]
    parts = {"aspect_ratio_ids": torch.tensor([[2], [2]]), "aspect_ratio_mask": torch.tensor([[[1, 1, 0, 0]]] * 2),
             "cross_attention_mask": torch.ones(2, 24, 1, 4, dtype=torch.long)}  # fmt: skip
    return {**text(model), "pixel_values": tiles, **parts}


def regions(model: PreTrainedModel) -> Inputs:
    """Token ids, and features and boxes of four regions of an image."""
    config: Any = model.config
    return {**text(model), "visual_feats": noise(2, 4, config.visual_feat_dim),
            "visual_pos": noise(2, 4, config.visual_pos_dim).abs()}  # fmt: skip


def seen_regions(model: PreTrainedModel) -> Inputs:
    """Token ids, and features of four regions, under VisualBERT's names."""
    return {**text(model), "attention_mask": torch.ones(2, 24).long(), "visual_attention_mask": torch.ones(2, 4).long(),
            "visual_embeds": noise(2, 4, model.config.visual_embedding_dim),
            "visual_token_type_ids": torch.ones(2, 4).long()}  # fmt: skip


def image_to_text(model: PreTrainedModel) -> Inputs:
    """Pixels of the encoder, and the token ids of the decoder."""
    side = model.config.encoder.image_size
    return {"pixel_values": noise(2, 3, side, side), "decoder_input_ids": tokens(12)}


def flattened(model: PreTrainedModel) -> Inputs:
    """Patches with their row and column in front [2, 9, 2 + width], and the token ids of the decoder."""
    places = torch.cartesian_prod(torch.arange(1, 4), torch.arange(1, 4)).float().expand(2, 9, 2)
    patches = noise(2, 9, model.config.vision_config.patch_embed_hidden_size)
    return {"flattened_patches": torch.cat([places, patches], dim=-1), "decoder_input_ids": tokens(12)}


def pointed(model: PreTrainedModel) -> Inputs:
    """An image, and one point on it."""
    return {**image(model), "input_points": torch.tensor([[[[4.0, 9.0]]]] * 2)}


def boxes_and_image(model: PreTrainedModel) -> Inputs:
    """Token ids with boxes, and pixels."""
    side = model.config.input_size
    return {**boxes(model), "pixel_values": noise(2, 3, side, side)}


def clap(model: PreTrainedModel) -> Inputs:
    """Token ids, and mel features."""
    config: Any = model.config.audio_config
    return {**text(model), "input_features": noise(2, 1, 40, config.num_mel_bins)}


def musicgen(model: PreTrainedModel) -> Inputs:
    """Token ids of the text, and codes [2 x codebooks, 12] of the music so far."""
    return {**text(model), "decoder_input_ids": tokens(12, 2 * model.config.decoder.num_codebooks)}


def series(model: PreTrainedModel) -> Inputs:
    """Two series of 64 numbers."""
    return {"past_values": noise(2, 64), "freq": torch.zeros(2, 1).long()}


def past(model: PreTrainedModel) -> Inputs:
    """Two series of one channel."""
    return {"past_values": noise(2, model.config.context_length, model.config.num_input_channels)}


def forecast(model: PreTrainedModel) -> Inputs:
    """Two series with features of time, past and future."""
    config: Any = model.config
    length, features = config.context_length + max(config.lags_sequence), max(config.num_time_features, 1)
    return {"past_values": noise(2, length), "past_time_features": noise(2, length, features),
            "past_observed_mask": torch.ones(2, length), "future_values": noise(2, config.prediction_length),
            "future_time_features": noise(2, config.prediction_length, features)}  # fmt: skip


def episode(model: PreTrainedModel) -> Inputs:
    """States, actions and returns of two episodes of six steps."""
    config: Any = model.config
    return {"states": noise(2, 6, config.state_dim), "actions": noise(2, 6, config.act_dim), "rewards": noise(2, 6, 1),
            "returns_to_go": noise(2, 6, 1), "timesteps": torch.arange(6).expand(2, 6)}  # fmt: skip


def square(model: PreTrainedModel) -> Inputs:
    """Pixels [2, 3, 64, 64], for detectors that take any size."""
    return {"pixel_values": noise(2, 3, 64, 64)}


def square_and_text(model: PreTrainedModel) -> Inputs:
    """As :func:`square`, and token ids."""
    return {**square(model), "input_ids": tokens(8)}


def square_and_task(model: PreTrainedModel) -> Inputs:
    """As :func:`square`, and the ids of a task."""
    return {**square(model), "task_inputs": tokens(model.config.task_seq_len, below=8).float()}


def square_with_trimap(model: PreTrainedModel) -> Inputs:
    """As :func:`square`, with a map of what is to be decided in a fourth channel."""
    return {"pixel_values": noise(2, 4, 64, 64)}


def two_squares(model: PreTrainedModel) -> Inputs:
    """Two images to match [1, 2, 3, 64, 64]."""
    return {"pixel_values": noise(1, 2, 3, 64, 64)}


def codes(model: PreTrainedModel) -> Inputs:
    """Codes of sound [2, 12, codebooks]."""
    return {"input_ids": tokens(12 * model.config.num_codebooks, below=300).view(2, 12, -1)}


def codes_and_text(model: PreTrainedModel) -> Inputs:
    """Text, then codes of sound [2, 12, 1 + codebooks]."""
    return {"input_ids": tokens(12 * (model.config.num_codebooks + 1), below=15).view(2, 12, -1)}


def sound(model: PreTrainedModel) -> Inputs:
    """Samples of one channel [2, 1, 1920]."""
    return {"input_values": noise(2, 1, 1920)}


def dia(model: PreTrainedModel) -> Inputs:
    """Token ids, and the codes of all channels so far [2, 12, channels]."""
    channels = model.config.decoder_config.num_channels
    return {**text(model), "decoder_input_ids": tokens(12 * channels, below=300).view(2, 12, channels)}


def clvp(model: PreTrainedModel) -> Inputs:
    """Token ids, and mel features [2, bins, frames]."""
    return {"input_ids": tokens(12), "input_features": noise(2, model.config.decoder_config.feature_size, 40)}
