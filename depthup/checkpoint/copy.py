"""Copy and compare byte ranges of files: in the kernel where it can be done, in constant memory everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from errno import EBADF, EINVAL, ENOSYS, ENOTSOCK, EOPNOTSUPP, EPERM, EXDEV
from io import FileIO
from pathlib import Path
from typing import TypeAlias

from ..errors import CheckpointError

Progress = Callable[[int], object]
Buffer: TypeAlias = bytes | bytearray | memoryview

BLOCK_BYTES = 4096  # file systems that share blocks (btrfs, XFS) do so where source and target begin at whole blocks
_CHUNK_BYTES = 256 << 10  # larger ones were slower here: they leave the processor's cache
_MAX_KERNEL_BYTES = 64 << 20  # one call to the kernel: the longest that a stop has to wait for
_UNSUPPORTED = frozenset({EBADF, EINVAL, ENOSYS, ENOTSOCK, EOPNOTSUPP, EPERM, EXDEV})


def copy_range(source: int, begin: int, end: int, target: int, report: Progress, name: str) -> None:
    """Append bytes ``[begin, end)`` of one file descriptor to another, by the fastest way the system has.

    ``copy_file_range`` (shares blocks where the file system can), then ``sendfile``, then plain reads and writes.

    Args:
        source: Read from; no other thread may use it meanwhile.
        begin: First byte.
        end: One behind the last byte.
        target: Written to, at its present position.
        report: Called with the number of bytes after each call to the kernel; may raise to stop.
        name: The source's name, for the error.

    Raises:
        CheckpointError: The source ends before ``end``.
    """
    for way in (_copy_file_range, _sendfile, _read_write):
        try:
            while begin < end:
                # The first call ends with a block of the source, so that all others can share whole blocks.
                beyond = begin % BLOCK_BYTES
                most = BLOCK_BYTES - beyond if beyond and end - begin > 16 * BLOCK_BYTES else end - begin
                copied = way(source, begin, min(most, _MAX_KERNEL_BYTES), target)
                if copied == 0 and way is not _read_write:
                    break  # some file systems give up without an error; reading tells whether the file has ended
                if copied == 0:
                    raise ended_early(name, end - begin)
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


def ended_early(name: str, num_missing: int) -> CheckpointError:
    """The error for a file that lost bytes after its header was read."""
    return CheckpointError(
        f"{name} ended {num_missing} bytes early: it changed while it was read",
        next_step="let nothing write to the checkpoint, and run it again",
    )


def read_range(file: FileIO, begin: int, end: int) -> Iterator[bytearray]:
    """Bytes ``[begin, end)`` in pieces, each of which is valid until the next one is asked for.

    Raises:
        CheckpointError: The file ends before ``end``.
    """
    buffer = bytearray(min(_CHUNK_BYTES, end - begin))
    while begin < end:
        count = _fill(file, begin, buffer := _of_length(buffer, end - begin))
        if count < len(buffer):
            raise ended_early(Path(os.fsdecode(file.name)).name, end - begin - count)
        yield buffer
        begin += count


def first_difference(expected: Iterable[Buffer], file: FileIO, begin: int, report: Progress) -> int | None:
    """Where the bytes of a file from ``begin`` on depart from those expected: how many agree, or None if all do.

    A file that ends too soon departs at its end. ``report`` is called with the number of bytes that agree.
    """
    agreed = 0
    held, wanted = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
    for piece in expected:
        rest = memoryview(piece).cast("B")
        while rest:
            held = _of_length(held, len(rest))
            if isinstance(piece, bytearray) and len(piece) == len(held):
                part = piece
            else:
                part = wanted = _of_length(wanted, len(held))
                part[:] = rest[: len(held)]
            count = _fill(file, begin + agreed, held)
            if count < len(held) or held != part:  # of bytearrays this is one memcmp, of memoryviews it is slow
                return agreed + next((i for i in range(count) if held[i] != part[i]), count)
            agreed += count
            report(count)
            rest = rest[count:]
    return None


def _of_length(buffer: bytearray, wanted: int) -> bytearray:
    length = min(wanted, _CHUNK_BYTES)
    return buffer if len(buffer) == length else bytearray(length)


def _fill(file: FileIO, begin: int, buffer: bytearray) -> int:
    """Fill a buffer from a place in a file; returns the number of bytes, fewer only where the file ends."""
    file.seek(begin)
    count = file.readinto(buffer) or 0
    while 0 < count < len(buffer):
        more = file.read(len(buffer) - count)
        if not more:
            break
        buffer[count : count + len(more)] = more
        count += len(more)
    return count


def sync_file(path: Path) -> None:
    """Put a file's bytes on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
