"""Configs: everything that speaks of a layer's index follows the plan, and what cannot is refused."""

from __future__ import annotations

import copy

import pytest
from transformers import AutoConfig

from depthup.checkpoint.config import ConfigEdit, grow_config
from depthup.checkpoint.fields import LAYER_LISTS
from depthup.checkpoint.names import Stack
from depthup.errors import CheckpointError, DepthupError, PlanError
from depthup.layers import LayerPlan

N = 8
STACK = Stack("model.layers", N, (), ("num_hidden_layers",))
PLAN = LayerPlan.upscale(N, 2)  # sources 0-5, 2-7: in step with a period of 2 and 4, out of step with 3
ODD = LayerPlan(N, (0, 1, 2, 2, 3, 4, 5, 6, 7))


def grow(plan: LayerPlan = PLAN, lists: dict[str, str] | None = None, **config: object) -> ConfigEdit:
    return grow_config({"num_hidden_layers": N, **config}, STACK, plan, lists)


def test_depth_is_set_and_everything_else_stays() -> None:
    config = {"num_hidden_layers": N, "n_layer": N, "unknown": {"deep": [1, {}]}, "hidden_size": N, "rope": None}
    edit = grow_config(config, Stack("h", N, (), ("num_hidden_layers", "n_layer")), PLAN)
    assert edit.config == {**config, "num_hidden_layers": 12, "n_layer": 12}
    assert edit.changes == ("num_hidden_layers: 8 -> 12", "n_layer: 8 -> 12")


def test_the_argument_is_not_edited() -> None:
    config = {"num_hidden_layers": N, "layer_types": list("abcdefgh"), "max_window_layers": 28, "mlp_only_layers": [1]}
    before = copy.deepcopy(config)
    grown = grow_config(config, STACK, PLAN).config
    assert config == before and grown != before


def test_where_the_base_came_from_is_dropped() -> None:
    assert "_name_or_path" not in grow(_name_or_path="somewhere/private").config


@pytest.mark.parametrize("key", sorted(LAYER_LISTS))
def test_every_per_layer_list_follows_the_plan(key: str) -> None:
    values = [f"kind {i}" for i in range(N)]
    edit = grow(**{key: values})
    assert edit.config[key] == [values[source] for source in PLAN.sources]
    assert f"{key}: list of 8 -> list of 12" in edit.changes


@pytest.mark.parametrize("length", [0, N - 1, N + 4])
def test_a_per_layer_list_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError, match=rf"lists {length} layer_types for 8 layers[\s\S]*depthup check"):
        grow(layer_types=["a"] * length)


def test_lists_of_indices_name_every_copy() -> None:
    assert grow(mlp_only_layers=[0, 3, 7]).config["mlp_only_layers"] == [0, 3, 7, 11]
    assert grow(mlp_only_layers=[]).config["mlp_only_layers"] == []


def test_an_unknown_list_as_long_as_the_stack_must_be_explained() -> None:
    values = list(range(N))
    with pytest.raises(CheckpointError, match=r"list 'scales' of 8 values[\s\S]*--config-list scales=layers"):
        grow(scales=values)
    assert grow(scales=values, lists={"scales": "keep"}).config["scales"] == values
    assert grow(scales=values, lists={"scales": "layers"}).config["scales"] == list(PLAN.sources)


@pytest.mark.parametrize("lists", [{"scales": "layer"}, {"scales": ""}, {"skales": "layers", "scales": "keep"}])
def test_a_misspelt_explanation_is_refused(lists: dict[str, str]) -> None:
    with pytest.raises(DepthupError):
        grow(scales=list(range(N)), lists=lists)


@pytest.mark.parametrize("value", [[1] * (N - 1), [1] * (N + 1)])
def test_other_lists_of_other_lengths_stay(value: list[int]) -> None:
    assert grow(whatever=value).config["whatever"] == value


def test_a_list_that_is_known_to_say_nothing_of_layers_stays_whatever_its_length() -> None:
    assert grow(eos_token_id=list(range(N))).config["eos_token_id"] == list(range(N))


# -- periods and thresholds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("sliding_window_pattern", 2), ("expert_layer_period", 4), ("decoder_sparse_step", 1), ("attn_layer_period", 2),
     ("full_attention_interval", 0), ("sliding_window_pattern", None)],
)  # fmt: skip
def test_a_period_that_the_plan_keeps_stays(key: str, value: int | None) -> None:
    assert grow(**{key: value}).config[key] == value


def test_a_broken_period_is_dropped_only_if_a_list_says_the_same() -> None:
    kinds = list("aabaabaa")
    edit = grow(sliding_window_pattern=3, layer_types=kinds)
    assert "sliding_window_pattern" not in edit.config
    assert edit.config["layer_types"] == [kinds[source] for source in PLAN.sources]
    with pytest.raises(PlanError, match=r"sliding_window_pattern = 3 of all layers.*0-5,2-7[\s\S]*m in \[1\]"):
        grow(sliding_window_pattern=3)  # 8 - 2m is a multiple of 3 for m = 1 alone
    with pytest.raises(PlanError, match="no m keeps it"):
        grow(sliding_window_pattern=5)


@pytest.mark.parametrize("num_dense", [1, 2])
def test_the_first_dense_layers_stay_the_first(num_dense: int) -> None:
    assert grow(first_k_dense_replace=num_dense).config["first_k_dense_replace"] == num_dense


