"""Guard against updates that would do harm: decided on the device, without waiting for it.

A step is skipped when its loss or its gradient norm is not finite, or lies more than some standard deviations above
the mean of the last steps (the skip-step rule of OLMo-core, computed over a ring of values that stays on the device).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Guard:
    """Judges each step by its loss and gradient norm.

    Args:
        device: Where loss and norm are.
        window: Steps that mean and deviation are taken over; spikes are judged once so many were good.
        sigmas: Standard deviations above the mean from which a value is a spike.
    """

    def __init__(self, device: torch.device, window: int = 128, sigmas: float = 6.0) -> None:
        self.window, self.sigmas = window, sigmas
        self.values = torch.zeros(2, window, dtype=torch.float32, device=device)
        self.num_good = torch.zeros((), dtype=torch.int64, device=device)

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1.0 if the step must be skipped, else 0.0: what torch's fused optimizers take as ``found_inf``, a scalar.

        Args:
            loss: The global batch's mean loss, a scalar.
            norm: The gradient's norm before clipping, a scalar.
        """
        now = torch.stack([loss.detach().float(), norm.detach().float()])
        mean, deviation = self.values.mean(1), self.values.std(1, correction=0)
        is_spike = (now > mean + self.sigmas * deviation.clamp_min(1e-6)).any() & (self.num_good >= self.window)
        is_good = now.isfinite().all() & ~is_spike
        place = (self.num_good % self.window).expand(2, 1)
        self.values.scatter_(1, place, torch.where(is_good, now.nan_to_num()[:, None], self.values.gather(1, place)))
        self.num_good += is_good
        return (~is_good).float()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"values": self.values, "num_good": self.num_good}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        self.values.copy_(state["values"])
        self.num_good.copy_(state["num_good"])
