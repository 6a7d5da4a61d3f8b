"""Presets: each gives what its source published, as a layer map or as counts."""

from __future__ import annotations

import pytest

from depthup.costs import SHAPES, costs_from_config
from depthup.errors import PlanError
from depthup.layers import Init, LayerPlan
from depthup.presets import PRESETS, make_plan, preset_names, preset_plan

UPPER_HALF = "0-15,15:{0},16,16:{0},17,17:{0},18,18:{0},19,19:{0},20,20:{0},21,21:{0},22,22:{0},23,23:{0},24,24:{0},"
UPPER_HALF += "25,25:{0},26,26:{0},27,27:{0},28,28:{0},29,29:{0},30,30:{0},31"
# name, base depth, target depth, plan: as published, or (solar-pro, falcon3, bielik) what they leave open filled
# with plain depth up-scaling.
PUBLISHED = [
    ("solar", 32, 48, "0-23,8-31"),
    ("naive", 32, 64, "0-31,0-31"),
    ("solar-pro", 40, 64, "0-31,8-39"),
    ("granite-34b", 52, 88, "0-43,8-51"),
    ("yi-9b", 32, 48, "0-27,12-31"),
    ("falcon3", 28, 40, "0-19,8-27"),
    ("bielik-11b", 32, 50, "0-24,7-31"),
    ("bielik-4.5b", 36, 60, "0-29,6-35"),
    ("boreas-10.7b", 32, 48, "0-15," + ",".join(f"{16 + i}:slerp({i})" for i in range(16)) + ",16-31"),
    ("llama-pro", 32, 40, ",".join(f"{4 * i}-{4 * i + 3},{4 * i + 3}:identity" for i in range(8))),
    ("lesa", 32, 48, UPPER_HALF.format("learned")),
    ("opt-deus", 32, 48, UPPER_HALF.format("transport")),
    ("avg-deus", 32, 48, UPPER_HALF.format("average")),
    ("g-stack", 6, 24, "0-5,0-5,0-5,0-5"),
    ("g-stack(2)", 12, 24, "0-11,0-11"),
    ("interleave", 4, 8, "0,0-1,1-2,2-3,3"),
    ("idus", 32, 48, "0-15,8-23,16-31"),
    ("block(12-27)", 32, 48, "0-27,12-31"),
    ("block(2-3,3)", 6, 10, "0-3,2-3,2-5"),
    ("rys", 80, 87, "0-51,45-79"),
    ("rys(12,28)", 32, 48, "0-27,12-31"),
    ("llama-3-120b", 80, 140, "0-19,10-29,20-39,30-49,40-59,50-69,60-79"),
    ("solar then solar", 32, 72, "0-23,8-19,12-23,8-31"),
]


@pytest.mark.parametrize(("name", "base", "target", "text"), PUBLISHED)
def test_a_preset_is_the_published_stack(name: str, base: int, target: int, text: str) -> None:
    plan = preset_plan(name, base)
    assert (plan.num_base_layers, plan.num_target_layers, plan.text) == (base, target, text)


def test_every_preset_is_proved_and_names_its_source() -> None:
    assert {name.split("(")[0].split(" ")[0] for name, *_ in PUBLISHED} == set(PRESETS)
    assert all(preset.summary and preset.source for preset in PRESETS.values())
    assert {name: preset.published for name, preset in PRESETS.items() if preset.published} == {
        name: base for name, base, *_ in PUBLISHED if name in PRESETS and name not in ("interleave", "block")
    }


def test_llama_pro_adds_outputs_4_9_to_39_and_keeps_the_rest() -> None:
    plan = preset_plan("llama-pro", 32)
    assert plan.new == (4, 9, 14, 19, 24, 29, 34, 39)
    assert all(plan.init(target) == Init("identity") for target in plan.new)
    assert [source for target, source in enumerate(plan.sources) if target not in plan.new] == list(range(32))


@pytest.mark.parametrize("name", ["lesa", "opt-deus", "avg-deus"])
def test_new_layers_stand_between_each_pair_of_15_to_31(name: str) -> None:
    plan = preset_plan(name, 32)
    between = [(plan.sources[target - 1], plan.sources[target + 1]) for target in plan.new]
    assert between == [(layer, layer + 1) for layer in range(15, 31)] and len(plan.new) == 16
    assert preset_plan(f"{name}(15-31)", 32) == plan


