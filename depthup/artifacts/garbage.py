"""What lies in a store and nothing needs any more: found by looking, removed so that a kill leaves nothing half there.

A result goes by a rename to a hidden name first: whatever is killed in between, a folder with a record is whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .record import read_record
from .store import LATEST, Store

CACHE_DAYS = 30.0  # age from which tokens, references and answers go, where no other is asked for
_RESULT = re.compile(r"[0-9a-f]{12}")
_PARTIAL = re.compile(r"\.[0-9a-f]{12}\.partial")
_GONE = re.compile(r"\.[0-9a-f]{12}\.gone")

What = Literal["result", "leftover", "tokens", "reference", "answers"]
_CACHES: tuple[What, ...] = ("tokens", "reference", "answers")


@dataclass(frozen=True)
class Garbage:
    """Something that may go.

    Attributes:
        path: Folder or file.
        what: ``result`` (no stage refers to it), ``leftover`` (of a stopped run), ``tokens``,
            ``reference`` (log-probabilities of preference pairs), ``answers``.
        num_bytes: What the disk gets back: files that have another name elsewhere (hard links) count nothing.
        days: Since it was written or, for tokens and answers, used.
    """

    path: Path
    what: What
    num_bytes: int
    days: float


def find_garbage(store: Store, needed: Collection[Path], keep_days: float | None = None) -> list[Garbage]:
    """Everything in a store that may go.

    Args:
        store: Looked through; what depthup did not put there is passed over.
        needed: Folders of results, and of runs that go on, that stay.
        keep_days: What was written or used within so many days stays. Not said: results and leftovers go whatever
            their age, the rest after :data:`CACHE_DAYS`.
    """
    found = []
    for what, path in _candidates(store, needed):
        days = max(0.0, (time.time() - _used(path)) / 86400)
        if days >= (CACHE_DAYS if what in _CACHES else 0) if keep_days is None else days >= keep_days:
            found.append(Garbage(path, what, freed_bytes(path), days))
    return found


def _candidates(store: Store, needed: Collection[Path]) -> Iterator[tuple[What, Path]]:
    for stage in sorted(path for path in store.root.glob("*") if path.is_dir() and not path.is_symlink()):
        if stage.name == "answers":
            yield from (("answers", path) for path in sorted(stage.glob("*.sqlite")))
        for path in sorted(stage.iterdir()):
            if path.is_symlink() or not path.is_dir() or path in needed:
                continue
            if _PARTIAL.fullmatch(path.name) or _GONE.fullmatch(path.name):
                yield "leftover", path
            elif _RESULT.fullmatch(path.name):
                if stage.name == "tokens":
                    yield "tokens", path
                elif stage.name == "reference":  # log-probabilities of preference pairs
                    yield "reference", path
                elif (record := read_record(path)) and record.fingerprint.startswith(path.name):
                    yield "result", path
    yield from (("leftover", path) for path in sorted(store.root.glob(".recipes/*.json")))


def remove(garbage: Iterable[Garbage]) -> Iterator[Garbage]:
    """Remove each, and yield it when it is gone. Call it within :meth:`Store.cleaning`."""
    for each in garbage:
        path = each.path
        if path.is_dir():
            gone = path if _GONE.fullmatch(path.name) else path.with_name(f".{path.name.strip('.')[:12]}.gone")
            if gone != path:
                shutil.rmtree(gone, ignore_errors=True)
                os.rename(path, gone)
            shutil.rmtree(gone)
        else:
            for end in ("", "-journal", "-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
        latest = path.parent / LATEST
        if latest.is_symlink() and not latest.exists():
            latest.unlink()
        with contextlib.suppress(OSError):  # only where nothing is left in it
            path.parent.rmdir()
        yield each


def freed_bytes(path: Path) -> int:
    """Bytes of the disk that removing a file or folder gives back."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if not each.is_dir() or each.is_symlink()]
    states = [each.lstat() for each in files]
    return sum(state.st_blocks * 512 for state in states if state.st_nlink == 1)


def _used(path: Path) -> float:
    """When a folder or file was written or used last, in seconds since 1970: the newest time of anything in it."""
    return max(each.lstat().st_mtime for each in (path, *(path.rglob("*") if path.is_dir() else ())))
