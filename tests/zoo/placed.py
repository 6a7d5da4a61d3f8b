"""Inputs of language models that see or hear: token ids with as many placeholders as the encoder puts out vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .inputs import Inputs, image, image_and_text, noise, tokens


def _leaves(features: Any) -> list[Tensor]:
    if isinstance(features, Tensor):
        return [features]
    return [leaf for item in features for leaf in _leaves(item)]


def _placed(token: int, features: Any, parts: Inputs) -> Inputs:
    """Token ids in two rows with as many placeholders as the encoder of the other kind puts out vectors."""
    found = getattr(features, "pooler_output", features)
    found = features.last_hidden_state if found is None else found
    num_places = sum(leaf.shape[:-1].numel() for leaf in _leaves(found)) // 2
    ids = tokens(num_places + 10)
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
    width = (
        3
        * (getattr(config, "temporal_patch_size", None) or getattr(config, "patch_temporal", 1))
        * config.patch_size**2
    )
    grid = torch.tensor([[1, 4, 4]] * 2)
    return _pictured(model, {"pixel_values": noise(32, width), "image_grid_thw": grid})


def pictured_kinds(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_grid`, and the kind of each token: 0 of text, 1 of an image."""
    found = pictured_grid(model)
    kinds = (found["input_ids"] == _token(model, "image")).long()
    extra = {"moe_mm_token_type_ids": kinds} if model.config.model_type == "ernie4_5_vl_moe" else {}
    return {**found, "mm_token_type_ids": kinds, **extra}


