"""Scores in the form of lm-eval 0.4.13's results file, so that what reads its output reads ours.

What that form has no place for stands under one key, ``depthup``: every item with its value, the interval, the profile,
what was noted. Columns of items are one string each, separated by spaces: a file of H6 has 28,659 of them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, shown
from .scores import ModelScores, TaskScores, Totals, Weighting
from .statistics import as_json, estimate, group_codes, is_lower_better, metric_name, sample_moments, suite_of

VERSION = 1


def metric_key(metric: str) -> str:
    """A metric as the harness writes it, with its filter: ``acc`` -> ``acc,none``."""
    return metric if "," in metric else f"{metric},none"


def folder_name(model: str) -> str:
    """The name of a model as the harness makes a folder's name of it."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model)


def subtask(task: str, group: str) -> str:
    """The harness's name of one group of a task: ``mmlu`` and ``anatomy`` -> ``mmlu_anatomy``."""
    return group if group.startswith(f"{task}_") else f"{task}_{group}"


def to_form(scores: ModelScores, date: str) -> dict[str, Any]:
    """The results file of a model, as JSON can hold it.

    Raises:
        DataError: A value is not finite.
    """
    template = scores.settings.get("chat_template")
    form: dict[str, Any] = {
        "results": {}, "groups": {}, "group_subtasks": {}, "configs": {}, "versions": {}, "n-shot": {},
        "higher_is_better": {}, "n-samples": {},
        "config": {"model": "depthup", "model_args": f"pretrained={scores.model}", **_plain(scores.settings)},
        "date": date,
        "lm_eval_version": scores.versions.get("lm_eval"),
        "transformers_version": scores.versions.get("transformers"),
        "model_source": "depthup",
        "model_name": scores.model,
        "model_name_sanitized": folder_name(scores.model),
        "system_instruction": scores.settings.get("system_instruction"),
        "fewshot_as_multiturn": scores.settings.get("fewshot_as_multiturn"),
        "chat_template": template if isinstance(template, str) else None,
        "chat_template_sha": sha256(template) if isinstance(template, str) else None,
        "total_evaluation_time_seconds": str(scores.seconds),
    }  # fmt: skip
    for task in scores.tasks:
        _add_task(form, task)
    if not form["groups"]:
        del form["groups"]
    mean = suite_of(scores)
    form["depthup"] = {
        "version": VERSION,
        "model": scores.model,
        "fingerprint": scores.fingerprint,
        "suite": scores.suite,
        "profile": scores.profile,
        "mean": as_json(mean) if mean else None,
        "settings": _plain(scores.settings),
        "versions": dict(scores.versions),
        "seconds": scores.seconds,
        "tasks": {task.task: _own(task) for task in scores.tasks},
    }
    return form


def _add_task(form: dict[str, Any], task: TaskScores) -> None:
    columns = {task.metric: task.values, **task.others}
    for metric, values in columns.items():
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise DataError(
                    f"{metric} of item {i} of {task.task} is {value}", next_step="check the model: `depthup check`"
                )
    members: dict[str, list[int]] = {}
    for i, group in enumerate(task.groups):
        members.setdefault(subtask(task.task, group), []).append(i)
    whole = task.num_items == task.num_available
    for name, rows in members.items():
        part = {metric: _cell([values[i] for i in rows], task.weighting) for metric, values in columns.items()}
        _add(form, task, name, part, len(rows), len(rows) if whole else None)
    if task.totals:
        cells = {task.metric: (task.totals.mean, task.totals.standard_error)}
    else:
        cells = {metric: _cell(values, task.weighting, task.groups) for metric, values in columns.items()}
    _add(form, task, task.task, cells, task.num_items, task.num_available)
    form["group_subtasks"][task.task] = list(members)
    if members:
        form["groups"][task.task] = form["results"][task.task]


