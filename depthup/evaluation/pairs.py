"""The difference between two models, item by item: paired where both answered the same items, and said where not.

Two models find the same questions hard, so most of what varies from item to item cancels in the differences of a
pair: with a correlation r of their items the standard error falls by about sqrt(1 - r).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .distributions import fair_coin_two_sided, normal_quantile, normal_share, t_quantile, t_two_sided
from .scores import TaskScores, Weighting
from .statistics import (
    Codes,
    Moments,
    Values,
    detectable_difference,
    difference_error,
    group_codes,
    is_binary,
    items_needed,
    mean_of,
    moments_of,
    sample_moments,
)

_GATHERED = 4_000_000  # numbers held at once while items are drawn


@dataclass(frozen=True)
class Difference:
    """How far a model is from the baseline, on one task or on the mean of all.

    Attributes:
        of: Task, or suite.
        difference: Model minus baseline, a share.
        standard_error: Of the difference.
        margin: Half the width of the interval of Student's t: what stands behind ±.
        low: Lower end of the bootstrap interval (BCa).
        high: Upper end.
        p_value: Chance of a difference at least as large where there is none.
        test: Where ``p_value`` comes from.
        paired: Whether every item has its counterpart.
        num_items: Items of the model.
        correlation: Of the items of both models; None where unpaired, or where one of them is constant.
        detectable: Smallest true difference that these items find 4 times in 5.
        items_needed: Items with which a difference of this size would be found 4 times in 5.
    """

    of: str
    difference: float
    standard_error: float
    margin: float
    low: float
    high: float
    p_value: float
    test: str
    paired: bool
    num_items: int
    correlation: float | None
    detectable: float
    items_needed: float


@dataclass(frozen=True)
class _Sample:
    """Numbers whose mean (over groups or not) is part of a difference; ``sign`` is -1 for the baseline's own."""

    values: Values
    codes: Codes | None
    weighting: Weighting
    sign: int = 1


@dataclass(frozen=True)
class _Part:
    """One task: what is known of its difference, and the samples that make it (none where only totals are known)."""

    moments: Moments
    samples: tuple[_Sample, ...]


def order_like(items: Sequence[str], reference: Sequence[str]) -> list[int] | None:
    """Where each item of ``reference`` stands in ``items``; None unless both hold the same, as often.

    An item that stands twice (some benchmarks repeat a question) is paired in the order in which it stands.
    """
    if len(items) != len(reference) or not items:
        return None
    places = {key: i for i, key in enumerate(_numbered(items))}
    found = [places.get(key) for key in _numbered(reference)]
    return None if None in found else [place for place in found if place is not None]


