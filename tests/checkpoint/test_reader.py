"""The reader: sees what the safetensors library sees, and answers anything else with a CheckpointError."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pico
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME, open_checkpoint, read_header
from depthup.errors import CheckpointError

TWO = {"a": pico.Raw("F32", (2,), bytes(range(8))), "b": pico.Raw("I8", (3,), b"xyz")}


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "U8", shape: object = (2,), offsets: object = (0, 2), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.fixture
def copy(base, tmp_path: Path) -> Path:
    """A sharded checkpoint that the test may break."""
    return shutil.copytree(base("llama", shard_size="60KB"), tmp_path / "copy")


def weight_map(folder: Path) -> dict[str, str]:
    return pico.read_json(folder / INDEX_NAME)["weight_map"]


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# -- whole checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [None, "60KB"])
def test_reads_the_names_types_shapes_and_bytes_that_safetensors_reads(base, shard_size: str | None) -> None:
    folder = base("llama", shard_size=shard_size)
    opened = open_checkpoint(folder)
    found = {
        name: pico.Raw(t.dtype, t.shape, (folder / t.shard).read_bytes()[t.begin : t.end])
        for name, t in opened.tensors.items()
    }
    assert found == pico.raw(folder)
    model = pico.load(folder)
    assert opened.num_parameters == model.num_parameters()
    assert opened.num_bytes == 4 * opened.num_parameters
    assert opened.config == pico.read_json(folder / "config.json")


def test_a_cache_whose_shards_are_links_to_blobs_reads_like_a_folder(base, tmp_path: Path) -> None:
    folder = base("llama", shard_size="60KB")
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(path, blobs / f"{number:x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:x}"))
    assert open_checkpoint(snapshot).tensors == open_checkpoint(folder).tensors


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "C64"])
def test_types_are_those_of_the_library(dtype: str, tmp_path: Path) -> None:
    width = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8, "C64": 8}.get(dtype, 1)
    path = tmp_path / SINGLE_NAME
    pico.write_tensors(path, {"odd": pico.Raw(dtype, (3,), bytes(3 * width)), "empty": pico.Raw(dtype, (0, 4), b"")})
    assert safetensors.deserialize(path.read_bytes())  # the oracle takes it
    tensors, metadata = read_header(tmp_path, SINGLE_NAME)
    assert {name: (t.dtype, t.shape, t.num_bytes) for name, t in tensors.items()} == {
        "empty": (dtype, (0, 4), 0), "odd": (dtype, (3,), 3 * width)
    }  # fmt: skip
    assert metadata == {"format": "pt"}


# -- corrupt files ---------------------------------------------------------------------------------------------------

CORRUPT = {
    "empty": b"",
    "shorter than a length": b"\2\0\0",
    "no header": (2).to_bytes(8, "little"),
    "length beyond the file": file_of({"a": entry()}, b"xy", length=10_000),
    "length near 2**64": b"\xff" * 8 + b"{}",
    "no JSON": file_of(b"{nonsense"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "a JSON list": file_of([]),
    "a JSON number": file_of(7),
    "nested too deep": file_of(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a number of 5000 digits": file_of(b'{"a": ' + b"9" * 5000 + b"}"),
    "metadata that is no map": file_of({"__metadata__": []}),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}}),
    "an entry that is no object": file_of({"a": 3}),
    "no dtype": file_of({"a": {"shape": [2], "data_offsets": [0, 2]}}, b"xy"),
    "no offsets": file_of({"a": {"dtype": "U8", "shape": [2]}}, b"xy"),
    "unknown dtype": file_of({"a": entry("U7")}, b"xy"),
    "dtype of another kind": file_of({"a": entry(["U8"])}, b"xy"),
    "negative length": file_of({"a": entry(shape=(-2,))}, b"xy"),
    "lengths whose product is right": file_of({"a": entry(shape=(-1, -2))}, b"xy"),
    "length that is no integer": file_of({"a": entry(shape=(2.0,))}, b"xy"),
    "shape that is a number": file_of({"a": entry(shape=2)}, b"xy"),
    "huge shape": file_of({"a": entry(shape=(2**63, 2**63))}, b"xy"),
    "offsets as text": file_of({"a": entry(offsets=("0", "2"))}, b"xy"),
    "three offsets": file_of({"a": entry(offsets=(0, 1, 2))}, b"xy"),
    "offsets backwards": file_of({"a": entry(offsets=(2, 0))}, b"xy"),
    "negative offset": file_of({"a": entry(offsets=(-2, 0))}, b"xy"),
    "offsets that do not fit the shape": file_of({"a": entry(shape=(3,))}, b"xy"),
    "offsets beyond the file": file_of({"a": entry(shape=(9,), offsets=(0, 9))}, b"xy"),
    "an overlap": file_of({"a": entry(), "b": entry(offsets=(1, 3))}, b"xyz"),
    "a gap": file_of({"a": entry(), "b": entry(offsets=(3, 5))}, b"xy.zw"),
    "bytes before the first tensor": file_of({"a": entry(offsets=(1, 3))}, b".xy"),
    "bytes behind the last tensor": file_of({"a": entry()}, b"xyz"),
    "truncated": file_of({"a": entry()}, b"x"),
    "two tensors of one name": file_of(b'{"a":' + json.dumps(entry(shape=(0,), offsets=(0, 0))).encode() + b","
                                       b'"a":' + json.dumps(entry()).encode() + b"}", b"xy"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CORRUPT)
def test_a_corrupt_file_is_named_with_the_next_step(kind: str, tmp_path: Path) -> None:
    (tmp_path / SINGLE_NAME).write_bytes(CORRUPT[kind])
    with pytest.raises(CheckpointError) as caught:
        read_header(tmp_path, SINGLE_NAME)
    assert f"{tmp_path / SINGLE_NAME} is not a whole safetensors file" in caught.value.problem
    assert len(caught.value.problem) < 600 and caught.value.next_step == "download this file again"


ONLY_LIBRARY_REFUSES = {
    "offsets that are booleans": file_of({"a": entry(shape=(1,), offsets=(False, True))}, b"x"),
    "a header in UTF-16": file_of(json.dumps({"a": entry()}).encode("utf-16"), b"xy"),
    "half a surrogate pair": file_of(b'{"\xed\xa0\x80": ' + json.dumps(entry()).encode() + b"}", b"xy"),
    "half a surrogate pair, escaped": file_of(b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}", b"xy"),
}


@pytest.mark.parametrize("kind", sorted((CORRUPT | ONLY_LIBRARY_REFUSES).keys() - {"two tensors of one name"}))
def test_the_library_refuses_these_files_as_well(kind: str) -> None:
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize((CORRUPT | ONLY_LIBRARY_REFUSES)[kind])


@pytest.mark.parametrize("kind", ONLY_LIBRARY_REFUSES)
def test_what_the_library_refuses_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / SINGLE_NAME).write_bytes(ONLY_LIBRARY_REFUSES[kind])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_header(tmp_path, SINGLE_NAME)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    pico.write_tensors(folder / "whole", TWO)
    return folder


EDIT = st.tuples(st.integers(0, 10_000), st.sampled_from(["set", "cut", "put"]), st.binary(max_size=4))


@given(edits=st.lists(EDIT, max_size=6))
@settings(max_examples=400, deadline=None)
def test_a_damaged_file_is_read_as_the_library_reads_it_or_is_a_checkpoint_error(scratch: Path, edits) -> None:
    data = (scratch / "whole").read_bytes()
    for place, kind, more in edits:
        place %= len(data) + 1
        keep = {"set": place + len(more), "cut": place + 7 * len(more), "put": place}[kind]
        data = data[:place] + (b"" if kind == "cut" else more) + data[keep:]
    (scratch / "damaged").write_bytes(data)
    try:
        tensors, _ = read_header(scratch, "damaged")
    except CheckpointError:
        return
    theirs = {name: (i["dtype"], tuple(i["shape"]), bytes(i["data"])) for name, i in safetensors.deserialize(data)}
    assert {name: (t.dtype, t.shape, data[t.begin : t.end]) for name, t in tensors.items()} == theirs


# -- folders that are not whole ---------------------------------------------------------------------------------------


def test_a_truncated_shard_is_refused_at_every_length(copy: Path) -> None:
    shard = sorted(copy.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"{shard.name} is not a whole safetensors file[\s\S]*download"):
            open_checkpoint(copy)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/hostname", "sub/model.safetensors", "..\\model.safetensors", "", ".", "..",
             "C:\\model.safetensors", "a\0b"]
)  # fmt: skip
def test_an_index_that_leaves_its_folder_is_refused_before_any_file_is_opened(copy: Path, file: str) -> None:
    write_index(copy, {**weight_map(copy), "model.norm.weight": file})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(copy)
    named = file.replace("\0", "\\x00")  # what does not print is escaped
    assert f"'{named}', which is not in its folder" in caught.value.problem and "do not trust" in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "x", {"a": 1}, {"a": None}, {"a": ["b"]}])
def test_an_index_of_another_form_is_refused(copy: Path, value: object) -> None:
    write_index(copy, value)
    with pytest.raises(CheckpointError, match="has no 'weight_map'"):
        open_checkpoint(copy)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_broken_json_file_is_named(copy: Path, name: str, text: bytes) -> None:
    (copy / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=rf"{copy / name} is no JSON[\s\S]*get this file again"):
        open_checkpoint(copy)


def test_missing_shards_are_counted_and_the_first_is_named(copy: Path) -> None:
    shards = sorted(copy.glob("*.safetensors"))
    for shard in shards[1:3]:
        shard.unlink()
    with pytest.raises(CheckpointError, match=rf"2 of {len(shards)} shards are .*{shards[1].name}[\s\S]*download"):
        open_checkpoint(copy)


def test_a_broken_link_into_the_cache_is_a_missing_shard(copy: Path) -> None:
    shard = min(copy.glob("*.safetensors"))
    shard.unlink()
    shard.symlink_to("../blobs/gone")
    with pytest.raises(CheckpointError, match=f"shards are missing.*{shard.name}"):
        open_checkpoint(copy)


def test_a_tensor_that_the_index_does_not_know_or_puts_elsewhere_is_refused(copy: Path) -> None:
    whole = weight_map(copy)
    write_index(copy, {name: file for name, file in whole.items() if name != "model.norm.weight"})
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' stands in .* says nothing of it"):
        open_checkpoint(copy)
    other = next(file for file in whole.values() if file != whole["model.norm.weight"])
    write_index(copy, {**whole, "model.norm.weight": other})
    with pytest.raises(CheckpointError, match=rf"'model.norm.weight' stands in .*says\s+{other}"):
        open_checkpoint(copy)


def test_an_index_that_names_an_absent_tensor_is_refused(copy: Path) -> None:
    shard = min(copy.glob("*.safetensors")).name
    write_index(copy, {**weight_map(copy), "model.gone": shard})
    with pytest.raises(CheckpointError, match=rf"names tensor 'model.gone', but {shard} does not hold it \(1 such"):
        open_checkpoint(copy)


def test_a_tensor_in_two_shards_is_refused(copy: Path) -> None:
    first, second = sorted(copy.glob("*.safetensors"))[:2]
    shutil.copyfile(first, second)
    with pytest.raises(CheckpointError, match=rf"stands in both {first.name} and {second.name}"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ([], "has no model.safetensors and no"),
        (["model-00001-of-00002.safetensors"], "only model-00001-of-00002.safetensors"),
        (["pytorch_model.bin"], "holds pickle weights (pytorch_model.bin), which can run code"),
        (["consolidated.00.pth"], "holds pickle weights (consolidated.00.pth)"),
    ],
)
def test_a_folder_without_readable_weights_says_what_it_has(tmp_path: Path, files: list[str], named: str) -> None:
    for name in ("config.json", *files):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert named in caught.value.problem and caught.value.next_step


def test_no_folder_and_no_config_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"there is no folder {tmp_path / 'gone'}"):
        open_checkpoint(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=rf"there is no {tmp_path / 'config.json'}"):
        open_checkpoint(tmp_path)


def test_a_single_file_beside_an_index_is_refused_as_transformers_would_load_the_single_file(copy: Path) -> None:
    pico.write_tensors(copy / SINGLE_NAME, TWO)  # what a sharded save leaves when a smaller one overwrites it, and back
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(copy)


def test_a_file_name_too_long_for_the_disk_is_a_missing_shard(copy: Path) -> None:
    write_index(copy, {**weight_map(copy), "model.norm.weight": "x" * 300})
    with pytest.raises(CheckpointError, match="shards are missing"):
        open_checkpoint(copy)


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_file_that_cannot_be_read_is_a_checkpoint_error(copy: Path, name: str, monkeypatch) -> None:
    plain = open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match=f"{name}.*Permission denied"):
        open_checkpoint(copy)
