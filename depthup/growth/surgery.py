"""Surgery: base checkpoint + plan -> target checkpoint, as a list of byte copies and one edited config.

Decide on names first, then stream bytes: :func:`plan_surgery` reads headers only and finds everything that can be
wrong; :func:`write_surgery` copies. No torch, no model class, memory independent of the model's size.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from errno import ENOSPC
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint.carry import carried_files, carry, module_folders
from ..checkpoint.config import grow_config, refuse_family
from ..checkpoint.names import Stack, find_stack
from ..checkpoint.quantization import carry_metadata, carry_side_files
from ..checkpoint.reader import INDEX_NAME, Checkpoint
from ..checkpoint.remote import JOURNAL_NAME, open_base, require_here
from ..checkpoint.writer import Move, Progress, Shard, plan_shards, write_shards
from ..errors import CheckpointError, OutputError, PlanError
from ..files import allocated_bytes, partial_path, publishing, refuse_existing, require_space, write_json
from ..layers import COPY, LayerPlan
from .freeze import FREEZE_MAP_NAME, write_freeze_map
from .history import Step, extend_history, original_layers
from .inits import READ_NOTHING, Bench, start_layer
from .manifest import MANIFEST_NAME, Facts, all_facts, make_manifest, remote_facts
from .parts import entry_rules, require_alone, shared_tensors, sorted_tensors, unlike_rules
from .special import outside_move

__all__ = ["ADAPTER_CONFIG_NAME", "DEFAULT_SHARD_BYTES", "MANIFEST_NAME", "Surgery", "plan_surgery", "publish_surgery",
           "upscale", "write_surgery"]  # fmt: skip
ADAPTER_CONFIG_NAME = "adapter_config.json"
DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Surgery:
    """Everything that will be written, known before a weight is opened.

    Attributes:
        base: The base checkpoint.
        stack: Its layers.
        plan: The base layer of each target layer.
        shards: The files to write, with every target tensor and its source.
        config: The target's ``config.json``.
        config_changes: What differs from the base's, one line each.
        config_lists: What was said of lists in the config that depthup does not know.
        history: The surgeries that made the base, where it is itself a target, and this one.
        files: Other JSON files that differ from the base's, by name.
    """

    base: Checkpoint
    stack: Stack
    plan: LayerPlan
    shards: tuple[Shard, ...]
    config: Mapping[str, Any]
    config_changes: tuple[str, ...]
    history: tuple[Step, ...]
    config_lists: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """Every target tensor with its source, in the order of the files."""
        return tuple(move for shard in self.shards for move in shard.moves)

    @cached_property
    def original_layers(self) -> LayerPlan:
        """The layer of the very first base that each target layer comes from."""
        return original_layers(self.history)

    @cached_property
    def num_parameters(self) -> int:
        return sum(move.num_elements for move in self.moves)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all target tensors, headers not counted."""
        return sum(shard.num_data_bytes for shard in self.shards)

    @cached_property
    def num_linked_bytes(self) -> int:
        """Bytes of tensors in files that are linked to the base's: they take no disk."""
        return sum(shard.num_data_bytes for shard in self.shards if shard.link)

    @cached_property
    def num_output_bytes(self) -> int:
        """Bytes that the target takes on the disk: tensors, headers and the files that go along."""
        return sum(shard.num_written_bytes for shard in self.shards) + num_carried_bytes(self.base)

    def describe(self) -> str:
        """The plan and what it costs, as text."""
        base, millions = self.base, 1e-6
        num_links = sum(shard.link is not None for shard in self.shards)
        return "\n".join([
            self.plan.render(),
            f"parameters  {base.num_parameters * millions:,.1f} M -> {self.num_parameters * millions:,.1f} M",
            f"bytes       {base.num_bytes:,} -> {self.num_bytes:,} in {len(self.shards)} file"
            + "s" * (len(self.shards) > 1),
            *([f"linked      {self.num_linked_bytes:,} bytes in {num_links} file" + "s" * (num_links > 1)
               + " shared with the base: to edit one edits both"] if num_links else []),
            *(f"config      {change}" for change in self.config_changes),
        ])  # fmt: skip


def num_carried_bytes(base: Checkpoint) -> int:
    """Bytes of the files that go along with a base's weights."""
    if base.remote is None:
        return sum(path.stat().st_size for path in carried_files(base.folder))
    return sum(file.num_bytes for file in base.remote.carried)


