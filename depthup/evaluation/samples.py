"""Items as a model saw them, one a line, in the form of lm-eval's ``samples_*.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .results_form import metric_key, sha256
from .scores import Sample, TaskScores


def to_line(sample: Sample, task: TaskScores, place: int) -> dict[str, Any]:
    """One sample as its line of JSON holds it.

    Args:
        sample: The item.
        task: Its task; the item's other metrics come from there.
        place: Where the item stands in the task.
    """
    measure, _, filtered = metric_key(task.metric).partition(",")
    metrics = {measure: sample.value}
    for other, values in task.others.items():
        name, _, with_filter = metric_key(other).partition(",")
        if with_filter == filtered:
            metrics.setdefault(name, values[place])
    document = json.dumps(sample.document, ensure_ascii=False, indent=2, default=str)
    return {
        "doc_id": place,
        "doc": sample.document,
        "target": sample.target,
        "arguments": {
            f"gen_args_{i}": {f"arg_{j}": text for j, text in enumerate(prompt)}
            for i, prompt in enumerate(sample.prompts)
        },
        "resps": [[_as_text(response)] for response in sample.responses],
        "filtered_resps": [_as_text(response) for response in sample.responses],
        "filter": filtered,
        "metrics": list(metrics),
        "doc_hash": sample.item or sha256(document),
        "prompt_hash": sha256(sample.prompts[0][0] if sample.prompts else ""),
        "target_hash": sha256(sample.target),
        **metrics,
    }


def from_line(line: Mapping[str, Any], task: str, metric: str) -> Sample:
    """The sample that a line holds, be it ours or the harness's.

    Raises:
        KeyError, TypeError, ValueError, IndexError: The line is of another form.
    """
    prompts = tuple(
        tuple(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in arguments.values())
        for arguments in line["arguments"].values()
    )
    return Sample(
        task=task,
        item=str(line["doc_hash"]),
        document=line["doc"] if isinstance(line["doc"], dict) else {"doc": line["doc"]},
        prompts=prompts,
        responses=tuple(_from_text(response[0]) for response in line["resps"]),
        target=str(line["target"]),
        value=value_of(line, metric),
    )


def value_of(line: Mapping[str, Any], metric: str) -> float:
    """The value of a metric in a line."""
    return float(line[metric.partition(",")[0]])


def _as_text(response: Any) -> Any:
    """Responses as the harness writes them: numbers and truth values as text."""
    return [str(part) for part in response] if isinstance(response, (tuple, list)) else str(response)


def _from_text(response: Any) -> Any:
    if isinstance(response, list) and len(response) == 2:
        return float(response[0]), response[1] == "True"
    return response
