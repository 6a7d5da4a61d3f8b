"""Seams with an overlap: instead of one jump, a few layers that pass from the slice below to the one above."""

from __future__ import annotations

from .errors import PlanError
from .layers import COPY, Init, LayerPlan


def blend(plan: LayerPlan, width: int) -> LayerPlan:
    """Overlap the slices at each seam by ``width`` averaged layers, in place of as many on either side of it.

    Of the slice's last layers a below the seam and the first ones b above it, averaged layer k takes the share
    (k + 1) / (width + 1) of its b, and counts as the one of which it takes more (for the lists in the config). The
    target has ``width`` layers fewer for each seam.

    Raises:
        PlanError: A slice is too short for that, or not all layers of the plan are plain copies.
    """
    last = len(plan.slices) - 1
    for i, part in enumerate(plan.slices):
        if width < 1 or plan.inits or part.num_layers < width * ((i > 0) + (i < last)):
            raise PlanError(
                f"the seams of {plan.text} cannot be blended over {width} layers",
                allowed="a plan of plain copies, and a width of at least 1, of which each slice holds one for each of"
                " its seams",
            )
    entries: list[tuple[int, Init]] = []
    for i, part in enumerate(plan.slices):
        entries += [(layer, COPY) for layer in range(part.start + width * (i > 0), part.stop - width * (i < last))]
        for k in range(width if i < last else 0):
            below, above = part.stop - width + k, plan.slices[i + 1].start + k
            if below == above:
                entries.append((below, COPY))
            elif 2 * (k + 1) <= width + 1:
                entries.append((below, Init("average", (above, (k + 1) / (width + 1)))))
            else:
                entries.append((above, Init("average", (below, (width - k) / (width + 1)))))
    sources, inits = zip(*entries, strict=True)
    return LayerPlan(plan.num_base_layers, sources, inits)
