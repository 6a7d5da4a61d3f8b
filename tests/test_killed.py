"""A run of two jobs, killed at random moments: what was made stays, the rest goes on, the results are the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from depthup.artifacts.store import Store
from depthup.pipeline import Node, run, survey
from depthup.recipe import parse_recipe

REPOSITORY = Path(__file__).parents[1]
TRAINED = {
    "kind": "pretrain", "model": "base", "data": "docs", "steps": 24, "rows_per_step": 2, "row_tokens": 64,
    "learning_rate": 1e-3, "eval_tokens": 256, "checkpoint_every": 2,
}  # fmt: skip
RECIPE = {
    "name": "killed",
    "data": {"docs": {"source": "installed-docs", "max_documents": 20, "held_out": 0.2}},
    "stages": {
        "base": {"kind": "import", "random": {"num_layers": 2, "hidden_size": 32}},
        "target": {"kind": "upscale", "base": "base", "remove": 0},
        "control": TRAINED,
        "trained": {**TRAINED, "model": "target"},
    },
}


def weights(nodes: dict[str, Node]) -> dict[str, bytes]:
    return {name: (node.folder / "model.safetensors").read_bytes() for name, node in nodes.items()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
def test_killed_at_random_moments_it_resumes_with_nothing_lost(tmp_path: Path) -> None:
    recipe, path = parse_recipe(RECIPE), tmp_path / "recipe.yaml"
    path.write_text(json.dumps(RECIPE))
    plain = weights(run(recipe, Store(tmp_path / "plain"), device="cpu", progress=False, tell=lambda line: None))
    store = Store(tmp_path / "store")
    run(recipe, store, only="base", device="cpu", progress=False, tell=lambda line: None)
    command = [sys.executable, "-m", "depthup", "run", str(path), "--store", str(store.root), "--jobs", "2",
               "--device", "cpu,cpu"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    wait, made, num_steps = random.Random(), {"base"}, {"control": 0, "trained": 0}
    for number in (signal.SIGKILL, signal.SIGINT):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        aim = {name: steps + wait.randrange(0, 10) for name, steps in num_steps.items()}
        while child.poll() is None and not any(steps_saved(store, name) > aim[name] for name in aim):
            time.sleep(0.02)
        child.send_signal(number)
        said = child.communicate(timeout=120)[0]
        assert child.returncode in ((-9, 0) if number == signal.SIGKILL else (130, 0)), said
        wait_for_workers(store)
        now = {name for name, node in survey(recipe, store).items() if node.record is not None}
        assert made <= now, "a result is gone"
        made = now
        for name in num_steps.keys() - made:
            assert steps_saved(store, name) >= num_steps[name], "saved steps are gone"
            num_steps[name] = steps_saved(store, name)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert weights(survey(recipe, store)) == plain
    assert not list(store.root.glob("*/.*.partial"))


def steps_saved(store: Store, name: str) -> int:
    """Steps of the newest saved state of a stage; very many when it is made."""
    if (store.root / name / "latest").exists():
        return 1000
    states = (store.root / name).glob(".*.partial/state/step-????????/committed.json")
    return max((int(state.parent.name.removeprefix("step-")) for state in states), default=0)


def wait_for_workers(store: Store) -> None:
    """Until no process of this store is left: workers whose parent is gone end by themselves."""
    until = time.monotonic() + 60
    while any(str(store.root) in arguments for arguments in command_lines()):
        assert time.monotonic() < until, "an orphan goes on"
        time.sleep(0.05)


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if "depthup" in line and "--only" in line]
