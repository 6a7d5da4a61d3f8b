"""The merges of the SOLAR paper by the strengths of what was merged, as far as totals can tell (strengths.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .paper_tables import SCORES, TASKS, Claim, difference_and_error, mean_score
from .statistics import crossing

MERGES = (
    ("SFT v3", "SFT v4", "SFT v3+v4", 0.5),
    ("DPO v1", "DPO v2", "DPO v1+v2", 0.5),
    ("Cand. 1", "Cand. 2", "Merge v1", 0.5),
    ("Cand. 1", "Cand. 2", "Merge v2", 0.4),
    ("Cand. 1", "Cand. 2", "Merge v3", 0.6),
    ("Cand. 1", "Cand. 2", "Merge v4", 0.5),
)


@dataclass(frozen=True)
class PaperMerge:
    """A merge of the paper; all in points.

    Attributes:
        first: A candidate.
        second: The other one.
        merge: What was made of them.
        share: The first one's weight. The paper says none for SLERP; a half is taken.
        leads: Of the first candidate over the second, on each task.
        room: The mean of the better scores minus the better mean.
        p_values: That each candidate is ahead somewhere, at each correlation asked for.
        over_better: The merge minus the better candidate, on H6.
        over_mean: The merge minus the weighted mean of its candidates, on H6.
        num_over_mean: Tasks on which it is above that mean.
        kept: How far from that mean (0) to the best of both on each task (1).
    """

    first: str
    second: str
    merge: str
    share: float
    leads: tuple[float, ...]
    room: float
    p_values: tuple[float, ...]
    over_better: float
    over_mean: float
    num_over_mean: int
    kept: float


def paper_merges(correlations: Sequence[float] = (0.0, 0.5, 0.9)) -> list[PaperMerge]:
    """Every merge of the paper.

    Args:
        correlations: Of the candidates' items in each task: what the tests of their strengths assume.
    """
    found = []
    for first, second, merge, share in MERGES:
        one, two, made = (SCORES[model] for model in (first, second, merge))
        between = [share * a + (1 - share) * b for a, b in zip(one, two, strict=True)]
        over = [score - mean for score, mean in zip(made, between, strict=True)]
        better, best = max(mean_score(first), mean_score(second)), sum(map(max, one, two)) / len(TASKS)
        over_mean = sum(over) / len(TASKS)
        p_values = []
        for correlation in correlations:
            pairs = [difference_and_error(Claim(0, "", second, first, task), correlation) for task in TASKS]
            p_values.append(crossing([gap for gap, _ in pairs], [error for _, error in pairs]))
        found.append(
            PaperMerge(
                first=first,
                second=second,
                merge=merge,
                share=share,
                leads=tuple(a - b for a, b in zip(one, two, strict=True)),
                room=best - better,
                p_values=tuple(p_values),
                over_better=mean_score(merge) - better,
                over_mean=over_mean,
                num_over_mean=sum(gap > 0 for gap in over),
                kept=over_mean / (best - sum(between) / len(TASKS)),
            )
        )
    return found
