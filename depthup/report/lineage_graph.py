"""The graph of a lineage: models and data from top to bottom, each joined to what it was made from.

Layered drawing after Sugiyama, Tagawa and Toda (1981): a layer for each depth, edges over several layers bent through
places of their own, the order within a layer by mean place of the neighbours, swept a few times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import svg
from .values import StageCard

_WIDTH, _HEIGHT, _GAP, _RISE = 140.0, 40.0, 16.0, 34.0  # of a box, between boxes, between layers
_BEND = 6.0  # width of the place through which a long edge passes
_MARGIN = 8.0
_NARROW = 330.0  # a wider graph begins at the left, so that a phone shows its beginning
_SWEEPS = 8
_SERIES = {"import": 5, "upscale": 4, "pretrain": 0, "sft": 2, "dpo": 3, "sdpo": 3, "merge": 1}  # colour by kind
_LETTERS = 19  # of a name that fits into a box
_STYLE = """\
svg.fig .edge{stroke:var(--muted);stroke-opacity:.7;stroke-width:1.3;fill:none}
svg.fig .box{stroke:currentColor;stroke-width:1.6;fill:var(--paper,transparent)}
svg.fig .made{stroke-dasharray:4 3}
"""
Place = str | tuple[str, str, int]  # a stage, or the bend of an edge in a layer


@dataclass(frozen=True)
class _Graph:
    """Stages by layer, and the edges between neighbouring layers."""

    layers: tuple[tuple[Place, ...], ...]
    edges: tuple[tuple[Place, Place], ...]  # from above to below


def lineage_svg(stages: Sequence[StageCard], *, standalone: bool = False) -> str:
    """Draw what was made from what. Measurements are no boxes; how many a model has stands in its box.

    Args:
        stages: In the order of the recipe.
        standalone: Return a file of its own, with the name space and its own style for light and dark pages.

    Returns:
        The figure, at its own size in CSS pixels (it is not to be scaled down); empty for fewer than two boxes.
    """
    drawn = {stage.name: stage for stage in stages if stage.role != "measure"}
    if len(drawn) < 2:
        return ""
    graph = _ordered(_layered(drawn))
    places, width = _placed(graph)
    height = 2 * _MARGIN + len(graph.layers) * (_HEIGHT + _RISE) - _RISE
    measured = {name: sum(name in one.inputs for one in stages if one.role == "measure") for name in drawn}
    lines = [_edge(places[above], places[below], above, below) for above, below in graph.edges]
    boxes = [_box(stage, *places[name], measured[name]) for name, stage in drawn.items()]
    figure = svg.document(
        width, height, svg.element("style", _STYLE), *lines, *boxes, title="Lineage",
        description=describe(list(drawn.values())), standalone=standalone,
    )  # fmt: skip
    return figure if standalone else figure.replace("<svg ", f'<svg style="width:{width:.0f}px" ', 1)


def describe(stages: Sequence[StageCard]) -> str:
    """The graph in sentences."""
    names = {stage.name for stage in stages}
    told = []
    for stage in stages:
        inputs = [name for name in stage.inputs if name in names]
        told.append(f"{stage.name} ({stage.kind}){f' from {_listed(inputs)}' if inputs else ''}")
    return "; ".join(told) + "."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def _layered(drawn: Mapping[str, StageCard]) -> _Graph:
    """Each stage in the layer below the lowest of its inputs; sources move down to just above their first user."""
    depth: dict[str, int] = {}
    for name, stage in drawn.items():
        depth[name] = max((depth[source] + 1 for source in stage.inputs if source in depth), default=0)
    for name in reversed(list(drawn)):
        below = [depth[other] for other, stage in drawn.items() if name in stage.inputs]
        if below and not any(source in drawn for source in drawn[name].inputs):
            depth[name] = min(below) - 1
    layers: list[list[Place]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in drawn:
        layers[depth[name]].append(name)
    edges: list[tuple[Place, Place]] = []
    for name, stage in drawn.items():
        for source in stage.inputs:
            if source in drawn:
                way: list[Place] = [source]
                for level in range(depth[source] + 1, depth[name]):
                    way.append((source, name, level))
                    layers[level].append(way[-1])
                edges += zip(way, [*way[1:], name], strict=True)
    return _Graph(tuple(map(tuple, layers)), tuple(edges))


def _ordered(graph: _Graph) -> _Graph:
    """The same graph, its layers ordered so that few edges cross."""
    above: dict[Place, list[Place]] = {}
    below: dict[Place, list[Place]] = {}
    for high, low in graph.edges:
        above.setdefault(low, []).append(high)
        below.setdefault(high, []).append(low)
    layers = [list(layer) for layer in graph.layers]
    for sweep in range(_SWEEPS):
        neighbours = below if sweep % 2 else above
        order = range(len(layers))
        for level in reversed(order) if sweep % 2 else order:
            beside = level + 1 if sweep % 2 else level - 1
            if not 0 <= beside < len(layers):
                continue
            rank = {place: i / max(len(layers[beside]) - 1, 1) for i, place in enumerate(layers[beside])}
            own = {place: i / max(len(layers[level]) - 1, 1) for i, place in enumerate(layers[level])}
            means = {
                place: sum(rank[one] for one in found) / len(found) if (found := neighbours.get(place)) else own[place]
                for place in layers[level]
            }
            layers[level].sort(key=lambda place, means=means: means[place])  # type: ignore[misc]
    return _Graph(tuple(map(tuple, layers)), graph.edges)


def _placed(graph: _Graph) -> tuple[dict[Place, tuple[float, float]], float]:
    """Middle and top of each place, and the width of the figure; see :func:`_pull`."""
    sizes = [[_WIDTH if isinstance(place, str) else _BEND for place in layer] for layer in graph.layers]
    width = max(sum(row) + _GAP * (len(row) - 1) for row in sizes) + 2 * _MARGIN
    places: dict[Place, tuple[float, float]] = {}
    for level, (layer, row) in enumerate(zip(graph.layers, sizes, strict=True)):
        x = _MARGIN if width > _NARROW else (width - sum(row) - _GAP * (len(row) - 1)) / 2
        for place, size in zip(layer, row, strict=True):
            places[place] = (x + size / 2, _MARGIN + level * (_HEIGHT + _RISE))
            x += size + _GAP
    for layer, row in zip(graph.layers, sizes, strict=True):
        _pull(layer, row, places, graph, width)
    return places, width


def _pull(
    layer: Sequence[Place], row: Sequence[float], places: dict[Place, tuple[float, float]], graph: _Graph, width: float
) -> None:
    """Move a layer sideways towards the middles of what it comes from, the order and the gaps kept."""
    wanted = []
    for place in layer:
        found = [places[high][0] for high, low in graph.edges if low == place]
        wanted.append(sum(found) / len(found) if found else places[place][0])
    left = _MARGIN
    for i, (place, size) in enumerate(zip(layer, row, strict=True)):
        room = sum(row[i + 1 :]) + _GAP * (len(row) - 1 - i)
        x = min(max(wanted[i] - size / 2, left), width - _MARGIN - room - size)
        places[place] = (x + size / 2, places[place][1])
        left = x + size + _GAP


def _edge(above: tuple[float, float], below: tuple[float, float], source: Place, target: Place) -> str:
    """A curve from the foot of one place to the head of the other; through a bend it goes straight down."""
    x0, y0 = above[0], above[1] + _HEIGHT
    x1, y1 = below
    middle = (y0 + y1) / 2
    down = "" if isinstance(source, str) else f"M{x0:.1f} {above[1]:.1f}V{y0:.1f}"
    curve = f"M{x0:.1f} {y0:.1f}C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    return svg.element("path", d=down + curve, class_="edge")


def _box(stage: StageCard, middle: float, top: float, num_measured: int) -> str:
    name = stage.name if len(stage.name) <= _LETTERS else f"{stage.name[: _LETTERS - 1]}\u2026"
    detail = stage.kind + (f", measured {num_measured}\u00d7" if num_measured else "")
    is_model = stage.role == "model"
    title = f"{stage.name}: {stage.kind}" + (f" from {_listed(stage.inputs)}" if stage.inputs else "")
    colour = f"s{_SERIES[stage.kind]}" if stage.kind in _SERIES else "m"
    return svg.element(
        "g", svg.tooltip(title),
        svg.element("rect", x=middle - _WIDTH / 2, y=top, width=_WIDTH, height=_HEIGHT, rx=7 if is_model else 0,
                    class_="box" if is_model else "box made"),
        svg.text(middle, top + 17, name, 12.5, class_="head", text_anchor="middle"),
        svg.text(middle, top + 31, detail, 10.5, class_="detail", text_anchor="middle"), class_=colour,
    )  # fmt: skip
