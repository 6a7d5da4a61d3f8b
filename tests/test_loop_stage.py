"""Looped models in recipes: made, trained by their adapters and as a whole, on one rank and on two, and costed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from safetensors.torch import load_file

from depthup.artifacts.store import Store
from depthup.models import findings_on_loading, load_model
from depthup.pipeline import run, survey
from depthup.recipe import parse_recipe
from depthup.training.metrics import read_metrics
from depthup.workloads import workloads

REPOSITORY = Path(__file__).parents[1]
CHATS, PAIRS = (str(REPOSITORY / "recipes" / "pico" / name) for name in ("chats.jsonl", "pairs.jsonl"))
DATA: dict[str, Any] = {
    "docs": {"source": "installed-docs", "packages": ["python"], "max_documents": 10, "held_out": 0.3},
    "chats": {"source": "files", "paths": [CHATS], "held_out": 0.2},
    "pairs": {"source": "files", "paths": [PAIRS], "held_out": 0.2},
}
TRAINED: dict[str, Any] = {
    "kind": "pretrain", "model": "looped", "data": "docs", "steps": 3, "rows_per_step": 4, "row_tokens": 64,
    "learning_rate": 1e-2, "eval_tokens": 512, "rates": {"original": {"factor": 0}, "outside": {"factor": 0}},
}  # fmt: skip


def recipe_of(base: Path, **stages: dict[str, Any]) -> dict[str, Any]:
    looped = {"kind": "loop", "base": str(base), "remove": 2, "adapter": "bridge", "rank": 4}
    return {"name": "test", "seed": 1, "data": DATA, "stages": {"looped": looped, "trained": TRAINED, **stages}}


def made(recipe: dict[str, Any], store: Path) -> dict[str, Path]:
    nodes = run(parse_recipe(recipe), Store(store), device="cpu", progress=False, tell=lambda line: None)
    return {name: node.folder for name, node in nodes.items()}


def losses(folder: Path) -> list[dict[str, float]]:
    kept = ("loss", "grad_norm", "held_out_loss")
    return [{key: line[key] for key in kept if key in line} for line in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.checkpoint(tmp_path_factory.mktemp("base") / "model", tokenizer=True)


def test_adapters_are_trained_by_a_recipe_and_costed(source: Path, tmp_path: Path) -> None:
    recipe = recipe_of(source)
    folders = made(recipe, tmp_path)
    before, after = (load_file(folders[name] / "model.safetensors") for name in ("looped", "trained"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("seams.") for name in changed)
    assert findings_on_loading(folders["trained"]) == []
    assert (folders["trained"] / "modeling_looped.py").is_file()
    results = json.loads((folders["looped"] / "record.json").read_text())["results"]
    assert results["num_layers"] == 7 and results["visits"]["layers"] == "0-4,2-6"
    works = {work.stage: work for work in workloads(parse_recipe(recipe))}
    assert works["looped"].shape.num_parameters + 1 == results["num_parameters"]  # a gate is not counted
    assert len(works["trained"].shape.layers) == 10
    states = survey(parse_recipe(recipe), Store(tmp_path))
    assert {node.state for node in states.values()} == {"cached"}
    recipe["seed"] = 2  # the adapters' first matrices are drawn
    assert survey(parse_recipe(recipe), Store(tmp_path))["looped"].state == "stale"


@pytest.mark.slow
def test_all_is_trained_and_evaluated_and_two_ranks_go_the_way_of_one(source: Path, tmp_path: Path) -> None:
    """A layer that is visited twice, sharded over two ranks (FSDP2), and preference training after it."""
    stages: dict[str, Any] = {
        "whole": {**TRAINED, "rates": {}, "learning_rate": 1e-3, "recompute": "full"},
        "tuned": {
            "kind": "sft", "model": "whole", "data": "chats", "template": "solar", "epochs": 1, "rows_per_step": 4,
            "row_tokens": 256, "learning_rate": 2e-3,
        },
        "preferred": {
            "kind": "dpo", "model": "tuned", "data": "pairs", "template": "solar", "steps": 2, "pairs_per_step": 8,
            "max_tokens": 96, "learning_rate": 1e-3,
        },
    }  # fmt: skip
    recipe = recipe_of(source, **stages)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "depthup"]
    command = [*launch, "run", str(tmp_path / "recipe.yaml"), "--store", str(tmp_path / "two"), "--device", "cpu"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    evaluated = {
        "kind": "evaluate", "model": "preferred", "data": "docs", "tokens": 512, "row_tokens": 64, "prompts": ["The"],
    }  # fmt: skip
    folders = made(recipe_of(source, **stages, measured=evaluated), tmp_path / "one")
    for name in ("trained", "whole", "tuned", "preferred"):
        folder = tmp_path / "two" / name / "latest"
        for mine, its in zip(losses(folders[name]), losses(folder), strict=True):
            assert its == pytest.approx(mine, rel=1e-3, abs=1e-5), name
        one, two = (dict(load_model(place).named_parameters()) for place in (folders[name], folder))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-2, atol=2e-3)
    results = json.loads((folders["measured"] / "record.json").read_text())["results"]
    assert results["loss"] < 10 and results["generations"][0]["text"]
