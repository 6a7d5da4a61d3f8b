"""Checkpoints by name: a folder, a model on the Hugging Face Hub, or the URL of a folder on any server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .plain_json import object_of
from .reader import (
    INDEX_NAME,
    SINGLE_NAME,
    Checkpoint,
    choose_shards,
    header_length,
    index_map,
    join_headers,
    open_checkpoint,
    parse_header,
    read_config,
)

if TYPE_CHECKING:
    from .listing import RemoteModel

JOURNAL_NAME = ".stream.json"  # in the unfinished folder of a target whose base streams past
# Files of a hub repository that a checkpoint is made of.
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py", "LICENSE*", "NOTICE*"]
UNWANTED = ["consolidated*", "*/*"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#\s]*)?")
_LARGE = ("tokenizer.json", "vocab.json")  # no plan looks at these; other JSON files may name layers
_FIRST_BYTES = 1 << 16  # of a shard; holds most headers


def local_folder(name: str | Path, *, download: bool = True) -> Path:
    """The folder itself, or the local copy of the hub model ``owner/name`` (``owner/name@revision``).

    Args:
        name: A folder, or a name on the hub.
        download: Fetch what is not here yet; otherwise only the local cache is looked at.

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
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
                local_files_only=not download,
            )
        )
    except Exception as error:  # the hub library raises many kinds: no network, no such name, no access
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"there is no folder {name}, and the hub model could not be had: {reason}",
            next_step="check the name, the network, and whether the model needs `hf auth login`",
        ) from error


def find_base(name: str | os.PathLike[str]) -> Path | RemoteModel:
    """The folder of a checkpoint, or what a server has of it. Of a model that is not here nothing but lists is fetched.

    A hub model is here if the local cache of the hub holds the weights of its newest commit (or that of a revision).
    An adapter is fetched: it is small.

    Args:
        name: A folder, a hub model as ``owner/name`` or ``owner/name@revision``, or the URL of a folder.

    Raises:
        CheckpointError: There is none of that name, or it cannot be reached.
    """
    if os.path.isdir(name):
        return Path(name)
    name = str(name)
    is_url = _URL.fullmatch(name)
    if not is_url and not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"there is no folder {name}",
            allowed="a checkpoint folder, a hub model as owner/name or owner/name@revision, or https://host/folder",
            next_step="check the name; a GGUF file becomes such a folder with `depthup import FILE FOLDER`",
        )
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        if is_url:
            raise CheckpointError(f"{name} is on a server, and HF_HUB_OFFLINE is set", next_step="unset it")
        return local_folder(name, download=False)
    from .listing import list_hub_model, list_server_model

    if is_url:
        return list_server_model(name.rstrip("/"))
    repository, _, revision = name.partition("@")
    try:
        model = list_hub_model(repository, revision or "main")
    except CheckpointError:
        with contextlib.suppress(CheckpointError):  # out of reach, but perhaps it was fetched before
            return local_folder(name, download=False)
        raise
    is_adapter = "adapter_config.json" in model.files and "config.json" not in model.files
    return local_folder(f"{repository}@{model.revision}") if is_adapter or _is_cached(model) else model


def open_base(base: str | os.PathLike[str] | RemoteModel, *, only_look: bool = False) -> Checkpoint:
    """Open a checkpoint to plan with. Of one that is not here only headers and small JSON files are fetched.

    These files are kept in a temporary folder, the checkpoint's ``folder``, for as long as it is in use.

    Args:
        base: A name for :func:`find_base`, or what that found.
        only_look: A checkpoint without safetensors weights is opened as well (and has no tensors then).

    Raises:
        CheckpointError: There is none of that name, it cannot be reached, or it is not whole.
    """
    if isinstance(base, (str, os.PathLike)):
        base = find_base(base)
    if not isinstance(base, Path):
        return _open_remote(base, only_look)
    if only_look and not any(os.path.lexists(base / weights) for weights in (INDEX_NAME, SINGLE_NAME)):
        return Checkpoint(base, read_config(base), {}, {})
    return open_checkpoint(base)


