"""Scores of several models side by side: the values that tables and figures of a report show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluation.scores import ModelScores, TaskScores
from ..evaluation.statistics import Estimate, estimate, is_lower_better, metric_name, suite_of
from .tables import render_table

TITLES = {
    "arc_challenge": "ARC", "arc_easy": "ARC-Easy", "hellaswag": "HellaSwag", "mmlu": "MMLU",
    "truthfulqa_mc2": "TruthfulQA", "winogrande": "WinoGrande", "gsm8k": "GSM8K",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One task, or the mean of all.

    Attributes:
        title: Of the column.
        metric: Its metric; empty for the mean.
        shots: How many, in words.
        in_points: Whether the score is a share, shown in points; else it is shown as it is.
    """

    title: str
    metric: str
    shots: str
    in_points: bool

    @property
    def detail(self) -> str:
        """Metric and shots; empty for the mean."""
        return f"{self.metric}, {self.shots}" if self.metric else ""


@dataclass(frozen=True)
class Board:
    """Models by tasks.

    Attributes:
        names: Of the models.
        columns: The mean of all tasks first where there is one, then the tasks that any model has.
        cells: For each model one estimate a column; None where it was not asked.
        profiles: What the scores are scores of: suite and profile.
        notes: What a reader of the scores must know.
    """

    names: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: tuple[tuple[Estimate | None, ...], ...]
    profiles: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def num_means(self) -> int:
        """1 where the first column is the mean of the others, else 0."""
        return int(bool(self.columns) and not self.columns[0].metric)


def task_title(task: str) -> str:
    """The name of a task as papers print it."""
    return TITLES.get(task, task)


def suite_title(suite: str) -> str:
    """The name of the mean over a suite."""
    return "H6" if suite == "h6" else "mean"


def score_board(models: Sequence[ModelScores]) -> Board:
    """Put models side by side; tasks stand in the order in which the models have them.

    The mean stands only where all models have the same tasks.
    """
    tasks: dict[str, TaskScores] = {}
    for model in models:
        for task in model.tasks:
            tasks.setdefault(task.task, task)
    columns = [
        Column(task_title(name), metric_name(task.metric), _shots(task), not is_lower_better(task.metric))
        for name, task in tasks.items()
    ]
    cells: list[list[Estimate | None]] = []
    for model in models:
        own = {task.task: task for task in model.tasks}
        cells.append([estimate(own[name]) if name in own else None for name in tasks])
    means = [suite_of(model) for model in models]
    if models and all(means) and all({task.task for task in model.tasks} == tasks.keys() for model in models):
        suites = {suite_title(model.suite) for model in models}
        columns.insert(0, Column(suites.pop() if len(suites) == 1 else "mean", "", "", columns[0].in_points))
        for row, mean in zip(cells, means, strict=True):
            row.insert(0, mean)
    profiles = dict.fromkeys(" ".join(filter(None, (model.suite, model.profile))) for model in models)
    notes = {
        f"{task_title(task.task)}: {_bare(note, task.task)}": None
        for model in models
        for task in model.tasks
        for note in _notes(task)
    }
    return Board(
        tuple(model.model for model in models), tuple(columns), tuple(map(tuple, cells)), tuple(profiles), tuple(notes)
    )


def points(value: float, in_points: bool = True) -> str:
    """A score: ``71.2`` points of a share, or a number to three places."""
    return f"{100 * value:.1f}" if in_points else f"{value:.3f}"


def signed_points(value: float, in_points: bool = True) -> str:
    """A difference with its sign: ``+1.2``, ``\u22120.4``."""
    return f"{100 * value:+.1f}".replace("-", "\u2212") if in_points else f"{value:+.3f}".replace("-", "\u2212")


def with_margin(one: Estimate | None, in_points: bool = True) -> str:
    """A score and half its interval: ``71.2 ± 2.6``; nothing where there is none, no margin for a single item."""
    if one is None:
        return ""
    margin = points(one.margin, in_points)
    return points(one.mean, in_points) + (f" ± {margin}" if margin != "nan" else "")


def score_cells(board: Board) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headings, and a row a model: its name, the mean of all tasks where there is one, each task, as ``71.2 ± 2.6``."""
    headers = ("model", *(column.title for column in board.columns))
    rows = tuple(
        (name, *(with_margin(one, column.in_points) for one, column in zip(row, board.columns, strict=True)))
        for name, row in zip(board.names, board.cells, strict=True)
    )
    return headers, rows


def scores_table(models: Sequence[ModelScores]) -> str:
    """Scores for the terminal, one line a model, each with half of its interval; below, what they are scores of."""
    board = score_board(models)
    headers, rows = score_cells(board)
    details = ("", *(column.shots for column in board.columns))
    notes = [f"{', '.join(board.profiles)}; ± is half of a 95 % interval", *board.notes]
    return "\n".join([render_table(headers, [*rows, details]), *notes])


def _shots(task: TaskScores) -> str:
    return f"{task.num_fewshot} shot{'' if task.num_fewshot == 1 else 's'}"


def _bare(note: str, task: str) -> str:
    """A note without the name of its task, which is put before it anyway."""
    return note.removeprefix(f"{task}: ").removeprefix(f"{task_title(task)}: ")


def _notes(task: TaskScores) -> tuple[str, ...]:
    counted = f"{task.num_items} of {task.num_available} items"
    if task.num_items >= task.num_available or any(counted in note for note in task.notes):
        return task.notes
    return (f"a sample of {task.num_items:,} of {task.num_available:,} items", *task.notes)
