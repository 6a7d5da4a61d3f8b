"""Held-out loss: mean cross-entropy of the next token over text that was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.packing import Batch, PackedRows


@dataclass(frozen=True)
class HeldOutLoss:
    """A mean over ``num_tokens`` predicted tokens, in nats."""

    loss: float
    num_tokens: int


def held_out_loss(
    model: nn.Module,
    rows: PackedRows,
    objective: Callable[[nn.Module, Batch], Tensor],
    *,
    rows_per_batch: int = 4,
    label: str = "evaluate",
    progress: bool = False,
) -> HeldOutLoss:
    """Mean loss over all targets of ``rows``, in the type of the model's weights; the batch size does not change it.

    Args:
        model: Any model that the objective takes; its training mode is restored.
        rows: Held-out text.
        objective: Summed loss of a batch.
        rows_per_batch: Rows in one forward pass.
        label: Name on the progress bar.
        progress: Whether to show one.
    """
    training = model.training
    model.eval()
    total, num_tokens = 0.0, 0
    with torch.no_grad(), tqdm(
        total=rows.num_targets, desc=label, unit="tok", disable=not progress, dynamic_ncols=True, leave=False
    ) as bar:  # fmt: skip
        for batch in rows.in_order(rows_per_batch):
            total += objective(model, batch).item()
            num_tokens += batch.num_targets
            bar.update(batch.num_targets)
    model.train(training)
    return HeldOutLoss(total / num_tokens, num_tokens)
