"""The form of a loss curve, and its robust fit.

Loss against x (tokens, or FLOPs) is ``E + A (1 + x / x0) ** -alpha``. At a fixed size the law of Hoffmann et al. 2022
(arXiv:2203.15556, equation 2) is a constant and a falling power of the tokens. A model that was trained before, or
grown from one that was, does not start at infinite loss: it stands where it would have come after x0, as pretraining
counts for fine-tuning in the transfer law of Hernandez et al. 2021 (arXiv:2102.01293). So E + A is the loss at the
start, A what more training can still gain, E where it ends, and x0 how long half of the early gain takes.

The fit minimises Huber's loss (delta 0.001, as Hoffmann et al.) of relative errors, which are those of the log of the
loss to first order. For a given (x0, alpha) the best E and A are a small linear problem, so only two numbers are
searched: on a whole grid of starts, then downhill. NumPy alone; many curves at once, for the bootstrap.

The difference of two runs over the same tokens is fitted by the same form with signs left free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Array: TypeAlias = NDArray[np.float64]

NUM_PARAMETERS = 4
MIN_POINTS = NUM_PARAMETERS + 1  # of different x: with fewer nothing is left over to tell the noise
HUBER_DELTA = 1e-3
_ALPHAS = (0.05, 2.0)  # published exponents of tokens lie between 0.1 and 0.5; above 2 it falls like an exponential
_REACH = 100.0  # x0 is looked for from the smallest x above 0 divided by this to the largest times this
_GRID = 7
_ROUNDS = 60
_REWEIGHTINGS = 4


@dataclass(frozen=True)
class Curves:
    """Fitted curves, one an element of each array of shape [num_curves]: ``end + gain (1 + x / offset) ** -alpha``.

    Attributes:
        end: E, nats per token.
        gain: A, nats per token.
        offset: x0, in units of x.
        alpha: The exponent.
        objective: Mean Huber loss of the relative errors.
    """

    end: Array
    gain: Array
    offset: Array
    alpha: Array
    objective: Array

    def at(self, x: Array) -> Array:
        """Loss of each curve at each x: [num_curves, num_x]."""
        return self.end[:, None] + self.gain[:, None] * _falling(x, self.offset, self.alpha)


def fit(x: Array, values: Array, scale: Array, *, signed: bool = False) -> Curves:
    """Fit a curve to each row of values.

    Args:
        x: Tokens of the points, [num_points], at least 0.
        values: Losses, or differences of losses, in nats per token, [num_curves, num_points].
        scale: What errors are divided by, [num_points]: the losses themselves, so that errors are relative.
        signed: Whether end and gain may be negative, as those of differences; else they are at least 0.

    Raises:
        DataError: Too few different x.
    """
    if len(np.unique(x)) < MIN_POINTS:
        raise DataError(
            f"a curve of {len(np.unique(x))} points", allowed=f"at least {MIN_POINTS} points at different tokens",
            next_step="measure the held-out loss more often (eval_every)",
        )  # fmt: skip
    positive = x[x > 0]
    low = np.log([positive.min() / _REACH, _ALPHAS[0]])
    high = np.log([positive.max() * _REACH, _ALPHAS[1]])
    problem = _Problem(x, values, 1 / scale**2, signed)
    place = _best_start(problem, low, high)
    _descend(problem, place, low, high)
    objective, end, gain, _ = problem.profile(place, num_reweightings=25)
    offset, alpha = np.exp(place).T
    return Curves(end, gain, offset, alpha, objective)


@dataclass(frozen=True)
class _Problem:
    """Points, and the weights of squared errors that make them relative."""

    x: Array
    values: Array
    plain: Array
    signed: bool

    def profile(self, place: Array, num_reweightings: int = _REWEIGHTINGS) -> tuple[Array, Array, Array, Array]:
        """For given (log offset, log alpha) of each curve, or of all: mean Huber loss, the best end and gain, weights.

        Weighted least squares, the weights made again from the errors (Holland and Welsch 1977).
        """
        falling = _falling(self.x, *np.exp(place).T)
        weights = np.broadcast_to(self.plain, self.values.shape)
        for _ in range(num_reweightings):
            end, gain = self._linear(falling, weights)
            errors = np.abs(end[:, None] + gain[:, None] * falling - self.values) * np.sqrt(self.plain)
            weights = self.plain * np.minimum(1.0, HUBER_DELTA / np.maximum(errors, 1e-12))
        small = errors <= HUBER_DELTA
        objective = np.where(small, errors**2 / 2, HUBER_DELTA * (errors - HUBER_DELTA / 2)).mean(1)
        return objective, end, gain, weights

    def _linear(self, falling: Array, weights: Array) -> tuple[Array, Array]:
        """Weighted least squares of ``end + gain * falling``, both at least 0 where they are not signed."""
        total = weights.sum(1)
        mean_f, mean_y = (weights * falling).sum(1) / total, (weights * self.values).sum(1) / total
        centred = falling - mean_f[:, None]
        spread = (weights * centred**2).sum(1)
        gain = (weights * centred * self.values).sum(1) / np.maximum(spread, 1e-300)
        gain = np.where(spread > 1e-12 * total, gain, 0.0)  # else all but flat: no gain could be told from the end
        if self.signed:
            return mean_y - gain * mean_f, gain
        gain = np.maximum(gain, 0.0)
        end = mean_y - gain * mean_f
        alone = (weights * falling * self.values).sum(1) / np.maximum((weights * falling**2).sum(1), 1e-300)
        return np.maximum(end, 0.0), np.where(end < 0, np.maximum(alone, 0.0), gain)


def _best_start(problem: _Problem, low: Array, high: Array) -> Array:
    """The point (log offset, log alpha) of the grid that fits each curve best, [num_curves, 2]."""
    lowest, place = np.full(len(problem.values), np.inf), np.tile(low, (len(problem.values), 1))
    for start in product(*(np.linspace(*ends, _GRID) for ends in zip(low, high, strict=True))):
        objective, *_ = problem.profile(np.asarray([start]), num_reweightings=2)
        better = objective < lowest
        lowest, place[better] = np.where(better, objective, lowest), start
    return place


def _descend(problem: _Problem, place: Array, low: Array, high: Array) -> None:
    """Move each curve's place to the nearest minimum; ``place`` is changed.

    Levenberg and Marquardt's steps on what is left when end and gain are the best for each place (variable projection,
    Golub and Pereyra 1973, with Kaufman's Jacobian); a step that does not go down is damped and tried again.
    """
    damping, active = np.full(len(place), 1e-2), np.arange(len(place))
    for _ in range(_ROUNDS):
        part = replace(problem, values=problem.values[active])
        here = place[active]
        objective, end, gain, weights = part.profile(here)
        step = _step(part, here, end, gain, weights, damping[active])
        there = np.clip(here + step, low, high)
        better = part.profile(there)[0] < objective
        place[active[better]] = there[better]
        damping[active] *= np.where(better, 0.2, 6.0)
        moved = np.abs(there - here).max(1)
        active = active[(moved > 1e-9) & (damping[active] < 1e9)]
        if not len(active):
            return


def _step(problem: _Problem, place: Array, end: Array, gain: Array, weights: Array, damping: Array) -> Array:
    """The step of each curve in (log offset, log alpha), [num_curves, 2]."""
    offset, alpha = np.exp(place).T[..., None]
    ratio, falling = problem.x / offset, _falling(problem.x, offset[:, 0], alpha[:, 0])
    slopes = gain[:, None] * falling * alpha * np.stack([ratio / (1 + ratio), -np.log1p(ratio)])  # [2, curves, points]
    total = weights.sum(1)

    def centre(values: Array) -> Array:
        return values - ((weights * values).sum(-1) / total)[..., None]

    line = centre(falling)
    length = np.maximum((weights * line**2).sum(-1), 1e-300)
    left = centre(slopes)
    left = left - ((weights * left * line).sum(-1) / length)[..., None] * line
    missing = problem.values - end[:, None] - gain[:, None] * falling
    pull = (weights * left * missing).sum(-1)  # [2, curves]
    square, cross = (weights * left**2).sum(-1) * (1 + damping) + 1e-300, (weights * left[0] * left[1]).sum(-1)
    determinant = np.maximum(square[0] * square[1] - cross**2, 1e-300)
    found = np.stack([square[1] * pull[0] - cross * pull[1], square[0] * pull[1] - cross * pull[0]]) / determinant
    return np.clip(found.T, -1.0, 1.0)


def _falling(x: Array, offset: Array, alpha: Array) -> Array:
    """``(1 + x / offset) ** -alpha``, [num_curves, num_x]."""
    return np.exp(-alpha[:, None] * np.log1p(x[None] / offset[:, None]))
