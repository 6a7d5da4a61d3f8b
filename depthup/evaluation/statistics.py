"""What a score is worth: standard errors, intervals, the error of a mean over tasks, what a sample could show at all.

Scores are shares (0 to 1) here; they become points where they are printed. A standard error says how far the score
would move if the items were drawn anew from the questions that they stand for (Miller 2024, arXiv:2411.00640). Of a
sample of a split one may also ask another question: how far is it from the score on the whole split? Then the finite
population correction applies (``whole_split``): the error shrinks by ``sqrt(1 - n / N)``, to 0 where all items were
answered. To tell which of two models is better the first question is the right one, so it is the default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .distributions import chi_square_above, normal_quantile, t_quantile
from .scores import ModelScores, TaskScores, Weighting

Values = NDArray[np.float64]
Codes = NDArray[np.int64]  # group of each item, from 0 on
LOWER_IS_BETTER = frozenset(
    {"bits_per_byte", "bits_per_token", "loss", "nll", "perplexity", "word_perplexity", "byte_perplexity"}
)


@dataclass(frozen=True)
class Moments:
    """A mean of items, its standard error, and the degrees of freedom of that error."""

    mean: float
    standard_error: float  # NaN where one item stands alone
    degrees: float


@dataclass(frozen=True)
class Estimate:
    """A score with what it is worth.

    Attributes:
        mean: The score.
        standard_error: Of the mean; what lm-eval calls ``stderr``. NaN for a single item.
        low: Lower end of the interval.
        high: Upper end.
        interval: How the interval is made: Wilson's for items of 0 or 1, Student's t for all others.
        num_items: Items answered.
        num_available: Items of the whole split.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    interval: Literal["wilson", "t"]
    num_items: int
    num_available: int

    @property
    def margin(self) -> float:
        """Half the width of the interval: what stands behind ±."""
        return (self.high - self.low) / 2


def estimate(task: TaskScores, *, confidence: float = 0.95, whole_split: bool = False) -> Estimate:
    """The score of a task, its standard error and its interval.

    The standard error is lm-eval's: sample standard deviation / sqrt(n); for a mean over groups of items (the subjects
    of MMLU) pooled within the groups where items count alike, and that of independent means where groups do.

    The interval of items that are 0 or 1 is Wilson's score interval, which keeps its coverage for small n and near 0
    and 1 (Brown, Cai and DasGupta 2001; for language models Bowyer et al. 2025, arXiv:2503.01747). With groups, and
    with ``whole_split``, n in it is the effective sample size mean (1 - mean) / SE², as survey statistics do (Korn and
    Graubard 1998). Other items get Student's t.

    Args:
        task: One task.
        confidence: Of the interval.
        whole_split: Ask for the score on the whole split, of which the items are a sample without replacement.
    """
    moments = moments_of(task)
    left = 1 - min(1.0, task.num_items / max(task.num_available, 1)) if whole_split else 1.0
    error = moments.standard_error * math.sqrt(left)
    if is_binary(task):
        low, high = _wilson(moments.mean, _effective_items(task, moments) / left if left else math.inf, confidence)
        return Estimate(moments.mean, error, low, high, "wilson", task.num_items, task.num_available)
    margin = error * t_quantile(0.5 + confidence / 2, moments.degrees) if moments.degrees > 0 else math.nan
    low, high = moments.mean - margin, moments.mean + margin
    if not is_lower_better(task.metric) and 0 <= moments.mean <= 1:  # a share stays one
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(moments.mean, error, low, high, "t", task.num_items, task.num_available)


