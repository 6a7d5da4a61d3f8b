"""JSON from files that nobody vouches for: of bounded size and depth, with numbers of bounded length, no key twice.

Python reads a list in a list ten thousand deep, or waits for a pipe; what works on the value afterwards then fails, far
from the file that is to blame. So the limits stand at the door.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from math import isinf
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, shown

MAX_JSON_BYTES = 100_000_000  # the limit of the safetensors library for its headers
MAX_DEPTH = 100
MAX_DIGITS = 40  # 2**128 has 39


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, unbuffered; pipes, sockets and devices are not opened, since they might never end.

    Raises:
        CheckpointError: It is no regular file, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError(f"{path} is no regular file", next_step="get this file again")
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file that the system does not give."""
    return CheckpointError(f"{path} cannot be read: {error.strerror}", next_step="check the file and its permissions")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: No such file, or it holds something else.
    """
    if not os.path.lexists(path):
        raise CheckpointError(f"there is no {path}", next_step="name a Hugging Face checkpoint folder")
    with open_regular(path) as file:
        try:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > MAX_JSON_BYTES:
                raise CheckpointError(f"{path} has {num_bytes:,} bytes", allowed=f"at most {MAX_JSON_BYTES:,}")
            content = read_exactly(file, num_bytes)
        except OSError as error:
            raise unreadable(path, error) from error
    return object_of(path, content)


def object_of(path: Path | str, content: bytes) -> dict[str, Any]:
    """The JSON object that ``content`` is; ``path`` is what messages call it.

    Raises:
        CheckpointError: It is something else.
    """
    try:
        return parse_object(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON object: {error}", next_step="get this file again") from error


def read_exactly(file: BinaryIO, num_bytes: int) -> bytes:
    """As many bytes as asked for, fewer only where the file ends: one read of a raw file may stop early."""
    parts = []
    while num_bytes and (part := file.read(num_bytes)):
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def parse_object(content: bytes, *, strict: bool = False) -> dict[str, Any]:
    """The JSON object that ``content`` is.

    Args:
        content: UTF-8 text.
        strict: By the letter of the standard: no NaN or Infinity (which configs hold), no number beyond a float, no
            half of a surrogate pair, no key twice even with one value.

    Raises:
        ValueError: It is no JSON object, or beyond the limits of this module; the text says why.
    """
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_single_keys if strict else _unambiguous_keys,
            parse_int=_integer,
            parse_float=_finite if strict else None,
            parse_constant=_no_constant if strict else None,
        )
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    if not isinstance(value, dict):
        raise ValueError("it is a JSON value of another kind")
    _require_shallow(value, strict)
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number {len(text)} characters long")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    if isinf(value := float(text)):
        raise ValueError(f"the number {shown(text)} is too large")
    return value


def _single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    "".join(result).encode()  # half a surrogate pair is a ValueError: such a name could not be written again
    return result


def _unambiguous_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result and result[key] != value:  # which of them counts depends on the reader
            raise ValueError(f"the key '{shown(key)}' stands twice with unlike values")
        result[key] = value
    return result


def _require_shallow(value: Mapping[str, Any], strict: bool) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        if strict:
            "".join(child for child in children if isinstance(child, str)).encode()
        level = [child for child in children if isinstance(child, (dict, list))]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")
