"""An upcycled model is its dense parent until it is trained: for each family by transformers, in double precision."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
import yaml
from grown import tensors
from transformers import AutoConfig

from depthup.checkpoint.check import check_checkpoint
from depthup.checkpoint.reader import open_checkpoint
from depthup.cli import main
from depthup.costs import SHAPES
from depthup.errors import CheckpointError, OutputError, PlanError
from depthup.growth.history import read_history, undo_plan
from depthup.growth.moe_forms import FORMS, find_form, mixture_config
from depthup.growth.surgery import upscale
from depthup.growth.upcycle import Upcycling, plan_upcycle, upcycle
from depthup.layers import LayerPlan
from depthup.models import prove_loading
from depthup.planning.shapes import shape_from_config, shape_of

BASES = {
    "llama": {}, "llama_tied": {}, "mistral": {}, "qwen2": {}, "qwen2_sliding": {}, "qwen3": {}, "olmo2": {},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 2.0,
                "logits_scaling": 3.0},
}  # fmt: skip
HOWS = [
    Upcycling(4),
    Upcycling(3, 1, seed=5),
    Upcycling(2, 2, router_std=1.0),
    Upcycling(4, 2, granularity=4),
]
MIXTURES = {
    "llama": "mixtral", "llama_tied": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe",
    "qwen2_sliding": "qwen2_moe", "qwen3": "qwen3_moe", "olmo2": "flex_olmo", "granite": "granitemoe",
}  # fmt: skip

Base = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Tiny dense checkpoints, each made once."""
    made: dict[str, Path] = {}

    def make(family: str = "llama", **fields: Any) -> Path:
        key = f"{family} {fields}"
        if key not in made:
            folder = tmp_path_factory.mktemp("base") / "base"
            made[key] = pico.checkpoint(folder, family, num_layers=4, **{**BASES.get(family, {}), **fields})
        return made[key]

    return make


def logits(folder: Path) -> torch.Tensor:
    """In double precision, so that what remains is the order of sums."""
    is_mixture = "num_experts_per_tok" in pico.read_json(folder / "config.json")
    options = {"experts_implementation": "eager"} if is_mixture else {}  # torch's grouped product takes no doubles
    with torch.inference_mode():
        return pico.load(folder, dtype=torch.float64, **options)(pico.tokens(40)).logits


# -- the mixture is the dense model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "how"),
    [(family, how) for family in BASES for how in (HOWS if family in ("llama", "granite") else HOWS[-1:])],
    ids=str,
)
def test_the_mixture_loads_whole_and_computes_what_the_dense_model_does(
    base: Base, tmp_path: Path, family: str, how: Upcycling
) -> None:
    made = upcycle(base(family), tmp_path / "moe", how)
    assert prove_loading(tmp_path / "moe").whole and not check_checkpoint(tmp_path / "moe")
    model, info = pico.load_with_info(tmp_path / "moe")
    assert model.config.model_type == MIXTURES[family] and not any(info.values())
    assert made.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    # Routers compute their softmax in float32 and are told apart there, so the weights of a token add up to 1 +- 2e-7.
    torch.testing.assert_close(logits(tmp_path / "moe"), logits(base(family)), rtol=0, atol=1e-6)


