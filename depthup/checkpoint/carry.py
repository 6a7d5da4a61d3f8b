"""What goes along with the weights: tokenizer, chat template, generation config, licence, code of custom models."""

from __future__ import annotations

import shutil
from pathlib import Path

from .reader import PICKLE_SUFFIXES

_WEIGHT_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".index.json")
_LEFT_BEHIND = frozenset({
    "config.json", "README.md", "depthup.json", "freeze_map.json", "record.json", "metrics.jsonl",
    "trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt",
})  # fmt: skip
_CARRIED_FOLDERS = ("additional_chat_templates",)


def carried_files(folder: Path) -> list[Path]:
    """All files of a checkpoint folder but weights of any format, training state, the config and the model card."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _goes_along(path))


def carry(folder: Path, target: Path) -> None:
    """Copy :func:`carried_files` into an existing folder."""
    for path in carried_files(folder):
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target / path.name)


def _goes_along(path: Path) -> bool:
    if path.is_dir():
        return path.name in _CARRIED_FOLDERS
    return path.name not in _LEFT_BEHIND and not path.name.endswith(_WEIGHT_SUFFIXES)
