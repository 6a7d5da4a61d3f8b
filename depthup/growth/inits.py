"""How a target layer starts that is no plain copy: for each kind of :class:`~depthup.layers.Init` one function.

A function sees the base's layers by name and says, tensor by tensor, how the bytes of the target layer are made; what
it does not mention is copied. Bytes are made when they are written, one tensor at a time, so memory stays bounded by
the largest tensor. torch and numpy are loaded only by the kinds that compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ..checkpoint.names import Stack
from ..checkpoint.reader import Checkpoint, Tensor
from ..checkpoint.writer import Buffer, Move
from ..layers import COPY, LayerPlan
from .residual import residual_outputs

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
    """

    base: Checkpoint
    stack: Stack
    plan: LayerPlan
    layers: Mapping[int, Mapping[str, Tensor]]


def start_layer(bench: Bench, target: int) -> list[Move]:
    """The tensors of one target layer, each with how it is copied or made.

    Raises:
        CheckpointError: The init does not work for this architecture.
    """
    source, init = bench.plan.sources[target], bench.plan.init(target)
    makers = {} if init == COPY else KINDS[init.kind](bench, target)
    return [
        Move(bench.stack.name(target, suffix), tensor, makers.get(suffix))
        for suffix, tensor in bench.layers[source].items()
    ]


def _identity(bench: Bench, target: int) -> dict[str, Maker]:
    """Zero residual outputs (LLaMA Pro, arXiv:2401.02415, section 3.2): a pre-norm layer adds nothing to the stream."""
    held = bench.layers[bench.plan.sources[target]]
    return {suffix: _zeros(held[suffix].num_bytes) for suffix in residual_outputs(bench.base.config, held)}


def _zeros(num_bytes: int) -> Maker:
    def make() -> Iterator[Buffer]:
        chunk = memoryview(bytes(min(num_bytes, _CHUNK_BYTES)))
        for begin in range(0, num_bytes, _CHUNK_BYTES):
            yield chunk[: num_bytes - begin]

    return make


# One row for each key of ``layers.INITS`` but "copy".
KINDS: dict[str, Callable[[Bench, int], dict[str, Maker]]] = {
    "identity": _identity,
}