def test_single_layers_of_idus_alternate_between_the_copies() -> None:
    """What the repository calls idus-1, and found at chance: 0, 8, 1, 9, 2, 10 ..."""
    plan = preset_plan("idus(1)", 32)
    assert plan.sources[::2] == tuple(range(24)) and plan.sources[1::2] == tuple(range(8, 32))


# Parameters as the hub or the publication counts them: name, preset, base, target.
_LLAMA_2 = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip
_PHI_3 = {
    "model_type": "llama", "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 17920,
    "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 32128,
}  # fmt: skip
_FALCON_3 = {
    "model_type": "llama", "num_hidden_layers": 28, "hidden_size": 3072, "intermediate_size": 23040,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 131072,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape", "base", "target"),
    [
        ("solar", SHAPES["mistral-7b"], 7_241_732_096, 10_731_524_096),
        ("llama-pro", _LLAMA_2, 6_738_415_616, 8_357_474_304),
        ("solar-pro", _PHI_3, 13_961_472_000, 22_140_000_000),
        ("falcon3", _FALCON_3, 7_455_550_464, 10_305_653_760),
    ],
)
def test_the_target_has_the_published_number_of_parameters(name: str, shape: dict, base: int, target: int) -> None:
    costs = costs_from_config(shape)
    assert sum(costs.layer_parameters) + costs.outside_parameters == pytest.approx(base, rel=1e-3)
    plan = preset_plan(name, costs.num_layers)
    assert plan.count(costs.layer_parameters, costs.outside_parameters) == pytest.approx(target, rel=1e-4)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "" in preset.forms])
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


@pytest.mark.parametrize("new", range(1, 31))
def test_llama_pro_adds_any_number_that_divides_the_depth_and_names_those_that_do(new: int) -> None:
    if 30 % new == 0:
        plan = preset_plan(f"llama-pro({new})", 30)
        assert len(plan.new) == new and plan.num_target_layers == 30 + new and plan.new[-1] == 29 + new
        assert len({upper - lower for lower, upper in zip(plan.new, plan.new[1:], strict=False)}) <= 1
    else:
        with pytest.raises(PlanError, match="1, 2, 3, 5, 6, 10, 15, 30 new layers"):
            preset_plan(f"llama-pro({new})", 30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rys(45)", r"allowed: rys or rys\(I,J\)"), ("rys(45-52)", r"allowed: rys or rys\(I,J\)"),
        ("rys(52,45)", "no layers 52-44"), ("rys(45,81)", "allowed: a rising run of 0 to 79"),
        ("block", r"allowed: block\(FIRST-LAST\) or block\(FIRST-LAST,TIMES\)"), ("block(7,9)", "takes other numbers"),
        ("block(7-80)", "no layers 7-80"), ("g-stack(1)", "allowed: 2 to 64 times"), ("solar(8)", "allowed: solar"),
        ("idus(7)", r"60 of 80 layers[\s\S]*blocks of 1, 2, 3, 4, 5, 6, 10"), ("lesa(3-3)", "nothing between"),
        ("rys then yi-9b", "a base of 32 layers, and this base has 87"), ("rys(", r"no preset is called 'rys\('"),
        ("", "no preset is called ''"), ("solar then", "no preset is called 'solar then'"),
        ("avg-deus then avg-deus", "is no one plan"), ("rys(" + "9" * 41 + ",1)", "no preset"),
    ],
)  # fmt: skip
def test_what_is_no_preset_is_refused_with_what_would_be(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        preset_plan(text, 80)


def test_a_misspelt_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(PlanError, match=r"no preset is called 'solr'.*did you mean 'solar'") as caught:
        preset_plan("solr", 32)
    assert all(name in str(caught.value) for name in (*PRESETS, *preset_names()))


def test_a_preset_for_another_depth_says_so() -> None:
    with pytest.raises(PlanError, match=r"base of 52 layers, and this base has 32[\s\S]*--remove"):
        preset_plan("granite-34b", 32)


def test_layers_to_drop_are_a_plan() -> None:
    assert make_plan(32, drop="20-27").text == "0-19,28-31"
    assert make_plan(8, drop="0,6-7,2") == LayerPlan(8, (1, 3, 4, 5))
    for text, said in (("0-7", "the plan is empty"), ("8", "base layer 8"), ("", "is no layer")):
        with pytest.raises(PlanError, match=said):
            make_plan(8, drop=text)
