"""Several checkpoints of one architecture -> one, tensor by tensor: nothing larger than a tensor is in memory.

Names first: every tensor of the merge and what it is made of is known, and every mismatch told, before a weight is
read. Then the bytes stream (streaming.py): for most methods some thousands at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.carry import carry
from ..checkpoint.copy import Progress
from ..checkpoint.floats import STORED_AS
from ..checkpoint.names import find_stacks
from ..checkpoint.reader import Checkpoint, Tensor, open_checkpoint, same_bytes
from ..checkpoint.shards import Move, Shard, plan_shards
from ..checkpoint.spread import write_spread
from ..errors import CheckpointError, DepthupError, nearest
from ..files import publishing, refuse_existing, require_space, write_json
from .kinship import require_kin
from .methods import METHODS, Call, Method
from .streaming import merged_bytes

MERGE_NAME = "merge.json"
STORED = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Merge:
    """Everything that will be written, known before a weight is read.

    Attributes:
        models: The checkpoints, the first of which gives config, tokenizer and other files.
        base: What their offsets are counted from, if the method counts so.
        method: Name of the method.
        weights: One a model.
        layer_weights: Other weights for some layers: ``(first, one behind the last, weights)``.
        options: The method's numbers.
        shards: The files to write.
    """

    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    method: str
    weights: tuple[float, ...]
    layer_weights: tuple[tuple[int, int, tuple[float, ...]], ...]
    options: Mapping[str, float]
    shards: tuple[Shard, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors that are written."""
        return sum(shard.num_data_bytes for shard in self.shards)


