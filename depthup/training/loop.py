"""One training loop for every objective: step, guard, measure, save; interrupted anywhere, it resumes."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.packing import Batch, Rows
from ..errors import Stopped, TrainingError
from . import attention
from .checkpointing import States
from .guard import Guard
from .metrics import Logger, MetricsFile, read_metrics
from .objectives import Objective, choose_attention
from .optimizers import make_optimizer, narrow, take_masters
from .parallel import World, alone, lay_out
from .settings import TrainResult, TrainSettings
from .step import train_step

_MAX_ROLLBACKS = 3
_BY_FILE = int(getattr(signal, "SIGUSR1", signal.SIGTERM))


@dataclass
class _Run:
    """What changes while a run goes on; ``counters`` is what is saved of it."""

    step: int = 0
    tokens_seen: int = 0
    num_skipped: int = 0
    data_shift: int = 0  # steps whose rows were passed over, after rollbacks
    num_rollbacks: int = 0
    skips_in_a_row: int = field(default=0, compare=False)

    def counters(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in _COUNTERS}


_COUNTERS = ("step", "tokens_seen", "num_skipped", "data_shift", "num_rollbacks")


def train(
    model: nn.Module,
    rows: Rows | Callable[[nn.Module], Rows],
    objective: Objective,
    settings: TrainSettings,
    folder: Path,
    *,
    world: World | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    watch: Callable[[dict[str, Any]], Sequence[str]] | None = None,
    begin: Callable[[nn.Module, torch.optim.Optimizer], object] | None = None,
    end: Callable[[nn.Module, torch.optim.Optimizer], object] | None = None,
    loggers: Sequence[Logger] = (),
    label: str = "train",
    progress: bool = True,
) -> TrainResult:
    """Train ``model`` in place.

    Writes ``metrics.jsonl`` (a line for each step and each measurement) and ``state/`` into ``folder``. Called again
    with the same arguments and folder, it goes on where it was stopped and ends as if it were not: on CPU to the bit,
    with another number of ranks within rounding.

    Args:
        model: On its device, whole, parameters in float32; afterwards it is as :func:`lay_out` left it.
        rows: What is trained on; or a function that makes it from the model as it is before its first update, laid
            out and in the type that it is trained in (for the reference of preference training).
        objective: Summed loss of a batch.
        settings: See :class:`TrainSettings`.
        folder: An existing folder, the same for all ranks.
        world: The ranks; this process alone by default.
        groups: Names of parameters by group, for ``settings.rates``.
        evaluate: Figures of a model, ``held_out_loss`` among them; called on every rank.
        watch: Sees each step's figures and returns warnings, which are shown once each.
        begin: Called with the optimizer before the first update of a new run; ``end`` after the last.
        loggers: Also receive each line of the metrics.
        label: Name on the progress bar, shown if ``progress``.

    Raises:
        TrainingError: Updates are skipped again and again, with no saved state to go back to or in vain.
        Stopped: On SIGTERM or SIGUSR1, with the state saved; KeyboardInterrupt on SIGINT.
    """
    world = world or alone(next(model.parameters()).device)
    optimizer, guard = _prepared(model, settings, world, groups), Guard(world.device, sigmas=settings.guard_sigmas)
    if not isinstance(rows, Rows):
        rows = rows(model)
    states = States(folder / "state", model, optimizer, guard, world, settings.num_states)
    run = _Run(**(states.load() or {}))
    if begin is not None and run.step == 0:
        begin(model, optimizer)
    metrics = MetricsFile(folder / "metrics.jsonl", run.step, loggers if world.is_first else (), world.is_first)
    bar = tqdm(total=settings.schedule.num_steps, initial=run.step, desc=label, unit="step",
               disable=not (progress and world.is_first), dynamic_ncols=True)  # fmt: skip
    loop = _Loop(model, rows, objective, settings, world, optimizer, guard, states, run, metrics, bar, evaluate, watch)
    with _stop_requests() as stop, contextlib.closing(metrics), bar, ThreadPoolExecutor(1) as ahead:
        loop.go(stop, ahead)
    if end is not None:
        end(model, optimizer)
    _hand_back(model, optimizer, world)
    return _result(run, metrics)


def _hand_back(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    take_masters(model, optimizer)
    if world.device.type == "cuda":
        gc.collect()  # torch's gathering of states leaves circles that would hold the model in the GPU's memory


def _result(run: _Run, metrics: MetricsFile) -> TrainResult:
    measured = [line["held_out_loss"] for line in read_metrics(metrics.path) if "held_out_loss" in line]
    return TrainResult(run.step, run.tokens_seen, measured[-1] if measured else None, run.num_skipped)


def _prepared(
    model: nn.Module, settings: TrainSettings, world: World, groups: Mapping[str, Sequence[str]] | None
) -> torch.optim.Optimizer:
    """Lay the model out over the ranks, in the type that is trained; its optimizer."""
    mixed = settings.precision == "mixed"
    if world.mesh is not None and settings.precision == "bfloat16":
        narrow(model)
    lay_out(model, world, mixed=mixed, recompute=settings.recompute, compile=settings.compile)
    optimizer = make_optimizer(
        model,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        precision="float32" if world.mesh is not None and mixed else settings.precision,
        groups=groups,
        rates=settings.rates,
    )
    if attention.implementation(model) == attention.NAME:
        chosen = choose_attention(model, narrow=settings.precision != "float32")  # now that weights have their type
        if chosen != attention.NAME and world.is_first:
            tqdm.write(f"attention within documents differs here in {settings.precision}: dense masks are used, slower")
    return optimizer


@dataclass
class _Launched:
    """A step whose figures are still on the device, or on their way from it until ``arrived``."""

    step: int
    values: Tensor
    arrived: torch.cuda.Event | None
    names: list[str]
    learning_rate: float
    num_tokens: int
    tokens_seen: int


@dataclass
class _Loop:
    """The loop's parts in one place; on a GPU each step's figures are read while the next one computes."""

    model: nn.Module
    rows: Rows
    objective: Objective
    settings: TrainSettings
    world: World
    optimizer: torch.optim.Optimizer
    guard: Guard
    states: States
    run: _Run
    metrics: MetricsFile
    bar: Any
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None
    watch: Callable[[dict[str, Any]], Sequence[str]] | None
    warned: set[str] = field(default_factory=set)
    read_at: float = field(default_factory=time.perf_counter)

    def go(self, stop: Callable[[], int], ahead: ThreadPoolExecutor) -> None:
        run, settings, num_steps = self.run, self.settings, self.settings.schedule.num_steps
        pending: _Launched | None = None
        batch = ahead.submit(self._batch, run.step)
        if run.step == 0:
            self._measure()
        self.bar.unpause()
        self.read_at = time.perf_counter()
        while run.step < num_steps:
            launched = self._launch(batch.result(), stop)
            batch = ahead.submit(self._batch, run.step)
            is_last = run.step == num_steps
            measuring = is_last or _is_due(run.step, settings.eval_every)
            due = _is_due(run.step, settings.checkpoint_every) or (is_last and settings.checkpoint_every > 0)
            requested = self._read(pending) if pending else 0
            late = _reads_late(self.world.device) and not (measuring or due or requested)
            if not late:
                requested = self._read(launched) or requested
            pending = launched if late else None
            if run.skips_in_a_row >= settings.max_skips:
                self._roll_back()
                batch, pending, measuring, due = ahead.submit(self._batch, run.step), None, False, False
            due = due or requested > 0
            if measuring:
                self._measure()
                self.read_at = time.perf_counter()
            self.states.poll()
            if due:
                self.states.save(run.counters(), wait=self.world.device.type == "cpu" or bool(requested))
            if requested:
                self.states.finish()
                raise KeyboardInterrupt if requested == signal.SIGINT else Stopped(signal.Signals(requested).name)
        self.states.finish()

    def _batch(self, step: int) -> Batch:
        return self.rows.batch_of_step(step + self.run.data_shift, self.settings.rows_per_step, self.settings.seed)

    def _launch(self, batch: Batch, stop: Callable[[], int]) -> _Launched:
        run, world = self.run, self.world
        values = train_step(self.model, self.optimizer, self.objective, batch, self.settings, run.step,
                            world=world, guard=self.guard)  # fmt: skip
        request = torch.full((), float(stop()), device=world.device)  # a copy from the host would wait for the device
        if world.mesh is not None:  # the largest of the ranks' signals: all stop in the same step
            torch.distributed.all_reduce(request, torch.distributed.ReduceOp.MAX)
        values["stop"] = request
        rate = self.settings.learning_rate * self.settings.schedule.factor(run.step)
        run.step, run.tokens_seen = run.step + 1, run.tokens_seen + batch.num_targets
        names = sorted(values)
        sent, arrived = _sent(torch.stack([values[name].float() for name in names]))
        return _Launched(run.step, sent, arrived, names, rate, batch.num_targets, run.tokens_seen)

    def _read(self, launched: _Launched) -> int:
        """Wait for a step's figures and write them; returns the signal that asks to stop, or 0."""
        if launched.arrived is not None:
            launched.arrived.synchronize()
        values = dict(zip(launched.names, launched.values.tolist(), strict=True))
        now = time.perf_counter()
        per_second, self.read_at = launched.num_tokens / max(now - self.read_at, 1e-9), now
        requested, skipped = int(values.pop("stop")), bool(values.pop("skipped"))
        run = self.run
        run.skips_in_a_row = run.skips_in_a_row + 1 if skipped else 0
        run.num_skipped += skipped
        line: dict[str, Any] = {"step": launched.step, "tokens_seen": launched.tokens_seen, **values}
        line |= {"learning_rate": launched.learning_rate, "tokens_per_second": per_second}
        if self.settings.flops_per_token and self.settings.peak_flops:
            line["mfu"] = per_second * self.settings.flops_per_token / self.settings.peak_flops
        if skipped:  # what was measured, as it was measured; JSON has no word for what is not finite
            line = {key: value if math.isfinite(value) else None for key, value in line.items()} | {"skipped": True}
            self._tell(f"step {launched.step}: loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}: the"
                       " update was not applied")  # fmt: skip
        self.metrics.write(line)
        shown = {"loss": f"{values['loss']:.3f}", "tok_s": f"{per_second:.0f}"}
        if "mfu" in line:
            shown["mfu"] = f"{line['mfu']:.1%}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        for warning in self.watch(line) if self.watch else ():
            if warning not in self.warned:
                self.warned.add(warning)
                self._tell(f"step {launched.step}: {warning}")
        return requested

    def _roll_back(self) -> None:
        """Go back to the last saved state, and on with the rows behind those that were skipped."""
        run = self.run
        self.states.finish()
        bad_step, shift, num_rollbacks, num_skipped = run.step, run.data_shift, run.num_rollbacks, run.num_skipped
        counters = self.states.load() if num_rollbacks < _MAX_ROLLBACKS else None
        if counters is None:
            why = f"after {num_rollbacks} rollbacks" if num_rollbacks else "and no state is saved to go back to"
            raise TrainingError(
                f"{run.skips_in_a_row} steps in a row, up to step {bad_step}, had a loss or gradient that is not finite"
                f" or a spike; the update was not applied, {why}",
                next_step="lower learning_rate, set checkpoint_every, or look at the rows of these steps",
            )
        for name, value in counters.items():
            setattr(run, name, value)
        run.data_shift, run.num_rollbacks = shift + bad_step - run.step, num_rollbacks + 1
        run.num_skipped, run.skips_in_a_row = num_skipped, 0
        self.metrics.cut(run.step)
        self.bar.n = run.step
        self._tell(f"back to step {run.step}, past the rows of {bad_step - counters['step']} steps")

    def _measure(self) -> None:
        if self.evaluate is not None:
            figures = self.evaluate(self.model)
            self.metrics.write({"step": self.run.step, "tokens_seen": self.run.tokens_seen, **figures})

    def _tell(self, text: str) -> None:
        if self.world.is_first:
            tqdm.write(text)


def _reads_late(device: torch.device) -> bool:
    """Whether a step's figures are read after the next one was launched."""
    return device.type == "cuda"


def _sent(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Figures on their way to the host, and what tells that they are there.

    Copied when they are read, they would come behind all that was launched meanwhile: the whole next step.
    """
    if values.device.type != "cuda":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    return host, torch.cuda.current_stream(values.device).record_event()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a request, its number; a second one is obeyed at once.

    A file that ``DEPTHUP_STOP_FILE`` names asks like SIGUSR1: launchers do not hand every signal on.
    """
    file = os.environ.get("DEPTHUP_STOP_FILE")
    requested = 0

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = signal_number
        tqdm.write("stopping after this step, the state will be saved (again to stop at once)")

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread: signals are the caller's
        wanted = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
        previous = {number: signal.signal(number, note) for number in wanted}
    try:
        yield lambda: requested or (_BY_FILE if file and os.path.exists(file) else 0)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
