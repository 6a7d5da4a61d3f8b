"""When merging two candidates should pay, and whether it did.

SOLAR's authors found that a merge pays where its parents have different strengths (arXiv:2312.15166v2, 4.3.3). Read as
numbers: a merge that is as good as the better candidate on every task gains the mean of the better scores minus the
better mean, which is the smaller of both candidates' sums of advantages. This room is there only if each candidate is
really ahead somewhere; luck alone leaves some too, so it is tested (Gail and Simon 1985), and what of it would hold on
new items is told by a paired bootstrap. What a merge makes of it is measured item by item: against the weighted mean
of its candidates' answers, and against the better candidate.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..errors import DataError
from .compare import Compared, align, judge, names_of, notes_of, suite_name
from .pairs import Difference, differences, order_like, resampled_means
from .scores import ModelScores, TaskScores
from .statistics import (
    Estimate,
    Values,
    crossing,
    estimate,
    group_codes,
    has_mean,
    holm,
    is_lower_better,
    suite_estimate,
)


@dataclass(frozen=True)
class Room:
    """What a merge could gain over the better candidate on the mean of the tasks, by being the better one on each.

    Attributes:
        measured: As the scores stand; the items' luck is in it.
        low: Lower end of its interval (basic bootstrap over items within tasks), at least 0.
        high: Upper end.
        lasting: What is gained on one half of the items where the other half tells which candidate to take on each
            task, and which one as a whole; 0 on average where there is nothing but luck.
        p_value: That each candidate is ahead somewhere (:func:`depthup.evaluation.statistics.crossing`).
        real: Whether that passes the level.
    """

    measured: float
    low: float
    high: float
    lasting: float
    p_value: float
    real: bool


@dataclass(frozen=True)
class Gain:
    """What a merge made of its candidates.

    Attributes:
        name: Of the merge.
        share: The first candidate's weight in it.
        scores: Its estimate of each task, then of their mean.
        over_mean: For each task, then their mean: the merge minus the weighted mean of its candidates.
        over_better: On the mean of the tasks: the merge minus the better candidate. Where the merge is ahead of both
            candidates its p-value is the larger of the two, so that it holds whichever one is better.
        kept: How far from the candidates' mean (0) to the best of both on each task (1); None where they are one.
    """

    name: str
    share: float
    scores: tuple[Estimate, ...]
    over_mean: tuple[Compared, ...]
    over_better: Compared
    kept: float | None


@dataclass(frozen=True)
class Strengths:
    """Two candidates, task by task, and the merges of them.

    Attributes:
        names: Of both candidates.
        suite: Name of the mean of the tasks, the last of each row.
        tasks: Name and metric of each task.
        scores: Of both candidates: the estimate of each task, then of their mean.
        leads: For each task, then the mean: the first minus the second, judged.
        room: What a merge could gain.
        gains: One a merge.
        better: Index of the candidate with the better mean.
        alpha: Level; p-values of the leads are corrected together, and so are those of the gains (Holm).
        warnings: What a reader must know.
    """

    names: tuple[str, str]
    suite: str
    tasks: tuple[tuple[str, str], ...]
    scores: tuple[tuple[Estimate, ...], tuple[Estimate, ...]]
    leads: tuple[Compared, ...]
    room: Room
    gains: tuple[Gain, ...]
    better: int
    alpha: float
    warnings: tuple[str, ...]

    @property
    def stronger(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tasks on which each candidate is told to be the better one."""
        tasks = self.leads[:-1]
        first, second = (tuple(one.difference.of for one in tasks if one.better is which) for which in (True, False))
        return first, second


def strengths(
    first: ModelScores, second: ModelScores, merges: Sequence[ModelScores] = (), shares: Sequence[float] | None = None,
    *, alpha: float = 0.05, seed: int = 0, num_draws: int = 10_000, allow_differences: bool = False,
) -> Strengths:  # fmt: skip
    """Compare two candidates task by task, and merges of them with what their scores promise.

    Args:
        first: A candidate.
        second: The other one.
        merges: Models made of both.
        shares: The first candidate's weight in each merge; a half by default.
        alpha: Level of the tests.
        seed: Of the bootstrap.
        num_draws: Of the bootstrap.
        allow_differences: See :func:`depthup.evaluation.compare.compare`.

    Raises:
        DataError: Fewer than two tasks, tasks without a common unit, models that did not answer the same items or
            were not asked in the same way, or shares that are none.
    """
    models = [first, second, *merges]
    shares = _shares(shares, len(merges))
    aligned, clashes = align(models, allow_differences=allow_differences)
    one, two, *made = (_require_items(scores.tasks, aligned[0]) for scores in aligned)
    suite, names = suite_name(first.suite), names_of(models)
    differ = partial(differences, suite=suite, alpha=alpha, seed=seed, num_draws=num_draws)
    leads = differ(two, one)
    sign = -1.0 if is_lower_better(one[0].metric) else 1.0
    better = 0 if sign * leads[-1].difference >= 0 else 1
    room = _room(one, two, leads[:-1], alpha, seed, num_draws)
    found = []  # for each merge: over the mean of its candidates on each task and on all, over the better one on all
    for tasks, share in zip(made, shares, strict=True):
        between = [_between(a, b, share) for a, b in zip(one, two, strict=True)]
        over_both = [differ(candidate, tasks)[-1] for candidate in (one, two)]
        found.append((*differ(between, tasks), _over_better(over_both, better, sign)))
    judged = iter(_judged([row for rows in found for row in rows], one, alpha))
    gains = []
    for name, share, tasks in zip(names[2:], shares, made, strict=True):
        *rows, last = (next(judged) for _ in range(len(one) + 2))
        over, short = sign * rows[-1].difference.difference, sign * last.difference.difference
        best = room.measured + over - short  # of both candidates on each task, over their mean
        gains.append(
            Gain(name, share, _estimates(tasks, alpha), tuple(rows), last, over / best if best > 1e-12 else None)
        )
    return Strengths(
        names=(names[0], names[1]),
        suite=suite,
        tasks=tuple((task.task, task.metric) for task in one),
        scores=(_estimates(one, alpha), _estimates(two, alpha)),
        leads=tuple(_judged(leads, one, alpha)),
        room=room,
        gains=tuple(gains),
        better=better,
        alpha=alpha,
        warnings=(*clashes, *notes_of(aligned)),
    )


