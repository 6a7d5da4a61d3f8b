"""Runs drawn from curves that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from depthup.fitting.runs import Run

CONTROL = (2.5, 0.5, 2e6, 0.3)  # end, gain, offset, alpha
CROSSING = (2.4, 0.9, 1e6, 0.35)  # above the control at first, below it at last
PARALLEL = (2.52, 0.5, 2e6, 0.3)  # 0.02 above the control everywhere


def loss(curve: Sequence[float], tokens: float) -> float:
    end, gain, offset, alpha = curve
    return float(end + gain * (1 + tokens / offset) ** -alpha)


def planted(
    name: str, curve: Sequence[float], *, noise: float = 3e-4, num_points: int = 16, last: float = 1e8, seed: int = 0,
    seeds: Sequence[int] = (0,), between: float = 0.0, flops: float | None = None,
) -> Run:  # fmt: skip
    """Points of a curve with relative noise: of each point, and ``between`` for each seed's points together."""
    rng = np.random.default_rng((seed, *name.encode()))
    tokens = np.geomspace(1e5, last, num_points)
    points = [
        (t, loss(curve, t) * (1 + noise * rng.standard_normal() + shift), s)
        for s in seeds for shift in [between * rng.standard_normal()] for t in tokens
    ]  # fmt: skip
    tokens_, losses, of = zip(*points, strict=True)
    return Run(name, tokens_, losses, of, flops)
