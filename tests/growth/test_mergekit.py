"""Plans from and to mergekit's YAML; where ``DEPTHUP_MERGEKIT`` names its executable, its output is the oracle."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pico
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.checkpoint.names import Stack
from depthup.checkpoint.reader import Tensor
from depthup.cli import main
from depthup.errors import CheckpointError, PlanError
from depthup.growth.mergekit import TensorNames, tensor_names, to_mergekit
from depthup.growth.mergekit_import import from_mergekit, read_mergekit
from depthup.growth.surgery import upscale
from depthup.layers import INITS, LayerPlan
from depthup.presets import preset_plan

N = pico.NUM_LAYERS
LLAMA = tensor_names(N)
SOLAR = """
slices:
- sources:
  - model: mistralai/Mistral-7B-v0.1
    layer_range: [0, 24]
- sources:
  - model: mistralai/Mistral-7B-v0.1
    layer_range: [8, 32]
merge_method: passthrough
"""
# LLaMA Pro's new layer and a weakened one, as users of mergekit write them.
ZEROED = """
merge_method: passthrough
dtype: bfloat16
slices:
  - sources:
    - {model: base, layer_range: [0, 4]}
  - sources:
    - model: base
      layer_range: [3, 4]
      parameters:
        scale:
          - {filter: o_proj, value: 0.0}
          - {filter: down_proj, value: 0.0}
          - value: 1.0
  - sources:
    - model: base
      layer_range: [4, 6]
      parameters: {scale: [{filter: o_proj, value: 0.5}, {filter: down_proj, value: 0.5}]}
