"""A heat map over pairs of places in a stack of layers: one square a pair, its strength a share of one colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import svg

_LEFT, _TOP, _BOTTOM, _KEY_WIDTH = 46.0, 44.0, 42.0, 104.0
_MOST_TITLES = 1500  # squares that have a tooltip each; more would make a page heavy
_FAINTEST = 0.05
Pair = tuple[int, int]


@dataclass(frozen=True)
class HeatMap:
    """What a heat map shows.

    Attributes:
        title: A few words.
        description: What can be read off it, in sentences.
        places: Where pairs may begin and end, in order; each is a column and a row.
        values: The number of each pair (column, row); pairs without one are left blank.
        strengths: For each pair with a value from 0 (no colour) to 1.
        labels: What a pair's tooltip says.
        key: Value and strength of the steps of the colour key, and the series (colour) of each.
        below: Pairs drawn in the second colour: what is better than nothing changed.
        best: A pair that is framed.
        x_name: Name of the columns.
        y_name: Name of the rows.
    """

    title: str
    description: str
    places: Sequence[int]
    values: Mapping[Pair, float]
    strengths: Mapping[Pair, float]
    labels: Mapping[Pair, str]
    key: Sequence[tuple[str, float, int]]
    below: frozenset[Pair] = frozenset()
    best: Pair | None = None
    x_name: str = ""
    y_name: str = ""


def heat_map_svg(shown: HeatMap, *, width: int = 760, standalone: bool = False) -> str:
    """Draw a heat map; rows begin at the bottom, as layers do.

    The colour is that of the page's first or third series, laid on the paper more or less strongly, so that it reads on
    light and dark pages; the framed square and the tooltips say the same without colour.

    Args:
        shown: What to draw.
        width: Of the coordinate system; the map itself is square and at most 560 wide.
        standalone: Return a file of its own.
    """
    size = min(width - _LEFT - _KEY_WIDTH, 560.0)
    step = size / len(shown.places)
    order = {place: number for number, place in enumerate(shown.places)}

    def corner(pair: Pair) -> tuple[float, float]:
        return _LEFT + step * order[pair[0]], _TOP + size - step * (order[pair[1]] + 1)

    squares: dict[int, list[str]] = {0: [], 2: []}
    for pair in shown.values:
        x, y = corner(pair)
        title = [svg.tooltip(shown.labels[pair])] if len(shown.values) <= _MOST_TITLES else []
        strength = max(_FAINTEST, min(1.0, shown.strengths[pair]))
        squares[2 if pair in shown.below else 0].append(
            svg.element("rect", *title, x=x, y=y, width=step, height=step, fill_opacity=strength, class_="cell")
        )
    content = [svg.element("g", *found, class_=f"s{series}") for series, found in squares.items() if found]
    if shown.best is not None:
        x, y = corner(shown.best)
        content.append(svg.element("rect", x=x, y=y, width=step, height=step, class_="best"))
    return svg.document(
        width, _TOP + size + _BOTTOM, svg.text(2, 13, shown.title, 12, class_="head"), *_axes(shown, step, size),
        *content, *_key(shown, _LEFT + size + 18), title=shown.title, description=shown.description,
        standalone=standalone,
    )  # fmt: skip


def _axes(shown: HeatMap, step: float, size: float) -> Iterator[str]:
    every = max(1, -(-len(shown.places) // 16))
    for number, place in enumerate(shown.places):
        if number % every == 0:
            x, y = _LEFT + step * (number + 0.5), _TOP + size - step * (number + 0.5)
            yield svg.text(x, _TOP + size + 15, str(place), 11, text_anchor="middle")
            yield svg.text(_LEFT - 6, y + 4, str(place), 11, text_anchor="end")
    yield svg.text(_LEFT + size / 2, _TOP + size + 33, shown.x_name, 11, text_anchor="middle")
    yield svg.text(2, 32, shown.y_name, 11)
    yield svg.element("rect", x=_LEFT, y=_TOP, width=size, height=size, class_="rule")


def _key(shown: HeatMap, x: float) -> Iterator[str]:
    for number, (label, strength, series) in enumerate(shown.key):
        y = _TOP + 22 * number
        square = svg.element("rect", x=x, y=y, width=14.0, height=14.0, fill_opacity=max(_FAINTEST, strength),
                             class_="cell")  # fmt: skip
        yield svg.element("g", square, class_=f"s{series}")
        yield svg.text(x + 20, y + 11, label, 11)