def _add(
    form: dict[str, Any], task: TaskScores, name: str, cells: Mapping[str, tuple[float, float]], num_items: int,
    num_available: int | None,
) -> None:  # fmt: skip
    row: dict[str, Any] = {"name": name, "alias": name, "sample_len": num_items}
    for metric, (mean, error) in cells.items():
        measure, _, filtered = metric_key(metric).partition(",")
        row[f"{measure},{filtered}"] = mean
        row[f"{measure}_stderr,{filtered}"] = error if math.isfinite(error) else "N/A"
    form["results"][name] = row
    better = {metric_name(metric): not is_lower_better(metric) for metric in cells}
    form["configs"][name] = {
        "task": name,
        "num_fewshot": task.num_fewshot,
        "metric_list": [{"metric": metric, "higher_is_better": higher} for metric, higher in better.items()],
        "metadata": {"version": task.version},
    }
    form["versions"][name] = task.version
    form["n-shot"][name] = task.num_fewshot
    form["higher_is_better"][name] = better
    form["n-samples"][name] = {"original": num_available, "effective": num_items}


def _cell(values: Sequence[float], weighting: Weighting, groups: Sequence[str] = ()) -> tuple[float, float]:
    moments = sample_moments(np.asarray(values, float), group_codes(groups), weighting)
    return moments.mean, moments.standard_error


def _own(task: TaskScores) -> dict[str, Any]:
    names = sorted(set(task.groups))
    place = {name: i for i, name in enumerate(names)}
    return {
        "metric": task.metric,
        "num_fewshot": task.num_fewshot,
        "num_available": task.num_available,
        "weighting": task.weighting,
        "version": task.version,
        "notes": list(task.notes),
        "score": as_json(estimate(task)),
        "totals": [task.totals.num_items, task.totals.mean, task.totals.standard_error] if task.totals else None,
        "group_names": names,
        "groups": " ".join(str(place[group]) for group in task.groups),
        "items": " ".join(_item(item) for item in task.items),
        "values": _column(task.values),
        "others": {metric: _column(values) for metric, values in task.others.items()},
    }


def from_form(form: Mapping[str, Any]) -> ModelScores:
    """The scores that :func:`to_form` wrote.

    Raises:
        KeyError, TypeError, ValueError: They are not whole.
    """
    own = form["depthup"]
    if own["version"] != VERSION:
        raise ValueError(f"it has version {shown(own['version'])} of the form, this depthup reads {VERSION}")
    return ModelScores(
        model=_text(own["model"]),
        fingerprint=_text(own["fingerprint"]),
        suite=_text(own["suite"]),
        profile=_text(own["profile"]),
        tasks=tuple(_task(_text(name), task) for name, task in own["tasks"].items()),
        settings=dict(own["settings"]),
        versions=dict(own["versions"]),
        seconds=float(own["seconds"]),
    )


def _task(name: str, own: Mapping[str, Any]) -> TaskScores:
    items, values = tuple(own["items"].split()), _numbers(own["values"])
    names = own["group_names"]
    groups = tuple(_text(names[int(place)]) for place in own["groups"].split())
    others = {_text(metric): _numbers(column) for metric, column in own["others"].items()}
    totals = Totals(int(own["totals"][0]), *map(float, own["totals"][1:])) if own["totals"] else None
    columns = [values, *others.values(), *([groups] if groups else [])]
    if any(len(column) != len(items) for column in columns) or not (items or totals):
        raise ValueError(f"the columns of {shown(name)} are not of one length")
    if own["weighting"] not in ("items", "groups"):
        raise ValueError(f"{shown(name)} is averaged over {shown(own['weighting'])}")
    return TaskScores(
        task=name, metric=_text(own["metric"]), num_fewshot=int(own["num_fewshot"]), items=items, values=values,
        num_available=int(own["num_available"]), groups=groups, weighting=own["weighting"], others=others,
        version=_text(own["version"]), notes=tuple(map(_text, own["notes"])), totals=totals,
    )  # fmt: skip


def sha256(text: str) -> str:
    """Hex digest of a text, as the harness makes it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _item(item: str) -> str:
    assert item and not re.search(r"\s", item), f"an item's identity is a hash, not {item!r}"
    return item


def _column(values: Iterable[float]) -> str:
    return " ".join(str(int(value)) if value in (0, 1) else repr(float(value)) for value in values)


def _numbers(column: str) -> tuple[float, ...]:
    values = tuple(map(float, column.split()))
    if not all(abs(value) < 1e100 for value in values):  # NaN is not
        raise ValueError("an item's value is not finite")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} stands where a text should")
    return value


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them: what it cannot hold, as text."""
    kinds = (str, int, float, bool, type(None), list, dict)
    return {key: value if isinstance(value, kinds) else str(value) for key, value in settings.items()}
