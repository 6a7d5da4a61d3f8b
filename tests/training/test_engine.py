"""The engine: guards, rollback, precisions, groups of rates, stops, and two ranks that go the way of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pico
import pytest
import torch
from short_runs import SETTINGS, make_rows, optimizer_of, weights

from depthup.data.mixture import Mixture
from depthup.data.packing import Batch
from depthup.errors import TrainingError
from depthup.training.guard import Guard
from depthup.training.heads import FULL, Head
from depthup.training.loop import train
from depthup.training.metrics import read_metrics
from depthup.training.objectives import CausalLM, Measured, causal_lm
from depthup.training.optimizers import GroupRate, make_optimizer, round_stochastically, set_rates, take_masters
from depthup.training.parallel import World
from depthup.training.schedule import Schedule
from depthup.training.step import train_step

# -- guard -------------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_and_what_is_a_spike_is_skipped_and_does_not_count() -> None:
    guard = Guard(torch.device("cpu"), window=8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        loss, norm = (3 + 0.1 * torch.rand(2, generator=generator)).unbind()
        assert not guard.judge(loss, norm)
    before = guard.values.clone()
    one = torch.tensor(3.05)
    for loss, norm in ((float("nan"), 3), (3, float("inf")), (30, 3), (3, 30)):
        assert guard.judge(torch.tensor(float(loss)), torch.tensor(float(norm)))
    assert torch.equal(guard.values, before) and not guard.judge(one, one)


def test_a_bad_stretch_of_rows_is_passed_over_after_going_back(tmp_path: Path) -> None:
    """Three steps in a row are not finite: back to the state of step 4, then on behind those rows."""
    rows = make_rows()
    bad = [rows.batch_of_step(step, 8, SETTINGS.seed).input_ids.tobytes() for step in (5, 6, 7)]
    seen: list[int] = []

    def objective(model: torch.nn.Module, batch: Batch) -> Measured:
        is_bad = batch.input_ids.tobytes() in bad
        seen.append(is_bad)
        return Measured(causal_lm(model, batch).loss * (float("nan") if is_bad else 1.0))

    settings = replace(SETTINGS, schedule=Schedule("constant", 10), checkpoint_every=4)
    result = train(pico.model("llama"), rows, objective, settings, tmp_path, progress=False)
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert sum(seen) == result.num_skipped == 3 and result.num_steps == 10
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert all(line["loss"] is not None for line in lines)


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_rows", [1, 3, 8])
@pytest.mark.parametrize("head", [FULL, Head("chunked")])
def test_the_loss_of_each_source_is_that_of_its_rows(micro_batch_rows: int, head: Head) -> None:
    model, settings = pico.model("llama"), replace(SETTINGS, micro_batch_rows=micro_batch_rows)
    batch = Mixture({"a": make_rows(), "b": make_rows(1), "rare": make_rows(2)}, (5, 3, 0.001)).batch_of_step(0, 8, 0)
    expected = {}
    for name in ("a", "b"):
        rows = [batch.rows(row, row + 1) for row in range(8) if batch.row_sources[row] == name]
        with torch.no_grad():
            total = sum(causal_lm(model, row).loss.item() for row in rows)
        expected[f"loss/{name}"] = total / sum(row.num_targets for row in rows)
    values = train_step(model, optimizer_of(model), CausalLM(head), batch, settings, 0)
    assert {name: values[name].item() for name in values if name.startswith("loss/")} == pytest.approx(expected)


def test_an_objective_that_tells_no_source_is_not_logged_as_zero() -> None:
    model, batch = pico.model("llama"), Mixture({"a": make_rows(), "b": make_rows(1)}, (1, 1)).batch_of_step(0, 8, 0)
    values = train_step(
        model, optimizer_of(model), lambda m, b: Measured(causal_lm(m, b).loss), batch, SETTINGS, 0
    )  # fmt: skip
    assert not [name for name in values if name.startswith("loss/")]


# -- optimizers --------------------------------------------------------------------------------------------------------


def test_rounding_is_right_on_average_and_keeps_what_needs_none() -> None:
    value = torch.full((200_000,), 1.0 + 1 / 512)  # a quarter of the way from 1 to the next bfloat16
    rounded = round_stochastically(value).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0078125}
    assert rounded.mean().item() == pytest.approx(value[0].item(), abs=5e-5)
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(round_stochastically(exact.float()), exact)
    odd = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0])
    torch.testing.assert_close(round_stochastically(odd).float(), odd, equal_nan=True)


@pytest.mark.parametrize(("precision", "tolerance"), [("mixed", 0.02), ("bfloat16", 0.03)])
def test_low_precision_goes_the_way_of_float32(tmp_path: Path, precision: str, tolerance: float) -> None:
    losses = {}
    for name in ("float32", precision):
        (folder := tmp_path / name).mkdir()
        settings = replace(SETTINGS, schedule=Schedule("cosine", 30, 2), precision=name)
        model = pico.model("llama")
        train(model, make_rows(), causal_lm, settings, folder, progress=False)
        losses[name] = [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]
        expected = torch.bfloat16 if name == "bfloat16" else torch.float32
        assert all(parameter.dtype == expected for parameter in model.parameters())
    assert losses[precision] == pytest.approx(losses["float32"], rel=tolerance)


def test_masters_take_one_step_of_torchs_adamw_on_the_same_gradients() -> None:
    ours, oracle = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    oracle.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(ours, weight_decay=0.1, betas=(0.9, 0.95), precision="mixed")
    set_rates(optimizer, 1e-2, 0)
    groups = [{"params": [oracle.weight], "weight_decay": 0.1}, {"params": [oracle.bias], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for _ in range(5):
        for mine, its in zip(ours.parameters(), oracle.parameters(), strict=True):
            its.grad = torch.randn_like(its).bfloat16().float()
            mine.grad = its.grad.bfloat16()
        optimizer.step()
        theirs.step()
    take_masters(ours, optimizer)
    for mine, its in zip(ours.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, its)


def test_groups_are_frozen_slowed_and_begin_late(tmp_path: Path) -> None:
    model = pico.model("llama")
    names = [name for name, _ in model.named_parameters()]
    new = [name for name in names if ".layers.2." in name]
    late = [name for name in names if ".layers.3." in name]
    groups = {"new": new, "seam": late, "original": [name for name in names if name not in (*new, *late)]}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = replace(SETTINGS, schedule=Schedule("constant", 2), rates={
        "original": GroupRate(0.0), "seam": GroupRate(0.5, from_step=2)})  # fmt: skip
    train(model, make_rows(), causal_lm, settings, tmp_path, groups=groups, progress=False)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(new)
    with pytest.raises(TrainingError, match="no group of parameters is called 'newer'"):
        make_optimizer(model, weight_decay=0, betas=(0.9, 0.9), groups=groups, rates={"newer": GroupRate()})
    with pytest.raises(TrainingError, match="every parameter is frozen"):
        make_optimizer(model, weight_decay=0, betas=(0.9, 0.9), groups={"all": names}, rates={"all": GroupRate(0.0)})


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_activations_change_nothing(tmp_path: Path, recompute: str) -> None:
    after = []
    for how in ("none", recompute):
        (folder := tmp_path / how).mkdir()
        model = pico.model("llama")
        train(model, make_rows(), causal_lm, replace(SETTINGS, recompute=how), folder, progress=False)
        after.append(weights(model))
    torch.testing.assert_close(after[0], after[1])


def test_a_full_memory_tells_what_to_change_and_by_how_much() -> None:
    model = pico.model("llama")

    def objective(current: torch.nn.Module, batch: Batch) -> Measured:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(TrainingError, match=r"micro_batch_rows: 4 \(now 8") as told:
        train_step(model, optimizer_of(model), objective, make_rows().batch_of_step(0, 8, 0), SETTINGS, 0)
    assert "recompute: selective" in str(told.value)
    optimizer = optimizer_of(model)
    optimizer.register_step_pre_hook(lambda *_: objective(model, make_rows().batch_of_step(0, 8, 0)))
    with pytest.raises(TrainingError, match="micro_batch_rows: 4"):  # where moments are made
        train_step(model, optimizer, causal_lm, make_rows().batch_of_step(0, 8, 0), SETTINGS, 0)


# -- ranks -------------------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
from dataclasses import replace
from pathlib import Path
import torch
from short_runs import SETTINGS, make_rows, pico
from depthup.data.mixture import Mixture
from depthup.errors import Stopped
from depthup.training.loop import train
from depthup.training.objectives import causal_lm
from depthup.training.parallel import full_weights, open_world
from depthup.training.schedule import Schedule
torch.set_num_threads(1)
folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def objective(model, batch):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGTERM if sys.argv[3] == "stop" else signal.SIGKILL)
    return causal_lm(model, batch)
settings = replace(SETTINGS, schedule=Schedule("cosine", 6, 2), checkpoint_every=2, micro_batch_rows=2, rows_per_step=7)
rows = Mixture({{"one": make_rows(), "other": make_rows(1)}}, (3, 1))
with open_world("cpu") as world:
    world = world.grouped(int(sys.argv[4]) or None)
    model = pico.model("llama")
    try:
        train(model, rows, objective, settings, folder, world=world, progress=False)
    except Stopped:
        sys.exit(75)
    whole = full_weights(model, world)
    if world.is_first:
        torch.save(whole, folder / "end.pt")
"""


