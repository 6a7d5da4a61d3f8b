"""Models whose code comes with the checkpoint: surgery from names alone; the code goes along and is never run.

Names of tensors and fields of configs are those of the published checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from math import sqrt
from pathlib import Path
from typing import Any

import pico
import pytest

from depthup.checkpoint.check import check_checkpoint
from depthup.cli import main
from depthup.errors import CheckpointError, DepthupError, PlanError
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.models import load_model, load_tokenizer

N = 8
PLAN = LayerPlan.upscale(N, 2)
SOURCES = (0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7)

Suffixes = Callable[[int], Iterable[str]]


def same(*suffixes: str) -> Suffixes:
    return lambda layer: suffixes


LLAMA = same("self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")
# name -> (prefix of the layers, tensors of a layer, tensors outside, config, what of it becomes of the plan)
FAMILIES: dict[str, tuple[str, Suffixes, tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "chatglm3": (
        "transformer.encoder.layers",
        same("self_attention.query_key_value.weight", "self_attention.query_key_value.bias",
             "self_attention.dense.weight", "mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight",
             "input_layernorm.weight", "post_attention_layernorm.weight"),
        ("transformer.embedding.word_embeddings.weight", "transformer.rotary_pos_emb.inv_freq",
         "transformer.encoder.final_layernorm.weight", "transformer.output_layer.weight"),
        {"model_type": "chatglm", "num_layers": N, "kv_channels": 128, "seq_length": 8192},
        {"num_layers": 12},
    ),
    "internlm2": (
        "model.layers", same("attention.wqkv.weight", "attention.wo.weight", "feed_forward.w1.weight",
                             "feed_forward.w2.weight", "feed_forward.w3.weight", "attention_norm.weight",
                             "ffn_norm.weight"),
        ("model.tok_embeddings.weight", "model.norm.weight", "output.weight"),
        {"model_type": "internlm2", "num_hidden_layers": N}, {"num_hidden_layers": 12},
    ),
    "baichuan": (
        "model.layers", same("self_attn.W_pack.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight"),
        ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
        {"model_type": "baichuan", "num_hidden_layers": N}, {"num_hidden_layers": 12},
    ),
    "qwen": (
        "transformer.h", same("attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "mlp.w1.weight",
                              "mlp.w2.weight", "mlp.c_proj.weight", "ln_1.weight", "ln_2.weight"),
        ("transformer.wte.weight", "transformer.ln_f.weight", "lm_head.weight"),
        {"model_type": "qwen", "num_hidden_layers": N, "kv_channels": 128, "use_logn_attn": True},
        {"num_hidden_layers": 12},
    ),
    "telechat": (
        "transformer.h", same("self_attention.query.weight", "self_attention.key_value.weight",
                              "self_attention.dense.weight", "mlp.down_proj.weight"),
        ("transformer.word_embeddings.weight", "transformer.ln_f.weight", "lm_head.weight"),
        {"model_type": "telechat", "n_layer": N}, {"n_layer": 12},
    ),
    "mpt": (
        "transformer.blocks", same("attn.Wqkv.weight", "attn.out_proj.weight", "ffn.up_proj.weight",
                                   "ffn.down_proj.weight", "norm_1.weight", "norm_2.weight"),
        ("transformer.wte.weight", "transformer.norm_f.weight"),
        {"model_type": "mpt", "n_layers": N, "attn_config": {"alibi": True}}, {"n_layers": 12},
    ),
    "olmo, LLaDA": (
        "model.transformer.blocks", same("att_proj.weight", "attn_out.weight", "ff_proj.weight", "ff_out.weight"),
        ("model.transformer.wte.weight", "model.transformer.ln_f.weight"),
        {"model_type": "hf_olmo", "n_layers": N, "block_group_size": 1}, {"n_layers": 12},
    ),
    "mamba of its authors": (
        "backbone.layers", same("mixer.in_proj.weight", "mixer.out_proj.weight", "mixer.A_log", "norm.weight"),
        ("backbone.embedding.weight", "backbone.norm_f.weight"),
        {"d_model": 64, "n_layer": N, "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": []}, {"n_layer": 12},
    ),
    "openelm": (
        "transformer.layers", same("attn.qkv_proj.weight", "attn.out_proj.weight", "attn.q_norm.weight",
                                   "ffn.proj_1.weight", "ffn.proj_2.weight", "attn_norm.weight"),
        ("transformer.token_embeddings.weight", "transformer.norm.weight"),
        {"model_type": "openelm", "num_transformer_layers": N, "num_query_heads": [12, 12, 12, 14, 16, 16, 16, 18],
         "num_kv_heads": [3, 3, 3, 3, 4, 4, 4, 5], "ffn_multipliers": [0.5, 0.7, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0]},
        {"num_transformer_layers": 12, "num_query_heads": [12, 12, 12, 14, 16, 16, 12, 14, 16, 16, 16, 18],
         "num_kv_heads": [3, 3, 3, 3, 4, 4, 3, 3, 4, 4, 4, 5],
         "ffn_multipliers": [0.5, 0.7, 1.0, 1.3, 1.7, 2.2, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0]},
    ),
    "deci": (
        "model.layers", LLAMA, ("model.embed_tokens.weight",),
        {"model_type": "deci", "num_hidden_layers": N, "num_key_value_heads_per_layer": [4, 4, 2, 2, 1, 1, 2, 4]},
        {"num_hidden_layers": 12, "num_key_value_heads_per_layer": [4, 4, 2, 2, 1, 1, 2, 2, 1, 1, 2, 4]},
    ),
    "nemotron-nas": (
        "model.layers",
        lambda layer: ["mlp.down_proj.weight", "input_layernorm.weight"] + ["self_attn.q_proj.weight"] * (layer != 3),
        ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
        {"model_type": "nemotron-nas", "num_hidden_layers": N,
         "block_configs": [{"attention": {"no_op": layer == 3}, "ffn": {"ffn_mult": layer}} for layer in range(N)]},
        {"num_hidden_layers": 12,
         "block_configs": [{"attention": {"no_op": layer == 3}, "ffn": {"ffn_mult": layer}} for layer in SOURCES]},
    ),
    "minicpm": (
        "model.layers", LLAMA, ("model.embed_tokens.weight", "model.norm.weight"),
        {"model_type": "minicpm", "num_hidden_layers": N, "scale_depth": 1.4, "scale_emb": 12},
        {"num_hidden_layers": 12, "scale_depth": pytest.approx(1.4 * sqrt(12 / N), rel=1e-15)},
    ),
    "phi3small": (
        "model.layers", same("self_attn.query_key_value.weight", "self_attn.dense.weight", "mlp.up_proj.weight"),
        ("model.embed_tokens.weight",),
        {"model_type": "phi3small", "num_hidden_layers": N, "dense_attention_every_n_layers": 2},
        {"num_hidden_layers": 12},
    ),
    "arctic": (
        "model.layers",
        lambda layer: ("block_sparse_moe.experts.0.w1.weight" if layer % 2 else "block_sparse_moe.mlp.w1.weight",),
        ("model.embed_tokens.weight",),
        {"model_type": "arctic", "num_hidden_layers": N, "moe_layer_frequency": 2}, {"num_hidden_layers": 12},
    ),
    "jamba": (
        "model.layers",
        lambda layer: ("self_attn.q_proj.weight" if layer % 4 == 2 else "mamba.in_proj.weight",
                       "feed_forward.router.weight" if layer % 2 else "feed_forward.up_proj.weight"),
        ("model.embed_tokens.weight",),
        {"model_type": "jamba", "num_hidden_layers": N, "attn_layer_period": 4, "attn_layer_offset": 2,
         "expert_layer_period": 2, "expert_layer_offset": 1}, {"num_hidden_layers": 12},
    ),
    "deepseek_v2": (
        "model.layers",
        lambda layer: ("mlp.experts.0.up_proj.weight" if layer else "mlp.up_proj.weight", "self_attn.kv_b_proj.weight"),
        ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
        {"model_type": "deepseek_v2", "num_hidden_layers": N, "first_k_dense_replace": 1, "moe_layer_freq": 1},
        {"num_hidden_layers": 12},
    ),
    "stripedhyena": (
        "backbone.blocks",
        lambda layer: ("inner_mha_cls.Wqkv.weight" if layer in (1, 6) else "filter.residues", "mlp.l1.weight"),
        ("backbone.embedding_layer.weight", "backbone.norm.scale"),
        {"model_type": "stripedhyena", "num_layers": N, "attn_layer_idxs": [1, 6],
         "hyena_layer_idxs": [0, 2, 3, 4, 5, 7]},
        {"num_layers": 12, "attn_layer_idxs": [1, 10], "hyena_layer_idxs": [0, 2, 3, 4, 5, 6, 7, 8, 9, 11]},
    ),
    "rwkv5": (
        "rwkv.blocks", lambda layer: ["attention.key.weight", "ln1.weight"] + ["pre_ln.weight"] * (not layer),
        ("rwkv.embeddings.weight", "head.weight"),
        {"model_type": "rwkv5", "num_hidden_layers": N, "rescale_every": 6}, {"num_hidden_layers": 12},
    ),
}  # fmt: skip
TRAP = """
from pathlib import Path
Path(__file__).with_name("CODE-WAS-RUN").touch()
raise RuntimeError("the code of the checkpoint was run")
"""


def write(folder: Path, prefix: str, suffixes: Suffixes, outside: Iterable[str], config: dict[str, Any]) -> Path:
    folder.mkdir()
    names = [*outside, *(f"{prefix}.{layer}.{suffix}" for layer in range(N) for suffix in suffixes(layer))]
    tensors = {name: pico.Raw("BF16", (2, 3), f"{index:012}".encode()) for index, name in enumerate(names)}
    pico.write_tensors(folder / "model.safetensors", tensors)
    kind = str(config.get("model_type")).capitalize()
    code = {
        "architectures": [f"{kind}ForNobody"],
        "auto_map": {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps({**code, **config}))
    for file in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (folder / file).write_text(TRAP)
    code = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": code}))
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """``written("qwen")``: a folder with that family's names and fields, and code that must not be run."""

    def make(family: str, **fields: Any) -> Path:
        prefix, suffixes, outside, config, _ = FAMILIES[family]
        return write(tmp_path / "base", prefix, suffixes, outside, {**config, **fields})

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_fields_of_published_models_follow_the_plan(written, tmp_path: Path, family: str) -> None:
    base, target = written(family), tmp_path / "target"
    prefix, suffixes, _, _, changed = FAMILIES[family]
    upscale(base, target, PLAN)
    before, after = pico.raw(base), pico.raw(target)
    wanted = {name: tensor for name, tensor in before.items() if not name.startswith(f"{prefix}.")}
    for layer, source in enumerate(SOURCES):
        wanted |= {f"{prefix}.{layer}.{suffix}": before[f"{prefix}.{source}.{suffix}"] for suffix in suffixes(source)}
    assert after == wanted
    assert pico.read_json(target / "config.json") == {**pico.read_json(base / "config.json"), **changed}
    for file in ("configuration_own.py", "modeling_own.py", "tokenization_own.py", "tokenizer_config.json"):
        assert (target / file).read_bytes() == (base / file).read_bytes()
    assert not check_checkpoint(base) and not check_checkpoint(target)
    assert not [*base.rglob("CODE-WAS-RUN"), *target.rglob("CODE-WAS-RUN")]


