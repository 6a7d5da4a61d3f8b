"""Learning-rate schedules: the factor on the peak rate at a step. Pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["cosine", "wsd", "linear", "constant"]


@dataclass(frozen=True)
class Schedule:
    """A linear warmup, then a named shape.

    Attributes:
        name: ``cosine`` (Loshchilov & Hutter 2017, arXiv:1608.03983), ``wsd`` (warmup, stable, decay: MiniCPM, Hu et
            al. 2024, arXiv:2404.06395, with the 1 - sqrt decay of Hägele et al. 2024, arXiv:2405.18392), ``linear``
            or ``constant``.
        num_steps: All steps.
        num_warmup_steps: Steps in which the factor rises from 1 / num_warmup_steps to 1.
        decay_share: Share of all steps that ``wsd`` spends on its decay.
        final_factor: Factor that the last step comes down to.
    """

    name: ScheduleName
    num_steps: int
    num_warmup_steps: int = 0
    decay_share: float = 0.2
    final_factor: float = 0.0

    def factor(self, step: int) -> float:
        """The factor on the peak learning rate at ``step``, 0 <= step < num_steps."""
        if step < self.num_warmup_steps:
            return (step + 1) / self.num_warmup_steps
        left = self.num_steps - self.num_warmup_steps
        progress = (step + 1 - self.num_warmup_steps) / left if left else 1.0
        return self.final_factor + (1 - self.final_factor) * SHAPES[self.name](progress, self)


def _wsd(progress: float, schedule: Schedule) -> float:
    left = schedule.num_steps - schedule.num_warmup_steps
    decay = min(schedule.decay_share * schedule.num_steps / left, 1.0) if left else 1.0
    return 1.0 if progress <= 1 - decay else 1 - math.sqrt((progress - (1 - decay)) / decay)


# Progress after the warmup, from above 0 to 1 -> height from 1 to 0.
SHAPES: dict[str, Callable[[float, Schedule], float]] = {
    "cosine": lambda progress, _: 0.5 * (1 + math.cos(math.pi * progress)),
    "wsd": _wsd,
    "linear": lambda progress, _: 1 - progress,
    "constant": lambda progress, _: 1.0,
}
