"""Fits with their intervals, and where one curve passes another.

Intervals are percentiles of refits to losses drawn anew: the fitted curve plus noise as large as the errors that it
left. With few points that size is itself uncertain, so each draw divides it by the root of a chi-squared over its
degrees of freedom (Student's way); without it five points would pass for certainty. Where a run has several seeds, what
their curves have in common differs from seed to seed, too, and is drawn as an offset of each seed.

Two runs over the same tokens share their held-out text and often the order of their data, and with them much noise, as
they share the bend that a decaying rate gives. So their difference is fitted, not each alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .form import MIN_POINTS, NUM_PARAMETERS, Array, Curves, fit
from .runs import Run

Axis = Literal["tokens", "flops"]
_MISFIT_SHARE = 100.0  # an error of 5 % of the difference counts as one of 0.05 % of the loss
_NUM_PLACES = 600  # tokens at which two curves are compared, evenly spaced in their logarithm


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; an infinite one is never reached."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class FittedRun:
    """A run and its curve.

    Attributes:
        run: The points.
        curve: The fit, one curve.
        draws: The refits.
        error: Standard deviation of relative errors around the fit: noise, and what the form misses.
        confidence: Of all intervals.
    """

    run: Run
    curve: Curves
    draws: Curves
    error: float
    confidence: float

    def loss_at(self, tokens: float) -> Interval:
        """Loss after so many tokens, nats per token."""
        x = np.asarray([tokens])
        return _interval(self.curve.at(x)[0, 0], self.draws.at(x)[:, 0], self.confidence)

    def parameter(self, name: Literal["end", "gain", "offset", "alpha"]) -> Interval:
        """A parameter of the curve."""
        return _interval(float(getattr(self.curve, name)[0]), getattr(self.draws, name), self.confidence)

    def band(self, tokens: Array) -> tuple[Array, Array, Array]:
        """The curve and the ends of its pointwise band."""
        low, high = np.quantile(self.draws.at(tokens), _ends(self.confidence), axis=0)
        return self.curve.at(tokens)[0], low, high


@dataclass(frozen=True)
class BreakEven:
    """From where on one run lies below another.

    Attributes:
        challenger: Name of the run that is asked about.
        reference: Name of the other.
        axis: What both are compared at: equal tokens, or equal training FLOPs.
        paired: Whether their difference was fitted, as of runs over the same tokens.
        at: Tokens or FLOPs from which on the challenger is below, up to ``limit``; infinite: it is not below there.
        share: Of the refits, how many cross up to ``limit``.
        difference: Challenger minus reference at ``measured``, nats per token; below 0 the challenger is better.
        measured: The largest tokens or FLOPs at which both were measured: beyond it the curves are extrapolated.
        limit: As far as was looked.
    """

    challenger: str
    reference: str
    axis: Axis
    paired: bool
    at: Interval
    share: float
    difference: Interval
    measured: float
    limit: float

    @property
    def is_extrapolated(self) -> bool:
        return self.measured < self.at.estimate < np.inf

    @property
    def leader(self) -> str | None:
        """The run whose curve is lower at the end of the data by more than the interval; None: not to be told."""
        if self.difference.low <= 0 <= self.difference.high:
            return None
        return self.challenger if self.difference.high < 0 else self.reference


def fit_run(run: Run, *, num_draws: int = 1000, confidence: float = 0.95, seed: int = 0) -> FittedRun:
    """Fit one run.

    Raises:
        DataError: Fewer than five different tokens.
    """
    tokens, losses, seeds = (np.asarray(value, float) for value in (run.tokens, run.losses, run.seeds))
    curve = fit(tokens, losses[None], losses)
    expected = curve.at(tokens)[0]
    errors = (losses - expected) / losses
    noise = _drawn_noise(errors, seeds, num_draws, np.random.default_rng(seed))
    draws = fit(tokens, expected * np.exp(noise), losses)
    return FittedRun(run, curve, draws, _sigma(errors), confidence)


@dataclass(frozen=True)
class Pair:
    """Two fitted runs.

    Attributes:
        challenger: The one that is asked about.
        reference: The other, such as the control.
        gap: Challenger minus reference at equal tokens: the fit, then the draws; None where too few points are shared.
        last_gap: The same as measured at the last tokens that both have (mean of seeds), and these tokens; None where
            they share none.
    """

    challenger: FittedRun
    reference: FittedRun
    gap: Curves | None
    last_gap: tuple[float, float] | None

    def differences(self, ours: Array, theirs: Array) -> Array:
        """Challenger minus reference at their tokens: the fit, then the draws, [1 + num_draws, num_x]."""
        reference = joined(self.reference.curve, self.reference.draws)
        if self.gap is None:
            return joined(self.challenger.curve, self.challenger.draws).at(ours) - reference.at(theirs)
        if np.array_equal(ours, theirs):
            return self.gap.at(ours)
        return self.gap.at(ours) + reference.at(ours) - reference.at(theirs)


def compare_runs(challenger: FittedRun, reference: FittedRun, *, seed: int = 0) -> Pair:
    """Fit the difference of two runs where they share at least five tokens, and most of them."""
    shared = _shared(challenger.run, reference.run)
    if not len(shared):
        return Pair(challenger, reference, None, None)
    tokens, gaps, losses, seeds = shared.T
    last = (float(tokens.max()), float(gaps[tokens == tokens.max()].mean()))
    count = len(np.unique(tokens))
    if count < MIN_POINTS or count < 0.8 * len(set(challenger.run.tokens)):
        return Pair(challenger, reference, None, last)
    found, scale = _fitted_gap(tokens, gaps, losses)
    expected = found.at(tokens)[0]
    rng, num_draws = np.random.default_rng(seed + 1), len(reference.draws.end)
    noise = _drawn_noise((gaps - expected) / scale, seeds, num_draws, rng)
    draws = fit(tokens, expected + noise * scale, scale, signed=True)
    return Pair(challenger, reference, joined(found, draws), last)


def _fitted_gap(tokens: Array, gaps: Array, losses: Array) -> tuple[Curves, Array]:
    """The fit of a difference, and what its errors are in proportion to, [num_points].

    That is the loss, as of noise; or, where it makes the errors more likely (normal ones), also a share of the
    difference itself: while a seam is repaired the difference is large, and no single power describes it.
    """
    tried = []
    for scale in (losses, np.hypot(losses, _MISFIT_SHARE * gaps)):
        found = fit(tokens, gaps[None], scale, signed=True)
        sigma = _sigma((gaps - found.at(tokens)[0]) / scale)
        tried.append((len(gaps) * np.log(max(sigma, 1e-12)) + float(np.log(scale).sum()), found, scale))
    _, found, scale = min(tried, key=lambda one: one[0])
    return found, scale


def _shared(challenger: Run, reference: Run) -> Array:
    """(tokens, difference, loss, seed) of each point that both have: where no seed is shared, of the means of seeds."""
    ours, theirs = ({(s, t): y for s, t, y in zip(run.seeds, run.tokens, run.losses, strict=True)}
                    for run in (challenger, reference))  # fmt: skip
    if not ours.keys() & theirs.keys():
        ours, theirs = _seed_means(challenger), _seed_means(reference)
    rows = [(t, loss - theirs[s, t], loss, s) for (s, t), loss in ours.items() if (s, t) in theirs]
    return np.asarray(rows, float).reshape(-1, 4)


def _seed_means(run: Run) -> dict[tuple[int, float], float]:
    groups: dict[float, list[float]] = {}
    for tokens, loss in zip(run.tokens, run.losses, strict=True):
        groups.setdefault(tokens, []).append(loss)
    return {(0, tokens): sum(losses) / len(losses) for tokens, losses in groups.items()}


def break_even(pair: Pair, axis: Axis = "tokens", *, reach: float = 10.0) -> BreakEven:
    """Where the challenger of a pair passes the reference.

    Args:
        pair: The two.
        axis: ``flops`` needs the FLOPs of both runs.
        reach: How many times the data is looked ahead.
    """
    runs = (pair.challenger.run, pair.reference.run)
    ours, theirs = (1.0 if axis == "tokens" else run.flops_per_token or np.nan for run in runs)
    assert ours > 0 and theirs > 0, "the caller asks for FLOPs only where they are known"
    first = max(min(t for t in run.tokens if t > 0) * each for run, each in zip(runs, (ours, theirs), strict=True))
    measured = min(run.most_tokens * each for run, each in zip(runs, (ours, theirs), strict=True))
    x = np.unique([*np.geomspace(min(first, measured), reach * measured, _NUM_PLACES), measured])
    differences = pair.differences(x / ours, x / theirs)
    at = np.asarray([_crossing(x, row) for row in differences])
    place, confidence = int(np.searchsorted(x, measured)), pair.reference.confidence
    return BreakEven(
        runs[0].name, runs[1].name, axis, pair.gap is not None, _interval(at[0], at[1:], confidence),
        float(np.isfinite(at[1:]).mean()), _interval(differences[0, place], differences[1:, place], confidence),
        float(measured), float(reach * measured),
    )  # fmt: skip


def joined(*curves: Curves) -> Curves:
    """Curves one after another."""
    names = ("end", "gain", "offset", "alpha", "objective")
    return Curves(*(np.concatenate([getattr(each, name) for each in curves]) for name in names))


def _crossing(x: Array, difference: Array) -> float:
    """The x from which on the difference is below 0 to the end; 0 if it always is, infinite if it is not at the end."""
    above = np.flatnonzero(difference >= 0)
    if not len(above):
        return 0.0
    last = above[-1]
    if last + 1 == len(x):
        return float(np.inf)
    share = difference[last] / max(difference[last] - difference[last + 1], 1e-300)
    return float(np.exp(np.log(x[last]) + share * (np.log(x[last + 1]) - np.log(x[last]))))


def _drawn_noise(errors: Array, seeds: Array, num_draws: int, rng: np.random.Generator) -> Array:
    """Noise like the errors that a fit left, [num_draws, num_points]: of each point, and common to a seed's points."""
    names, place = np.unique(seeds, return_inverse=True)
    counts = np.bincount(place)
    means = np.bincount(place, errors) / counts if len(names) > 1 else np.zeros(1)
    degrees = max(len(errors) - NUM_PARAMETERS - (len(names) - 1), 1)
    within = float(((errors - means[place]) ** 2).sum() / degrees)
    noise = rng.standard_normal((num_draws, len(errors))) * np.sqrt(within * _inflation(degrees, num_draws, rng))
    if len(names) > 1:
        between = max(float(means.var(ddof=1)) - within / counts.mean(), 0.0)
        inflation = _inflation(len(names) - 1, num_draws, rng)
        noise += (rng.standard_normal((num_draws, len(names))) * np.sqrt(between * inflation))[:, place]
    return np.clip(noise, -0.5, 0.5)


def _inflation(degrees: int, num_draws: int, rng: np.random.Generator) -> Array:
    return degrees / np.maximum(rng.chisquare(degrees, (num_draws, 1)), 1e-3)


def _sigma(errors: Array) -> float:
    return float(np.sqrt((errors**2).sum() / max(len(errors) - NUM_PARAMETERS, 1)))


def _ends(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _interval(estimate: float, draws: Array, confidence: float) -> Interval:
    low, high = np.quantile(draws, _ends(confidence), method="nearest")
    return Interval(float(estimate), float(low), float(high))


def pairs_of(runs: Sequence[FittedRun], control: str | None) -> list[tuple[FittedRun, FittedRun]]:
    """Which runs are compared: each with the control, or each with each where there is none."""
    if control is None:
        return [(one, other) for place, other in enumerate(runs) for one in runs[place + 1 :]]
    reference = next(run for run in runs if run.run.name == control)
    return [(run, reference) for run in runs if run is not reference]
