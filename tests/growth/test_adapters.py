"""Adapters grow by the plan of their base: peft itself loads the two and computes what surgery in memory computes."""

from __future__ import annotations

import copy
import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pico
import pytest
import safetensors
import torch
import transformers

from depthup.cli import main
from depthup.errors import CheckpointError, DepthupError, PlanError
from depthup.growth.adapters import adapter_stack, grow_adapter, open_adapter, plan_adapter
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

peft = pytest.importorskip("peft")
# of peft
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

N = pico.NUM_LAYERS
PLAN = LayerPlan.upscale(N, 2)
SOURCES = (0, 1, 2, 3, 4, 2, 3, 4, 5, 6)
STACKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}  # of the others: model.layers
LLAMA = ("q_proj", "o_proj", "down_proj")


def lora(*modules: str, **fields: Any) -> Any:
    return peft.LoraConfig(r=4, target_modules=list(modules or LLAMA), task_type="CAUSAL_LM", **fields)


def config_of(method: str, **fields: Any) -> Any:
    return peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[method](task_type="CAUSAL_LM", **fields)


@pytest.fixture(scope="module")
def target(base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("targets"), {}

    def build(family: str) -> Path:
        if family not in made:
            made[family] = root / family
            upscale(base(family), made[family], PLAN)
        return made[family]

    return build


class Saved(NamedTuple):
    """An adapter as peft saved it, and the model in memory that it was saved from."""

    folder: Path
    model: Any
    grown: Path  # where it will be


@pytest.fixture
def saved(base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Saved]:
    """``saved(config, "llama")``: an adapter of random weights."""
    monkeypatch.setattr(peft.PeftModel, "create_or_update_model_card", lambda *arguments: None)  # it takes time

    def save(config: Any, family: str = "llama") -> Saved:
        torch.manual_seed(5)
        model = peft.get_peft_model(copy.deepcopy(model_of(base(family))), config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.1)
        model.save_pretrained(tmp_path / "adapter")
        return Saved(tmp_path / "adapter", model, tmp_path / "grown")

    return save


def loaded(base: Path, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(copy.deepcopy(model_of(base)), adapter).eval()


@functools.cache
def model_of(folder: Path) -> Any:
    """A base or target without an adapter; tests copy it."""
    return pico.load(folder)


def stack_in_memory(model: Any, path: str, sources: tuple[int, ...] = SOURCES) -> Any:
    """Copies of the layers of a model, adapters and all, in the order of the plan."""
    layers = model.get_submodule(path)
    stacked = torch.nn.ModuleList(copy.deepcopy(layers[source]) for source in sources)
    for index, layer in enumerate(stacked):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = index
    setattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], stacked)
    model.get_base_model().config.num_hidden_layers = len(sources)
    return model


def logits(model: Any, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(pico.tokens(), use_cache=False, **arguments).logits


# -- every method -----------------------------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 4}, "ADALORA": {"total_step": 9}, "IA3": {"feedforward_modules": ["down_proj"]}, "LOHA": {"r": 4},
    "LOKR": {"r": 4}, "OFT": {"oft_block_size": 8}, "BOFT": {"boft_block_size": 4}, "HRA": {"r": 4}, "VERA": {"r": 4},
    "PVERA": {"r": 4}, "VBLORA": {"r": 4, "num_vectors": 8, "vector_length": 8}, "RANDLORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 9}, "WAVEFT": {"n_frequency": 9}, "C3A": {"block_size": 8},
    "ROAD": {"group_size": 8}, "SHIRA": {"r": 4}, "SUPERTUNING": {}, "MISS": {"r": 4}, "DELORA": {"r": 4},
    "GLORA": {"r": 4}, "GRALORA": {"r": 4, "gralora_k": 2}, "HIRA": {"r": 4}, "DEFT": {"r": 4}, "PEANUT": {"r": 4},
    "PSOFT": {"r": 4}, "OSF": {}, "BEFT": {}, "POLY": {"r": 4, "n_tasks": 2, "n_skills": 2, "n_splits": 2},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "TRAINABLE_TOKENS": {"token_indices": [*range(1, 99)]},
}  # fmt: skip
ONE_SHAPE = ("VERA", "PVERA", "BOFT", "C3A")
USUAL = ("LORA", "ADALORA", "IA3", "LOKR", "OFT", "VERA", "VBLORA", "SHIRA", "LN_TUNING", "TRAINABLE_TOKENS")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in METHODS]
)
def test_whatever_lies_under_a_layer_goes_along_for_every_method(base, target, saved, method: str) -> None:
    fields = {"target_modules": ["q_proj"] if method in ONE_SHAPE else ["o_proj", "down_proj"], **METHODS[method]}
    if method == "TRAINABLE_TOKENS":
        del fields["target_modules"]
    adapter = saved(config_of(method, **fields))
    grow_adapter(adapter.folder, adapter.grown, PLAN)
    tasks = {"task_ids": torch.tensor([0, 1])} if method == "POLY" else {}
    assert not torch.equal(logits(adapter.model, **tasks), logits(model_of(base("llama"))))
    after = logits(loaded(target("llama"), adapter.grown), **tasks)
    assert torch.equal(after, logits(stack_in_memory(adapter.model, "base_model.model.model.layers"), **tasks))