def fetch_carried(base: Checkpoint) -> None:
    """Fetch what goes along with a remote base into its folder, except for what is there.

    Raises:
        CheckpointError: A file cannot be had, or is not what its server declares.
    """
    from .answers import Checksum

    assert base.remote is not None
    for file in base.remote.carried:
        path, unfinished, checksum = base.folder / file.name, base.folder / f".{file.name}", Checksum(file)
        if not path.exists():
            with open(unfinished, "wb") as output:
                for piece in base.remote.web.pieces(file, 0, file.num_bytes):
                    checksum.update(piece)
                    output.write(piece)
            checksum.require_declared()
            unfinished.rename(path)


def require_here(base: Checkpoint, why: str) -> None:
    """Raise :class:`CheckpointError` if the base is on a server; ``why`` says what needs it here."""
    remote = base.remote
    if remote is not None:
        fetch = f"`hf download {remote.name} --revision {remote.revision}`, then run the same command again"
        raise CheckpointError(
            f"{remote.name} is not on this disk, and {why}",
            next_step=fetch if remote.revision else "download it, and name its folder",
        )


def _is_cached(model: RemoteModel) -> bool:
    """Whether the local cache of the hub holds the weights of this commit (what else is missing is soon fetched)."""
    from huggingface_hub import try_to_load_from_cache

    if not {INDEX_NAME, SINGLE_NAME} & model.files.keys():
        return False
    for name, file in model.files.items():
        if name in ("config.json", INDEX_NAME) or name.endswith(".safetensors"):
            cached = try_to_load_from_cache(model.name, name, revision=model.revision)
            if not isinstance(cached, str) or Path(cached).stat().st_size != file.num_bytes:
                return False
    return True


def _open_remote(model: RemoteModel, only_look: bool) -> Checkpoint:
    """Fetch what a plan looks at."""
    from .listing import for_each, read_document

    name, files, web = model.name, model.files, model.web
    if "config.json" not in files:
        raise CheckpointError(f"{name} has no config.json", next_step="name a model that transformers loads")
    small = {"depthup.json"} & files.keys()
    if not only_look:
        small |= {file.name for file in model.carried if file.name.endswith(".json") and file.name not in _LARGE}
    beside = ["config.json", *sorted(small)]
    data = for_each(web, beside, lambda file: read_document(web, files[file]))
    config = object_of(f"{name}/config.json", data["config.json"])
    folder = _write_temporary(model, data)
    if only_look and not {INDEX_NAME, SINGLE_NAME} & files.keys():
        return Checkpoint(folder, config, {}, {}, model)
    weight_map, path = None, f"{name}/{INDEX_NAME}"
    if INDEX_NAME in files:
        weight_map = index_map(path, object_of(path, read_document(web, files[INDEX_NAME])))
    shards = choose_shards(name, weight_map, files.__contains__, lambda: sorted(files))
    starts = for_each(web, shards, lambda shard: _fetch_header(model, shard))
    headers = (
        (shard, parse_header(f"{name}/{shard}", shard, start[8:], files[shard].num_bytes))
        for shard, start in starts.items()
    )
    tensors, metadata = join_headers(name, headers, weight_map)
    return Checkpoint(folder, config, tensors, metadata, replace(model, headers=starts))


def _write_temporary(model: RemoteModel, data: Mapping[str, bytes]) -> Path:
    """A folder of these files that is removed when the model's client is no longer in use."""
    import tempfile

    root = tempfile.mkdtemp(prefix="depthup-")
    weakref.finalize(model.web, shutil.rmtree, root, ignore_errors=True)
    folder = Path(root, re.sub(r"[^\w.-]", "_", model.name.rpartition("/")[2]))
    folder.mkdir()
    for name, content in data.items():
        (folder / name).write_bytes(content)
    return folder


def _fetch_header(model: RemoteModel, shard: str) -> bytes:
    """The first bytes of a shard, to the end of its header."""
    file = model.files[shard]
    start = model.web.read(file, 0, min(_FIRST_BYTES, file.num_bytes))
    end = 8 + header_length(f"{model.name}/{shard}", start[:8], file.num_bytes)
    return start[:end] + model.web.read(file, len(start), max(end, len(start)))
