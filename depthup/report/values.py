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
    """One training run; each point is (tokens seen since the base, value), losses in nats per token."""

    name: str
    training: tuple[tuple[int, float], ...]  # each step
    held_out: tuple[tuple[int, float], ...]
    learning_rate: tuple[tuple[int, float], ...]
    is_control: bool = False  # of the base, trained on without growing


@dataclass(frozen=True)
class Generation:
    """One prompt, continued by each model."""

    prompt: str
    continuations: tuple[tuple[str, str], ...]  # (model name, text)


@dataclass(frozen=True)
class DataSource:
    """An entry under a recipe's ``data:``, as a reader asks of it."""

    name: str
    where: str  # in words
    licence: str  # empty where nobody states it
    hub_name: str = ""  # owner/name on the Hub; empty for none
    stage: str = ""  # the stage that made it; empty for none


@dataclass(frozen=True)
class Table:
    """A table as text. A first heading that is empty is that of names."""

    title: str
    headers: tuple[str, ...]  # one a column
    rows: tuple[tuple[str, ...], ...]  # as many cells each; the first names the row
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a reader takes along in a minute; every number in it is of the records."""

    problem: str
    method: tuple[str, ...]  # sentences
    result: tuple[str, ...]  # sentences, the one that counts first
    limits: tuple[str, ...]


@dataclass(frozen=True)
class StageCard:
    """One stage of the lineage."""

    name: str
    kind: str
    fingerprint: str
    seconds: float
    inputs: tuple[str, ...]  # names of stages
    settings: tuple[tuple[str, str], ...]  # flattened key, value
    role: str = "model"  # or "data", "measure": what the graph of the lineage draws


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
    summary_of: Summary | None = None
    seams: Table | None = None
    recovery: tuple[tuple[str, str], ...] = ()  # what the loss curve shows, in words and numbers
    merges: tuple[Table, ...] = ()
    strengths: tuple[Table, ...] = ()  # per task, where one model is better than another
    data: tuple[Table, ...] = ()
    contamination: tuple[Table, ...] = ()
    cost: Table | None = None
    citation: str = ""  # BibTeX
    probes: tuple[Probe, ...] = ()
