"""Write safetensors shards by copying byte ranges in the kernel: constant memory, any dtype, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from errno import EACCES, EMLINK, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EXDEV
from functools import partial
from io import FileIO
from pathlib import Path
from threading import Semaphore

from ..errors import CheckpointError, OutputError
from ..files import write_json
from .copy import Buffer, Progress, copy_range, first_difference, read_range, sync_file
from .parallel import run_all
from .reader import INDEX_NAME
from .shards import Move, Run, Shard, plan_shards

__all__ = ["Buffer", "Move", "Progress", "Shard", "copy_range", "plan_shards", "write_shards"]

_SYNC_BYTES = 256 << 20  # a file goes to the disk in parts of about this size while the rest is copied
_NO_LINKS = frozenset({EACCES, EMLINK, ENOSYS, EOPNOTSUPP, EPERM, EXDEV})


@dataclass(frozen=True)
class _Desk:
    """What the threads that write share."""

    source: Path
    folder: Path
    syncing: ThreadPoolExecutor  # copying is processor time, syncing is disk time
    making: Semaphore  # so many tensors are made at a time: one, where a tensor may need its size in memory
    synced: list[Future[None]] = field(default_factory=list)


def write_shards(
    source: Path,
    shards: Sequence[Shard],
    folder: Path,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    num_threads: int | None = None,
    num_making: int = 1,
) -> tuple[str, ...]:
    """Write the shards, and the index if there are several, into an existing folder, and sync each file to the disk.

    Args:
        source: The checkpoint folder that the moves read from.
        shards: What to write; links first, so that nothing is copied where links are refused.
        folder: Where to write; the caller publishes it when it is whole.
        progress: Called with the number of bytes done since the last call, from the threads, by one at a time;
            the number is negative where bytes that were thought done are not.
        resume: Keep the files of these names in ``folder`` that hold what they should, byte for byte.
        num_threads: Files written at a time; by default one for each core, up to four.
        num_making: Tensors that are no copies are made so many at a time.

    Returns:
        The names of the files that were kept.

    Raises:
        CheckpointError: A source file ended before its tensor did, or was written to meanwhile.
        OutputError: A file of the base cannot be linked.
    """
    for shard in shards:
        if shard.link:
            _link(source / shard.link, folder / shard.file)
            if progress:
                progress(shard.num_data_bytes)
    with ThreadPoolExecutor(1) as syncing:
        desk = _Desk(source, folder, syncing, Semaphore(num_making))
        try:
            longest_first = sorted(shards, key=lambda shard: -shard.num_data_bytes)
            jobs = [partial(_finish_shard, desk, shard, resume) for shard in longest_first if not shard.link]
            kept = run_all(jobs, progress, num_threads)
            for done in desk.synced:
                done.result()
        except BaseException:
            syncing.shutdown(cancel_futures=True)
            raise
    write_index(shards, folder)
    return tuple(sorted(file for file in kept if file))


def write_index(shards: Sequence[Shard], folder: Path) -> None:
    """Write the index into the shards' folder, if there are several."""
    if len(shards) > 1:
        write_json(folder / INDEX_NAME, {
            "metadata": {
                "total_parameters": sum(move.num_elements for shard in shards for move in shard.moves),
                "total_size": sum(shard.num_data_bytes for shard in shards),
            },
            "weight_map": dict(sorted((move.name, shard.file) for shard in shards for move in shard.moves)),
        })  # fmt: skip


