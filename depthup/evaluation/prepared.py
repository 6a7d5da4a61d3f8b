"""A task ready to be asked: its items with their requests, and how answers become scores. No torch, no harness."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .requests import Answer, Completion, Request, Whole
from .scores import Sample, TaskScores, Weighting

Metrics = Mapping[str, float]
STATED = "task version "  # stands before the task's own number in ``version``


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: Hash of its document.
        document: Its own fields.
        requests: What the model is asked for it.
        target: The right answer, to be read.
        group: The subject, where the task has groups.
    """

    id: str
    document: Mapping[str, Any]
    requests: tuple[Request, ...]
    target: str
    group: str = ""


@dataclass(frozen=True)
class PreparedTask:
    """Items, requests and metric of one task.

    Attributes:
        name: The task's name in lm-eval.
        profile: ``harness-0.4`` or ``leaderboard-v1``.
        metric: The one that is reported.
        num_fewshot: Worked examples before each question.
        items: In the order in which they are asked.
        grade: Metrics of each item from the answers to its requests; all items at once, in their order.
        num_available: Items of the whole benchmark, of which ``items`` may be a sample.
        weighting: How groups are averaged.
        version: Whose task this is, and which version of it.
        notes: What a reader of the score must know.
        identity: JSON of what the rows were: source and SHA-256 of the splits.
    """

    name: str
    profile: str
    metric: str
    num_fewshot: int
    items: tuple[Item, ...]
    grade: Callable[[Sequence[Sequence[Answer]]], list[Metrics]]
    num_available: int
    weighting: Weighting = "items"
    version: str = ""
    notes: tuple[str, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request, item after item."""
        return tuple(request for item in self.items for request in item.requests)

    def score(self, answers: Sequence[Answer]) -> tuple[TaskScores, tuple[Sample, ...]]:
        """What the answers are worth.

        Args:
            answers: One for each of ``requests``, in their order.

        Returns:
            The metric of each item, and each item as the model saw it.
        """
        given = iter(answers)
        answered = [[next(given) for _ in item.requests] for item in self.items]
        assert next(given, None) is None, "more answers than requests"
        metrics = self.grade(answered)
        values = tuple(float(found[self.metric]) for found in metrics)
        names = [name for name in metrics[0] if name != self.metric and all(name in found for found in metrics)]
        scores = TaskScores(
            task=self.name, metric=self.metric, num_fewshot=self.num_fewshot,
            items=tuple(item.id for item in self.items), values=values, num_available=self.num_available,
            groups=tuple(item.group for item in self.items) if self.items[0].group else (), weighting=self.weighting,
            others={name: tuple(float(found[name]) for found in metrics) for name in names},
            version=self.version, notes=self.notes,
        )  # fmt: skip
        samples = tuple(
            Sample(self.name, item.id, item.document, tuple(map(_prompt, item.requests)), tuple(given_to_item),
                   item.target, value)
            for item, given_to_item, value in zip(self.items, answered, values, strict=True)
        )  # fmt: skip
        return scores, samples


@dataclass(frozen=True)
class Choice:
    """Which items of a task are asked.

    Attributes:
        limit: The first so many in the profile's own order, of each group where there are groups; None for all.
        sample: So many, drawn; None for all. A drawn item has the very prompt that it has when all are asked.
        seed: Of the draw.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def drawn(self, task: str, groups: Sequence[str]) -> frozenset[int]:
        """The numbers of the items that are drawn, alike from all groups; the same for any profile.

        Args:
            task: Its name, part of the seed.
            groups: Group of each item of the whole benchmark, in its order.
        """
        if self.sample is None or self.sample >= len(groups):
            return frozenset(range(len(groups)))
        rng = random.Random(f"{self.seed} {task}")
        members: dict[str, list[int]] = {}
        for number, group in enumerate(groups):
            members.setdefault(group, []).append(number)
        order = sorted(members)
        rng.shuffle(order)
        for numbers in (members[group] for group in order):
            rng.shuffle(numbers)
        taken: list[int] = []
        while len(taken) < self.sample:  # one of each group in turn
            taken += [members[group].pop() for group in order if members[group]]
        return frozenset(taken[: self.sample])

    def notes(self, task: str, num_items: int, num_available: int, order: str) -> tuple[str, ...]:
        """What is said of it beside the score; ``order`` names the order of which ``limit`` takes the first."""
        if self.limit is not None:
            return (f"{task}: the first {num_items} of {num_available} items {order}",)
        if num_items < num_available:
            return (f"{task}: {num_items} of {num_available} items, drawn with seed {self.seed}",)
        return ()


def _prompt(request: Request) -> tuple[str, ...]:
    if isinstance(request, Whole):
        return (request.text,)
    if isinstance(request, Completion):
        return (request.context, *request.stop)
    return (request.context, request.text)
