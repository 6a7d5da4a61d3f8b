"""What goes along with the weights: tokenizer, chat template, generation config, licence, code of custom models."""

from __future__ import annotations

import shutil
from pathlib import Path

from .copy import sync_file
from .reader import PICKLE_SUFFIXES

_WEIGHT_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".index.json")
_LEFT_BEHIND = frozenset({
    "config.json", "README.md", "depthup.json", "record.json", "metrics.jsonl",
    "trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt",
})  # fmt: skip
_CARRIED_FOLDERS = ("additional_chat_templates",)


def carried_files(folder: Path) -> list[Path]:
    """All files of a checkpoint folder but weights of any format, training state, the config and the model card."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _goes_along(path))


def carry(folder: Path, target: Path) -> list[str]:
    """Copy :func:`carried_files` into an existing folder, and sync them; returns their names, files in folders too."""
    for path in carried_files(folder):
        if path.is_dir():
            shutil.copytree(path, target / path.name, copy_function=_copy, dirs_exist_ok=True)
        else:
            _copy(path, target / path.name)
    return files_in(folder)


def files_in(folder: Path) -> list[str]:
    """The names of all files that :func:`carry` copies, with ``/`` in those that stand in a folder."""
    found = (path.rglob("*") if path.is_dir() else [path] for path in carried_files(folder))
    return sorted(path.relative_to(folder).as_posix() for paths in found for path in paths if path.is_file())


def _copy(source: str | Path, target: str | Path) -> None:
    shutil.copyfile(source, target)
    sync_file(Path(target))


def _goes_along(path: Path) -> bool:
    if path.is_dir():
        return path.name in _CARRIED_FOLDERS
    return path.name not in _LEFT_BEHIND and not path.name.endswith(_WEIGHT_SUFFIXES)
