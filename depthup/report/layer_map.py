"""The layer map: a base stack, its copies, and the target that they join to, for any LayerPlan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from ..layers import LayerPlan, Slice
from . import svg
from .text import format_runs

_MOST_COLUMNS = 8  # with more slices than this the copies share two columns and leave their dropped layers out
_HEADING = 34  # room above a stack for its two lines, and the figure's top margin
_FOOTER = 44
_LEFT = 34
_RIGHT = 104


@dataclass(frozen=True)
class _Layout:
    """Where things stand, in figure units; levels count target layers upwards, level 0 at the bottom."""

    low: int  # lowest level of any cell
    high: int  # one above the highest level
    cell_width: float
    cell_height: float  # with the gap to the next cell
    base_x: float
    copies_x: tuple[float, ...]  # one for each slice
    target_x: float
    folded: bool

    @property
    def width(self) -> float:
        return self.target_x + self.cell_width + _RIGHT

    @property
    def bottom(self) -> float:
        return _HEADING + (self.high - self.low) * self.cell_height

    @property
    def is_fine(self) -> bool:
        """Whether a cell is too low for a number of its own."""
        return self.cell_height < 8.5

    @property
    def gap(self) -> float:
        return min(1.2, self.cell_height * (0.1 if self.is_fine else 0.14))

    def edge(self, level: float) -> float:
        """The y of the lower edge of a level."""
        return _HEADING + (self.high - level) * self.cell_height

    def labels(self, start: int, stop: int) -> list[int]:
        """Which of the layers ``[start, stop)`` of one run get their number written: all, or tens off the ends."""
        if not self.is_fine:
            return list(range(start, stop))
        margin = 5 / self.cell_height
        return [i for i in range(start, stop) if i % 10 == 0 and i + 0.5 - start >= margin and stop - i - 0.5 >= margin]


def _layout(plan: LayerPlan) -> _Layout:
    slices = plan.slices
    folded = len(slices) > _MOST_COLUMNS
    offsets = [0] if folded else [part.target_start - part.start for part in slices]
    low = min(0, *offsets)
    high = max(plan.num_base_layers, plan.num_target_layers, max(offsets) + plan.num_base_layers)
    num_columns = 2 if folded else len(slices)
    cell_width, gap = (52.0, 24.0) if num_columns <= 2 else (38.0, 13.0) if num_columns <= 4 else (30.0, 8.0)
    copies = _LEFT + cell_width + max(gap, 24.0)
    columns = [copies + (cell_width + gap) * (i % 2 if folded else i) for i in range(len(slices))]
    return _Layout(
        low, high, cell_width, min(max(530 / (high - low), 3.0), 20.0), _LEFT, tuple(columns),
        max(columns) + cell_width + max(gap, 24.0), folded,
    )  # fmt: skip


def layer_map_svg(plan: LayerPlan, *, standalone: bool = False) -> str:
    """Draw which base layer each target layer starts from.

    From the left: the base; one copy for each slice of the plan, level with where it stands in the target, its
    dropped layers as empty outlines; the target. A cell's colour is its base layer, so layers that stand more than
    once show as repeated colours. Each cell of the target carries ``data-target`` and ``data-source``.

    Args:
        plan: Any plan.
        standalone: Return a file of its own, with the name space and its own style for light and dark pages.
    """
    layout = _layout(plan)
    content = [*_bands(plan, layout), *_base(plan, layout)]
    for i, part in enumerate(plan.slices):
        content.extend(_copy(plan, layout, i, part))
    content.extend([*_target(plan, layout), *_seams(plan, layout), *_legend(plan, layout)])
    return svg.document(
        layout.width, layout.bottom + _FOOTER, *content, scale=1.25, standalone=standalone,
        title=f"Layer map, {plan.num_base_layers} to {plan.num_target_layers} layers", description=describe(plan),
    )  # fmt: skip


def describe(plan: LayerPlan) -> str:
    """The layer map in sentences."""
    slices = "; then ".join(f"base layers {part.start} to {part.stop - 1}" for part in plan.slices[:12])
    if len(plan.slices) > 12:
        slices += f"; and {len(plan.slices) - 12} slices more"
    seams = "; ".join(f"{s.below}|{s.above}, layer distance {s.layer_distance}" for s in plan.seams[:12])
    sentences = [f"The target of {plan.num_target_layers} layers is, from the bottom: {slices}"]
    if plan.seams:
        sentences.append(f"{_counted(len(plan.seams), 'seam')}: {seams}{'; ...' * (len(plan.seams) > 12)}")
    sentences.append(f"Base layers that stand more than once: {format_runs(plan.duplicated) or 'none'}")
    if plan.unused:
        sentences.append(f"Base layers not used: {format_runs(plan.unused)}")
    return ". ".join(sentences) + "."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def is_upscale(plan: LayerPlan) -> bool:
    """Whether the plan is a lower copy from the bottom of the base and an upper copy up to its top."""
    return len(plan.slices) == 2 and plan.slices[0].start == 0 and plan.slices[1].stop == plan.num_base_layers


def _heading(layout: _Layout, x: float, level: int, name: str, detail: str) -> Iterator[str]:
    wide = layout.cell_width > 50
    middle, y = x + layout.cell_width / 2, layout.edge(level)
    yield svg.text(middle, y - 17, name, 11.5 if wide else 9.5, class_="head", text_anchor="middle")
    yield svg.text(middle, y - 6, detail, 9.5 if wide else 8.5, text_anchor="middle")


def _cells(
    layout: _Layout, plan: LayerPlan, x: float, part: Slice, level: int, *, in_target: bool = False
) -> Iterator[str]:
    """The base layers of ``part`` as coloured cells upwards from ``level``."""
    height = layout.cell_height - layout.gap
    labelled = set(layout.labels(part.start, part.stop))
    size = 8.0 if layout.is_fine else min(8.5, layout.cell_height * 0.78)
    numbers = []
    for source in range(part.start, part.stop):
        at = level + source - part.start
        top = layout.edge(at + 1) + layout.gap / 2
        fill, ink = svg.layer_colours(source, plan.num_base_layers)
        title = svg.tooltip(f"target layer {at}, from base layer {source}") if in_target else ""
        yield svg.element(
            "rect", title, x=x, y=top, width=layout.cell_width, height=height, rx=min(2.0, height / 4), fill=fill,
            data_target=at if in_target else None, data_source=source if in_target else None,
        )  # fmt: skip
        if source in labelled:
            numbers.append(_number(layout, x, at, source, size, style=f"fill:{ink}"))
    yield from numbers


def _number(layout: _Layout, x: float, level: int, layer: int, size: float, **attributes: object) -> str:
    y = layout.edge(level + 0.5) + size * 0.36
    return svg.text(x + layout.cell_width / 2, y, str(layer), size, text_anchor="middle", **attributes)


def _base(plan: LayerPlan, layout: _Layout) -> Iterator[str]:
    n = plan.num_base_layers
    yield from _cells(layout, plan, layout.base_x, Slice(0, n, 0), 0)
    yield from _heading(layout, layout.base_x, n, "base", _counted(n, "layer"))
    counts = [plan.sources.count(layer) for layer in range(n)]
    last_label = float("inf")
    for count, group in groupby(range(n), key=counts.__getitem__):
        layers = list(group)
        if count == 1:
            continue
        low, high = layout.edge(layers[0]) - 1, layout.edge(layers[-1] + 1) + 1
        x = layout.base_x - 5
        yield svg.element("path", d=f"M{x:.1f} {low:.1f}H{x - 3:.1f}V{high:.1f}H{x:.1f}", class_="bracket")
        middle = (low + high) / 2 + 3
        if low - high >= 90 and count == 2:
            y = middle - 3
            name = f"{format_runs(layers)} stand twice"
            yield svg.text(x - 8, y, name, 9.5, text_anchor="middle", transform=f"rotate(-90 {x - 8:.1f} {y:.1f})")
            last_label = high
        elif last_label - middle >= 10:
            yield svg.text(x - 6, middle, f"\u00d7{count}", 9, text_anchor="end")
            last_label = middle


def _bands(plan: LayerPlan, layout: _Layout) -> Iterator[str]:
    """A band from each kept run across to the target that it becomes part of."""
    for x, part in zip(layout.copies_x, plan.slices, strict=True):
        top = layout.edge(part.target_start + part.num_layers) + layout.gap / 2
        height = part.num_layers * layout.cell_height - layout.gap
        left = x + layout.cell_width
        yield svg.element("rect", x=left, y=top, width=layout.target_x - left, height=height, class_="band")


def _copy(plan: LayerPlan, layout: _Layout, i: int, part: Slice) -> Iterator[str]:
    n, x, bottom = plan.num_base_layers, layout.copies_x[i], part.target_start - part.start
    if not layout.folded:
        for start, stop in ((0, part.start), (part.stop, n)):
            if stop > start:
                yield from _ghosts(layout, x, bottom, start, stop)
    yield from _cells(layout, plan, x, part, part.target_start)
    if layout.folded:
        if i == 0:
            middle = (x + layout.copies_x[1]) / 2
            yield from _heading(layout, middle, plan.num_target_layers, f"{len(plan.slices)} slices", "in turn")
        return
    top = bottom + n
    if is_upscale(plan):
        name = ("lower copy", "upper copy")[i]
        yield from _heading(layout, x, top, name, f"{('first', 'last')[i]} {part.num_layers} of {n}")
    else:
        yield from _heading(layout, x, top, f"copy {i + 1}", format_runs(range(part.start, part.stop)))


def _ghosts(layout: _Layout, x: float, bottom: int, start: int, stop: int) -> Iterator[str]:
    """Dropped base layers ``[start, stop)`` as outlines."""
    inset = layout.gap / 2 + 0.35
    height = layout.cell_height - 2 * inset
    boxes = [
        f"M{x + 0.35:.1f} {layout.edge(bottom + layer + 1) + inset:.1f}"
        f"h{layout.cell_width - 0.7:.1f}v{height:.1f}h{0.7 - layout.cell_width:.1f}z"
        for layer in range(start, stop)
    ]
    if layout.is_fine:  # too fine for one box a layer: one around all of them
        tall = (stop - start) * layout.cell_height - 2 * inset
        boxes = [
            f"M{x + 0.35:.1f} {layout.edge(bottom + stop) + inset:.1f}"
            f"h{layout.cell_width - 0.7:.1f}v{tall:.1f}h{0.7 - layout.cell_width:.1f}z"
        ]
    yield svg.element("path", d="".join(boxes), class_="ghost")
    for layer in () if layout.is_fine else range(start, stop):
        yield _number(layout, x, bottom + layer, layer, min(8.0, layout.cell_height * 0.74), class_="faint")


def _target(plan: LayerPlan, layout: _Layout) -> Iterator[str]:
    for part in plan.slices:
        yield from _cells(layout, plan, layout.target_x, part, part.target_start, in_target=True)
    s = plan.num_target_layers
    yield from _heading(layout, layout.target_x, s, "target", _counted(s, "layer"))


def _seams(plan: LayerPlan, layout: _Layout) -> Iterator[str]:
    """A line at each seam, and its name where there is room; what has no room is counted."""
    right = layout.target_x + layout.cell_width
    last_label, num_unnamed = float("inf"), 0
    for seam, x in zip(plan.seams, layout.copies_x, strict=False):
        y = layout.edge(seam.target_layer)
        yield svg.element("path", d=f"M{x - 6:.1f} {y:.1f}H{right + 8:.1f}", class_="seam")
        if last_label - y < 26:
            num_unnamed += 1
            continue
        yield svg.text(right + 12, y - 1, f"seam {seam.below}|{seam.above}", 10.5, class_="seam-name")
        yield svg.text(right + 12, y + 10, f"layer distance {seam.layer_distance}", 9.5)
        last_label = y
    if num_unnamed:
        y = layout.edge(plan.num_target_layers) - 17
        yield svg.text(right + 12, y, f"+ {_counted(num_unnamed, 'more seam')}", 9.5)


def _legend(plan: LayerPlan, layout: _Layout) -> Iterator[str]:
    """The colour scale, and the sign of a dropped layer where one is drawn."""
    n, y = plan.num_base_layers, layout.bottom + 22
    num_swatches = min(n, 32)
    step = 112 / num_swatches
    yield svg.text(_LEFT, y + 8, "base layer", 9.5)
    yield svg.text(_LEFT + 62, y + 8, "0", 9.5, text_anchor="end")
    for i in range(num_swatches):
        fill, _ = svg.layer_colours(round(i * (n - 1) / max(num_swatches - 1, 1)), n)
        yield svg.element("rect", x=_LEFT + 67 + i * step, y=y, width=step + 0.2, height=10, fill=fill)
    yield svg.text(_LEFT + 67 + 112 + 5, y + 8, str(n - 1), 9.5)
    if not layout.folded and any(part.num_layers < n for part in plan.slices):
        x = _LEFT + 67 + 112 + 36
        yield svg.element("path", d=f"M{x} {y + 0.5}h16v9h-16z", class_="ghost")
        yield svg.text(x + 22, y + 8, "dropped", 9.5)