def _numbered(items: Sequence[str]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    keys = []
    for item in items:
        keys.append((item, seen[item]))
        seen[item] += 1
    return keys


def differences(
    baseline: Sequence[TaskScores], model: Sequence[TaskScores], *, suite: str | None = None, alpha: float = 0.05,
    power: float = 0.8, seed: int = 0, num_draws: int = 10_000,
) -> tuple[Difference, ...]:  # fmt: skip
    """Compare a model with the baseline on each task, and with a ``suite`` on the mean of all.

    Tests: McNemar's, exact, for paired items of 0 or 1 that count alike (McNemar 1947); else Student's t of the paired
    differences; Welch's t for items that are not paired. The mean of all has a t of its standard error. Intervals:
    bias-corrected and accelerated bootstrap over items within tasks and groups (Efron 1987), seeded; each task has
    draws of its own, so one task more changes no other.

    Args:
        baseline: Its tasks.
        model: The same tasks in the same order.
        suite: Name of the mean over all tasks; None leaves it out.
        alpha: 1 - confidence of intervals; also the level for which ``detectable`` holds.
        power: For ``detectable`` and ``items_needed``.
        seed: Of the bootstrap.
        num_draws: Of the bootstrap.
    """
    parts, draws, rows, levels = [], [], [], (alpha, power)
    for first, second in zip(baseline, model, strict=True):
        part, paired, correlation = _part(first, second)
        drawn = _draws(part, num_draws, np.random.default_rng([seed, zlib.crc32(first.task.encode())]))
        tested = _test(first, second, part, paired)
        interval = _bca(drawn, part.moments.mean, _influence([part]), alpha)
        rows.append(_row(first.task, part.moments, interval, tested, second.num_items, paired, correlation, levels))
        parts.append(part)
        draws.append(drawn)
    if suite is not None:
        total = mean_of([part.moments for part in parts])
        interval = _bca(np.mean(draws, axis=0), total.mean, _influence(parts), alpha)
        paired, num_items = all(row.paired for row in rows), sum(row.num_items for row in rows)
        tested = ("t of the standard error", _t_test(total))
        rows.append(_row(suite, total, interval, tested, num_items, paired, None, levels))
    return tuple(rows)


def _row(
    of: str, moments: Moments, interval: tuple[float, float], tested: tuple[str, float], num_items: int, paired: bool,
    correlation: float | None, levels: tuple[float, float],
) -> Difference:  # fmt: skip
    error, (alpha, power) = moments.standard_error, levels
    return Difference(
        of=of,
        difference=moments.mean,
        standard_error=error,
        margin=error * t_quantile(1 - alpha / 2, moments.degrees),
        low=interval[0],
        high=interval[1],
        p_value=tested[1],
        test=tested[0],
        paired=paired,
        num_items=num_items,
        correlation=correlation,
        detectable=detectable_difference(error, alpha=alpha, power=power),
        items_needed=items_needed(moments.mean, error, num_items, alpha=alpha, power=power),
    )


def _part(baseline: TaskScores, model: TaskScores) -> tuple[_Part, bool, float | None]:
    """The difference on a task, whether it is paired, and the correlation of the items."""
    order = order_like(model.items, baseline.items)
    if order is None:
        first, second = moments_of(baseline), moments_of(model)
        error = difference_error(first.standard_error, second.standard_error)
        degrees = mean_of([first, second]).degrees
        samples = tuple(_sample(task, sign) for task, sign in ((baseline, -1), (model, 1)) if task.values)
        moments = Moments(second.mean - first.mean, error, degrees)
        return _Part(moments, samples if len(samples) == 2 else ()), False, None
    before, after = np.asarray(baseline.values, float), np.asarray(model.values, float)[order]
    codes = group_codes(baseline.groups)
    moments = sample_moments(after - before, codes, baseline.weighting)
    varies = before.std() > 0 and after.std() > 0
    correlation = float(np.corrcoef(before, after)[0, 1]) if varies else None
    return _Part(moments, (_Sample(after - before, codes, baseline.weighting),)), True, correlation


def _sample(task: TaskScores, sign: int) -> _Sample:
    return _Sample(np.asarray(task.values, float), group_codes(task.groups), task.weighting, sign)


def _test(baseline: TaskScores, model: TaskScores, part: _Part, paired: bool) -> tuple[str, float]:
    alike = baseline.weighting == "items" or not baseline.groups
    if paired and alike and is_binary(baseline) and is_binary(model):
        values = part.samples[0].values
        return "McNemar, exact", fair_coin_two_sided(int((values > 0).sum()), int((values < 0).sum()))
    return "paired t" if paired else "Welch's t", _t_test(part.moments)


def _t_test(moments: Moments) -> float:
    if moments.standard_error == 0:
        return 1.0 if moments.mean == 0 else 0.0
    return t_two_sided(moments.mean / moments.standard_error, moments.degrees)


# -- the bootstrap ----------------------------------------------------------------------------------------------------


def _draws(part: _Part, num_draws: int, generator: np.random.Generator) -> Values:
    """The difference in ``num_draws`` sets of items drawn with replacement, ``(num_draws,)``."""
    if not part.samples:  # only totals are known
        return generator.normal(part.moments.mean, part.moments.standard_error, num_draws)
    total = np.zeros(num_draws)
    for sample in part.samples:
        total += sample.sign * resampled_means(sample.values, sample.codes, sample.weighting, num_draws, generator)
    return total


def resampled_means(
    values: Values, codes: Codes | None, weighting: Weighting, num_draws: int, generator: np.random.Generator
) -> Values:
    """Means of ``num_draws`` samples of the items, drawn with replacement within each group, ``(num_draws,)``.

    Where values repeat, as 0 and 1 do, what counts is how often each is drawn: one multinomial draw a sample.
    """
    groups = [values] if codes is None else [values[codes == code] for code in range(int(codes.max()) + 1)]
    total = np.zeros(num_draws)
    for members in groups:
        weight = len(members) / len(values) if weighting == "items" else 1 / len(groups)
        distinct, counts = np.unique(members, return_counts=True)
        if len(distinct) * 8 <= len(members):
            drawn = generator.multinomial(len(members), counts / len(members), num_draws)
            total += weight * (drawn @ distinct) / len(members)
        else:
            rows = max(1, _GATHERED // len(members))
            for begin in range(0, num_draws, rows):
                size = (min(rows, num_draws - begin), len(members))
                total[begin : begin + size[0]] += weight * members[generator.integers(len(members), size=size)].mean(1)
    return total


def _influence(parts: Sequence[_Part]) -> Values:
    """How much each item moves the mean of the parts."""
    moved = [np.zeros(1)]
    for part in parts:
        for sample in part.samples:
            codes = np.zeros(len(sample.values), np.int64) if sample.codes is None else sample.codes
            sizes = np.bincount(codes)
            weights = 1 / len(sample.values) if sample.weighting == "items" else 1 / (len(sizes) * sizes[codes])
            means = np.bincount(codes, sample.values) / sizes
            moved.append(sample.sign * weights * (sample.values - means[codes]) / len(parts))
    return np.concatenate(moved)


def _bca(draws: Values, mean: float, influence: Values, alpha: float) -> tuple[float, float]:
    """Bias-corrected and accelerated percentile interval (Efron 1987)."""
    squares = float((influence**2).sum())
    acceleration = float((influence**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    slack = 1e-12 * max(1.0, abs(mean))  # sums of the same numbers in another order
    below = float((draws < mean - slack).mean() + (np.abs(draws - mean) <= slack).mean() / 2)
    if not 0 < below < 1:
        return float(draws.min()), float(draws.max())
    bias = normal_quantile(below)
    shares = []
    for share in (alpha / 2, 1 - alpha / 2):
        moved = bias + normal_quantile(share)
        shares.append(normal_share(bias + moved / (1 - acceleration * moved)))
    low, high = np.quantile(draws, shares)
    return float(low), float(high)
