"""Read a Hugging Face safetensors folder as data: names, types, shapes and byte ranges. No tensor is opened.

The format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, then the bytes).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import CheckpointError, shown
from .plain_json import MAX_JSON_BYTES, open_regular, parse_object, read_exactly, read_object, unreadable

if TYPE_CHECKING:
    from .listing import RemoteModel

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor on disk; its bytes are ``[begin, end)`` of the file ``shard`` in the checkpoint's folder."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


Header: TypeAlias = tuple[dict[str, Tensor], dict[str, str]]  # tensors in the order of their bytes, metadata


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder: its raw ``config.json`` and every tensor by its name on disk, in the order of the files.

    Where ``remote`` is set the weights are on a server, and ``folder`` holds but the small files that a plan looks at.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    remote: RemoteModel | None = None

    @cached_property
    def num_parameters(self) -> int:
        """Number of stored elements (a tied head is stored once, so it counts once)."""
        return sum(tensor.num_elements for tensor in self.tensors.values())

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def open_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Open a safetensors folder, sharded or not, and check that it is whole.

    Raises:
        CheckpointError: The folder, its config, its index or a shard is missing, truncated, corrupt, contradicts
            another, names files outside the folder, or holds pickle weights.
    """
    folder = Path(folder)
    config = read_config(folder)
    shards, weight_map = list_shards(folder)
    headers = ((shard, read_header(folder, shard)) for shard in shards)
    return Checkpoint(folder, config, *join_headers(str(folder), headers, weight_map))


def join_headers(
    place: str, headers: Iterable[tuple[str, Header]], weight_map: Mapping[str, str] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of the shards, and their metadata, checked against the index's map from tensor to file.

    Raises:
        CheckpointError: A tensor stands twice, or index and shards contradict each other.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for shard, (found, shard_metadata) in headers:
        metadata.update(shard_metadata)
        for name, tensor in found.items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor '{shown(name)}' stands in both {tensors[name].shard} and {shard} of {place}",
                    next_step="get the checkpoint again; left-over shards of an older save are a common cause",
                )
            if weight_map is not None and weight_map.get(name) != shard:
                raise CheckpointError(
                    f"tensor '{shown(name)}' stands in {shard}, but {INDEX_NAME} of {place} says"
                    f" {weight_map.get(name, 'nothing of it')}",
                    next_step="get the index and the shards again, from one revision",
                )
            tensors[name] = tensor
    if weight_map is not None and (absent := weight_map.keys() - tensors.keys()):
        name = min(absent)
        raise CheckpointError(
            f"{INDEX_NAME} of {place} names tensor '{shown(name)}', but {weight_map[name]} does not hold it"
            f" ({len(absent)} such tensors)",
            next_step="get the index and the shards again, from one revision",
        )
    return tensors, metadata


def read_config(folder: Path) -> dict[str, Any]:
    """The raw ``config.json`` of a folder.

    Raises:
        CheckpointError: No such folder or file, or it is no JSON object.
    """
    if not os.path.isdir(folder):
        raise CheckpointError(
            f"there is no folder {folder}",
            allowed="a folder with config.json and safetensors files",
            next_step="a GGUF file becomes such a folder with `depthup import FILE FOLDER`",
        )
    return read_object(folder / "config.json")


