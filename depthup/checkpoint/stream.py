"""Write a target while its base streams past: each byte crosses the network once, the disk holds the target alone.

Where every byte of the target's files will stand is known before the first arrives. So a tensor goes to its first
place as it comes in, and a layer that stands twice is copied from there. A journal in the unfinished folder says how
far each source file has got, with the SHA-256 of all bytes up to there; a run that goes on reads them again and
believes only what has this checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import ENOSPC
from functools import partial
from io import FileIO
from pathlib import Path

from ..errors import CheckpointError
from ..files import write_json
from .answers import Checksum
from .copy import Progress, copy_range, read_range
from .listing import RemoteModel
from .parallel import run_all
from .reader import Checkpoint
from .remote import JOURNAL_NAME, fetch_carried
from .shards import Move, Shard
from .writer import write_index

_NUM_CONNECTIONS = 4  # source files that are read at the same time
_SAVE_BYTES = 64 << 20  # of one source file, between two entries in the journal


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes ``[begin, end)`` of a source file, whose first place is at ``offset`` of the target's file."""

    begin: int
    end: int
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Copy:
    """A tensor that stands once more: ``num_bytes`` from ``source_offset`` of one target file to another place."""

    name: str
    source_file: str
    source_offset: int
    file: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Layout:
    """Where all bytes go; parts and copies by source file, parts in the order of their bytes."""

    parts: Mapping[str, tuple[Part, ...]]
    copies: Mapping[str, tuple[Copy, ...]]
    made: tuple[tuple[Move, str, int], ...]  # tensors that are no copies, with file and offset

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Layout:
        """The layout of the target's shards."""
        parts: dict[str, list[Part]] = defaultdict(list)
        copies: dict[str, list[Copy]] = defaultdict(list)
        made: list[tuple[Move, str, int]] = []
        first: dict[tuple[str, int], Part] = {}
        for shard in shards:
            offset = len(shard.header())
            for move in shard.moves:
                tensor, num_bytes = move.source, move.num_bytes
                home = first.get((tensor.shard, tensor.begin))
                if move.make is not None:
                    made.append((move, shard.file, offset))
                elif num_bytes and home is None:
                    home = Part(tensor.begin, tensor.end, shard.file, offset)
                    first[tensor.shard, tensor.begin] = home
                    parts[tensor.shard].append(home)
                elif num_bytes and home is not None:
                    copies[tensor.shard].append(Copy(move.name, home.file, home.offset, shard.file, offset, num_bytes))
                offset += num_bytes
        ordered = {shard: tuple(sorted(found, key=lambda part: part.begin)) for shard, found in parts.items()}
        return cls(ordered, {shard: tuple(found) for shard, found in copies.items()}, tuple(made))

    def cut(self, shard: str, begin: int, end: int) -> Iterator[tuple[int, int, Part | None]]:
        """Bytes ``[begin, end)`` of a source file, cut where parts begin and end; None: they have no place."""
        parts = self.parts[shard]
        index = max(0, bisect_right(parts, begin, key=lambda part: part.begin) - 1)
        while begin < end:
            while index < len(parts) and parts[index].end <= begin:
                index += 1
            part = parts[index] if index < len(parts) else None
            if part is not None and begin < part.begin:
                stop, part = min(end, part.begin), None
            else:
                stop = end if part is None else min(end, part.end)
            yield begin, stop, part
            begin = stop


