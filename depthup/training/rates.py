"""Learning-rate range test (Smith 2015, arXiv:1506.01186): train a little at rising rates, see where the loss turns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..data.packing import Rows
from ..errors import TrainingError
from .objectives import Objective
from .optimizers import make_optimizer
from .schedule import Schedule
from .settings import TrainSettings
from .step import train_step

_SMOOTHING = 0.8


@dataclass(frozen=True)
class RangeTest:
    """What a test saw.

    Attributes:
        rates: The rate of each step, rising.
        losses: The loss of each step, before its update, in nats a target (or a pair).
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Running means of the losses."""
        found: list[float] = []
        mean = 0.0
        for number, loss in enumerate(self.losses, 1):
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            found.append(mean / (1 - _SMOOTHING**number))
        return tuple(found)

    @property
    def best(self) -> float:
        """The rate at which the smoothed loss was lowest: above it the loss turns. A peak rate should stay below."""
        smoothed = self.smoothed
        return self.rates[min(range(len(smoothed)), key=smoothed.__getitem__)]

    @property
    def suggested(self) -> float:
        """A third of :attr:`best`, a common and careful choice for a peak rate with warmup."""
        return self.best / 3


def find_rates(
    model: nn.Module,
    rows: Rows,
    objective: Objective,
    settings: TrainSettings,
    *,
    low: float = 1e-6,
    high: float = 1e-1,
    num_steps: int = 40,
    tell: Callable[[int, float, float], object] = lambda step, rate, loss: None,
) -> RangeTest:
    """Run the test; it ends early where the smoothed loss is far above its lowest. The model is as before afterwards.

    Args:
        model: On its device, whole; its weights are put back.
        rows: What it would be trained on.
        objective: Summed loss of a batch.
        settings: Of the run; schedule and learning rate are replaced.
        low: First rate.
        high: Last rate; rates grow by a constant factor.
        num_steps: Steps, one rate each.
        tell: Called after each step with its number, rate and loss.

    Raises:
        TrainingError: The range is empty, or too few steps to see anything.
    """
    if not 0 < low < high or num_steps < 5:
        raise TrainingError(
            f"{num_steps} steps from rate {low:g} to {high:g}", allowed="at least 5 steps, 0 < low < high"
        )
    before = copy.deepcopy(model.state_dict())
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    optimizer = make_optimizer(model, weight_decay=settings.weight_decay, betas=settings.betas, rates=settings.rates)
    rates: list[float] = []
    losses: list[float] = []
    try:
        for step in range(num_steps):
            rate = low * (high / low) ** (step / (num_steps - 1))
            this = replace(settings, schedule=Schedule("constant", num_steps), learning_rate=rate)
            batch = rows.batch_of_step(step, settings.rows_per_step, settings.seed)
            loss = train_step(model, optimizer, objective, batch, this, step)["loss"].item()
            if not math.isfinite(loss):
                break
            rates.append(rate)
            losses.append(loss)
            tell(step, rate, loss)
            smoothed = RangeTest(tuple(rates), tuple(losses)).smoothed
            if step >= 5 and smoothed[-1] > _far_above(smoothed):
                break
    finally:
        model.load_state_dict(before)
        for parameter, needs in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(needs)
    if len(rates) < 5:
        raise TrainingError(f"the loss was not finite at rate {rates[-1] if rates else low:g}", next_step="begin lower")
    return RangeTest(tuple(rates), tuple(losses))


def _far_above(smoothed: Sequence[float]) -> float:
    low, first = min(smoothed), smoothed[0]
    return first + max(0.5 * (first - low), 0.05 * abs(first))
