"""Rows as they come, text and all, for what sorts rows into files: nothing may be lost, and nothing changed.

Of ``.jsonl`` the line itself is kept; of ``.json`` and ``.parquet`` the row as one line of JSON.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .sources import Files, Row

_MARK = b"\xef\xbb\xbf"  # that some programs put before UTF-8
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row.

    Attributes:
        file: The file's path as it was given, or under the folder that was given.
        number: Of the row, from 1; of a line in ``.jsonl``.
        text: One line of JSON, without its end; where ``problem`` is set, what stood there.
        value: What it says.
        problem: Why it says nothing; empty if it is JSON.
    """

    file: Path
    number: int
    text: str
    value: Any = None
    problem: str = ""

    @property
    def row(self) -> Row:
        """The row as readers of formats take it."""
        return Row(f"{self.file.name}:{self.number}", f"row {self.number} of {self.file}", self.value)


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Every row of a ``.jsonl``, ``.json`` (each also with ``.gz``) or ``.parquet`` file; empty lines are no rows.

    Raises:
        DataError: The file is missing or unreadable as a whole. A line that is no JSON is a row with its problem.
    """
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        yield from _lines(path)
        return
    for row in Files((str(path),)).rows():
        yield RawRow(path, int(row.name.rpartition(":")[2]), json_line(row.value), row.value)


def json_line(value: Any) -> str:
    """The value as one line of JSON that UTF-8 can hold: half a surrogate pair stands as an escape."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if text.isascii() or not _HALF.search(text) else json.dumps(value, default=str)


# What depthup writes into a folder beside rows that are to be used. Named outright, such a file is read.
BESIDES = frozenset({
    "manifest.json", "report.json", "journal.jsonl", "rejected.jsonl", "failed.jsonl", "flagged.jsonl", "bad.jsonl",
})  # fmt: skip


def files_of(paths: list[str]) -> list[Path]:
    """The files that are named, and those of the folders that are named, save ``BESIDES``, each once.

    Raises:
        DataError: One is missing, or of no kind that is read.
    """
    named = {Path(path) for path in paths}
    found = dict.fromkeys(path for path in Files(tuple(paths)).files() if path in named or path.name not in BESIDES)
    if not found:
        raise DataError(f"there are no rows in {', '.join(paths)}", allowed=".jsonl, .json or .parquet files of rows")
    return list(found)


def _lines(path: Path) -> Iterator[RawRow]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parsed(path, number, line.removeprefix(_MARK if number == 1 else b"").rstrip(b"\r\n"))
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}", next_step="repair the file, or take it out") from error


def _parsed(path: Path, number: int, line: bytes) -> RawRow:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return RawRow(path, number, line.decode(errors="backslashreplace"), problem=f"no UTF-8: {error.reason}")
    try:
        return RawRow(path, number, text, json.loads(text))
    except (ValueError, RecursionError) as error:
        return RawRow(path, number, text, problem=f"no JSON: {error}")
