"""One training loop for every objective: accumulate, clip, step, measure, save; interrupted at any step, it resumes."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..data.packing import Batch, Rows
from ..errors import TrainingError
from .checkpointing import load_state, save_state
from .metrics import MetricsFile, read_metrics
from .objectives import Objective
from .schedule import Schedule


@dataclass(frozen=True)
class TrainSettings:
    """What a run does.

    Attributes:
        schedule: Number of steps and the learning rate's shape.
        learning_rate: Peak rate.
        rows_per_step: Rows in a global batch.
        weight_decay: Decoupled decay of matrices (AdamW, arXiv:1711.05101); vectors, norms and biases have none.
        betas: AdamW's.
        clip_norm: Largest norm of the gradient over all parameters.
        seed: Order of rows.
        eval_every: Steps between held-out losses; 0 for start and end only.
        micro_batch_rows: Rows in one forward pass; changes memory and speed, not the result.
        checkpoint_every: Steps between saved states, the last step included; 0 for interruptions only.
        autocast: Compute in bfloat16 where it is safe, parameters stay float32.
    """

    schedule: Schedule
    learning_rate: float
    rows_per_step: int
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    seed: int = 0
    eval_every: int = 0
    micro_batch_rows: int = 4
    checkpoint_every: int = 0
    autocast: bool = False


@dataclass(frozen=True)
class TrainResult:
    """Totals of a finished run."""

    num_steps: int
    num_tokens_seen: int
    held_out_loss: float | None


def train(
    model: nn.Module,
    rows: Rows,
    objective: Objective,
    settings: TrainSettings,
    folder: Path,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    label: str = "train",
    progress: bool = True,
) -> TrainResult:
    """Train ``model`` in place.

    Writes ``metrics.jsonl`` (a line for each step and each held-out loss) and ``state/`` into ``folder``. Called again
    with the same arguments and folder, it goes on where it was stopped and ends as if it were not, on CPU to the bit.

    Args:
        model: On its device, parameters in float32.
        rows: Training text.
        objective: Summed loss of a batch.
        settings: See :class:`TrainSettings`.
        folder: An existing folder.
        evaluate: Mean held-out loss of a model.
        label: Name on the progress bar, shown if ``progress``.

    Raises:
        TrainingError: The loss or the gradient is not finite; the last saved state stays.
        KeyboardInterrupt: On SIGINT or SIGTERM, with the state saved.
    """
    optimizer, states = make_optimizer(model, settings), folder / "state"
    counters = load_state(states, model, optimizer) or {"step": 0, "tokens_seen": 0}
    step, tokens_seen = counters["step"], counters["tokens_seen"]
    num_steps = settings.schedule.num_steps
    metrics = MetricsFile(folder / "metrics.jsonl", resumed_step=step)

    def measure() -> None:
        if evaluate is not None:
            metrics.write({"step": step, "tokens_seen": tokens_seen, "held_out_loss": evaluate(model)})

    bar = tqdm(total=num_steps, initial=step, desc=label, unit="step", disable=not progress, dynamic_ncols=True)
    with _stop_requests() as stop, contextlib.closing(metrics), bar:
        if step == 0:
            measure()
            bar.unpause()
        while step < num_steps:
            batch = rows.batch_of_step(step, settings.rows_per_step, settings.seed)
            values = train_step(model, optimizer, objective, batch, settings, step)
            step, tokens_seen = step + 1, tokens_seen + batch.num_targets
            metrics.write({"step": step, "tokens_seen": tokens_seen, **values})
            bar.set_postfix(loss=f"{values['loss']:.3f}", tok_s=f"{values['tokens_per_second']:.0f}", refresh=False)
            bar.update()
            if step == num_steps or (settings.eval_every and step % settings.eval_every == 0):
                measure()
            due = settings.checkpoint_every and (step % settings.checkpoint_every == 0 or step == num_steps)
            if due or stop():
                save_state(states, model, optimizer, {"step": step, "tokens_seen": tokens_seen})
                if stop():
                    raise KeyboardInterrupt
    measured = [line["held_out_loss"] for line in read_metrics(metrics.path) if "held_out_loss" in line]
    return TrainResult(num_steps, tokens_seen, measured[-1] if measured else None)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    settings: TrainSettings,
    step: int,
) -> dict[str, float]:
    """One optimiser update on a global batch; each target token has the same weight, however rows are split.

    Returns:
        ``loss`` (nats per target token), ``learning_rate``, ``grad_norm`` (before clipping), ``tokens_per_second``.

    Raises:
        TrainingError: Loss or gradient norm is not finite; no parameter was changed.
    """
    started = time.perf_counter()
    model.train()
    rate = settings.learning_rate * settings.schedule.factor(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for start in range(0, batch.num_rows, settings.micro_batch_rows):
        micro_batch = batch.rows(start, start + settings.micro_batch_rows)
        if micro_batch.num_targets == 0:
            continue
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
            loss = objective(model, micro_batch).loss / batch.num_units
        loss.backward()
        total += loss.detach()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    values = {"loss": total.item(), "learning_rate": rate, "grad_norm": float(grad_norm)}
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        optimizer.zero_grad()
        raise TrainingError(
            f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; the update was not applied",
            next_step="lower learning_rate, or look at the text of this step",
        )
    optimizer.step()
    optimizer.zero_grad()
    return values | {"tokens_per_second": batch.num_targets / (time.perf_counter() - started)}


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW; only parameters with two or more dimensions decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request that the loop answers between steps; a second one is obeyed."""
    requested = False

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        tqdm.write("stopping after this step, the state will be saved (again to stop at once)")

    previous: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread: signals are the caller's
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
