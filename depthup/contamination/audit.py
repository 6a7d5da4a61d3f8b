"""Training files against test sets: what is kept, what is flagged, which test items were seen.

Blocks of rows go to workers and come back in order, so that any number of workers writes the same bytes. What was
written is kept across a stop: ``state.json`` says how far the files are whole, and the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError, OutputError
from ..files import publishing, write_json, write_text
from .benchmarks import Item, load_items
from .embeddings import Encoder, Nearness, long_enough
from .embeddings import identity_of as encoder_identity
from .index import Reference, make_reference
from .rows import Block, find_files, parse_row, read_blocks
from .rules import RULES, Rule
from .scanner import Leak, Scanner
from .tally import Tally

VERSION = 3  # of what the rules find, and of the blocks
_SECONDS = 5.0  # between states


@dataclass(frozen=True)
class Audit:
    """What is compared with what.

    Attributes:
        paths: Training files, or folders of them.
        against: Names of benchmarks.
        data_dir: Where the test sets lie.
        rules: Those by which a row is flagged.
        fields: Only the texts of these fields of a row; of all where none is given.
        shard: (i, n): the i-th of n parts of the list of files, from 1.
        embeddings: Checkpoint folder of a sentence encoder that looks, too, at rows in which nothing else was found.
    """

    paths: tuple[str, ...]
    against: tuple[str, ...]
    data_dir: Path
    rules: tuple[Rule, ...] = RULES
    fields: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)
    embeddings: Path | None = None

    def identity(self, files: Sequence[Path], items: Sequence[Item]) -> dict[str, Any]:
        """JSON that changes when the result may."""
        stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return {"version": VERSION, "against": list(self.against), "items": digest_of(items), "rules": list(self.rules),
                "fields": list(self.fields), "files": stamps,
                "embeddings": self.embeddings and encoder_identity(self.embeddings)}  # fmt: skip


def digest_of(items: Sequence[Item]) -> str:
    """SHA-256 of what the test sets ask and answer."""
    return hashlib.sha256(repr(list(items)).encode("utf-8", "surrogatepass")).hexdigest()


def shard_folder(out: Path, shard: tuple[int, int]) -> Path:
    """Where a shard is written: ``out`` itself where there is one only."""
    return out if shard[1] == 1 else out.with_name(f"{out.name}.shard-{shard[0]}-of-{shard[1]}")


def files_of_shard(files: Sequence[Path], shard: tuple[int, int]) -> Sequence[Path]:
    """The files of a part: neighbours, so that the parts one after the other are the whole in order."""
    number, of = shard
    return files[len(files) * (number - 1) // of : len(files) * number // of]


def run_audit(audit: Audit, out: Path, workers: int = 1, progress: Callable[[int], object] = lambda n: None,
              begin: Callable[[int], object] = lambda n: None) -> dict[str, Any]:  # fmt: skip
    """Write ``kept.jsonl``, ``flagged.jsonl``, ``items.jsonl`` and ``report.json``; returns the report.

    Args:
        audit: What is compared with what.
        out: The folder to make.
        workers: Processes; 1 works in this one.
        progress: Told the bytes of input that were done.
        begin: Told the bytes of input in all.

    Raises:
        DataError: A file or a test set cannot be read, or a row is no JSON: file and line are named.
        OutputError: ``out`` exists or cannot be written.
    """
    out = shard_folder(out, audit.shard)
    everything = find_files(audit.paths)
    files = files_of_shard(everything, audit.shard)
    with publishing(out, keep_partial=True) as partial:
        items = load_items(audit.against, audit.data_dir)
        identity = audit.identity(everything, items)
        reference = make_reference(items)
        encoded = _encoded(audit, identity, items, partial, progress, begin)
        begin(sum(path.stat().st_size for path in files))
        state = _State(partial, {**identity, "shard": list(audit.shard)})
        with state:
            blocks = itertools.chain.from_iterable(map(read_blocks, files))
            for block in itertools.islice(blocks, state.num_blocks):
                progress(block.file_bytes)
            for block, leaks in _scanned(blocks, reference, audit, workers, encoded):
                state.write(block, leaks)
                progress(block.file_bytes)
        report = _write_report(partial, state.tally, reference, identity)
        (partial / "state.json").unlink()
        for path in partial.glob("items-*.npy"):
            path.unlink()
    return report


def _encoded(audit: Audit, identity: dict[str, Any], items: Sequence[Item], folder: Path,
             progress: Callable[[int], object], begin: Callable[[int], object]) -> Path | None:  # fmt: skip
    """The file of the test questions' embeddings; a run that goes on finds it there."""
    if audit.embeddings is None:
        return None
    known_by = json.dumps([identity["items"], identity["embeddings"]])
    path = folder / f"items-{hashlib.sha256(known_by.encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        texts = [items[k].question for k in long_enough(items)]
        begin(sum(map(len, texts)))
        vectors = Encoder(audit.embeddings).embed(texts, progress)
        unfinished = path.with_suffix(".tmp")
        with open(unfinished, "wb") as file:
            np.save(file, vectors)
        unfinished.replace(path)
    return path


