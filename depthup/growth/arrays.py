"""Tensors on disk as arrays and back, a chunk at a time, so that the size of a tensor costs no memory.

Arithmetic is done in float32 (float64 for tensors stored as that) and rounded once, to nearest even, to the stored
type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..checkpoint.floats import STORED_AS, Array, narrow, widen
from ..checkpoint.reader import Tensor
from ..errors import CheckpointError

_CHUNK_ELEMENTS = 1 << 21
FLOATS = tuple(STORED_AS)  # the types that can be computed with


def read_chunks(folder: Path, tensor: Tensor) -> Iterator[Array]:
    """The tensor's values, flat, in arrays of at most 2 million elements.

    Raises:
        CheckpointError: The file ended early.
    """
    size = _CHUNK_ELEMENTS * STORED_AS[tensor.dtype].itemsize
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
    stored = np.frombuffer(data, STORED_AS[dtype])
    return widen(stored, dtype, np.empty(stored.shape, np.float64 if dtype == "F64" else np.float32))


def encode(array: Array, dtype: str) -> bytes:
    """An array, float32 or float64, as bytes of a float type, rounded to nearest even."""
    return narrow(array, dtype, np.empty(array.shape, STORED_AS[dtype])).tobytes()
