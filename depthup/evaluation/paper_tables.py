"""Tables 2 to 7 of the SOLAR paper, and what its conclusions are worth, as far as totals can tell.

The tables are those of arXiv:2312.15166v2. The paper gives no errors and no single items, so the error of a difference
follows from the sizes of the tasks and from an assumed correlation of two models' items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .distributions import normal_quantile, normal_share
from .statistics import detectable_difference, difference_error, holm

# Items of each task, in the order of the paper's columns.
TASKS = {"ARC": 1172, "HellaSwag": 10042, "MMLU": 14042, "TruthfulQA": 817, "WinoGrande": 1267, "GSM8K": 1319}
# TruthfulQA's mc2 is a probability an item: its spread is not known from its mean. This is the standard error in points
# that lm-eval logged for SOLAR-10.7B-Instruct (71.72), in Upstage's Evalverse repository.
MC2_ERROR = 1.50

# Points, as printed. In Table 3 the WinoGrande score of SFT v3+v4 is printed as 2.08; 82.08 gives its printed mean.
SCORES: dict[str, tuple[float, ...]] = {
    "SOLAR-Instruct": (71.08, 88.16, 66.21, 71.43, 83.58, 64.75),
    "Qwen 72B": (65.19, 85.94, 77.37, 60.19, 82.48, 70.43),
    "Mixtral-Instruct": (70.22, 87.63, 71.16, 64.58, 81.37, 60.73),
    "Yi 34B": (64.59, 85.69, 76.35, 56.23, 83.03, 50.64),
    "SOLAR": (61.95, 84.60, 65.48, 45.04, 83.66, 55.50),
    "Qwen 14B": (58.28, 83.99, 67.70, 49.43, 76.80, 58.98),
    "Mistral 7B": (59.98, 83.31, 64.16, 42.15, 78.37, 37.83),
    "SFT v1": (67.66, 86.03, 65.88, 60.12, 82.95, 52.24),
    "SFT v2": (65.36, 85.39, 65.93, 58.47, 82.79, 57.32),
    "SFT v3": (65.87, 85.55, 65.31, 57.93, 81.37, 64.14),
    "SFT v4": (67.32, 85.87, 65.87, 58.97, 82.48, 64.75),
    "SFT v3+v4": (67.32, 85.96, 65.95, 58.80, 82.08, 66.57),
    "DPO v1": (71.42, 88.49, 66.14, 72.04, 81.45, 58.83),
    "DPO v2": (71.50, 88.28, 65.97, 71.71, 82.79, 60.27),
    "DPO v1+v2": (71.33, 88.36, 65.92, 72.65, 82.79, 58.23),
    "DPO v3": (71.33, 88.08, 65.39, 72.45, 81.93, 62.32),
    "Cand. 1": (70.48, 87.47, 65.73, 70.62, 81.53, 66.57),
    "Cand. 2": (71.59, 88.39, 66.14, 72.50, 81.99, 59.14),
    "Merge v1": (71.16, 88.01, 66.14, 71.71, 82.08, 64.90),
    "Merge v2": (71.08, 88.08, 66.27, 71.89, 81.77, 64.52),
    "Merge v3": (71.08, 87.88, 66.13, 71.61, 82.08, 65.50),
    "Merge v4": (71.16, 88.03, 66.25, 71.79, 81.93, 64.59),
}


# stands: clear even as independent samples. likely: clear from a correlation of items of at most 0.5 on, which even
# unrelated models reach (0.3 to 0.7 among frontier models, Miller 2024, arXiv:2411.00640). open: clear from one of at
# most 0.9 on, which only the single items could show. noise: not even then. not contradicted: it claims no difference,
# and none is seen.
Verdict = Literal["stands", "likely", "open", "noise", "not contradicted"]


@dataclass(frozen=True)
class Claim:
    """One conclusion that rests on one difference.

    Attributes:
        table: Number of the paper's table.
        text: What is concluded, in a few words.
        before: Model that the difference is from.
        after: Model that the difference is to.
        task: Column, or H6.
        of_none: Whether what is concluded is that there is no difference to speak of.
    """

    table: int
    text: str
    before: str
    after: str
    task: str = "H6"
    of_none: bool = False


CLAIMS = (
    Claim(2, "the up-scaled base is better than Mistral 7B", "Mistral 7B", "SOLAR"),
    Claim(2, "the same, on GSM8K", "Mistral 7B", "SOLAR", "GSM8K"),
    Claim(2, "the base is as good as the larger Qwen 14B", "Qwen 14B", "SOLAR", of_none=True),
    Claim(2, "Instruct is better than Mixtral-Instruct", "Mixtral-Instruct", "SOLAR-Instruct"),
    Claim(2, "Instruct is better than Qwen 72B", "Qwen 72B", "SOLAR-Instruct"),
    Claim(2, "instruction and alignment tuning raise the base", "SOLAR", "SOLAR-Instruct"),
    Claim(3, "OpenOrca hardly changes the mean", "SFT v1", "SFT v2", of_none=True),
    Claim(3, "but it changes behaviour: GSM8K up", "SFT v1", "SFT v2", "GSM8K"),
    Claim(3, "... and ARC down", "SFT v1", "SFT v2", "ARC"),
    Claim(3, "math data help (without OpenOrca)", "SFT v1", "SFT v4"),
    Claim(3, "the same, on GSM8K", "SFT v1", "SFT v4", "GSM8K"),
    Claim(3, "math data help (with OpenOrca)", "SFT v2", "SFT v3"),
    Claim(3, "the same, on GSM8K", "SFT v2", "SFT v3", "GSM8K"),
    Claim(3, "better without OpenOrca", "SFT v3", "SFT v4"),
    Claim(3, "merging v3 and v4 beats v3", "SFT v3", "SFT v3+v4"),
    Claim(3, "merging v3 and v4 beats v4", "SFT v4", "SFT v3+v4"),
    Claim(4, "DPO raises the mean", "SFT v3", "DPO v1"),
    Claim(4, "... TruthfulQA up", "SFT v3", "DPO v1", "TruthfulQA"),
    Claim(4, "... ARC up", "SFT v3", "DPO v1", "ARC"),
    Claim(4, "... GSM8K down", "SFT v3", "DPO v1", "GSM8K"),
    Claim(4, "math pairs help", "DPO v1", "DPO v2"),
    Claim(4, "the same, on GSM8K", "DPO v1", "DPO v2", "GSM8K"),
    Claim(4, "merging v1 and v2 does not beat v2", "DPO v2", "DPO v1+v2", of_none=True),
    Claim(5, "a better SFT start hardly helps DPO", "DPO v2", "DPO v3", of_none=True),
    Claim(5, "the same, on GSM8K", "DPO v2", "DPO v3", "GSM8K"),
    Claim(6, "Cand. 1 has the better mean", "Cand. 2", "Cand. 1"),
    Claim(6, "Cand. 1 is stronger on GSM8K", "Cand. 2", "Cand. 1", "GSM8K"),
    Claim(6, "Cand. 2 is stronger on TruthfulQA", "Cand. 2", "Cand. 1", "TruthfulQA"),
    Claim(7, "the merge beats Cand. 1", "Cand. 1", "Merge v1"),
    Claim(7, "the merge beats Cand. 2", "Cand. 2", "Merge v1"),
    Claim(7, "which weights hardly matters (the widest gap)", "Merge v2", "Merge v3", of_none=True),
    Claim(7, "average or SLERP hardly matters", "Merge v1", "Merge v4", of_none=True),
)


@dataclass(frozen=True)
class Finding:
    """A claim with what it is worth; all in points.

    Attributes:
        claim: The claim.
        difference: After minus before.
        margins: Half of the 95 % interval at each of the correlations that were asked for.
        adjusted_p: p-values at each of them, corrected for all claims (Holm).
        clear_from: Smallest correlation, in steps of 0.01, at which the claim passes correction; None for none.
    """

    claim: Claim
    difference: float
    margins: tuple[float, ...]
    adjusted_p: tuple[float, ...]
    clear_from: float | None

    @property
    def verdict(self) -> Verdict:
        """What the claim is worth, on the scale of :data:`Verdict`."""
        if self.claim.of_none:
            return "not contradicted" if self.adjusted_p[-1] > 0.05 else "open"
        limits: tuple[tuple[float, Verdict], ...] = ((0.0, "stands"), (0.5, "likely"), (0.9, "open"))
        clear = math.inf if self.clear_from is None else self.clear_from
        return next((verdict for limit, verdict in limits if clear <= limit), "noise")


def standard_error(task: str, points: float) -> float:
    """Standard error of a score in points: of items that are 0 or 1, or the logged one for TruthfulQA."""
    if task == "TruthfulQA":
        return MC2_ERROR
    return math.sqrt(points * (100 - points) / (TASKS[task] - 1))


def mean_score(model: str) -> float:
    """H6 of a model in points."""
    return sum(SCORES[model]) / len(TASKS)


def difference_and_error(claim: Claim, correlation: float) -> tuple[float, float]:
    """The difference of a claim and its standard error in points, if items correlate so in each task.

    For items of 0 or 1 no pairing makes the error smaller than that of a difference in which every item that changed
    changed the same way: ``sqrt(d (1 - d) / n)``. That floor is kept.
    """
    tasks = list(TASKS) if claim.task == "H6" else [claim.task]
    total, variance = 0.0, 0.0
    for task in tasks:
        place = list(TASKS).index(task)
        before, after = SCORES[claim.before][place], SCORES[claim.after][place]
        error = difference_error(standard_error(task, before), standard_error(task, after), correlation)
        gap = abs(after - before)
        floor = 0.0 if task == "TruthfulQA" else math.sqrt(gap * (100 - gap) / TASKS[task])
        total += after - before
        variance += max(error, floor) ** 2
    return total / len(tasks), math.sqrt(variance) / len(tasks)


def findings(correlations: Sequence[float] = (0.0, 0.5, 0.9), alpha: float = 0.05) -> list[Finding]:
    """Every claim at each correlation, all corrected together.

    Args:
        correlations: Of two models' items, in each task; 0 treats them as independent samples.
        alpha: Level.
    """
    steps = [i / 100 for i in range(100)]
    by_step = {r: _adjusted(r) for r in {*steps, *correlations}}
    width = normal_quantile(1 - alpha / 2)
    found = []
    for i, claim in enumerate(CLAIMS):
        pairs = [difference_and_error(claim, r) for r in correlations]
        clear = next((r for r in steps if by_step[r][i] <= alpha), None)
        adjusted = tuple(by_step[r][i] for r in correlations)
        found.append(Finding(claim, pairs[0][0], tuple(width * error for _, error in pairs), adjusted, clear))
    return found


def detectable(task: str, model: str, correlation: float) -> float:
    """Smallest true difference in points from a model that the task (or H6) finds 4 times in 5."""
    one = Claim(0, "", model, model, task)
    return detectable_difference(difference_and_error(one, correlation)[1])


def _adjusted(correlation: float) -> list[float]:
    p_values = []
    for claim in CLAIMS:
        difference, error = difference_and_error(claim, correlation)
        p_values.append(2 * normal_share(-abs(difference) / error))
    return holm(p_values)
