"""Load balancing of mixtures of experts: the loss that keeps a router from sending every token to the same few.

It is the loss of Switch Transformer (arXiv:2101.03961, equations 4 - 6), as transformers computes it over all layers
together. It is a product of two means over tokens, so the loss of a batch is not the sum of its micro-batches' losses.
Here it is taken over each row by itself, and rows weigh as many units as they have targets: so it does not depend on
micro-batches, accumulation or ranks. (Over sequences it is also taken by DeepSeek-V3, arXiv:2412.19437, 2.1.2.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data.packing import IGNORED, Batch
from ..errors import TrainingError
from . import attention
from .heads import model_inputs


@dataclass(frozen=True)
class Balance:
    """How a model's routers are kept balanced; made by :func:`choose_balance`.

    Attributes:
        weight: Of the loss, beside the cross-entropy.
        top_k: Experts to which a token goes.
    """

    weight: float
    top_k: int

    def summed_loss(self, router_logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """The loss of each row times its targets, summed, without ``weight``: a float32 scalar with gradient.

        Args:
            router_logits: Of each layer with experts, [num_rows * tokens, num_experts]; ``tokens`` may be fewer than
                the batch has, where columns behind the last target were not computed.
            batch: The rows. What lies behind a row's last target is not counted, padding above all.
        """
        device = router_logits[0].device
        each = row_losses(router_logits, attention.put(_counted(batch), device), self.top_k)
        return (each * attention.put((batch.labels != IGNORED).sum(axis=1), device)).sum()


def row_losses(router_logits: Sequence[Tensor], counted: Tensor, top_k: int) -> Tensor:
    """Load-balancing loss of each row over all layers together, float32 [num_rows]; 1 for routers in balance, times k.

    Args:
        router_logits: Of each layer, [num_rows * tokens, num_experts].
        counted: bool [num_rows, at least tokens], which tokens count.
        top_k: Experts to which a token goes.
    """
    num_rows, num_experts = len(counted), router_logits[0].shape[-1]
    sums = torch.zeros(2, num_rows, num_experts, device=counted.device)
    for logits in router_logits:
        shares = logits.float().softmax(-1).view(num_rows, -1, num_experts)
        mask = counted[:, : shares.shape[1], None].float()
        chosen = torch.zeros_like(shares).scatter_(-1, shares.topk(top_k, dim=-1).indices, 1.0)
        sums = sums + torch.stack([(chosen * mask).sum(1), (shares * mask).sum(1)])
    num_counted = len(router_logits) * counted.sum(1).clamp_min(1)
    chosen_share, share = sums / num_counted[:, None]
    return num_experts * (chosen_share * share).sum(-1)


def choose_balance(model: nn.Module, weight: float | None = None) -> Balance | None:
    """How to balance a model's routers, or None where nothing asks for it.

    The model is asked by a few tokens: what is computed here must be what transformers computes for it.

    Args:
        model: A causal language model of transformers, or of peft around one; on its device.
        weight: 0 for none; None for what the config says: ``router_aux_loss_coef`` where ``output_router_logits``.

    Raises:
        TrainingError: A weight is given and the model has no such loss, or another one.
    """
    config = getattr(model, "config", None)
    if weight is None:
        asked = getattr(config, "output_router_logits", False)
        weight = float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0) if asked else 0.0
    if weight == 0:
        return None
    ids = np.arange(1, 10, dtype=np.int64)[None]
    batch = Batch(ids, np.zeros_like(ids), np.arange(9)[None])
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            inputs = {name: value for name, value in model_inputs(model, batch).items() if name != "attention_mask"}
            found = model(**inputs, output_router_logits=True)
    except TypeError:
        found = None
    finally:
        model.train(training)
    logits, wanted = getattr(found, "router_logits", None), getattr(found, "aux_loss", None)
    if not logits or not isinstance(wanted, Tensor):
        raise TrainingError(
            f"router_loss is {weight:g}, and {type(model).__name__} has no load-balancing loss", allowed="0 for it"
        )
    everything = torch.ones(1, 9, dtype=torch.bool, device=logits[0].device)
    for top_k in range(1, logits[0].shape[-1] + 1):
        if math.isclose(row_losses(logits, everything, top_k).item(), wanted.item(), rel_tol=1e-2):
            return Balance(weight, top_k)
    raise TrainingError(
        f"the load-balancing loss of {type(model).__name__} is not Switch Transformer's", next_step="set router_loss: 0"
    )


def _counted(batch: Batch) -> np.ndarray:
    """Up to each row's last target, bool [num_rows, row_tokens]."""
    return np.flip(np.logical_or.accumulate(np.flip(batch.labels != IGNORED, axis=1), axis=1), axis=1).copy()
