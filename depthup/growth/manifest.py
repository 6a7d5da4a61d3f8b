"""``depthup.json``: what a target was made from, how, and what was written. The same surgery writes the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import __version__
from ..checkpoint.copy import Progress, read_range
from ..checkpoint.parallel import run_all
from ..checkpoint.plain_json import read_object
from ..checkpoint.reader import Checkpoint

if TYPE_CHECKING:
    from .surgery import Surgery

MANIFEST_NAME = "depthup.json"
_BLOB = re.compile(r"[0-9a-f]{64}")

Facts: TypeAlias = dict[str, Any]  # of one file: num_bytes, digests


def make_manifest(surgery: Surgery, base_files: Mapping[str, Facts], files: Mapping[str, Facts]) -> dict[str, Any]:
    """The manifest of a surgery.

    Args:
        surgery: What was done.
        base_files: What is known of the base's files, by name; see :func:`file_facts`.
        files: The same of the files that were written.
    """
    plan, remote = surgery.plan, surgery.base.remote
    origin = {} if remote is None else {"source": remote.name, "revision": remote.revision}
    new = {str(target): f"{plan.sources[target]}:{plan.init(target)}" for target in plan.new}
    links = {shard.file: {"link": shard.link} for shard in surgery.shards if shard.link}
    return {
        "depthup": __version__,
        "made_by": "depth up-scaling" if plan.num_target_layers > plan.num_base_layers else "surgery",
        "plan": plan.to_json(),
        "seams": [[seam.below, seam.above] for seam in plan.seams],
        "new_layers": new,
        "stack": surgery.stack.prefix,
        "config_lists": dict(surgery.config_lists),
        "config_changes": list(surgery.config_changes),
        "num_parameters": surgery.num_parameters,
        "history": [step.to_json() for step in surgery.history[:-1]],
        "original_layers": surgery.original_layers.to_json(),
        "base": {
            "name": surgery.base.folder.resolve().name,
            **origin,
            "num_parameters": surgery.base.num_parameters,
            "num_bytes": surgery.base.num_bytes,
            "files": dict(base_files),
        },
        "files": {name: {**facts, **links.get(name, {})} for name, facts in files.items()},
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a target, or None if it has none.

    Raises:
        CheckpointError: It cannot be read, or is no JSON object.
    """
    return read_object(folder / MANIFEST_NAME) if os.path.lexists(folder / MANIFEST_NAME) else None


def remote_facts(base: Checkpoint, digests: Mapping[str, str]) -> dict[str, Facts]:
    """:func:`file_facts` of config and weights of a base on a server; ``digests`` are those of its shards as they came.

    A shard that the target takes nothing from was not read, and has no digest.
    """
    assert base.remote is not None
    facts: dict[str, Facts] = {"config.json": file_facts(base.folder / "config.json", True, lambda num_bytes: None)}
    for shard, header in sorted(base.remote.headers.items()):
        file = base.remote.files[shard]
        found = {"header_sha256": hashlib.sha256(header).hexdigest(), "sha256": digests.get(shard)}
        found |= {"hub_sha256": file.sha256}
        facts[shard] = {"num_bytes": file.num_bytes, **{key: value for key, value in found.items() if value}}
    return facts


def all_facts(folder: Path, names: Iterable[str], *, digests: bool, report: Progress | None = None) -> dict[str, Facts]:
    """:func:`file_facts` of several files of a folder, by name."""
    names = list(names)
    jobs: list[Callable[[Progress], Facts]] = [partial(file_facts, folder / name, digests) for name in names]
    return dict(zip(names, run_all(jobs, report), strict=True))


def file_facts(path: Path, digest: bool, report: Progress) -> Facts:
    """Size in bytes, and SHA-256 digests: of weights that of the header, and that of the whole file if asked for.

    A file in the hub's cache is a link to one that is named by the SHA-256 which the hub states (not computed here).
    """
    facts: Facts = {"num_bytes": path.stat().st_size}
    with open(path, "rb", buffering=0) as file:
        if path.suffix == ".safetensors":
            start = file.read(8)
            header = file.read(min(int.from_bytes(start, "little"), facts["num_bytes"]))  # a carried one may be broken
            facts["header_sha256"] = hashlib.sha256(start + header).hexdigest()
        if path.suffix != ".safetensors" or digest:
            whole = hashlib.sha256()
            for piece in read_range(file, 0, facts["num_bytes"]):
                whole.update(piece)
                report(len(piece))
            facts["sha256"] = whole.hexdigest()
    if path.is_symlink():
        target = Path(os.readlink(path))
        if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
            facts["hub_sha256"] = target.name
    return facts
