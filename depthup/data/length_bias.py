"""Whether length gives the chosen answer away: its share, its size, a test, and how well length alone predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


@dataclass(frozen=True)
class LengthBias:
    """Lengths of chosen against rejected answers; a set without bias has shares of one half and a ratio of 1.

    Attributes:
        num_pairs: Pairs.
        num_equal: Those whose answers are equally long; they stand aside in ``longer`` and ``p_value``.
        longer: Share of the others whose chosen answer is the longer one.
        longer_low, longer_high: Its 95 % interval (Wilson 1927).
        p_value: Of the sign test, two-sided and exact: how probable a share so far from one half is by chance.
        ratio: Geometric mean of chosen length over rejected length; (length + 1), so that empty answers count.
        ratio_low, ratio_high: Its 95 % interval, by the normal distribution of the mean logarithm.
        median_chosen, median_rejected: Lengths.
        accuracy: Of the better of two guesses that see lengths only, "the longer one is chosen" and "the shorter one";
            equal lengths count one half.
        auc: Of one answer seen alone: the probability that a random chosen answer is longer than a random rejected one.
    """

    num_pairs: int
    num_equal: int
    longer: float
    longer_low: float
    longer_high: float
    p_value: float
    ratio: float
    ratio_low: float
    ratio_high: float
    median_chosen: float
    median_rejected: float
    accuracy: float
    auc: float


def length_bias(chosen: Sequence[int], rejected: Sequence[int]) -> LengthBias | None:
    """The bias of pairs with these lengths, of any unit; None where there is no pair.

    Args:
        chosen: Length of each chosen answer.
        rejected: Length of the other answer of the same pair.
    """
    if not len(chosen):
        return None
    better, worse = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    longer, shorter = int((better > worse).sum()), int((better < worse).sum())
    num_pairs, num_equal = len(better), len(better) - longer - shorter
    low, high = wilson_interval(longer, longer + shorter)
    logs = np.log((better + 1) / (worse + 1))
    error = _Z95 * float(logs.std(ddof=1)) / math.sqrt(num_pairs) if num_pairs > 1 else math.inf
    mean = float(logs.mean())
    return LengthBias(
        num_pairs=num_pairs,
        num_equal=num_equal,
        longer=longer / (longer + shorter) if longer + shorter else 0.5,
        longer_low=low,
        longer_high=high,
        p_value=sign_test(longer, longer + shorter),
        ratio=math.exp(mean),
        ratio_low=math.exp(mean - error),
        ratio_high=math.exp(min(mean + error, 700.0)),
        median_chosen=float(np.median(better)),
        median_rejected=float(np.median(worse)),
        accuracy=(max(longer, shorter) + num_equal / 2) / num_pairs,
        auc=_auc(better, worse),
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score; (0, 1) of no trials."""
    if not trials:
        return 0.0, 1.0
    share, weight = successes / trials, _Z95**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(successes: int, trials: int) -> float:
    """The exact two-sided p-value of ``successes`` under even odds; 1 of no trials."""
    fewer = min(successes, trials - successes)
    counts = range(fewer + 1)
    whole, two = math.lgamma(trials + 1), trials * math.log(2)
    tail = math.fsum(math.exp(whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) - two) for k in counts)
    return min(1.0, 2 * tail)


def _auc(better: np.ndarray, worse: np.ndarray) -> float:
    """P(a > b) + P(a = b) / 2 for a random member of each."""
    others = np.sort(worse)
    below, not_above = np.searchsorted(others, better, "left"), np.searchsorted(others, better, "right")
    return float((below + not_above).sum() / (2 * len(better) * len(worse)))