def _finish_shard(desk: _Desk, shard: Shard, resume: bool, report: Progress) -> str | None:
    """Write one shard, unless it is there; returns its name if it was kept."""
    path = desk.folder / shard.file
    with ExitStack() as files:
        inputs = {
            name: files.enter_context(open(desk.source / name, "rb", buffering=0))
            for name in sorted({run.shard for run in shard.runs() if isinstance(run, Run)})
        }
        if resume and _is_written(desk, shard, path, inputs, report):
            desk.synced.append(desk.syncing.submit(sync_file, path))
            return shard.file
        before = {name: _state(file) for name, file in inputs.items()}
        path.unlink(missing_ok=True)  # it may be a link to a file of the base: never write into it
        with open(path, "xb", buffering=0) as output:
            _write_shard(desk, shard, inputs, output, report)
        for name, file in inputs.items():
            if _state(file) != before[name]:
                raise CheckpointError(
                    f"{name} was written to while it was read", next_step="let nothing write to the base; run it again"
                )
    return None


def _state(file: FileIO) -> tuple[int, int]:
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns


def _write_shard(desk: _Desk, shard: Shard, inputs: dict[str, FileIO], output: FileIO, report: Progress) -> None:
    path = desk.folder / shard.file
    unsynced = 0
    pending: Future[None] | None = None

    def copied(num_bytes: int) -> None:
        nonlocal unsynced, pending
        unsynced += num_bytes
        if pending and pending.done():
            pending.result()  # raises what the sync raised
            pending = None
        if unsynced >= _SYNC_BYTES and not pending:
            pending = desk.syncing.submit(sync_file, path)
            desk.synced.append(pending)
            unsynced = 0
        report(num_bytes)

    _write_all(output, shard.header())
    for run in shard.runs():
        if isinstance(run, Run):
            copy_range(inputs[run.shard].fileno(), run.begin, run.end, output.fileno(), copied, run.shard)
            continue
        with desk.making:
            for buffer in made_bytes(run):
                _write_all(output, buffer)
                copied(len(buffer))
    desk.synced.append(desk.syncing.submit(sync_file, path))


def _is_written(desk: _Desk, shard: Shard, path: Path, inputs: dict[str, FileIO], report: Progress) -> bool:
    """Whether a file of its own is there with the bytes that the shard should have."""
    if not path.is_file():
        return False
    header = shard.header()
    with open(path, "rb", buffering=0) as file:
        state = os.fstat(file.fileno())
        if (state.st_size, state.st_nlink) != (shard.num_written_bytes, 1) or file.read(len(header)) != header:
            return False
        compared = 0

        def count(num_bytes: int) -> None:
            nonlocal compared
            compared += num_bytes
            report(num_bytes)

        for run in shard.runs():
            begin = len(header) + compared
            if isinstance(run, Run):
                differs = first_difference(read_range(inputs[run.shard], run.begin, run.end), file, begin, count)
            else:
                with desk.making:
                    differs = first_difference(made_bytes(run), file, begin, count)
            if differs is not None:
                report(-compared)
                return False
    return True


def made_bytes(move: Move) -> Iterator[memoryview]:
    """The bytes of a tensor that is no copy."""
    assert move.make is not None
    num_bytes = 0
    for buffer in move.make():
        view = memoryview(buffer).cast("B")
        num_bytes += len(view)
        yield view
    if num_bytes != move.num_bytes:
        raise CheckpointError(
            f"{move.name} was made with {num_bytes} bytes, not {move.num_bytes}",
            next_step=f"if nothing writes to {move.source.shard} meanwhile, this is a mistake in depthup: tell us",
        )


def _write_all(output: FileIO, buffer: Buffer) -> None:
    rest = memoryview(buffer)
    while rest:
        count = output.write(rest)
        if not count:
            raise OSError(ENOSPC, "a write was cut short")
        rest = rest[count:]


def _link(path: Path, place: Path) -> None:
    """Give a file of the base a second name (in a cache of links: the file behind the link)."""
    path = path.resolve()
    if place.exists() and place.samefile(path):
        return
    place.unlink(missing_ok=True)
    try:
        os.link(path, place)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise OutputError(
            f"the system refuses a hard link to {path.name} of the base: {error.strerror}",
            allowed="an output on the same file system as the base, by the owner of its files",
            next_step="choose an output beside the base, or leave out --link: its bytes are copied then",
        ) from error
