"""Tensors on disk as arrays and back, a chunk at a time, so that the size of a tensor costs no memory.

Arithmetic is done in float32 (float64 for tensors stored as that) and rounded once, to nearest even, to the stored
type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..checkpoint.reader import Tensor
from ..errors import CheckpointError

Array: TypeAlias = "np.ndarray"
_CHUNK_ELEMENTS = 1 << 21
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
FLOATS = tuple(_WIDTHS)  # the types that can be computed with


def read_chunks(folder: Path, tensor: Tensor) -> Iterator[Array]:
    """The tensor's values, flat, in arrays of at most 2 million elements.

    Raises:
        CheckpointError: The file ended early.
    """
    size = _CHUNK_ELEMENTS * _WIDTHS[tensor.dtype]
    with open(folder / tensor.shard, "rb") as file:
        file.seek(tensor.begin)
        for begin in range(tensor.begin, tensor.end, size):
            data = file.read(min(size, tensor.end - begin))
            if len(data) < min(size, tensor.end - begin):
                raise CheckpointError(f"{tensor.shard} ended inside {tensor.name}: it changed while it was read")
            yield decode(data, tensor.dtype)


def read_array(folder: Path, tensor: Tensor) -> Array:
    """The whole tensor in its shape, float32 (float64 if it is stored so)."""
    chunks = list(read_chunks(folder, tensor))
    return np.concatenate(chunks).reshape(tensor.shape) if chunks else np.zeros(tensor.shape, np.float32)


def computed(
    folder: Path, tensors: tuple[Tensor, ...], formula: Callable[..., Array], dtype: str
) -> Callable[[], Iterator[bytes]]:
    """A maker of the bytes of ``formula(chunk of the first, chunk of the second, ...)``, element by element."""

    def make() -> Iterator[bytes]:
        for chunks in zip(*(read_chunks(folder, tensor) for tensor in tensors), strict=True):
            yield encode(formula(*chunks), dtype)

    return make


def decode(data: bytes, dtype: str) -> Array:
    """Bytes of a float type as float32 (float64 if they are that)."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    array = np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    return array.astype(np.float32) if dtype == "F16" else array


def encode(array: Array, dtype: str) -> bytes:
    """An array as bytes of a float type, rounded to nearest even."""
    if dtype != "BF16":
        return array.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    bits = array.astype("<f4").view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2").tobytes()
