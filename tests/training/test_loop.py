"""The loop: transformers' own loss, no effect of how rows are split, and a killed run ends as if it were not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
from short_runs import SETTINGS, make_rows, optimizer_of, weights

from depthup.data.packing import pack
from depthup.data.tokens import TokenizedDocuments
from depthup.errors import TrainingError
from depthup.evaluation.heldout import held_out_loss
from depthup.training.checkpointing import States
from depthup.training.loop import train
from depthup.training.metrics import read_metrics
from depthup.training.objectives import Measured, causal_lm, summed_loss
from depthup.training.schedule import Schedule
from depthup.training.step import train_step


def test_the_loss_is_transformers_own() -> None:
    model = pico.model("llama")
    ids = pico.tokens(num_tokens=24, num_rows=3)
    lengths = [24, 24, 24]
    docs = TokenizedDocuments(ids.numpy().astype(np.int32).ravel(), np.cumsum([0, *lengths]))
    (batch,) = pack(docs, 24).in_order(3)
    oracle = model(input_ids=ids, labels=ids).loss
    assert causal_lm(model, batch).loss.item() / batch.num_targets == pytest.approx(oracle.item(), rel=1e-6)


@pytest.mark.parametrize("micro_batch_rows", [1, 3, 5])
def test_micro_batches_do_not_change_a_step(micro_batch_rows: int) -> None:
    """Rows hold unlike numbers of targets, so a mean of means would differ."""
    batch = make_rows().batch_of_step(0, 8, seed=0)
    assert len({batch.rows(i, i + 1).num_targets for i in range(8)}) > 1
    results = []
    for size in (8, micro_batch_rows):
        model = pico.model("llama")
        settings = replace(SETTINGS, micro_batch_rows=size)
        values = train_step(model, optimizer_of(model), causal_lm, batch, settings, step=0)
        results.append((values, weights(model)))
    (whole, after_whole), (split, after_split) = results
    assert float(split["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)
    assert float(split["grad_norm"]) == pytest.approx(float(whole["grad_norm"]), rel=1e-5)
    torch.testing.assert_close(after_split, after_whole, rtol=1e-4, atol=1e-5)


def test_a_step_is_torch_s_adamw_on_transformers_own_loss() -> None:
    ids = pico.tokens(num_tokens=24, num_rows=4)
    docs = TokenizedDocuments(ids.numpy().astype(np.int32).ravel(), np.arange(0, 97, 24))
    (batch,) = pack(docs, 24).in_order(4)
    settings = replace(SETTINGS, weight_decay=0.0, rows_per_step=4)
    ours, oracle = pico.model("llama"), pico.model("llama")
    train_step(ours, optimizer_of(ours, weight_decay=0.0), causal_lm, batch, settings, step=3)
    rate = settings.learning_rate * settings.schedule.factor(3)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=rate, betas=settings.betas, weight_decay=0.0)
    oracle(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(oracle.parameters(), settings.clip_norm)
    optimizer.step()
    torch.testing.assert_close(weights(ours), weights(oracle), rtol=1e-4, atol=1e-5)


def test_training_lowers_the_held_out_loss_and_writes_each_step(tmp_path: Path) -> None:
    rows, model = make_rows(), pico.model("llama")

    def evaluate(current: torch.nn.Module) -> dict[str, float]:
        return {"held_out_loss": held_out_loss(current, rows, summed_loss).loss}

    before = evaluate(model)["held_out_loss"]
    settings = replace(SETTINGS, schedule=Schedule("cosine", 30, 2), eval_every=10)
    result = train(model, rows, causal_lm, settings, tmp_path, evaluate=evaluate, progress=False)
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    steps = [line for line in lines if "loss" in line]
    measured = [line for line in lines if "held_out_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert [line["step"] for line in measured] == [0, 10, 20, 30]
    assert measured[0]["held_out_loss"] == pytest.approx(before)
    assert result.held_out_loss == pytest.approx(evaluate(model)["held_out_loss"])
    assert result.held_out_loss < before - 0.2
    assert result.num_tokens_seen == steps[-1]["tokens_seen"]
    assert steps[0]["loss"] == pytest.approx(
        causal_lm(pico.model("llama"), batch := rows.batch_of_step(0, 8, 0)).loss.item() / batch.num_targets, rel=1e-5
    )


def test_the_batch_size_does_not_change_the_held_out_loss() -> None:
    rows, model = make_rows(), pico.model("llama")
    losses = [held_out_loss(model, rows, summed_loss, rows_per_batch=size).loss for size in (1, 4, 100)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_no_weight(tmp_path: Path) -> None:
    model = pico.model("llama")
    before = weights(model).clone()

    def broken(current: torch.nn.Module, batch: object) -> Measured:
        return Measured(causal_lm(current, batch).loss * float("nan"))

    with pytest.raises(TrainingError, match="the update was not applied"):
        train(model, make_rows(), broken, SETTINGS, tmp_path, progress=False)
    assert (weights(model) == before).all()
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert len(lines) == SETTINGS.max_skips
    assert all(line["skipped"] and line["loss"] is None for line in lines)


CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
from dataclasses import replace
from pathlib import Path
import torch
from short_runs import SETTINGS, make_rows, pico
from depthup.evaluation.heldout import held_out_loss
from depthup.training.loop import train
from depthup.training.objectives import causal_lm, summed_loss
from depthup.training.schedule import Schedule
torch.set_num_threads(1)
rows, model = make_rows(), pico.model("llama")
kill_at, how = int(sys.argv[2]), int(sys.argv[3])
calls = 0
def objective(current, batch):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), how)
    return causal_lm(current, batch)
settings = replace(SETTINGS, schedule=Schedule("cosine", 8, 2), checkpoint_every=3, eval_every=2)
evaluate = lambda current: {{"held_out_loss": held_out_loss(current, rows, summed_loss).loss}}
train(model, rows, objective, settings, Path(sys.argv[1]), evaluate=evaluate, progress=False)
torch.save(model.state_dict(), Path(sys.argv[1]) / "end.pt")
"""


