"""The bytes of routers and experts that are no plain copies, a chunk at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..checkpoint.copy import read_range
from ..checkpoint.reader import Tensor
from ..checkpoint.writer import Buffer
from ..errors import CheckpointError
from .arrays import Array, decode, encode, read_chunks

_CHUNK_ELEMENTS = 1 << 21
Maker: TypeAlias = Callable[[], Iterator[Buffer]]


@dataclass(frozen=True)
class Part:
    """Part of a dense matrix that one expert holds.

    Attributes:
        tensor: The matrix [rows, columns] or, where rows were cut, a run of its rows.
        columns: Those that are held, half-open; None for all.
        scale: What they are multiplied by, a power of two.
        noise: Standard deviation of the noise that is added, as a share of the part's own.
        key: Names the stream of the noise.
    """

    tensor: Tensor
    columns: tuple[int, int] | None = None
    scale: int = 1
    noise: float = 0.0
    key: str = ""

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of ``tensor``."""
        return self.columns is None and self.scale == 1 and self.noise == 0

    @property
    def shape(self) -> tuple[int, ...]:
        rows, width = self.tensor.shape
        return (rows, width if self.columns is None else self.columns[1] - self.columns[0])


def run_of_rows(tensor: Tensor, begin: int, end: int) -> Tensor:
    """Rows ``[begin, end)`` of a matrix as a tensor of its own: they lie together on the disk."""
    width = tensor.num_bytes // tensor.shape[0]
    place = tensor.begin + begin * width
    return replace(tensor, shape=(end - begin, *tensor.shape[1:]), begin=place, end=place + (end - begin) * width)


def joined(folder: Path, parts: list[Part]) -> Maker:
    """A maker of the bytes of parts one after the other.

    Raises:
        CheckpointError: When it is called: a number does not fit its type once it is scaled.
    """

    def make() -> Iterator[Buffer]:
        for part in parts:
            yield from _copied(folder, part.tensor) if part.is_copy else _computed(folder, part)

    return make


def _copied(folder: Path, tensor: Tensor) -> Iterator[Buffer]:
    with open(folder / tensor.shard, "rb", buffering=0) as file:
        yield from read_range(file, tensor.begin, tensor.end)


def _computed(folder: Path, part: Part) -> Iterator[Buffer]:
    width = part.noise * _deviation(folder, part) if part.noise else 0.0
    generator = _generator(part.key)
    for chunk in _values(folder, part):
        if width:
            chunk = chunk + width * generator.standard_normal(len(chunk), np.float32)
        with np.errstate(over="ignore"):  # told below
            data = encode(chunk, part.tensor.dtype)
        if not np.isfinite(decode(data, part.tensor.dtype)).all() and np.isfinite(chunk).all():
            raise CheckpointError(
                f"{part.tensor.name} times {part.scale} does not fit its type {part.tensor.dtype}",
                next_step="choose a smaller granularity, or store the base as bfloat16 or float32",
            )
        yield data


def _values(folder: Path, part: Part) -> Iterator[Array]:
    """The part's numbers, scaled, flat, whole rows at a time where columns are cut."""
    if part.columns is None:
        yield from (chunk * part.scale if part.scale > 1 else chunk for chunk in read_chunks(folder, part.tensor))
        return
    rows, width = part.tensor.shape
    begin, end = part.columns
    step = max(1, _CHUNK_ELEMENTS // width)
    for row in range(0, rows, step):
        block = run_of_rows(part.tensor, row, min(row + step, rows))
        whole = np.concatenate(list(read_chunks(folder, block))).reshape(-1, width)
        yield np.ascontiguousarray(whole[:, begin:end]).ravel() * part.scale


def _deviation(folder: Path, part: Part) -> float:
    """Standard deviation of the part's numbers."""
    count, total, squares = 0, 0.0, 0.0
    for chunk in _values(folder, part):
        count += len(chunk)
        total += float(chunk.sum(dtype=np.float64))
        squares += float(np.square(chunk, dtype=np.float64).sum())
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0))) if count else 0.0


def drawn(shape: tuple[int, int], repeat: int, width: float, dtype: str, key: str) -> Maker:
    """A maker of a random matrix: normal numbers of standard deviation ``width``, each row ``repeat`` times in a row.

    Args:
        shape: Rows (all of them) and columns.
        repeat: Equal neighbours, a divisor of the rows.
        width: Standard deviation.
        dtype: Type on disk.
        key: Names the stream of numbers: the same key gives the same matrix.
    """

    def make() -> Iterator[Buffer]:
        rows = width * _generator(key).standard_normal((shape[0] // repeat, shape[1]), np.float32)
        yield encode(np.repeat(rows, repeat, axis=0), dtype)

    return make


def _generator(key: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")))
