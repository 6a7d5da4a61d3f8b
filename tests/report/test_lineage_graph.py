"""The graph of a lineage: every stage once, every edge downwards, nothing on top of anything."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import hypothesis
import pytest
import reports
from hypothesis import strategies

from depthup.report.lineage_graph import lineage_svg
from depthup.report.values import StageCard

Box = tuple[float, float, float, float]


def stage(name: str, inputs: tuple[str, ...] = (), role: str = "model", kind: str = "sft") -> StageCard:
    return StageCard(name, kind, "f" * 12, 1.0, inputs, (), role)


@strategies.composite
def lineages(draw: strategies.DrawFn) -> tuple[StageCard, ...]:
    """Up to 14 stages, each made from up to three before it."""
    stages: list[StageCard] = []
    for i in range(draw(strategies.integers(2, 14))):
        above = strategies.sampled_from([one.name for one in stages] or ["none"])
        inputs = draw(strategies.lists(above, max_size=min(i, 3), unique=True))
        stages.append(stage(f"s{i}", tuple(inputs), draw(strategies.sampled_from(["model", "data"]))))
    return tuple(stages)


def drawn(stages: tuple[StageCard, ...]) -> tuple[ElementTree.Element, dict[str, Box]]:
    root = ElementTree.fromstring(lineage_svg(stages))
    boxes = {}
    for group in root.iter("g"):
        rect = group.find("rect")
        title = group.findtext("title")
        if rect is not None and title:
            x, y, w, h = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
            boxes[title.partition(":")[0]] = (x, y, x + w, y + h)
    return root, boxes


def edges(root: ElementTree.Element) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Where each piece of an edge begins and ends."""
    found = []
    for path in root.iter("path"):
        if path.get("class") == "edge":
            numbers = [float(one) for one in re.findall(r"-?[\d.]+", path.get("d", "").rpartition("M")[2])]
            found.append(((numbers[0], numbers[1]), (numbers[-2], numbers[-1])))
    return found


def check(stages: tuple[StageCard, ...]) -> None:
    root, boxes = drawn(stages)
    shown = {one.name for one in stages if one.role != "measure"}
    assert boxes.keys() == shown
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for left, top, right, bottom in boxes.values():
        assert left >= 0 and top >= 0 and right <= width + 0.6 and bottom <= height + 0.6
    for one, other in itertools.combinations(boxes.values(), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    ends = edges(root)
    assert all(start[1] < end[1] for start, end in ends)  # downwards
    for one in stages:
        if one.name in shown:
            left, top, right, bottom = boxes[one.name]
            into = [end for _, end in ends if left < end[0] < right and abs(end[1] - top) < 0.2]
            assert len(into) == len([source for source in one.inputs if source in shown])
            for source in one.inputs:
                if source in shown:
                    assert boxes[source][3] < top


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(lineages())
def test_any_lineage_can_be_drawn(stages: tuple[StageCard, ...]) -> None:
    check(stages)


@pytest.mark.parametrize("recipe", ["quickstart", "smol", "solar-10.7b"])
def test_recipes_are_drawn(recipe: str) -> None:
    stages = reports.stages_of(recipe)
    check(stages)
    root, _ = drawn(stages)
    description = root.findtext("desc") or ""
    assert root.get("role") == "img" and description in (root.get("aria-label") or "")
    for one in stages:
        assert (f"{one.name} ({one.kind})" in description) == (one.role != "measure")


def test_measurements_are_counted_and_nothing_is_drawn_for_one_stage() -> None:
    stages = (stage("a"), stage("b", ("a",)), stage("x", ("b",), "measure"), stage("y", ("b",), "measure"))
    root, boxes = drawn(stages)
    assert boxes.keys() == {"a", "b"} and "sft, measured 2×" in [text.text for text in root.iter("text")]
    assert lineage_svg((stage("a"), stage("x", ("a",), "measure"))) == "" == lineage_svg(())
    assert "xmlns" in lineage_svg(stages, standalone=True)
    assert "<i" not in lineage_svg((stage("<i>"), stage("b", ("<i>",))))
