"""Objectives: functions from a model and a batch to a summed loss. Causal language modelling is the first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..data.packing import IGNORED, Batch
from ..errors import TrainingError
from ..models import quiet_transformers
from . import attention
from .balance import Balance
from .heads import FULL, Head


@dataclass(frozen=True)
class Measured:
    """What an objective makes of a batch.

    Attributes:
        loss: Sum over the batch's units (targets, or pairs), a scalar in float32 on the model's device, with gradient.
        sums: More figures, each summed over units in the same way, detached; the loop logs their means.
    """

    loss: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)


Objective = Callable[[nn.Module, Batch], Measured]


@dataclass(frozen=True)
class CausalLM:
    """Cross-entropy of each next token, in nats, summed over all targets.

    Attributes:
        head: How the loss is computed: :func:`~depthup.training.heads.choose_head`. The same loss, whichever it is.
        balance: The load-balancing loss of a mixture of experts, added with its weight and logged without as
            ``router_loss``; :func:`~depthup.training.balance.choose_balance`.
    """

    head: Head = FULL
    balance: Balance | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Measured:
        """The loss of a batch, arrays [num_rows, row_tokens], under a causal language model of transformers.

        Of rows that name their sources it also sums the loss of each, as ``loss/SOURCE``.
        """
        routers: list[Tensor] | None = None if self.balance is None else []
        loss, each = self.head.losses(model, batch, routers)
        sums = {} if each is None else _by_source(batch, each)
        if self.balance is not None and routers:
            unbalanced = self.balance.summed_loss(routers, batch)
            loss, sums["router_loss"] = loss + self.balance.weight * unbalanced, unbalanced.detach()
        return Measured(loss, sums)


def _by_source(batch: Batch, each: Tensor) -> dict[str, Tensor]:
    """The losses of targets [num_targets], summed over each source of the batch, as ``loss/SOURCE``."""
    names = list(batch.targets_by_source())
    if not names:
        return {}
    number_of = np.asarray([names.index(name) if name in names else 0 for name in batch.row_sources], np.int64)
    rows = np.nonzero(batch.labels != IGNORED)[0]
    places = attention.put(number_of[rows], each.device)
    sums = torch.zeros(len(names), device=each.device).index_add(0, places, each)
    return {f"loss/{name}": value for name, value in zip(names, sums.unbind(), strict=True)}


causal_lm = CausalLM()


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of :data:`causal_lm`, for evaluation."""
    return causal_lm(model, batch).loss


def require_document_mask(model: nn.Module) -> None:
    """Make sure that a model keeps packed documents apart: two short ones must cost packed what they cost alone.

    transformers reads the document mask from position ids for most architectures, not for all (those with ALiBi,
    learned positions or a recurrent state do not); for these it says nothing.

    Raises:
        TrainingError: Documents in a row would see one another.
    """
    packed = _sample([8, 8])
    halves = (_columns(packed, slice(0, 8)), _columns(packed, slice(8, 16)))
    together = _eval_loss(model, packed)
    alone = sum(_eval_loss(model, half) for half in halves)
    if not math.isclose(together, alone, rel_tol=2e-4):
        raise TrainingError(
            "this architecture has no document mask in transformers: packed documents would see one another",
            next_step="set document_mask: false where that does no harm (long documents, continued pretraining)",
        )


def choose_attention(model: nn.Module, *, narrow: bool = False) -> str:
    """Let a model's attention run within documents, without a dense mask, where that gives what it gave before.

    Tried are rows of several documents and of one, longer than short windows, against the model's own attention: first
    with the masks that transformers asks for, which name each layer's window, then without. A model that runs so
    already is tried again: the kernel depends on the type, so training asks once more when it has cast the weights.

    Args:
        model: A model of transformers, or of peft around one.
        narrow: It computes in bfloat16 though its weights may be float32 (shards of FSDP2).

    Returns:
        The model's ``attn_implementation`` from now on: :data:`~depthup.training.attention.NAME`, or what it was
        ('sdpa' is the only one that is replaced).
    """
    before = attention.implementation(model)
    if before not in ("sdpa", attention.NAME):
        return before or ""
    before, samples = "sdpa", [_sample([3, 40, 1, 21]), _sample([65])]
    attention.register()
    with quiet_transformers(), torch.compiler.set_stance("force_eager"):  # compiled layers are not compiled for these
        model.set_attn_implementation(before)  # type: ignore[operator]
        wanted = [_eval_losses(model, sample) for sample in samples]
        for name in (attention.PROVING, attention.NAME):
            model.set_attn_implementation(name)  # type: ignore[operator]
            if attention.implementation(model) != name or not _gives(model, samples, wanted, narrow):
                model.set_attn_implementation(before)  # type: ignore[operator]
                break
    return attention.implementation(model) or ""


def _gives(model: nn.Module, samples: list[Batch], wanted: list[Tensor], narrow: bool) -> bool:
    try:
        found = [_eval_losses(model, sample) for sample in samples]
    except (TrainingError, RuntimeError, ValueError, IndexError, TypeError):
        return False  # a cap, sinks, a window that differs; or the model's own code looks into its mask
    tolerance = _tolerance(model, narrow)
    return all((one - other).norm() <= tolerance * other.norm() for one, other in zip(found, wanted, strict=True))


def _columns(batch: Batch, part: slice) -> Batch:
    """Some columns of a batch, which must begin and end with a document."""
    return Batch(batch.input_ids[:, part], batch.labels[:, part], batch.position_ids[:, part])


def _sample(lengths: list[int]) -> Batch:
    """One row of documents of these lengths, tokens 1, 2 ... 16, 1, 2 ..."""
    ids = (np.arange(sum(lengths), dtype=np.int64) % 16 + 1)[None]
    labels = np.concatenate([ids[:, 1:], [[IGNORED]]], axis=1)
    labels[:, np.cumsum(lengths) - 1] = IGNORED
    return Batch(ids, labels, np.concatenate([np.arange(length) for length in lengths])[None])


def _eval_losses(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of each target, by the model's own logits."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            each = FULL.losses(model, batch)[1]
    finally:
        model.train(training)
    assert each is not None
    return each


def _eval_loss(model: nn.Module, batch: Batch) -> float:
    return float(_eval_losses(model, batch).sum())


def _tolerance(model: nn.Module, narrow: bool) -> float:
    device = next(model.parameters()).device.type
    narrow = narrow or torch.is_autocast_enabled(device) or next(model.parameters()).dtype != torch.float32
    return 2e-2 if narrow else 2e-5
