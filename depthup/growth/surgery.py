"""Surgery: base checkpoint + plan -> target checkpoint, as a list of byte copies and one edited config.

Decide on names first, then stream bytes: :func:`plan_surgery` reads headers only and finds everything that can be
wrong; :func:`write_surgery` copies. No torch, no model class, memory independent of the model's size.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from errno import ENOSPC
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.carry import carried_files, carry
from ..checkpoint.config import Rule, grow_config, layer_kinds, refuse_family
from ..checkpoint.fields import SPECIAL_ENDS, STORED_FIRST
from ..checkpoint.names import Stack, find_stack, find_stacks, indexed_prefixes
from ..checkpoint.quantization import carry_metadata, carry_side_files, layer_forms
from ..checkpoint.reader import Checkpoint, Tensor, open_checkpoint
from ..checkpoint.writer import Move, Progress, Shard, plan_shards, write_shards
from ..errors import CheckpointError, OutputError, PlanError
from ..files import publishing, refuse_existing, require_space, write_json
from ..layers import LayerPlan
from .inits import Bench, start_layer
from .special import outside_move

MANIFEST_NAME = "depthup.json"
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
        config: The target's ``config.json``, or ``adapter_config.json``.
        config_changes: What differs from the base's, one line each.
        files: Other JSON files that differ from the base's, by name.
        config_name: The file that the config is written to.
    """

    base: Checkpoint
    stack: Stack
    plan: LayerPlan
    shards: tuple[Shard, ...]
    config: Mapping[str, Any]
    config_changes: tuple[str, ...]
    files: Mapping[str, Any] = field(default_factory=dict)
    config_name: str = "config.json"

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """Every target tensor with its source, in the order of the files."""
        return tuple(move for shard in self.shards for move in shard.moves)

    @cached_property
    def num_parameters(self) -> int:
        return sum(move.num_elements for move in self.moves)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all target tensors, headers not counted."""
        return sum(shard.num_data_bytes for shard in self.shards)

    @cached_property
    def num_output_bytes(self) -> int:
        """Bytes that the target takes on the disk: tensors, headers and the files that go along."""
        carried = sum(path.stat().st_size for path in carried_files(self.base.folder))
        return self.num_bytes + sum(len(shard.header()) for shard in self.shards) + carried

    def describe(self) -> str:
        """The plan and what it costs, as text."""
        base, millions = self.base, 1e-6
        return "\n".join([
            self.plan.render(),
            f"parameters  {base.num_parameters * millions:,.1f} M -> {self.num_parameters * millions:,.1f} M",
            f"bytes       {base.num_bytes:,} -> {self.num_bytes:,} in {len(self.shards)} file"
            + "s" * (len(self.shards) > 1),
            *(f"config      {change}" for change in self.config_changes),
        ])  # fmt: skip


def plan_surgery(
    base: Checkpoint,
    plan: LayerPlan,
    *,
    stack: Stack | None = None,
    config_lists: Mapping[str, str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Surgery:
    """Decide on every tensor, file and config field of the target. Reads nothing, writes nothing.

    Args:
        base: An opened checkpoint.
        plan: The plan, made for the depth of ``stack``.
        stack: The layers to work on; found from the names by default.
        config_lists: For lists in the config that depthup does not know: ``"layers"`` or ``"keep"``, by key.
        max_shard_bytes: Size above which a new file begins.

    Raises:
        CheckpointError: The layers or the config cannot be carried over by index.
        PlanError: The plan was made for another depth, or breaks a period that the config states.
    """
    if (base.folder / ADAPTER_CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{base.folder} holds a model and an adapter ({ADAPTER_CONFIG_NAME})",
            next_step="put the adapter into a folder of its own; `depthup upscale` grows it by the same plan",
        )
    stack = stack or find_stack(base.tensors, base.config)
    if plan.num_base_layers != stack.num_layers:
        raise PlanError(
            f"the plan is for a base of {plan.num_base_layers} layers, {stack.prefix} has {stack.num_layers}",
            next_step=f"make the plan for {stack.num_layers} layers",
        )
    refuse_family(stack.fields(base.config))
    layers, outside = _sorted_tensors(base, stack)
    shared = _shared_tensors(stack, layers)
    _refuse_lists_beside(base, stack)
    edit = grow_config(base.config, stack, plan, config_lists, list(_rules(base, stack, layers)), base.tensors)
    files = carry_side_files(base.folder, stack, plan, base.tensors)
    bench = Bench(base, stack, plan, layers)
    grown = [move for target in range(plan.num_target_layers) for move in start_layer(bench, target)]
    grown[: len(layers[plan.sources[0]])] += [Move(stack.name(0, suffix), tensor) for suffix, tensor in shared.items()]
    before, after = ([outside_move(base, stack, plan, tensor) for tensor in tensors] for tensors in outside)
    moves = [*before, *grown, *after]
    changes = (*edit.changes, *(f"{name}: layers named by index -> named by the plan" for name in files))
    metadata = carry_metadata(base.metadata, stack, plan)
    shards = tuple(replace(shard, metadata=metadata) for shard in plan_shards(moves, max_shard_bytes))
    return Surgery(base, stack, plan, shards, edit.config, changes, files)


def write_surgery(surgery: Surgery, folder: Path, progress: Progress | None = None) -> None:
    """Write the target into an existing folder, which the caller publishes.

    Raises:
        CheckpointError: The base changed while it was read.
        OutputError: The disk is full.
    """
    base = surgery.base.folder
    try:
        carry(base, folder)
        for name, value in {surgery.config_name: surgery.config, **surgery.files}.items():
            write_json(folder / name, value)
        write_shards(base, surgery.shards, folder, progress)
        write_json(folder / MANIFEST_NAME, _manifest(surgery))
    except OSError as error:
        if error.errno == ENOSPC:
            raise OutputError(
                f"the disk of {folder.parent} is full", next_step="free space and run it again"
            ) from error
        raise


def upscale(
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: LayerPlan,
    *,
    stack: str | None = None,
    config_lists: Mapping[str, str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> Surgery:
    """Write the target of ``plan`` as a new checkpoint folder ``out``, which appears only when it is whole.

    Args:
        base: The base checkpoint folder.
        out: The folder to make; it must not exist.
        plan: For example ``LayerPlan.upscale(32, 8)``.
        stack: Prefix of the layers to work on, as in ``model.layers``, where a model has several stacks.
        config_lists: See :func:`plan_surgery`.
        max_shard_bytes: Size above which a new file begins.
        progress: Called with the number of bytes written since the last call.

    Raises:
        CheckpointError: The base is not whole, or cannot be carried over by index.
        PlanError: The plan does not fit the base.
        OutputError: ``out`` exists or the disk is too small (checked before the first byte).
    """
    checkpoint = open_checkpoint(base)
    layers = find_stack(checkpoint.tensors, checkpoint.config, stack)
    surgery = plan_surgery(checkpoint, plan, stack=layers, config_lists=config_lists, max_shard_bytes=max_shard_bytes)
    publish_surgery(surgery, Path(out), progress)
    return surgery


def publish_surgery(surgery: Surgery, out: Path, progress: Progress | None = None) -> None:
    """Write a planned surgery to the new folder ``out``: space is checked first, the folder appears last.

    Raises:
        CheckpointError: The base changed while it was read.
        OutputError: ``out`` exists or the disk is too small.
    """
    refuse_existing(out)
    require_space(out.parent, surgery.num_output_bytes)
    with publishing(out) as partial:
        write_surgery(surgery, partial, progress)


def _sorted_tensors(
    base: Checkpoint, stack: Stack
) -> tuple[dict[int, dict[str, Tensor]], tuple[list[Tensor], list[Tensor]]]:
    """The tensors of each layer by suffix, and those outside the layers: before the first one, and after it.

    Embeddings first, norm and head last: in the order of the base when it is one file, and of use.
    """
    layers: dict[int, dict[str, Tensor]] = {layer: {} for layer in range(stack.num_layers)}
    outside: tuple[list[Tensor], list[Tensor]] = ([], [])
    for tensor in base.tensors.values():
        place = stack.split(tensor.name)
        if place is None or place[0] >= stack.num_layers:
            outside[any(layers.values())].append(tensor)
        else:
            layers[place[0]][place[1]] = tensor
    return layers, outside


def _shared_tensors(stack: Stack, layers: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Take out of the first layer what it stores for all layers (the position bias of T5)."""
    counts = Counter(suffix for held in layers.values() for suffix in held)
    names = [suffix for suffix in layers[0] if counts[suffix] == 1 and STORED_FIRST.search(suffix)]
    return {suffix: layers[0].pop(suffix) for suffix in names}