def plan_surgery(
    base: Checkpoint,
    plan: LayerPlan,
    *,
    stack: Stack | None = None,
    config_lists: Mapping[str, str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    link: bool = False,
) -> Surgery:
    """Decide on every tensor, file and config field of the target. Reads no weights, writes nothing.

    Args:
        base: An opened checkpoint.
        plan: The plan, made for the depth of ``stack``.
        stack: The layers to work on; found from the names by default.
        config_lists: For lists in the config that depthup does not know: ``"layers"`` or ``"keep"``, by key.
        max_shard_bytes: Size above which a new file begins.
        link: Lay out the target so that files of the base all of whose tensors stay are used as they are.

    Raises:
        CheckpointError: The layers or the config cannot be carried over by index; or tensors are to be made, or files
            linked, whose base is on a server.
        PlanError: The plan was made for another depth, or breaks a period that the config states.
    """
    require_no_adapter(base)
    stack = stack or find_stack(base.tensors, base.config)
    if plan.num_base_layers != stack.num_layers:
        raise PlanError(
            f"the plan is for a base of {plan.num_base_layers} layers, {stack.prefix} has {stack.num_layers}",
            next_step=f"make the plan for {stack.num_layers} layers",
        )
    if computed := sorted({init.kind for init in plan.inits} - READ_NOTHING - {COPY.kind}):
        require_here(base, f"layers that start as {', '.join(computed)} are computed from its weights")
    if link:
        require_here(base, "only files of this disk can be linked")
    if below := module_folders(base.folder):
        require_here(base, f"its modules.json names folders that go along: {', '.join(below)}")
    for fields in (base.config, stack.fields(base.config)):
        refuse_family(fields)
    layers, outside = sorted_tensors(base, stack)
    shared = shared_tensors(stack, layers)
    require_alone(base, stack)
    rules = (*unlike_rules(base, stack, layers), *entry_rules(base, stack))
    edit = grow_config(base.config, stack, plan, config_lists, rules, base.tensors)
    files = carry_side_files(base.folder, stack, plan, base.tensors)
    changes = (*edit.changes, *(f"{name}: layers named by index -> named by the plan" for name in files))
    metadata = carry_metadata(base.metadata, stack, plan)
    bench = Bench(base, stack, plan, layers)
    grown = [move for target in range(plan.num_target_layers) for move in start_layer(bench, target)]
    grown[: len(layers[plan.sources[0]])] += [Move(stack.name(0, suffix), tensor) for suffix, tensor in shared.items()]
    before, after = ([outside_move(base, stack, plan, tensor) for tensor in tensors] for tensors in outside)
    moves = [*before, *grown, *after]
    if any(move.make for move in (*before, *after)):
        require_here(base, "tensors that hold a part for each layer are made anew from its weights")
    # What a header says of all tensors is another for the target: such a file cannot be used as it is.
    linkable = base.tensors.values() if link and not metadata else ()
    shards = tuple(replace(shard, metadata=metadata) for shard in plan_shards(moves, max_shard_bytes, linkable))
    history = extend_history(base.folder, stack.prefix, plan)
    return Surgery(base, stack, plan, shards, edit.config, changes, history, dict(config_lists or {}), files)


def require_no_adapter(base: Checkpoint) -> None:
    """Raise :class:`CheckpointError` if an adapter lies beside the base's weights."""
    if (base.folder / ADAPTER_CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{base.folder} holds a model and an adapter ({ADAPTER_CONFIG_NAME})",
            next_step="put the adapter into a folder of its own; `depthup upscale` grows it by the same plan",
        )


def write_surgery(
    surgery: Surgery, folder: Path, progress: Progress | None = None, *, resume: bool = False, digests: bool = False
) -> tuple[str, ...]:
    """Write the target into an existing folder, which the caller publishes.

    The weights of a base on a server stream through; what is in the folder of them from before is verified and used.

    Args:
        surgery: What to write.
        folder: Where to write.
        progress: See :func:`upscale`.
        resume: Keep what is in the folder and as it should be; remove all else.
        digests: See :func:`upscale`.

    Returns:
        The names of the shards that were kept.

    Raises:
        CheckpointError: The base changed while it was read, or cannot be had.
        OutputError: The disk is full, or a file of the base cannot be linked.
    """
    resume = resume or surgery.base.remote is not None
    try:
        kept, base_facts = write_weights(surgery.base, surgery.shards, folder, progress, resume=resume, digests=digests)
        names = carry(surgery.base.folder, folder)
        for name, value in {"config.json": surgery.config, **surgery.files}.items():
            write_json(folder / name, value)
        write_freeze_map(folder, surgery.stack, surgery.plan, [move.name for move in surgery.moves])
        names += [
            "config.json",
            FREEZE_MAP_NAME,
            *(shard.file for shard in surgery.shards),
            *[INDEX_NAME] * (len(surgery.shards) > 1),
        ]
        facts = all_facts(folder, sorted(names), digests=digests, report=progress if digests else None)
        write_json(folder / MANIFEST_NAME, make_manifest(surgery, base_facts, facts))
        (folder / JOURNAL_NAME).unlink(missing_ok=True)
        return kept
    except OSError as error:
        if error.errno == ENOSPC:
            raise OutputError(
                f"the disk of {folder.parent} is full",
                next_step="free space and run it again" + " (what is written is kept)" * resume,
            ) from error
        raise


def write_weights(
    base: Checkpoint,
    shards: Sequence[Shard],
    folder: Path,
    progress: Progress | None,
    *,
    resume: bool,
    digests: bool,
) -> tuple[tuple[str, ...], dict[str, Facts]]:
    """Write shards and index; returns the shards that were kept, and what is known of the base's files."""
    if base.remote is not None:
        from ..checkpoint.stream import stream_target  # HTTP is slow to import

        return (), remote_facts(base, stream_target(base, shards, folder, progress))
    if resume:
        _clear_but(folder, {shard.file for shard in shards})
    kept = write_shards(base.folder, shards, folder, progress, resume=resume)
    names = ["config.json", *sorted({tensor.shard for tensor in base.tensors.values()})]
    return kept, all_facts(base.folder, names, digests=digests, report=progress if digests else None)


def _clear_but(folder: Path, kept: set[str]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in kept or entry.is_symlink():
            entry.unlink()


def upscale(
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: LayerPlan,
    *,
    stack: str | None = None,
    config_lists: Mapping[str, str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    link: bool = False,
    resume: bool = False,
    digests: bool = False,
    progress: Progress | None = None,
) -> Surgery:
    """Write the target of ``plan`` as a new checkpoint folder ``out``, which appears only when it is whole.

    Args:
        base: The base checkpoint: a folder, a hub model as ``owner/name@revision``, or the URL of a folder.
        out: The folder to make; it must not exist.
        plan: For example ``LayerPlan.upscale(32, 8)``.
        stack: Prefix of the layers to work on, as in ``model.layers``, where a model has several stacks.
        config_lists: See :func:`plan_surgery`.
        max_shard_bytes: Size above which a new file begins.
        link: Use files of the base, as hard links, where the target holds all their tensors under the same names.
            Base and target share them then: who edits one in place edits both. (depthup edits no file in place.)
        resume: Go on where a run with ``resume`` ended or any run was killed: files that are there are compared with
            the base, byte for byte, and kept if they are right. What is written stays if this run ends too.
        digests: Put the SHA-256 of every file, of base and target, into the manifest; takes longer than the surgery.
        progress: Called with the number of bytes done since the last call, from several threads, by one at a time;
            negative where bytes that were thought done are not. Digested bytes are counted too.

    Raises:
        CheckpointError: The base is not whole, or cannot be carried over by index.
        PlanError: The plan does not fit the base.
        OutputError: ``out`` exists, the disk is too small (checked before the first byte), or links are refused.
    """
    checkpoint = open_base(base)
    layers = find_stack(checkpoint.tensors, checkpoint.config, stack)
    surgery = plan_surgery(
        checkpoint, plan, stack=layers, config_lists=config_lists, max_shard_bytes=max_shard_bytes, link=link
    )
    publish_surgery(surgery, Path(out), progress, resume=resume, digests=digests)
    return surgery


def publish_surgery(
    surgery: Surgery, out: Path, progress: Progress | None = None, *, resume: bool = False, digests: bool = False
) -> tuple[str, ...]:
    """Write a planned surgery to the new folder ``out``: space is checked first, the folder appears last.

    What came from a server stays when something fails; the same surgery to the same ``out`` goes on from there.

    Returns:
        The names of the shards that were kept from a run that was stopped (see :func:`upscale`).

    Raises:
        CheckpointError: The base changed while it was read, or cannot be had.
        OutputError: ``out`` exists, the disk is too small, or links are refused.
    """

    def write(partial: Path) -> tuple[str, ...]:
        return write_surgery(surgery, partial, progress, resume=resume, digests=digests)

    return publish_target(surgery.base, out, surgery.num_output_bytes, write, resume=resume)


def publish_target(
    base: Checkpoint, out: Path, num_bytes: int, write: Callable[[Path], tuple[str, ...]], *, resume: bool
) -> tuple[str, ...]:
    """Publish what ``write`` puts into a folder as ``out``, which takes ``num_bytes`` of the disk; see above."""
    refuse_existing(out)
    is_remote = base.remote is not None
    states = [path.lstat() for path in partial_path(out).glob("*.safetensors")] if resume else []
    present = sum(state.st_size for state in states if state.st_nlink == 1)
    if is_remote:  # its files are full of holes
        present = allocated_bytes(partial_path(out))
    require_space(out.parent, num_bytes - present)
    with publishing(out, keep_partial=resume or is_remote) as partial:
        return write(partial)
