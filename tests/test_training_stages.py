"""The stages that train, as recipes run them: SFT, DPO, sDPO, adapters, mixtures, groups of rates, two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from depthup.artifacts.store import Store
from depthup.cli import main
from depthup.errors import RecipeError
from depthup.pipeline import run, survey
from depthup.recipe import parse_recipe
from depthup.training.metrics import read_metrics

REPOSITORY = Path(__file__).parents[1]
CHATS, PAIRS = (str(REPOSITORY / "recipes" / "pico" / name) for name in ("chats.jsonl", "pairs.jsonl"))
DATA: dict[str, Any] = {
    "docs": {"source": "installed-docs", "max_documents": 20, "held_out": 0.2},
    "more": {"source": "installed-docs", "packages": ["python"], "max_documents": 10, "held_out": 0.3},
    "both": {"source": "mixture", "parts": {"docs": 3, "more": 1}},
    "chats": {"source": "files", "paths": [CHATS], "held_out": 0.2},
    "pairs": {"source": "files", "paths": [PAIRS], "held_out": 0.2},
}
SFT: dict[str, Any] = {
    "kind": "sft", "data": "chats", "template": "solar", "epochs": 1, "rows_per_step": 4, "row_tokens": 256,
    "learning_rate": 2e-3,
}  # fmt: skip
DPO: dict[str, Any] = {
    "kind": "dpo", "data": "pairs", "template": "solar", "steps": 4, "pairs_per_step": 8, "max_tokens": 96,
    "learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.checkpoint(tmp_path_factory.mktemp("base") / "model", tokenizer=True)


def made(tmp_path: Path, base: Path, **stages: dict[str, Any]) -> dict[str, Path]:
    """Run stages on the base; the folder of each."""
    whole = {name: {"model": str(base), **stage} for name, stage in stages.items()}
    recipe = parse_recipe({"name": "test", "seed": 1, "data": DATA, "stages": whole})
    nodes = run(recipe, Store(tmp_path / "store"), device="cpu", progress=False, tell=lambda line: None)
    return {name: node.folder for name, node in nodes.items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(read_metrics(folder / "metrics.jsonl"))


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())["results"]
    return found


def test_a_tuned_model_speaks_its_template_and_stops(tmp_path: Path, base: Path) -> None:
    folder = made(tmp_path, base, tuned={**SFT, "epochs": 6})["tuned"]
    held_out = [line["held_out_loss"] for line in lines(folder) if "held_out_loss" in line]
    assert held_out[-1] < held_out[0] and results(folder)["num_dropped"] == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "2 cups and 3 cups?"}]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == "### User:\n2 cups and 3 cups?\n\n### Assistant:\n"
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize(
    ("variant", "beta"), [("sigmoid", 0.1), ("sigmoid_norm", 5.0), ("ipo", 0.1), ("apo_zero", 0.1)]
)
def test_preference_training_starts_where_its_reference_is(
    tmp_path: Path, base: Path, variant: str, beta: float
) -> None:
    folder = made(
        tmp_path, base, preferred={**DPO, "variant": variant, "beta": beta, "steps": 16, "learning_rate": 3e-3}
    )["preferred"]
    found = lines(folder)
    first = next(line for line in found if "loss" in line)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    if variant.startswith("sigmoid"):
        assert first["loss"] == pytest.approx(log(2), abs=1e-6)
    assert "held_out_accuracy" in found[0] and found[0]["held_out_loss"] == pytest.approx(first["loss"], abs=1e-5)
    losses = [line["loss"] for line in found if "loss" in line]
    assert sum(losses[-4:]) < 4 * losses[0]


def test_the_reference_is_computed_of_the_pairs_that_the_steps_see(tmp_path: Path, base: Path) -> None:
    """Batches and losses are those of a longer run; only less is computed before it."""
    long = {**DPO, "steps": 16, "schedule": "constant", "eval_pairs": 3}
    assert DPO["pairs_per_step"] * 16 > 40  # an epoch and more
    folders = made(tmp_path, base, whole=long, part={**long, "steps": 2})
    counts = [len(np.load(file)) for file in (tmp_path / "store" / "reference").glob("*/log_probs.npy")]
    assert sorted(counts)[:2] == sorted([3, 2 * DPO["pairs_per_step"]]) and len(counts) == 3
    losses = [[line["loss"] for line in lines(folders[name]) if "loss" in line] for name in ("whole", "part")]
    assert losses[1] == losses[0][:2]


def test_each_step_of_sdpo_starts_from_the_model_before_it_which_is_its_reference(tmp_path: Path, base: Path) -> None:
    folder = made(tmp_path, base, stepwise={**DPO, "kind": "sdpo", "chunks": 3, "steps": 3})["stepwise"]
    chunks = results(folder)["chunks"]
    accuracies = [chunk["reference_accuracy"] for chunk in chunks]
    assert sum(chunk["num_pairs"] for chunk in chunks) == results(folder)["num_pairs"]
    assert accuracies == sorted(accuracies, reverse=True)
    for number in (1, 2, 3):
        first = next(line for line in lines(folder / f"chunk-{number}") if "loss" in line)
        assert first["loss"] == pytest.approx(log(2), abs=1e-6)
    weights = [load_file(folder / f"chunk-{number}" / "model.safetensors") for number in (1, 2, 3)]
    last = load_file(folder / "model.safetensors")
    assert all(torch.equal(last[name], weights[2][name]) for name in last)
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in last)


def test_adapters_are_trained_and_merged(tmp_path: Path, base: Path) -> None:
    lora = {"rank": 4, "targets": ["q_proj", "v_proj"]}
    folder = made(tmp_path, base, tuned={**SFT, "lora": lora})["tuned"]
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("q_proj" in name or "v_proj" in name for name in changed)
    folder = made(tmp_path, base, preferred={**DPO, "lora": lora})["preferred"]
    first = next(line for line in lines(folder) if "loss" in line)
    assert first["loss"] == pytest.approx(log(2), abs=1e-6)


PRETRAIN: dict[str, Any] = {
    "kind": "pretrain", "data": "docs", "steps": 2, "rows_per_step": 4, "row_tokens": 64, "learning_rate": 1e-3,
    "eval_tokens": 512,
}  # fmt: skip


def test_mixtures_are_measured_part_by_part(tmp_path: Path, base: Path) -> None:
    measure = {"kind": "evaluate", "data": "both", "tokens": 512, "row_tokens": 64}
    folders = made(tmp_path, base, trained={**PRETRAIN, "data": "both"}, loss={**measure, "model": "trained"})
    folder = folders["trained"]
    assert results(folders["loss"])["loss"] == pytest.approx(results(folder)["held_out_loss"], rel=1e-4)
    measured = [line for line in lines(folder) if "held_out_loss" in line]
    assert all({"held_out_loss/docs", "held_out_loss/more"} <= line.keys() for line in measured)
    assert all({"loss/docs", "loss/more"} & line.keys() for line in lines(folder) if "loss" in line)
    assert results(folder)["num_epochs"].keys() == {"docs", "more"}


def test_only_the_new_layers_of_a_surgery_are_trained(tmp_path: Path, base: Path) -> None:
    recipe = parse_recipe({"name": "test", "seed": 1, "data": DATA, "stages": {
        "target": {"kind": "upscale", "base": str(base), "layers": "0-6,6:identity"},
        "trained": {**PRETRAIN, "model": "target", "rates": {"original": {"factor": 0}, "outside": {"factor": 0}}},
    }})  # fmt: skip
    nodes = run(recipe, Store(tmp_path / "store"), device="cpu", progress=False, tell=lambda line: None)
    before, after = (load_file(nodes[name].folder / "model.safetensors") for name in ("target", "trained"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("model.layers.7.") for name in changed)


def test_moments_are_kept_and_grow_with_the_model(tmp_path: Path, base: Path) -> None:
    """Each copied layer starts with its source's moments, an identity layer without; the rest keeps its own."""
    from depthup.growth.freeze import read_freeze_map
    from depthup.training.moments import MOMENTS_NAME, load_moments
    from depthup.training_run import _sources

    recipe = parse_recipe({"name": "test", "seed": 1, "data": DATA, "stages": {
        "before": {**PRETRAIN, "model": str(base), "keep_optimizer": True},
        "target": {"kind": "upscale", "base": "before", "layers": "0-4,4:identity,3-6"},
        "after": {**PRETRAIN, "model": "target", "optimizer_from": "before", "keep_optimizer": True},
        "further": {**PRETRAIN, "model": "after", "optimizer_from": "after", "rates": {"original": {"factor": 0}}},
    }})  # fmt: skip
    nodes = run(recipe, Store(tmp_path / "store"), device="cpu", progress=False, tell=lambda line: None)
    held = load_file(nodes["before"].folder / MOMENTS_NAME)
    model = pico.load(nodes["target"].folder)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    sources = read_freeze_map(nodes["target"].folder).sources(name for name, _ in model.named_parameters())
    load_moments(model, optimizer, nodes["before"].folder, sources)
    states = [state for state in optimizer.state.values() if state]
    assert len({state[key].data_ptr() for state in states for key in ("exp_avg", "exp_avg_sq")}) == 2 * len(states)
    for name, parameter in model.named_parameters():
        state, layer = optimizer.state[parameter], name.split(".layers.")[-1].split(".")[0]
        if layer == "5":
            assert not state
            continue
        source = name.replace(f"layers.{layer}.", f"layers.{[0, 1, 2, 3, 4, 4, 3, 4, 5, 6][int(layer)]}.") if (
            ".layers." in name) else name  # fmt: skip
        assert torch.equal(state["exp_avg"], held[f"{source}.exp_avg"]) and float(state["step"]) == 2
    assert results(nodes["after"].folder)["num_steps"] == 2
    assert read_freeze_map(nodes["further"].folder) == read_freeze_map(nodes["target"].folder)  # it goes along
    assert _sources(nodes["after"].folder, nodes["after"].folder, model) == {}  # each its own
    assert _sources(nodes["after"].folder, nodes["before"].folder, model) == sources