def list_shards(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """Names of the weight files of a folder, and the index's map from tensor to file (None without an index).

    Raises:
        CheckpointError: No safetensors weights, a missing shard, or an index that is malformed or leaves the folder.
    """
    path = folder / INDEX_NAME
    weight_map = index_map(path, read_object(path)) if os.path.lexists(path) else None

    def names() -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except OSError as error:
            raise unreadable(folder, error) from error

    return choose_shards(str(folder), weight_map, lambda name: os.path.isfile(folder / name), names), weight_map


def index_map(path: Path | str, index: Mapping[str, Any]) -> dict[str, str]:
    """The map from tensor to file of an index; ``path`` is what messages call it.

    Raises:
        CheckpointError: It is malformed, or names a file outside its folder.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{path} has no 'weight_map' from tensor names to files", next_step="get the index again")
    for file in set(weight_map.values()):
        if os.path.basename(file) != file or file in ("", ".", "..") or "\\" in file or "\0" in file:
            raise CheckpointError(
                f"{path} names the file '{shown(file)}', which is not in its folder",
                allowed="plain file names",
                next_step="do not trust this checkpoint; get it from its author again",
            )
    return weight_map


def choose_shards(
    place: str, weight_map: Mapping[str, str] | None, has: Callable[[str], bool], names: Callable[[], list[str]]
) -> list[str]:
    """The names of the weight files.

    Args:
        place: What messages call the checkpoint.
        weight_map: The index's map, if there is an index.
        has: Whether there is a file of a name.
        names: All names that there are, for messages.

    Raises:
        CheckpointError: No safetensors weights, or a missing shard, or files of two saves.
    """
    if weight_map is not None:
        shards = sorted(set(weight_map.values()))
        if missing := [shard for shard in shards if not has(shard)]:
            raise CheckpointError(
                f"{len(missing)} of {len(shards)} shards are missing in {place}, the first is {shown(missing[0])}",
                next_step="download the missing files; nothing was written",
            )
        if SINGLE_NAME not in shards and has(SINGLE_NAME):
            raise CheckpointError(
                f"{place} holds {SINGLE_NAME} beside {INDEX_NAME} and its {len(shards)} shards; transformers would"
                " load the former, and one of them is left over from another save",
                next_step="remove the one that is older",
            )
        return shards
    if has(SINGLE_NAME):
        return [SINGLE_NAME]
    files = names()
    if pickles := [name for name in files if name.endswith(PICKLE_SUFFIXES)]:
        raise CheckpointError(
            f"{place} holds pickle weights ({shown(pickles[0])}), which can run code when they are read",
            allowed="safetensors",
            next_step=f"convert them with `depthup import {place} NEW_FOLDER` (no code is run)",
        )
    loose = [shown(name) for name in files if name.endswith(".safetensors")]
    raise CheckpointError(
        f"{place} has no {SINGLE_NAME} and no {INDEX_NAME}" + (f", only {', '.join(loose[:3])}" if loose else ""),
        next_step="download the index of the shards" if loose else "name a folder with safetensors weights",
    )


def read_header(folder: Path, shard: str) -> Header:
    """Tensors of one safetensors file in the order of their bytes, and the file's own metadata.

    Raises:
        CheckpointError: As :func:`parse_header`, or the file cannot be read.
    """
    path = folder / shard
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            start = read_exactly(file, 8)
            text = read_exactly(file, header_length(path, start, size))
        except OSError as error:
            raise unreadable(path, error) from error
    return parse_header(path, shard, text, size)


def header_length(path: Path | str, start: bytes, size: int) -> int:
    """Length in bytes of the JSON header, from the first 8 bytes of a file of ``size`` bytes.

    Raises:
        CheckpointError: The file is too short for it.
    """
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > min(MAX_JSON_BYTES, size - 8):
        raise _corrupt(path, f"its header should have {length} bytes, the file has {size}")
    return length


def parse_header(path: Path | str, shard: str, text: bytes, size: int) -> Header:
    """Read the JSON header ``text`` of a file of ``size`` bytes; ``path`` is what messages call the file.

    Raises:
        CheckpointError: The file is truncated or its header is malformed: byte ranges must fill the file without
            gap or overlap, and agree with type and shape.
    """
    try:
        header = parse_object(text, strict=True)
    except ValueError as error:
        raise _corrupt(path, f"its header is no JSON object ({error})") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, "its __metadata__ is no map from text to text")
    data_start = 8 + len(text)
    tensors = sorted(
        (_tensor(path, shard, n, v, data_start) for n, v in header.items()), key=lambda t: (t.begin, t.end)
    )
    position = data_start
    for tensor in tensors:
        if tensor.begin != position:
            raise _corrupt(path, f"'{shown(tensor.name)}' begins at byte {tensor.begin}, expected {position}")
        position = tensor.end
    if position != size:
        what = "truncated" if position > size else "longer than its header says"
        raise _corrupt(path, f"the header describes {position} bytes, the file has {size}: it is {what}")
    return {tensor.name: tensor for tensor in tensors}, metadata


def _tensor(path: Path | str, shard: str, name: str, entry: Any, data_start: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _corrupt(path, f"the entry of '{shown(name)}' is not dtype, shape, data_offsets")
    if dtype not in DTYPE_BITS:
        raise _corrupt(path, f"'{shown(name)}' has the unknown type '{shown(dtype)}'")
    if not all(type(length) is int and 0 <= length < 1 << 48 for length in shape) or len(shape) > 64:
        raise _corrupt(path, f"'{shown(name)}' has the shape {shown(shape)}")
    fills = 0 <= begin <= end and prod(shape) * DTYPE_BITS[dtype] == (end - begin) * 8
    if not fills or bool in (type(begin), type(end)):
        raise _corrupt(path, f"'{shown(name)}' ({dtype} {shown(shape)}) cannot fill bytes {begin} to {end}")
    return Tensor(name, dtype, tuple(shape), shard, data_start + begin, data_start + end)


def _corrupt(path: Path | str, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a whole safetensors file: {why}", next_step="download this file again")


def same_bytes(one: tuple[Path, Tensor], other: tuple[Path, Tensor]) -> bool:
    """Whether two tensors, each with the folder that it lies in, are of one type and equal byte for byte."""

    def pieces(folder: Path, tensor: Tensor) -> Iterator[bytes]:
        with open(folder / tensor.shard, "rb") as file:
            file.seek(tensor.begin)
            for begin in range(tensor.begin, tensor.end, 1 << 20):
                yield file.read(min(1 << 20, tensor.end - begin))

    if (one[1].dtype, one[1].num_bytes) != (other[1].dtype, other[1].num_bytes):
        return False
    return all(a == b for a, b in zip(pieces(*one), pieces(*other), strict=True))