class Journal:
    """How far each source file has got: position, and SHA-256 of the bytes before it; on the disk after the bytes."""

    def __init__(self, path: Path, identity: str, entries: dict[str, tuple[int, str]]) -> None:
        self._path, self._identity, self._entries = path, identity, entries
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, identity: str, keep: Sequence[str]) -> Journal:
        """The journal of an unfinished folder. What another surgery left there is removed, and all but ``keep``."""
        path, entries = folder / JOURNAL_NAME, {}
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            match json.loads(path.read_bytes()):
                case {"identity": str(of), "sources": dict(found)} if of == identity:
                    entries = {shard: (int(position), str(digest)) for shard, (position, digest) in found.items()}
        kept = {JOURNAL_NAME, *keep} if entries else set()
        for entry in folder.iterdir():
            if entry.name not in kept:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        return cls(path, identity, entries)

    def find(self, shard: str) -> tuple[int, str] | None:
        """Position and digest, or None."""
        return self._entries.get(shard)

    def save(self, shard: str, position: int, digest: str) -> None:
        """Note how far a source file has got; its bytes must be on the disk."""
        self._write({shard: (position, digest)})

    def drop(self, shard: str) -> None:
        """Forget a source file."""
        with self._lock:
            self._entries.pop(shard, None)
        self._write({})

    def _write(self, entries: Mapping[str, tuple[int, str]]) -> None:
        with self._lock:
            self._entries.update(entries)
            write_json(self._path, {"identity": self._identity, "sources": self._entries})


@dataclass(frozen=True)
class _Streaming:
    """What the threads of one run share."""

    remote: RemoteModel
    layout: Layout
    folder: Path
    journal: Journal
    syncing: ThreadPoolExecutor


def stream_target(
    base: Checkpoint, shards: Sequence[Shard], folder: Path, progress: Progress | None = None
) -> dict[str, str]:
    """Write the shards and the index into an existing folder, and sync each file to the disk.

    Args:
        base: A checkpoint on a server. What goes along with its weights is fetched first, into its own folder.
        shards: What to write; tensors that are no copies must be such as can be made without the base's weights.
        folder: Where to write; what an earlier run of the same surgery left there is verified and used.
        progress: Called with the number of target bytes written since the last call, from the threads, by one at a
            time.

    Returns:
        The SHA-256 of each source file that was read.

    Raises:
        CheckpointError: A file cannot be had, is not what its server declares, or changed meanwhile.
    """
    remote = base.remote
    assert remote is not None
    remote.web.start()
    fetch_carried(base)
    layout = Layout.of(shards)
    journal = Journal.open(folder, _identity(remote, shards), [shard.file for shard in shards])
    for shard in shards:
        _prepare(folder, shard)
    sources = sorted(layout.parts)
    with ThreadPoolExecutor(1) as syncing:
        run = _Streaming(remote, layout, folder, journal, syncing)
        jobs = [partial(_bring, run, source) for source in sources]
        digests = run_all(jobs, progress, _NUM_CONNECTIONS, wake=remote.web.stop)
    run_all([partial(_make, layout, folder)], progress)
    for shard in shards:
        with open(folder / shard.file, "r+b") as output:
            os.fsync(output.fileno())
    write_index(shards, folder)
    return dict(zip(sources, digests, strict=True))


def _identity(remote: RemoteModel, shards: Sequence[Shard]) -> str:
    """What must be equal for a run to go on with the bytes of another: the base's version, the target's layout."""
    digest = hashlib.sha256(repr((remote.name, remote.revision)).encode())
    for source, header in sorted(remote.headers.items()):
        file = remote.files[source]
        version = (file.name, file.num_bytes, file.sha256, file.git_sha1, file.version)
        digest.update(repr(version).encode() + header)
    for shard in shards:
        origins = [(move.source.shard, move.source.begin, move.make is None) for move in shard.moves]
        digest.update(shard.file.encode() + shard.header() + repr(origins).encode())
    return digest.hexdigest()


def _prepare(folder: Path, shard: Shard) -> None:
    """A target file of its full length, with its header; bytes that are there stay."""
    path, header = folder / shard.file, shard.header()
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.write(header)
        file.truncate(len(header) + shard.num_data_bytes)


# -- one source file ---------------------------------------------------------------------------------------------------


