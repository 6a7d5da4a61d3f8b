"""The experts and routers of a layer: which tensors they are, and what each is copied or made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint.names import Stack
from ..checkpoint.reader import DTYPE_BITS, Checkpoint, Tensor
from ..checkpoint.writer import Move
from ..errors import PlanError
from .inits import filled
from .moe_forms import DOWN, GATE, UP, Form

SHARED_WIDTH = 16  # of the shared expert that Qwen2's form asks for: silent at first, and as narrow as kernels like
_STANDARD_DEVIATION = 0.02  # of routers, where the config says nothing: the default of transformers


@dataclass(frozen=True)
class Upcycling:
    """How a dense model becomes a mixture of experts.

    Attributes:
        num_experts: Copies of the feed-forward in a layer, E.
        experts_per_token: Copies that a token goes to, k.
        granularity: Parts into which each copy is cut, G: a layer has E G experts, and a token goes to k G of them.
        every: Each so many-th layer becomes sparse, the others stay dense.
        router_std: Standard deviation of the router's weights; None for the config's ``initializer_range``, or 0.02.
        expert_noise: Standard deviation of the noise on the experts, as a share of each matrix's own. All copies get
            it but the first.
        seed: Of router and noise.

    Raises:
        PlanError: A number is out of its range.
    """

    num_experts: int
    experts_per_token: int = 2
    granularity: int = 1
    every: int = 1
    router_std: float | None = None
    expert_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.num_experts <= 4096:
            raise PlanError(f"{self.num_experts} experts", allowed="2 to 4096 copies of the feed-forward")
        if self.num_experts * self.granularity > 4096:
            raise PlanError(
                f"{self.num_experts} copies in {self.granularity} parts each", allowed="at most 4096 experts in a layer"
            )
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise PlanError(
                f"each token goes to {self.experts_per_token} of {self.num_experts} experts",
                allowed=f"1 to {self.num_experts} experts per token",
            )
        if self.granularity < 1 or self.granularity & (self.granularity - 1) or self.granularity > 256:
            raise PlanError(
                f"a granularity of {self.granularity}: the parts are multiplied by it, which is exact for powers of 2",
                allowed="1, 2, 4, 8 ... 256",
            )
        if self.every < 1:
            raise PlanError(f"every {self.every}th layer", allowed="1 (each layer) or more")
        if self.router_std is not None and not 0 < self.router_std < 10:
            raise PlanError(
                f"a router of standard deviation {self.router_std:g}"
                + ": all experts would tie, and every token go to the same ones" * (self.router_std == 0),
                allowed="above 0, below 10; 0.02 is usual",
            )
        if not 0 <= self.expert_noise < 1:
            raise PlanError(
                f"noise of {self.expert_noise:g} times the weights' own deviation", allowed="from 0 up, below 1"
            )


@dataclass(frozen=True)
class ExpertBench:
    """What the tensors of sparse layers are made from.

    Attributes:
        base: The dense checkpoint.
        stack: Its layers.
        form: The mixture's names.
        how: How it is upcycled.
        hidden: Width of the residual stream.
        inner: Width of the dense feed-forward.
    """

    base: Checkpoint
    stack: Stack
    form: Form
    how: Upcycling
    hidden: int
    inner: int

    def sparse_layer(self, layer: int, held: Mapping[str, Tensor]) -> Iterator[Move]:
        """The layer's tensors in the order of the base's, its experts in the place of the feed-forward."""
        experts_to_come = True
        for suffix, tensor in held.items():
            if suffix not in (GATE, UP, DOWN):
                if not suffix.endswith("rotary_emb.inv_freq"):  # computed from the config
                    yield Move(tensor.name, tensor)
            elif experts_to_come:
                experts_to_come = False
                yield self._router(layer, tensor)
                if self.form.has_shared:
                    yield from self._shared(layer, held)
                yield from self._experts(layer, held)

    def _name(self, layer: int, name: str) -> str:
        return self.stack.name(layer, f"{self.form.block}.{name}")

    def _experts(self, layer: int, held: Mapping[str, Tensor]) -> Iterator[Move]:
        order = list(held)  # neighbours in the base stay neighbours, so that an expert is one run of bytes
        rows = sorted(self.form.parts.items(), key=lambda row: order.index(row[1][0]))
        num = self.how.num_experts * self.how.granularity
        if not self.form.is_fused:
            for expert in range(num):
                for name, (suffix,) in rows:
                    yield self._expert(self._name(layer, name.format(expert)), held[suffix], expert)
            return
        from .expert_weights import joined

        for name, suffixes in rows:
            full = self._name(layer, name)
            parts = [self._part(full, held[suffix], expert) for expert in range(num) for suffix in suffixes]
            shape = (num, sum(part.shape[0] for part in parts) // num, parts[0].shape[1])
            yield Move(full, held[suffixes[0]], joined(self.base.folder, parts), shape)

    def _expert(self, name: str, tensor: Tensor, expert: int) -> Move:
        if self.how.granularity == 1 and not (self.how.expert_noise and expert):
            return Move(name, tensor)  # without numpy
        from .expert_weights import joined

        part = self._part(name, tensor, expert)
        if part.is_copy:
            return Move(name, part.tensor)
        return Move(name, part.tensor, joined(self.base.folder, [part]), part.shape)

    def _part(self, name: str, tensor: Tensor, expert: int) -> Any:
        """What an expert holds of a dense matrix: all of it, or a share of the feed-forward's width."""
        from .expert_weights import Part, run_of_rows

        how = self.how
        copy, place = divmod(expert, how.granularity)
        begin, end = (i * self.inner // how.granularity for i in (place, place + 1))
        noise = how.expert_noise if copy else 0.0
        key = f"{how.seed} noise {name} {expert} {tensor.name}"
        if tensor.name.endswith(DOWN):
            columns = None if how.granularity == 1 else (begin, end)
            return Part(tensor, columns, how.granularity, noise, key)
        return Part(run_of_rows(tensor, begin, end), None, 1, noise, key)

    def _router(self, layer: int, like: Tensor) -> Move:
        shape = (self.how.num_experts * self.how.granularity, self.hidden)
        return self._drawn(self._name(layer, self.form.router), like, shape, self.how.granularity)

    def _shared(self, layer: int, held: Mapping[str, Tensor]) -> Iterator[Move]:
        """The expert for all tokens: its last matrix is zero, so it adds nothing at first."""
        for suffix in (GATE, UP):
            name = self._name(layer, f"shared_expert.{suffix.removeprefix('mlp.')}")
            yield self._drawn(name, held[suffix], (SHARED_WIDTH, self.hidden), 1)
        silent = {"shared_expert.down_proj.weight": (self.hidden, SHARED_WIDTH),
                  "shared_expert_gate.weight": (1, self.hidden)}  # fmt: skip
        for name, shape in silent.items():
            yield Move(self._name(layer, name), held[DOWN], filled(_of_shape(held[DOWN], shape), 0), shape)

    def _drawn(self, name: str, like: Tensor, shape: tuple[int, int], repeat: int) -> Move:
        def make() -> Iterator[Any]:
            from .expert_weights import drawn

            yield from drawn(shape, repeat, self._deviation(), like.dtype, f"{self.how.seed} {name}")()

        return Move(name, like, make, shape)

    def _deviation(self) -> float:
        if self.how.router_std is not None:
            return self.how.router_std
        given = self.base.config.get("initializer_range")
        return float(given) if isinstance(given, (int, float)) and 0 < given < 10 else _STANDARD_DEVIATION


def _of_shape(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    num_bytes = shape[0] * shape[1] * DTYPE_BITS[tensor.dtype] // 8
    return Tensor(tensor.name, tensor.dtype, shape, tensor.shard, 0, num_bytes)
