"""Models against a baseline: which differences are real, which are noise, and which need more items to tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import DataError
from .pairs import Difference, differences
from .prepared import STATED
from .scores import ModelScores, TaskScores
from .statistics import Estimate, estimate, has_mean, holm, is_lower_better, suite_of

# Settings under which two scores are of two different questions.
DECISIVE = ("chat_template", "system_instruction", "fewshot_as_multiturn", "data")


@dataclass(frozen=True)
class Compared:
    """One difference, judged.

    Attributes:
        difference: Model minus baseline.
        adjusted_p: Its p-value, corrected for all comparisons made here (Holm).
        verdict: In words.
        better: True or False where the difference is real, None where it is not told from noise.
    """

    difference: Difference
    adjusted_p: float
    verdict: str
    better: bool | None


@dataclass(frozen=True)
class Comparison:
    """Models side by side.

    Attributes:
        names: Of the models, each another.
        suite: Its name.
        profile: Its profile.
        baseline: Index of the model that the others are compared with.
        tasks: Name, metric and shots of each task.
        scores: For each model the estimate of each task.
        means: For each model the mean over tasks; None where there is no such mean.
        compared: For each model but the baseline, in their order, the tasks and then the mean.
        alpha: Level of the tests.
        num_comparisons: How many p-values were corrected together.
        warnings: What a reader must know.
    """

    names: tuple[str, ...]
    suite: str
    profile: str
    baseline: int
    tasks: tuple[tuple[str, str, int], ...]
    scores: tuple[tuple[Estimate, ...], ...]
    means: tuple[Estimate | None, ...]
    compared: tuple[tuple[Compared, ...], ...]
    alpha: float
    num_comparisons: int
    warnings: tuple[str, ...]

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the models that are compared with the baseline."""
        return tuple(name for i, name in enumerate(self.names) if i != self.baseline)


def compare(
    models: Sequence[ModelScores], baseline: int = 0, *, alpha: float = 0.05, power: float = 0.8, seed: int = 0,
    num_draws: int = 10_000, allow_differences: bool = False,
) -> Comparison:  # fmt: skip
    """Compare models with one of them, task by task and on the mean of all tasks.

    Args:
        models: At least two.
        baseline: Index of the one that the others are compared with.
        alpha: Level of the tests, after correction.
        power: Chance of finding the smallest detectable difference.
        seed: Of the bootstrap.
        num_draws: Of the bootstrap.
        allow_differences: Compare models that were not asked in the same way, on the tasks that all have; what differs
            stands in ``warnings``. Otherwise they are refused.

    Raises:
        DataError: Fewer than two models, models that were not asked in the same way, or no task with two items in
            common.
    """
    aligned, clashes = align(models, allow_differences=allow_differences)
    first = aligned[baseline]
    suite = suite_name(first.suite) if len(first.tasks) > 1 and has_mean(first.tasks) else None
    found = [
        differences(first.tasks, other.tasks, suite=suite, alpha=alpha, power=power, seed=seed, num_draws=num_draws)
        for i, other in enumerate(aligned)
        if i != baseline
    ]
    adjusted = iter(holm([one.p_value for rows in found for one in rows]))
    available = {task.task: task.num_available for task in first.tasks}
    available[suite or ""] = sum(available.values())
    metrics = {task.task: task.metric for task in first.tasks} | {suite or "": first.tasks[0].metric}
    compared = tuple(
        tuple(judge(one, next(adjusted), metrics[one.of], available[one.of], alpha) for one in rows) for rows in found
    )
    return Comparison(
        names=names_of(models),
        suite=suite or first.suite,
        profile=first.profile,
        baseline=baseline,
        tasks=tuple((task.task, task.metric, task.num_fewshot) for task in first.tasks),
        scores=tuple(tuple(estimate(task, confidence=1 - alpha) for task in model.tasks) for model in aligned),
        means=tuple(suite_of(model) for model in aligned),
        compared=compared,
        alpha=alpha,
        num_comparisons=sum(map(len, found)),
        warnings=(*clashes, *_unpaired(found), *notes_of(aligned)),
    )


def align(models: Sequence[ModelScores], *, allow_differences: bool) -> tuple[list[ModelScores], list[str]]:
    """The models with the tasks that all have, in one order, and in which ways they were not asked the same questions.

    Raises:
        DataError: See :func:`compare`.
    """
    if len(models) < 2:
        raise DataError(f"{len(models)} model to compare", allowed="two or more", next_step="name another results file")
    clashes = what_differs(models)
    if clashes and not allow_differences:
        raise DataError(
            f"these scores answer different questions: {'; '.join(clashes)}",
            next_step="evaluate the models in the same way, or say --allow-differences",
        )
    return [_common(scores, models) for scores in models], clashes


def judge(one: Difference, adjusted_p: float, metric: str, num_available: int, alpha: float) -> Compared:
    """Say in words what a difference is worth.

    Args:
        one: The difference.
        adjusted_p: Its p-value, corrected for all that are made.
        metric: Tells the unit, and which way is better.
        num_available: Items that there are; a need for more is said.
        alpha: Level.
    """
    scale, size = (1.0, "{:.3f}") if is_lower_better(metric) else (100.0, "{:.1f}")
    gap, margin = size.format(scale * abs(one.difference)), size.format(scale * one.margin)
    if adjusted_p <= alpha:
        better = (one.difference > 0) != is_lower_better(metric)
        return Compared(one, adjusted_p, f"{'better' if better else 'worse'} by {gap} ± {margin}", better)
    signed = f"{'-' if one.difference < 0 else '+'}{gap}".replace("-", "\u2212")
    if one.standard_error == 0:
        return Compared(one, adjusted_p, "the same on every item", None)
    if one.p_value <= alpha:
        return Compared(one, adjusted_p, f"open: {signed} ± {margin} by itself, not among so many comparisons", None)
    return Compared(one, adjusted_p, f"within noise ({signed} ± {margin}, {_need(one, num_available)})", None)


