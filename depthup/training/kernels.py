"""The head's loss without its logits: cross-entropy and log-probabilities from hidden states, a chunk of tokens a time.

The logits of a batch, [tokens, classes] in float32, are the largest tensor of a training step (3.2 GB for 16,384
tokens of SmolLM2's vocabulary) and each of them is used once. Here they live for a chunk only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TrainingError, nearest

CHUNK_TOKENS = {"cpu": 256, "cuda": 4096}  # rows of logits alive at a time: what a cache holds; what fills an H100
_OTHER_DEVICE_TOKENS = 2048

Parts: TypeAlias = tuple[Tensor, Tensor]  # of a chunk: each loss [n]; d loss / d logits in the type of the matrices


@dataclass(frozen=True)
class Backend:
    """One way to a summed loss.

    Attributes:
        summed_loss: From hidden states [N, d], weight [V, d], labels [N], bias [V] or None, and cap or None.
        is_present: Whether it can compute on a device of this type.
        caps: Whether it knows capped logits.
        tells_each: Whether it can hand out the loss of each token.
    """

    summed_loss: Callable[..., Tensor]
    is_present: Callable[[str], bool]
    caps: bool = True
    tells_each: bool = False


def summed_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    cap: float | None = None,
    backend: str = "auto",
    each: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of ``hidden @ weight.T + bias`` in nats, summed over tokens; float32, or float64 for such inputs.

    Matrices are multiplied in the type of the hidden states, or of autocast where that is on; softmax and sums are
    float32.

    Args:
        hidden: [N, d], positions with a target only.
        weight: [V, d].
        labels: int64 [N], each in ``[0, V)``.
        bias: [V].
        cap: Logits become ``cap * tanh(logits / cap)`` before the softmax, as in Gemma 2 (arXiv:2408.00118).
        backend: A name of :data:`BACKENDS`, or ``auto``: :func:`choose_backend`.
        each: [N], float32 or wider: is filled with the loss of each token, if the back end ``tells_each``.

    Raises:
        TrainingError: The back end is unknown, not present here, or knows no cap.
    """
    chosen = choose_backend(hidden.device.type) if backend == "auto" else backend
    found = require_backend(chosen, hidden.device.type)
    if cap is not None and not found.caps:
        raise TrainingError(
            f"loss back end '{chosen}' does not cap logits",
            allowed=", ".join(name for name, backend in BACKENDS.items() if backend.caps),
        )
    if each is not None and found.tells_each:
        return found.summed_loss(hidden, weight, labels, bias, cap, each)
    return found.summed_loss(hidden, weight, labels, bias, cap)


def token_logps(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, cap: float | None = None
) -> Tensor:
    """Log-probability of each label in nats, float32 [N], with gradient; arguments as in :func:`summed_loss`.

    What a preference loss makes of them is not known yet, so no gradient can be made ahead: the backward pass makes
    the logits again, chunk by chunk, at the price of one more matrix product.
    """
    result: Tensor = _TokenLogps.apply(hidden, weight, bias, labels, cap, _compute_dtype(hidden))
    return result


def choose_backend(device_type: str) -> str:
    """The back end that ``auto`` stands for: ``chunked``, on every device.

    On CPU it is the fastest and smallest of those there (``docs/results/kernels.json``). On CUDA it is the one whose
    weight gradient is summed in float32 whatever the type of the weights (in bfloat16 the sum over chunks is biased),
    and its softmax is one compiled pass. ``native`` accumulates in the weights' type by default and breaks a compiled
    graph; ``liger`` is a package of its own. Measure with ``benchmarks/kernels.py``; name another where it is faster.
    """
    return "chunked"


def require_backend(name: str, device_type: str) -> Backend:
    """The back end of this name.

    Raises:
        TrainingError: It is unknown, or not present on such a device.
    """
    backend = BACKENDS.get(name)
    if backend is not None and backend.is_present(device_type):
        return backend
    problem = f"is unknown{nearest(name, BACKENDS)}" if backend is None else f"is not present on {device_type}"
    present = (known for known, other in BACKENDS.items() if other.is_present(device_type))
    raise TrainingError(
        f"loss back end '{name}' {problem}",
        allowed=f"auto, {', '.join(present)}",
        next_step="native needs torch 2.13, liger a GPU and `pip install liger-kernel`",
    )


