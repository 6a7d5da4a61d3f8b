"""Sparse upcycling: a dense checkpoint becomes a mixture of experts that computes the same at first (arXiv:2212.05055).

Each expert is a copy of the layer's feed-forward, byte for byte; the router is random. A token's experts are equal and
their weights add up to one, so the mixture is the dense model until training tells the experts apart. As in surgery,
names first: every target tensor is known before a weight is opened, then the bytes stream.

With a granularity G an expert is a G-th of the feed-forward, and a router row stands G times, so that at first a token
goes to all G parts of the copies it is sent to: the virtual groups of arXiv:2410.07524. A part's weight is then a G-th
of what it should be, so the last matrix is multiplied by G, a power of two: exact.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.carry import carry
from ..checkpoint.names import Stack, find_stack
from ..checkpoint.reader import INDEX_NAME, Checkpoint, Tensor
from ..checkpoint.remote import JOURNAL_NAME, open_base, require_here
from ..checkpoint.writer import Move, Progress, Shard, plan_shards
from ..errors import CheckpointError, PlanError, shown
from ..files import human_bytes, write_json
from ..layers import LayerPlan
from .experts import SHARED_WIDTH, ExpertBench, Upcycling
from .history import Step, extend_history, original_layers
from .manifest import MANIFEST_NAME, all_facts, read_manifest
from .moe_forms import DOWN, GATE, UP, Form, find_form, mixture_config
from .parts import sorted_tensors
from .surgery import DEFAULT_SHARD_BYTES, num_carried_bytes, publish_target, require_no_adapter, write_weights

__all__ = ["Upcycle", "Upcycling", "plan_upcycle", "publish_upcycle", "upcycle", "write_upcycle"]
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Upcycle:
    """Everything that will be written, known before a weight is opened.

    Attributes:
        base: The dense checkpoint.
        stack: Its layers.
        upcycling: How it is done.
        form: The mixture's class and names.
        shards: The files to write, with every target tensor and its source.
        config: The target's ``config.json``.
        config_changes: What differs from the base's, one line each.
        history: The surgeries that made the base, and this step, which leaves each layer where it is.
        num_routed: Parameters of all experts that tokens are routed to.
    """

    base: Checkpoint
    stack: Stack
    upcycling: Upcycling
    form: Form
    shards: tuple[Shard, ...]
    config: Mapping[str, Any]
    config_changes: tuple[str, ...]
    history: tuple[Step, ...]
    num_routed: int
    files: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> LayerPlan:
        """Each layer stays where it is."""
        return LayerPlan(self.stack.num_layers, tuple(range(self.stack.num_layers)))

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """Every target tensor with its source, in the order of the files."""
        return tuple(move for shard in self.shards for move in shard.moves)

    @cached_property
    def num_parameters(self) -> int:
        return sum(move.num_elements for move in self.moves)

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token meets, embeddings included."""
        idle = self.upcycling.num_experts - self.upcycling.experts_per_token
        return self.num_parameters - self.num_routed * idle // self.upcycling.num_experts

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all target tensors, headers not counted."""
        return sum(shard.num_data_bytes for shard in self.shards)

    @cached_property
    def num_output_bytes(self) -> int:
        """Bytes that the target takes on the disk."""
        return sum(shard.num_written_bytes for shard in self.shards) + num_carried_bytes(self.base)

    @property
    def num_sparse_layers(self) -> int:
        """Layers with experts."""
        return self.stack.num_layers // self.upcycling.every

    def describe(self) -> str:
        """The mixture and what it costs, as text."""
        how, millions = self.upcycling, 1e-6
        parts = f", each in {how.granularity} parts" * (how.granularity > 1)
        noise = f", all but the first with noise of {how.expert_noise:g}" * (how.expert_noise > 0)
        return "\n".join([
            f"experts     {how.num_experts} copies of the feed-forward{parts}{noise}, {how.experts_per_token} a token,"
            f" in {self.num_sparse_layers} of {self.stack.num_layers} layers",
            f"parameters  {self.base.num_parameters * millions:,.1f} M -> {self.num_parameters * millions:,.1f} M,"
            f" {self.num_active_parameters * millions:,.1f} M of them active for a token",
            f"bytes       {self.base.num_bytes:,} -> {self.num_bytes:,} ({human_bytes(self.num_bytes)}) in"
            f" {len(self.shards)} file" + "s" * (len(self.shards) > 1),
            *(f"config      {change}" for change in self.config_changes),
        ])  # fmt: skip


# -- names first ------------------------------------------------------------------------------------------------------


def plan_upcycle(base: Checkpoint, how: Upcycling, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> Upcycle:
    """Decide on every tensor, file and config field of the mixture. Reads no weights, writes nothing.

    Raises:
        CheckpointError: No mixture of transformers computes what the base computes; or bytes must be made from weights
            that are on a server.
        PlanError: The numbers do not fit the base.
    """
    require_no_adapter(base)
    form = find_form(base.config)
    stack = find_stack(base.tensors, base.config)
    layers, outside = sorted_tensors(base, stack)
    hidden, inner = _widths(stack, form, layers)
    _require_fit(how, form, stack, inner)
    if how.expert_noise or how.granularity > 1 or form.is_fused:
        require_here(base, "its experts are computed from its weights")
    fields = _fields(how, form, inner)
    config, changes = mixture_config(base.config, form, stack.num_layers, hidden, inner, fields)
    bench = ExpertBench(base, stack, form, how, hidden, inner)
    moves = [Move(tensor.name, tensor) for tensor in outside[0]]
    num_routed = 0
    for layer, held in layers.items():
        is_sparse = (layer + 1) % how.every == 0
        moves += bench.sparse_layer(layer, held) if is_sparse else [Move(t.name, t) for t in held.values()]
        num_routed += 3 * hidden * inner * how.num_experts * is_sparse
    moves += [Move(tensor.name, tensor) for tensor in outside[1]]
    plan = LayerPlan(stack.num_layers, tuple(range(stack.num_layers)))
    history = extend_history(base.folder, stack.prefix, plan)
    shards = plan_shards(moves, max_shard_bytes)
    return Upcycle(base, stack, how, form, shards, config, changes, history, num_routed)


def _require_fit(how: Upcycling, form: Form, stack: Stack, inner: int) -> None:
    if inner % how.granularity:
        raise PlanError(
            f"a feed-forward of width {inner} cannot be cut into {how.granularity} equal parts",
            allowed="a power of two that divides it",
        )
    if how.every > 1 and not form.has_dense_layers:
        raise PlanError(
            f"every {how.every} layers: {form.architecture} has experts in all layers",
            allowed="1; more for Qwen2 and Qwen3, whose mixtures may have dense layers between",
        )
    if how.every > stack.num_layers:
        raise PlanError(f"every {how.every} layers of {stack.num_layers}: none would be sparse",
                        allowed=f"1 to {stack.num_layers}")  # fmt: skip


def _fields(how: Upcycling, form: Form, inner: int) -> dict[str, Any]:
    """What the config says of experts. The coefficient of the balancing loss is that of arXiv:2101.03961."""
    fields: dict[str, Any] = {
        form.count_key: how.num_experts * how.granularity,
        "num_experts_per_tok": how.experts_per_token * how.granularity,
        form.width_key: inner // how.granularity,
        "router_aux_loss_coef": 0.01,
        "output_router_logits": False,
    }
    if form.has_dense_layers:
        fields |= {"decoder_sparse_step": how.every, "mlp_only_layers": []}
    if form.has_shared:
        fields["shared_expert_intermediate_size"] = SHARED_WIDTH
    return fields


def _widths(stack: Stack, form: Form, layers: Mapping[int, Mapping[str, Tensor]]) -> tuple[int, int]:
    """Width of the stream and of the feed-forward, once each layer is seen to hold what the form has a place for."""
    for layer, held in layers.items():
        for suffix, tensor in held.items():
            if suffix in (GATE, UP, DOWN) and (
                tensor.dtype not in _FLOATS or len(tensor.shape) != 2 or not tensor.num_elements
            ):
                raise CheckpointError(
                    f"{tensor.name} is stored as {tensor.dtype} {list(tensor.shape)}: experts start as plain matrices",
                    allowed=", ".join(_FLOATS),
                    next_step="upcycle the model in full width, and quantise the result",
                )
            if suffix not in {GATE, UP, DOWN, *form.beside} and not suffix.endswith("rotary_emb.inv_freq"):
                raise CheckpointError(
                    f"{form.architecture} has no place for {tensor.name}, so it could not compute the same",
                    allowed=f"layers of {', '.join(sorted({GATE, UP, DOWN, *form.beside}))}",
                )
        if missing := [suffix for suffix in (GATE, UP, DOWN) if suffix not in held]:
            raise CheckpointError(f"{stack.name(layer, missing[0])} is missing", next_step="run `depthup check` on it")
    inner, hidden = layers[0][GATE].shape
    for held in layers.values():
        for suffix, shape in {GATE: (inner, hidden), UP: (inner, hidden), DOWN: (hidden, inner)}.items():
            if held[suffix].shape != shape:
                raise CheckpointError(f"{held[suffix].name} is {list(held[suffix].shape)}, not {list(shape)}",
                                      allowed="feed-forwards of one width in all layers")  # fmt: skip
    return hidden, inner


def stated_upcycling(folder: Path) -> Upcycling | None:
    """How a checkpoint was upcycled, as its manifest states; None if its last step was another, or it has none.

    Raises:
        CheckpointError: The manifest is not one that upcycling wrote.
    """
    stated = (read_manifest(folder) or {}).get("upcycling")
    if stated is None:
        return None
    try:
        return Upcycling(**stated)
    except (TypeError, PlanError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST_NAME} does not tell how it was upcycled ({shown(error)})",
            next_step="make the checkpoint again",
        ) from error


# -- then bytes -------------------------------------------------------------------------------------------------------


def write_upcycle(
    upcycle: Upcycle, folder: Path, progress: Progress | None = None, *, resume: bool = False, digests: bool = False
) -> tuple[str, ...]:
    """Write the mixture into an existing folder, which the caller publishes; returns the files that were kept.

    Args:
        upcycle: What to write.
        folder: Where to write.
        progress: Called with the number of bytes done since the last call, from several threads, by one at a time.
        resume: Keep what is in the folder and as it should be; remove all else.
        digests: Put the SHA-256 of every file, of base and target, into the manifest.

    Raises:
        CheckpointError: The base changed while it was read, cannot be had, or does not fit its type once it is scaled.
        OutputError: The disk is full.
    """
    base, shards = upcycle.base, upcycle.shards
    kept, base_facts = write_weights(base, shards, folder, progress, resume=resume, digests=digests)
    names = carry(base.folder, folder)
    write_json(folder / "config.json", upcycle.config)
    names += ["config.json", *(shard.file for shard in shards), *[INDEX_NAME] * (len(shards) > 1)]
    facts = all_facts(folder, sorted(names), digests=digests, report=progress if digests else None)
    remote = base.remote
    origin = {} if remote is None else {"source": remote.name, "revision": remote.revision}
    write_json(folder / MANIFEST_NAME, {
        "depthup": __version__,
        "made_by": "sparse upcycling",
        "upcycling": asdict(upcycle.upcycling),
        "plan": upcycle.plan.to_json(),
        "stack": upcycle.stack.prefix,
        "config_changes": list(upcycle.config_changes),
        "num_parameters": upcycle.num_parameters,
        "num_active_parameters": upcycle.num_active_parameters,
        "history": [step.to_json() for step in upcycle.history[:-1]],
        "original_layers": original_layers(upcycle.history).to_json(),
        "base": {
            "name": base.folder.resolve().name, **origin, "num_parameters": base.num_parameters,
            "num_bytes": base.num_bytes, "files": base_facts,
        },
        "files": facts,
    })  # fmt: skip
    (folder / JOURNAL_NAME).unlink(missing_ok=True)
    return kept


def publish_upcycle(
    upcycle: Upcycle, out: Path, progress: Progress | None = None, *, resume: bool = False, digests: bool = False
) -> tuple[str, ...]:
    """Write a planned mixture to the new folder ``out``: space is checked first, the folder appears last.

    Raises:
        CheckpointError: See :func:`write_upcycle`.
        OutputError: ``out`` exists, or the disk is too small.
    """

    def write(partial: Path) -> tuple[str, ...]:
        return write_upcycle(upcycle, partial, progress, resume=resume, digests=digests)

    return publish_target(upcycle.base, out, upcycle.num_output_bytes, write, resume=resume)


def upcycle(
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    how: Upcycling,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    resume: bool = False,
    digests: bool = False,
    progress: Progress | None = None,
) -> Upcycle:
    """Write a dense checkpoint as a mixture of experts to the new folder ``out``, which appears only when it is whole.

    Args:
        base: The dense checkpoint: a folder, a hub model as ``owner/name@revision``, or the URL of a folder.
        out: The folder to make; it must not exist.
        how: ``Upcycling(4)`` for four experts, two a token.
        max_shard_bytes: Size above which a new file begins.
        resume: Go on where a run that was stopped ended; see :func:`~depthup.growth.surgery.upscale`.
        digests: See :func:`write_upcycle`.
        progress: See :func:`write_upcycle`.

    Raises:
        CheckpointError: The base is not whole, or no mixture of transformers computes what it computes.
        PlanError: The numbers do not fit the base.
        OutputError: ``out`` exists, or the disk is too small (checked before the first byte).
    """
    planned = plan_upcycle(open_base(base), how, max_shard_bytes=max_shard_bytes)
    publish_upcycle(planned, Path(out), progress, resume=resume, digests=digests)
    return planned
