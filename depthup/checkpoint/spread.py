"""Write shards whose tensors are computed: several threads a file, each tensor to the place that its header gives it.

Where reading, computing and writing take turns within a thread, the threads overlap them; what is written goes to the
disk meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from errno import ENOSPC
from functools import partial
from pathlib import Path
from threading import Semaphore

from .copy import Buffer, Progress, copy_range
from .parallel import run_all
from .shards import Move, Shard
from .writer import made_bytes, write_index

_SYNC_BYTES = 256 << 20  # so much is written between two requests to put it on the disk


class _Syncing:
    """Puts open files on the disk from a thread of its own: computing is processor time, this is disk time."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.descriptors: list[int] = []
        self._pending: Future[None] | None = None
        self._unsynced = 0

    def count(self, num_bytes: int) -> None:
        """Take note of what was written; by one thread at a time."""
        self._unsynced += num_bytes
        if self._pending and self._pending.done():
            self._pending.result()  # raises what the sync raised
            self._pending = None
        if self._unsynced >= _SYNC_BYTES and not self._pending:
            self._pending = self.pool.submit(self.all)
            self._unsynced = 0

    def all(self) -> None:
        for descriptor in self.descriptors:
            os.fsync(descriptor)


def write_spread(
    source: Path,
    shards: Sequence[Shard],
    folder: Path,
    progress: Progress | None = None,
    *,
    one_at_a_time: bool = False,
    num_threads: int | None = None,
) -> None:
    """Write the shards, and the index if there are several, into an existing folder, and sync each file to the disk.

    Args:
        source: The checkpoint folder that tensors which are copies are read from.
        shards: What to write.
        folder: Where to write; the caller publishes it when it is whole.
        progress: Called with the number of bytes written since the last call, from the threads, by one at a time.
        one_at_a_time: Make one tensor at a time: each may need its size in memory.
        num_threads: Tensors written at a time; by default one for each core, up to four.

    Raises:
        CheckpointError: A source file ended before its tensor did.
    """
    making = Semaphore(1 if one_at_a_time else len(shards) + 64)
    with ExitStack() as files, ThreadPoolExecutor(1) as pool:
        syncing = _Syncing(pool)

        def written(num_bytes: int) -> None:
            syncing.count(num_bytes)
            if progress is not None:
                progress(num_bytes)

        jobs = []
        for shard in shards:
            path, header = folder / shard.file, shard.header()
            output = files.enter_context(open(path, "xb", buffering=0)).fileno()
            os.truncate(output, len(header) + shard.num_data_bytes)
            _write_at(output, header, 0)
            syncing.descriptors.append(output)
            place = len(header)
            for move in shard.moves:
                if move.make is None:
                    jobs.append((move.num_bytes, partial(_copy, source, move, path, place)))
                else:
                    jobs.append((move.num_bytes, partial(_make, move, output, place, making)))
                place += move.num_bytes
        # The longest first, so that no thread is left alone with one at the end.
        run_all([job for _, job in sorted(jobs, key=lambda job: -job[0])], written, num_threads)
        syncing.all()
    write_index(shards, folder)


def _make(move: Move, output: int, place: int, making: Semaphore, report: Progress) -> None:
    with making:
        for buffer in made_bytes(move):
            _write_at(output, buffer, place)
            place += len(buffer)
            report(len(buffer))


def _copy(source: Path, move: Move, path: Path, place: int, report: Progress) -> None:
    tensor = move.source
    with open(source / tensor.shard, "rb", buffering=0) as file, open(path, "r+b", buffering=0) as output:
        output.seek(place)
        copy_range(file.fileno(), tensor.begin, tensor.end, output.fileno(), report, tensor.shard)


def _write_at(output: int, buffer: Buffer, place: int) -> None:
    rest = memoryview(buffer)
    while rest:
        count = os.pwrite(output, rest, place)
        if not count:
            raise OSError(ENOSPC, "a write was cut short")
        rest, place = rest[count:], place + count
