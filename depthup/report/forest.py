"""Differences with their intervals, one a row, around the line of no difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import svg
from .text import format_difference

_ROW, _TOP, _BOTTOM = 21.0, 44.0, 40.0


@dataclass(frozen=True)
class Row:
    """One difference in points.

    Attributes:
        label: What differs.
        difference: Its size.
        wide: Half of its widest interval.
        narrow: Half of its narrowest.
        series: Number of its colour and mark.
    """

    label: str
    difference: float
    wide: float
    narrow: float
    series: int


def forest_svg(
    rows: Sequence[Row], kinds: Sequence[tuple[int, str]], *, title: str, intervals: tuple[str, str], width: int = 760,
    standalone: bool = False,
) -> str:  # fmt: skip
    """Draw each difference as a mark on two intervals, a thin wide one and a thick narrow one.

    Args:
        rows: From top to bottom.
        kinds: Number of each series and what it means.
        title: Of the figure.
        intervals: What the wide and the narrow interval are.
        width: Of the coordinate system.
        standalone: Return a file of its own, with the name space and its own style for light and dark pages.
    """
    left = 6.1 * max(len(row.label) for row in rows) + 16
    right = width - 54.0
    low = min(0.0, *(row.difference - row.wide for row in rows))
    high = max(0.0, *(row.difference + row.wide for row in rows))

    def at(points: float) -> float:
        return left + (right - left) * (points - low) / (high - low)

    bottom = _TOP + _ROW * len(rows) + 4
    lines = [line for i, row in enumerate(rows) for line in _row(row, at(row.difference), i, (at(0) - at(-1)), width)]
    said = ". ".join(f"{row.label}: {format_difference(row.difference)} points, ± {row.wide:.2f} to {row.narrow:.2f}"
                     for row in rows)  # fmt: skip
    ticks = []
    for tick in svg.nice_ticks(low, high, 9):
        ticks.append(svg.element("path", d=f"M{at(tick):.1f} {_TOP - 8:.1f}V{bottom:.1f}", class_="rule"))
        ticks.append(svg.text(at(tick), bottom + 15, f"{tick:+g}".replace("-", "\u2212") if tick else "0", 11,
                              text_anchor="middle"))  # fmt: skip
    zero = svg.element("path", d=f"M{at(0):.1f} {_TOP - 8:.1f}V{bottom:.1f}", class_="bracket")
    axis = svg.text((left + right) / 2, bottom + 32, "difference, points", 11, text_anchor="middle")
    return svg.document(
        width, bottom + _BOTTOM, *_legend(kinds, intervals), *ticks, zero, axis, *lines, title=title,
        description=f"{said}.", standalone=standalone,
    )  # fmt: skip


def _row(row: Row, middle: float, place: int, unit: float, width: float) -> Iterator[str]:
    y = _TOP + _ROW * place + _ROW / 2
    yield svg.text(2, y + 4, row.label, 11.5)
    whiskers = [
        svg.element("path", d=f"M{middle - unit * half:.1f} {y:.1f}H{middle + unit * half:.1f}", class_="whisker",
                    style=f"stroke-width:{thick}")
        for half, thick in ((row.wide, 1.2), (row.narrow, 3.6))
    ]  # fmt: skip
    value = svg.text(width - 2, y + 4, f"{row.difference:+.2f}".replace("-", "\u2212"), 11, text_anchor="end",
                     class_="series")  # fmt: skip
    yield svg.element(
        "g", svg.tooltip(f"{row.label}: {row.difference:+.2f}"), *whiskers, svg.mark(row.series, middle, y, 4.2), value,
        class_=f"s{row.series}",
    )  # fmt: skip


def _legend(kinds: Sequence[tuple[int, str]], intervals: tuple[str, str]) -> Iterator[str]:
    x = 2.0
    for series, meaning in kinds:
        mark = svg.mark(series, x + 6, 10, 4.5)
        yield svg.element("g", mark, svg.text(x + 16, 14, meaning, 11.5, class_="series"), class_=f"s{series}")
        x += 6.8 * len(meaning) + 34
    x = 2.0
    for meaning, thick in zip(intervals, (1.2, 3.6), strict=True):
        yield svg.element("path", d=f"M{x:.1f} 27h22", class_="whisker m", style=f"stroke-width:{thick}")
        yield svg.text(x + 29, 31, meaning, 11)
        x += 5.8 * len(meaning) + 52
