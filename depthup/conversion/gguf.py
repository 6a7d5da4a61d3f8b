"""A GGUF file becomes a checkpoint folder: weights de-quantised, config, tokenizer and chat template from the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from ..checkpoint.reader import read_config
from ..errors import CheckpointError
from ..files import publishing, refuse_existing, require_space, write_json
from ..gguf_models import read_gguf
from ..models import DTYPES, Model, quiet_transformers

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def import_gguf(file: str | os.PathLike[str], out: str | os.PathLike[str], dtype: DtypeName = "auto") -> str:
    """Write the model of a GGUF file as a new safetensors folder.

    Args:
        file: The GGUF file.
        out: The folder to make; it must not exist.
        dtype: Type of the weights; ``auto`` is the narrowest of bfloat16, float16 and float32 that holds every value
            of the file exactly (float32 for quantised files).

    Returns:
        The type that was chosen.

    Raises:
        CheckpointError: The file is missing, no GGUF file, or of an architecture that transformers does not read.
        OutputError: ``out`` exists, or the disk is too small.
    """
    refuse_existing(Path(out))
    require_gguf(Path(file))
    with publishing(Path(out)) as folder:
        return write_gguf(Path(file), folder, dtype)


def write_gguf(file: Path, folder: Path, dtype: DtypeName = "auto") -> str:
    """:func:`import_gguf` into an existing folder, which the caller publishes."""
    require_gguf(file)
    model, tokenizer = read_gguf(file)
    chosen = _narrowest_exact(model) if dtype == "auto" else dtype
    require_space(folder, model.num_parameters() * DTYPES[chosen].itemsize)
    with quiet_transformers():
        model.to(DTYPES[chosen]).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    config = read_config(folder)
    write_json(folder / "config.json", {key: config[key] for key in config if key != "_model_name_or_path"})
    return chosen


def require_gguf(file: Path) -> None:
    """Raise :class:`CheckpointError` unless ``file`` is there and begins as a GGUF file."""
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}", next_step="check the path")
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise CheckpointError(f"{file} is no GGUF file", allowed="a file that begins with the letters GGUF")


def _narrowest_exact(model: Model) -> str:
    for name in ("bfloat16", "float16"):
        dtype = DTYPES[name]
        if all(torch.equal(p.to(dtype).to(torch.float32), p) for p in model.parameters()):
            return name
    return "float32"
