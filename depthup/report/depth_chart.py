"""A chart of numbers by layer: lines with a marker at each layer, on one axis of values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import svg

_LEFT, _BOTTOM, _LINE = 52.0, 40.0, 18.0
_WIDTH_OF_CHARACTER = 6.4
_MOST_MARKS = 60


@dataclass(frozen=True)
class Line:
    """Points (place, value) of one kind, with a margin of each where one is known."""

    name: str
    points: tuple[tuple[float, float], ...]
    margins: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Axes:
    left: float
    right: float
    top: float
    bottom: float
    first: float
    last: float
    low: float
    high: float
    logarithmic: bool

    def x(self, place: float) -> float:
        return self.left + (self.right - self.left) * (place - self.first) / max(self.last - self.first, 1e-9)

    def y(self, value: float) -> float:
        low, high, here = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.bottom - (self.bottom - self.top) * (here - low) / (high - low)


def depth_chart_svg(
    title: str,
    lines: Sequence[Line],
    *,
    description: str,
    x_name: str,
    zero: bool = False,
    logarithmic: bool = False,
    marked: Sequence[tuple[float, str]] = (),
    width: int = 760,
    standalone: bool = False,
) -> str:
    """Draw lines over layers; each has a marker of its own shape, and its margin as a whisker.

    Args:
        title: What is measured and in which unit.
        lines: Told apart by colour and shape; values that are not finite are left out.
        description: What can be read off, in sentences.
        x_name: Name of the places.
        zero: Let the axis reach 0 and draw it.
        logarithmic: Draw powers of ten at equal distances; values must be above 0.
        marked: Places with a name, drawn as dashed lines: seams.
        width: Of the coordinate system.
        standalone: Return a file of its own.

    Returns:
        The figure, or an empty string where there is nothing to draw.
    """
    lines = [one for line in lines if (one := _finite(line)).points]
    if not lines:
        return ""
    legend, top = _legend(lines, width)
    axes = _fit(lines, width - 14.0, top, top + max(200.0, 0.33 * width), zero, logarithmic)
    content = [
        svg.text(2, 13, title, 12, class_="head"), *legend, *_frame(axes, x_name, zero),
        *(part for place, name in marked for part in _mark(axes, place, name)),
        *(_drawn(axes, number, line) for number, line in enumerate(lines)),
    ]  # fmt: skip
    return svg.document(
        width, axes.bottom + _BOTTOM, *content, title=title, description=description, standalone=standalone
    )


def _finite(line: Line) -> Line:
    margins = line.margins or (0.0,) * len(line.points)
    kept = [(point, margin) for point, margin in zip(line.points, margins, strict=True) if math.isfinite(point[1])]
    points, found = tuple(point for point, _ in kept), tuple(margin for _, margin in kept)
    return Line(line.name, points, found if line.margins else ())


def _fit(lines: Sequence[Line], right: float, top: float, bottom: float, zero: bool, logarithmic: bool) -> _Axes:
    places = [place for line in lines for place, _ in line.points]
    ends = [
        value + sign * margin
        for line in lines
        for (_, value), margin in zip(line.points, line.margins or (0.0,) * len(line.points), strict=True)
        for sign in (-1, 1)
    ]
    low, high = min(ends), max(ends)
    if logarithmic:
        low, high = low / 1.2, high * 1.2
    else:
        low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
        margin = max(0.05 * (high - low), 1e-6)
        low, high = low - margin, high + margin
    return _Axes(_LEFT, right, top, bottom, min(places), max(places), low, high, logarithmic)


def _legend(lines: Sequence[Line], width: float) -> tuple[list[str], float]:
    """The names of the lines with their markers in rows, and where the chart below them begins."""
    x, y, parts = 8.0, 32.0, []
    if len(lines) == 1:
        return [], 30.0
    for number, line in enumerate(lines):
        needed = _WIDTH_OF_CHARACTER * len(line.name) + 34
        if x > 8 and x + needed > width:
            x, y = 8.0, y + _LINE
        parts.append(svg.element("g", svg.mark(number, x, y - 4, 4.2), class_=f"s{number % svg.NUM_SERIES}"))
        parts.append(svg.text(x + 11, y, line.name, 11))
        x += needed
    return parts, y + 16


def _frame(axes: _Axes, x_name: str, zero: bool) -> Iterator[str]:
    for value in _ticks(axes):
        y = axes.y(value)
        yield svg.element("path", d=f"M{axes.left:.1f} {y:.1f}H{axes.right:.1f}", class_="rule")
        yield svg.text(axes.left - 7, y + 4, f"{value:g}", 11, text_anchor="end")
    for place in svg.nice_ticks(axes.first, axes.last, 16):
        if place == int(place):
            yield svg.text(axes.x(place), axes.bottom + 17, f"{place:g}", 11, text_anchor="middle")
    if zero:
        yield svg.element("path", d=f"M{axes.left:.1f} {axes.y(0):.1f}H{axes.right:.1f}", class_="reference")
    yield svg.text((axes.left + axes.right) / 2, axes.bottom + 33, x_name, 11, text_anchor="middle")


def _ticks(axes: _Axes) -> list[float]:
    if not axes.logarithmic:
        return svg.nice_ticks(axes.low, axes.high, 6)
    low, high = math.floor(math.log10(axes.low)), math.ceil(math.log10(axes.high))
    found = [factor * 10.0**power for power in range(low, high) for factor in (1, 2, 5)]
    return [value for value in found if axes.low <= value <= axes.high]


def _mark(axes: _Axes, place: float, name: str) -> Iterator[str]:
    x = axes.x(place)
    yield svg.element("path", d=f"M{x:.1f} {axes.top:.1f}V{axes.bottom:.1f}", class_="seam")
    yield svg.text(x + 4, axes.top + 10, name, 11, class_="seam-name")


def _drawn(axes: _Axes, number: int, line: Line) -> str:
    at = [(axes.x(place), axes.y(value)) for place, value in line.points]
    parts = [svg.polyline(at, "training")] if len(at) > 1 else []
    for (x, _), (_, value), margin in zip(at, line.points, line.margins, strict=False):
        if margin > 0 and not axes.logarithmic:
            parts.append(svg.polyline([(x, axes.y(value - margin)), (x, axes.y(value + margin))], "leader"))
    size = 4.0 if len(at) <= _MOST_MARKS else 2.2
    for (x, y), (place, value) in zip(at, line.points, strict=True):
        parts.append(svg.mark(number, x, y, size, svg.tooltip(f"{line.name}, {place:g}: {value:.4g}")))
    return svg.element("g", *parts, class_=f"s{number % svg.NUM_SERIES}")