def test_one_expert_a_token_is_exact_to_the_last_digit_of_doubles(base: Base, tmp_path: Path) -> None:
    for family in ("mistral", "qwen2_sliding", "qwen3", "olmo2"):
        upcycle(base(family), tmp_path / family, Upcycling(4, 1))
        torch.testing.assert_close(logits(tmp_path / family), logits(base(family)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", [pytest.param("mistral", marks=pytest.mark.slow), "qwen2_sliding"])
def test_generation_is_the_same(base: Base, tmp_path: Path, family: str) -> None:
    upcycle(base(family), tmp_path / "moe", Upcycling(4))
    texts = [
        pico.load(folder).generate(pico.tokens(8), max_new_tokens=24, do_sample=False)
        for folder in (base(family), tmp_path / "moe")
    ]
    assert torch.equal(*texts)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_layers_may_stay_dense_where_the_class_has_them(base: Base, tmp_path: Path, family: str) -> None:
    upcycle(base(family), tmp_path / "moe", Upcycling(4, every=2))
    held = pico.raw(tmp_path / "moe")
    sparse = [layer for layer in range(4) if f"model.layers.{layer}.mlp.gate.weight" in held]
    assert sparse == [1, 3] and not check_checkpoint(tmp_path / "moe")
    torch.testing.assert_close(logits(tmp_path / "moe"), logits(base(family)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_are_the_bytes_of_the_feed_forward(base: Base, tmp_path: Path, dtype: torch.dtype) -> None:
    dense = base("llama_tied", dtype=dtype, shard_size="30KB", tokenizer=True)
    made = upcycle(dense, tmp_path / "moe", Upcycling(3), max_shard_bytes=60_000)
    before, after = pico.raw(dense), pico.raw(tmp_path / "moe")
    assert len(made.shards) > 2 and "lm_head.weight" not in after
    for name, tensor in after.items():
        for part, source in {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.items():
            for expert in range(3):
                name = name.replace(f"block_sparse_moe.experts.{expert}.{part}.", f"mlp.{source}.")
        if "gate.weight" not in name or "mlp" in name:
            assert tensor == before[name]
    assert (tmp_path / "moe/tokenizer.json").read_bytes() == (dense / "tokenizer.json").read_bytes()
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    both = [pico.load(folder)(pico.tokens()).logits for folder in (dense, tmp_path / "moe")]
    torch.testing.assert_close(*both, rtol=0, atol=tolerance)


def test_routers_are_random_and_reproducible(base: Base, tmp_path: Path) -> None:
    router = "model.layers.1.block_sparse_moe.gate.weight"
    hows = {"a": Upcycling(8), "b": Upcycling(8), "c": Upcycling(8, seed=1), "d": Upcycling(8, router_std=0.5)}
    for name, how in hows.items():
        upcycle(base(), tmp_path / name, how)
    a, b, c, d = (tensors(tmp_path / name)[router] for name in hows)
    assert torch.equal(a, b) and not torch.equal(a, c)
    torch.testing.assert_close(d, a * 25)  # the config's 0.02
    assert 0.017 < a.std() < 0.023
    assert not torch.equal(a, tensors(tmp_path / "a")[router.replace("1", "2", 1)])


def test_routers_feel_the_loss_only_once_experts_differ(base: Base, tmp_path: Path) -> None:
    """Equal experts give the same sum however they are weighed, so the language loss has no gradient there."""
    found = []
    for name, noise in (("equal", 0.0), ("noisy", 0.1)):
        upcycle(base(), tmp_path / name, Upcycling(4, expert_noise=noise))
        model = pico.load(tmp_path / name, dtype=torch.float64, experts_implementation="eager")
        model(pico.tokens(), labels=pico.tokens()).loss.backward()
        mlp = model.model.layers[0].mlp
        found.append((mlp.gate.weight.grad.norm() / mlp.experts.down_proj.grad.norm()).item())
    assert found[0] < 1e-6 and found[1] > 1e-3


def test_noise_is_a_share_of_each_matrix_and_spares_the_first_expert(base: Base, tmp_path: Path) -> None:
    upcycle(base(), tmp_path / "moe", Upcycling(3, expert_noise=0.1))
    dense, mixture = tensors(base()), tensors(tmp_path / "moe")
    for part, source in {"w1": "gate_proj", "w2": "down_proj"}.items():
        matrix = dense[f"model.layers.2.mlp.{source}.weight"]
        one, two, three = (mixture[f"model.layers.2.block_sparse_moe.experts.{i}.{part}.weight"] for i in range(3))
        assert torch.equal(one, matrix) and not torch.equal(two, three)
        for expert in (two, three):
            assert (expert - matrix).std() / matrix.std() == pytest.approx(0.1, rel=0.1)


def test_parts_of_a_copy_are_its_rows_and_columns(base: Base, tmp_path: Path) -> None:
    """Virtual groups: parts of a copy have one router row, and scaled by their number they add up to the whole."""
    upcycle(base(), tmp_path / "moe", Upcycling(2, 1, granularity=4))
    dense, mixture = tensors(base()), tensors(tmp_path / "moe")
    block = "model.layers.0.block_sparse_moe"
    router = mixture[f"{block}.gate.weight"]
    assert torch.equal(router[:4], router[:1].expand(4, -1)) and not torch.equal(router[0], router[4])
    for copy in range(2):
        experts = [f"{block}.experts.{4 * copy + part}" for part in range(4)]
        up = torch.cat([mixture[f"{expert}.w3.weight"] for expert in experts])
        down = torch.cat([mixture[f"{expert}.w2.weight"] for expert in experts], dim=1)
        assert torch.equal(up, dense["model.layers.0.mlp.up_proj.weight"])
        assert torch.equal(down, 4 * dense["model.layers.0.mlp.down_proj.weight"])


# -- config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FORMS)
def test_what_a_dense_config_leaves_unsaid_means_the_same_in_the_mixture(family: str) -> None:
    """transformers' defaults of the dense class, all of them, against the mixture's config for an empty one."""
    dense = AutoConfig.for_model(family)
    form = find_form({"model_type": family})
    layers, hidden, inner = dense.num_hidden_layers, dense.hidden_size, dense.intermediate_size
    made, _ = mixture_config({"model_type": family}, form, layers, hidden, inner, {form.width_key: inner})
    mixture = AutoConfig.for_model(form.model_type, **{k: v for k, v in made.items() if k != "model_type"})
    one, other = dense.to_dict(), mixture.to_dict()
    unlike = {key for key in one.keys() & other.keys() if one[key] != other[key]}
    assert unlike <= {"model_type", "architectures", "sliding_window", "head_dim"}
    assert not (one.get("sliding_window") or other.get("sliding_window")) or "sliding_window" not in unlike
    assert "head_dim" not in unlike or (one["head_dim"], other["head_dim"]) == (hidden // 32, None)  # the same
    assert mixture.rope_parameters == dense.rope_parameters


def test_a_window_that_the_dense_class_does_not_follow_is_not_followed_by_the_mixture(
    base: Base, tmp_path: Path
) -> None:
    dense = pico.checkpoint(tmp_path / "base", num_layers=2)
    pico.edit_config(dense, sliding_window=4)
    upcycle(dense, tmp_path / "moe", Upcycling(2, 1))
    torch.testing.assert_close(logits(tmp_path / "moe"), logits(dense), rtol=0, atol=1e-12)


EDITS = [
    ("llama", {"rope_parameters": ..., "rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("llama", {"rope_parameters": {"rope_type": "default"}, "rms_norm_eps": ..., "num_key_value_heads": ...}),
    ("mistral", {"rope_parameters": None, "rms_norm_eps": ..., "sliding_window": None}),
    ("qwen2", {"rope_parameters": ..., "layer_types": ..., "use_sliding_window": True, "sliding_window": 8,
               "max_window_layers": 2}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 4}),
    ("olmo2", {"rope_parameters": ..., "rms_norm_eps": ...}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "fields"), EDITS)
def test_however_a_config_is_spelt_the_mixture_computes_the_same(
    tmp_path: Path, family: str, fields: dict[str, Any]
) -> None:
    heads = {"num_key_value_heads": 4} if "num_key_value_heads" in fields else {}
    dense = pico.edit_config(pico.checkpoint(tmp_path / "base", family, num_layers=4, **heads), **fields)
    upcycle(dense, tmp_path / "moe", Upcycling(2, 1))
    torch.testing.assert_close(logits(tmp_path / "moe"), logits(dense), rtol=0, atol=1e-12)


def test_active_parameters_are_those_of_the_planner(base: Base, tmp_path: Path) -> None:
    for family, how in (("llama", Upcycling(4)), ("qwen3", Upcycling(8, 3, every=2)), ("granite", Upcycling(4, 1)),
                        ("mistral", Upcycling(4, 2, granularity=2))):  # fmt: skip
        made = upcycle(base(family), tmp_path / family, how)
        counted = shape_of(open_checkpoint(tmp_path / family))
        assert (counted.num_parameters, counted.num_active_parameters) == (
            made.num_parameters, made.num_active_parameters,
        )  # fmt: skip
        numbers = (how.num_experts, how.experts_per_token, how.granularity, how.every)
        assert shape_of(open_checkpoint(base(family))).upcycled(*numbers) == counted
    mixtral = shape_from_config(SHAPES["mistral-7b"]).upcycled(8, 2)  # Mixtral 8x7B: 46.7 B, 12.9 B of them active
    assert (mixtral.num_parameters, mixtral.num_active_parameters) == (46_702_792_704, 12_879_925_248)


# -- with depth, history, proof ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen2_sliding", marks=pytest.mark.slow), "qwen3"])
def test_depth_and_experts_compose_in_either_order(base: Base, tmp_path: Path, family: str) -> None:
    plan, how = LayerPlan.parse("0-2,1-3", 4), Upcycling(4, every=2 if family == "qwen3" else 1)
    upscale(base(family), tmp_path / "deep", plan)
    upcycle(tmp_path / "deep", tmp_path / "deep-moe", how)
    upcycle(base(family), tmp_path / "moe", how)
    upscale(tmp_path / "moe", tmp_path / "moe-deep", plan)
    dense = logits(tmp_path / "deep")
    for name in ("deep-moe", "moe-deep"):
        assert not check_checkpoint(tmp_path / name) and prove_loading(tmp_path / name).whole
        torch.testing.assert_close(logits(tmp_path / name), dense, rtol=0, atol=1e-6)
        manifest = pico.read_json(tmp_path / name / "depthup.json")
        assert LayerPlan.from_json(manifest["original_layers"]).sources == (0, 1, 2, 1, 2, 3)
    assert [step.base for step in read_history(tmp_path / "deep-moe")] == ["base", "deep"]
    assert undo_plan(tmp_path / "moe-deep", 6).sources == (0, 1, 2, 5)
    with pytest.raises(CheckpointError, match="was upcycled from deep"):
        undo_plan(tmp_path / "deep-moe", 6)


@pytest.mark.parametrize("how", [Upcycling(3), Upcycling(2, 1, granularity=2, expert_noise=0.1)], ids=str)
def test_check_proves_each_byte_against_the_base(
    base: Base, tmp_path: Path, how: Upcycling, capsys: pytest.CaptureFixture[str]
) -> None:
    moe = tmp_path / "moe"
    upcycle(base(), moe, how)
    assert main(["check", str(moe), "--against", str(base())]) == 0 and "proved" in capsys.readouterr().out
    data = bytearray((moe / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (moe / "model.safetensors").write_bytes(data)
    assert main(["check", str(moe), "--against", str(base())]) == 1 and "differs from" in capsys.readouterr().out
    pico.edit_config(moe)
    text = (moe / "depthup.json").read_text()
    (moe / "depthup.json").write_text(text.replace('"num_experts"', '"number"'))
    assert main(["check", str(moe), "--against", str(base())]) == 2
    assert "does not tell how it was upcycled" in capsys.readouterr().err


def test_the_same_upcycling_writes_the_same_bytes_and_a_stopped_one_goes_on(base: Base, tmp_path: Path) -> None:
    how, size = Upcycling(4, expert_noise=0.01), 40_000
    upcycle(base(), tmp_path / "one", how, max_shard_bytes=size, digests=True)

    def stop(num_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upcycle(base(), tmp_path / "two", how, max_shard_bytes=size, resume=True, progress=stop)
    assert not (tmp_path / "two").exists() and list(tmp_path.glob(".two.partial"))
    upcycle(base(), tmp_path / "two", how, max_shard_bytes=size, resume=True, digests=True)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


# -- refusals ---------------------------------------------------------------------------------------------------------

WRONG = [
    ({"num_experts": 1}, "1 experts"), ({"num_experts": 5000}, "5000 experts"),
    ({"num_experts": 64, "granularity": 128}, "64 copies in 128 parts"),
    ({"num_experts": 4, "experts_per_token": 5}, "each token goes to 5 of 4 experts"),
    ({"num_experts": 4, "experts_per_token": 0}, "goes to 0 of 4"), ({"num_experts": 4, "granularity": 3}, "of 3:"),
    ({"num_experts": 4, "granularity": 32}, "width 48 cannot be cut into 32"), ({"num_experts": 4, "every": 0}, "0th"),
    ({"num_experts": 4, "every": 2}, "MixtralForCausalLM has experts in all layers"),
    ({"num_experts": 4, "router_std": 0.0}, "all experts would tie"),
    ({"num_experts": 4, "router_std": -1.0}, "standard deviation -1"),
    ({"num_experts": 4, "expert_noise": 1.5}, "noise of 1.5"),
    ({"num_experts": 4, "expert_noise": float("nan")}, "noise of nan"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "said"), WRONG)
def test_numbers_that_cannot_be_are_refused(base: Base, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan_upcycle(open_checkpoint(base()), Upcycling(**fields))


REFUSED = [
    ("gpt2", {}, "no mixture of experts that computes what a gpt2 computes"), ("gemma2", {}, "what a gemma2"),
    ("mixtral", {}, "a mixture of experts already"), ("qwen3_moe", {}, "a mixture of experts already"),
    ("llama_bias", {}, "MixtralForCausalLM has no place for model.layers.0.*bias"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, "layers are of several kinds"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "fields", "said"), REFUSED)
def test_what_has_no_exact_form_is_refused(base: Base, family: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        plan_upcycle(open_checkpoint(base(family, **fields)), Upcycling(2))


CONFIGS = [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the base is quantised"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "the base is a LlamaForSequenceClassification"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}, "code comes with the base"),
    ({"model_type": "bert"}, "what a bert computes"), ({"architectures": "LlamaModel", "num_experts": 2}, "already"),
    ({"model_type": ...}, "what a None computes"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "said"), CONFIGS)
def test_configs_that_say_otherwise_are_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    folder = pico.edit_config(pico.checkpoint(tmp_path / "base", num_layers=2), **fields)
    with pytest.raises(CheckpointError, match=said):
        plan_upcycle(open_checkpoint(folder), Upcycling(2))


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    folder = pico.checkpoint(tmp_path / "base", num_layers=2)
    held = pico.raw(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    held[name] = pico.Raw("I8", held[name].shape, held[name].data[: len(held[name].data) // 4])
    pico.write_tensors(folder / "model.safetensors", held)
    with pytest.raises(CheckpointError, match="is stored as I8"):
        plan_upcycle(open_checkpoint(folder), Upcycling(2))


def test_a_scaled_number_that_leaves_its_type_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    folder = pico.checkpoint(tmp_path / "base", num_layers=2, dtype=torch.float16)
    held = pico.raw(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    data = bytearray(held[name].data)
    data[:2] = b"\xff\x7b"  # 65504, the largest
    held[name] = held[name]._replace(data=bytes(data))
    pico.write_tensors(folder / "model.safetensors", held)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight times 2 does not fit its type F16"):
        upcycle(folder, tmp_path / "moe", Upcycling(2, granularity=2))
    assert not (tmp_path / "moe").exists() and not list(tmp_path.glob(".moe*"))


def test_nothing_is_written_over_or_on_a_disk_too_small(base: Base, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(OutputError, match="exists"):
        upcycle(base(), tmp_path, Upcycling(2))
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OutputError, match="not enough disk"):
        upcycle(base(), tmp_path / "moe", Upcycling(2))
    assert not list(tmp_path.iterdir())


# -- mergekit ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("DEPTHUP_MERGEKIT" not in os.environ, reason="DEPTHUP_MERGEKIT names no mergekit-yaml")
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_experts_are_those_of_mergekit_moe(base: Base, tmp_path: Path, family: str) -> None:
    dense = base(family, dtype=torch.bfloat16, tokenizer=True)
    text = {"base_model": str(dense), "gate_mode": "random", "dtype": "bfloat16", "experts_per_token": 2,
            "experts": [{"source_model": str(dense)} for _ in range(3)]}  # fmt: skip
    (tmp_path / "moe.yaml").write_text(yaml.safe_dump(text))
    tool = Path(os.environ["DEPTHUP_MERGEKIT"]).with_name("mergekit-moe")
    command = [str(tool), str(tmp_path / "moe.yaml"), str(tmp_path / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    upcycle(dense, tmp_path / "ours", Upcycling(3))
    # It writes experts under the names that transformers has in memory, fused: they are compared as loaded.
    theirs, ours = (pico.load(tmp_path / name).state_dict() for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours if "mlp.gate.weight" not in name)
