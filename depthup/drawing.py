"""A plan as text, for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .layers import LayerPlan


def draw(plan: LayerPlan, width: int = 64) -> str:
    """A head line, then each slice as a bar under the base it was cut from, seams between, other starts than copies."""
    n, s = plan.num_base_layers, plan.num_target_layers
    scale = min(1.0, width / n)
    digits = len(str(max(n, s) - 1))

    def bar(start: int, stop: int) -> str:
        left, right = round(start * scale), max(round(stop * scale), round(start * scale) + 1)
        return " " * left + "━" * (right - left)

    label = 2 * digits + len("target  -  ")
    lines = [f"{n} -> {s} layers", f"{'base':<{label}}{bar(0, n)}  0-{n - 1}"]
    seams = (None, *plan.seams)
    for seam, part in zip(seams, plan.slices, strict=True):
        if seam is not None:
            lines.append(f"{'seam':<{label}}{seam.below}|{seam.above}, layer distance {seam.layer_distance}")
        stop = part.target_start + part.num_layers
        name = f"target {part.target_start:>{digits}}-{stop - 1:<{digits}}"
        lines.append(f"{name:<{label}}{bar(part.start, part.stop)}  {part.start}-{part.stop - 1}")
    for init in dict.fromkeys(init for init in plan.inits if init.kind != "copy"):
        start = [str(target) for target in range(s) if plan.init(target) == init]
        lines.append(f"{init}: target {', '.join(start)}")
    lines.append(
        f"{len(plan.seams)} seam{'s' * (len(plan.seams) != 1)}, {len(plan.duplicated)} base layers stand"
        f" more than once, {len(plan.unused)} not at all"
    )
    return "\n".join(lines)


def sketch(plan: LayerPlan, width: int = 96) -> str:
    """A plan in one line: a bar for each target layer, as high as its base layer; o for a start that is no copy.

    A plan of more layers than ``width`` is drawn by every second, third ... layer.
    """
    step = -(-plan.num_target_layers // width)
    bars = "▁▂▃▄▅▆▇█"
    return "".join(
        bars[plan.sources[target] * len(bars) // plan.num_base_layers] if plan.init(target).kind == "copy" else "o"
        for target in range(0, plan.num_target_layers, step)
    )
