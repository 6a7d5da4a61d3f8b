"""Objectives: functions from a model and a batch to a summed loss. Causal language modelling is the first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.packing import IGNORED, Batch
from ..errors import TrainingError


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


def require_document_mask(model: nn.Module) -> None:
    """Make sure that a model keeps packed documents apart: two short ones must cost packed what they cost alone.

    transformers reads the document mask from position ids for most architectures, not for all (those with ALiBi,
    learned positions or a recurrent state do not); for these it says nothing.

    Raises:
        TrainingError: Documents in a row would see one another.
    """
    ids = np.arange(1, 17, dtype=np.int64)[None]
    labels = np.concatenate([ids[:, 1:], [[IGNORED]]], axis=1)
    labels[:, 7] = IGNORED
    packed = Batch(ids, labels, np.tile(np.arange(8), 2)[None])
    halves = (Batch(ids[:, part], labels[:, part], np.arange(8)[None]) for part in (slice(0, 8), slice(8, 16)))
    training = model.training
    model.eval()
    with torch.inference_mode():
        together = causal_lm(model, packed).loss.item()
        alone = sum(causal_lm(model, half).loss.item() for half in halves)
    model.train(training)
    if not math.isclose(together, alone, rel_tol=2e-4):
        raise TrainingError(
            "this architecture has no document mask in transformers: packed documents would see one another",
            next_step="set document_mask: false where that does no harm (long documents, continued pretraining)",
        )


def causal_lm(model: nn.Module, batch: Batch) -> Measured:
    """Cross-entropy of each next token, in nats, summed over all targets.

    No attention mask is passed: from position ids that restart, transformers builds the document mask itself (with an
    all-ones mask it would not, and documents would see one another).

    Args:
        model: A causal language model of transformers.
        batch: Arrays [num_rows, row_tokens].
    """
    device = next(model.parameters()).device
    input_ids, labels, position_ids = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (batch.input_ids, batch.labels, batch.position_ids)
    )
    logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return Measured(loss)


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of :func:`causal_lm`, for evaluation."""
    return causal_lm(model, batch).loss
