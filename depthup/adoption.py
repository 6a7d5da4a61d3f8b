"""A checkpoint that was made elsewhere becomes the result of a stage, and says so.

Its fingerprint is that of its files, not of the stage's settings: what comes from it is made anew if it is another
model. It stands for the settings that the stage has now; with others, the stage is stale.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

from .artifacts.fingerprint import fingerprint
from .artifacts.record import RECORD_NAME, Record, read_record
from .artifacts.store import Store
from .checkpoint.check import check_checkpoint
from .checkpoint.remote import local_folder
from .errors import CheckpointError, RecipeError
from .pipeline import Node, require_stage, survey
from .recipe import Recipe
from .training_run import shape_of

_MAKE_NO_CHECKPOINT = ("evaluate", "report")
_NOT_TAKEN = {RECORD_NAME, "adopted.json"}


def adopt(recipe: Recipe, store: Store, name: str, source: str, *, link: bool = True, load: bool = True) -> Record:
    """Put a checkpoint into the store as the result of a stage.

    Args:
        recipe: Has the stage.
        store: Takes the files.
        name: The stage.
        source: Checkpoint folder, or a model on the hub as ``owner/name``.
        link: Hard-link the files where the file system can (they are shared then: to edit one in place edits both).
        load: Also load it with transformers, on the meta device.

    Raises:
        RecipeError: No such stage, it makes no checkpoint, or it is made already.
        CheckpointError: The checkpoint is not whole, does not load, or has another depth than the stage gives.
    """
    require_stage(recipe, name)
    folder = local_folder(source)
    with store.in_use():
        node = survey(recipe, store)[name]
        if node.stage.kind in _MAKE_NO_CHECKPOINT:
            raise RecipeError(f"stage {name} is of kind {node.stage.kind}", allowed="a stage that makes a checkpoint")
        if node.record is not None:
            raise RecipeError(f"stage {name} is cached: {node.folder}", next_step="remove that folder to replace it")
        require_whole(folder, load=load)
        shape = shape_of(folder)
        _require_depth(node, shape["num_layers"], store)
        digest = store.digests.of_checkpoint(folder)
        identity = {"kind": node.stage.kind, "adopted": digest}
        record = Record(
            stage=name,
            kind=node.stage.kind,
            fingerprint=fingerprint(identity),
            identity=identity,
            inputs={},
            results=_results_of(folder, node.stage.kind) | shape,
            circumstance={"seconds": 0, "adopted_from": str(folder.resolve()), "stands_for": node.identity},
        )
        if store.find(name, record.fingerprint) is None:
            with store.making(name, record.fingerprint, keep_partial=False) as partial:
                linked = [take(path, partial, link=link) for path in _files(folder)]
                if not all(linked):
                    _require_same(store, partial, digest)
                record.write(partial)
        store.stand_for(name, node.fingerprint, record.fingerprint)
        store.point_to(name, record.fingerprint)
    return record


def require_whole(folder: Path, *, load: bool) -> None:
    """Raise :class:`CheckpointError` for the first finding of ``depthup check``."""
    findings = check_checkpoint(folder)
    if load and all(finding.guessed for finding in findings):
        from .models import UnknownModel, findings_on_loading

        # Of a model whose code comes with it, or that transformers has no class for, headers and config tell all.
        with contextlib.suppress(UnknownModel):
            findings = list(findings_on_loading(folder))
    if findings:
        raise CheckpointError(f"{folder}: {findings[0].problem}", next_step=f"see `depthup check {folder}`")


def take(path: Path, folder: Path, *, link: bool) -> bool:
    """Hard-link a file into a folder, or copy it where that cannot be; returns whether it was linked."""
    path = path.resolve()  # files of the hub's cache are links
    if link:
        try:
            os.link(path, folder / path.name)
            return True
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
    shutil.copyfile(path, folder / path.name)
    return False


def _files(folder: Path) -> list[Path]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in entries if path.is_file() and path.name not in _NOT_TAKEN]


def _require_same(store: Store, partial: Path, digest: str) -> None:
    if store.digests.of_checkpoint(partial) != digest:
        raise CheckpointError("the checkpoint changed while it was copied", next_step="adopt it again, unchanged")


def _require_depth(node: Node, num_layers: int, store: Store) -> None:
    """A surgery's depth is what its plan says; its base must be made, else it is not known and not asked."""
    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint
    from .growth_stage_settings import UpscaleStage
    from .presets import make_plan

    stage = node.stage
    if not isinstance(stage, UpscaleStage):
        return
    made = store.find(stage.base, str(node.identity["base"]))
    if made is None and not os.path.isdir(stage.base):
        return
    base = open_checkpoint(store.folder(stage.base, made.fingerprint) if made else Path(stage.base))
    depth = find_stack(base.tensors, base.config).num_layers
    named = {key: getattr(stage, key) for key in ("remove", "target_layers", "layers", "preset")}
    wanted = make_plan(depth, **named).num_target_layers
    if num_layers != wanted:
        raise CheckpointError(f"it has {num_layers} layers", allowed=f"{wanted}, as stage {node.name} makes them")


def _results_of(folder: Path, kind: str) -> dict[str, Any]:
    """What is known of how it came about: the results of its own record, or the plan in its ``depthup.json``."""
    record = read_record(folder)
    if record is not None and record.kind == kind:
        return record.results
    from .growth.manifest import read_manifest

    plan = (read_manifest(folder) or {}).get("plan")
    return {"plan": plan} if kind == "upscale" and isinstance(plan, dict) else {}