def _refuse_lists_beside(base: Checkpoint, stack: Stack) -> None:
    """A list beside the layers with a member for each of them would have to grow as well."""
    parent = stack.prefix.rpartition(".")[0]
    others = {other.prefix for other in find_stacks(base.tensors, base.config)} | set(stack.companions)
    for prefix, indices in indexed_prefixes(base.tensors).items():
        beside = prefix.startswith(f"{parent}.") if parent else "." not in prefix
        if beside and len(indices) == stack.num_layers > 1 and prefix not in others:
            raise CheckpointError(
                f"beside {stack.prefix} stands {prefix}, a list of {len(indices)} as well, and depthup does not know"
                " whether it has one member for each layer",
                next_step="this architecture is not supported yet",
            )


def _rules(base: Checkpoint, stack: Stack, layers: Mapping[int, Mapping[str, Tensor]]) -> Iterator[Rule]:
    """Layers with unlike tensors may only change places if the config says for each layer of which kind it is.

    Where a family is known for special first or last layers, these may stay where they are.
    """
    n = stack.num_layers
    num_first, num_last = SPECIAL_ENDS.get(str(stack.fields(base.config).get("model_type")), (0, 0))
    special = {*range(num_first), *range(n - num_last, n)}
    first_of: dict[tuple[str, ...], int] = {}
    forms = layer_forms(layers, base.config, stack)
    for layer, kind in enumerate(layer_kinds(base.config, stack)):
        if layer in special:
            continue
        first = first_of.setdefault(kind, layer)
        one, other = ({*forms[i].items()} for i in (first, layer))
        if one != other:
            raise CheckpointError(
                f"layers {first} and {layer} of {stack.prefix} hold unlike tensors ({min(one ^ other)[0]}), and nothing"
                " in the config says that they are of unlike kinds, so with these layers in other places a target would"
                " not load",
                next_step="run `depthup check` on the base; if it is whole, this architecture is not supported yet",
            )
    if num_first:
        yield Rule(
            f"the first of {stack.prefix} is unlike the others, so it can only stand first",
            lambda plan: [t for t, source in enumerate(plan.sources) if source < num_first] == list(range(num_first)),
        )
    if num_last:
        yield Rule(
            f"the last of {stack.prefix} is unlike the others, so it can only stand last",
            lambda plan: (
                [len(plan.sources) - t for t, source in enumerate(plan.sources) if source >= n - num_last]
                == list(range(num_last, 0, -1))
            ),
        )


def _manifest(surgery: Surgery) -> dict[str, Any]:
    return {
        "depthup": __version__,
        "made_by": "depth up-scaling",
        "plan": surgery.plan.to_json(),
        "stack": surgery.stack.prefix,
        "base": {
            "name": surgery.base.folder.resolve().name,
            "num_parameters": surgery.base.num_parameters,
            "num_bytes": surgery.base.num_bytes,
        },
        "num_parameters": surgery.num_parameters,
        "config_changes": list(surgery.config_changes),
    }
