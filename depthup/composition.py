"""Plans from plans: growth on growth, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .errors import PlanError

if TYPE_CHECKING:
    from .layers import Init, LayerPlan

# Made of base layers alone, so such a layer can be made from the base at any other place of any other plan. The second
# row is if its factor is given.
_FIXED = ("copy", "identity", "average", "slerp", "learned", "transport")
_FACTORS = ("attenuated", "norm-matched")


def composed_inits(first: LayerPlan, second: LayerPlan) -> tuple[Init, ...]:
    """How each target layer of ``second`` starts, said of the base of ``first``, whose target is its base.

    Raises:
        PlanError: No single start gives the same bytes: a mean of a mean, a factor that counts the copies in one plan,
            noise or a measured factor that depends on the place.
    """
    inits = []
    for target, layer in enumerate(second.sources):
        init = _on_top(first, layer, second.init(target))
        if init is None:
            raise PlanError(
                f"'{layer}:{second.init(target)}' on a layer that starts as '{first.init(layer)}' is no one plan",
                next_step="run surgery twice: the second plan on the checkpoint that the first one made",
            )
        inits.append(init)
    return tuple(inits)


def _on_top(first: LayerPlan, layer: int, init: Init) -> Init | None:
    below = first.init(layer)
    if init.kind == "copy":
        return below if below.kind in _FIXED or (below.kind in _FACTORS and below.numbers) else None
    if init.kind == "identity" and below.kind in ("copy", "identity", *_FACTORS):
        return init  # zero outputs stay zero, all else is a copy
    if below.kind != "copy":
        return None
    if init.kind in _FACTORS and init.numbers:
        return init
    if init.kind in ("average", "slerp"):
        partner = int(init.numbers[0]) if init.numbers else layer + 1
        if first.init(partner).kind == "copy":
            return replace(init, numbers=(float(first.sources[partner]), *init.numbers[1:]))
    return None


def originals(plan: LayerPlan) -> tuple[int, ...]:
    """Of each base layer the target layer that is its first plain copy.

    Raises:
        PlanError: A base layer has none.
    """
    new = set(plan.new)
    found = {source: target for target, source in enumerate(plan.sources) if target not in new}
    if lost := [str(layer) for layer in range(plan.num_base_layers) if layer not in found]:
        raise PlanError(
            f"the target has no plain copy of base layer {', '.join(lost)}, so it does not hold the base",
            next_step="take the base itself",
        )
    return tuple(found[layer] for layer in range(plan.num_base_layers))