def suite_estimate(tasks: Sequence[TaskScores], *, confidence: float = 0.95, whole_split: bool = False) -> Estimate:
    """The plain mean over tasks (H6, where they are its six).

    Tasks are independent samples, so the variance is the sum of theirs over the square of their number; the interval
    is Student's t, with the degrees of freedom of Welch and Satterthwaite.

    Raises:
        ValueError: No tasks, or tasks whose metrics have no common unit (:func:`has_mean`).
    """
    if not has_mean(tasks):
        raise ValueError("no mean over no tasks, nor over metrics of different units")
    parts = [estimate(task, confidence=confidence, whole_split=whole_split) for task in tasks]
    moments = [moments_of(task) for task in tasks]
    errors = [part.standard_error for part in parts]
    total = mean_of([Moments(m.mean, e, m.degrees) for m, e in zip(moments, errors, strict=True)])
    margin = total.standard_error * t_quantile(0.5 + confidence / 2, total.degrees) if total.degrees > 0 else math.nan
    num_items, num_available = (sum(getattr(p, name) for p in parts) for name in ("num_items", "num_available"))
    return Estimate(
        total.mean, total.standard_error, total.mean - margin, total.mean + margin, "t", num_items, num_available
    )


def mean_of(parts: Sequence[Moments]) -> Moments:
    """The plain mean of independent means."""
    variances = [part.standard_error**2 for part in parts]
    total = sum(variances)
    below = sum(v * v / part.degrees for v, part in zip(variances, parts, strict=True) if v > 0)
    degrees = total * total / below if below > 0 else max((part.degrees for part in parts), default=0)
    return Moments(sum(part.mean for part in parts) / len(parts), math.sqrt(total) / len(parts), degrees)


def moments_of(task: TaskScores) -> Moments:
    """Mean and standard error of a task as it is averaged."""
    if task.totals:
        return Moments(task.totals.mean, task.totals.standard_error, max(task.totals.num_items - 1, 0))
    return sample_moments(np.asarray(task.values, float), group_codes(task.groups), task.weighting)


def sample_moments(values: Values, codes: Codes | None, weighting: Weighting) -> Moments:
    """Mean and standard error of items, ``(n,)``, plain or over groups.

    Args:
        values: One number an item.
        codes: Group of each item, from 0 on; None where there are none.
        weighting: How groups are averaged. Groups are fixed strata: only what varies within them counts. A group of
            one item takes the variance within the others; where all have one, groups are left out of account.
    """
    num_items = len(values)
    spread = float(values.var(ddof=1)) if num_items > 1 else math.nan
    if codes is None:
        return Moments(float(values.mean()), math.sqrt(spread / num_items), num_items - 1)
    sizes = np.bincount(codes)
    means = np.bincount(codes, values) / sizes
    squares = np.bincount(codes, (values - means[codes]) ** 2)
    degrees = num_items - len(sizes)
    pooled = float(squares.sum()) / degrees if degrees else spread
    if weighting == "items":
        return Moments(float(values.mean()), math.sqrt(pooled / num_items), degrees or num_items - 1)
    variances = np.where(sizes > 1, squares / np.maximum(sizes - 1, 1), pooled)
    error = math.sqrt(float((variances / sizes).sum())) / len(sizes)
    return Moments(float(means.mean()), error, degrees or num_items - 1)


def group_codes(groups: Sequence[str]) -> Codes | None:
    """Groups as numbers from 0 on, or None where there are none."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64) if groups else None


def is_binary(task: TaskScores) -> bool:
    """Whether each item is 0 or 1. Where items are unknown, the standard error tells: it is that of such items."""
    if task.totals is None:
        return all(value in (0, 1) for value in task.values)
    totals = task.totals
    if not 0 <= totals.mean <= 1 or totals.num_items < 2 or is_lower_better(task.metric):
        return False
    expected = math.sqrt(totals.mean * (1 - totals.mean) / (totals.num_items - 1))
    return abs(totals.standard_error - expected) <= 1e-6 + 1e-3 * expected


def metric_name(metric: str) -> str:
    """The metric without the harness's filter: ``exact_match,strict-match`` -> ``exact_match``."""
    return metric.partition(",")[0]