class _SummedLoss(torch.autograd.Function):
    """The loss is a plain sum, so its gradients are known up to one factor: they are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        cap: float | None,
        dtype: torch.dtype,
        train: bool,
        each: Tensor | None,
    ) -> Tensor:
        needs = [train and needed for needed in ctx.needs_input_grad[:3]]
        parts = _parts(hidden.device.type)
        sums = torch.promote_types(dtype, torch.float32)
        loss = torch.zeros((), dtype=sums, device=hidden.device)
        grads = _Gradients.zeros(hidden, weight, bias, needs)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for part in _chunks(hidden):
                states = hidden[part].to(dtype)
                losses, error = parts(F.linear(states, matrix, offset), labels[part], cap)
                loss += losses.sum()
                if each is not None:
                    each[part] = losses
                grads.add(part, error, states, matrix)
        ctx.gradients = grads
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.gradients = ctx.gradients, None  # handed on, not kept: the optimiser's .grad may take the memory
        if grads is None:
            raise RuntimeError("summed_loss: gradients were handed on by an earlier backward pass; call it once")
        return (*grads.times(grad_outputs[0]), None, None, None, None, None)


class _TokenLogps(torch.autograd.Function):
    """Log-probabilities of labels; the backward pass makes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        cap: float | None,
        dtype: torch.dtype,
    ) -> Tensor:
        sums = torch.promote_types(dtype, torch.float32)
        logps, norms = torch.empty((2, len(hidden)), dtype=sums, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for part in _chunks(hidden):
                logits = _capped(F.linear(hidden[part].to(dtype), matrix, offset).to(sums), cap)
                norms[part] = torch.logsumexp(logits, dim=1)
                logps[part] = logits.gather(1, labels[part, None]).squeeze(1) - norms[part]
        ctx.save_for_backward(hidden, weight, bias, labels, norms)
        ctx.cap, ctx.dtype = cap, dtype
        return logps

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, norms = ctx.saved_tensors
        grads = _Gradients.zeros(hidden, weight, bias, ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, offset = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
            for part in _chunks(hidden):
                states, coming = hidden[part].to(ctx.dtype), grad_outputs[0][part, None]
                logits = _capped(F.linear(states, matrix, offset).to(norms.dtype), ctx.cap)
                error = (logits - norms[part, None]).exp_().mul_(-coming).scatter_add_(1, labels[part, None], coming)
                if ctx.cap is not None:
                    error *= 1 - (logits / ctx.cap) ** 2
                grads.add(part, error.to(ctx.dtype), states, matrix)
        return (*grads.times(None), None, None, None)


@dataclass
class _Gradients:
    """Gradients under construction; those that nobody needs are None. Weight and bias are summed in float32."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    dtypes: tuple[torch.dtype, torch.dtype]

    @classmethod
    def zeros(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Any) -> _Gradients:
        """Room for the gradients that are needed (of hidden states, weight, bias)."""
        sums = torch.promote_types(weight.dtype, torch.float32)
        return cls(
            torch.empty_like(hidden) if needs[0] else None,
            torch.zeros_like(weight, dtype=sums) if needs[1] else None,
            torch.zeros_like(bias, dtype=sums) if needs[2] and bias is not None else None,
            (weight.dtype, weight.dtype if bias is None else bias.dtype),
        )

    def add(self, part: slice, error: Tensor, states: Tensor, matrix: Tensor) -> None:
        """Take in a chunk: ``error`` is d loss / d logits [n, V], ``states`` [n, d], ``matrix`` [V, d]."""
        if self.hidden is not None:
            self.hidden[part] = error @ matrix
        if self.weight is not None and self.weight.dtype == error.dtype:
            self.weight.addmm_(error.T, states)
        elif self.weight is not None:
            self.weight += error.T @ states
        if self.bias is not None:
            self.bias += error.sum(0, dtype=self.bias.dtype)

    def times(self, factor: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients times a factor, in the types of hidden states, weight and bias. In place."""
        found = (self.hidden, self.weight, self.bias)
        if factor is not None:
            found = tuple(None if gradient is None else gradient.mul_(factor) for gradient in found)  # type: ignore[assignment]
        hidden, weight, bias = found
        return (
            hidden,
            None if weight is None else weight.to(self.dtypes[0]),
            None if bias is None else bias.to(self.dtypes[1]),
        )


def _chunks(hidden: Tensor) -> Iterator[slice]:
    size = CHUNK_TOKENS.get(hidden.device.type, _OTHER_DEVICE_TOKENS)
    return (slice(start, min(start + size, len(hidden))) for start in range(0, len(hidden), size))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type in which matrices are multiplied."""
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _loss_and_error(logits: Tensor, labels: Tensor, cap: float | None) -> Parts:
    """Cross-entropy of each token of a chunk of logits [n, V], and its gradient by the logits before their cap."""
    dtype = logits.dtype
    wide = _capped(logits.to(torch.promote_types(dtype, torch.float32)), cap)
    norms = torch.logsumexp(wide, dim=1, keepdim=True)
    losses = norms.squeeze(1) - wide.gather(1, labels[:, None]).squeeze(1)
    hit = torch.arange(wide.shape[1], device=wide.device) == labels[:, None]
    error = (wide - norms).exp() - hit.to(wide.dtype)
    return losses, (error if cap is None else error * (1 - (wide / cap) ** 2)).to(dtype)


def _loss_and_error_in_place(logits: Tensor, labels: Tensor, cap: float | None) -> Parts:
    """The same without a compiler: where there is no cap, each step overwrites its input."""
    dtype = logits.dtype
    wide = _capped(logits.to(torch.promote_types(dtype, torch.float32)), cap)
    slope = None if cap is None else 1 - (wide / cap) ** 2
    norms = torch.logsumexp(wide, dim=1, keepdim=True)
    losses = norms.squeeze(1) - wide.gather(1, labels[:, None]).squeeze(1)
    error = wide.sub_(norms).exp_()
    error[torch.arange(len(labels), device=labels.device), labels] -= 1
    return losses, (error if slope is None else error.mul_(slope)).to(dtype)


@cache
def _parts(device_type: str) -> Callable[[Tensor, Tensor, float | None], Parts]:
    """On CUDA one compiled pass over the logits, elsewhere plain torch: compiling takes longer than it saves there."""
    return torch.compile(_loss_and_error) if device_type == "cuda" else _loss_and_error_in_place


def _chunked(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, cap: float | None, each: Tensor | None = None
) -> Tensor:
    args = (hidden, weight, bias, labels, cap, _compute_dtype(hidden), torch.is_grad_enabled(), each)
    result: Tensor = _SummedLoss.apply(*args)
    return result


def _native(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, cap: float | None) -> Tensor:
    """torch's own, from 2.13 on. Its sum has the type of the hidden states."""
    dtype = _compute_dtype(hidden)
    options = torch.nn.LinearCrossEntropyOptions()
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear_cross_entropy(
            hidden.to(dtype),
            weight.to(dtype),
            labels,
            linear_bias=None if bias is None else bias.to(dtype),
            reduction="sum",
            options=options,
        ).to(torch.promote_types(dtype, torch.float32))


def _liger(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, cap: float | None) -> Tensor:
    """Liger Kernel (arXiv:2410.10989), with its weight gradient summed in float32."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    dtype = _compute_dtype(hidden)
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=cap, accum_dtype=torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        offset = None if bias is None else bias.to(dtype)
        return loss(weight.to(dtype), hidden.to(dtype), labels, offset).to(torch.float32)


@cache
def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _full(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, cap: float | None) -> Tensor:
    """The reference: all logits at once."""
    logits = F.linear(hidden, weight, bias)
    wide = _capped(logits.to(torch.promote_types(logits.dtype, torch.float32)), cap)
    return F.cross_entropy(wide, labels, reduction="sum")


BACKENDS: dict[str, Backend] = {
    "chunked": Backend(_chunked, lambda device_type: True, tells_each=True),
    "native": Backend(_native, lambda device_type: hasattr(F, "linear_cross_entropy"), caps=False),
    "liger": Backend(_liger, lambda device_type: device_type == "cuda" and _has_liger()),
    "full": Backend(_full, lambda device_type: True),
}
