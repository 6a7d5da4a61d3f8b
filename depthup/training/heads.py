"""A model's loss without its logits: the head's own forward pass is swapped for the loss, inside the model's call.

The model is called as a whole, so everything that hangs on its forward pass goes on working: FSDP2 gathers what it
shards and hears of the outputs' gradients, peft's adapters stand where they stood. Only the last matrix product is
replaced. What a family does with its logits afterwards (a cap in Gemma 2, a factor in Cohere and Granite) would then be
done to the loss, so :func:`choose_head` asks each model first and leaves those alone that it does not understand.
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
        scale: The model's logits are ``scale * (hidden @ weight.T + bias)``.
        reason: Why the back end is ``full`` where another was wished for; empty otherwise.
    """

    backend: str
    scale: float = 1.0
    reason: str = ""

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, summed over the batch's targets: a float32 scalar with gradient."""
        positions, labels = _targets(model, batch)
        if self.backend == "full":
            logits = model(**model_inputs(model, batch)).logits.flatten(0, 1)[positions]
            return F.cross_entropy(_wide(logits), labels, reduction="sum")

        def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return kernels.summed_loss(hidden, weight, labels, bias, backend=self.backend)

        return self._through(model, batch, positions, loss).squeeze()

    def token_logps(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of each target in nats, in the order of the batch's positions: float32 [num_targets]."""
        positions, labels = _targets(model, batch)
        if self.backend == "full":
            logits = model(**model_inputs(model, batch)).logits.flatten(0, 1)[positions]
            return F.log_softmax(_wide(logits), dim=-1).gather(1, labels[:, None]).squeeze(1)

        def logps(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return kernels.token_logps(hidden, weight, labels, bias)

        return self._through(model, batch, positions, logps).flatten()

    def _through(self, model: nn.Module, batch: Batch, positions: Tensor, compute: Callable[..., Tensor]) -> Tensor:
        """Call the model with ``compute`` in place of its head; what it returns comes out as logits, times scale."""
        head = _linear_head(model)
        assert head is not None, "choose_head found one"

        def forward(hidden: Tensor) -> Tensor:
            if hidden.shape[:-1] != batch.input_ids.shape:
                raise TrainingError(
                    f"the head was called with {list(hidden.shape)} for a batch of {list(batch.input_ids.shape)}",
                    next_step="set the loss back end to full",
                )
            states, offset = hidden.flatten(0, 1)[positions], head.bias
            if self.scale == 1:
                return compute(states, head.weight, offset).view(1, -1, 1)
            scaled = None if offset is None else offset * self.scale
            return compute(states * self.scale, head.weight, scaled).view(1, -1, 1)

        with _replaced(head, forward):
            found: Tensor = model(**model_inputs(model, batch)).logits
        if found.dtype not in (torch.float32, torch.float64):
            raise TrainingError(
                f"the model rounds its outputs to {found.dtype}, the loss with them",
                next_step="set output_dtype of the mixed precision policy to None, or the loss back end to full",
            )
        return found / self.scale


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
        numbers = torch.linspace(-_PROBE, _PROBE, hidden.shape[1] * head.out_features, device=hidden.device)
        calls.append(numbers.view(1, hidden.shape[1], -1))
        return calls[-1]

    with _replaced(head, probe):
        found = model(**model_inputs(model, batch)).logits
    if len(calls) != 1 or found.shape != calls[0].shape:
        return Head("full", reason=f"its head was called {len(calls)} times, logits have shape {list(found.shape)}")
    put, found = calls[0].double(), found.double()
    scale = round(float(found[0, -1, -1] / put[0, -1, -1]), 9)
    if scale == 0 or not torch.allclose(found, scale * put, rtol=1e-5):
        return Head("full", reason="it does more to its logits than to multiply them")
    chosen = Head(backend, scale)
    loss, reference = (one.summed_loss(model, batch).item() for one in (chosen, FULL))
    if not abs(loss - reference) <= max(1e-4, 4 * torch.finfo(head.weight.dtype).eps) * abs(reference):
        return Head("full", reason=f"a loss of {loss:.6g} without logits is {reference:.6g} with them")
    return chosen


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The arguments of a model's call: tensors on its device, [num_rows, row_tokens].

    No attention mask is passed: from position ids that restart, transformers builds the document mask itself (with an
    all-ones mask it would not, and documents would see one another). Where attention runs in
    :mod:`~depthup.training.attention`, the borders of documents go along.
    """
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {
        "input_ids": _moved(batch.input_ids, device),
        "position_ids": _moved(batch.position_ids, device),
        "use_cache": False,
    }
    if attention.is_used(model):
        borders, longest = attention.document_borders(batch.position_ids)
        ends = _moved(borders, device)
        inputs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return inputs


def _targets(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Places of the targets in the batch laid flat, and the targets. Found on the host: no device is waited for."""
    device, flat = next(model.parameters()).device, batch.labels.ravel()
    positions = np.flatnonzero(flat != IGNORED)
    return _moved(positions, device), _moved(flat[positions], device)


def _moved(array: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


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
