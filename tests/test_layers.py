"""LayerPlan: the arithmetic of depth up-scaling, and that a plan survives every way it is written down."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.drawing import sketch
from depthup.errors import PlanError
from depthup.layers import LayerPlan, Seam, Slice

DEPTHS = range(1, 61)
PLANS = st.integers(1, 40).flatmap(
    lambda n: st.lists(st.integers(0, n - 1), min_size=1, max_size=60).map(lambda s: LayerPlan(n, tuple(s)))
)


def every_upscale() -> list[tuple[int, int, LayerPlan]]:
    return [(n, m, LayerPlan.upscale(n, m)) for n in DEPTHS for m in range(n) if m < n / 2]


@pytest.mark.parametrize("n", DEPTHS)
def test_upscaling_gives_the_depth_seam_and_duplicates_of_the_paper(n: int) -> None:
    for m in [m for m in range(n) if 2 * m < n]:
        plan = LayerPlan.upscale(n, m)
        s = 2 * (n - m)
        assert plan.sources == (*range(n - m), *range(m, n))
        assert plan.num_target_layers == s > n
        assert plan.duplicated == tuple(range(m, n - m)) and len(plan.duplicated) == n - 2 * m
        assert plan.unused == ()
        assert plan.seams == (Seam(target_layer=n - m, below=n - m - 1, above=m),)
        assert plan.seams[0].layer_distance == s - n - 1
        assert plan.slices == (Slice(0, n - m, 0), Slice(m, n, n - m))


def test_solar_is_32_to_48_with_seam_23_8_of_distance_15() -> None:
    plan = LayerPlan.upscale(32, 8)
    (seam,) = plan.seams
    assert (plan.num_target_layers, plan.text) == (48, "0-23,8-31")
    assert (seam.target_layer, seam.below, seam.above, seam.layer_distance) == (24, 23, 8, 15)
    assert len(plan.duplicated) == 16


@pytest.mark.parametrize("n", [*DEPTHS, 80])
def test_depth_that_would_not_grow_is_refused(n: int) -> None:
    for m in (-1, *range((n + 1) // 2, n + 2)):
        with pytest.raises(PlanError) as caught:
            LayerPlan.upscale(n, m)
        message = str(caught.value)
        assert str(m) in message and str(n) in message
        assert f"0 to {max(m for m in range(n) if m < n / 2)}" in message and "next:" in message


def test_a_base_without_layers_is_refused() -> None:
    for make in (lambda: LayerPlan.upscale(0, 0), lambda: LayerPlan(0, (0,)), lambda: LayerPlan(4, ())):
        with pytest.raises(PlanError):
            make()


@pytest.mark.parametrize("n", DEPTHS)
def test_to_depth_reaches_exactly_the_depths_of_upscaling(n: int) -> None:
    reachable = {plan.num_target_layers: plan for depth, _, plan in every_upscale() if depth == n}
    for s in range(-2, 2 * n + 5):
        if s in reachable:
            assert LayerPlan.to_depth(n, s) == reachable[s]
        else:
            with pytest.raises(PlanError) as caught:
                LayerPlan.to_depth(n, s)
            assert f"from {min(reachable)} to {max(reachable)}" in str(caught.value)
            assert str(s) in caught.value.problem and "--layers" in str(caught.value)


@given(PLANS)
@settings(max_examples=200, deadline=None)
def test_text_and_json_read_back_to_an_equal_plan(plan: LayerPlan) -> None:
    assert LayerPlan.parse(plan.text, plan.num_base_layers) == plan
    assert LayerPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(PLANS)
@settings(max_examples=200, deadline=None)
def test_slices_seams_and_counts_all_say_the_same(plan: LayerPlan) -> None:
    assert [layer for part in plan.slices for layer in range(part.start, part.stop)] == list(plan.sources)
    jumps = [i for i in range(1, len(plan.sources)) if plan.sources[i] != plan.sources[i - 1] + 1]
    assert [seam.target_layer for seam in plan.seams] == jumps
    for seam in plan.seams:
        assert (seam.below, seam.above) == plan.sources[seam.target_layer - 1 : seam.target_layer + 1]
    by_source = {source: plan.targets_of(source) for source in range(plan.num_base_layers)}
    assert sorted(target for targets in by_source.values() for target in targets) == list(range(len(plan.sources)))
    assert plan.duplicated == tuple(source for source, targets in by_source.items() if len(targets) > 1)
    assert plan.unused == tuple(source for source, targets in by_source.items() if not targets)
    assert plan.reindex(range(plan.num_base_layers)) == list(plan.sources)
    assert plan.count([2**layer for layer in range(plan.num_base_layers)], 5) == sum(2**s for s in plan.sources) + 5


@given(PLANS, st.integers(8, 120))
@settings(max_examples=50, deadline=None)
def test_the_drawing_has_a_line_for_each_slice_and_seam_and_fits(plan: LayerPlan, width: int) -> None:
    lines = plan.render(width).splitlines()
    assert lines[0] == f"{plan.num_base_layers} -> {plan.num_target_layers} layers"
    assert sum(line.startswith("target") for line in lines) == len(plan.slices)
    assert sum(line.startswith("seam") for line in lines) == len(plan.seams)
    assert all(line.count("━") <= min(width, plan.num_base_layers) for line in lines)


def test_the_sketch_has_a_bar_for_each_layer_as_high_as_its_base_layer() -> None:
    assert sketch(LayerPlan.upscale(8, 2)) == "▁▂▃▄▅▆▃▄▅▆▇█"
    assert sketch(LayerPlan.parse("0-3,3:identity,4-7", 8)) == "▁▂▃▄o▅▆▇█"
    assert sketch(LayerPlan.upscale(80, 0), width=16) == "▁▂▃▄▅▆▇█▁▂▃▄▅▆▇█"


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("0-3", (0, 1, 2, 3)),
        (" 0 - 1 , 1-2", (0, 1, 1, 2)),
        ("3,2,1", (3, 2, 1)),
        ("2-2", (2,)),
        ("0-1,2-3", (0, 1, 2, 3)),
    ],
)
def test_the_grammar_reads(text: str, sources: tuple[int, ...]) -> None:
    assert LayerPlan.parse(text, 4).sources == sources


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"), ("0-3,", "''"), ("3-1", "'3-1'"), ("-1", "'-1'"), ("a", "'a'"), ("0:3", "'0:3'"),
        ("0-1-2", "'0-1-2'"),
        ("1.5", "'1.5'"), ("٣", "'٣'"), ("0-4", "base layer 4"), ("999999999", "base layer 999999999"),
        ("0-999999999", "base layer 999999999"), ("9" * 5000, "no layer"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused_and_named(text: str, named: str) -> None:
    with pytest.raises(PlanError) as caught:
        LayerPlan.parse(text, 4)
    assert named in caught.value.problem and caught.value.allowed


@given(st.text(alphabet="0123456789-, \tax", max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    try:
        plan = LayerPlan.parse(text, 12)
    except PlanError:
        return
    assert LayerPlan.parse(plan.text, 12) == plan


@pytest.mark.parametrize("source", [-1, 4, 99])
def test_a_layer_that_is_not_there_is_named_with_the_depth(source: int) -> None:
    with pytest.raises(PlanError, match=rf"base layer {source}.*4 layers[\s\S]*0 to 3"):
        LayerPlan(4, (0, source))


@pytest.mark.parametrize(
    "value",
    [None, [], "0-3", {}, {"layers": "0-3"}, {"num_base_layers": "4", "layers": "0-3"},
     {"num_base_layers": 4, "layers": [0, 1]}, {"num_base_layers": 4, "layers": "0-3", "extra": 1}],
)  # fmt: skip
def test_other_json_is_refused(value: object) -> None:
    with pytest.raises(PlanError, match="no layer plan"):
        LayerPlan.from_json(value)


def test_a_list_of_another_length_is_not_reindexed() -> None:
    with pytest.raises(PlanError, match="3 values for 4 base layers"):
        LayerPlan.upscale(4, 1).reindex("abc")
