"""recipes/solar-10.7b against what was published: the plan, the number of parameters, and the config key for key."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from depthup.checkpoint.reader import open_checkpoint
from depthup.growth.surgery import plan_surgery, write_surgery
from depthup.planning.shapes import shape_from_config
from depthup.presets import make_plan
from depthup.recipe import load_recipe
from depthup.stages import set_config
from depthup.workloads import workloads

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from mistral import MISTRAL_7B, SOURCES, Shape, write_base  # noqa: E402

# config.json of upstage/SOLAR-10.7B-v1.0, its keys that say what the model is; a null there and no key here are one.
PUBLISHED = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 48, "hidden_size": 4096,
    "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096, "rope_theta": 10000.0, "rope_scaling": None,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
    "pretraining_tp": 1, "initializer_range": 0.02, "sliding_window": None,
}  # fmt: skip
# What mistralai/Mistral-7B-v0.1 has besides the keys that the synthetic base writes, or otherwise.
MISTRAL = {
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "max_position_embeddings": 32768,
    "sliding_window": 4096, "use_cache": True,
}  # fmt: skip


def stage():
    return load_recipe(REPOSITORY / "recipes" / "solar-10.7b").stages["solar-untrained"]


def test_the_plan_is_the_papers_and_gives_its_number_of_parameters() -> None:
    plan = make_plan(32, target_layers=stage().target_layers)
    assert plan.sources == SOURCES
    base = shape_from_config({**MISTRAL_7B.config(), "dtype": "bfloat16"})
    assert base.grown(plan).num_parameters == 10_731_524_096
    found = {work.stage: work for work in workloads(load_recipe(REPOSITORY / "recipes" / "solar-10.7b"))}
    assert found["solar-untrained"].shape.num_parameters == 10_731_524_096
    assert found["merge-v4"].shape.num_parameters == 10_731_524_096
    assert found["solar"].num_tokens == 12_000 * 1024 * 4096


def test_the_surgery_of_the_recipe_gives_the_published_config_key_for_key(tmp_path: Path) -> None:
    small = Shape(512, 64)  # of the true one, all but the two sizes
    write_base(tmp_path / "base", small)
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **MISTRAL}))
    base = open_checkpoint(tmp_path / "base")
    target = tmp_path / "target"
    target.mkdir()
    write_surgery(plan_surgery(base, make_plan(32, target_layers=stage().target_layers)), target)
    set_config(target, stage().config)
    config = json.loads((target / "config.json").read_text())
    sizes = {"hidden_size": 512, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1}
    assert {key: config.get(key) for key in PUBLISHED} == {**PUBLISHED, **sizes}
    assert config.keys() - PUBLISHED.keys() <= {"torch_dtype", "dtype", "use_cache", "head_dim"}


def test_a_config_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path / "base", Shape(512, 64))
    with pytest.raises(Exception, match="the weights are not those of the model"):
        set_config(tmp_path / "base", {"intermediate_size": 128})
