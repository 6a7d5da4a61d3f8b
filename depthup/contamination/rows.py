"""Rows of training files in blocks, as bytes: so that they are written as they came, and cheaply sent to a worker."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError

BLOCK_BYTES = 1 << 20
ALLOWED = ".jsonl, .json, .txt (each also with .gz), .parquet, or a folder of them"


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one file, in their order.

    Attributes:
        file: The file.
        numbers: Number of each row from 1; in JSON lines, of its line.
        rows: Each row as JSON, without a line end: the bytes of the file in JSON lines.
        file_bytes: How much of the file was read for them.
    """

    file: str
    numbers: tuple[int, ...]
    rows: tuple[bytes, ...]
    file_bytes: int


def find_files(paths: Sequence[str]) -> list[Path]:
    """The files of some paths; of folders those of a known kind, by name, in subfolders too.

    Raises:
        DataError: A path is no such file, or there is none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(child for child in path.rglob("*") if child.is_file() and _kind(child))
        elif path.is_file() and _kind(path):
            found.append(path)
        else:
            raise DataError(f"cannot read {path}" if path.exists() else f"there is no file {path}", allowed=ALLOWED)
    if not found:
        raise DataError(f"no files in {', '.join(paths)}", allowed=ALLOWED)
    twice = next((path for path in found if found.count(path) > 1), None) if len(set(found)) < len(found) else None
    if twice is not None:
        raise DataError(f"{twice} is given twice", next_step="name each file, or its folder, once")
    return found


def read_blocks(path: Path) -> Iterator[Block]:
    """The rows of a file in blocks of some megabyte; the same blocks each time.

    Raises:
        DataError: The file cannot be read; it is named.
    """
    done = 0
    try:
        for numbers, rows, at in _groups(path):
            yield Block(str(path), tuple(numbers), tuple(rows), at - done)
            done = at
        yield Block(str(path), (), (), max(path.stat().st_size - done, 0))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}", next_step="repair the file, or leave it out") from error


def parse_row(row: bytes, file: str, number: int) -> Any:
    """The value of a row.

    Raises:
        DataError: It is no JSON; file and line are named.
    """
    try:
        return json.loads(row)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"line {number} of {file} is no JSON: {error}", next_step="repair the line, or take it out"
        ) from error


def _kind(path: Path) -> str | None:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    return kind if kind in ("jsonl", "json", "txt") or path.name.endswith(".parquet") else None


def _groups(path: Path) -> Iterator[tuple[list[int], list[bytes], int]]:
    """(numbers from 1, rows, position in the file) of some megabyte of rows after the other."""
    kind = _kind(path)
    if kind == "parquet":
        yield from _grouped(_parquet_rows(path), 0)
        return
    with open(path, "rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        if kind == "txt":
            yield [1], [_as_json({"text": file.read().decode("utf-8", "replace")})], raw.tell()
        elif kind == "json":
            value = json.load(file)
            yield from _grouped(map(_as_json, value if isinstance(value, list) else [value]), raw.tell())
        else:
            first = 1
            while lines := file.readlines(BLOCK_BYTES):
                rows = [line.rstrip(b"\r\n") for line in lines]
                numbers = [number for number, row in enumerate(rows, first) if row and not row.isspace()]
                yield numbers, [rows[number - first] for number in numbers], raw.tell()
                first += len(lines)


def _grouped(rows: Iterable[bytes], at: int) -> Iterator[tuple[list[int], list[bytes], int]]:
    group: list[bytes] = []
    first, size = 1, 0
    for row in rows:
        group.append(row)
        size += len(row)
        if size >= BLOCK_BYTES:
            yield list(range(first, first + len(group))), group, at
            first, group, size = first + len(group), [], 0
    yield list(range(first, first + len(group))), group, at


def _parquet_rows(path: Path) -> Iterator[bytes]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("parquet files need the package pyarrow", next_step="pip install 'depthup[data]'") from error
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
        for row in batch.to_pylist():
            yield _as_json(row)


def _as_json(value: Any) -> bytes:
    """A row that came in another form; half a surrogate pair stays an escape, dates and bytes become texts."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=str).encode()
