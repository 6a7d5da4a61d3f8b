"""What a report is made of: plain frozen values. The figures, the tables and the page read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..evaluation.scores import ModelScores
from ..layers import LayerPlan


@dataclass(frozen=True)
class ModelRow:
    """One line of the main table."""

    name: str
    description: str
    num_layers: int
    num_parameters: int
    tokens_seen: int  # since the base; 0 for the base and the untrained target
    loss: float  # held-out, in nats per token; perplexity is exp(loss)
    num_held_out_tokens: int


@dataclass(frozen=True)
class Curve:
    """One training run; each point is (tokens seen, value), losses in nats per token."""

    name: str
    training: tuple[tuple[int, float], ...]  # each step
    held_out: tuple[tuple[int, float], ...]
    learning_rate: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Generation:
    """One prompt, continued by each model."""

    prompt: str
    continuations: tuple[tuple[str, str], ...]  # (model name, text)


@dataclass(frozen=True)
class StageCard:
    """One stage of the lineage."""

    name: str
    kind: str
    fingerprint: str
    seconds: float
    inputs: tuple[str, ...]  # names of stages
    settings: tuple[tuple[str, str], ...]  # flattened key, value


@dataclass(frozen=True)
class ComparedModel:
    """One line of a table of comparison."""

    name: str
    cells: tuple[str, ...]  # the mean of all tasks where there is one, each task, as 71.2 ± 2.6
    paper: str  # the paper's row beside it; empty for none
    paper_cells: tuple[str, ...]
    verdict: str  # on the mean, against the first model


@dataclass(frozen=True)
class ComparedTable:
    """Models against the first of them; without rows where the scores were left out."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[ComparedModel, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A look into a model: what its ``probe.json`` holds."""

    name: str
    found: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """Everything that the page shows. A part that is empty leaves its section out."""

    title: str
    summary: str
    notes: tuple[str, ...]  # what this shows and does not show
    plan: LayerPlan | None
    rows: tuple[ModelRow, ...]
    reference_losses: tuple[tuple[str, float], ...]  # name and nats per token, drawn as horizontal lines
    curves: tuple[Curve, ...]
    generations: tuple[Generation, ...]
    stages: tuple[StageCard, ...]
    environment: tuple[tuple[str, str], ...]  # versions, device
    scores: tuple[ModelScores, ...] = ()  # one a model, all of one suite
    comparisons: tuple[ComparedTable, ...] = ()
    probes: tuple[Probe, ...] = ()
