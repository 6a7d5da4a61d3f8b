"""Presets: each gives what its source published."""

from __future__ import annotations

import pytest

from depthup.errors import PlanError
from depthup.layers import LayerPlan
from depthup.presets import PRESETS, preset_plan

# name, base depth, target depth, plan: as published.
PUBLISHED = [
    ("solar", 32, 48, "0-23,8-31"),
    ("naive", 32, 64, "0-31,0-31"),
    ("granite-34b", 52, 88, "0-43,8-51"),
    ("yi-9b", 32, 48, "0-27,12-31"),
    ("bielik-11b", 32, 50, "0-24,7-31"),
    ("llama-3-120b", 80, 140, "0-19,10-29,20-39,30-49,40-59,50-69,60-79"),
    ("rys-xl", 80, 87, "0-51,45-79"),
    ("g-stack", 6, 24, "0-5,0-5,0-5,0-5"),
    ("idus", 32, 48, "0-15,8-23,16-31"),
]


@pytest.mark.parametrize(("name", "base", "target", "text"), PUBLISHED)
def test_a_preset_is_the_published_stack(name: str, base: int, target: int, text: str) -> None:
    plan = preset_plan(name, base)
    assert (plan.num_base_layers, plan.num_target_layers, plan.text) == (base, target, text)


def test_every_preset_is_proved_and_names_its_source() -> None:
    assert {name for name, *_ in PUBLISHED} == set(PRESETS)
    assert all(preset.summary and preset.source for preset in PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_every_depth_gives_a_plan_of_all_layers_or_a_plan_error(name: str) -> None:
    for n in range(1, 90):
        try:
            plan = preset_plan(name, n)
        except PlanError as error:
            assert str(n) in error.problem and error.next_step
        else:
            assert plan.num_target_layers > n or n < 4
            assert plan.unused == ()


def test_solar_is_a_quarter_at_every_depth() -> None:
    assert all(preset_plan("solar", n) == LayerPlan.upscale(n, n // 4) for n in range(1, 90))


def test_a_misspelt_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(PlanError, match=r"no preset is called 'solr'.*did you mean 'solar'") as caught:
        preset_plan("solr", 32)
    assert all(name in str(caught.value) for name in PRESETS)


def test_a_preset_for_another_depth_says_so() -> None:
    with pytest.raises(PlanError, match=r"base of 52 layers, and this base has 32[\s\S]*--remove"):
        preset_plan("granite-34b", 32)