CACHES = {
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PREFIX_TUNING, projected": {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 4},
}


@pytest.mark.parametrize("case", CACHES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_layers_keys_and_values_of_a_prefix_go_along(base, target, saved, family: str, case: str) -> None:
    adapter = saved(config_of(case.partition(",")[0], **CACHES[case]), family)
    grown = grow_adapter(adapter.folder, adapter.grown, PLAN)
    after = loaded(target(family), adapter.grown)
    held, cache = adapter.model.get_prompt(1), after.get_prompt(1)
    assert len(cache.layers) == len(SOURCES)
    for layer, source in zip(cache.layers, SOURCES, strict=True):
        assert torch.equal(layer.keys, held.layers[source].keys)
        assert torch.equal(layer.values, held.layers[source].values)
    with torch.no_grad():
        assert torch.isfinite(after(pico.tokens()).logits).all()
    assert grown.config["num_layers"] == len(SOURCES)


@pytest.mark.parametrize(("method", "fields"), [("PROMPT_TUNING", {}), ("P_TUNING", {"encoder_hidden_size": 8})])
def test_tokens_before_the_text_stay_as_they_are(base, target, saved, method: str, fields: dict[str, Any]) -> None:
    adapter = saved(config_of(method, num_virtual_tokens=4, **fields))
    grow_adapter(adapter.folder, adapter.grown, PLAN)
    assert pico.read_json(adapter.grown / "adapter_config.json")["num_layers"] == len(SOURCES)
    after = logits(loaded(target("llama"), adapter.grown))
    assert torch.equal(after, logits(stack_in_memory(adapter.model, "base_model.model.layers")))


@pytest.mark.parametrize(("num_layers", "plan"), [(2, PLAN), (3, LayerPlan(N, (0, 1, 0, 1, 2, 3, 4, 5, 6)))])
def test_adaption_prompts_stay_in_the_last_layers(base, saved, tmp_path, num_layers: int, plan: LayerPlan) -> None:
    adapter = saved(config_of("ADAPTION_PROMPT", adapter_len=4, adapter_layers=num_layers))
    assert adapter_stack(open_adapter(adapter.folder)).num_layers == N
    upscale(base("llama"), tmp_path / "target", plan)
    assert grow_adapter(adapter.folder, adapter.grown, plan).config["adapter_layers"] == num_layers
    before = stack_in_memory(adapter.model, "base_model.model.model.layers", plan.sources)
    assert torch.equal(logits(loaded(tmp_path / "target", adapter.grown)), logits(before))


def test_adaption_prompts_that_would_not_stay_in_the_last_layers_are_refused(saved) -> None:
    adapter = saved(config_of("ADAPTION_PROMPT", adapter_len=4, adapter_layers=3))
    with pytest.raises(PlanError, match="last layers"):
        grow_adapter(adapter.folder, adapter.grown, PLAN)


# -- merged, then up-scaled, is up-scaled, then merged ----------------------------------------------------------------

MERGED = {
    "LoRA": ("llama", lora()),
    "LoRA, biased": ("llama_bias", lora(bias="lora_only", lora_bias=False)),
    "LoRA, GPT-2": ("gpt2", lora("c_attn", "c_proj", fan_in_fan_out=True)),
    "LoRA, GPT-NeoX": ("gpt_neox", lora("query_key_value", "dense_4h_to_h")),
    "LoRA, experts": ("qwen3_moe", lora("q_proj", target_parameters=["mlp.experts.gate_up_proj", "mlp.gate.weight"])),
    "LoRA, whole modules": ("llama", lora("q_proj", modules_to_save=["lm_head", "layers.3.mlp"])),
    "LoRA, by layer": ("llama", lora(layers_to_transform=[0, 3, 6])),
    "LoRA, one layer": ("llama", lora(layers_to_transform=5, layers_pattern="layers")),
    "LoRA, one layer twice": ("llama", lora(layers_to_transform=3, layers_pattern=["h", "layers"])),
    "LoRA, by name": ("llama", lora("model.layers.2.mlp.up_proj", "layers.6.self_attn.q_proj", "v_proj")),
    "LoRA, by pattern": ("llama", peft.LoraConfig(r=4, target_modules=r"model\.layers\.([0-2]|6)\.mlp\..*_proj")),
    "LoRA, by a pattern in parts": (
        "llama", peft.LoraConfig(r=4, target_modules=r".*\.(3\.mlp\.up_proj|4\.self_attn\.[qk]_proj)")
    ),
    "LoRA, but": ("llama", lora(exclude_modules=r".*layers\.[456]\..*")),
    "LoRA, ranks": ("llama", lora(rank_pattern={"layers.3.self_attn.q_proj": 2, "down_proj": 8,
                                                r"layers\.[0-1]\..*o_proj": 6},
                                  alpha_pattern={"model.layers.6.mlp.down_proj": 32, r".*\.[56]\..*o_proj": 3})),
    "DoRA": ("llama", lora(use_dora=True, layers_to_transform=[2, 4])),
    "DoRA, GPT-2": ("gpt2", lora("c_attn", use_dora=True, fan_in_fan_out=True)),
    "PiSSA": ("llama", lora("q_proj", init_lora_weights="pissa")),
    "IA3": ("llama", config_of("IA3", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "IA3, by pattern": ("llama", config_of("IA3", target_modules=r".*layers\.[13]\..*(v|down)_proj",
                                           feedforward_modules=r".*layers\.3\..*down_proj")),
    "LoKr": ("llama", config_of("LOKR", r=4, target_modules=list(LLAMA), rank_pattern={"layers.4.mlp.down_proj": 2})),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_up_scaling_and_merging_may_be_done_in_either_order(base, target, saved, case: str) -> None:
    family, config = MERGED[case]
    adapter = saved(config, family)
    grow_adapter(adapter.folder, adapter.grown, PLAN)
    before = adapter.model.merge_and_unload().state_dict()
    after = loaded(target(family), adapter.grown).merge_and_unload().state_dict()
    expected = up_scaled(before, STACKS.get(family, "model.layers"))
    assert after.keys() == expected.keys() and all(torch.equal(after[name], expected[name]) for name in after)
    assert any(not torch.equal(before[name], weight) for name, weight in model_of(base(family)).state_dict().items())


def up_scaled(tensors: dict[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    """The state of a model of the plan's layers, from that of its base."""
    result = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{path}.")}
    for target, source in enumerate(SOURCES):
        start = f"{path}.{source}."
        result |= {
            f"{path}.{target}.{name.removeprefix(start)}": tensor
            for name, tensor in tensors.items() if name.startswith(start)
        }  # fmt: skip
    return result


def test_the_text_tower_of_a_vision_model_grows_alone(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4, "model_type": "clip_vision_model"}  # fmt: skip
    text = {**pico.FAMILIES["llama"][1], "num_hidden_layers": N, "vocab_size": 320, "model_type": "llama"}
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=300)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    load = transformers.LlavaForConditionalGeneration.from_pretrained
    upscale(tmp_path / "base", tmp_path / "target", PLAN, stack="language_model.model.layers")
    model = peft.get_peft_model(load(tmp_path / "base").eval(), peft.LoraConfig(target_modules=["q_proj"], r=4))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1 * weight.requires_grad)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"language_model.layers, .*vision_tower[\s\S]*--stack"):
        adapter_stack(open_adapter(tmp_path / "adapter"))
    grow_adapter(tmp_path / "adapter", tmp_path / "grown", PLAN, stack="language_model.layers")
    after = peft.PeftModel.from_pretrained(load(tmp_path / "target"), tmp_path / "grown").eval().merge_and_unload()
    expected = up_scaled(model.merge_and_unload().state_dict(), "model.language_model.layers")
    assert after.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in after.state_dict().items())


# -- how deep is its base, and what else it says ----------------------------------------------------------------------


def written(folder: Path, adapter: Path, **fields: Any) -> Path:
    """A copy of an adapter with other fields in its config."""
    shutil.copytree(adapter, folder)
    config = {**pico.read_json(folder / "adapter_config.json"), **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of q_proj and o_proj in every layer of the Llama."""
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    model = peft.get_peft_model(copy.deepcopy(model_of(base("llama"))), lora("q_proj", "o_proj"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def test_the_command_line_grows_an_adapter_for_its_grown_base(base, target, plain, tmp_path: Path, capsys) -> None:
    out = tmp_path / "grown"
    assert main(["upscale", str(plain), str(out), "--remove", "2", "--dry-run"]) == 0 and not out.exists()
    assert "still " in capsys.readouterr().out  # base_model_name_or_path is the base as long as nothing else is said
    arguments = ["upscale", str(plain), str(out), "--remove", "2", "--base-model", str(target("llama"))]
    assert main(arguments) == 0
    assert "7 -> 10 layers" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "depthup.json"}
    model = peft.AutoPeftModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == 10
    # Every byte of the grown file is one of the adapter, under the name of a copy.
    before, after = (adapter_of(folder) for folder in (plain, out))
    renamed = {f"{STEM}{t}.{kind}.weight" for t in range(10) for kind in kinds("q_proj") + kinds("o_proj")}
    assert after.keys() == renamed
    for name, tensor in after.items():
        index, kind = name.removeprefix(STEM).split(".", 1)
        assert tensor == before[f"{STEM}{SOURCES[int(index)]}.{kind}"]


STEM = "base_model.model.model.layers."


def kinds(module: str) -> list[str]:
    return [f"self_attn.{module}.lora_{letter}" for letter in "AB"]


def adapter_of(folder: Path) -> dict[str, Any]:
    return {name: bytes(info["data"]) for name, info in
            safetensors.deserialize((folder / "adapter_model.safetensors").read_bytes())}  # fmt: skip


def test_the_depth_is_that_of_the_base_or_of_an_adapter_in_every_layer(base, plain, tmp_path: Path) -> None:
    assert adapter_stack(open_adapter(plain)).num_layers == N
    gone = written(tmp_path / "gone", plain, base_model_name_or_path="someone/a-model-not-here")
    assert adapter_stack(open_adapter(gone)).num_layers == N  # it is in layers 0 to 6, with nothing left out


@pytest.mark.parametrize(
    "fields", [{"layers_to_transform": [0, 1, 2, 3, 4, 5, 6]}, {"exclude_modules": ["layers.9.self_attn.q_proj"]},
               {"target_modules": r".*\.[qo]_proj"}, {"target_modules": ["layers.0.self_attn.q_proj", "q_proj"]}]
)  # fmt: skip
def test_a_depth_that_cannot_be_told_is_asked_for(base, plain, tmp_path: Path, capsys, fields: dict[str, Any]) -> None:
    fields["base_model_name_or_path"] = "someone/a-model-not-here"
    folder = str(written(tmp_path / "adapter", plain, **fields))
    assert main(["upscale", folder, str(tmp_path / "out"), "--remove", "2"]) == 2
    assert "say it with --base-layers" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["upscale", folder, str(tmp_path / "out"), "--remove", "2", "--base-layers", "9"]) == 0
    assert main(["upscale", folder, str(tmp_path / "no"), "--remove", "2", "--base-layers", "5"]) == 2
    assert "base with a layer 6" in capsys.readouterr().err


def test_a_depth_that_contradicts_the_base_is_refused(base, target, plain, tmp_path: Path, capsys) -> None:
    arguments = ["upscale", str(plain), str(tmp_path / "out"), "--remove", "2"]
    assert main([*arguments, "--base-layers", "8"]) == 2
    assert "a base of 7 layers, not for one of 8" in capsys.readouterr().err
    assert main([*arguments, "--base-model", str(base("llama"))]) == 2
    assert "has 7 layers, the plan leads to 10" in capsys.readouterr().err
    assert main(["upscale", str(base("llama")), str(tmp_path / "out"), "--remove", "2", "--base-layers", "7"]) == 2
    assert "is no adapter" in capsys.readouterr().err


def test_a_base_that_has_grown_meanwhile_is_noticed(target, plain, tmp_path: Path, capsys) -> None:
    adapter = written(tmp_path / "adapter", plain, base_model_name_or_path=str(target("llama")))
    arguments = ["upscale", str(adapter), str(tmp_path / "out"), "--remove", "2"]
    assert main(arguments) == 2
    assert "in each of 7 layers, " in capsys.readouterr().err
    assert main([*arguments, "--base-layers", "7"]) == 0


def test_a_grown_adapter_is_taken_back(plain, tmp_path: Path) -> None:
    assert main(["upscale", str(plain), str(tmp_path / "grown"), "--remove", "2"]) == 0
    assert main(["upscale", str(tmp_path / "grown"), str(tmp_path / "back"), "--undo", "--base-layers", "10"]) == 0
    assert adapter_of(tmp_path / "back") == adapter_of(plain)


def test_layers_are_counted_as_the_plan_does_where_the_config_counts_them(base, saved) -> None:
    adapter = saved(lora("q_proj", layers_to_transform=[0, 3, 6]))
    assert grow_adapter(adapter.folder, adapter.grown, PLAN).config["layers_to_transform"] == [0, 3, 6, 9]


@pytest.mark.parametrize(("given", "expected"), [(5, 8), (3, [3, 6]), ([3], [3, 6]), ([5], [8])])
def test_one_layer_may_become_several(plain, tmp_path: Path, given: object, expected: object) -> None:
    adapter = open_adapter(written(tmp_path / "adapter", plain, layers_to_transform=given))
    assert plan_adapter(adapter, adapter_stack(adapter), PLAN).config["layers_to_transform"] == expected


def test_fields_that_say_nothing_of_layers_stay(plain, tmp_path: Path) -> None:
    before = pico.read_json(plain / "adapter_config.json")
    after = grow_adapter(plain, tmp_path / "grown", PLAN).config
    assert after == before and list(after) == list(before)
    assert pico.read_json(tmp_path / "grown" / "adapter_config.json") == before


def test_other_adapters_in_the_folder_are_told_of(plain, tmp_path: Path) -> None:
    """peft saves a second adapter of a model in a folder of its own below that of the first."""
    adapter = written(tmp_path / "adapter", plain)
    written(adapter / "second", plain)
    surgery = grow_adapter(adapter, tmp_path / "grown", PLAN)
    assert "second: another adapter, to be grown by itself" in surgery.config_changes
    assert not (tmp_path / "grown" / "second").exists()


# -- identity ---------------------------------------------------------------------------------------------------------


def test_an_identity_layer_stays_one_under_its_adapter(base, plain, tmp_path: Path) -> None:
    plan = LayerPlan.parse("0-2,2:identity,3-6,6:identity", N)
    upscale(base("llama"), tmp_path / "target", plan)
    grow_adapter(plain, tmp_path / "grown", plan)
    assert torch.equal(logits(loaded(tmp_path / "target", tmp_path / "grown")), logits(loaded(base("llama"), plain)))


@pytest.mark.parametrize("method", ["DoRA", "IA3"])
def test_other_starts_and_other_methods_are_refused(saved, tmp_path: Path, method: str) -> None:
    adapter = saved(MERGED[method][1])
    with pytest.raises(PlanError, match=r"starts as identity[\s\S]*merge the adapter"):
        grow_adapter(adapter.folder, tmp_path / "grown", LayerPlan.parse("0-2,2:identity,3-6", N))


@pytest.mark.parametrize("init", ["average", "random", "attenuated"])
def test_a_layer_that_is_no_copy_has_no_adapter_to_follow_it(plain, tmp_path: Path, init: str) -> None:
    with pytest.raises(PlanError, match=f"starts as {init}"):
        grow_adapter(plain, tmp_path / "grown", LayerPlan.parse(f"0-3,2:{init},3-6", N))


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_replication": [[0, 5], [2, 7]]}, r"replication = 0-4,2-6[\s\S]*upscale BASE OUT --layers 0-4,2-6"),
        ({"peft_type": "XLORA"}, "classifier"),
        ({"peft_type": "UNILORA"}, "share one vector"),
        ({"peft_type": "NEWEST"}, "NEWEST, which depthup does not know"),
        ({"peft_type": None}, "does not know"),
        ({"layers_to_transform": "all"}, "layers_to_transform = all"),
        ({"rank_pattern": [8]}, r"rank_pattern = \[8\]"),
    ],
)
def test_what_cannot_follow_is_refused(plain, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    adapter = written(tmp_path / "adapter", plain, **fields)
    with pytest.raises(CheckpointError, match=message):
        grow_adapter(adapter, tmp_path / "grown", PLAN)
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize("shape", [(4, 7 * 2 * 9), (4,), (4, 8, 7)])
def test_a_prefix_of_another_shape_is_refused(plain, tmp_path: Path, shape: tuple[int, ...]) -> None:
    adapter = written(tmp_path / "adapter", plain, peft_type="PREFIX_TUNING", num_layers=N, token_dim=8)
    data = bytes(4 * torch.Size(shape).numel())
    pico.write_tensors(adapter / "adapter_model.safetensors", {"prompt_embeddings": pico.Raw("F32", shape, data)})
    with pytest.raises(CheckpointError, match="keys and values"):
        grow_adapter(adapter, tmp_path / "grown", PLAN)


def test_a_plan_without_the_adapters_layers_is_refused(saved, tmp_path: Path) -> None:
    adapter = saved(lora("q_proj", layers_to_transform=[5]))
    with pytest.raises(PlanError, match="leaves out every layer"):
        grow_adapter(adapter.folder, tmp_path / "grown", LayerPlan(N, (0, 1, 2, 3, 4, 4, 3, 6)))


def test_layer_numbers_that_speak_of_two_stacks_are_refused(plain, tmp_path: Path) -> None:
    adapter = written(tmp_path / "adapter", plain, layers_to_transform=[1, 5], layers_pattern=None)
    tensor = pico.Raw("F32", (1,), bytes(4))
    names = ("model.layers.1", "model.layers.5", "vision.blocks.1", "vision.blocks.5")
    pico.write_tensors(adapter / "adapter_model.safetensors",
                       {f"base_model.model.{name}.q_proj.lora_A.weight": tensor for name in names})  # fmt: skip
    with pytest.raises(CheckpointError, match=r"vision\.blocks[\s\S]*full names"):
        grow_adapter(adapter, tmp_path / "grown", PLAN, stack="layers")


def test_broken_folders_are_told_in_one_message(base, plain, tmp_path: Path, capsys) -> None:
    pickle = written(tmp_path / "pickle", plain)
    (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
    nothing = written(tmp_path / "nothing", plain)
    (nothing / "adapter_model.safetensors").unlink()
    text = written(tmp_path / "text", plain)
    (text / "adapter_config.json").write_text("{")
    listed = written(tmp_path / "listed", plain)
    (listed / "adapter_config.json").write_text("[]")
    both = written(tmp_path / "both", plain)
    shutil.copytree(base("llama"), both, dirs_exist_ok=True)
    told = {"pickle": "save_pretrained, which writes safetensors", "nothing": "has no adapter_model.safetensors",
            "text": "is no JSON object", "listed": "is no JSON object", "both": "a model and an adapter"}  # fmt: skip
    for name, message in told.items():
        assert main(["upscale", str(tmp_path / name), str(tmp_path / "out"), "--remove", "2"]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(40))
def test_any_mangled_config_is_grown_or_refused_with_a_message(plain, tmp_path: Path, seed: int) -> None:
    """Fields of the wrong type, patterns that are none: an error of depthup's own, or a folder that is whole."""
    drawn = random.Random(seed)
    values = [None, 0, 3, -1, True, "", "(", "*.q_proj", r"layers\.[", [], [3], ["("], [None], [[1]], {}, {"(": 1}]
    fields = ("layers_to_transform", "layers_pattern", "target_modules", "exclude_modules", "rank_pattern",
              "alpha_pattern", "modules_to_save", "target_parameters", "layer_replication", "num_layers",
              "adapter_layers", "base_model_name_or_path", "peft_type")  # fmt: skip
    chosen = {key: drawn.choice(values) for key in drawn.sample(fields, 3)}
    adapter = written(tmp_path / "adapter", plain, **chosen)
    try:
        grow_adapter(adapter, tmp_path / "grown", PLAN)
    except DepthupError as error:
        assert str(error) and not (tmp_path / "grown").exists()
    else:
        assert adapter_of(tmp_path / "grown")