def test_samples_are_written_at_each_measurement(tmp_path: Path, base: Path) -> None:
    folder = made(tmp_path, base, trained={**PRETRAIN, "sample_prompts": ["The"]})["trained"]
    samples = [line["samples"] for line in lines(folder) if "held_out_loss" in line]
    assert len(samples) == 2 and all(each[0]["prompt"] == "The" for each in samples)


def test_circumstances_rebuild_nothing_and_settings_do(tmp_path: Path, base: Path) -> None:
    def state(**change: Any) -> str:
        stage = {"model": str(base), **SFT, **change}
        recipe = parse_recipe({"name": "test", "seed": 1, "data": DATA, "stages": {"tuned": stage}})
        return survey(recipe, Store(tmp_path / "store"))["tuned"].state

    made(tmp_path, base, tuned=SFT)
    assert state() == state(recompute="full", micro_batch_rows=1, sample_prompts=["x"]) == "cached"
    assert state(turns="last") == state(rates={"new": {"factor": 2}}) == "stale"


def test_wrong_stages_are_refused_by_name(tmp_path: Path, base: Path) -> None:
    for change, said in (
        ({"steps": 3}, "exactly one of steps, epochs"),
        ({"template": "solr"}, "did you mean 'solar'"),
        ({"data": "nothing"}, "no data are called 'nothing'"),
        ({"epochs": 1, "warmup_steps": 500}, "warmup_steps = 500"),
    ):
        with pytest.raises(Exception, match=said):
            made(tmp_path, base, tuned={**SFT, **change})
    with pytest.raises(RecipeError, match="preference pairs are not mixed"):
        made(tmp_path, base, preferred={**DPO, "data": "both"})


