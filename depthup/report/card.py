"""Scores in the two forms that the Hub reads: ``model-index`` in a model card, and ``.eval_results/*.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError, OutputError
from ..evaluation.scores import ModelScores, TaskScores
from ..evaluation.statistics import estimate, is_lower_better, metric_name
from ..files import write_text


@dataclass(frozen=True)
class Source:
    """Where a score can be looked up: the Hub shows it as a link."""

    url: str
    name: str = "depthup"


@dataclass(frozen=True)
class _Dataset:
    """A data set on the Hub, the part of it that a task reads, and its name among people."""

    id: str
    config: str | None
    split: str
    title: str


_DATASETS = {
    "arc_challenge": _Dataset("allenai/ai2_arc", "ARC-Challenge", "test", "AI2 Reasoning Challenge"),
    "arc_easy": _Dataset("allenai/ai2_arc", "ARC-Easy", "test", "AI2 Reasoning Challenge, easy"),
    "hellaswag": _Dataset("Rowan/hellaswag", None, "validation", "HellaSwag"),
    "mmlu": _Dataset("cais/mmlu", "all", "test", "MMLU"),
    "truthfulqa_mc2": _Dataset("truthfulqa/truthful_qa", "multiple_choice", "validation", "TruthfulQA"),
    "winogrande": _Dataset("allenai/winogrande", "winogrande_xl", "validation", "WinoGrande"),
    "gsm8k": _Dataset("openai/gsm8k", "main", "test", "GSM8K"),
}
_METRICS = {"acc": "accuracy", "acc_norm": "normalized accuracy", "exact_match": "exact match"}


def model_index(scores: ModelScores, source: Source | None = None) -> list[dict[str, Any]]:
    """The value of ``model-index`` in a card's front matter, one result a task.

    Shares stand in points. What the form has no field for (profile, standard error, interval, items) stands among the
    arguments of the metric.

    Args:
        scores: One model.
        source: Where the scores can be looked up.
    """
    return [{"name": _short_name(scores.model), "results": [_result(scores, task, source) for task in scores.tasks]}]


def with_model_index(card: str, scores: ModelScores, source: Source | None = None) -> str:
    """A model card with these scores in its front matter; an index that it had is replaced, all else stays.

    Args:
        card: The text of a ``README.md``, with or without front matter.
        scores: One model.
        source: Where the scores can be looked up.

    Raises:
        DataError: The card's front matter is no YAML mapping.
    """
    fields, body = split_card(card)
    return join_card({**fields, "model-index": model_index(scores, source)}, body)


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """The fields of a card's front matter, and what stands below; no fields where there is no front matter.

    Raises:
        DataError: The front matter is no YAML mapping.
    """
    found = re.match(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", card, re.DOTALL | re.MULTILINE)
    head, body = (found[1], card[found.end() :]) if found else ("", card)
    try:
        fields = yaml.safe_load(head) or {}
    except yaml.YAMLError as error:
        raise DataError(
            "the front matter of the card is no YAML", next_step="put it right: it stands between ---"
        ) from error
    if not isinstance(fields, dict):
        raise DataError("the front matter of the card is no mapping", next_step="put it right: it stands between ---")
    return fields, body


def join_card(fields: Mapping[str, Any], body: str) -> str:
    """A card of front matter and text."""
    return f"---\n{_yaml(dict(fields))}---\n{body}"


def eval_results(scores: ModelScores, source: Source | None = None, date: str | None = None) -> dict[str, str]:
    """The files of ``.eval_results/`` as text, by name; one a task, without tasks whose data set has no known id.

    Args:
        scores: One model.
        source: Where the scores can be looked up.
        date: Of the evaluation, ISO 8601.
    """
    files = {}
    for task in scores.tasks:
        if task.task not in _DATASETS:
            continue
        entry: dict[str, Any] = {
            "dataset": {"id": _DATASETS[task.task].id, "task_id": task.task},
            "value": _value(task),
        }
        if date:
            entry["date"] = date
        if source:
            entry["source"] = {"url": source.url, "name": source.name}
        entry["notes"] = _notes(scores, task)
        files[f"{task.task}.yaml"] = _yaml([entry])
    return files


def write_eval_results(
    folder: Path | str, scores: ModelScores, source: Source | None = None, date: str | None = None
) -> list[Path]:
    """Write :func:`eval_results` into ``folder/.eval_results``; files of the same tasks are replaced.

    Raises:
        OutputError: The folder cannot be written.
    """
    place, written = Path(folder) / ".eval_results", []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in eval_results(scores, source, date).items():
            write_text(place / name, text)
            written.append(place / name)
    except OSError as error:
        raise OutputError(
            f"{place} was not written: {error.strerror or error}", next_step="choose another folder"
        ) from error
    return written


def _result(scores: ModelScores, task: TaskScores, source: Source | None) -> dict[str, Any]:
    known = _DATASETS.get(task.task, _Dataset(task.task, None, "", task.task))
    one, scale = estimate(task), 1 if is_lower_better(task.metric) else 100
    dataset: dict[str, Any] = {"name": f"{known.title} ({task.num_fewshot}-shot)", "type": known.id}
    if known.config:
        dataset["config"] = known.config
    if known.split:
        dataset["split"] = known.split
    dataset["args"] = {"num_few_shot": task.num_fewshot}
    measure = metric_name(task.metric)
    result: dict[str, Any] = {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": dataset,
        "metrics": [
            {
                "type": "mc2" if task.task == "truthfulqa_mc2" else measure,
                "value": _value(task),
                "name": "mc2" if task.task == "truthfulqa_mc2" else _METRICS.get(measure, measure),
                "args": {
                    "profile": scores.profile,
                    "standard_error": _rounded(scale * one.standard_error),
                    "interval_95": [_rounded(scale * one.low), _rounded(scale * one.high)],
                    "num_items": task.num_items,
                    "num_available": task.num_available,
                },
            }
        ],
    }
    if source:
        result["source"] = {"name": source.name, "url": source.url}
    return result


def _notes(scores: ModelScores, task: TaskScores) -> str:
    one, scale = estimate(task), 1 if is_lower_better(task.metric) else 100
    template = "chat template applied" if scores.settings.get("chat_template") else "no chat template"
    items = f"{task.num_items:,} items"
    if task.num_items < task.num_available:
        items = f"a sample of {task.num_items:,} of {task.num_available:,} items"
    said = [f"{task.num_fewshot}-shot", task.metric, f"profile {scores.profile}", template, items]
    return "; ".join([*said, f"standard error {_rounded(scale * one.standard_error)}", *task.notes])


def _value(task: TaskScores) -> float | None:
    return _rounded(estimate(task).mean * (1 if is_lower_better(task.metric) else 100))


def _rounded(value: float) -> float | None:
    return round(value, 2) if value == value else None


def _short_name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2] or model


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return text
