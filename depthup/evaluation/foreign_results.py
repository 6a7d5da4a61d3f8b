"""Results files that lm-eval wrote, and the samples beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, shown
from .samples import value_of
from .scores import ModelScores, TaskScores, Totals, Weighting
from .sources import LAYOUTS, item_ids
from .statistics import metric_name

# Of several metrics of a task, the one that is its score.
_PREFERRED = ("acc_norm,none", "exact_match,strict-match", "acc,none", "exact_match,none")
_MOST = 1e100  # of a score; its square is finite
_H6 = {"arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k"}


def samples_file(results: Path, task: str) -> Path:
    """Where the samples of a task lie, beside ``results_DATE.json``."""
    return results.with_name(f"samples_{task}_{results.stem.partition('_')[2]}.jsonl")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one on each line.

    Raises:
        DataError: A line is something else.
    """
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise ValueError("it is no object")
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: {error}", next_step="write the samples again") from error
            yield line


def from_harness(form: Mapping[str, Any], path: Path) -> ModelScores:
    """The scores of a results file of lm-eval 0.4; item by item where the samples lie beside it.

    Raises:
        DataError: The samples are of another run.
        KeyError, TypeError, ValueError, AttributeError: It is not of that form.
    """
    results, children = form["results"], form.get("group_subtasks", {})
    tasks, taken = {}, set()
    for name in (*(name for name in results if children.get(name)), *(n for n in results if not children.get(n))):
        if name not in taken:
            leaves = _leaves(name, children, results)
            task = _task(name, leaves, form, path)
            if task:
                tasks[name] = task
                taken |= {*leaves, *_below(name, children)}
    if not tasks:
        raise ValueError("it holds no score")
    version = str(form.get("lm_eval_version") or "")
    return ModelScores(
        model=str(form.get("model_name") or form.get("config", {}).get("model") or path.parent.name),
        fingerprint=str(form.get("config", {}).get("model_sha") or ""),
        suite="h6" if tasks.keys() == _H6 else "",
        profile="harness-0.4" if version.startswith("0.4") or not version else f"lm-eval {version}",
        tasks=tuple(tasks[name] for name in results if name in tasks),
        settings={
            **{name: form.get(name) for name in ("chat_template", "system_instruction", "fewshot_as_multiturn")},
            "limit": form.get("config", {}).get("limit"),
        },
        versions={name: str(form[key]) for name, key in (("lm_eval", "lm_eval_version"),) if form.get(key)},
        seconds=float(form.get("total_evaluation_time_seconds") or 0),
    )


def _below(name: str, children: Mapping[str, Any]) -> set[str]:
    below = set(children.get(name, ()))
    return below.union(*(_below(child, children) for child in below))


def _leaves(name: str, children: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    if not children.get(name):
        return [name]
    return [leaf for child in children[name] for leaf in _leaves(child, children, results) if leaf in results]


def _task(name: str, leaves: list[str], form: Mapping[str, Any], path: Path) -> TaskScores | None:
    """One task, or one group whose score is a mean over its tasks; None for a group that has no such score."""
    row = form["results"][name]
    numbers = [key for key, value in row.items() if "," in key and "_stderr," not in key and _is_number(value)]
    key = next((key for key in _PREFERRED if key in numbers), numbers[0] if numbers else None)
    if key is None:
        return None
    sizes = {leaf: _size(leaf, form) for leaf in leaves}
    weighting = _weighting(row[key], [(form["results"][leaf].get(key), sizes[leaf]) for leaf in leaves])
    if weighting is None:
        return None
    shots = {int(form.get("n-shot", {}).get(leaf) or 0) for leaf in leaves}
    counts = [form.get("n-samples", {}).get(leaf, {}).get("original") or sizes[leaf] for leaf in leaves]
    fields: dict[str, Any] = {
        "task": name, "metric": key.removesuffix(",none"), "num_fewshot": max(shots), "num_available": sum(counts),
        "version": _version(leaves, form),
    }  # fmt: skip
    found = {leaf: samples_file(path, leaf) for leaf in leaves}
    if not all(file.is_file() for file in found.values()):
        num_items = sum(sizes.values())
        totals = Totals(num_items, float(row[key]), _error(name, key, row, num_items))
        return TaskScores(items=(), values=(), weighting=weighting, totals=totals, **fields)
    items, values, groups = [], [], []
    for leaf, file in found.items():
        pairs = _values(file, key, name if name in LAYOUTS else leaf)
        mean = math.fsum(value for _, value in pairs) / max(len(pairs), 1)
        if len(pairs) != sizes[leaf] or abs(mean - form["results"][leaf][key]) > 1e-6:
            raise DataError(f"{file} is of another run than {path.name}", next_step="remove it, or get both again")
        items += [item for item, _ in pairs]
        values += [value for _, value in pairs]
        groups += [leaf] * len(pairs)
    grouped = tuple(groups) if len(leaves) > 1 else ()
    return TaskScores(items=tuple(items), values=tuple(values), groups=grouped, weighting=weighting, **fields)


def _version(leaves: Sequence[str], form: Mapping[str, Any]) -> str:
    """The version of a task, for a group that of its tasks where they have one in common: as depthup states it."""
    versions = {str(form.get("versions", {}).get(leaf, "")).replace("N/A", "") for leaf in leaves}
    return versions.pop() if len(versions) == 1 else ""


def _values(file: Path, key: str, task: str) -> list[tuple[str, float]]:
    filtered = key.partition(",")[2]
    try:
        lines = [line for line in read_lines(file) if line["filter"] == filtered and metric_name(key) in line]
        return list(zip(identities(task, lines), [value_of(line, key) for line in lines], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is no file of samples: {error!r}", next_step="remove it, or write it again") from error


def identities(task: str, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Identity of the item in each line of samples, the one that depthup gives it: models of both are then paired.

    The harness's own hash counts only where the item's fields are not there.

    Raises:
        KeyError: A line has neither.
    """
    try:
        return item_ids(task, [line["doc"] for line in lines])
    except (KeyError, TypeError):
        return [str(line["doc_hash"]) for line in lines]


def _weighting(mean: float, parts: list[tuple[Any, int]]) -> Weighting | None:
    """How a group's score comes from those of its tasks; the file does not say it, the numbers do."""
    if not parts or not all(_is_number(part) for part, _ in parts):
        return None
    if abs(sum(part * size for part, size in parts) / sum(size for _, size in parts) - mean) < 1e-9:
        return "items"
    return "groups" if abs(sum(part for part, _ in parts) / len(parts) - mean) < 1e-9 else None


def _size(leaf: str, form: Mapping[str, Any]) -> int:
    size = form.get("n-samples", {}).get(leaf, {}).get("effective") or form["results"][leaf].get("sample_len")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"it does not say how many items {shown(leaf)} has")
    return size


def _error(name: str, key: str, row: Mapping[str, Any], num_items: int) -> float:
    measure, _, filtered = key.partition(",")
    error, mean = row.get(f"{measure}_stderr,{filtered}"), row[key]
    if isinstance(error, float) and 0 <= error < _MOST:
        return error
    if num_items > 1 and 0 <= mean <= 1 and abs(mean * num_items - round(mean * num_items)) < 1e-6:
        return math.sqrt(mean * (1 - mean) / (num_items - 1))  # of items that are 0 or 1
    raise ValueError(f"it has no standard error of {shown(name)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST
