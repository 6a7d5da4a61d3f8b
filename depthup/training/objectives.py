"""Objectives: functions from a model and a batch to a summed loss. Causal language modelling is the first."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.packing import IGNORED, Batch

# (model, batch) -> sum of the loss over the batch's targets, a scalar in float32 on the model's device
Objective = Callable[[nn.Module, Batch], Tensor]


def causal_lm(model: nn.Module, batch: Batch) -> Tensor:
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
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
