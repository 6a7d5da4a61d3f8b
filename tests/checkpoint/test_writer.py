"""The writer: bytes arrive as they were, by every way of copying, in files that others read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.checkpoint import copy as copying
from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME, Tensor, open_checkpoint, read_header
from depthup.checkpoint.writer import Move, plan_shards, write_shards
from depthup.errors import CheckpointError

MIXED = {
    "i8 odd": pico.Raw("I8", (3,), b"abc"),
    "f32": pico.Raw("F32", (2, 1), bytes(range(8))),
    "empty": pico.Raw("F32", (0, 5), b""),
    "bf16 odd": pico.Raw("BF16", (5,), bytes(range(10))),
    "f64": pico.Raw("F64", (1,), bytes(range(8))),
    "bool": pico.Raw("BOOL", (1,), b"\1"),
    "scalar": pico.Raw("F32", (), b"\0\0\x80?"),
    "f8": pico.Raw("F8_E4M3", (7,), bytes(range(7))),
    "ünïcode": pico.Raw("U8", (2, 1), b"uv"),
}
WIDTHS = {"F64": 8, "F32": 4, "BF16": 2}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    pico.write_tensors(folder / SINGLE_NAME, MIXED)
    return folder


def moves_of(folder: Path, *names: str) -> list[Move]:
    tensors = open_checkpoint(folder).tensors
    return [Move(f"{number} {name}", tensors[name]) for number, name in enumerate(names or tensors)]


def write(source: Path, moves: list[Move], out: Path, max_shard_bytes: int = 1 << 40, **options: object) -> dict:
    out.mkdir()
    write_shards(source, plan_shards(moves, max_shard_bytes), out, **options)
    return pico.raw(out)


# -- shards -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(sorted(MIXED)), min_size=1, max_size=20), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_shards_keep_all_moves_and_respect_their_size(names: list[str], max_bytes: int) -> None:
    moves = [
        Move(f"{i}", Tensor(name, MIXED[name].dtype, MIXED[name].shape, "s", 0, len(MIXED[name].data)))
        for i, name in enumerate(names)
    ]
    shards = plan_shards(moves, max_bytes)
    assert sorted((move for shard in shards for move in shard.moves), key=lambda m: int(m.name)) == moves
    for shard in shards:
        assert shard.num_data_bytes <= max_bytes or sum(move.source.num_bytes > 0 for move in shard.moves) == 1
    total = len(shards)
    expected = [SINGLE_NAME] if total == 1 else [f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total)]
    assert [shard.file for shard in shards] == expected


def test_mixed_types_stay_aligned_and_the_library_reads_them(mixed: Path, tmp_path: Path) -> None:
    names = [*MIXED, *reversed(MIXED)]
    written = write(mixed, moves_of(mixed, *names), tmp_path / "out")
    assert written == {f"{number} {name}": MIXED[name] for number, name in enumerate(names)}
    for tensor in read_header(tmp_path / "out", SINGLE_NAME)[0].values():
        assert tensor.begin % WIDTHS.get(tensor.dtype, 1) == 0, tensor
    with safetensors.safe_open(tmp_path / "out" / SINGLE_NAME, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(file.get_tensor(name).shape == written[name].shape for name in file.keys())  # noqa: SIM118


def test_many_shards_and_one_hold_the_same_tensors(mixed: Path, tmp_path: Path) -> None:
    moves = moves_of(mixed)
    one = write(mixed, moves, tmp_path / "one")
    many = write(mixed, moves, tmp_path / "many", max_shard_bytes=9)
    assert one == many and not (tmp_path / "one" / INDEX_NAME).exists()
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2


def test_the_index_is_of_the_standard_form(base, tmp_path: Path) -> None:
    """Compared with what transformers itself writes for the same tensors."""
    theirs = pico.read_json(base("llama", shard_size="60KB") / INDEX_NAME)
    source = base("llama")
    moves = [Move(tensor.name, tensor) for tensor in open_checkpoint(source).tensors.values()]
    write(source, moves, tmp_path / "out", max_shard_bytes=60_000)
    ours = pico.read_json(tmp_path / "out" / INDEX_NAME)
    assert ours.keys() == theirs.keys() and ours["metadata"] == theirs["metadata"]
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    assert list(ours["weight_map"]) == sorted(ours["weight_map"])


# -- ways of copying ---------------------------------------------------------------------------------------------------


def unsupported(code: int) -> Callable[..., int]:
    def call(*args: object, **options: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_without_kernel_copies_the_bytes_are_the_same(mixed: Path, tmp_path: Path, monkeypatch, code: int) -> None:
    expected = write(mixed, moves_of(mixed), tmp_path / "kernel")
    monkeypatch.setattr(os, "copy_file_range", unsupported(code))
    assert write(mixed, moves_of(mixed), tmp_path / "sendfile") == expected
    monkeypatch.setattr(os, "sendfile", unsupported(code))
    assert write(mixed, moves_of(mixed), tmp_path / "plain") == expected


def test_a_kernel_that_copies_to_sockets_only_is_not_needed(mixed: Path, tmp_path: Path, monkeypatch) -> None:
    """macOS: there is no copy_file_range, and sendfile answers ENOTSOCK for a file."""
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(os, "sendfile", unsupported(errno.ENOTSOCK))
    assert {name[2:]: raw for name, raw in write(mixed, moves_of(mixed), tmp_path / "out").items()} == MIXED


def test_systems_without_any_kernel_copy_are_served(mixed: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.delattr(os, "sendfile")
    assert {name[2:]: raw for name, raw in write(mixed, moves_of(mixed), tmp_path / "out").items()} == MIXED


@pytest.mark.parametrize("way", ["copy_file_range", "sendfile", "write"])
def test_short_copies_are_continued(base, tmp_path: Path, monkeypatch, way: str) -> None:
    source = base("gemma", num_layers=1)
    if way != "copy_file_range":
        monkeypatch.delattr(os, "copy_file_range")
    if way == "write":
        monkeypatch.delattr(os, "sendfile")
        monkeypatch.setattr(copying, "_CHUNK_BYTES", 1021)
    else:
        monkeypatch.setattr(copying, "_MAX_KERNEL_BYTES", 1021)
    moves = [Move(tensor.name, tensor) for tensor in open_checkpoint(source).tensors.values()]
    reported: list[int] = []
    assert write(source, moves, tmp_path / "out", progress=reported.append) == pico.raw(source)
    assert sum(reported) == open_checkpoint(source).num_bytes and max(reported) <= 1021


def test_a_way_that_stops_in_the_middle_is_taken_over_by_the_next(mixed: Path, tmp_path: Path, monkeypatch) -> None:
    real, calls = os.copy_file_range, []

    def once(*args: int, **options: int) -> int:
        calls.append(args)
        if len(calls) % 2 == 0:
            raise OSError(errno.EINVAL, "no more")
        return real(args[0], args[1], min(args[2], 2), **options)

    monkeypatch.setattr(os, "copy_file_range", once)
    written = write(mixed, moves_of(mixed, "f8", "f64", "i8 odd"), tmp_path / "out")
    assert {name[2:]: raw for name, raw in written.items()} == {name: MIXED[name] for name in ("f8", "f64", "i8 odd")}


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_that_shrinks_meanwhile_is_an_error(mixed: Path, tmp_path: Path, monkeypatch, kernel: bool) -> None:
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range")
        monkeypatch.delattr(os, "sendfile")
    moves = moves_of(mixed)
    with open(mixed / SINGLE_NAME, "r+b") as file:
        file.truncate((mixed / SINGLE_NAME).stat().st_size - 4)
    with pytest.raises(CheckpointError, match="4 bytes early: it changed while it was read"):
        write(mixed, moves, tmp_path / "out")


def test_a_source_that_is_written_to_meanwhile_is_an_error(mixed: Path, tmp_path: Path, monkeypatch) -> None:
    real = os.copy_file_range

    def edit_first(*args: int, **options: int) -> int:
        os.utime(mixed / SINGLE_NAME, ns=(1, 1))
        return real(*args, **options)

    monkeypatch.setattr(os, "copy_file_range", edit_first)
    with pytest.raises(CheckpointError, match=r"was written to while it was read[\s\S]*next:"):
        write(mixed, moves_of(mixed), tmp_path / "out")


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_however_many_threads_write_the_bytes_are_the_same(base, tmp_path: Path, num_threads: int) -> None:
    source = base("llama", shard_size="60KB")
    moves = [Move(tensor.name, tensor) for tensor in open_checkpoint(source).tensors.values()]
    assert write(source, moves, tmp_path / "out", 20_000, num_threads=num_threads) == pico.raw(source)


def test_other_errors_of_the_kernel_are_raised_at_once(mixed: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", unsupported(errno.EIO))
    monkeypatch.setattr(os, "sendfile", unsupported(errno.EBADMSG))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write(mixed, moves_of(mixed), tmp_path / "out")


def test_names_are_written_as_they_are(tmp_path: Path) -> None:
    name = 'a"b\\c\n\u2028é😀'
    (tmp_path / "config.json").write_text("{}")
    pico.write_tensors(tmp_path / SINGLE_NAME, {name: pico.Raw("U8", (1,), b"x")})
    moves = [Move(name, open_checkpoint(tmp_path).tensors[name])]
    assert write(tmp_path, moves, tmp_path / "out") == {name: pico.Raw("U8", (1,), b"x")}
    header = (tmp_path / "out" / SINGLE_NAME).read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert length % 8 == 0 and json.loads(header[8 : 8 + length])[name]["shape"] == [1]
