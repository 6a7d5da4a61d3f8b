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
    width = (
        3
        * (getattr(config, "temporal_patch_size", None) or getattr(config, "patch_temporal", 1))
        * config.patch_size**2
    )
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
    return _pictured(
        model, {"pixel_values": _noise(32, 3, side, side), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    )


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


def pictured_shapes(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, the images as patches in a row with a shape and a mask each."""
    config: Any = model.config.vision_config
    parts = {"pixel_values": _noise(2, 16, config.num_channels * config.patch_size**2),
             "spatial_shapes": torch.tensor([[4, 4]] * 2),
             "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long)}  # fmt: skip
    return _pictured(model, parts)


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


def _sound(model: PreTrainedModel) -> Inputs:
    """Mel features [2, bins, frames] of a Whisper-like encoder, none of them padded."""
    config: Any = model.config.audio_config
    frames = 2 * getattr(config, "max_source_positions", 128)
    return {
        "input_features": _noise(2, config.num_mel_bins, frames),
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
    features = _noise(2, model.config.audio_config.num_mel_bins, 200)
    return _heard(model, {"input_features": features, "input_features_mask": torch.ones(2, 200).long()})


def heard_plain(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, without a mask."""
    return _heard(model, {"input_features": _sound(model)["input_features"]})


def heard_chunks(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, and which of the samples before the mel features are no padding."""
    return _heard(model, {**_sound(model), "padding_mask": torch.ones(2, 40).long()})


def heard_frames(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, the features [2, frames, bins] without a mask."""
    return _heard(model, {"input_features": _noise(2, 40, model.config.encoder_config.input_dim)})


def heard_stacked(model: PreTrainedModel) -> Inputs:
    """As :func:`heard`, some frames stacked as one [2, frames, stacked x bins]."""
    config: Any = model.config.audio_config
    features = _noise(2, 40, config.num_mel_bins * config.num_stacked_frames)
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
    return {"input_ids": _tokens(found.shape[1]), **parts}


def queried(model: PreTrainedModel) -> Inputs:
    """Images, and token ids with the places of the queries; InstructBLIP reads an instruction too."""
    config: Any = model.config
    found = image_and_text(model)
    found["input_ids"][:, : config.num_query_tokens] = _token(model, "image")
    return {**found, "qformer_input_ids": _tokens(6)} if config.model_type == "instructblip" else found


def regions(model: PreTrainedModel) -> Inputs:
    """Token ids, and features and boxes of four regions of an image."""
    config: Any = model.config
    return {**text(model), "visual_feats": _noise(2, 4, config.visual_feat_dim),
            "visual_pos": _noise(2, 4, config.visual_pos_dim).abs()}  # fmt: skip


def seen_regions(model: PreTrainedModel) -> Inputs:
    """Token ids, and features of four regions, under VisualBERT's names."""
    return {**text(model), "attention_mask": torch.ones(2, 24).long(), "visual_attention_mask": torch.ones(2, 4).long(),
            "visual_embeds": _noise(2, 4, model.config.visual_embedding_dim),
            "visual_token_type_ids": torch.ones(2, 4).long()}  # fmt: skip


def image_to_text(model: PreTrainedModel) -> Inputs:
    """Pixels of the encoder, and the token ids of the decoder."""
    side = model.config.encoder.image_size
    return {"pixel_values": _noise(2, 3, side, side), "decoder_input_ids": _tokens(12)}


def flattened(model: PreTrainedModel) -> Inputs:
    """Patches with their row and column in front [2, 9, 2 + width], and the token ids of the decoder."""
    places = torch.cartesian_prod(torch.arange(1, 4), torch.arange(1, 4)).float().expand(2, 9, 2)
    patches = _noise(2, 9, model.config.vision_config.patch_embed_hidden_size)
    return {"flattened_patches": torch.cat([places, patches], dim=-1), "decoder_input_ids": _tokens(12)}


def pictured_to_text(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, and the token ids of the decoder."""
    return {**pictured(model), "decoder_input_ids": _tokens(12)}


def pointed(model: PreTrainedModel) -> Inputs:
    """An image, and one point on it."""
    return {**image(model), "input_points": torch.tensor([[[[4.0, 9.0]]]] * 2)}


def boxes_and_image(model: PreTrainedModel) -> Inputs:
    """Token ids with boxes, and pixels."""
    side = model.config.input_size
    return {**boxes(model), "pixel_values": _noise(2, 3, side, side)}


def clap(model: PreTrainedModel) -> Inputs:
    """Token ids, and mel features."""
    config: Any = model.config.audio_config
    return {**text(model), "input_features": _noise(2, 1, 40, config.num_mel_bins)}


def musicgen(model: PreTrainedModel) -> Inputs:
    """Token ids of the text, and codes [2 x codebooks, 12] of the music so far."""
    return {**text(model), "decoder_input_ids": _tokens(12, 2 * model.config.decoder.num_codebooks)}


def series(model: PreTrainedModel) -> Inputs:
    """Two series of 64 numbers."""
    return {"past_values": _noise(2, 64), "freq": torch.zeros(2, 1).long()}


def past(model: PreTrainedModel) -> Inputs:
    """Two series of one channel."""
    return {"past_values": _noise(2, model.config.context_length, model.config.num_input_channels)}


def forecast(model: PreTrainedModel) -> Inputs:
    """Two series with features of time, past and future."""
    config: Any = model.config
    length, features = config.context_length + max(config.lags_sequence), max(config.num_time_features, 1)
    return {"past_values": _noise(2, length), "past_time_features": _noise(2, length, features),
            "past_observed_mask": torch.ones(2, length), "future_values": _noise(2, config.prediction_length),
            "future_time_features": _noise(2, config.prediction_length, features)}  # fmt: skip


def episode(model: PreTrainedModel) -> Inputs:
    """States, actions and returns of two episodes of six steps."""
    config: Any = model.config
    return {"states": _noise(2, 6, config.state_dim), "actions": _noise(2, 6, config.act_dim), "rewards": _noise(2, 6, 1),
            "returns_to_go": _noise(2, 6, 1), "timesteps": torch.arange(6).expand(2, 6)}  # fmt: skip


def square(model: PreTrainedModel) -> Inputs:
    """Pixels [2, 3, 64, 64], for detectors that take any size."""
    return {"pixel_values": _noise(2, 3, 64, 64)}


def square_and_text(model: PreTrainedModel) -> Inputs:
    """As :func:`square`, and token ids."""
    return {**square(model), "input_ids": _tokens(8)}


def square_and_task(model: PreTrainedModel) -> Inputs:
    """As :func:`square`, and the ids of a task."""
    return {**square(model), "task_inputs": _tokens(model.config.task_seq_len, below=8).float()}


def square_with_trimap(model: PreTrainedModel) -> Inputs:
    """As :func:`square`, with a map of what is to be decided in a fourth channel."""
    return {"pixel_values": _noise(2, 4, 64, 64)}


def two_squares(model: PreTrainedModel) -> Inputs:
    """Two images to match [1, 2, 3, 64, 64]."""
    return {"pixel_values": _noise(1, 2, 3, 64, 64)}


def gemma4(model: PreTrainedModel) -> Inputs:
    """Token ids with the places of an image and of a sound, patches with their places, and mel features."""
    config: Any = model.config
    places = torch.cartesian_prod(torch.arange(6), torch.arange(6)).expand(2, 36, 2)
    seen = _pictured(model, {"pixel_values": _noise(2, 36, 3 * config.vision_config.patch_size**2),
                             "image_position_ids": places})  # fmt: skip
    mels = {"input_features": _noise(2, 64, 128), "input_features_mask": torch.ones(2, 64, dtype=torch.bool)}
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
            "input_features": _noise(2, config.num_mel_bins, frames),
            "feature_attention_mask": torch.ones(2, frames).long()}  # fmt: skip


def molmo(model: PreTrainedModel) -> Inputs:
    """Token ids with the places of an image, its patches in one crop, and which of them are put together."""
    config: Any = model.config.vision_config
    pool = torch.arange(16).view(4, 4).repeat(2, 1)
    parts = {"pixel_values": _noise(2, 16, 3 * config.patch_size**2), "image_token_pooling": pool,
             "image_grids": torch.tensor([[2, 2, 0, 0]] * 2), "image_num_crops": torch.tensor([1, 1])}  # fmt: skip
    num_crops = parts.pop("image_num_crops")
    return {**_pictured(model, parts), "image_num_crops": num_crops}


def pictured_targets(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured`, all images in one row of patches, with their heights and widths."""
    side = model.config.vision_config.patch_size
    return _pictured(model, {"pixel_values": _noise(1, 3, side, 32 * side), "target_sizes": torch.tensor([[4, 4]] * 2)})


def pictured_tile_mask(model: PreTrainedModel) -> Inputs:
    """As :func:`pictured_one_tile`, and which tiles are real."""
    return _pictured(model, {"pixel_values": image(model)["pixel_values"][:, None],
                             "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool)})  # fmt: skip


def codes(model: PreTrainedModel) -> Inputs:
    """Codes of sound [2, 12, codebooks]."""
    return {"input_ids": _tokens(12 * model.config.num_codebooks, below=300).view(2, 12, -1)}


def codes_and_text(model: PreTrainedModel) -> Inputs:
    """Text, then codes of sound [2, 12, 1 + codebooks]."""
    return {"input_ids": _tokens(12 * (model.config.num_codebooks + 1), below=15).view(2, 12, -1)}


def sound(model: PreTrainedModel) -> Inputs:
    """Samples of one channel [2, 1, 1920]."""
    return {"input_values": _noise(2, 1, 1920)}


def dia(model: PreTrainedModel) -> Inputs:
    """Token ids, and the codes of all channels so far [2, 12, channels]."""
    channels = model.config.decoder_config.num_channels
    return {**text(model), "decoder_input_ids": _tokens(12 * channels, below=300).view(2, 12, channels)}


def clvp(model: PreTrainedModel) -> Inputs:
    """Token ids, and mel features [2, bins, frames]."""
    return {"input_ids": _tokens(12), "input_features": _noise(2, model.config.decoder_config.feature_size, 40)}
