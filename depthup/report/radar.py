"""The profile of models over the tasks of a suite, as a radar figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..evaluation.scores import ModelScores
from . import svg
from .score_bars import describe
from .scores import score_board, with_margin

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4")
_MARGIN, _ROW = 54.0, 21.0


@dataclass(frozen=True)
class _Web:
    """From a task and a score in points to figure units."""

    x: float
    y: float
    radius: float
    low: float
    high: float
    num_axes: int

    def at(self, axis: int, points: float) -> tuple[float, float]:
        angle = 2 * math.pi * axis / self.num_axes - math.pi / 2
        far = self.radius * (points - self.low) / (self.high - self.low)
        return self.x + far * math.cos(angle), self.y + far * math.sin(angle)


def radar_svg(models: Sequence[ModelScores], *, width: int = 560, standalone: bool = False) -> str:
    """Draw the scores of each model as an outline over the tasks; the legend gives the mean of all tasks.

    Rings are labelled, the innermost point too: it is 0 only where a score is near it. Outlines differ in colour,
    dashes and marks. The figure shows profiles; for differences and their errors see
    :func:`depthup.report.score_bars.score_bars_svg`.

    Args:
        models: Up to six can be told apart.
        width: Of the coordinate system; 380 makes a figure for a phone.
        standalone: Return a file of its own, with the name space and its own style for light and dark pages.

    Returns:
        The figure, or an empty string unless there are three tasks or more, measured in points, that all models have.
    """
    board = score_board(models)
    columns = [
        i for i in range(board.num_means, len(board.columns))
        if board.columns[i].in_points and all(row[i] for row in board.cells)
    ]  # fmt: skip
    if len(columns) < 3 or not models:
        return ""
    scores = [[100 * one.mean for i in columns if (one := row[i])] for row in board.cells]
    low, high, step = _scale(min(map(min, scores)), max(map(max, scores)))
    radius = min(width / 2 - _MARGIN - 26, 190.0)
    web = _Web(width / 2, radius + 40, radius, low, high, len(columns))
    outlines = [_outline(web, number, points) for number, points in enumerate(scores)]
    titles = [board.columns[i].title for i in columns]
    means = [with_margin(row[0]) if board.num_means else "" for row in board.cells]
    mean_title = board.columns[0].title if board.num_means else ""
    legend, bottom = _legend(board.names, means, mean_title, web.y + radius + 52, width)
    return svg.document(
        width, bottom, *_rings(web, step), *_axes(web, titles), *outlines, *_ring_labels(web, step), *legend,
        standalone=standalone, title="Scores by task",
        description=f"{describe(board)} The centre is {low:g} points, the outer ring {high:g}.",
    )  # fmt: skip


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Centre, outer ring and step of the rings: whole steps, with the lowest score well off the centre."""
    centre = max(0.0, 10 * math.floor((low - 0.25 * (high - low) - 5) / 10))
    step = 20.0 if high - centre > 60 else 10.0
    centre -= centre % step
    return centre, max(step * math.ceil(high / step), centre + step), step


def _levels(web: _Web, step: float) -> list[float]:
    return [web.low + step * i for i in range(1, round((web.high - web.low) / step) + 1)]


def _rings(web: _Web, step: float) -> Iterator[str]:
    for level in _levels(web, step):
        corners = [web.at(axis, level) for axis in range(web.num_axes)]
        yield svg.element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z", class_="rule")


def _ring_labels(web: _Web, step: float) -> Iterator[str]:
    """Beside the upward axis, over the outlines."""
    for level in (web.low, *_levels(web, step)):
        x, y = web.at(0, level)
        yield svg.text(x - 7, y + 12, f"{level:g}", 10, text_anchor="end")


def _axes(web: _Web, titles: Sequence[str]) -> Iterator[str]:
    for axis, title in enumerate(titles):
        (x, y), (far_x, far_y) = web.at(axis, web.high), web.at(axis, web.high + 0.07 * (web.high - web.low))
        yield svg.element("path", d=f"M{web.x:.1f} {web.y:.1f}L{x:.1f} {y:.1f}", class_="rule")
        side = 0 if abs(far_x - web.x) < 1 else 1 if far_x > web.x else -1
        down = 4 + 6 * (far_y - web.y) / web.radius
        yield svg.text(far_x, far_y + down, title, 12, class_="head", text_anchor=("middle", "start", "end")[side])


def _outline(web: _Web, number: int, points: Sequence[float]) -> str:
    corners = [web.at(axis, score) for axis, score in enumerate(points)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"
    dashes = _DASHES[number % len(_DASHES)] or None
    area = svg.element("path", d=path, class_="area", stroke_dasharray=dashes)
    marks = [svg.mark(number, x, y, 3.6) for x, y in corners]
    return svg.element("g", area, *marks, class_=f"s{number % svg.NUM_SERIES}")


def _legend(
    names: Sequence[str], means: Sequence[str], mean_title: str, top: float, width: float
) -> tuple[list[str], float]:
    """One row a model: its outline, name and mean."""
    shown = [name if len(name) <= 44 else f"\u2026{name[-43:]}" for name in names]
    left = max(4.0, (width - 6.6 * max(map(len, shown)) - 150) / 2)
    right = min(width - 4.0, left + 6.6 * max(map(len, shown)) + 150)
    parts = []
    for number, (name, mean) in enumerate(zip(shown, means, strict=True)):
        y = top + _ROW * number
        dashes = _DASHES[number % len(_DASHES)] or None
        line = svg.element("path", d=f"M{left:.1f} {y - 4:.1f}h30", class_="whisker", stroke_dasharray=dashes)
        words = svg.text(left + 40, y, name, 11.5, class_="series")
        value = svg.text(right, y, f"{mean_title} {mean}", 11.5, text_anchor="end") if mean else ""
        mark = svg.mark(number, left + 15, y - 4, 4)
        parts.append(svg.element("g", line, mark, words, value, class_=f"s{number % svg.NUM_SERIES}"))
    return parts, top + _ROW * (len(names) - 1) + 16
