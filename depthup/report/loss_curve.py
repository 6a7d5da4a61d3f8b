"""The loss curve: training and held-out loss against tokens seen, with the learning rate below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import svg
from .text import format_compact, format_count, format_loss, format_rate
from .values import Curve

Points = list[tuple[float, float]]

_MOST_POINTS = 300  # a longer training curve is drawn as means of equally many steps
_TOP, _BOTTOM, _LEFT = 46, 36, 44
_LINE = 13.0  # of a label
_RATE_HEIGHT, _RATE_GAP = 46, 40


@dataclass(frozen=True)
class _Series:
    """What is drawn of one run: finite points only, training thinned."""

    name: str
    css: str
    training: Points
    held_out: Points
    learning_rate: Points

    @property
    def last(self) -> tuple[float, float]:
        return (self.held_out or self.training)[-1]


@dataclass(frozen=True)
class _Axes:
    """From tokens seen and nats per token to figure units."""

    left: float
    right: float
    top: float
    bottom: float
    most_tokens: float
    low: float
    high: float

    def x(self, tokens: float) -> float:
        return self.left + (self.right - self.left) * tokens / self.most_tokens

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low)

    def at(self, points: Points) -> Points:
        return [(self.x(tokens), self.y(value)) for tokens, value in points]


def loss_curve_svg(
    curves: Sequence[Curve],
    reference_losses: Sequence[tuple[str, float]] = (),
    *,
    width: int = 760,
    standalone: bool = False,
) -> str:
    """Draw loss in nats per token against tokens seen, and below it the learning rate where one is known.

    Held-out loss is a strong line with a marker at each measurement, training loss a thin one (above 300 steps the
    mean of equally many steps a point), each reference loss a dashed horizontal line. Values that are not finite
    are left out. Every run and reference is named at the right; names never overlap.

    Args:
        curves: The runs, told apart by colour.
        reference_losses: Name and loss in nats per token.
        width: Of the coordinate system; 380 makes a figure for a phone.
        standalone: Return a file of its own, with the name space and its own style for light and dark pages.

    Returns:
        The figure, or an empty string if no run has a finite loss.
    """
    series, num_merged = _series(curves)
    if not series:
        return ""
    references = [(name, loss) for name, loss in reference_losses if math.isfinite(loss)]
    names = [*(one.name for one in series), *(name for name, _ in references)]
    label_width = min(max(6.6 * max(map(len, names)) + 22, 64), 0.3 * width)
    label_lines = {name: _wrapped(name, int((label_width - 18) / 6.6)) for name in names}
    label_height = _LINE * (max(map(len, label_lines.values())) + 1) + 2
    losses = [loss for one in series for _, loss in (*one.training, *one.held_out)] + [loss for _, loss in references]
    margin = max(0.06 * (max(losses) - min(losses)), 0.01)
    height = max(0.36 * width, 215.0, label_height * len(names))
    most_tokens = max(max(tokens for tokens, _ in (*one.training, *one.held_out)) for one in series)
    axes = _Axes(
        _LEFT, width - label_width, _TOP, _TOP + height, max(most_tokens, 1), min(losses) - margin, max(losses) + margin
    )
    rates = any(one.learning_rate for one in series)
    bottom = axes.bottom + (_RATE_GAP + _RATE_HEIGHT if rates else 0)
    content = [
        *_frame(axes, bottom), *_legend(series, num_merged),
        *_labels(axes, series, references, label_lines, label_height),
        *(line for one in series for line in _lines(axes, one)), *(_rates(axes, series, bottom) if rates else ()),
    ]  # fmt: skip
    return svg.document(
        width, bottom + _BOTTOM, *content, standalone=standalone,
        title="Loss against tokens seen", description=_describe(series, references),
    )  # fmt: skip


def _series(curves: Sequence[Curve]) -> tuple[list[_Series], int]:
    """What can be drawn, and how many training steps at most make one point."""
    series, num_merged = [], 1
    for i, curve in enumerate(curves):
        training, held_out, rates = (
            [(float(tokens), float(value)) for tokens, value in points if math.isfinite(value)]
            for points in (curve.training, curve.held_out, curve.learning_rate)
        )
        if training or held_out:
            merged = math.ceil(len(training) / _MOST_POINTS)
            num_merged = max(num_merged, merged)
            rates = rates[:: max(1, len(rates) // _MOST_POINTS)] + rates[-1:]
            name = f"{curve.name} (control)" if curve.is_control and curve.name != "control" else curve.name
            series.append(_Series(name, f"s{i % svg.NUM_SERIES}", _means(training, merged), held_out, rates))
    return series, num_merged


def _means(points: Points, size: int) -> Points:
    """Each run of ``size`` points as its mean (the last may be shorter)."""
    if size <= 1:
        return points
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _describe(series: Sequence[_Series], references: Sequence[tuple[str, float]]) -> str:
    sentences = []
    for one in series:
        points, kind = (one.held_out, "held-out") if one.held_out else (one.training, "training")
        (first_tokens, first), (last_tokens, last) = points[0], points[-1]
        sentences.append(
            f"{one.name}: {kind} loss {format_loss(first)} nats per token at {format_count(round(first_tokens))} tokens"
            f" seen, {format_loss(last)} at {format_count(round(last_tokens))}"
        )
    if references:
        sentences.append("For reference: " + ", ".join(f"{name} {format_loss(loss)}" for name, loss in references))
    return ". ".join(sentences) + "."


def _frame(axes: _Axes, bottom: float) -> Iterator[str]:
    """Grid, tick labels and the names of the axes; ``bottom`` is the lower edge of the lowest panel."""
    ticks = svg.nice_ticks(axes.low, axes.high, 6)
    decimals = max(1, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 3
    for loss in ticks:
        y = axes.y(loss)
        yield svg.element("path", d=f"M{axes.left:.1f} {y:.1f}H{axes.right:.1f}", class_="rule")
        yield svg.text(axes.left - 7, y + 4, f"{loss:.{decimals}f}", 11, text_anchor="end")
    for tokens in svg.nice_ticks(0, axes.most_tokens, max(2, int((axes.right - axes.left) / 56))):
        x = axes.x(tokens)
        yield svg.element("path", d=f"M{x:.1f} {bottom:.1f}v5", class_="rule")
        yield svg.text(x, bottom + 17, format_compact(tokens), 11, text_anchor="middle")
    yield svg.element("path", d=f"M{axes.left:.1f} {bottom:.1f}H{axes.right:.1f}", class_="rule")
    yield svg.text((axes.left + axes.right) / 2, bottom + 32, "tokens seen", 11, text_anchor="middle")
    yield svg.text(2, 13, "loss, nats per token", 12, class_="head")


def _legend(series: Sequence[_Series], num_merged: int) -> Iterator[str]:
    """Which kind of line is which, in the colour of the first run."""
    x, y = 2.0, 30.0
    css = series[0].css
    if any(one.held_out for one in series):
        marker = svg.element("circle", cx=x + 11, cy=y - 4, r=3.6, class_="marker")
        yield svg.element("g", svg.polyline([(x, y - 4), (x + 22, y - 4)], "held-out"), marker, class_=css)
        yield svg.text(x + 28, y, "held-out", 11)
        x += 92
    if any(one.training for one in series):
        yield svg.element("g", svg.polyline([(x, y - 4), (x + 22, y - 4)], "training"), class_=css)
        name = "training, each step" if num_merged == 1 else f"training, mean of {num_merged} steps"
        yield svg.text(x + 28, y, name, 11)


def _lines(axes: _Axes, one: _Series) -> Iterator[str]:
    lines = []
    if len(one.training) > 1:
        lines.append(svg.polyline(axes.at(one.training), "training"))
    if len(one.held_out) > 1:
        lines.append(svg.polyline(axes.at(one.held_out), "held-out"))
    radius = 4.2 if len(one.held_out) <= 40 else 2.6
    alone = one.training if len(one.training) == 1 and not one.held_out else []
    for tokens, loss in one.held_out or alone:
        title = f"{one.name}: {format_loss(loss)} nats per token at {format_count(round(tokens))} tokens seen"
        lines.append(
            svg.element("circle", svg.tooltip(title), cx=axes.x(tokens), cy=axes.y(loss), r=radius, class_="marker")
        )
    yield svg.element("g", *lines, class_=one.css)


def _labels(
    axes: _Axes,
    series: Sequence[_Series],
    references: Sequence[tuple[str, float]],
    label_lines: Mapping[str, list[str]],
    label_height: float,
) -> Iterator[str]:
    """The reference lines, and at the right the name and last value of each line, moved apart where they meet."""
    ends = [(one.name, one.css, *one.last) for one in series]
    ends += [(name, "m", axes.most_tokens, loss) for name, loss in references]
    wanted = [axes.y(loss) for *_, loss in ends]
    placed = svg.spread(wanted, label_height, axes.top + 8, axes.bottom + 14 - label_height)
    left = axes.right + 16
    for (name, css, tokens, loss), y in zip(ends, placed, strict=True):
        x_end = axes.x(tokens)
        if css == "m":
            yield svg.element("path", d=f"M{axes.left:.1f} {axes.y(loss):.1f}H{axes.right:.1f}", class_="reference")
        else:
            x_end += 6  # beside the marker
        leader = svg.element("path", d=f"M{x_end:.1f} {axes.y(loss):.1f}L{left - 4:.1f} {y:.1f}", class_="leader")
        lines = label_lines[name]
        words = [svg.text(left, y + _LINE * i, line, 11.5, class_="series") for i, line in enumerate(lines)]
        yield svg.element("g", svg.tooltip(f"{name}: {format_loss(loss)} nats per token"), leader, *words, class_=css)
        yield svg.text(left, y + _LINE * len(lines), format_loss(loss), 11)


def _wrapped(name: str, width: int) -> list[str]:
    """A name on at most two lines of ``width`` characters."""
    return textwrap.wrap(name, max(width, 6), max_lines=2, placeholder="\u2026") or [name]


def _rates(axes: _Axes, series: Sequence[_Series], bottom: float) -> Iterator[str]:
    """The lower panel: learning rate from 0 to its highest value, over the same tokens."""
    highest = max(rate for one in series for _, rate in one.learning_rate) or 1.0
    panel = _Axes(axes.left, axes.right, bottom - _RATE_HEIGHT, bottom, axes.most_tokens, 0.0, highest)
    yield svg.text(2, panel.top - 12, "learning rate", 12, class_="head")
    for rate in (0.0, highest):
        yield svg.text(axes.left - 7, panel.y(rate) + 4, format_rate(rate), 11, text_anchor="end")
    yield svg.element("path", d=f"M{axes.left:.1f} {panel.top:.1f}H{axes.right:.1f}", class_="rule")
    for one in series:
        if len(one.learning_rate) > 1:
            yield svg.element("g", svg.polyline(panel.at(one.learning_rate), "training"), class_=one.css)
