"""`depthup upcycle` and the stage of that name: what they print, what they make, and that the mixture trains."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub.constants
import pico
import pytest
import torch
from servers import Server, serving

from depthup.artifacts.store import Store
from depthup.checkpoint.reader import open_checkpoint
from depthup.cli import main
from depthup.growth.upcycle import Upcycling, upcycle
from depthup.planning.shapes import shape_of
from depthup.recipe import parse_recipe
from depthup.training.metrics import read_metrics
from depthup.workloads import workloads

STAGES = {
    "base": {"kind": "import", "random": {"num_layers": 2, "hidden_size": 32}},
    "mixture": {"kind": "upcycle", "base": "base", "experts": 4},
    "noisy": {"kind": "upcycle", "base": "base", "experts": 4, "expert_noise": 0.01, "granularity": 2},
    "base-loss": {"kind": "evaluate", "model": "base", "data": "docs", "tokens": 512, "row_tokens": 64},
    "mixture-loss": {"kind": "evaluate", "model": "mixture", "data": "docs", "tokens": 512, "row_tokens": 64},
    "trained": {
        "kind": "pretrain", "model": "mixture", "data": "docs", "steps": 20, "rows_per_step": 8, "row_tokens": 64,
        "learning_rate": 3e-3, "router_loss": 0.01, "micro_batch_rows": 8, "eval_tokens": 512,
    },
    "deeper": {"kind": "upscale", "base": "trained", "layers": "0-1,1"},
}  # fmt: skip


def recipe():
    return parse_recipe({
        "name": "mixtures", "seed": 1, "stages": STAGES,
        "data": {"docs": {"source": "installed-docs", "packages": ["python"], "max_documents": 40, "held_out": 0.2}},
    })  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """The recipe, run once: the folders and records of its stages."""
    from depthup.pipeline import run

    return run(recipe(), Store(tmp_path_factory.mktemp("store")), device="cpu", progress=False, tell=lambda line: None)


def experts_of(folder: Path, layer: int = 0) -> torch.Tensor:
    """The first matrix of each expert, [experts, rows, columns]."""
    return pico.load(folder).state_dict()[f"model.layers.{layer}.mlp.experts.gate_up_proj"]


def test_a_mixture_starts_where_its_base_stands_and_trains_on(made) -> None:
    base, mixture = (made[f"{name}-loss"].record.results["loss"] for name in ("base", "mixture"))
    assert mixture == pytest.approx(base, rel=1e-5)
    steps = [row for row in read_metrics(made["trained"].folder / "metrics.jsonl") if "router_loss" in row]
    losses = [row["loss"] for row in steps]
    assert len(steps) == 20 and sum(losses[-3:]) < sum(losses[:3]) - 0.3
    # Switch Transformer's loss times the experts of a token: 2 in balance, 4 if two experts took all.
    assert all(1.9 < row["router_loss"] < 2.6 for row in steps)
    for name in ("mixture", "trained", "deeper"):
        assert main(["check", str(made[name].folder)]) == 0


def test_training_tells_equal_experts_apart(made) -> None:
    before, after = (experts_of(made[name].folder) for name in ("mixture", "trained"))
    assert all(torch.equal(before[0], expert) for expert in before[1:])
    apart = [(after[i] - after[j]).norm() / (after[i] - before[0]).norm() for i in range(4) for j in range(i)]
    assert min(apart) > 0.1  # of the way that they went
    noisy = experts_of(made["noisy"].folder)
    assert not any(torch.equal(noisy[0], expert) for expert in noisy[1:])


def test_a_recipe_is_planned_as_it_is_made(made) -> None:
    planned = {work.stage: work for work in workloads(recipe())}
    for name in ("mixture", "noisy", "trained"):
        assert planned[name].shape == shape_of(open_checkpoint(made[name].folder))
    results = made["mixture"].record.results
    assert results["num_active_parameters"] == planned["mixture"].shape.num_active_parameters
    assert results["num_parameters"] == planned["mixture"].shape.num_parameters


def test_more_experts_a_token_than_there_are_stop_the_recipe() -> None:
    from depthup.errors import RecipeError

    with pytest.raises(RecipeError, match="experts_per_token = 3 of experts = 2"):
        parse_recipe({"name": "x", "stages": {
            "a": {"kind": "upcycle", "base": os.curdir, "experts": 2, "experts_per_token": 3}}})  # fmt: skip


def test_the_verb_writes_what_it_says(base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["upcycle", str(base("llama")), str(tmp_path / "moe"), "--experts", "3", "--experts-per-token", "1"]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 copies of the feed-forward, 1 a token, in 7 of 7 layers" in said and "num_local_experts: 3" in said
    assert "dry run" in said and not (tmp_path / "moe").exists()
    assert main([*command, "--digests", "--resume"]) == 0
    assert "resumed: 0 of 1 files" in capsys.readouterr().out
    total, active = (
        sum(tensor.num_elements * share(name) for name, tensor in open_checkpoint(tmp_path / "moe").tensors.items())
        for share in (lambda name: 1, lambda name: 1 if "experts" not in name else 1 / 3)
    )
    manifest = pico.read_json(tmp_path / "moe/depthup.json")
    assert (manifest["num_parameters"], manifest["num_active_parameters"]) == (total, pytest.approx(active))
    assert manifest["upcycling"]["num_experts"] == 3 and "sha256" in manifest["files"]["model.safetensors"]
    assert main(command) == 2 and "exists" in capsys.readouterr().err
    assert main(["upcycle", str(base("gpt2")), str(tmp_path / "x"), "--experts", "4"]) == 2
    assert "no mixture of experts that computes what a gpt2 computes" in capsys.readouterr().err


def test_a_base_on_a_server_streams_through(
    base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "*")
    local = base("qwen3")
    upcycle(local, tmp_path / "here", Upcycling(4))
    with serving(Server(local)) as server:
        assert main(["upcycle", server.url, str(tmp_path / "there"), "--experts", "4"]) == 0
        refused = ["upcycle", server.url, str(tmp_path / "x"), "--experts", "4", "--expert-noise", "0.1"]
        assert main(refused) == 2 and "its experts are computed from its weights" in capsys.readouterr().err
    assert pico.raw(tmp_path / "there") == pico.raw(tmp_path / "here")
    assert pico.read_json(tmp_path / "there/config.json") == pico.read_json(tmp_path / "here/config.json")
