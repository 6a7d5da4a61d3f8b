"""Scores with their intervals: one line a model, in one block a task, all on one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, OutputError
from ..evaluation.scores import ModelScores
from ..evaluation.statistics import Estimate
from ..files import write_text
from . import svg
from .scores import Board, Column, score_board, with_margin

_LINE, _GAP, _TOP, _BOTTOM = 17.0, 15.0, 18.0, 40.0
_CHARACTER = 6.6  # width of one at size 11.5


@dataclass(frozen=True)
class _Axis:
    left: float
    right: float
    low: float
    high: float

    def x(self, share: float) -> float:
        return self.left + (self.right - self.left) * (100 * share - self.low) / (self.high - self.low)


def score_bars_svg(models: Sequence[ModelScores], *, width: int = 760, standalone: bool = False) -> str:
    """Draw the score of each model on each task as a mark on its 95 % interval; the mean of all tasks stands first.

    Marks differ in shape as well as in colour. Tasks whose metric is no share (bits, perplexity) are left out. The axis
    does not begin at 0: what is read off is a place and a distance, not a length.

    Args:
        models: Told apart by their names, which stand above the figure.
        width: Of the coordinate system; 380 makes a figure for a phone.
        standalone: Return a file of its own, with the name space and its own style for light and dark pages.

    Returns:
        The figure, or an empty string where there is nothing to draw.
    """
    board = score_board(models)
    columns = [(i, column) for i, column in enumerate(board.columns) if column.in_points]
    shown = [one for row in board.cells for i, _ in columns if (one := row[i])]
    if not shown:
        return ""
    narrow = width < 520
    values = 70 if narrow else 92
    left = 10.0
    if not narrow:
        left = max(max(7.6 * len(column.title), 5.6 * len(column.detail)) for _, column in columns) + 22
    axis = _axis(shown, left, width - values)
    legend, y = _legend(board.names, width)
    content, blocks = [*legend], []
    y += _TOP
    for place, (i, column) in enumerate(columns):
        rows = [(number, one) for number, row in enumerate(board.cells) if (one := row[i])]
        height = max(_LINE * len(rows), 30.0 if not narrow and column.detail else _LINE) + (_LINE if narrow else 0)
        if place:
            content.append(svg.element("path", d=f"M0 {y - _GAP / 2:.1f}H{width}", class_="rule"))
        blocks += list(_block(axis, column, rows, board.names, y, narrow, width))
        y += height + _GAP
    bottom = y - _GAP + 4
    return svg.document(
        width, bottom + _BOTTOM, *content, *_grid(axis, _TOP + legend_height(board.names, width) - 8, bottom), *blocks,
        standalone=standalone, title="Scores with 95 % intervals", description=describe(board),
    )  # fmt: skip


def write_score_bars(path: Path, models: Sequence[ModelScores]) -> None:
    """Write the figure as a file of its own.

    Raises:
        DataError: There is nothing to draw.
        OutputError: The file cannot be written.
    """
    figure = score_bars_svg(models, standalone=True)
    if not figure:
        raise DataError("nothing to draw: no task is measured in points", next_step="leave out --figure")
    try:
        write_text(path, figure + "\n")
    except OSError as error:
        raise OutputError(
            f"{path} was not written: {error.strerror}", next_step="choose another place with --figure"
        ) from error


def describe(board: Board) -> str:
    """The scores in sentences."""
    sentences = []
    for name, row in zip(board.names, board.cells, strict=True):
        said = [
            f"{column.title} {with_margin(one)}"
            for column, one in zip(board.columns, row, strict=True)
            if one and column.in_points
        ]
        sentences.append(f"{name}: {', '.join(said)}")
    return ". ".join(sentences) + "."


def legend_height(names: Sequence[str], width: float) -> float:
    """How far down the names of the models reach."""
    return _legend(names, width)[1]


def _legend(names: Sequence[str], width: float) -> tuple[list[str], float]:
    """The models with their marks in rows, and where they end."""
    parts, x, y = [], 2.0, 14.0
    for number, name in enumerate(names):
        title = name if len(name) <= 40 else f"\u2026{name[-39:]}"
        space = _CHARACTER * len(title) + 36
        if x > 2 and x + space > width:
            x, y = 2.0, y + 20
        mark = svg.mark(number, x + 7, y - 4, 4.5)
        words = svg.text(x + 18, y, title, 11.5, class_="series")
        parts.append(svg.element("g", mark, words, class_=f"s{number % svg.NUM_SERIES}"))
        x += space
    return parts, y


def _axis(shown: Sequence[Estimate], left: float, right: float) -> _Axis:
    low, high = 100 * min(one.low for one in shown), 100 * max(one.high for one in shown)
    room = max(0.04 * (high - low), 1.0)
    return _Axis(left, right, max(0.0, low - room), min(100.0, high + room))


def _grid(axis: _Axis, top: float, bottom: float) -> Iterator[str]:
    for tick in svg.nice_ticks(axis.low, axis.high, max(3, int((axis.right - axis.left) / 70))):
        x = axis.x(tick / 100)
        yield svg.element("path", d=f"M{x:.1f} {top:.1f}V{bottom:.1f}", class_="rule")
        yield svg.text(x, bottom + 16, f"{tick:g}", 11, text_anchor="middle")
    yield svg.text((axis.left + axis.right) / 2, bottom + 33, "score, points", 11, text_anchor="middle")


def _block(
    axis: _Axis, column: Column, rows: Sequence[tuple[int, Estimate]], names: Sequence[str], y: float, narrow: bool,
    width: float,
) -> Iterator[str]:  # fmt: skip
    """One task: its name, and a line for each model."""
    yield svg.text(2, y + 12, column.title, 12.5, class_="head")
    if column.detail:
        beside = 8.6 * len(column.title) + 14
        yield svg.text(beside if narrow else 2, y + 12 + (0 if narrow else 15), column.detail, 10.5)
    y += _LINE if narrow else 0
    for line, (number, one) in enumerate(rows):
        centre = y + _LINE * line + _LINE / 2
        low, middle, high = axis.x(one.low), axis.x(one.mean), axis.x(one.high)
        title = svg.tooltip(f"{names[number]}, {column.title}: {with_margin(one)}, {one.num_items:,} items")
        whisker = svg.element("path", d=f"M{low:.1f} {centre:.1f}H{high:.1f}", class_="whisker")
        value = svg.text(width - 2, centre + 4, with_margin(one), 11, text_anchor="end", class_="series")
        yield svg.element(
            "g", title, whisker, svg.mark(number, middle, centre, 4.5), value, class_=f"s{number % svg.NUM_SERIES}"
        )
