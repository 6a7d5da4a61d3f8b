"""The files of a target before any byte is moved: which tensors, from where, in which order, under which header."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod

from .copy import BLOCK_BYTES, Buffer
from .reader import DTYPE_BITS, SINGLE_NAME, Tensor


@dataclass(frozen=True, slots=True)
class Move:
    """One target tensor: its name, and the tensor on disk that it is a copy of.

    Where it is no copy, ``make`` yields its bytes, of the source's type and of ``shape`` (the source's by default). It
    may be called more than once, from any thread (by one at a time), for the tensors in any order: its bytes may
    depend on nothing but the base and the plan.
    """

    name: str
    source: Tensor
    make: Callable[[], Iterable[Buffer]] | None = None
    made_shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape if self.made_shape is None else self.made_shape

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * DTYPE_BITS[self.source.dtype] // 8


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbours in the base that are neighbours in the target: bytes ``[begin, end)`` of the base's file ``shard``."""

    shard: str
    begin: int
    end: int


@dataclass(frozen=True)
class Shard:
    """One file of the target, its tensors in the order of their bytes.

    Where ``link`` names a file of the base, that file holds these tensors and no others: it is linked, not written.
    ``metadata`` is what the header says beside the tensors.
    """

    file: str
    moves: tuple[Move, ...]
    link: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_data_bytes(self) -> int:
        return sum(move.num_bytes for move in self.moves)

    @property
    def num_written_bytes(self) -> int:
        """Bytes that the file takes on the disk: none if it is linked."""
        return 0 if self.link else len(self.header()) + self.num_data_bytes

    def runs(self) -> list[Run | Move]:
        """What follows the header: byte ranges to copy, as long as can be, and tensors to make."""
        runs: list[Run | Move] = []
        for move in self.moves:
            tensor, last = move.source, runs[-1] if runs else None
            if move.make is not None:
                runs.append(move)
            elif isinstance(last, Run) and (last.shard, last.end) == (tensor.shard, tensor.begin):
                runs[-1] = Run(tensor.shard, last.begin, tensor.end)
            else:
                runs.append(Run(tensor.shard, tensor.begin, tensor.end))
        return runs

    def header(self) -> bytes:
        """The safetensors header, padded with spaces so that blocks of the base can become blocks of this file.

        The data begin at a multiple of 8 bytes, and, counted in blocks of 4096 bytes, at the place that puts most of
        the copied bytes as far into a block as they are in the base. File systems that share blocks need that.
        """
        entries: dict[str, object] = {"__metadata__": {**self.metadata, "format": "pt"}}
        position = 0
        for move in self.moves:
            end = position + move.num_bytes
            entries[move.name] = {"dtype": move.source.dtype, "shape": move.shape, "data_offsets": (position, end)}
            position = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        wanted = self._wanted_place()
        text += b" " * (-(8 + len(text)) % 8 if wanted is None else (wanted - 8 - len(text)) % BLOCK_BYTES)
        return len(text).to_bytes(8, "little") + text

    def _wanted_place(self) -> int | None:
        places: Counter[int] = Counter()
        position = 0
        for run in self.runs():
            num_bytes = run.num_bytes if isinstance(run, Move) else run.end - run.begin
            if isinstance(run, Run) and num_bytes >= 2 * BLOCK_BYTES and (run.begin - position) % 8 == 0:
                places[(run.begin - position) % BLOCK_BYTES] += num_bytes
            position += num_bytes
        return max(places, key=lambda place: (places[place], -place), default=None)


def plan_shards(moves: Sequence[Move], max_shard_bytes: int, to_link: Iterable[Tensor] = ()) -> tuple[Shard, ...]:
    """Cut the moves, in their order, into files of at most ``max_shard_bytes`` (a larger tensor stands alone).

    Cut is where the moves go from one file of the base to another, so that each file can share the blocks of one (see
    :meth:`Shard.header`), and between in even parts. Where that takes half as many files again as there need be, or
    more, all is cut into as few and even parts as can be.

    Args:
        moves: All target tensors.
        max_shard_bytes: Bytes of tensors in a file.
        to_link: The tensors of the base, where its files may be used as they are: those whose tensors are all in the
            target under their own names come first, as links.
    """
    links = _whole_files(moves, to_link)
    linked = {move.name for group in links.values() for move in group}
    rest = [move for move in moves if move.name not in linked]
    groups: list[tuple[str | None, list[Move]]] = [*links.items()]
    parts = _cut_evenly(rest, max_shard_bytes)
    of_one_file = [list(part) for _, part in groupby(rest, lambda move: move.source.shard)]
    finer = [part for moves_of_file in of_one_file for part in _cut_evenly(moves_of_file, max_shard_bytes)]
    groups += [(None, _aligned(part)) for part in (finer if 2 * len(finer) < 3 * len(parts) else parts)]
    if len(groups) == 1:
        return (Shard(SINGLE_NAME, tuple(groups[0][1]), groups[0][0]),)
    names = (f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups)))
    return tuple(Shard(name, tuple(group), link) for name, (link, group) in zip(names, groups, strict=True))


def _whole_files(moves: Iterable[Move], tensors: Iterable[Tensor]) -> dict[str, list[Move]]:
    """Files of the base that the target can use as they are."""
    kept = {move.source: move for move in moves if move.make is None and move.name == move.source.name}
    files: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        files[tensor.shard].append(tensor)
    return {file: [kept[tensor] for tensor in held] for file, held in files.items() if all(t in kept for t in held)}


def _cut_evenly(moves: Sequence[Move], max_bytes: int) -> list[list[Move]]:
    sizes = [move.num_bytes for move in moves]
    ends = list(_cut(sizes, max_bytes))
    # The smallest limit that needs no more files makes them even.
    low, high = -(-sum(sizes) // max(len(ends), 1)), max_bytes
    while len(ends) > 1 and low < high - high // 1000:
        middle = (low + high) // 2
        if len(found := list(_cut(sizes, middle))) > len(ends):
            low = middle + 1
        else:
            ends, high = found, middle
    return [list(moves[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]


def _cut(sizes: Sequence[int], max_bytes: int) -> Iterator[int]:
    """Where each file ends if each is filled in turn."""
    filled = 0
    for position, size in enumerate(sizes):
        if filled and size and filled + size > max_bytes:
            yield position
            filled = 0
        filled += size
    if sizes:
        yield len(sizes)


def _aligned(moves: list[Move]) -> list[Move]:
    """Wide types first, so that each tensor begins at a multiple of its width; the order is kept within a width."""
    return sorted(moves, key=lambda move: -DTYPE_BITS[move.source.dtype])
