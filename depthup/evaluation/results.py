"""Results on the disk: ``results_DATE.json`` and ``samples_TASK_DATE.jsonl``, ours or lm-eval's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import DataError, OutputError, shown
from ..files import write_json, write_text
from .foreign_results import from_harness, identities, read_lines, samples_file
from .results_form import folder_name, from_form, metric_key, sha256, subtask, to_form
from .samples import from_line, to_line
from .scores import ModelScores, Sample, TaskScores

_HASHES = ("doc_hash", "prompt_hash", "target_hash")
_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)


def write_results(
    folder: Path | str, scores: ModelScores, samples: Sequence[Sample] = (), *, date: datetime | None = None
) -> Path:
    """Write scores, and samples if there are any, into ``folder/MODEL/`` as lm-eval names its files.

    Each file is written whole or not at all, the results last.

    Args:
        folder: Made if it is not there.
        scores: What to write.
        samples: Items of its tasks, as the model saw them.
        date: In the files' names (now).

    Returns:
        The results file.

    Raises:
        DataError: A value is not finite.
        OutputError: The folder cannot be written.
    """
    moment = (date or datetime.now(UTC)).replace(tzinfo=None).isoformat()
    path = Path(folder) / folder_name(scores.model) / f"results_{moment.replace(':', '-')}.json"
    form = to_form(scores, moment)
    lines = _sample_lines(scores, samples)
    form["task_hashes"] = {
        name: sha256("".join(line[key] for line in of_task for key in _HASHES)) for name, of_task in lines.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, of_task in lines.items():
            text = "".join(f"{json.dumps(line, ensure_ascii=False, default=str)}\n" for line in of_task)
            write_text(samples_file(path, name), text)
        write_json(path, form)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path} was not written: {reason}", next_step="choose another folder") from error
    return path


def _sample_lines(scores: ModelScores, samples: Sequence[Sample]) -> dict[str, list[dict[str, Any]]]:
    """Lines of samples under the harness's name of their task, for a task with groups that of the group."""
    tasks = {task.task: task for task in scores.tasks}
    places = {name: {item: i for i, item in enumerate(task.items)} for name, task in tasks.items()}
    lines: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        task, place = tasks[sample.task], places[sample.task][sample.item]
        name = subtask(task.task, task.groups[place]) if task.groups else task.task
        lines.setdefault(name, []).append(to_line(sample, task, place))
    return lines


def find_results(place: Path | str) -> Path:
    """The results file that a path means: the file itself, or the newest one of the single model in a folder.

    Raises:
        DataError: There is none, or those of several models.
    """
    path = Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"there is no {path}", allowed="a results file, or the folder that it lies in")
    found = sorted([*path.glob("results_*.json"), *path.glob("*/results_*.json")], key=lambda file: file.name)
    if not found:
        raise DataError(f"{path} holds no results_*.json", next_step="write one with `depthup evaluate`")
    folders = sorted({str(file.parent) for file in found})
    if len(folders) > 1:
        raise DataError(
            f"{path} holds the results of {len(folders)} models",
            allowed="a results file, or the folder of one model",
            next_step=f"name one, as in {folders[0]}",
        )
    return found[-1]


def read_results(place: Path | str) -> ModelScores:
    """The scores in a results file of depthup or of lm-eval 0.4.

    A file of lm-eval's holds no single items; they come from the samples beside it (``--log_samples``), and where
    there are none, the scores are known as totals only.

    Args:
        place: The file, or the folder that it lies in (:func:`find_results`).

    Raises:
        DataError: It is no such file, is broken, or its samples are of another run.
    """
    path = find_results(place)
    form = _read(path)
    try:
        return from_form(form) if "depthup" in form else from_harness(form, path)
    except _WRONG as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path} is no results file that depthup can read: {shown(reason, 200)}",
            allowed="what `depthup evaluate` or lm-eval 0.4 writes as results_*.json",
        ) from error


def read_samples(place: Path | str, task: str) -> tuple[Sample, ...]:
    """The items of a task as the model saw them, from the samples beside a results file.

    Raises:
        DataError: No such task, no samples of it, or they are broken.
    """
    path = find_results(place)
    scores = read_results(path)
    found = {one.task: one for one in scores.tasks}
    if task not in found:
        raise DataError(f"{path} has no task {shown(task)}", allowed=", ".join(found))
    samples = []
    for file in _sample_files(path, found[task]):
        if not file.is_file():
            raise DataError(f"there is no {file}", next_step="evaluate again, and keep the samples")
        samples += _samples_in(file, found[task])
    return tuple(samples)


def _sample_files(path: Path, task: TaskScores) -> list[Path]:
    """One file, or one for each group; the harness's groups are tasks with names of their own."""
    if not task.groups:
        return [samples_file(path, task.task)]
    choices = [(samples_file(path, group), samples_file(path, subtask(task.task, group))) for group in task.groups]
    return list(dict.fromkeys(own if own.is_file() else other for own, other in choices))


def _samples_in(file: Path, task: TaskScores) -> list[Sample]:
    filtered = metric_key(task.metric).partition(",")[2]
    try:
        lines = [line for line in read_lines(file) if line["filter"] == filtered]
        samples = [from_line(line, task.task, task.metric) for line in lines]
        if {sample.item for sample in samples} <= set(task.items):
            return samples
        names = identities(task.task, lines)  # in the files of the harness items have other hashes
        return [replace(sample, item=name) for sample, name in zip(samples, names, strict=True)]
    except _WRONG as error:
        raise DataError(f"{file} is no file of samples: {error!r}", next_step="write it again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        form = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read: {shown(str(reason), 200)}", next_step="get it again") from error
    if not isinstance(form, dict) or not isinstance(form.get("results"), dict):
        raise DataError(
            f"{path} is no results file",
            allowed="what `depthup evaluate` or lm-eval 0.4 writes as results_*.json",
        )
    return form