def is_lower_better(metric: str) -> bool:
    """Whether less is better, as of losses; such metrics are no shares, and are printed as they are."""
    return metric_name(metric) in LOWER_IS_BETTER


def has_mean(tasks: Iterable[TaskScores]) -> bool:
    """Whether a mean over the tasks says something: all are shares, or all have one metric."""
    metrics = {metric_name(task.metric) for task in tasks}
    return len(metrics) == 1 or (bool(metrics) and not any(is_lower_better(metric) for metric in metrics))


# -- what a sample could show -----------------------------------------------------------------------------------------


def detectable_difference(standard_error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a test at ``alpha`` finds with chance ``power``.

    Args:
        standard_error: Of the difference of two models (:func:`difference_error`).
        alpha: Chance of a finding where there is no difference, two-sided.
        power: Chance of a finding where there is one of this size.
    """
    return _reach(alpha, power) * standard_error


def difference_error(first: float, second: float, correlation: float = 0.0) -> float:
    """Standard error of a difference from those of the two scores and the correlation of their items (0: unpaired)."""
    return math.sqrt(max(first**2 + second**2 - 2 * correlation * first * second, 0.0))


def items_needed(
    difference: float, standard_error: float, num_items: int, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Items with which a true difference of this size would be found with chance ``power``; infinite for none.

    Args:
        difference: As measured.
        standard_error: As measured, with ``num_items`` items; it falls with their square root.
        num_items: Items answered.
    """
    return num_items * (_reach(alpha, power) * standard_error / difference) ** 2 if difference else math.inf


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (1979), valid however the tests depend."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = highest
    return adjusted


def crossing(differences: Sequence[float], standard_errors: Sequence[float]) -> float:
    """p-value for differences of both signs: is one model really better here, and the other there?

    Gail and Simon's likelihood ratio test (Biometrics 1985): each sign's sum of squared t values is what the other
    sign's tasks cost; the smaller one is compared with a mixture of chi-squares, whose weights are a fair coin's.

    Args:
        differences: Of two models, one a task, independent of each other.
        standard_errors: Theirs; a task without error counts if it has a difference.
    """
    beyond = {True: 0.0, False: 0.0}
    for difference, error in zip(differences, standard_errors, strict=True):
        if difference:
            beyond[difference > 0] += (difference / error) ** 2 if error else math.inf
    least, last = min(beyond.values()), len(differences) - 1
    if least == 0:
        return 1.0
    return sum(math.comb(last, h) / 2**last * chi_square_above(least, h) for h in range(1, last + 1))


def as_json(value: Estimate) -> dict[str, Any]:
    """An estimate as JSON can hold it: NaN is null."""
    fields = ("mean", "standard_error", "low", "high", "interval", "num_items", "num_available")
    shown = {name: getattr(value, name) for name in fields}
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in shown.items()}


def suite_of(scores: ModelScores) -> Estimate | None:
    """The mean over the tasks of a model, or None where there is no such mean."""
    return suite_estimate(scores.tasks) if len(scores.tasks) > 1 and has_mean(scores.tasks) else None


def _reach(alpha: float, power: float) -> float:
    return normal_quantile(1 - alpha / 2) + normal_quantile(power)


def _effective_items(task: TaskScores, moments: Moments) -> float:
    variance = moments.mean * (1 - moments.mean)
    if not task.groups or variance <= 0 or not moments.standard_error > 0:
        return task.num_items
    return variance / moments.standard_error**2


def _wilson(share: float, num_items: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of ``num_items``, which need not be a whole number."""
    if math.isinf(num_items):
        return share, share
    z = normal_quantile(0.5 + confidence / 2)
    scale = 1 / (1 + z * z / num_items)
    centre = scale * (share + z * z / (2 * num_items))
    half = scale * z * math.sqrt(share * (1 - share) / num_items + (z / (2 * num_items)) ** 2)
    return (max(0.0, centre - half) if share > 0 else 0.0), (min(1.0, centre + half) if share < 1 else 1.0)
