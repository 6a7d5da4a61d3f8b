"""What matters on GPUs, as far as a processor can show it: low precision resumed and sharded, figures read late."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from short_runs import SETTINGS, make_rows
from torch.utils.checkpoint import CheckpointPolicy

from depthup.data.packing import Batch
from depthup.errors import Stopped
from depthup.models import resolve_device
from depthup.training import attention, loop, parallel
from depthup.training.heads import choose_head
from depthup.training.loop import train
from depthup.training.metrics import read_metrics
from depthup.training.objectives import CausalLM, Measured, causal_lm, choose_attention
from depthup.training.parallel import World, full_weights, open_world
from depthup.training.schedule import Schedule

LOW = ("mixed", "bfloat16")


def run(
    folder: Path, num_steps: int, world: World | None = None, objective: Any = causal_lm, device: str = "cpu",
    **changes: Any,
) -> Any:  # fmt: skip
    """A model after some steps in ``folder``, which may hold a state."""
    folder.mkdir(exist_ok=True)
    model = pico.model("llama").to(device)
    if device == "cuda":
        choose_attention(model)
    settings = replace(SETTINGS, schedule=Schedule("constant", num_steps), **changes)
    train(model, make_rows(), objective, settings, folder, world=world, progress=False)
    return model


def log(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    address = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in address.items():
        monkeypatch.setenv(name, value)
    with open_world("cpu") as world:
        yield world


@pytest.mark.parametrize("precision", LOW)
def test_moments_and_masters_are_resumed_as_they_were(tmp_path: Path, precision: str) -> None:
    """torch's optimizers load what they hold in the type of the weights, which here is bfloat16."""
    whole = run(tmp_path / "whole", 4, precision=precision)
    run(tmp_path / "parted", 2, precision=precision, checkpoint_every=2)
    parted = run(tmp_path / "parted", 4, precision=precision, checkpoint_every=2)
    assert log(tmp_path / "parted") == log(tmp_path / "whole")
    torch.testing.assert_close(parted.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")  # of torch.distributed
def test_weights_in_bfloat16_may_be_sharded(tmp_path: Path, one_rank: World) -> None:
    """The shards are rounded as the weights are on one device; FSDP2 computes with them, not with what they were."""
    alone = run(tmp_path / "alone", 3, precision="bfloat16")
    sharded = run(tmp_path / "sharded", 3, one_rank, precision="bfloat16", checkpoint_every=3)
    found = full_weights(sharded, one_rank)
    assert all(weight.dtype == torch.bfloat16 for weight in found.values())
    torch.testing.assert_close(found, dict(alone.state_dict()), rtol=0.02, atol=0.002)
    losses = [[line["loss"] for line in log(tmp_path / name)] for name in ("alone", "sharded")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    run(tmp_path / "sharded", 4, one_rank, precision="bfloat16")
    assert len(log(tmp_path / "sharded")) == 4


def test_figures_that_are_read_late_are_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a step's figures are read when the next one was launched, the last one's before a run stops."""
    calls = 0

    def objective(model: torch.nn.Module, batch: Batch) -> Measured:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return causal_lm(model, batch)

    run(tmp_path / "soon", 6)
    monkeypatch.setattr(loop, "_reads_late", lambda device: True)
    with pytest.raises(Stopped):
        run(tmp_path / "late", 6, objective=objective)
    (state,) = (tmp_path / "late" / "state").iterdir()
    assert state.name == f"step-{log(tmp_path / 'late')[-1]['step']:08}"
    run(tmp_path / "late", 6)
    assert log(tmp_path / "late") == log(tmp_path / "soon")


def test_a_rank_touches_no_gpu_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", None)
    assert resolve_device("cuda") == resolve_device("auto") == "cuda"


def test_selective_recomputation_keeps_the_attention_of_documents() -> None:
    """Flash attention over documents is an operator of its own; the one within it is not seen."""
    operators = (torch.ops.torch_attn._varlen_attn.default, torch.ops.aten.mm.default)
    assert all(parallel._keep_products(None, one) == CheckpointPolicy.MUST_SAVE for one in operators)
    cheap = parallel._keep_products(None, torch.ops.aten.silu.default)
    assert cheap == CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", LOW)
def test_a_run_on_a_gpu_goes_the_way_of_one_on_a_processor(tmp_path: Path, precision: str, compiled: bool) -> None:
    """All of a run at once: flash attention, the compiled loss, figures read late, states, and going on from one."""
    run(tmp_path / "cpu", 6)
    wanted = [line["loss"] for line in log(tmp_path / "cpu")]
    model = pico.model("llama").cuda()
    assert choose_attention(model) == attention.NAME
    model.bfloat16()
    assert choose_attention(model) == attention.NAME
    objective = CausalLM(choose_head(model))
    for num_steps in (4, 6):
        run(tmp_path / "gpu", num_steps, objective=objective, device="cuda", precision=precision, compile=compiled,
            checkpoint_every=2, recompute="selective")  # fmt: skip
    lines = log(tmp_path / "gpu")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == pytest.approx(wanted, rel=0.02)
