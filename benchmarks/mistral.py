"""A checkpoint with the shape of Mistral 7B, or smaller, made on the spot, and what depth up-scaling makes of it."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_BASE_LAYERS, NUM_REMOVED = 32, 8
SOURCES = (*range(NUM_BASE_LAYERS - NUM_REMOVED), *range(NUM_REMOVED, NUM_BASE_LAYERS))
VOCABULARY, HEAD_SIZE = 32_000, 128
SHARD_SHARE = 5.0 / 14.483464192  # of all bytes in a file: 7B comes in files of up to 5 GB
_POOL_BYTES, _PIECE_BYTES = 64 << 20, 1 << 20


@dataclass(frozen=True)
class Shape:
    """A bf16 Mistral: its size follows from these two, the number of layers and the vocabulary."""

    hidden_size: int
    intermediate_size: int

    @classmethod
    def of_size(cls, gigabytes: float) -> Shape:
        """The shape, near Mistral 7B's proportions, whose tensors take about ``gigabytes`` (10^9 bytes) in bf16."""
        wanted = gigabytes * 1e9 / 2
        per_square = 13 * NUM_BASE_LAYERS  # 2.5 h^2 for attention, 3 * 3.5 h^2 for the MLP; outside 2 * vocabulary * h
        exact = (math.sqrt(VOCABULARY**2 + per_square * wanted) - VOCABULARY) / per_square
        hidden = max(512, round(exact / 512) * 512)
        left = wanted - cls(hidden, 0).num_parameters
        return cls(hidden, max(64, round(left / (3 * NUM_BASE_LAYERS * hidden * 64)) * 64))

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name on disk and shape of every tensor, in the order of the model."""
        h, i, kv = self.hidden_size, self.intermediate_size, self.hidden_size // 4
        yield "model.embed_tokens.weight", (VOCABULARY, h)
        for layer in range(NUM_BASE_LAYERS):
            prefix = f"model.layers.{layer}."
            for name, rows, columns in (("q", h, h), ("k", kv, h), ("v", kv, h), ("o", h, h)):
                yield f"{prefix}self_attn.{name}_proj.weight", (rows, columns)
            for name, shape in (("gate", (i, h)), ("up", (i, h)), ("down", (h, i))):
                yield f"{prefix}mlp.{name}_proj.weight", shape
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}{name}.weight", (h,)
        yield "model.norm.weight", (h,)
        yield "lm_head.weight", (VOCABULARY, h)

    def config(self) -> dict[str, Any]:
        """A ``config.json`` that transformers reads."""
        heads = self.hidden_size // HEAD_SIZE
        return {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "bfloat16",
            "hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size,
            "num_hidden_layers": NUM_BASE_LAYERS, "num_attention_heads": heads, "num_key_value_heads": heads // 4,
            "head_dim": HEAD_SIZE, "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": False, "hidden_act": "silu",
        }  # fmt: skip


MISTRAL_7B = Shape(4096, 14336)


def write_base(folder: Path, shape: Shape, seed: int | None = None) -> None:
    """Write a checkpoint of noise: shards filled in turn, names sorted within each, as transformers does.

    With a seed the noise is of numbers between 0.002 and 0.03 with either sign, which can be computed with; without,
    of any bytes.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    done, total = 0, shape.num_parameters
    for name, dimensions in shape.tensors():
        done += math.prod(dimensions)
        if done > total * SHARD_SHARE:
            shards.append([])
            done = math.prod(dimensions)
        shards[-1].append((name, dimensions))
    pool = random.Random(seed or 0).randbytes(_POOL_BYTES)
    if seed is not None:
        numbers = bytearray(pool)
        numbers[1::2] = pool[1::2].translate(bytes((0x3B, 0x3C, 0xBB, 0xBC)[byte % 4] for byte in range(256)))
        pool = bytes(numbers)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= {name: file for name, _ in tensors}
        _write_safetensors(folder / file, sorted(tensors), pool)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_safetensors(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], pool: bytes) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (end, end := end + 2 * math.prod(shape))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            for piece in _noise(name, 2 * math.prod(shape), pool):
                file.write(piece)


def _noise(name: str, num_bytes: int, pool: bytes) -> Iterator[memoryview]:
    """Random bytes that are soon made: pieces of a pool, from other places for each tensor."""
    view, places = memoryview(pool), random.Random(name)
    for begin in range(0, num_bytes, _PIECE_BYTES):
        place = places.randrange(len(pool) - _PIECE_BYTES)
        yield view[place : place + min(_PIECE_BYTES, num_bytes - begin)]


def tensor_hashes(folder: Path) -> dict[str, str]:
    """``dtype shape sha256`` of every tensor in a folder, by name, read without depthup."""
    hashes: dict[str, str] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                digest = hashlib.sha256()
                file.seek(start + begin)
                for position in range(begin, end, 1 << 18):
                    digest.update(file.read(min(1 << 18, end - position)))
                hashes[name] = f"{entry['dtype']} {entry['shape']} {digest.hexdigest()}"
    return hashes


def expected_hashes(base: dict[str, str]) -> dict[str, str]:
    """The target's hashes, from the base's and the definition: base layers 0-23, then 8-31."""
    expected = {name: value for name, value in base.items() if not name.startswith("model.layers.")}
    for target, layer in enumerate(SOURCES):
        prefix = f"model.layers.{layer}."
        layer_hashes = ((name, value) for name, value in base.items() if name.startswith(prefix))
        expected |= {f"model.layers.{target}.{name.removeprefix(prefix)}": value for name, value in layer_hashes}
    return expected