"""


def plan_of(text: str, names: TensorNames = LLAMA) -> LayerPlan:
    return from_mergekit(yaml.safe_load(text), names).plan


def stack(*slices: str, method: str = "passthrough", more: str = "") -> str:
    return f"merge_method: {method}\n{more}\nslices:\n" + "".join(f"- sources: [{part}]\n" for part in slices)


def test_solar_is_written_as_people_write_it() -> None:
    plan = preset_plan("solar", 32)
    text = to_mergekit(plan, "mistralai/Mistral-7B-v0.1", tensor_names(32))
    assert yaml.safe_load(text) == yaml.safe_load(SOLAR) and text.strip() == SOLAR.strip()
    assert plan_of(SOLAR, tensor_names(32)) == plan


def test_zeroed_and_weakened_layers_are_identity_and_attenuated() -> None:
    imported = from_mergekit(yaml.safe_load(ZEROED), LLAMA)
    assert imported.plan.text == "0-3,3:identity,4-5:attenuated(0.5)"
    assert imported.notes == ("dtype is not followed: each tensor keeps the type that it has on disk",)


@given(
    st.lists(
        st.tuples(st.integers(0, N - 1), st.sampled_from(("", ":identity", ":attenuated(0.25)", ":attenuated(0.7)"))),
        min_size=1, max_size=16,
    ),
    st.sampled_from(["llama", "gpt2", "mixtral", "starcoder2"]),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_what_is_written_reads_back_to_an_equal_plan(entries: list[tuple[int, str]], family: str) -> None:
    plan = LayerPlan.parse(",".join(f"{source}{init}" for source, init in entries), N)
    names = NAMES[family]
    assert plan_of(to_mergekit(plan, "a: 'strange' name", names), names) == plan


def names_like(prefix: str, suffixes: tuple[str, ...], outside: tuple[str, ...], model_type: str) -> TensorNames:
    layer = {suffix: Tensor(suffix, "F32", (), "", 0, 0) for suffix in suffixes}
    return TensorNames(Stack(prefix, N, (), ()), layer, outside, {"model_type": model_type})


NAMES = {
    "llama": LLAMA,
    "gpt2": names_like(
        "transformer.h",
        ("ln_1.weight", "attn.c_attn.weight", "attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_fc.weight",
         "mlp.c_proj.weight"), ("transformer.wte.weight",), "gpt2",
    ),
    "mixtral": names_like(
        "model.layers",
        ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "block_sparse_moe.gate.weight",
         *(f"block_sparse_moe.experts.{i}.w{j}.weight" for i in range(12) for j in (1, 2, 3))),
        ("lm_head.weight",), "mixtral",
    ),
    "starcoder2": names_like(
        "model.layers",
        ("self_attn.o_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "mlp.c_proj.bias"), ("o_proj_norm.weight",),
        "starcoder2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "filters"),
    [("llama", ["o_proj", "down_proj"]), ("gpt2", ["c_proj"]), ("mixtral", ["o_proj", "w2", "experts.down_proj"]),
     ("starcoder2", ["self_attn.o_proj", "c_proj"])],
)  # fmt: skip
def test_filters_are_parts_of_the_residual_outputs_and_of_no_other_name(family: str, filters: list[str]) -> None:
    text = to_mergekit(LayerPlan.parse("0:identity", N), "base", NAMES[family])
    (part,) = yaml.safe_load(text)["slices"]
    conditions = part["sources"][0]["parameters"]["scale"]
    assert conditions[-1] == {"value": 1.0} and all(condition["value"] == 0 for condition in conditions[:-1])
    assert sorted(condition["filter"] for condition in conditions[:-1]) == sorted(filters)


@pytest.mark.parametrize("kind", sorted(INITS.keys() - {"copy", "identity", "attenuated"}))
def test_a_start_that_mergekit_cannot_say_is_refused(kind: str) -> None:
    with pytest.raises(PlanError, match=rf"target layer 1 starts as '3:{kind}', which mergekit cannot say"):
        to_mergekit(LayerPlan.parse(f"0,3:{kind}", N), "base", LLAMA)


def test_attenuated_without_a_number_is_written_as_the_factor_of_its_copies() -> None:
    text = to_mergekit(LayerPlan.parse("0-6,6:attenuated,6:attenuated,6", N), "base", LLAMA)
    assert yaml.safe_load(text)["slices"][1]["sources"][0]["parameters"]["scale"][0]["value"] == 0.5


A, A2 = "{model: a, layer_range: [0, 2]}", "{model: a/, layer_range: [3, 5]}"
MORE = [
    # the older format
    ("layer_slices: [{model: a, start: 0, end: 4}, {model: a, start: 2, end: 7}]\nlm_head_source: a", "0-3,2-6"),
    # one module by name
    ("merge_method: passthrough\nmodules: {default: {slices: [{sources: [" + A + "]}]}}", "0-1"),
    # a gradient over the slice, a setting for all slices, a filter by layer, a number as text
    (stack("{model: a, layer_range: [0, 3], parameters: {scale: [{filter: _proj, value: 1}, {value: 1}]}}"), "0-2"),
    (stack("{model: a, layer_range: [0, 3], parameters: {scale: [{filter: o_proj, value: [1, 0.5]},"
           " {filter: down_proj, value: [1.0, 0.5]}]}}"), "0,1:attenuated(0.75),2:attenuated(0.5)"),
    (stack(A, A2, more="parameters: {scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: 0}]}"),
     "0-1:identity,3-4:identity"),
    (stack(A, more="parameters: {scale: [{filter: layers.1.self_attn.o_proj, value: '5e-1'},"
           " {filter: layers.1.mlp.down_proj, value: 0.5}]}"), "0,1:attenuated(0.5)"),
    # two layers of one model into one
    (stack(f"{A}, {A2}", A, method="linear"), "0:average(3,0.5),1:average(4,0.5),0-1"),
    (stack("{model: a, layer_range: [0, 1], parameters: {weight: 3}},"
           " {model: a, layer_range: [2, 3], parameters: {weight: 1}}", method="linear"), "0:average(2,0.25)"),
    (stack(f"{A}, {A2}", method="slerp", more="base_model: a\nparameters: {t: 0.25}"),
     "0:slerp(3,0.25),1:slerp(4,0.25)"),
    (stack(f"{A}, {A2}", method="slerp", more="base_model: a/\nparameters: {t: [0, 0.25]}"), "3,4:slerp(1,0.25)"),
    (stack(f"{A}, {A}", method="slerp", more="base_model: a\nparameters: {t: 0.5}"), "0:slerp(0,0.5),1:slerp(1,0.5)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "plan"), MORE)
def test_other_files_that_one_plan_can_say(text: str, plan: str) -> None:
    assert plan_of(text).text == plan


REFUSED = [
    ("[]", "is no mapping"), ("{}", "merge_method 'None'"), ("merge_method: passthrough", "no list of slices"),
    (stack(A, method="ties"), "merge_method 'ties' is no stack"), (stack(A, method="[1]"), "merge_method '"),
    (stack(A, "{model: b, layer_range: [0, 1]}"), "layers of 2 models: a, b"),
    (stack(A, more="base_model: c"), "layers of 2 models"), (stack(A, more="models: [{model: a}]"), "know 'models'"),
    (stack(A, more="merge_metod: x"), r"know 'merge_metod' \(did you mean 'merge_method'\?\)"),
    (stack("{model: a+b, layer_range: [0, 1]}"), "a model with an adapter"),
    (stack("{model: a, layer_range: [0, 8]}"), r"layer_range \[0, 8\] of a base of 7"),
    (stack("{model: a, layer_range: [3, 3]}"), "behind the last layer"), (stack("{model: a}"), "a source is"),
    (stack("{model: a, layer_range: [0, 1.5]}"), "a source is"), (stack(f"{A}, {A2}"), "has 2 sources"),
    (stack("{model: a, layer_range: [0, 1], parameters: {scale: 0.5}}"), "scaled in a way .* input_layernorm"),
    (stack("{model: a, layer_range: [0, 1], parameters: {scale: {filter: down_proj, value: 0.5}}}"), "one factor for"),
    (stack("{model: a, layer_range: [0, 1], parameters: {scale: high}}"), "'high' is no number"),
    (stack("{model: a, layer_range: [0, 1], parameters: {scal: 1}}"), "did you mean 'scale'"),
    (stack(A, more="parameters: {scale: [{filter: lm_head, value: 0.5}]}"), "lm_head.weight is scaled"),
    (stack(f"{A}, {A2}, {A}", method="linear"), "mixes 3 layers"),
    (stack(A + ", {model: a, layer_range: [0, 1]}", method="linear"), r"have \[1, 2\] layers"),
    (stack(f"{A}, {A2}", method="linear", more="parameters: {weight: [{filter: mlp, value: 2}]}"), "within one layer"),
    (stack(f"{A}, {A2}", method="linear", more="parameters: {normalize: false}"), "are no shares"),
    (stack(f"{A}, {A}", method="slerp", more="base_model: a\nparameters: {t: 0.25}"), "does not tell which"),
    ("layer_slices: [{model: a, start: 0, end: 4, scale: 0.5}]", "one factor for"),
    ("layer_slices: [{model: a, start: 0, end: 4}]\nlm_head_source: b\nembedding_source: c", "come from two models"),
    ("merge_method: passthrough\nmodules: {a: {slices: []}, b: {slices: []}}", "no list of slices"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_no_plan_of_one_model_can_say_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan_of(text)


YAML = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(["a", "passthrough", "linear"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["slices", "sources", "model", "layer_range", "parameters", "scale", "value", "filter", "t",
                         "merge_method", "weight", "modules", "layer_slices", "start", "end"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(YAML, st.sampled_from(["passthrough", "linear", "slerp"]))
@settings(max_examples=150, deadline=None)
def test_any_file_is_a_plan_or_a_plan_error(value: object, method: str) -> None:
    source = {"model": "a", "layer_range": [0, 2], "parameters": value}
    whole = {"merge_method": method, "slices": [{"sources": [source], "parameters": value}]}
    for case in (value, {"merge_method": method, "slices": value}, whole):
        try:
            from_mergekit(case, LLAMA)
        except PlanError:
            continue


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for text in ("a: [", "\x00", "&a [*a", "[" * 2000):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(PlanError):
            read_mergekit(tmp_path / "x.yaml", LLAMA)
    with pytest.raises(PlanError, match="No such file"):
        read_mergekit(tmp_path / "absent.yaml", LLAMA)


def test_the_command_line_writes_and_reads_it(base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama, file = str(base()), tmp_path / "plan.yaml"
    assert main(["layers", llama, "--preset", "llama-pro(7)", "--to-mergekit", "--model", "owner/name"]) == 0
    file.write_text(capsys.readouterr().out + "dtype: bfloat16\n")
    assert "model: owner/name" in file.read_text()
    assert main(["layers", llama, "--mergekit", str(file), "--json"]) == 0
    said = capsys.readouterr()
    assert "0,0:identity,1,1:identity" in said.out and "dtype is not followed" in said.err
    assert main(["upscale", llama, str(tmp_path / "out"), "--mergekit", str(file)]) == 0
    upscale(llama, tmp_path / "same", preset_plan("llama-pro(7)", N))
    assert pico.raw(tmp_path / "out") == pico.raw(tmp_path / "same")
    assert main(["layers", "--base-layers", "32", "--preset", "solar", "--to-mergekit"]) == 0
    assert "model: BASE" in capsys.readouterr().out
    assert main(["layers", "--base-layers", "32", "--preset", "lesa", "--to-mergekit"]) == 2
    assert "mergekit cannot say" in capsys.readouterr().err


def test_without_weights_only_llamas_names_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 7}')
    assert tensor_names(N, tmp_path).layer == LLAMA.layer
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 7}')
    with pytest.raises(CheckpointError, match="no weights, so the names of the tensors of a gpt2 are not known"):
        tensor_names(N, tmp_path)


# -- mergekit itself --------------------------------------------------------------------------------------------------

# Families whose stacks mergekit 0.1.5 writes right, as loaded by transformers.
RIGHT = ["llama", "llama_tied", "mistral", "mixtral", "qwen3_moe", "gpt2", "phi", "phi3", "granite", "starcoder2"]
ORACLES = ["0-4,2-6", "0-4,4:identity,5,5,6", "0-4,4:attenuated(0.5),5-6"]


@pytest.mark.skipif("DEPTHUP_MERGEKIT" not in os.environ, reason="DEPTHUP_MERGEKIT names no mergekit-yaml")
@pytest.mark.parametrize("text", ORACLES)
@pytest.mark.parametrize("family", RIGHT)
def test_mergekit_writes_the_same_from_the_file(base, tmp_path: Path, family: str, text: str) -> None:
    plan = LayerPlan.parse(text, N)
    folder = base(family, tokenizer=True)
    (tmp_path / "plan.yaml").write_text(to_mergekit(plan, str(folder), tensor_names(N, folder)))
    command = [os.environ["DEPTHUP_MERGEKIT"], str(tmp_path / "plan.yaml"), str(tmp_path / "theirs"), "--clone-tensors"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    upscale(folder, tmp_path / "ours", plan)
    theirs, ours = pico.raw(tmp_path / "theirs"), pico.raw(tmp_path / "ours")
    if ":" not in text and family not in ("mixtral", "qwen3_moe"):  # it writes experts under their fused names
        assert theirs == ours
    theirs, ours = (pico.load(tmp_path / name).state_dict() for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)  # its zeros may be -0.0
