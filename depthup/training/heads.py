"""A model's loss without its logits: the head's own forward pass is swapped for the loss, inside the model's call.

The model is called as a whole, so everything that hangs on its forward pass goes on working: FSDP2 gathers what it
shards and hears of the outputs' gradients, peft's adapters stand where they stood. Only the last matrix product is
replaced; what it would have returned is a zero, tied to the loss so that every hook on the outputs is still heard.
What a family does with its logits afterwards (a cap in Gemma 2, a factor in Cohere and Granite) must then happen inside
the loss, so :func:`choose_head` asks each model first and leaves those alone that it does not understand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.packing import IGNORED, Batch
from ..errors import TrainingError
from . import attention, kernels

_PROBE = 1e4  # far beyond any logit, so that a cap shows


@dataclass(frozen=True)
class Head:
    """How losses of one model are computed. It holds no weight: every call finds the head in the model given.

    Attributes:
        backend: A name of :data:`~depthup.training.kernels.BACKENDS`; ``full`` takes the model's own logits.
        scale: The model's logits are ``scale * (hidden @ weight.T + bias)``,
        cap: and then ``cap * tanh(logits / cap)``, unless None.
        reason: Why the back end is ``full`` where another was wished for; empty otherwise.
    """

    backend: str
    scale: float = 1.0
    cap: float | None = None
    reason: str = ""

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, summed over the batch's targets: a float32 scalar with gradient."""
        return self.losses(model, batch)[0]

    def losses(
        self, model: nn.Module, batch: Batch, routers: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`summed_loss`; and the loss of each target in the order of the batch's positions, float32
        [num_targets] without gradient, or None where the back end only knows the sum.

        Into ``routers``, if given, go the logits of the routers of a mixture of experts, a tensor for each layer.
        """
        batch = _computed(model, batch)
        positions, labels = _targets(model, batch)
        if self.backend == "full":
            logits = _run(model, batch, routers).logits.flatten(0, 1)
            every = attention.put(batch.labels.ravel(), logits.device)
            found = F.cross_entropy(_wide(logits), every, ignore_index=IGNORED, reduction="none")
            return found.sum(), found.detach().index_select(0, positions)
        each = torch.empty(len(labels), device=labels.device) if kernels.BACKENDS[self.backend].tells_each else None

        def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return kernels.summed_loss(hidden, weight, labels, bias, cap=self.cap, backend=self.backend, each=each)

        return self._through(model, batch, positions, loss, routers), each

    def token_logps(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of each target in nats, in the order of the batch's positions: float32 [num_targets]."""
        batch = _computed(model, batch)
        positions, labels = _targets(model, batch)
        if self.backend == "full":
            logits = model(**model_inputs(model, batch)).logits.flatten(0, 1).index_select(0, positions)
            return F.log_softmax(_wide(logits), dim=-1).gather(1, labels[:, None]).squeeze(1)

        def logps(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return kernels.token_logps(hidden, weight, labels, bias, cap=self.cap)

        return self._through(model, batch, positions, logps)

    def _through(
        self, model: nn.Module, batch: Batch, positions: Tensor, compute: Callable[..., Tensor],
        routers: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Call the model with ``compute`` in place of its head, and return what that returned."""
        head = _linear_head(model)
        assert head is not None, "choose_head found one"
        computed: list[Tensor] = []

        def forward(hidden: Tensor) -> Tensor:
            if hidden.shape[:-1] != batch.input_ids.shape:
                raise TrainingError(
                    f"the head was called with {list(hidden.shape)} for a batch of {list(batch.input_ids.shape)}",
                    next_step="set the loss back end to full",
                )
            states = hidden.flatten(0, 1).index_select(0, positions)
            offset: Tensor | None = head.bias
            if self.scale != 1:
                states, offset = states * self.scale, None if offset is None else offset * self.scale
            computed.append(compute(states, head.weight, offset))
            return computed[0].sum().view(1, 1, 1) * 0

        with _replaced(head, forward):
            zero = _run(model, batch, routers).logits.sum() * 0
        return computed[0] + zero


FULL = Head("full")


def choose_head(model: nn.Module, backend: str = "auto") -> Head:
    """How to compute this model's losses: without logits where that gives what its own logits give, else with them.

    Asked of the model, in evaluation mode, are three things: that its head is a plain linear layer called once; what
    becomes of logits behind it, by putting known numbers in their place; and the loss of a few tokens both ways.

    Args:
        model: A causal language model of transformers, or of peft around one, sharded or not; on its device.
        backend: What to use where it can be: ``auto``, or a name of :data:`~depthup.training.kernels.BACKENDS`.

    Raises:
        TrainingError: The back end is unknown or not present here.
    """
    device_type = next(model.parameters()).device.type
    wished = kernels.choose_backend(device_type) if backend == "auto" else backend
    kernels.require_backend(wished, device_type)
    if wished == "full":
        return FULL
    if _linear_head(model) is None:
        return Head("full", reason="its head is no plain linear layer")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _asked(model, wished)
    finally:
        model.train(training)


def _asked(model: nn.Module, backend: str) -> Head:
    ids = np.arange(1, 9, dtype=np.int64)[None]
    batch = Batch(ids, np.concatenate([ids[:, 1:], [[IGNORED]]], axis=1), np.arange(8)[None])
    head = _linear_head(model)
    assert head is not None
    calls: list[Tensor] = []

    def probe(hidden: Tensor) -> Tensor:
        numbers = torch.linspace(-1, 1, hidden.shape[1] * head.out_features, device=hidden.device)
        calls.append((_PROBE * numbers**5).view(1, hidden.shape[1], -1))
        return calls[-1]

    with _replaced(head, probe):
        found = model(**model_inputs(model, batch)).logits
    if len(calls) != 1 or found.shape != calls[0].shape:
        return Head("full", reason=f"its head was called {len(calls)} times, logits have shape {list(found.shape)}")
    after = _after_the_head(calls[0].flatten(), found.flatten())
    if after is None:
        return Head("full", reason="it does more to its logits than to multiply and cap them")
    if after[1] is not None and not kernels.BACKENDS[backend].caps:
        return Head("full", reason=f"it caps its logits, and the back end {backend} does not")
    chosen = Head(backend, *after)
    loss, reference = (one.summed_loss(model, batch).item() for one in (chosen, FULL))
    if not abs(loss - reference) <= max(1e-4, 4 * torch.finfo(head.weight.dtype).eps) * abs(reference):
        return Head("full", reason=f"a loss of {loss:.6g} without logits is {reference:.6g} with them")
    return chosen


def _after_the_head(put: Tensor, found: Tensor) -> tuple[float, float | None] | None:
    """Scale and cap by which the numbers put in became those found, both [n] in ascending order; or None.

    Numbers that were only rounded (by a policy of FSDP2) were not multiplied.
    """
    if torch.equal(found, put.to(found.dtype)):
        return 1.0, None
    put, found = put.double(), found.double()
    scale = round(float(found[-1] / put[-1]), 9)
    if scale and torch.allclose(found, scale * put, rtol=1e-5):
        return scale, None
    cap, small = round(float(found[-1]), 6), int((put - 0.1).abs().argmin())
    if not cap > 0:
        return None
    scale = round(float(torch.atanh(found[small] / cap) * cap / put[small]), 6)
    same = torch.allclose(found, cap * torch.tanh(scale * put / cap), rtol=1e-5)
    return (scale, cap) if same else None


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The arguments of a model's call: tensors on its device, [num_rows, row_tokens].

    No attention mask is passed: from position ids that restart, transformers builds the document mask itself (with an
    all-ones mask it would not, and documents would see one another). Where attention runs in
    :mod:`~depthup.training.attention`, the borders of documents go along.
    """
    device = next(model.parameters()).device
    return {
        "input_ids": attention.put(batch.input_ids, device),
        "position_ids": attention.put(batch.position_ids, device),
        "use_cache": False,
        **attention.borders_of(model, batch.position_ids, device),
    }


def _computed(model: nn.Module, batch: Batch) -> Batch:
    """The part of a batch that the model is run on: on CPU up to the last target; elsewhere all, of a fixed shape."""
    return batch.needed() if next(model.parameters()).device.type == "cpu" else batch


def _run(model: nn.Module, batch: Batch, routers: list[Tensor] | None) -> Any:
    """The model's output for a batch; into ``routers``, if given, go the logits of its routers."""
    inputs = model_inputs(model, batch)
    if routers is None:
        return model(**inputs)
    inputs.pop("attention_mask", None)  # a note for attention alone: the model's own balance loss would read it
    found = model(**inputs, output_router_logits=True)
    routers.extend(found.router_logits)
    return found


def _targets(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Places of the targets in the batch laid flat, and the targets. Found on the host: no device is waited for."""
    device, flat = next(model.parameters()).device, batch.labels.ravel()
    positions = np.flatnonzero(flat != IGNORED)
    return attention.put(positions, device), attention.put(flat[positions], device)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _linear_head(model: nn.Module) -> nn.Linear | None:
    """The module that makes logits, if it computes what a linear layer does and nothing else (no adapter on it)."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward
    return head if plain else None


@contextlib.contextmanager
def _replaced(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The head with another forward pass; its hooks, FSDP2's among them, still run."""
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
