"""Stages that say `launch`: two gloo ranks through torchrun, and through a stand-in for Slurm's srun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from depthup.artifacts.record import read_record
from depthup.artifacts.store import Store
from depthup.errors import DepthupError, RecipeError, may_pass
from depthup.launching import launch_command, launch_ranks
from depthup.pipeline import survey
from depthup.recipe import Recipe, parse_recipe
from depthup.stage_settings import Launch

REPOSITORY = Path(__file__).parents[1]


def recipe(**trained: object) -> dict[str, object]:
    return {
        "name": "test",
        "data": {"docs": {"source": "installed-docs", "max_documents": 20, "held_out": 0.2}},
        "stages": {
            "base": {"kind": "import", "random": {"num_layers": 2, "hidden_size": 32}},
            "trained": {
                "kind": "pretrain", "model": "base", "data": "docs", "steps": 3, "rows_per_step": 2, "row_tokens": 64,
                "learning_rate": 1e-3, "eval_tokens": 256, **trained,
            },
        },
    }  # fmt: skip


def test_how_a_stage_is_launched_is_no_part_of_its_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plain, launched = (survey(parse_recipe(recipe(**how)), store) for how in ({}, {"launch": {"ranks": 2}}))
    assert plain["trained"].fingerprint == launched["trained"].fingerprint
    assert Recipe.model_validate(parse_recipe(recipe(launch={"ranks": 2})).model_dump()).stages["trained"].launch


def test_srun_starts_a_launcher_on_each_node_that_meets_on_the_first() -> None:
    command = launch_command(
        Launch(ranks=8, nodes=4, by="srun", options=("--partition=gpu",)), ["-m", "x"], "0a", "cuda"
    )
    assert command[:6] == ["srun", "--nodes", "4", "--ntasks-per-node", "1", "--gpus-per-node"]
    assert command[6:10] == ["8", "--partition=gpu", "bash", "-c"]
    assert '--rdzv-endpoint "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):20010" -m x' in command[10]
    assert "--gpus-per-node" not in launch_command(Launch(ranks=2, by="srun"), [], "0a", "cpu")
    with pytest.raises(RecipeError, match="torchrun starts ranks on this machine alone, and nodes = 2"):
        parse_recipe(recipe(launch={"ranks": 8, "nodes": 2}))


def test_ranks_that_die_may_be_tried_again_and_bad_input_not(tmp_path: Path, monkeypatch) -> None:
    srun = tmp_path / "srun"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for text, passing, said in (
        ("exit 9", True, "srun ended with status 9"),
        ('echo "steps: too few" > "$DEPTHUP_PROBLEM_FILE"; exit 1', False, "steps: too few"),
    ):
        srun.write_text(f"#!/bin/bash\n{text}\n")
        srun.chmod(0o755)
        with pytest.raises(DepthupError, match=said) as raised:
            launch_ranks(Launch(ranks=2, by="srun"), "x", tmp_path / "r.json", tmp_path, "0" * 64, "cpu")
        assert may_pass(raised.value) == passing
    assert [path.name for path in tmp_path.iterdir()] == ["srun"]


@pytest.mark.parametrize("by", ["torchrun", pytest.param("srun", marks=pytest.mark.slow)])
def test_two_ranks_stop_with_their_state_saved_and_go_on(by: str, tmp_path: Path) -> None:
    steps = 400 if by == "srun" else 3
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(steps=steps, launch={"ranks": 2, "by": by})))
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", 'echo "$@" >> "$LOG"; shift 4; exec "$@"'), ("scontrol", "echo 127.0.0.1")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
                   "OMP_NUM_THREADS": "1", "LOG": str(tmp_path / "log"), "SLURM_JOB_NODELIST": "here"}  # fmt: skip
    store = tmp_path / "store"
    command = [sys.executable, "-m", "depthup", "run", str(tmp_path / "recipe.yaml"), "--store", str(store),
               "--device", "cpu", "--jobs", "2"]  # fmt: skip
    if by == "srun":
        with open(tmp_path / "said", "w") as said:
            child = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
            until = time.monotonic() + 400
            while not any(p.stat().st_size > 1000 for p in (store / "trained").glob(".*.partial/metrics.jsonl")):
                assert child.poll() is None and time.monotonic() < until, (tmp_path / "said").read_text()
                time.sleep(0.1)
            child.send_signal(signal.SIGTERM)
            assert child.wait(120) == 75, (tmp_path / "said").read_text()
        assert list((store / "trained").glob(".*.partial/state/step-*/committed.json"))
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert read_record(store / "trained" / "latest") is not None
    lines = [json.loads(line) for line in (store / "trained" / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
    assert (tmp_path / "log").exists() == (by == "srun")
    assert not [path for path in store.iterdir() if path.name.startswith((".stop", ".problem"))]