def what_differs(models: Sequence[ModelScores]) -> list[str]:
    """In which ways the models were not asked the same questions."""
    names, found = names_of(models), []
    first = models[0]
    for name, other in zip(names[1:], models[1:], strict=True):
        both = f"{names[0]} and {name}"
        if first.profile != other.profile:
            found.append(f"profiles of {both}: {first.profile or 'none'} and {other.profile or 'none'}")
        for key in DECISIVE:
            one, two = _setting(first, key), _setting(other, key)
            if key == "data" and not all("depthup" in model.versions for model in (first, other)):
                continue  # lm-eval's files do not say it; items that differ are not paired
            if one != two:
                found.append(f"{key.replace('_', ' ')} of {both}: {_short(one)} and {_short(two)}")
        theirs = {task.task: task for task in other.tasks}
        ours = {task.task for task in first.tasks}
        if ours != theirs.keys():
            lacking = sorted(ours ^ theirs.keys())
            found.append(f"tasks of {both}: only one has {', '.join(lacking[:5])}{' ...' if lacking[5:] else ''}")
        found += [
            f"{what} of {task.task} in {both}: {one} and {two}"
            for task in first.tasks
            if task.task in theirs
            for what, one, two in _clashes(task, theirs[task.task])
        ]
    return found


def _setting(scores: ModelScores, key: str) -> object:
    template = scores.settings.get("chat_template")
    if key == "chat_template":  # its text belongs to the model; whether it was applied does not
        return "applied" if template else None
    if key == "fewshot_as_multiturn" and not template:  # says nothing then; lm-eval writes it all the same
        return None
    return scores.settings.get(key) or None


def _clashes(one: TaskScores, two: TaskScores) -> list[tuple[str, object, object]]:
    fields = (
        ("metric", one.metric, two.metric),
        ("shots", one.num_fewshot, two.num_fewshot),
        ("averaging", one.weighting, two.weighting),
        ("version", *_versions(one.version, two.version)),
        ("split", f"{one.num_available:,} items", f"{two.num_available:,} items"),
    )
    return [field for field in fields if field[1] != field[2] and not (field[0] == "version" and "" in field[1:])]


def _versions(one: str, two: str) -> tuple[str, str]:
    """As they stand, but where only one of them says whose task it is, the task's number alone."""
    if (STATED in one) != (STATED in two):
        return one.rpartition(STATED)[2], two.rpartition(STATED)[2]
    return one, two


def _common(scores: ModelScores, models: Sequence[ModelScores]) -> ModelScores:
    """The model with the tasks that all models have, in the order of the first."""
    own = {task.task: task for task in scores.tasks}
    shared = set(own).intersection(*({task.task for task in model.tasks} for model in models))
    wanted = [task for task in models[0].tasks if task.task in shared]
    tasks = tuple(own[task.task] for task in wanted)
    for task, first in zip(tasks, wanted, strict=True):
        if task.num_items < 2:
            raise DataError(
                f"{scores.model} answered {task.num_items} item of {task.task}: that tells nothing of noise",
                next_step="evaluate with a larger --limit",
            )
        if is_lower_better(task.metric) != is_lower_better(first.metric):
            raise DataError(f"the scores of {task.task} have different units", next_step="evaluate with one metric")
    if not tasks:
        raise DataError("these models have no task in common", next_step="evaluate them on the same suite")
    return replace(scores, tasks=tasks)


def _unpaired(found: Sequence[Sequence[Difference]]) -> list[str]:
    tasks = sorted({one.of for rows in found for one in rows if one.test == "Welch's t"})
    if not tasks:
        return []
    return [
        f"not paired, since the items differ or are not known: {', '.join(tasks)}; errors are those of independent"
        " samples, and larger than need be"
    ]


def notes_of(models: Sequence[ModelScores]) -> list[str]:
    notes = {
        f"{task.task}: {note.removeprefix(f'{task.task}: ')}": None
        for model in models
        for task in model.tasks
        for note in task.notes
    }
    drawn = [
        f"{task.num_items:,} of {task.num_available:,} of {task.task}"
        for task in models[0].tasks
        if task.num_items < task.num_available
    ]
    return [*notes, *([f"samples of the items: {', '.join(drawn)}"] if drawn else [])]


def names_of(models: Sequence[ModelScores]) -> tuple[str, ...]:
    """Names that tell the models apart: with the fingerprint, then with a number, where they share one."""
    names = [model.model for model in models]
    if len(set(names)) < len(names):
        names = [f"{m.model} {m.fingerprint[:8]}".strip() if names.count(m.model) > 1 else m.model for m in models]
    return tuple(
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)
    )


def suite_name(suite: str) -> str:
    return "H6" if suite == "h6" else f"mean of {suite}" if suite else "mean"


def _need(one: Difference, num_available: int) -> str:
    if not math.isfinite(one.items_needed) or one.items_needed > 1e8:
        return "no number of items would tell"
    places = max(0, len(str(int(one.items_needed))) - 2)
    needed = round(one.items_needed, -places)
    text = f"would need about {needed:,.0f} items"
    return f"{text}, there are {num_available:,}" if needed > num_available else text


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