def plan_merge(
    models: Sequence[str | os.PathLike[str]],
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    base: str | os.PathLike[str] | None = None,
    layer_weights: Mapping[str, Sequence[float]] | None = None,
    options: Mapping[str, float] | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Merge:
    """Decide on every tensor of the merge. Reads no weights, writes nothing.

    Args:
        models: Checkpoint folders, all with the same tensors.
        method: A key of :data:`depthup.merging.methods.METHODS`.
        weights: One a model; equal by default. ``slerp``'s say how far: (0.6, 0.4) is four tenths of the way.
        base: The model that the others were trained from, where the method needs one.
        layer_weights: Other weights for some layers, by half-open ranges: ``{"0-16": (0.7, 0.3)}``.
        options: Numbers of the method, others than their defaults.
        dtype: Type of the merge's float tensors; by default each as the first model has it.
        max_shard_bytes: Size above which a new file begins.

    Raises:
        DepthupError: Unknown method or option, or numbers out of their range.
        CheckpointError: The models hold unlike tensors or quantised ones that differ, compute otherwise by their
            configs, or have tokenizers in which one id is two tokens.
    """
    chosen = _method(method, len(models), base is not None)
    numbers = _options(chosen, method, options or {})
    shares = _weights(weights, len(models), chosen)
    checkpoints = tuple(open_checkpoint(model) for model in models)
    ground = None if base is None else open_checkpoint(base)
    everyone = (*checkpoints, *([ground] if ground else []))
    for other in everyone[1:]:
        _require_alike(checkpoints[0], other)
        require_kin(checkpoints[0], other)
    ranges = tuple(_layer_range(text, given, len(models), chosen) for text, given in (layer_weights or {}).items())
    stacks = tuple(find_stacks(checkpoints[0].tensors, checkpoints[0].config)) if ranges else ()
    _require_layers(ranges, stacks)
    weights_of = partial(_weights_of, stacks, ranges, shares)
    moves = []
    for name, tensor in checkpoints[0].tensors.items():
        call = Call(weights_of(name), numbers, name=name)
        moves.append(_move(tensor, everyone, chosen, call, ground is not None, dtype))
    shards = plan_shards(moves, max_shard_bytes)
    return Merge(checkpoints, ground, method, shares, ranges, numbers, shards)


def merge(
    models: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **how: Any,
) -> Merge:
    """Write the merge of ``models`` as a new checkpoint folder ``out``, which appears only when it is whole.

    Args:
        models: See :func:`plan_merge`, as all other arguments.
        out: The folder to make; it must not exist.
        progress: Called with the number of bytes written since the last call, from several threads, by one at a time.

    Raises:
        OutputError: ``out`` exists, or the disk is too small (checked before the first byte).
    """
    plan = plan_merge(models, **how)
    publish_merge(plan, Path(out), progress)
    return plan


def publish_merge(plan: Merge, out: Path, progress: Progress | None = None) -> None:
    """Write a planned merge to the new folder ``out``: see :func:`merge`."""
    refuse_existing(out)
    require_space(out.parent, plan.num_bytes)
    with publishing(out) as partial_folder:
        write_merge(plan, partial_folder, progress)


def write_merge(plan: Merge, folder: Path, progress: Progress | None = None) -> None:
    """Write a planned merge into an existing folder, which the caller publishes.

    Raises:
        CheckpointError: A model changed while it was read.
    """
    first, before = plan.models[0], _states(plan)
    write_spread(first.folder, plan.shards, folder, progress, one_at_a_time=METHODS[plan.method].whole)
    if changed := sorted(str(path) for path, state in _states(plan).items() if state != before[path]):
        raise CheckpointError(
            f"{changed[0]} was written to while it was read",
            next_step="let nothing write to the models, and merge again",
        )
    carry(first.folder, folder)
    config = dict(first.config)
    stored = {move.source.dtype for shard in plan.shards for move in shard.moves if move.make is not None}
    if len(stored) == 1 and (name := {kind: name for name, kind in STORED.items()}.get(stored.pop())):
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = name
    write_json(folder / "config.json", config)
    write_json(folder / MERGE_NAME, {
        "method": plan.method,
        "models": [str(model.folder) for model in plan.models],
        "base": None if plan.base is None else str(plan.base.folder),
        "weights": list(plan.weights),
        "layer_weights": {f"{first}-{last}": list(weights) for first, last, weights in plan.layer_weights},
        "options": dict(plan.options),
    })  # fmt: skip


def _states(plan: Merge) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every weight file that is read."""
    everyone = (*plan.models, *([plan.base] if plan.base else []))
    paths = {model.folder / tensor.shard for model in everyone for tensor in model.tensors.values()}
    return {path: (state.st_size, state.st_mtime_ns) for path in paths for state in [path.stat()]}


# -- names first ------------------------------------------------------------------------------------------------------


def _method(name: str, num_models: int, has_base: bool) -> Method:
    if name not in METHODS:
        raise DepthupError(f"unknown merge method '{name}'{nearest(name, METHODS)}", allowed=", ".join(METHODS))
    method = METHODS[name]
    wanted = f"{method.num_models} models" if method.num_models else "two models or more"
    if num_models < 2 or (method.num_models and num_models != method.num_models):
        raise DepthupError(f"{name} was given {num_models} model{'s' * (num_models != 1)}", allowed=wanted)
    if method.needs_base != has_base:
        raise DepthupError(
            f"{name} needs the base that the models were trained from" if method.needs_base else f"{name} has no base",
            next_step="give it with --base" if method.needs_base else "leave --base out",
        )
    return method


def _options(method: Method, name: str, given: Mapping[str, float]) -> dict[str, float]:
    for key, value in given.items():
        if key not in method.options:
            raise DepthupError(
                f"{name} has no option '{key}'{nearest(key, method.options)}",
                allowed=", ".join(method.options) or "none",
            )
        if key == "density" and not 0 < value <= 1:
            raise DepthupError(f"density {value} is no share of the entries", allowed="0 < density <= 1")
        if not math.isfinite(value) or (key == "seed" and (value < 0 or value != int(value))):
            allowed = "a whole number from 0 up" if key == "seed" else "a finite number"
            raise DepthupError(f"{key} {value} cannot be computed with", allowed=allowed)
    return {**method.options, **given}


def _weights(given: Sequence[float] | None, num_models: int, method: Method) -> tuple[float, ...]:
    weights = tuple(float(weight) for weight in given) if given is not None else (1 / num_models,) * num_models
    said = f"the weights {', '.join(f'{weight:g}' for weight in weights)}"
    if not method.weighted and len(set(weights)) > 1:
        raise DepthupError(f"{said} would change nothing: this method takes all models alike",
                           next_step="leave --weights out, or choose another method")  # fmt: skip
    no_sum = method.normalises and abs(sum(weights)) <= 1e-9
    if len(weights) != num_models or no_sum or not all(map(math.isfinite, weights)):
        raise DepthupError(
            f"{said} do not fit {num_models} models",
            allowed=f"{num_models} finite numbers{' whose sum is not zero' if method.normalises else ''}",
        )
    return weights


def _layer_range(
    text: str, given: Sequence[float], num_models: int, method: Method
) -> tuple[int, int, tuple[float, ...]]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not last)) or (last and int(last) <= int(first)):
        raise DepthupError(f"'{text}' is no range of layers", allowed="0-16 for layers 0 to 15, or 7 for one layer")
    return int(first), int(last or int(first) + 1), _weights(given, num_models, method)


def _require_layers(ranges: Sequence[tuple[int, int, tuple[float, ...]]], stacks: Sequence[Any]) -> None:
    """Every range names layers that are there, and no layer is in two."""
    num_layers = max((stack.num_layers for stack in stacks), default=0)
    behind = 0
    for first, last, _ in sorted(ranges):
        if last > num_layers:
            raise DepthupError(
                f"layers {first}-{last} are not all there: the models have {num_layers}",
                allowed=f"ranges within 0-{num_layers}",
            )
        if first < behind:
            raise DepthupError(f"layer {first} is in two ranges of layer weights", next_step="name each layer once")
        behind = last


def _weights_of(
    stacks: Sequence[Any], ranges: Sequence[tuple[int, int, tuple[float, ...]]], weights: tuple[float, ...], name: str
) -> tuple[float, ...]:
    places = (place for stack in stacks if (place := stack.split(name)) is not None)
    layer = next((place[0] for place in places), None)
    if layer is not None:
        for first, last, others in ranges:
            if first <= layer < last:
                return others
    return weights


def _require_alike(one: Checkpoint, other: Checkpoint) -> None:
    """Both hold the same tensors of the same shapes."""
    names, others = one.tensors.keys(), other.tensors.keys()
    if names != others:
        name = min(names ^ others)
        where = one if name in names else other
        raise CheckpointError(
            f"{one.folder} and {other.folder} hold unlike tensors: {name} is in {where.folder} only"
            f" ({len(names ^ others)} such tensors)",
            next_step="merge models of one architecture and depth, grown by the same plan",
        )
    for name, tensor in one.tensors.items():
        if tensor.shape != other.tensors[name].shape:
            vocabulary = " (another vocabulary?)" if "embed" in name or "head" in name else ""
            raise CheckpointError(
                f"{name} is {list(tensor.shape)} in {one.folder} and {list(other.tensors[name].shape)} in"
                f" {other.folder}{vocabulary}",
                next_step="merge models of one architecture with one tokenizer",
            )


def _move(
    tensor: Tensor, everyone: Sequence[Checkpoint], method: Method, call: Call, has_base: bool, dtype: str | None
) -> Move:
    sources = [(checkpoint.folder, checkpoint.tensors[tensor.name]) for checkpoint in everyone]
    if all(source.dtype in STORED_AS for _, source in sources):
        target = replace(tensor, dtype=STORED[dtype]) if dtype else tensor
        return Move(tensor.name, target, partial(merged_bytes, sources, method, call, has_base, target.dtype))
    if not all(same_bytes(sources[0], other) for other in sources[1:]):
        raise CheckpointError(
            f"{tensor.name} is stored as {tensor.dtype}, in which numbers cannot be averaged, and differs",
            allowed=", ".join(STORED_AS),
            next_step="merge the unquantised models",
        )
    return Move(tensor.name, tensor)
