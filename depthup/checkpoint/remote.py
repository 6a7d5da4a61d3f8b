"""Checkpoints by name: where a folder is expected, a model's name on the Hugging Face Hub works as well."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*"]


def local_folder(name: str | Path, *, download: bool = True, weights: bool = True) -> Path:
    """The folder itself, or the local copy of the hub model ``owner/name`` (``owner/name@revision``).

    Args:
        name: A folder, or a name on the hub.
        download: Fetch what is not here yet; otherwise only the local cache is looked at.
        weights: Fetch the weights too, not only ``config.json``.

    Raises:
        CheckpointError: No such folder, and no such model (or the hub is out of reach).
    """
    if os.path.isdir(name):
        return Path(name)
    if not _HUB_NAME.fullmatch(str(name)):
        raise CheckpointError(
            f"there is no folder {name}",
            allowed="a checkpoint folder, or a hub model as owner/name or owner/name@revision",
        )
    from huggingface_hub import snapshot_download

    repository, _, revision = str(name).partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=_WANTED if weights else ["config.json"],
                ignore_patterns=["consolidated*", "*/*"],
                local_files_only=not download,
            )
        )
    except Exception as error:  # the hub library raises many kinds: no network, no such name, no access
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"there is no folder {name}, and the hub model could not be had: {reason}",
            next_step="check the name, the network, and whether the model needs `hf auth login`",
        ) from error
