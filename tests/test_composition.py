"""Growth on growth, and back: plans follow one another, and what they say is what surgery twice writes."""

from __future__ import annotations

from pathlib import Path

import pico
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depthup.errors import PlanError
from depthup.growth.surgery import upscale
from depthup.layers import INITS, LayerPlan
from depthup.presets import preset_plan

N = pico.NUM_LAYERS


def said(folder: Path) -> dict[str, object]:
    """The config without the numbers that surgery removes where a list says the same for each layer."""
    config = pico.read_json(folder / "config.json")
    return {key: value for key, value in config.items() if key not in ("max_window_layers", "_sliding_window_pattern")}


@st.composite
def chains(draw: st.DrawFn, links: int = 2) -> tuple[LayerPlan, ...]:
    """Plans, each for the depth that the one before it makes."""
    depth, plans = draw(st.integers(1, 12)), []
    for _ in range(links):
        sources = draw(st.lists(st.integers(0, depth - 1), min_size=1, max_size=20))
        kinds = draw(st.lists(st.sampled_from(("", ":identity")), min_size=len(sources), max_size=len(sources)))
        text = ",".join(f"{source}{kind}" for source, kind in zip(sources, kinds, strict=True))
        plans.append(LayerPlan.parse(text, depth))
        depth = len(sources)
    return tuple(plans)


@given(chains())
@settings(max_examples=100, deadline=None)
def test_the_base_of_a_layer_is_the_base_of_its_base(plans: tuple[LayerPlan, LayerPlan]) -> None:
    first, second = plans
    composed = first.then(second)
    assert (composed.num_base_layers, composed.num_target_layers) == (first.num_base_layers, second.num_target_layers)
    values = [f"layer {layer}" for layer in range(first.num_base_layers)]
    assert composed.reindex(values) == second.reindex(first.reindex(values))


@given(chains(3))
@settings(max_examples=100, deadline=None)
def test_the_order_of_bracketing_does_not_matter_and_the_whole_base_changes_nothing(
    plans: tuple[LayerPlan, LayerPlan, LayerPlan],
) -> None:
    first, second, third = plans
    assert first.then(second).then(third) == first.then(second.then(third))
    whole = [LayerPlan(depth, tuple(range(depth))) for depth in (first.num_base_layers, first.num_target_layers)]
    assert whole[0].then(first) == first == first.then(whole[1])


@given(chains(1))
@settings(max_examples=100, deadline=None)
def test_what_is_undone_is_the_base(plans: tuple[LayerPlan]) -> None:
    (plan,) = plans
    copied = {plan.sources[target] for target in range(plan.num_target_layers) if plan.init(target).kind == "copy"}
    if lost := [str(layer) for layer in range(plan.num_base_layers) if layer not in copied]:
        with pytest.raises(PlanError, match=f"no plain copy of base layer {', '.join(lost)}, so"):
            plan.undo()
        return
    assert plan.then(plan.undo()) == LayerPlan(plan.num_base_layers, tuple(range(plan.num_base_layers)))


@given(st.integers(1, 30), st.data())
@settings(max_examples=50, deadline=None)
def test_dropping_leaves_the_others_in_order(n: int, data: st.DataObject) -> None:
    dropped = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    assume(len(dropped) < n)
    plan = LayerPlan.drop(n, dropped)
    assert plan.unused == tuple(sorted(dropped)) and plan.sources == tuple(sorted(set(range(n)) - dropped))
    with pytest.raises(PlanError, match=f"no plain copy of base layer {min(dropped)}"):
        plan.undo()


def test_a_plan_for_another_depth_does_not_follow() -> None:
    with pytest.raises(PlanError, match=r"a plan for 32 layers cannot follow one that makes 48"):
        LayerPlan.upscale(32, 8).then(LayerPlan.upscale(32, 8))