def test_dense_layers_in_the_middle_are_refused_with_the_m_that_would_do() -> None:
    with pytest.raises(PlanError, match=r"first_k_dense_replace = 3[\s\S]*m in \[3\]"):
        grow(first_k_dense_replace=3)


@pytest.mark.parametrize("beyond", [0, 20])
def test_a_threshold_above_every_layer_stays_above_every_layer(beyond: int) -> None:
    assert grow(max_window_layers=N + beyond, use_sliding_window=True).config["max_window_layers"] == 12 + beyond


def test_a_last_expert_layer_that_is_the_last_layer_follows_the_depth() -> None:
    """Ernie 4.5 MoE counts moe_layer_end_index inclusively: n - 1 (or -1) says that no layer behind is dense."""
    assert grow(moe_layer_end_index=-1).config["moe_layer_end_index"] == -1
    assert grow(moe_layer_end_index=N - 1).config["moe_layer_end_index"] == 11


def test_what_depends_on_the_index_in_no_field_is_refused_with_the_reason() -> None:
    with pytest.raises(CheckpointError, match=r"inverse_layer_idx = True: [a-z][\s\S]*cannot be up-scaled"):
        grow(scale_attn_by_inverse_layer_idx=True)
    for harmless in (0, False, None):
        assert "scale_attn_by_inverse_layer_idx" in grow(scale_attn_by_inverse_layer_idx=harmless).config


def test_layers_that_share_keys_and_values_stay_at_the_end() -> None:
    with pytest.raises(PlanError, match=r"last 3 layers use the keys[\s\S]*m in \[3\]"):
        grow(num_kv_shared_layers=3)
    plan = LayerPlan.upscale(N, 3)
    assert grow(plan, num_kv_shared_layers=3).config["num_kv_shared_layers"] == 3


def test_a_family_whose_layers_compute_by_their_index_is_refused() -> None:
    with pytest.raises(CheckpointError):
        grow(model_type="diffllama")


# -- lists that older checkpoints leave out: transformers itself says what they mean ---------------------------------

IMPLIED = {
    "gemma2": {},
    "gemma3_text": {"sliding_window_pattern": 6},
    "gemma3_text, default": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 4},
    "qwen2, off": {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 4},
    "qwen3": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
    "cohere2": {"sliding_window_pattern": 4},
    "exaone4": {"sliding_window_pattern": 4, "sliding_window": 16},
    "smollm3": {"no_rope_layer_interval": 4},
    "qwen3_next": {"full_attention_interval": 4},
    "olmo3": {},
    "gpt_oss": {},
    "qwen3_next, default": {},
}
LEFT_OUT = ("olmo3", "gpt_oss", "qwen3_next, default")


@pytest.mark.parametrize("plan", [PLAN, ODD, LayerPlan.upscale(N, 1)], ids=lambda plan: plan.text)
@pytest.mark.parametrize("case", [case for case in IMPLIED if case not in LEFT_OUT])
def test_a_config_without_layer_types_means_the_same_of_every_copy_or_is_refused(case: str, plan: LayerPlan) -> None:
    fields = IMPLIED[case]
    raw = {"model_type": case.partition(",")[0], "num_hidden_layers": N, **fields}
    before = AutoConfig.for_model(**raw).layer_types
    try:
        grown = grow_config(raw, STACK, plan).config
    except DepthupError:
        return
    assert AutoConfig.for_model(**grown).layer_types == [before[source] for source in plan.sources]


@pytest.mark.parametrize("case", LEFT_OUT)
def test_kinds_of_layers_that_only_the_class_knows_are_the_same_or_refused(case: str) -> None:
    test_a_config_without_layer_types_means_the_same_of_every_copy_or_is_refused(case, ODD)


# -- models of several parts ------------------------------------------------------------------------------------------


def test_a_text_config_is_edited_where_it_stands_and_repeated_depths_follow() -> None:
    vision = {"num_hidden_layers": N, "layer_types": ["v"] * N}
    text = {"num_hidden_layers": N, "layer_types": list("abcdefgh")}
    stack = Stack("model.language_model.layers", N, ("text_config",), ("num_hidden_layers",))
    config = {"num_hidden_layers": N, "text_config": text, "vision_config": vision}
    grown = grow_config(config, stack, PLAN).config
    assert grown["vision_config"] == vision
    kinds = [text["layer_types"][source] for source in PLAN.sources]
    assert grown["text_config"] == {"num_hidden_layers": 12, "layer_types": kinds}
    assert grown["num_hidden_layers"] == 12


@pytest.mark.parametrize(
    "names",
    [{"modules_to_not_convert": ["lm_head", "model.layers.3.mlp.gate"]}, {"ignore": ["model.layers.7.self_attn"]}],
)
def test_quantised_layers_named_by_index_follow_the_plan_or_are_refused(names: dict[str, list[str]]) -> None:
    try:
        grown = grow(quantization_config={"quant_method": "fp8", **names}).config["quantization_config"]
    except DepthupError as error:
        assert "quantization_config" in str(error)
        return
    ((key, values),) = names.items()
    expected = [value for value in values if "layers" not in value]
    for value in (value for value in values if "layers" in value):
        layer = int(value.split(".")[2])
        expected += [value.replace(f".{layer}.", f".{target}.") for target in PLAN.targets_of(layer)]
    assert sorted(grown[key]) == sorted(expected)


def test_quantisation_that_names_no_layer_by_index_stays() -> None:
    quantisation = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "embed_tokens"], "bits": 8}
    assert grow(quantization_config=quantisation).config["quantization_config"] == quantisation