def _shares(given: Sequence[float] | None, num_merges: int) -> tuple[float, ...]:
    shares = tuple(given) if given is not None else (0.5,) * num_merges
    if len(shares) != num_merges or not all(0 <= share <= 1 for share in shares):
        raise DataError(
            f"the shares {', '.join(f'{share:g}' for share in shares)} do not fit {num_merges} merges",
            allowed="for each merge the first candidate's weight, from 0 to 1",
        )
    return shares


def _require_items(tasks: Sequence[TaskScores], first: ModelScores) -> tuple[TaskScores, ...]:
    if len(tasks) < 2 or not has_mean(tasks):
        raise DataError(
            f"strengths are told over several tasks of one unit, and there is {', '.join(task.task for task in tasks)}",
            next_step="evaluate the models on a suite, such as h6",
        )
    for task, other in zip(tasks, first.tasks, strict=True):
        if order_like(task.items, other.items) is None:
            raise DataError(
                f"the models' answers to the single items of {task.task} are not known, or not of the same items",
                next_step="evaluate all with one sample and seed, and keep the samples (lm-eval: --log_samples)",
            )
    return tuple(tasks)


def _between(one: TaskScores, two: TaskScores, share: float) -> TaskScores:
    """The weighted mean of two models, item by item."""
    order = order_like(two.items, one.items)
    assert order is not None
    values = share * np.asarray(one.values, float) + (1 - share) * np.asarray(two.values, float)[order]
    return replace(one, values=tuple(values.tolist()), others={})


def _room(
    one: Sequence[TaskScores], two: Sequence[TaskScores], leads: Sequence[Difference], alpha: float, seed: int,
    num_draws: int,
) -> Room:  # fmt: skip
    draws = []
    for a, b in zip(one, two, strict=True):
        order = order_like(b.items, a.items)
        apart = np.asarray(a.values, float) - np.asarray(b.values, float)[order]
        generator = np.random.default_rng([seed, zlib.crc32(a.task.encode())])
        draws.append(resampled_means(apart, group_codes(a.groups), a.weighting, num_draws, generator))
    mean, drawn = np.array([[lead.difference] for lead in leads]), np.array(draws)
    measured = float(_smaller_sum(mean)[0])
    low, high = (float(value) for value in np.quantile(_smaller_sum(drawn), [alpha / 2, 1 - alpha / 2]))
    # Two halves of the items stand as far above and below their mean as one bootstrap sample stands from it.
    told, held = drawn, 2 * mean - drawn
    lasting = np.where(told > 0, held, 0).sum(0) - np.where(told.sum(0) > 0, held.sum(0), 0)
    p_value = crossing([lead.difference for lead in leads], [lead.standard_error for lead in leads])
    ends = (max(0.0, 2 * measured - high), max(0.0, 2 * measured - low))
    return Room(measured, *ends, float(lasting.mean()) / len(leads), p_value, p_value <= alpha)


def _smaller_sum(leads: Values) -> Values:
    """The room, ``(num_draws,)``, from leads, ``(num_tasks, num_draws)``: the smaller of both signs' sums, a task."""
    ahead, behind = np.maximum(leads, 0).sum(0), np.maximum(-leads, 0).sum(0)
    smaller: Values = np.minimum(ahead, behind) / len(leads)
    return smaller


def _over_better(over: Sequence[Difference], better: int, sign: float) -> Difference:
    ahead = all(sign * one.difference > 0 for one in over)
    return replace(over[better], p_value=max(one.p_value for one in over)) if ahead else over[better]


def _judged(rows: Sequence[Difference], tasks: Sequence[TaskScores], alpha: float) -> list[Compared]:
    metrics = {task.task: task.metric for task in tasks}
    available = {task.task: task.num_available for task in tasks}
    return [
        judge(row, p, metrics.get(row.of, tasks[0].metric), available.get(row.of, sum(available.values())), alpha)
        for row, p in zip(rows, holm([row.p_value for row in rows]), strict=True)
    ]


def _estimates(tasks: Sequence[TaskScores], alpha: float) -> tuple[Estimate, ...]:
    return (*(estimate(task, confidence=1 - alpha) for task in tasks), suite_estimate(tasks, confidence=1 - alpha))