@pytest.mark.parametrize(
    ("first", "second", "composed"),
    [
        ("0-3,3:identity", "0-4,4", "0-3,3:identity,3:identity"),
        ("0-3,3:attenuated(0.5)", "4:identity", "3:identity"),
        ("0,2,3", "0:average,1", "0:average(2),2"),
        ("0,2,3", "2:slerp(0,0.25)", "3:slerp(0,0.25)"),
        ("0-1,0-3", "2:average(1,0.75)", "0:average(1,0.75)"),
        ("3-3", "0:attenuated(0.5)", "3:attenuated(0.5)"),
        ("1:norm-matched(1.5),2:learned", "1,0,0:identity", "2:learned,1:norm-matched(1.5),1:identity"),
    ],
)
def test_inits_are_said_of_the_base(first: str, second: str, composed: str) -> None:
    one = LayerPlan.parse(first, 4)
    assert one.then(LayerPlan.parse(second, one.num_target_layers)).text == composed


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("0:average,1", "0:average(1)"), ("0:attenuated(0.5)", "0:attenuated(0.5)"), ("0:average", "0:identity"),
        ("0:attenuated,0", "0,1"), ("0-3", "0:attenuated,0"), ("0:random", "0"), ("0-3", "0:random"),
        ("0:norm-matched", "0"), ("0,1:identity", "0:average(1)"), ("0-3", "0:learned"), ("0:transport", "0:identity"),
    ],
)  # fmt: skip
def test_inits_that_are_no_one_plan_are_refused(first: str, second: str) -> None:
    one = LayerPlan.parse(first, 4)
    with pytest.raises(PlanError, match=r"is no one plan[\s\S]*run surgery twice"):
        one.then(LayerPlan.parse(second, one.num_target_layers))


# Kinds that may stand in plans which follow one another: all of these must give the same bytes in one step.
PAIRS = [
    ("0-4,2-6", "0-7,2-9"),
    ("0-4,2-6", "0-3,6-9"),
    ("0-6,6:identity", "0-7,7,0"),
    ("0-6,3", "0-7,7:identity,7"),
    ("0-6,5:average(4,0.25)", "7,0-7,2:average(4)"),
    ("0-6,5:slerp", "7,0-7,2:slerp(4,0.25)"),
    ("0-6,3:attenuated(0.5)", "0-7,7:identity,1:attenuated(0.7)"),
    ("0-4,4:transport,5:norm-matched(1.3),6", "0-7,5,2-5"),
    ("0-4,4:learned,5,5:learned,6", "0-7,5,5,2-5,7"),
]
# Inits that some families refuse (unlike layers, experts, fused projections), or that take seconds: with Llama alone.
SLOW = ("learned", "transport")


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen2_sliding", "qwen2_moe", "mixtral"])
def test_surgery_twice_writes_what_surgery_once_writes(
    base, tmp_path: Path, family: str, first: str, second: str
) -> None:
    kinds = {init.kind for text in (first, second) for init in LayerPlan.parse(text, 10).inits}
    if family != "llama" and kinds & {*SLOW}:
        pytest.skip("proved with Llama")
    one = LayerPlan.parse(first, N)
    two = LayerPlan.parse(second, one.num_target_layers)
    upscale(base(family), tmp_path / "one", one)
    upscale(tmp_path / "one", tmp_path / "two", two)
    upscale(base(family), tmp_path / "once", one.then(two))
    assert pico.raw(tmp_path / "two") == pico.raw(tmp_path / "once")
    assert said(tmp_path / "two") == said(tmp_path / "once")


@pytest.mark.parametrize("name", ["solar", "naive", "llama-pro(7)", "interleave", "g-stack(3)", "block(2-4,3)"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen2_moe", "qwen2_sliding"])
def test_what_was_grown_and_undone_is_the_base(base, tmp_path: Path, family: str, name: str) -> None:
    plan = preset_plan(name, N)
    upscale(base(family), tmp_path / "grown", plan)
    upscale(tmp_path / "grown", tmp_path / "back", plan.undo())
    assert pico.raw(tmp_path / "back") == pico.raw(base(family))
    assert said(tmp_path / "back") == said(base(family))


@pytest.mark.parametrize("again", INITS)
@pytest.mark.parametrize("kind", INITS)
def test_any_two_inits_are_composed_or_refused(kind: str, again: str) -> None:
    one, two = LayerPlan.parse(f"0-3,1:{kind}", 4), LayerPlan.parse(f"0-4,3:{again}", 5)
    try:
        composed = one.then(two)
    except PlanError as error:
        assert "is no one plan" in error.problem
    else:
        assert composed.sources == (0, 1, 2, 3, 1, 3)
