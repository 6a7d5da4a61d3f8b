"""Write safetensors shards by copying byte ranges in the kernel: constant memory, any dtype, bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from errno import EBADF, EINVAL, ENOSPC, ENOSYS, ENOTSOCK, EOPNOTSUPP, EPERM, EXDEV
from io import FileIO
from math import prod
from pathlib import Path
from typing import TypeAlias

from ..errors import CheckpointError
from ..files import write_json
from .reader import DTYPE_BITS, INDEX_NAME, SINGLE_NAME, Tensor

_CHUNK_BYTES = 8 << 20
_MAX_KERNEL_BYTES = 256 << 20  # one call to the kernel; keeps progress alive on slow disks
_SYNC_BYTES = 256 << 20  # a file goes to the disk in parts of about this size while the rest is copied
_UNSUPPORTED = frozenset({EBADF, EINVAL, ENOSYS, ENOTSOCK, EOPNOTSUPP, EPERM, EXDEV})

Progress = Callable[[int], object]
Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Move:
    """One target tensor: its name, and the tensor on disk that it is a copy of.

    Where it is no copy, ``make`` yields its bytes, of the source's type and of ``shape`` (the source's by default).
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


@dataclass(frozen=True)
class Shard:
    """One file to write, its tensors in the order of their bytes."""

    file: str
    moves: tuple[Move, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_data_bytes(self) -> int:
        return sum(move.num_bytes for move in self.moves)

    def header(self) -> bytes:
        """The safetensors header, padded so that the data begin at a multiple of 8 bytes."""
        entries: dict[str, object] = {"__metadata__": {**self.metadata, "format": "pt"}}
        position = 0
        for move in self.moves:
            end = position + move.num_bytes
            entries[move.name] = {"dtype": move.source.dtype, "shape": move.shape, "data_offsets": (position, end)}
            position = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def plan_shards(moves: Sequence[Move], max_shard_bytes: int) -> tuple[Shard, ...]:
    """Cut the moves, in their order, into shards of at most ``max_shard_bytes`` (a larger tensor stands alone)."""
    groups: list[list[Move]] = [[]]
    filled = 0
    for move in moves:
        if groups[-1] and filled + move.num_bytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(move)
        filled += move.num_bytes
    if len(groups) == 1:
        return (Shard(SINGLE_NAME, align(groups[0])),)
    names = (f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups)))
    return tuple(Shard(name, align(group)) for name, group in zip(names, groups, strict=True))


def align(moves: Sequence[Move]) -> tuple[Move, ...]:
    """Wide types first, so that each tensor begins at a multiple of its width; the order is kept within a width."""
    return tuple(sorted(moves, key=lambda move: -DTYPE_BITS[move.source.dtype]))


def write_shards(source: Path, shards: Sequence[Shard], folder: Path, progress: Progress | None = None) -> None:
    """Write the shards, and the index if there are several, into an existing folder, and sync each file to the disk.

    Args:
        source: The checkpoint folder that the moves read from.
        shards: What to write.
        folder: Where to write; the caller publishes it when it is whole.
        progress: Called with the number of bytes written since the last call.

    Raises:
        CheckpointError: A source file ended before its tensor did.
    """
    report = progress or (lambda num_bytes: None)
    # What was copied is synced to the disk while the rest is copied: copying is processor time, syncing is disk time.
    with ExitStack() as files, ThreadPoolExecutor(1) as syncing:
        inputs = {
            name: files.enter_context(open(source / name, "rb", buffering=0)).fileno()
            for name in sorted({move.source.shard for shard in shards for move in shard.moves})
        }
        pending = [future for shard in shards for future in _write_shard(shard, inputs, folder, report, syncing)]
        for done in pending:
            done.result()
    if len(shards) > 1:
        write_json(folder / INDEX_NAME, {
            "metadata": {
                "total_parameters": sum(move.num_elements for shard in shards for move in shard.moves),
                "total_size": sum(shard.num_data_bytes for shard in shards),
            },
            "weight_map": dict(sorted((move.name, shard.file) for shard in shards for move in shard.moves)),
        })  # fmt: skip