@pytest.mark.parametrize(
    ("family", "text"), [("phi3small", "0-4,4-7"), ("arctic", "0-4,4-7"), ("jamba", "0-6,1-7"),
                         ("deepseek_v2", "0-7,0-7"), ("rwkv5", "0-7,0-7")]
)  # fmt: skip
def test_layers_are_not_moved_to_where_they_are_others(written, tmp_path: Path, family: str, text: str) -> None:
    with pytest.raises(PlanError):
        upscale(written(family), tmp_path / "target", LayerPlan.parse(text, N))


@pytest.mark.parametrize(("field", "reason"), [("position_encoding_2d", "sqrt"), ("use_cla", "share keys and values")])
def test_what_hangs_on_the_depth_in_code_alone_is_refused(written, tmp_path: Path, field: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        upscale(written("baichuan", **{field: True}), tmp_path / "target", PLAN)


def test_the_residual_factor_of_minicpm_stays_the_same_number(written, tmp_path: Path) -> None:
    """Its layers multiply what they add by scale_depth / sqrt(num_hidden_layers)."""
    base = written("minicpm")
    upscale(base, tmp_path / "target", PLAN)
    one, other = (pico.read_json(folder / "config.json") for folder in (base, tmp_path / "target"))
    factors = [config["scale_depth"] / sqrt(config["num_hidden_layers"]) for config in (one, other)]
    assert factors[0] == pytest.approx(factors[1], rel=1e-15)


def test_no_command_runs_the_code(written, tmp_path: Path, capsys) -> None:
    base, target = written("internlm2"), tmp_path / "target"
    assert main(["layers", str(base), "--remove", "2"]) == 0
    assert main(["upscale", str(base), str(target), "--remove", "2"]) == 0
    capsys.readouterr()
    assert main(["check", str(target)]) == 0
    told = capsys.readouterr().out
    assert "whole and consistent; not loaded" in told and "code comes with the checkpoint" in told
    assert main(["generate", str(target), "--prompt", "x"]) == 2
    assert "that code is not run" in capsys.readouterr().err
    for load in (load_model, load_tokenizer):
        with pytest.raises(DepthupError):
            load(target)
    assert not list(tmp_path.rglob("CODE-WAS-RUN"))


def test_code_beside_a_model_that_transformers_knows_is_not_run_either(base, tmp_path: Path, capsys) -> None:
    """Many folders carry the code of the time before their model was in transformers."""
    folder = pico.checkpoint(tmp_path / "base", "llama", tokenizer=True)
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.T", None]}
    pico.edit_config(folder, auto_map=auto_map)
    (folder / "code.py").write_text(TRAP)
    tokenizer = pico.read_json(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "auto_map": auto_map}))
    target = tmp_path / "target"
    assert main(["upscale", str(folder), str(target), "--remove", "2"]) == 0
    assert main(["check", str(target)]) == 0
    assert load_model(target).config.num_hidden_layers == 10 and load_tokenizer(target)("a")["input_ids"]
    assert (target / "code.py").is_file() and not list(tmp_path.rglob("CODE-WAS-RUN"))