def _bring(run: _Streaming, shard: str, report: Progress) -> str:
    """Stream one source file into its places, verify it, and make the further copies; returns its SHA-256."""
    parts, copies = run.layout.parts[shard], run.layout.copies.get(shard, ())
    names = {part.file for part in parts} | {copy.file for copy in copies}
    with contextlib.ExitStack() as files:
        outputs = {name: files.enter_context(open(run.folder / name, "r+b", buffering=0)) for name in sorted(names)}
        checksum, position = _go_on(run, shard, outputs, report)
        position = _receive(run, shard, outputs, checksum, position, report)
        try:
            checksum.require_declared()
        except CheckpointError:
            run.journal.drop(shard)
            raise
        for copy in copies:
            with open(run.folder / copy.source_file, "rb", buffering=0) as source:
                target, begin = outputs[copy.file].fileno(), copy.source_offset
                os.lseek(target, copy.offset, os.SEEK_SET)
                copy_range(source.fileno(), begin, begin + copy.num_bytes, target, report, copy.name)
        run.syncing.submit(_save, run, shard, outputs, position, checksum.sha256).result()
    return checksum.sha256


def _go_on(run: _Streaming, shard: str, outputs: Mapping[str, FileIO], report: Progress) -> tuple[Checksum, int]:
    """Read again what an earlier run wrote; returns the checksum, and where to go on (after the header if nowhere)."""
    file, header = run.remote.files[shard], run.remote.headers[shard]
    checksum = Checksum(file)
    checksum.update(header)
    position, digest = run.journal.find(shard) or (0, "")
    if len(header) < position <= file.num_bytes:
        num_bytes = 0
        for begin, end, part in run.layout.cut(shard, len(header), position):
            pieces: Iterable[bytes | bytearray]
            if part is None:  # these have no place in the target
                pieces = run.remote.web.pieces(file, begin, end)
            else:
                place = part.offset + begin - part.begin
                pieces = read_range(outputs[part.file], place, place + end - begin)
                num_bytes += end - begin
            for piece in pieces:
                checksum.update(piece)
                report(0)  # where a stop is heard
        if checksum.sha256 == digest:
            report(num_bytes)
            return checksum, position
        checksum = Checksum(file)
        checksum.update(header)
    return checksum, len(header)


def _receive(
    run: _Streaming,
    shard: str,
    outputs: Mapping[str, FileIO],
    checksum: Checksum,
    position: int,
    report: Progress,
) -> int:
    """Write the bytes from ``position`` to the end of a source file to their first places; returns the end.

    However it ends, the journal knows how far it got.
    """
    file = run.remote.files[shard]
    saved, saving = position, None
    try:
        for piece in run.remote.web.pieces(file, position, file.num_bytes):
            for begin, end, part in run.layout.cut(shard, position, position + len(piece)):
                if part is not None:
                    data = memoryview(piece)[begin - position : end - position]
                    _write(outputs[part.file], part.offset + begin - part.begin, data)
                    report(end - begin)
            checksum.update(piece)
            position += len(piece)
            if position - saved >= _SAVE_BYTES and (saving is None or saving.done()):
                if saving is not None:
                    saving.result()  # what the disk refused is not to be missed
                saving = run.syncing.submit(_save, run, shard, outputs, position, checksum.sha256)
                saved = position
    except BaseException:
        # What has arrived counts, unless the disk is the trouble.
        with contextlib.suppress(OSError):
            run.syncing.submit(_save, run, shard, outputs, position, checksum.sha256).result()
        raise
    if saving is not None:
        saving.result()
    return position


def _save(run: _Streaming, shard: str, outputs: Mapping[str, FileIO], position: int, digest: str) -> None:
    for output in outputs.values():
        os.fsync(output.fileno())
    run.journal.save(shard, position, digest)


def _write(file: FileIO, offset: int, data: memoryview) -> None:
    file.seek(offset)
    while data:
        count = file.write(data)
        if not count:
            raise OSError(ENOSPC, "a write was cut short")
        data = data[count:]


def _make(layout: Layout, folder: Path, report: Progress) -> None:
    """Write the tensors that are no copies."""
    for move, name, offset in layout.made:
        assert move.make is not None
        with open(folder / name, "r+b", buffering=0) as file:
            for buffer in move.make():
                data = memoryview(buffer).cast("B")
                _write(file, offset, data)
                offset += len(data)
                report(len(data))