def _scanner_of(reference: Reference, audit: Audit, encoded: Path | None) -> Scanner:
    nearness = None
    if audit.embeddings is not None and encoded is not None:
        nearness = Nearness(Encoder(audit.embeddings), reference.items, np.load(encoded, mmap_mode="r"))
    return Scanner(reference, audit.rules, audit.against, nearness)


def merge_shards(out: Path) -> dict[str, Any]:
    """Make ``out`` of its shards, which all must be there; returns the report.

    Raises:
        DataError: There are none, some are missing, or they are not of one audit.
        OutputError: ``out`` exists or cannot be written.
    """
    found = sorted(out.parent.glob(f"{out.name}.shard-*-of-*"))
    if not found:
        raise DataError(f"there are no shards {out}.shard-1-of-N", next_step="run each with --shard I/N")
    number = int(found[0].name.rpartition("-")[2])
    folders = [shard_folder(out, (k + 1, number)) for k in range(number)]
    missing = [str(folder) for folder in folders if not (folder / "report.json").is_file()]
    if missing or len(found) > number:
        raise DataError(
            f"{missing[0]} is missing" if missing else f"shards of two audits lie beside {out}",
            next_step="run that shard" if missing else "remove those of the older one",
        )
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    if any(report["identity"] != reports[0]["identity"] for report in reports):
        raise DataError(f"the shards of {out} are not of the same files, test sets and rules",
                        next_step="run them again with the same arguments")  # fmt: skip
    tally = Tally()
    for report in reports:
        tally.add(Tally.from_json(report["tally"]))
    with publishing(out) as partial:
        for name in ("kept.jsonl", "flagged.jsonl"):
            with open(partial / name, "wb") as target:
                for folder in folders:
                    with open(folder / name, "rb") as source:
                        while piece := source.read(1 << 20):
                            target.write(piece)
        with open(folders[0] / "items.jsonl", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        items = [Item(line["benchmark"], line["item"], "", "") for line in lines]
        short = {name: table["items_too_short_to_find"] for name, table in reports[0]["benchmarks"].items()}
        unsearchable = [Item(name, "", "", "") for name, count in short.items() for _ in range(count)]
        return _report(partial, tally, items, unsearchable, reports[0]["identity"])


def _write_report(folder: Path, tally: Tally, reference: Reference, identity: dict[str, Any]) -> dict[str, Any]:
    return _report(folder, tally, reference.items, reference.unsearchable, identity)


def _report(folder: Path, tally: Tally, items: Sequence[Item], unsearchable: Sequence[Item],
            identity: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    write_text(folder / "items.jsonl", "".join(f"{line}\n" for line in tally.item_lines(items)))
    num_rows, num_flagged = tally.rows.total(), tally.flagged.total()
    report = {
        "num_rows": num_rows,
        "num_kept": num_rows - num_flagged,
        "num_flagged": num_flagged,
        "benchmarks": tally.tables(items, unsearchable),
        "files": {file: {"rows": n, "flagged": tally.flagged[file]} for file, n in tally.rows.items()},
        "identity": identity,
        "tally": tally.to_json(),
    }
    write_json(folder / "report.json", report)
    return report


class _State:
    """The two growing files, the counts, and how far they are whole."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder, self._identity = folder, identity
        self.num_blocks, self.tally = 0, Tally()
        sizes = {"kept.jsonl": 0, "flagged.jsonl": 0}
        try:
            saved = json.loads((folder / "state.json").read_text())
            if saved["identity"] == identity:
                self.tally = Tally.from_json(saved["tally"])
                self.num_blocks, sizes = saved["num_blocks"], saved["sizes"]
        except (OSError, ValueError, KeyError):
            pass  # the first run, or one that was stopped before its first state
        self._files: dict[str, BinaryIO] = {}
        for name, size in sizes.items():
            self._files[name] = open(folder / name, "ab")  # noqa: SIM115 (closed in __exit__)
            self._files[name].truncate(size)
            self._files[name].seek(size)
        self._saved_at = time.monotonic()

    def __enter__(self) -> _State:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._save()
        finally:
            for file in self._files.values():
                file.close()

    def write(self, block: Block, leaks: Sequence[Sequence[Leak]]) -> None:
        """Append the rows of the next block."""
        kept, flagged = [], []
        self.tally.rows[block.file] += len(block.rows)
        for number, row, found in zip(block.numbers, block.rows, leaks, strict=True):
            if found:
                self.tally.add_flagged(block.file, found)
                head = {"file": block.file, "number": number, "leaks": [leak.to_json() for leak in found]}
                text = json.dumps(head).encode()
                flagged.append(text[:-1] + b', "row": ' + row + b"}\n")
            else:
                kept.append(row)
        kept.append(b"")
        self._files["kept.jsonl"].write(b"\n".join(kept))
        self._files["flagged.jsonl"].write(b"".join(flagged))
        self.num_blocks += 1
        if time.monotonic() - self._saved_at > _SECONDS:
            self._save()

    def _save(self) -> None:
        sizes = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        write_json(self._folder / "state.json", {"identity": self._identity, "num_blocks": self.num_blocks,
                                                 "sizes": sizes, "tally": self.tally.to_json()})  # fmt: skip
        self._saved_at = time.monotonic()


# -- workers ----------------------------------------------------------------------------------------------------------

_scanner: Scanner | None = None  # of a worker process
_fields: tuple[str, ...] = ()


def _start_worker(reference: Reference, audit: Audit, encoded: Path | None) -> None:
    global _scanner, _fields
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    _scanner, _fields = _scanner_of(reference, audit, encoded), audit.fields


def _scan_in_worker(block: Block) -> list[list[Leak]]:
    assert _scanner is not None
    return scan_block(_scanner, block, _fields)


def scan_block(scanner: Scanner, block: Block, fields: Sequence[str] = ()) -> list[list[Leak]]:
    """The leaks of each row of a block.

    Raises:
        DataError: A row is no JSON; file and line are named.
    """
    rows = zip(block.numbers, block.rows, strict=True)
    return scanner.leaks_in_rows([parse_row(row, block.file, number) for number, row in rows], fields)


def _scanned(
    blocks: Iterator[Block], reference: Reference, audit: Audit, workers: int, encoded: Path | None
) -> Iterator[tuple[Block, list[list[Leak]]]]:
    if workers == 1:
        scanner = _scanner_of(reference, audit, encoded)
        for block in blocks:
            yield block, scan_block(scanner, block, audit.fields)
        return
    with _pool(workers, (reference, audit, encoded)) as pool:
        waiting: deque[tuple[Block, Future[list[list[Leak]]]]] = deque()
        for block in blocks:
            waiting.append((block, pool.submit(_scan_in_worker, block)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for block, future in waiting:
            yield block, future.result()


@contextmanager
def _pool(workers: int, told: tuple[Reference, Audit, Path | None]) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, told)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise OutputError(
            "a worker process was ended from outside, perhaps for want of memory",
            next_step="run the same command: it goes on; fewer --workers take less memory",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
