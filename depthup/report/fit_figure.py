"""Fitted loss curves: points, the curve solid where there are data and dashed beyond, and its interval as a band."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..fitting.intervals import Axis, FittedRun
from ..fitting.words import compact
from . import svg
from .text import format_loss

_TOP, _BOTTOM, _LEFT, _GUTTER = 46.0, 40.0, 48.0, 34.0
_NUM_PLACES = 120


@dataclass(frozen=True)
class _Axes:
    """From tokens or FLOPs, by their logarithm, and nats per token to figure units; 0 stands left of the scale."""

    left: float
    right: float
    top: float
    bottom: float
    first: float
    last: float
    low: float
    high: float

    def x(self, value: float) -> float:
        if value <= 0:
            return self.left + _GUTTER / 3
        share = math.log(value / self.first) / math.log(self.last / self.first)
        return self.left + _GUTTER + (self.right - self.left - _GUTTER) * share

    def y(self, loss: float) -> float:
        clipped = min(max(loss, self.low), self.high)
        return self.bottom - (self.bottom - self.top) * (clipped - self.low) / (self.high - self.low)


def fit_svg(
    runs: Sequence[FittedRun], axis: Axis = "tokens", *, reach: float = 10.0, width: int = 760, standalone: bool = False
) -> str:
    """Draw the fits of some runs.

    Args:
        runs: Told apart by colour and mark.
        axis: Tokens, or training FLOPs where all runs say them.
        reach: How many times beyond the data curves go on, dashed.
        width: Of the coordinate system.
        standalone: Return a file of its own, with the name space and its own style for light and dark pages.
    """
    factors = [1.0 if axis == "tokens" else one.run.flops_per_token or 1.0 for one in runs]
    smallest = min(t * f for one, f in zip(runs, factors, strict=True) for t in one.run.tokens if t > 0)
    largest = max(one.run.most_tokens * f for one, f in zip(runs, factors, strict=True))
    label_width = min(max(6.6 * max(len(one.run.name) for one in runs) + 40, 90), 0.3 * width)
    bottom = _TOP + max(0.42 * width, 22.0 * len(runs))
    ends = [float(one.curve.at(np.asarray([reach * largest / f]))[0, 0]) for one, f in zip(runs, factors, strict=True)]
    losses = [loss for one in runs for loss in one.run.losses] + ends
    margin = max(0.06 * (max(losses) - min(losses)), 0.005)
    axes = _Axes(_LEFT, width - label_width, _TOP, bottom, smallest / 1.5, reach * largest,
                 min(losses) - margin, max(losses) + margin)  # fmt: skip
    name = "tokens seen" if axis == "tokens" else "training FLOPs"
    content = [*_frame(axes, name), *_extrapolated(axes, largest), *_legend(runs[0].confidence)]
    for number, (one, factor) in enumerate(zip(runs, factors, strict=True)):
        content += _run(axes, one, factor, number)
    content += _names(axes, runs, ends)
    return svg.document(
        width, bottom + _BOTTOM, *content, standalone=standalone, title=f"Fitted loss against {name}",
        description=_describe(runs, factors, reach * largest, name),
    )  # fmt: skip


def _describe(runs: Sequence[FittedRun], factors: Sequence[float], end: float, name: str) -> str:
    said = [f"Loss in nats per token against {name}, on a logarithmic scale; dashed beyond the data."]
    for one, factor in zip(runs, factors, strict=True):
        last, far = one.loss_at(one.run.most_tokens), one.loss_at(end / factor)
        said.append(
            f"{one.run.name}: {format_loss(last.estimate)} by the fit at {compact(one.run.most_tokens * factor)},"
            f" the end of its data; extrapolated to {compact(end)}: {format_loss(far.estimate)}"
            f" ({format_loss(far.low)} to {format_loss(far.high)})."
        )
    return " ".join(said)


def _frame(axes: _Axes, name: str) -> Iterator[str]:
    ticks = svg.nice_ticks(axes.low, axes.high, 7)
    decimals = max(1, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 3
    for loss in ticks:
        yield svg.element("path", d=f"M{axes.left:.1f} {axes.y(loss):.1f}H{axes.right:.1f}", class_="rule")
        yield svg.text(axes.left - 7, axes.y(loss) + 4, f"{loss:.{decimals}f}", 11, text_anchor="end")
    powers = range(math.ceil(math.log10(axes.first)), math.floor(math.log10(axes.last)) + 1)
    for value in (0.0, *(10.0**power for power in powers)):
        yield svg.element("path", d=f"M{axes.x(value):.1f} {axes.bottom:.1f}v5", class_="rule")
        yield svg.text(axes.x(value), axes.bottom + 17, compact(value), 11, text_anchor="middle")
    yield svg.element("path", d=f"M{axes.left:.1f} {axes.bottom:.1f}H{axes.right:.1f}", class_="rule")
    yield svg.text((axes.left + axes.right) / 2, axes.bottom + 33, name, 11, text_anchor="middle")
    yield svg.text(2, 13, "loss, nats per token", 12, class_="head")


def _extrapolated(axes: _Axes, end: float) -> Iterator[str]:
    x = axes.x(end)
    yield svg.element("path", d=f"M{x:.1f} {axes.top:.1f}V{axes.bottom:.1f}", class_="seam")
    yield svg.text(x + 5, axes.top + 11, "extrapolated", 11, class_="seam-name")


def _legend(confidence: float) -> Iterator[str]:
    yield svg.element("g", svg.polyline([(2, 26), (24, 26)], "held-out"), class_="m")
    yield svg.text(30, 30, "fit", 11)
    yield svg.element("path", d="M60 26H82", class_="reference")
    yield svg.text(88, 30, "beyond the data", 11)
    yield svg.element("rect", x=186.0, y=20.0, width=22.0, height=12.0, class_="band")
    yield svg.text(214, 30, f"{confidence:.0%} interval", 11)


def _run(axes: _Axes, one: FittedRun, factor: float, number: int) -> Iterator[str]:
    """Band, curve and points of one run."""
    x = np.unique([*np.geomspace(axes.first, axes.last, _NUM_PLACES), one.run.most_tokens * factor])
    middle, low, high = one.band(x / factor)
    shape = [(axes.x(v), axes.y(y)) for v, y in zip(x, high, strict=True)]
    shape += [(axes.x(v), axes.y(y)) for v, y in reversed(list(zip(x, low, strict=True)))]
    path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in shape) + "Z"
    band = svg.element("path", d=path, style="fill:currentColor;fill-opacity:.1")
    points = [(axes.x(v), axes.y(y), v) for v, y in zip(x, middle, strict=True)]
    inside = [(px, py) for px, py, v in points if v <= one.run.most_tokens * factor]
    beyond = [(px, py) for px, py, v in points if v >= one.run.most_tokens * factor]
    lines = [svg.polyline(line, "held-out") for line in (inside,) if len(line) > 1]
    if len(beyond) > 1:
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in beyond)
        lines.append(svg.element("path", d=path, class_="leader", style="stroke-width:2;stroke-dasharray:6 4"))
    marks = [
        svg.mark(number, axes.x(t * factor), axes.y(loss), 3.8,
                 svg.tooltip(f"{one.run.name}: {format_loss(loss)} measured at {compact(t * factor)}"))
        for t, loss in zip(one.run.tokens, one.run.losses, strict=True)
    ]  # fmt: skip
    yield svg.element("g", band, *lines, *marks, class_=f"s{number % svg.NUM_SERIES}")


def _names(axes: _Axes, runs: Sequence[FittedRun], ends: Sequence[float]) -> Iterator[str]:
    placed = svg.spread([axes.y(end) for end in ends], 17.0, axes.top + 8, axes.bottom)
    for number, (one, end, y) in enumerate(zip(runs, ends, placed, strict=True)):
        leader = svg.element("path", d=f"M{axes.right:.1f} {axes.y(end):.1f}L{axes.right + 12:.1f} {y:.1f}",
                             class_="leader")  # fmt: skip
        mark = svg.mark(number, axes.right + 20, y, 4.2)
        name = svg.text(axes.right + 30, y + 4, one.run.name, 11.5, class_="series")
        yield svg.element("g", leader, mark, name, class_=f"s{number % svg.NUM_SERIES}")
