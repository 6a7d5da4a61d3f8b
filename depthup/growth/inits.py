"""How a target layer starts that is no plain copy: for each kind of :class:`~depthup.layers.Init` one function.

A function sees the base's layers by name and says, tensor by tensor, how the bytes of the target layer are made; what
it does not mention is copied. Bytes are made when they are written, one tensor after the other, so memory does not grow
with the model. Modules that compute (numpy, torch) are loaded when a plan asks for them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeAlias

from ..checkpoint.names import Stack
from ..checkpoint.reader import Checkpoint, Tensor
from ..checkpoint.writer import Buffer, Move
from ..errors import CheckpointError
from ..layers import COPY, LayerPlan
from .residual import Residual, find_residual

Maker: TypeAlias = Callable[[], Iterable[Buffer]]
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Bench:
    """What an init may look at.

    Attributes:
        base: The base checkpoint.
        stack: The stack that grows.
        plan: The plan.
        layers: Each base layer's tensors by suffix (``mlp.up_proj.weight``).
        kept: What an init keeps from one tensor to the next, such as a fitted network; lives as long as the surgery.
    """

    base: Checkpoint
    stack: Stack
    plan: LayerPlan
    layers: Mapping[int, Mapping[str, Tensor]]
    kept: dict[Any, Any] = field(default_factory=dict)

    def source(self, target: int) -> Mapping[str, Tensor]:
        """The tensors of the base layer that a target layer starts from."""
        return self.layers[self.plan.sources[target]]

    def residual(self, target: int) -> Residual:
        """How the branches of that layer reach the stream.

        Raises:
            CheckpointError: See :func:`~depthup.growth.residual.find_residual`.
        """
        return find_residual(self.base.config, self.stack, self.source(target))


Kind: TypeAlias = Callable[[Bench, int], dict[str, Maker]]


def start_layer(bench: Bench, target: int) -> list[Move]:
    """The tensors of one target layer, each with how it is copied or made.

    Raises:
        CheckpointError: The init does not work for this architecture.
        PlanError: The init lacks a number that must be measured first.
    """
    init = bench.plan.init(target)
    makers = {} if init == COPY else KINDS[init.kind](bench, target)
    return [
        Move(bench.stack.name(target, suffix), tensor, makers.get(suffix))
        for suffix, tensor in bench.source(target).items()
    ]


def identity(bench: Bench, target: int) -> dict[str, Maker]:
    """Silent residual outputs, so that the layer adds nothing to the stream: LLaMA Pro, arXiv:2401.02415, section 3.2.

    There these are the zeroed ``o_proj`` and ``down_proj``; in other families what :mod:`.residual` finds.
    """
    residual, held = bench.residual(target), bench.source(target)
    return {suffix: filled(held[suffix], value) for suffix, value in {**residual.outputs, **residual.gains}.items()}


def filled(tensor: Tensor, value: float) -> Maker:
    """A maker of the bytes of a tensor whose every element is ``value``.

    Raises:
        CheckpointError: A value other than 0 in a type that is no common float.
    """
    if value == 0:
        element = b"\0"
    elif tensor.dtype in ("F64", "F32", "F16"):
        element = struct.pack({"F64": "<d", "F32": "<f", "F16": "<e"}[tensor.dtype], value)
    elif tensor.dtype == "BF16":
        element = struct.pack("<f", value)[2:]
    else:
        raise CheckpointError(
            f"{tensor.name} would have to be {value:g}, and is stored as {tensor.dtype}", allowed="F64, F32, F16, BF16"
        )
    num_bytes = tensor.num_bytes

    def make() -> Iterator[Buffer]:
        chunk = memoryview(element * (min(num_bytes, _CHUNK_BYTES) // len(element)))
        for begin in range(0, num_bytes, _CHUNK_BYTES):
            yield chunk[: num_bytes - begin]

    return make


def _later(module: str, name: str) -> Kind:
    """The function ``name`` of a module of this room, loaded when it is first called."""

    def kind(bench: Bench, target: int) -> dict[str, Maker]:
        function: Kind = getattr(import_module(f".{module}", __package__), name)
        return function(bench, target)

    return kind


READ_NOTHING = frozenset({"identity", "random"})  # kinds that need names and shapes of the base, and no weights
# One row for each key of ``layers.INITS`` but "copy".
KINDS: dict[str, Kind] = {
    "identity": identity,
    "attenuated": _later("scaling", "attenuated"),
    "norm-matched": _later("scaling", "norm_matched"),
    "average": _later("mixing", "average"),
    "slerp": _later("mixing", "slerp"),
    "random": _later("noise", "random"),
    "learned": _later("learned", "learned"),
    "transport": _later("transport", "transport"),
}
