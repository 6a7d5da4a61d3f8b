"""Every way a layer may start but as a copy, against torch, mergekit and transformers' own forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
import transformers
from grown import DOWN, DTYPES, NORM, UP, grow, layer, logits, tensors

from depthup.blending import blend
from depthup.checkpoint.names import find_stack
from depthup.checkpoint.reader import open_checkpoint
from depthup.cli import main
from depthup.errors import CheckpointError, DepthupError, PlanError
from depthup.growth import inits
from depthup.growth.norms import measure_norms, run_plan, starting_factor
from depthup.growth.surgery import upscale
from depthup.layers import INITS, Init, LayerPlan

Base = Callable[..., Path]
TEXT = "The assistant answers the question that the user asks. Is there another one, is there not? " * 40


def test_each_kind_has_its_function() -> None:
    assert inits.KINDS.keys() == INITS.keys() - {"copy"}


# -- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama_bias", "gemma2", "gpt_oss", "gpt2"])
def test_logits_of_a_target_with_identity_layers_are_the_bases(
    base: Base, tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    folder = base(family, dtype=dtype)
    for number, plan in enumerate(["0-2,2:identity,3-6,6:identity", "0,0:identity,0:identity,0:identity,1-6"]):
        upscale(folder, tmp_path / str(number), LayerPlan.parse(plan, pico.NUM_LAYERS))
        assert torch.equal(logits(folder), logits(tmp_path / str(number)))


def test_identity_silences_the_norm_behind_a_branch_where_there_is_one(base: Base, tmp_path: Path) -> None:
    grown, source = grow(base("gemma2"), tmp_path / "a", "0-6,6:identity"), tensors(base("gemma2"))
    assert (grown[layer(7, "post_attention_layernorm.weight")] == -1).all()  # Gemma multiplies by 1 + weight
    assert torch.equal(grown[layer(7, DOWN)], source[layer(6, DOWN)])
    grown = grow(base("olmo2"), tmp_path / "b", "0-6,6:identity")
    assert not grown[layer(7, "post_feedforward_layernorm.weight")].any()


QUANTISED = {
    # what stands for the weight, which part of it is silenced
    "gptq": ({"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}, "scales"),
    "awq": ({"qweight": "I32", "qzeros": "I32", "scales": "F16"}, "scales"),
    "compressed-tensors": ({"weight_packed": "I32", "weight_scale": "BF16", "weight_shape": "I64"}, "weight_scale"),
    "int8": ({"weight": "I8", "weight_scale": "F32"}, "weight_scale"),
    "fp8": ({"weight": "F8_E4M3", "weight_scale_inv": "F32"}, "weight"),
}
BYTES = {"I8": 1, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}


def quantise(folder: Path, out: Path, parts: dict[str, str]) -> Path:
    """The checkpoint with each ``down_proj`` in some packed form, its numbers random bytes."""
    out.mkdir()
    (out / "config.json").write_text((folder / "config.json").read_text())
    held = pico.raw(folder)
    for name in [name for name in held if name.endswith(DOWN)]:
        del held[name]
        for part, dtype in parts.items():
            data = bytes(range(1, 1 + 8 * BYTES[dtype]))
            held[name.replace("weight", part)] = pico.Raw(dtype, (8,), data)
    pico.write_tensors(out / "model.safetensors", held)
    return out


@pytest.mark.parametrize("form", QUANTISED)
def test_of_a_quantised_map_what_multiplies_the_rest_is_silenced(base: Base, tmp_path: Path, form: str) -> None:
    parts, silenced = QUANTISED[form]
    folder = quantise(base(), tmp_path / "base", parts)
    upscale(folder, tmp_path / "out", LayerPlan.parse("0-6,6:identity", 7))
    source, made = pico.raw(folder), pico.raw(tmp_path / "out")
    for part in parts:
        data = made[layer(7, f"mlp.down_proj.{part}")].data
        assert (not any(data)) if part == silenced else data == source[layer(6, f"mlp.down_proj.{part}")].data


def test_quantised_weights_are_refused_where_they_would_have_to_be_computed_with(base: Base, tmp_path: Path) -> None:
    packed = quantise(base(), tmp_path / "packed", {"weight": "U8", "weight.absmax": "F32", "weight.quant_map": "F32"})
    gptq = quantise(base(), tmp_path / "gptq", {"qweight": "I32", "scales": "F16"})
    held, name = pico.raw(gptq), layer(3, "mlp.down_proj.qweight")
    held[name] = held[name]._replace(data=bytes(reversed(held[name].data)))  # whole numbers that are equal are copied
    pico.write_tensors(gptq / "model.safetensors", held)
    for folder, init, why in [
        (packed, "identity", "quantised form"),
        (gptq, "average", "cannot be averaged"),
        (gptq, "slerp", "cannot be averaged"),
        (quantise(base(), tmp_path / "fp8", {"weight": "F8_E4M3"}), "attenuated", "cannot be scaled"),
    ]:
        with pytest.raises(CheckpointError, match=why):
            upscale(folder, tmp_path / "out", LayerPlan.parse(f"0-2,2:{init},3-6", 7))
        assert not (tmp_path / "out").exists()


# -- average, slerp ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_average_is_torchs(base: Base, tmp_path: Path, dtype: torch.dtype) -> None:
    source = tensors(base(dtype=dtype))
    grown = grow(base(dtype=dtype), tmp_path / "out", "0-2,2:average,3-4,4:average(1,0.3),5-6")
    for suffix in (UP, NORM, DOWN):
        for target, (one, other, share) in {3: (2, 3, 0.5), 6: (4, 1, 0.3)}.items():
            a, b = (source[layer(i, suffix)].float() for i in (one, other))
            assert torch.equal(grown[layer(target, suffix)], ((1 - share) * a + share * b).to(dtype))


def slerp(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """On the arc between two vectors, by turning the first towards what of the second stands square to it."""
    u, v = a.double().flatten(), b.double().flatten()
    start, towards = u / u.norm(), v / v.norm()
    angle = torch.acos(start @ towards)
    square = towards - (start @ towards) * start
    square = square / square.norm()
    # v's part along the arc's plane: the point at share * angle, with lengths weighted as slerp weighs its ends
    weight_u = torch.cos(share * angle) - torch.sin(share * angle) / torch.tan(angle)
    weight_v = torch.sin(share * angle) / torch.sin(angle)
    assert torch.allclose(weight_u * start + weight_v * towards, torch.cos(share * angle) * start
                          + torch.sin(share * angle) * square)  # fmt: skip
    return (weight_u * u + weight_v * v).view(a.shape)


def test_slerp_is_the_arc_between_the_layers(base: Base, tmp_path: Path) -> None:
    source, grown = tensors(base()), grow(base(), tmp_path / "out", "0-2,2:slerp,3-4,4:slerp(1,0.3),5-6")
    for suffix in (UP, DOWN, "self_attn.q_proj.weight"):
        for target, (one, other, share) in {3: (2, 3, 0.5), 6: (4, 1, 0.3)}.items():
            wanted = slerp(source[layer(one, suffix)], source[layer(other, suffix)], share)
            assert torch.allclose(grown[layer(target, suffix)].double(), wanted, rtol=1e-6, atol=1e-8)
        norms = [tensor.norm() for tensor in (source[layer(2, suffix)], source[layer(3, suffix)])]
        assert grown[layer(3, suffix)].norm() > 0.95 * torch.stack(norms).mean()  # an average would be shorter
    grown = grow(base(), tmp_path / "itself", "0-2,2:slerp(2),3-6")  # no arc between a layer and itself
    assert torch.equal(grown[layer(3, UP)], source[layer(2, UP)])


def test_slerp_is_mergekits(base: Base, tmp_path: Path) -> None:
    mergekit = pytest.importorskip("mergekit.merge_methods.slerp")
    source, grown = tensors(base()), grow(base(), tmp_path / "out", "0-2,2:slerp(3,0.3),3-6")
    for name in source:
        if name.startswith("model.layers.2."):
            other = source[name.replace(".2.", ".3.", 1)]
            wanted = mergekit.slerp(torch.tensor([0.3]), source[name][None], other[None])[0]
            assert torch.allclose(grown[name.replace(".2.", ".3.", 1)], wanted, rtol=1e-5, atol=1e-7), name


def test_layers_of_unlike_kinds_are_not_mixed(base: Base, tmp_path: Path) -> None:
    for init in ("average", "slerp", "learned", "transport"):
        with pytest.raises(CheckpointError, match=r"layers 0 and 1 cannot be mixed: they are unlike in mlp\."):
            upscale(base("deepseek_v2"), tmp_path / "out", LayerPlan.parse(f"0:{init},1-6", 7))


# -- attenuated, norm-matched -----------------------------------------------------------------------------------------


def test_attenuated_scales_what_a_layer_writes(base: Base, tmp_path: Path) -> None:
    source = tensors(base("llama_bias"))
    grown = grow(base("llama_bias"), tmp_path / "out", "0-2,2-3:attenuated,3-4:attenuated,4-6,6:attenuated(0.3)")
    for target, (one, factor) in {3: (2, 2**-0.5), 5: (3, 2**-0.5), 6: (4, 2**-0.5), 10: (6, 0.3)}.items():
        for suffix in ("self_attn.o_proj.weight", "self_attn.o_proj.bias", DOWN, "mlp.down_proj.bias"):
            assert torch.equal(grown[layer(target, suffix)], source[layer(one, suffix)] * factor)
        for suffix in (UP, NORM, "self_attn.v_proj.bias"):
            assert torch.equal(grown[layer(target, suffix)], source[layer(one, suffix)])
    thrice = grow(base(), tmp_path / "thrice", "0-1,2:attenuated,2:attenuated,2:attenuated,3-6")
    assert torch.equal(thrice[layer(4, DOWN)], tensors(base())[layer(2, DOWN)] * 3**-0.5)


@pytest.mark.parametrize("family", ["gptj", "cohere2", "falcon"])  # both branches read the same input
def test_an_attenuated_layer_adds_so_much_less(base: Base, tmp_path: Path, family: str) -> None:
    upscale(base(family), tmp_path / "out", LayerPlan.parse("0:attenuated(0.25),1-6", 7))
    with torch.inference_mode():
        states = [
            pico.load(folder)(pico.tokens(), output_hidden_states=True).hidden_states
            for folder in (base(family), tmp_path / "out")
        ]
    assert torch.allclose(0.25 * (states[0][1] - states[0][0]), states[1][1] - states[1][0], atol=1e-6)


def test_a_norm_that_multiplies_by_one_plus_its_weight_is_scaled_as_such(base: Base, tmp_path: Path) -> None:
    grown, source = grow(base("gemma2"), tmp_path / "out", "0-6,6:attenuated(0.5)"), tensors(base("gemma2"))
    name = "post_feedforward_layernorm.weight"
    assert torch.allclose(1 + grown[layer(7, name)], 0.5 * (1 + source[layer(6, name)]))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "mixtral", "qwen2_sliding", "falcon", "mamba"])
def test_the_virtual_target_is_the_written_one(base: Base, tmp_path: Path, family: str) -> None:
    plan = LayerPlan.parse("0-2,1:norm-matched(1.7),2-4,3:identity,4:attenuated,5-6", 7)
    upscale(base(family), tmp_path / "out", plan)
    checkpoint = open_checkpoint(base(family))
    stack, model = find_stack(checkpoint.tensors, checkpoint.config), pico.load(base(family))
    ran = run_plan(model, checkpoint, stack, plan, pico.tokens(), lambda target, stream: starting_factor(plan, target))
    assert torch.equal(ran, logits(tmp_path / "out"))
    with torch.inference_mode():  # and the base is as before
        assert torch.equal(model(pico.tokens()).logits, logits(base(family)))


def input_norms(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    """The stream's RMS in front of each layer, by transformers' own record: [layers, rows, tokens]."""
    with torch.inference_mode():
        states = pico.load(folder)(rows, output_hidden_states=True).hidden_states
    return torch.stack([state.square().mean(-1).sqrt() for state in states[:-1]])


def test_norms_are_measured_from_below(base: Base, tmp_path: Path) -> None:
    folder = base(tokenizer=True)
    plan = LayerPlan.parse("0-5,2-3:norm-matched,4:attenuated(0.5),5:norm-matched,6", 7)
    measured = measure_norms(folder, plan, [TEXT])
    upscale(folder, tmp_path / "out", measured)
    tokens = pico.tiny_tokenizer(tmp_path)(TEXT)["input_ids"]
    rows = torch.tensor(tokens[: len(tokens) // 512 * 512]).view(-1, 512)
    home, place = input_norms(folder, rows), input_norms(tmp_path / "out", rows)
    for target, init in enumerate(measured.inits):
        if init.kind == "norm-matched":
            ratio = (place[target] / home[plan.sources[target]]).median().item()
            assert init.numbers[0] == pytest.approx(ratio, rel=1e-3)
            assert ratio > 1.01  # the stream of this model grows
    assert pico.read_json(tmp_path / "out" / "depthup.json")["plan"]["layers"] == measured.text
    assert LayerPlan.from_json(measured.to_json()) == measured
    assert measure_norms(folder, measured, []) is measured  # nothing left to measure


def test_what_cannot_be_measured_is_refused(base: Base, tmp_path: Path) -> None:
    folder = base(tokenizer=True)
    with pytest.raises(PlanError, match=r"not measured yet\n  next: .*--calibration"):
        upscale(folder, tmp_path / "out", LayerPlan.parse("0-6,6:norm-matched", 7))
    with pytest.raises(PlanError, match="plan with average layers"):
        measure_norms(folder, LayerPlan.parse("0-2,2:average,3-6,6:norm-matched", 7), [TEXT])
    with pytest.raises(DepthupError, match="has 2 tokens"):
        measure_norms(folder, LayerPlan.parse("0-6,6:norm-matched", 7), [" a", " a"])


# -- random -----------------------------------------------------------------------------------------------------------


def test_random_layers_are_noise_of_the_models_own_width(base: Base, tmp_path: Path) -> None:
    folder = base(hidden_size=128, intermediate_size=256, initializer_range=0.05)
    source, grown = tensors(folder), grow(folder, tmp_path / "out", "0-2,2:random,2:random,3-6,6:random(7)")
    for target in (3, 4, 9):
        for suffix, width in {UP: 0.05, DOWN: 0.05 / math.sqrt(2 * 10), "self_attn.q_proj.weight": 0.05}.items():
            drawn = grown[layer(target, suffix)]
            assert drawn.std().item() == pytest.approx(width, rel=0.02)
            assert abs(drawn.mean().item()) < 0.01 * width * 10
        assert torch.equal(grown[layer(target, NORM)], source[layer(2 if target < 9 else 6, NORM)])
    assert not torch.equal(grown[layer(3, UP)], grown[layer(4, UP)])
    again = grow(folder, tmp_path / "again", "0-2,2,5:random,3-6,6:random(8)")  # 4 is drawn after other layers now
    assert torch.equal(again[layer(4, UP)], grown[layer(4, UP)])
    assert not torch.equal(again[layer(9, UP)], grown[layer(9, UP)])


def test_post_norm_layers_are_drawn_with_one_width(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=7, num_attention_heads=2, vocab_size=64
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="post-norm layers"):
        grow(tmp_path / "base", tmp_path / "silent", "0-6,6:identity")
    grown = grow(tmp_path / "base", tmp_path / "out", "0-6,6:random")
    for part in ("attention.self.query", "attention.output.dense", "output.dense"):
        assert grown[f"encoder.layer.7.{part}.weight"].std().item() == pytest.approx(config.initializer_range, rel=0.02)
    transformers.BertModel.from_pretrained(tmp_path / "out")


def test_decays_and_convolutions_are_not_drawn(base: Base, tmp_path: Path) -> None:
    source, grown = tensors(base("mamba")), grow(base("mamba"), tmp_path / "out", "0-6,6:random")
    for suffix in ("mixer.A_log", "mixer.D", "mixer.conv1d.weight", "mixer.dt_proj.bias"):
        assert torch.equal(grown[f"backbone.layers.7.{suffix}"], source[f"backbone.layers.6.{suffix}"])
    assert not torch.equal(
        grown["backbone.layers.7.mixer.in_proj.weight"], source["backbone.layers.6.mixer.in_proj.weight"]
    )


# -- all of them ------------------------------------------------------------------------------------------------------


ALL = "0-1,1:identity,1:attenuated,2,2:average,2:slerp,3,3:random,3:learned,4,4:transport,5,5:norm-matched(1.5),6"


def test_the_same_plan_gives_the_same_bytes(base: Base, tmp_path: Path) -> None:
    for name in ("one", "two"):
        upscale(base(dtype=torch.bfloat16), tmp_path / name, LayerPlan.parse(ALL, 7))
    assert pico.raw(tmp_path / "one") == pico.raw(tmp_path / "two")
    _, info = pico.load_with_info(tmp_path / "one")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.isfinite(logits(tmp_path / "one")).all()


def test_blended_seams_on_disk(base: Base, tmp_path: Path) -> None:
    plan = blend(LayerPlan.upscale(7, 1), 2)
    assert plan.text == "0-3,4:average(1,0.3333333333333333),2:average(5,0.3333333333333333),3-6"
    upscale(base(), tmp_path / "out", plan)
    source, grown = tensors(base()), tensors(tmp_path / "out")
    a, b = source[layer(5, UP)], source[layer(2, UP)]
    assert torch.allclose(grown[layer(5, UP)], a / 3 + 2 * b / 3)


def test_the_command_line_blends_and_measures(base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = str(base(tokenizer=True)), tmp_path / "text.txt"
    text.write_text(TEXT)
    assert main(["upscale", folder, str(tmp_path / "blended"), "--remove", "1", "--blend", "2"]) == 0
    assert pico.read_json(tmp_path / "blended" / "config.json")["num_hidden_layers"] == 10
    matched = ["upscale", folder, str(tmp_path / "matched"), "--layers", "0-6,3:norm-matched"]
    assert main(matched) == 2
    assert "--calibration FILE" in capsys.readouterr().err
    assert main([*matched, "--calibration", str(text)]) == 0
    plan = LayerPlan.from_json(pico.read_json(tmp_path / "matched" / "depthup.json")["plan"])
    assert plan.inits[7].kind == "norm-matched" and plan.inits[7] != Init("norm-matched")
