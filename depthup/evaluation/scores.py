"""What an evaluation leaves: one number an item, so that any two models can be compared item by item. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Weighting = Literal["items", "groups"]


@dataclass(frozen=True)
class Totals:
    """A score of which the single items are unknown: read from another's table, or from a file without samples."""

    num_items: int
    mean: float
    standard_error: float


@dataclass(frozen=True)
class TaskScores:
    """The items of one task under one model.

    Attributes:
        task: Its name in the harness: ``arc_challenge``.
        metric: The metric of ``values``: ``acc_norm``.
        num_fewshot: Worked examples before each question.
        items: Identity of each item, a hash of its document: what pairs two models' answers.
        values: The metric of each item, 0 or 1, or a share of probability; in points only when printed.
        groups: Group of each item (the subject of MMLU); empty where the task has none.
        weighting: How groups are averaged: all items alike, or groups alike (macro).
        num_available: Items of the whole split; more than ``len(items)`` where a sample was drawn.
        others: Further metrics, one number an item each: ``{"acc": (...)}``.
        version: The task's version, as the harness states it.
        notes: What a reader of the score must know: where the examples came from, what was left out.
        totals: The score where its items are unknown; ``items`` and ``values`` are then empty.
    """

    task: str
    metric: str
    num_fewshot: int
    items: tuple[str, ...]
    values: tuple[float, ...]
    num_available: int
    groups: tuple[str, ...] = ()
    weighting: Weighting = "items"
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    version: str = ""
    notes: tuple[str, ...] = ()
    totals: Totals | None = None

    @property
    def num_items(self) -> int:
        """Items that were answered."""
        return self.totals.num_items if self.totals else len(self.values)


@dataclass(frozen=True)
class Sample:
    """One item as the model saw it, to look at.

    Attributes:
        task: Name of its task.
        item: Its identity, as in :class:`TaskScores`.
        document: The item's own fields.
        prompts: Context and continuation (or what ends the text) of each request.
        responses: What the model gave to each: log-likelihood and whether it was the likeliest, or text.
        target: The right answer.
        value: The metric of this item.
    """

    task: str
    item: str
    document: Mapping[str, Any]
    prompts: tuple[tuple[str, ...], ...]
    responses: tuple[Any, ...]
    target: str
    value: float


@dataclass(frozen=True)
class ModelScores:
    """The tasks of one suite under one model.

    Attributes:
        model: Name or path, as it was given.
        fingerprint: Identity of weights, configuration and tokenizer.
        suite: Name of the suite: ``h6``.
        profile: ``leaderboard-v1`` or ``harness-0.4``.
        tasks: In the suite's order.
        settings: What else changes a score: limit, seed, chat template, type of the weights, data.
        versions: Of depthup, lm-eval, transformers, torch.
        seconds: Time that it took; circumstance.
    """

    model: str
    fingerprint: str
    suite: str
    profile: str
    tasks: tuple[TaskScores, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
