"""A folder of pickle weights becomes a safetensors folder, file by file, without running the code a pickle can hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..checkpoint.carry import carry
from ..checkpoint.reader import INDEX_NAME, SINGLE_NAME, read_config
from ..errors import CheckpointError
from ..files import publishing, refuse_existing, require_space, write_json

_PREFIX = "pytorch_model"


def import_pickles(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Write ``pytorch_model*.bin`` of a folder as safetensors into a new folder, with config and tokenizer files.

    Files are read with ``weights_only`` (no code is run) and memory-mapped; one file is in memory at a time.

    Returns:
        The number of tensors.

    Raises:
        CheckpointError: No such files, or one holds anything but tensors by name.
        OutputError: ``out`` exists, or the disk is too small.
    """
    folder, out = Path(folder), Path(out)
    refuse_existing(out)
    files = sorted(folder.glob(f"{_PREFIX}*.bin"))
    if not files:
        raise CheckpointError(f"{folder} has no {_PREFIX}*.bin", allowed="pickle weights as transformers saved them")
    read_config(folder)
    require_space(out.parent, sum(file.stat().st_size for file in files))
    weight_map: dict[str, str] = {}
    total_size = 0
    with publishing(out) as partial:
        for number, file in enumerate(files, 1):
            name = SINGLE_NAME if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
            tensors = _read(file)
            save_file(tensors, partial / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            total_size += sum(tensor.nbytes for tensor in tensors.values())
        if len(files) > 1:
            write_json(partial / INDEX_NAME, {"metadata": {"total_size": total_size}, "weight_map": weight_map})
        carry(folder, partial)
        shutil.copyfile(folder / "config.json", partial / "config.json")
    return len(weight_map)


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch errors alike mean that this file is not plain weights
        raise CheckpointError(
            f"{file} does not read as plain weights: {str(error).splitlines()[0]}",
            next_step="do not trust it; get safetensors weights from its author",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{file} holds more than tensors by name", allowed="a state dict of tensors")
    # Tied tensors share memory, which safetensors does not store: each gets its own copy and is tied again on loading.
    seen: set[int] = set()
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
    return result