def child(folder: Path, kill_at: int = 0, how: int = signal.SIGKILL) -> int:
    folder.mkdir(exist_ok=True)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", CHILD.format(paths=paths), str(folder), str(kill_at), str(int(how))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, env=environment).returncode


def log(folder: Path) -> list[dict[str, float]]:
    timing = ("tokens_per_second",)
    return [
        {key: value for key, value in json.loads(line).items() if key not in timing}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_run_that_was_killed_or_stopped_ends_as_if_it_were_not(tmp_path: Path) -> None:
    """To the bit: SIGKILL in step 5 (a state of step 3 is there), SIGTERM in step 2 (the state is saved first)."""
    assert child(tmp_path / "whole") == 0
    for name, kill_at, how in (("killed", 5, signal.SIGKILL), ("stopped", 2, signal.SIGTERM)):
        folder = tmp_path / name
        assert child(folder, kill_at, how) != 0
        assert not (folder / "end.pt").exists()
        assert child(folder) == 0
        assert log(folder) == log(tmp_path / "whole")
        ends = [torch.load(place / "end.pt") for place in (folder, tmp_path / "whole")]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])


def test_a_state_without_its_commit_mark_is_not_resumed(tmp_path: Path) -> None:
    model = pico.model("llama")
    states = States(tmp_path / "state", model, optimizer_of(model))
    for step in (1, 2):
        states.save({"step": step, "tokens_seen": step})
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]
    assert states.load() == {"step": 2, "tokens_seen": 2}
    (tmp_path / "state" / "step-00000002" / "committed.json").unlink()
    assert states.load() is None


def test_a_state_with_a_cut_file_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    model = pico.model("llama")
    states = States(tmp_path / "state", model, optimizer_of(model), num_kept=2)
    for step in (1, 2, 3):
        states.save({"step": step})
    newest = max((tmp_path / "state").iterdir())
    assert newest.name == "step-00000003"
    part = next(newest.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-1])
    assert states.load() == {"step": 2}


def test_a_run_stopped_in_its_last_step_stops_and_then_has_nothing_left_to_do(tmp_path: Path) -> None:
    assert child(tmp_path / "whole") == 0
    assert child(tmp_path / "last", kill_at=8, how=signal.SIGINT) != 0
    assert not (tmp_path / "last" / "end.pt").exists()
    assert child(tmp_path / "last") == 0
    assert log(tmp_path / "last") == log(tmp_path / "whole")