def ranks(folder: Path, size: int, kill_at: int = 0, how: str = "kill", shard_ranks: int = 0) -> int:
    folder.mkdir(exist_ok=True)
    paths = [str(Path(__file__).parents[1])]
    (script := folder / "child.py").write_text(CHILD.format(paths=paths))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    command = [*(launch if size > 1 else [sys.executable]), str(script), str(folder), str(kill_at), how,
               str(shard_ranks)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, env=environment, timeout=300).returncode


def steps(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wanted = ("step", "tokens_seen", "loss", "loss/one", "loss/other", "grad_norm")
    return [{key: line[key] for key in wanted if key in line} for line in lines]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    assert ranks(folder, 1) == 0
    return folder


def same_way(folder: Path, other: Path) -> None:
    assert all("loss/one" in line for line in steps(folder))
    for mine, its in zip(steps(folder), steps(other), strict=True):
        assert mine == pytest.approx(its, rel=2e-4)
    ends = [torch.load(place / "end.pt") for place in (folder, other)]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shard_ranks", [0, 1])
def test_two_ranks_go_the_way_of_one(one_rank: Path, tmp_path: Path, shard_ranks: int) -> None:
    """Sharded over both (FSDP2), and a copy on each (HSDP, groups of one); seven rows do not divide by two."""
    assert ranks(tmp_path / "two", 2, shard_ranks=shard_ranks) == 0
    same_way(tmp_path / "two", one_rank)


def test_killed_on_two_ranks_and_resumed_on_one(one_rank: Path, tmp_path: Path) -> None:
    assert ranks(tmp_path / "run", 2, kill_at=9) not in (0, 75)  # in step 5; the state of step 4 is whole
    assert not (tmp_path / "run" / "end.pt").exists()
    assert ranks(tmp_path / "run", 1) == 0
    same_way(tmp_path / "run", one_rank)


def test_stopped_on_one_rank_and_resumed_on_two(one_rank: Path, tmp_path: Path) -> None:
    assert ranks(tmp_path / "run", 1, kill_at=10, how="stop") == 75  # in step 3, which no saved state is due for
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["step-00000003"]
    assert ranks(tmp_path / "run", 2) == 0
    same_way(tmp_path / "run", one_rank)


def test_ranks_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(TrainingError, match="shard_ranks is 3"):
        World(0, 4, torch.device("cpu")).grouped(3)
