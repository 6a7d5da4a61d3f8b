"""Plans from text, JSON and numbers: a plan that reads back as itself, or a PlanError; memory for no wrong number."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import mutations
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.errors import PlanError
from depthup.growth.mergekit import tensor_names
from depthup.growth.mergekit_import import from_mergekit, read_mergekit
from depthup.layers import INITS, MAX_LAYERS, Init, LayerPlan
from depthup.presets import PRESETS, make_plan

NUM_CASES = int(os.environ.get("DEPTHUP_FUZZ_EXAMPLES", "0"))


def fuzz(num_cases: int) -> settings:
    return settings(max_examples=NUM_CASES or num_cases, derandomize=not NUM_CASES, database=None, deadline=None)


HUGE = (MAX_LAYERS, MAX_LAYERS + 1, 10**9, 2**63, 10**40, 10**5000, -(10**5000))
NUMBER = st.integers(-3, 60) | st.integers(0, len(HUGE) - 1).map(lambda i: HUGE[i])  # too long to be shown in a report
PART = st.one_of(
    st.from_regex(r"\A *\d{1,3} *(- *\d{1,3})? *(: *[a-z-]{1,14} *(\([-0-9.,e ]{0,20}\))?)?\Z"),
    st.builds("{}:{}".format, st.integers(0, 9), st.sampled_from(sorted(INITS))),
    st.text("0123456789-,:() .e\n\u0663ax", max_size=12),
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def plan_or_refusal(function: Any, *arguments: Any, **options: Any) -> LayerPlan | None:
    try:
        plan = function(*arguments, **options)
    except PlanError as error:
        assert 0 < len(str(error)) < 3000
        return None
    assert 1 <= plan.num_target_layers <= MAX_LAYERS and 1 <= plan.num_base_layers <= MAX_LAYERS
    assert set(plan.sources) <= set(range(plan.num_base_layers))
    return plan


def assert_reads_back(plan: LayerPlan) -> None:
    assert LayerPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.num_target_layers > 500 or plan.render()


@given(text=st.one_of(st.lists(PART, max_size=5).map(",".join), st.text(max_size=30)), num_layers=NUMBER)
@fuzz(200)
def test_any_text_is_a_plan_that_reads_back_or_is_refused(text: str, num_layers: int) -> None:
    if plan := plan_or_refusal(LayerPlan.parse, text, num_layers):
        assert_reads_back(plan)


@given(value=JSON | st.fixed_dictionaries({"num_base_layers": JSON, "layers": PART | JSON}), more=st.booleans())
@fuzz(150)
def test_any_json_is_a_plan_that_reads_back_or_is_refused(value: Any, more: bool) -> None:
    plan = plan_or_refusal(LayerPlan.from_json, {**value, "x": 1} if more and isinstance(value, dict) else value)
    if plan:
        assert not more
        assert_reads_back(plan)


def test_json_nested_without_end_is_no_plan() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert plan_or_refusal(LayerPlan.from_json, value) is None


@given(num_layers=NUMBER, way=st.sampled_from(["remove", "target_layers", "preset"]), number=NUMBER,
       preset=st.sampled_from([*PRESETS, "no-such"]))  # fmt: skip
@fuzz(150)
def test_any_numbers_are_a_plan_that_reads_back_or_are_refused(num_layers, way, number, preset) -> None:
    if plan := plan_or_refusal(make_plan, num_layers, **{way: preset if way == "preset" else number}):
        assert_reads_back(plan)


@given(name=st.sampled_from([*PRESETS, "no-such"]), numbers=st.text("0123456789-, ()", max_size=8),
       more=st.sampled_from(["", " then solar", " then ", " then then", "\x1b[2J"]), num_layers=NUMBER)  # fmt: skip
@fuzz(150)
def test_any_preset_is_a_plan_that_reads_back_or_is_refused(
    name: str, numbers: str, more: str, num_layers: int
) -> None:
    for text in (f"{name}({numbers}){more}", f"{name}{numbers}{more}"):
        if plan := plan_or_refusal(make_plan, num_layers, preset=text):
            assert_reads_back(plan)


SOURCE = {"model": "a", "layer_range": [0, 3]}
MERGEKIT = {"merge_method": "passthrough", "slices": [{"sources": [SOURCE]}, {"sources": [{**SOURCE}]}]}
YAML = {
    "a list that holds itself": "slices: &a [*a]\nmerge_method: passthrough",
    "a condition that holds itself": "merge_method: passthrough\nparameters: {scale: &a [{value: *a}]}\n"
    "slices: [{sources: [{model: a, layer_range: [0, 3]}]}]",
    "a parameter of many conditions": "merge_method: passthrough\nparameters:\n  scale: &a\n"
    + "".join(f"  - value: &b{i} [{{value: {f'*b{i - 1}' if i else 1}}}, {{value: 1}}]\n" for i in range(60))
    + "slices: [{sources: [{model: a, layer_range: [0, 3]}]}]",
    "a billion laughs": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "a billion laughs as slices": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    + "slices: *a11\nmerge_method: passthrough",
    "more layers than memory": "merge_method: passthrough\n"
    "s: &s {sources: [{model: a, layer_range: [0, 9]}]}\nslices: ["
    + ", ".join(["*s"] * 20_000) + "]",
    "nested without end": "[" * 5000,
    "a date that is none": "!!timestamp x",
    "a number of 5000 digits": "slices: " + "9" * 5000,
    "a python object": "!!python/object/apply:os.system [ls]",
    "a binary that is none": "!!binary é",
    "an empty number": "!!int ''",
    "another truth": "!!bool maybe",
    "no text": "\x00\x01",
}  # fmt: skip


@pytest.mark.parametrize("kind", YAML)
def test_a_hostile_file_of_mergekit_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.yaml").write_text(YAML[kind])
    names = tensor_names(9)
    tracemalloc.start()
    assert plan_or_refusal(lambda: read_mergekit(tmp_path / "a.yaml", names).plan) is None
    assert tracemalloc.get_traced_memory()[1] < 64_000_000
    tracemalloc.stop()


def test_any_file_of_mergekit_is_a_plan_or_is_refused() -> None:
    names = tensor_names(9)
    for number in range(NUM_CASES or 300):
        drawn = Random(f"mergekit {number}")
        tree = mutations.to_tree(MERGEKIT)
        for _ in range(drawn.randint(1, 3)):
            tree = mutations.edit_tree(tree, drawn)
        value = plain(tree)
        if plan := plan_or_refusal(lambda value=value: from_mergekit(value, names).plan):
            assert_reads_back(plan)


def plain(tree: Any) -> Any:
    """A tree with objects as dicts, and what is no JSON as text."""
    if isinstance(tree, mutations.Pairs):
        return {key: plain(value) for key, value in tree}
    return [plain(item) for item in tree] if isinstance(tree, list) else tree


@given(kind=st.sampled_from([*sorted(INITS), "x" * 300]), numbers=st.lists(st.floats(), max_size=3).map(tuple))
@fuzz(150)
def test_the_numbers_of_an_init_read_back_as_they_were(kind: str, numbers: tuple[float, ...]) -> None:
    def build() -> LayerPlan:
        return LayerPlan(9, (3, 4), (Init(kind, numbers), Init()))

    if plan := plan_or_refusal(build):
        assert_reads_back(plan)
