"""What happens at a seam, and what training made of it.

At a seam the stream that leaves the layer below reaches a layer that is used to another one: the stream that reached
it in the base. The report says how far apart the two are, and what the seam costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import PlanError
from ..layers import COPY, LayerPlan
from .similarity import angle, rounded
from .tower import Tower


def seam_report(plan: LayerPlan, arriving: Tensor, home: Tensor) -> list[dict[str, Any]]:
    """For each seam, layer distance, cosine, angular distance and RMS ratio of the two states that meet there.

    Cosine and angle are means over tokens, the ratio of root mean squares is a median: above 1 the layer gets a
    stronger stream than it is used to, and so changes it less.

    Args:
        plan: The plan.
        arriving: The target's stream [target layers + 1, tokens, hidden], untrained or trained.
        home: The base's stream [base layers + 1, tokens, hidden] on the same tokens.
    """
    return [
        {
            "target_layer": seam.target_layer,
            "below": seam.below,
            "above": seam.above,
            "layer_distance": seam.layer_distance,
            **meeting(arriving[seam.target_layer], home[seam.above]),
        }
        for seam in plan.seams
    ]


def meeting(arriving: Tensor, home: Tensor) -> dict[str, float]:
    """How far the stream that reaches a layer, [tokens, hidden], is from the one that it is used to."""
    cosine = functional.cosine_similarity(arriving.double(), home.double(), dim=-1)
    ratio = arriving.double().square().mean(-1).sqrt() / home.double().square().mean(-1).sqrt()
    found = {
        "cosine": cosine.mean(),
        "angular_distance": angle(cosine).mean(),
        "rms_ratio": ratio.median(),
    }
    return {name: rounded(value.item()) for name, value in found.items()}


def upscaling_seam(plan: LayerPlan, home: Tensor) -> list[dict[str, Any]]:
    """:func:`seam_report` of a plan with one seam and plain copies below it, from the base's stream alone."""
    [seam] = plan.seams
    arriving = torch.stack([home[seam.below + 1]] * (seam.target_layer + 1))
    return seam_report(plan, arriving, home)


def joined_one_by_one(plan: LayerPlan) -> list[LayerPlan]:
    """The plan with its first seam alone, with its first two ..., each going on from its last slice to the base's top.

    What each adds to the loss of the one before it (of the base, for the first) is what its seam costs.
    """
    parts = []
    for upper in plan.slices[1:]:
        stop = upper.target_start + upper.num_layers
        rest = range(upper.stop, plan.num_base_layers)
        inits = tuple(plan.init(target) for target in range(stop))
        parts.append(LayerPlan(plan.num_base_layers, (*plan.sources[:stop], *rest), (*inits, *[COPY] * len(rest))))
    return [*parts[:-1], plan] if parts else []


def weight_change(base: Tower, trained: Tower, plan: LayerPlan) -> dict[str, list[float]]:
    """How far training moved the layers of a target, and their copies apart.

    Returns:
        ``from_source``: for each target layer the norm of its change since surgery over the norm of its weights then.
        ``between_copies``: for each base layer that stands more than once (0 for the others), the same between the
        first and the last of its copies.

    Raises:
        PlanError: The trained model has another depth than the plan.
    """
    if trained.stack.num_layers != plan.num_target_layers:
        raise PlanError(
            f"the plan makes {plan.num_target_layers} layers, and the trained model has {trained.stack.num_layers}",
            next_step="name the base that the trained model was made from",
        )
    before = [dict(layer.named_parameters()) for layer in base.layers]
    after = [dict(layer.named_parameters()) for layer in trained.layers]
    from_source = [_distance(after[target], before[source]) for target, source in enumerate(plan.sources)]
    copies = [plan.targets_of(source) for source in range(plan.num_base_layers)]
    between = [_distance(after[found[-1]], after[found[0]]) if len(found) > 1 else 0.0 for found in copies]
    return {"from_source": rounded(from_source), "between_copies": rounded(between)}


@torch.no_grad()
def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    squares = [((one[name] - other[name]).double().square().sum(), other[name].double().square().sum()) for name in one]
    moved, norm = (float(torch.stack(parts).sum()) for parts in zip(*squares, strict=True))
    return (moved / norm) ** 0.5 if norm else 0.0
