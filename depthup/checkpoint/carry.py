"""What goes along with the weights: tokenizer, chat template, generation config, licence, code of custom models."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from ..errors import CheckpointError
from .copy import sync_file
from .plain_json import open_regular, unreadable
from .reader import PICKLE_SUFFIXES

_WEIGHT_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".index.json")
_LEFT_BEHIND = frozenset({
    "config.json", "README.md", "depthup.json", "freeze_map.json", "record.json", "metrics.jsonl",
    "trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt",
})  # fmt: skip
_CARRIED_FOLDERS = ("additional_chat_templates",)
_MODULES = "modules.json"  # of sentence-transformers: what stands behind the model, each in a folder of its own
_MOST_MODULE_BYTES = 1_000_000
_PLAIN_NAME = re.compile(r"\w[\w.-]{0,99}")  # a folder right here


def carried_files(folder: Path) -> list[Path]:
    """All files of a checkpoint folder but weights of any format, training state, the config and the model card.

    Of the folders below, those that transformers and sentence-transformers look into go along, whole. Links are
    followed (the cache of the hub is made of them).

    Raises:
        CheckpointError: One is a broken link, a pipe or a device; or the folder cannot be read.
    """
    try:
        here = [path for path in folder.iterdir() if goes_along(path.name) and not os.path.isdir(path)]
        wanted = (*_CARRIED_FOLDERS, *module_folders(folder))
        inner = [folder / name for name in wanted if os.path.isdir(folder / name)]
        below = [path for parent in inner for path in parent.iterdir() if not os.path.isdir(path)]
    except OSError as error:
        raise unreadable(folder, error) from error
    files = sorted([*here, *below])
    for path in files:
        if not os.path.isfile(path):
            raise CheckpointError(f"{path} is no regular file", next_step="get this file again, or remove it")
    return files


def module_folders(folder: Path) -> tuple[str, ...]:
    """The folders with the modules of a sentence encoder (pooling, dense maps), as its ``modules.json`` names them.

    Raises:
        CheckpointError: The file cannot be read.
    """
    path = folder / _MODULES
    if not os.path.isfile(path):
        return ()
    with open_regular(path) as file:
        content = file.read(_MOST_MODULE_BYTES)
    try:
        modules = json.loads(content)
    except (ValueError, RecursionError):
        return ()
    names = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return tuple(sorted({name for name in names if isinstance(name, str) and _PLAIN_NAME.fullmatch(name)}))


def carry(folder: Path, target: Path) -> list[str]:
    """Copy :func:`carried_files` into an existing folder, and sync them; returns their names, files in folders too."""
    for path in carried_files(folder):
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
        sync_file(copy)
    return files_in(folder)


def files_in(folder: Path) -> list[str]:
    """The names of all files that :func:`carry` copies, with ``/`` in those that stand in a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in carried_files(folder))


def goes_along(name: str) -> bool:
    """Whether a file of this name is carried."""
    return not name.startswith(".") and name not in _LEFT_BEHIND and not name.endswith(_WEIGHT_SUFFIXES)