def _write_shard(
    shard: Shard, inputs: dict[str, int], folder: Path, report: Progress, syncing: ThreadPoolExecutor
) -> list[Future[None]]:
    """Write one shard; returns the syncs under way, the last of which covers the whole file."""
    path = folder / shard.file
    pending: list[Future[None]] = []
    unsynced = 0

    def copied(num_bytes: int) -> None:
        nonlocal unsynced
        unsynced += num_bytes
        if unsynced >= _SYNC_BYTES and (not pending or pending[-1].done()):
            pending.append(syncing.submit(_sync, path))
            unsynced = 0
        report(num_bytes)

    with open(path, "wb", buffering=0) as output:
        header = shard.header()
        if output.write(header) != len(header):
            raise OSError(ENOSPC, "the header was cut short")
        for run in _runs(shard.moves):
            if isinstance(run, Move):
                _write_made(run, output, copied)
            else:
                name, begin, end = run
                copy_range(inputs[name], begin, end, output.fileno(), copied, name)
    pending.append(syncing.submit(_sync, path))
    return pending


def _runs(moves: Sequence[Move]) -> list[tuple[str, int, int] | Move]:
    """Byte ranges to copy (source shard, begin, end), neighbours in the source joined to one, and tensors to make."""
    runs: list[tuple[str, int, int] | Move] = []
    for move in moves:
        tensor = move.source
        last = runs[-1] if runs else None
        if move.make is not None:
            runs.append(move)
        elif isinstance(last, tuple) and last[0] == tensor.shard and last[2] == tensor.begin:
            runs[-1] = (tensor.shard, last[1], tensor.end)
        else:
            runs.append((tensor.shard, tensor.begin, tensor.end))
    return runs


def _write_made(move: Move, output: FileIO, report: Progress) -> None:
    assert move.make is not None
    written = 0
    for buffer in move.make():
        rest = memoryview(buffer).cast("B")
        while rest:
            count = output.write(rest)
            written += count
            rest = rest[count:]
            report(count)
    assert written == move.num_bytes, f"{move.name}: {written} bytes made, {move.num_bytes} expected"


def copy_range(source: int, begin: int, end: int, target: int, report: Progress, name: str) -> None:
    """Append bytes ``[begin, end)`` of one file descriptor to another, by the fastest way the system has.

    ``copy_file_range`` (shares blocks where the file system can), then ``sendfile``, then plain reads and writes.

    Raises:
        CheckpointError: The source ends before ``end``.
    """
    for way in (_copy_file_range, _sendfile, _read_write):
        try:
            while begin < end:
                copied = way(source, begin, min(end - begin, _MAX_KERNEL_BYTES), target)
                if copied == 0 and way is not _read_write:
                    break  # some file systems give up without an error; reading tells whether the file has ended
                if copied == 0:
                    raise CheckpointError(f"{name} ended {end - begin} bytes early: it changed while it was read")
                begin += copied
                report(copied)
            else:
                return
        except OSError as error:
            if error.errno not in _UNSUPPORTED or way is _read_write:
                raise


def _copy_file_range(source: int, begin: int, count: int, target: int) -> int:
    try:
        return os.copy_file_range(source, target, count, offset_src=begin)
    except AttributeError:
        raise OSError(ENOSYS, "no copy_file_range on this system") from None


def _sendfile(source: int, begin: int, count: int, target: int) -> int:
    try:
        return os.sendfile(target, source, begin, count)
    except AttributeError:
        raise OSError(ENOSYS, "no sendfile on this system") from None


def _read_write(source: int, begin: int, count: int, target: int) -> int:
    os.lseek(source, begin, os.SEEK_SET)
    return os.write(target, os.read(source, min(count, _CHUNK_BYTES)))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