def pictured_squares(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_grid`, each patch a square of its own."""
    side = model.config.vision_config.patch_size
    return _pictured(model, {"pixel_values": noise(32, 3, side, side), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)})


def pictured_merged(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_grid`, and by how much each image is merged."""
    found = {"pixel_values": noise(32, 3 * model.config.vision_config.patch_size**2),
             "image_grid_thw": torch.tensor([[1, 4, 4]] * 2), "image_merge_sizes": torch.tensor([2, 2])}  # fmt: skip
    return _pictured(model, found)


def pictured_blocks(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_grid`, four patches in one square."""
    side = 2 * model.config.vision_config.patch_size
    parts = {"pixel_values": noise(8, side, side, 3), "image_grid_thw": torch.tensor([[1, 2, 2]] * 2)}
    return _pictured(model, parts)


def pictured_squares_kinds(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_squares`, and the kind of each token."""
    found = pictured_squares(model)
    return {**found, "mm_token_type_ids": (found["input_ids"] == _token(model, "image")).long()}


def pictured_shapes(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, the images as patches in a row with a shape and a mask each."""
    config: Any = model.config.vision_config
    parts = {"pixel_values": noise(2, 16, config.num_channels * config.patch_size**2),
             "spatial_shapes": torch.tensor([[4, 4]] * 2),
             "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long)}  # fmt: skip
    return _pictured(model, parts)


def _sound(model: PreTrainedModel) -> Inputs:
    """Mel features [2, bins, frames] of a Whisper-like encoder, none of them padded."""
    config: Any = model.config.audio_config
    frames = 2 * getattr(config, "max_source_positions", 128)
    return {
        "input_features": noise(2, config.num_mel_bins, frames),
        "input_features_mask": torch.ones(2, frames).long(),
    }


def _heard(model: PreTrainedModel, parts: Inputs) -> Inputs:
    with torch.no_grad():
        features = _owner(model, "get_audio_features").get_audio_features(**parts)
    return _placed(_token(model, "audio"), features, parts)


def heard(model: PreTrainedModel) -> Inputs:
    """Token ids with the places of a sound in each row, and its mel features [2, bins, frames]."""
    return _heard(model, _sound(model))


def heard_hundreds(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, in whole hundreds of frames."""
    features = noise(2, model.config.audio_config.num_mel_bins, 200)
    return _heard(model, {"input_features": features, "input_features_mask": torch.ones(2, 200).long()})


def heard_plain(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, without a mask."""
    return _heard(model, {"input_features": _sound(model)["input_features"]})


def heard_chunks(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, and which of the samples before the mel features are no padding."""
    return _heard(model, {**_sound(model), "padding_mask": torch.ones(2, 40).long()})


def heard_frames(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, the features [2, frames, bins] without a mask."""
    return _heard(model, {"input_features": noise(2, 40, model.config.encoder_config.input_dim)})


def heard_stacked(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, some frames stacked as one [2, frames, stacked x bins]."""
    config: Any = model.config.audio_config
    features = noise(2, 40, config.num_mel_bins * config.num_stacked_frames)
    return _heard(model, {"input_features": features, "input_features_mask": torch.ones(2, 40).long()})


def heard_quarter(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, one place for four frames, under Qwen2-Audio's name of the mask."""
    parts = _sound(model)
    mask = parts.pop("input_features_mask")
    name = "feature_attention_mask" if model.config.model_type == "qwen2_audio" else "input_features_mask"
    return _placed(_token(model, "audio"), torch.zeros(2, mask.shape[1] // 4, 1), {**parts, name: mask})


def heard_along(model: PreTrainedModel) -> Inputs:
    """Mel features, and one token id for each vector that they become."""
    parts = {"input_features": _sound(model)["input_features"]}
    with torch.no_grad():
        found = model.get_audio_features(**parts).pooler_output
    return {"input_ids": tokens(found.shape[1]), **parts}


def queried(model: PreTrainedModel) -> Inputs:
    """Images, and token ids with the places of the queries; InstructBLIP reads an instruction too."""
    config: Any = model.config
    found = image_and_text(model)
    found["input_ids"][:, : config.num_query_tokens] = _token(model, "image")
    return {**found, "qformer_input_ids": tokens(6)} if config.model_type == "instructblip" else found


def pictured_to_text(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, and the token ids of the decoder."""
    return {**pictured(model), "decoder_input_ids": tokens(12)}


def gemma4(model: PreTrainedModel) -> Inputs:
    """Token ids with the places of an image and of a sound, patches with their places, and mel features."""
    config: Any = model.config
    places = torch.cartesian_prod(torch.arange(6), torch.arange(6)).expand(2, 36, 2)
    seen = _pictured(model, {"pixel_values": noise(2, 36, 3 * config.vision_config.patch_size**2),
                             "image_position_ids": places})  # fmt: skip
    mels = {"input_features": noise(2, 64, 128), "input_features_mask": torch.ones(2, 64, dtype=torch.bool)}
    both = _heard(model, mels)
    kinds = (seen["input_ids"] == _token(model, "image")).long()
    ids = torch.cat([seen["input_ids"], both["input_ids"]], dim=1)
    kinds = torch.cat([kinds, 3 * (both["input_ids"] == _token(model, "audio")).long()], dim=1)
    return {**seen, **both, "input_ids": ids, "mm_token_type_ids": kinds}


def seen_and_heard(model: PreTrainedModel) -> Inputs:
    """Token ids with the places of an image and of a sound, patches in a row, and mel features."""
    config: Any = model.config.audio_config
    seen = pictured_grid(model)
    frames = 2 * config.n_window
    heard = _placed(_token(model, "audio"), torch.zeros(2, frames // 4, 1), {})
    return {**seen, "input_ids": torch.cat([seen["input_ids"], heard["input_ids"]], dim=1),
            "input_features": noise(2, config.num_mel_bins, frames),
            "feature_attention_mask": torch.ones(2, frames).long()}  # fmt: skip


def molmo(model: PreTrainedModel) -> Inputs:
    """Token ids with the places of an image, its patches in one crop, and which of them are put together."""
    config: Any = model.config.vision_config
    pool = torch.arange(16).view(4, 4).repeat(2, 1)
    parts = {"pixel_values": noise(2, 16, 3 * config.patch_size**2), "image_token_pooling": pool,
             "image_grids": torch.tensor([[2, 2, 0, 0]] * 2), "image_num_crops": torch.tensor([1, 1])}  # fmt: skip
    num_crops = parts.pop("image_num_crops")
    return {**_pictured(model, parts), "image_num_crops": num_crops}


def pictured_targets(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, all images in one row of patches, with their heights and widths."""
    side = model.config.vision_config.patch_size
    return _pictured(model, {"pixel_values": noise(1, 3, side, 32 * side), "target_sizes": torch.tensor([[4, 4]] * 2)})


def pictured_tile_mask(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_one_tile`, and which tiles are real."""
    return _pictured(model, {"pixel_values": image(model)["pixel_values"][:, None],
                             "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool)})  # fmt: skip
