"""Tensors that hang on the depth in another way than standing in a layer.

A table with a part for each layer (the per-layer embeddings of Gemma 3n), weights of a sum over layers, a tensor that
one layer stores for all, and multi-token-prediction blocks that are numbered on behind the last layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..checkpoint.names import Stack
from ..checkpoint.reader import DTYPE_BITS, Checkpoint, Tensor
from ..checkpoint.writer import Buffer, Move
from ..errors import CheckpointError, PlanError
from ..layers import LayerPlan

# Tensors with a part for each layer: the end of the name, the axis that is n parts long,
# and the field of the config that is the length of a part.
_TABLES = {
    "embed_tokens_per_layer.weight": (1, "hidden_size_per_layer_input"),
    "per_layer_model_projection.weight": (0, "hidden_size_per_layer_input"),
    "contact_head.regression.weight": (1, "num_attention_heads"),  # ESM: a weight for each head of each layer
}
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Parts:
    """How a tensor with a part for each layer becomes the target's: runs of parts along one axis.

    Attributes:
        axis: The axis that is cut into parts.
        width: Length of a part along it.
        runs: Half-open ranges of the axis, in the order of the target.
    """

    axis: int
    width: int
    runs: tuple[tuple[int, int], ...]


def outside_move(base: Checkpoint, stack: Stack, plan: LayerPlan, tensor: Tensor) -> Move:
    """The target tensor of a tensor that stands in no layer; mostly a plain copy."""
    place = stack.split(tensor.name)
    if place is not None:  # a block behind the last layer: the target's last layer is further on
        moved = place[0] - plan.num_base_layers + plan.num_target_layers
        return Move(stack.name(moved, place[1]), tensor)
    parts = _parts(base, stack, plan, tensor)
    if parts is None:
        return Move(tensor.name, tensor)
    if DTYPE_BITS[tensor.dtype] % 8:
        raise CheckpointError(
            f"{tensor.name} has a part for each layer, and parts of type {tensor.dtype} are no whole bytes",
            next_step="store it as a wider type",
        )
    shape = list(tensor.shape)
    shape[parts.axis] = sum(stop - start for start, stop in parts.runs)
    return Move(tensor.name, tensor, lambda: _gather(base, tensor, parts), tuple(shape))


def _parts(base: Checkpoint, stack: Stack, plan: LayerPlan, tensor: Tensor) -> Parts | None:
    if not prod(tensor.shape) or not tensor.shape:
        return None
    n = plan.num_base_layers
    parent = stack.prefix.rpartition(".")[0]
    for end, (axis, field) in _TABLES.items():
        width = stack.fields(base.config).get(field)
        root = parent.partition(".")[0] if field == "num_attention_heads" else parent
        inside = tensor.name.startswith(f"{root}.") if root else True
        there = inside and tensor.name.endswith(end) and axis < len(tensor.shape)
        if there and type(width) is int and tensor.shape[axis] == n * width:
            return Parts(axis, width, tuple((part.start * width, part.stop * width) for part in plan.slices))
    if tensor.name.rpartition(".")[2] == "layer_weights" and tensor.shape == (n + 1,):
        # One weight for each hidden state, the embeddings' first: a copy of a layer counts as much as the layer.
        return Parts(0, 1, ((0, 1), *((part.start + 1, part.stop + 1) for part in plan.slices)))
    if tensor.name.endswith("mid_position_embeddings") and tensor.shape[0] == n - 1:
        # YOLOS adds one behind each layer but the last.
        if n - 1 in plan.sources[:-1]:
            raise PlanError(f"{tensor.name} has nothing to add behind base layer {n - 1}", next_step="keep it last")
        inner = LayerPlan(n, plan.sources[:-1])
        return Parts(0, 1, tuple((part.start, part.stop) for part in inner.slices))
    return None


def _gather(base: Checkpoint, tensor: Tensor, parts: Parts) -> Iterator[Buffer]:
    """The bytes of the target tensor, a chunk of rows at a time."""
    inner = prod(tensor.shape[parts.axis + 1 :]) * DTYPE_BITS[tensor.dtype] // 8
    row = tensor.shape[parts.axis] * inner
    num_rows = prod(tensor.shape[: parts.axis])
    with open(base.folder / tensor.shard, "rb", buffering=0) as file:
        if num_rows == 1:  # the parts lie side by side
            for start, stop in parts.runs:
                for begin in range(start * inner, stop * inner, _CHUNK_BYTES):
                    yield os.pread(file.fileno(), min(_CHUNK_BYTES, stop * inner - begin), tensor.begin + begin)
            return
        step = max(_CHUNK_BYTES // row, 1)
        for first in range(0, num_rows, step):
            count = min(step, num_rows - first)
            chunk = os.pread(file.fileno(), count * row, tensor.begin + first * row)
            yield b"".join(
                chunk[i * row + start * inner : i * row + stop * inner]
                for i in range(count)
                for start, stop in parts.runs
            )
