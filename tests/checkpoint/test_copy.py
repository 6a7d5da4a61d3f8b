"""Byte ranges: copied from whole blocks on, compared to the byte, ended clearly where a file ends."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.checkpoint import copy as copying
from depthup.errors import CheckpointError

BLOCK = copying.BLOCK_BYTES


def ignore(num_bytes: int) -> None:
    pass


@pytest.mark.parametrize("begin", [0, 8, BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 72])
@pytest.mark.parametrize("end", [200_000, 2_000_000 + 5])
def test_all_calls_to_the_kernel_but_the_first_begin_with_a_block(tmp_path: Path, monkeypatch, begin, end) -> None:
    """Blocks are shared by btrfs and XFS only where a call begins at a whole block of the source."""
    data = os.urandom(end + 100)
    (tmp_path / "source").write_bytes(data)
    calls: list[tuple[int, int]] = []

    def call(source: int, target: int, count: int, *, offset_src: int) -> int:
        calls.append((offset_src, count))
        return os.write(target, os.pread(source, count, offset_src))

    monkeypatch.setattr(os, "copy_file_range", call)
    monkeypatch.setattr(copying, "_MAX_KERNEL_BYTES", 64 * BLOCK)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "wb") as target:
        copying.copy_range(source.fileno(), begin, end, target.fileno(), ignore, "source")
    assert (tmp_path / "target").read_bytes() == data[begin:end]
    assert all(position % BLOCK == 0 for position, _ in calls[1:])
    assert sum(count for _, count in calls) == end - begin


@given(st.binary(min_size=1, max_size=300), st.data())
@settings(max_examples=150, deadline=None)
def test_the_first_difference_is_found_however_the_pieces_fall(data: bytes, choice: st.DataObject) -> None:
    other = bytearray(data)
    place = choice.draw(st.none() | st.integers(0, len(data) - 1))
    if place is not None:
        other[place] ^= choice.draw(st.integers(1, 255))
    held = bytes(other[: choice.draw(st.integers(len(other) // 2, len(other)))])
    shift, chunk = choice.draw(st.integers(0, 9)), choice.draw(st.integers(1, 400))
    expected = next((i for i, byte in enumerate(data) if i >= len(held) or held[i] != byte), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_CHUNK_BYTES", chunk)
        for as_pieces in (False, True):
            reported: list[int] = []
            assert compare(data, held, shift, as_pieces, reported) == expected
            assert sum(reported) == len(data) if expected is None else sum(reported) <= expected


def compare(data: bytes, held: bytes, shift: int, as_pieces: bool, reported: list[int]) -> int | None:
    with memory_file(b"x" * shift + data) as one, memory_file(b"y" * shift + held) as other:
        pieces = [memoryview(data)[i : i + 7] for i in range(0, len(data), 7)]
        expected = pieces if as_pieces else copying.read_range(one, shift, shift + len(data))
        return copying.first_difference(expected, other, shift, reported.append)


def memory_file(data: bytes) -> FileIO:
    file = FileIO(os.memfd_create("test"), "w+")
    file.write(data)
    return file


def test_a_range_that_the_file_does_not_have_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"12345")
    with open(tmp_path / "short", "rb", buffering=0) as file:
        assert b"".join(map(bytes, copying.read_range(file, 1, 5))) == b"2345"
        with pytest.raises(CheckpointError, match=r"short ended 3 bytes early[\s\S]*next:"):
            list(copying.read_range(file, 2, 8))
