"""Losses of candidates: before training, without writing them where that can be; and after short training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.names import find_stack
from ..checkpoint.reader import Checkpoint
from ..files import write_json
from ..growth.freeze import read_freeze_map
from ..growth.surgery import plan_surgery, publish_surgery
from ..layers import LayerPlan
from ..models import load_model
from ..probe.tower import TRIED, find_tower
from ..probe.virtual import iterate_losses
from ..training.heads import choose_head
from ..training.loop import train
from ..training.metrics import read_metrics
from ..training.objectives import CausalLM, choose_attention, require_document_mask
from ..training.optimizers import GroupRate
from ..training.schedule import Schedule
from ..training.settings import TrainSettings
from .candidates import Candidate
from .text import Text
from .verdict import CONTROL, GENTLE, Measurement

_ZERO = "zero.json"


@dataclass(frozen=True)
class Settings:
    """How short runs train.

    Attributes:
        learning_rate: Peak, held after the warmup: a run can be prolonged, and then is what a longer one would be.
        rows_per_step: Rows in a batch.
        warmup_steps: Of each run.
        seed: Order of rows.
    """

    learning_rate: float
    rows_per_step: int
    warmup_steps: int
    seed: int


@dataclass
class Bench:
    """What all measurements share.

    Attributes:
        base: The checkpoint.
        text: Rows.
        folder: Where runs and what was measured are kept.
        device: Where torch computes.
        settings: Of the short runs.
        deadline: ``time.monotonic()`` at which no further run begins; None for none.
        progress: Whether to show bars.
        seconds_per_layer_step: Of the runs so far, to tell whether another fits into the time.
    """

    base: Checkpoint
    text: Text
    folder: Path
    device: str
    settings: Settings
    deadline: float | None
    progress: bool
    seconds_per_layer_step: list[float] = field(default_factory=list)

    def is_late(self, needed: float = 0.0) -> bool:
        return self.deadline is not None and time.monotonic() + needed > self.deadline


# -- before training --------------------------------------------------------------------------------------------------


def zero_step(
    bench: Bench, candidates: Sequence[Candidate], advance: Callable[[int], object]
) -> tuple[list[Measurement], list[Candidate]]:
    """The loss of the base, named :data:`CONTROL`, and of each candidate before training; and who was left out.

    What was measured before is kept. When half of the time is over, the rest is left out.
    """
    half = None if bench.deadline is None else time.monotonic() + 0.5 * (bench.deadline - time.monotonic())
    known = _read_rows(bench.folder / _ZERO)
    plans = {LayerPlan(n := candidates[0].plan.num_base_layers, tuple(range(n))), *(one.plan for one in candidates)}
    advance(sum(plan.text in known for plan in plans))
    ordered = sorted(plans, key=lambda plan: (not _is_virtual(plan), plan.num_target_layers, plan.text))
    missing = [plan for plan in ordered if plan.text not in known]
    for plan, rows in _losses(bench, missing):
        known[plan.text] = rows
        _write_rows(bench.folder / _ZERO, known)
        advance(1)
        if half is not None and time.monotonic() > half:
            break
    base = Measurement(CONTROL, 0, known[LayerPlan(n, tuple(range(n))).text])
    found = [Measurement(one.name, 0, known[one.plan.text]) for one in candidates if one.plan.text in known]
    return [base, *found], [one for one in candidates if one.plan.text not in known]


def _losses(bench: Bench, plans: Sequence[LayerPlan]) -> Iterator[tuple[LayerPlan, tuple[float, ...]]]:
    """Mean loss of each held-out row under each plan; those that cannot be run in memory are written, and removed."""
    rows = torch.from_numpy(bench.text.held_out)
    virtual = [plan for plan in plans if _is_virtual(plan)]
    if virtual:
        tower = find_tower(load_model(bench.base.folder, bench.device))
        first = [place for place, plan in enumerate(virtual) if plan == tower.base_plan]
        for group in ([virtual[place] for place in first], [p for p in virtual if p != tower.base_plan]):
            for place, losses in iterate_losses(tower, group, rows) if group else ():
                yield group[place], tuple(losses.tolist())
        del tower
    for plan in plans:
        if not _is_virtual(plan):
            folder = bench.folder / "tried"
            shutil.rmtree(folder, ignore_errors=True)
            publish_surgery(plan_surgery(bench.base, plan), folder)
            tower = find_tower(load_model(folder, bench.device))
            ((_, losses),) = iterate_losses(tower, [tower.base_plan], rows)
            del tower
            shutil.rmtree(folder)
            yield plan, tuple(losses.tolist())


def _is_virtual(plan: LayerPlan) -> bool:
    return all(init.kind in TRIED for init in plan.inits)


# -- short training ---------------------------------------------------------------------------------------------------


def train_to(bench: Bench, subject: Candidate | str, step: int, *, every: int, keep_state: bool) -> Measurement | None:
    """Train a candidate, or the base as a control, up to ``step`` and measure it; None where time does not allow it.

    A run goes on from the step that it was stopped at; one that was measured there before is only read.

    Args:
        bench: What all share.
        subject: What is trained: a candidate, or one of :data:`CONTROLS`.
        step: Optimiser steps in all.
        every: Steps between measurements.
        keep_state: Whether the run may go on later.
    """
    name = subject if isinstance(subject, str) else subject.name
    run = bench.folder / "runs" / name
    done = measured_steps(run)
    if step in done:
        return Measurement(name, step, done[step])
    num_layers = _num_layers(bench, subject)
    left = step - max(done, default=0)
    if bench.seconds_per_layer_step and bench.is_late(max(bench.seconds_per_layer_step) * num_layers * left):
        return None
    if bench.is_late():
        return None
    run.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    _train(bench, subject, run, step, every, keep_state)
    bench.seconds_per_layer_step.append((time.monotonic() - started) / (num_layers * max(left, 1)))
    return Measurement(name, step, measured_steps(run)[step])


def _num_layers(bench: Bench, subject: Candidate | str) -> int:
    if isinstance(subject, Candidate):
        return subject.plan.num_target_layers
    return find_stack(bench.base.tensors, bench.base.config).num_layers


def _train(bench: Bench, subject: Candidate | str, run: Path, step: int, every: int, keep_state: bool) -> None:
    source, chosen = bench.base.folder, bench.settings
    if isinstance(subject, Candidate):
        source = run / "model"
        if not source.exists():
            publish_surgery(plan_surgery(bench.base, subject.plan), source)
    model = load_model(source, bench.device)
    require_document_mask(model)
    choose_attention(model)
    groups, rates = None, {}
    if isinstance(subject, Candidate) and subject.trains_new_only:
        groups = read_freeze_map(source).groups(name for name, _ in model.named_parameters())
        rates = {"original": GroupRate(0.0), "outside": GroupRate(0.0)}
    head = choose_head(model)

    def evaluate(trained: Any) -> Mapping[str, Any]:
        rows = _row_losses(trained, bench.text, head)
        return {"held_out_loss": sum(rows) / len(rows), "rows": rows}

    settings = TrainSettings(
        Schedule("constant", step, min(chosen.warmup_steps, step - 1)),
        learning_rate=chosen.learning_rate / (3 if subject == GENTLE else 1),
        rows_per_step=chosen.rows_per_step, seed=chosen.seed, rates=rates,
        micro_batch_rows=min(chosen.rows_per_step, 4), eval_every=every, checkpoint_every=step if keep_state else 0,
        precision="mixed" if bench.device.startswith("cuda") else "float32",
    )  # fmt: skip
    train(model, bench.text.training, CausalLM(head), settings, run, groups=groups, evaluate=evaluate,
          label=run.name, progress=bench.progress)  # fmt: skip


def _row_losses(model: Any, text: Text, head: Any) -> list[float]:
    training = model.training
    model.eval()
    with torch.no_grad():
        batches = [text.batch(row) for row in range(len(text.held_out))]
        rows = [float(head.summed_loss(model, batch)) / batch.num_targets for batch in batches]
    model.train(training)
    return rows


def measured_steps(run: Path) -> dict[int, tuple[float, ...]]:
    """Loss of each held-out row by step, of a run as far as it was measured."""
    path = run / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else ()
    return {line["step"]: tuple(line["rows"]) for line in lines if "rows" in line}


def clear(bench: Bench, name: str) -> None:
    """Remove weights and states of a run that is over; its measurements stay."""
    for part in ("state", "model"):
        shutil.rmtree(bench.folder / "runs" / name / part, ignore_errors=True)


def _read_rows(path: Path) -> dict[str, tuple[float, ...]]:
    if not path.exists():
        return {}
    return {plan: tuple(rows) for plan, rows in json.loads(path.read_text(encoding="utf-8")).items()}


def _write_rows(path: Path, rows: Mapping[str, tuple[float, ...]]) -> None:
    write_json(path, {plan: list(values) for plan, values in rows.items()})