def test_preview_and_rates_look_before_a_run(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = {"tuned": {"model": str(base), **SFT}, "trained": {"model": str(base), **PRETRAIN}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "test", "data": DATA, "stages": stages}))
    place = [str(tmp_path / "recipe.yaml"), "--store", str(tmp_path / "store")]
    assert main(["preview", place[0], "tuned", *place[1:], "--rows", "1"]) == 0
    assert "<|endoftext|>⟧" in capsys.readouterr().out
    assert main(["rates", place[0], "trained", *place[1:], "--steps", "6", "--device", "cpu"]) == 0
    assert "as a peak with warmup try" in capsys.readouterr().out
    assert main(["preview", place[0], "target", *place[1:]]) == 2


def test_two_ranks_run_a_recipe_as_one_does(tmp_path: Path, base: Path) -> None:
    """Pretraining, SFT and sDPO under torchrun: the same losses, one store, whole checkpoints."""
    stages = {
        "trained": {"model": str(base), **PRETRAIN},
        "tuned": {"model": "trained", **SFT},
        "stepwise": {"model": "tuned", **DPO, "kind": "sdpo", "chunks": 2, "steps": 2},
    }
    recipe = {"name": "test", "seed": 1, "data": DATA, "stages": stages}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "depthup"]
    command = [*launch, "run", str(tmp_path / "recipe.yaml"), "--store", str(tmp_path / "two"), "--device", "cpu"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    run(parse_recipe(recipe), Store(tmp_path / "one"), device="cpu", progress=False, tell=lambda line: None)
    for name in ("trained", "tuned", "stepwise/latest/chunk-1", "stepwise"):
        folders = [tmp_path / size / (name if "/" in name else f"{name}/latest") for size in ("one", "two")]
        for mine, its in zip(*map(lines, folders), strict=True):
            for key in {"loss", "grad_norm", "held_out_loss", "rewards/margins"} & mine.keys():
                assert its[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), (name, key)
        one, two = (load_file(folder / "model.safetensors") for folder in folders)
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-2, atol=2e-3)
