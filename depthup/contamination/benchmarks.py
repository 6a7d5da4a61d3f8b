"""Test sets as items: what is asked, and what is right. Read from a folder, whatever its rows are called."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest, shown


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a test set.

    Attributes:
        benchmark: Name of the test set, as in ``gsm8k``.
        id: Its id there; where rows have none, the row's number from 0.
        question: What is asked; of a sentence with a blank, the sentence with the right words in it.
        answer: What is right; empty where the question holds it.
    """

    benchmark: str
    id: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Where a test set lies below the data folder, and what it is.

    Attributes:
        file: Path, with or without ``.gz``.
        is_math: Whether its questions are the same test with other numbers in them.
    """

    file: str
    is_math: bool = False


# The rows that the Open LLM Leaderboard (2023) scored; HellaSwag and WinoGrande keep the answers of theirs secret.
BENCHMARKS: dict[str, tuple[Benchmark, ...]] = {
    "arc": (Benchmark("arc/arc_challenge_test.jsonl"),),
    "hellaswag": (Benchmark("hellaswag/validation.jsonl"),),
    "mmlu": (Benchmark("mmlu/test.jsonl"),),
    "truthfulqa": (Benchmark("truthfulqa/mc_task.json"),),
    "winogrande": (Benchmark("winogrande/dev.jsonl"),),
    "gsm8k": (Benchmark("gsm8k/test.jsonl", is_math=True),),
    "arc-easy": (Benchmark("arc/arc_easy_test.jsonl"),),
    "math": (Benchmark("math/test.jsonl", is_math=True),),
    "drop": (),  # known by the names of its tasks alone
}
SUITES = {"h6": ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k")}
MATH = frozenset(name for name, files in BENCHMARKS.items() if any(file.is_math for file in files))

_CALCULATION = re.compile(r"<<[^>]*>>")
_QUESTION_FIELDS = ("question", "Question", "problem", "query", "ctx", "sentence", "prompt", "text", "instruction")
_ANSWER_FIELDS = ("answer", "solution", "Best Answer", "label", "target", "output", "response", "completion")
_CHOICE_FIELDS = ("choices", "endings", "options")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def parse_benchmarks(text: str, folder: Path) -> tuple[str, ...]:
    """The names in ``h6``, ``arc,gsm8k`` or ``h6,my-test.jsonl``: a suite, a benchmark, or a file in the folder.

    Raises:
        DataError: A name is none of these.
    """
    names: list[str] = []
    for name in text.split(","):
        if name in SUITES:
            names += SUITES[name]
        elif name in BENCHMARKS or (folder / name).is_file():
            names.append(name)
        else:
            known = [*SUITES, *BENCHMARKS]
            raise DataError(
                f"no benchmark is called '{shown(name)}'{nearest(name, known)}",
                allowed=f"{', '.join(known)}, or a .jsonl or .json file in {folder}",
            )
    return tuple(dict.fromkeys(names))


def load_items(names: Sequence[str], folder: Path) -> list[Item]:
    """All items of some test sets, in their order.

    Args:
        names: Of ``BENCHMARKS``, or files of the folder.
        folder: The data folder.

    Raises:
        DataError: A file is missing, cannot be read, or a row of it holds no question.
    """
    items: list[Item] = []
    for name in names:
        for path in _paths(name, folder):
            for number, row in enumerate(_rows(path)):
                items.append(item_of(row, name, number, f"row {number + 1} of {path}"))
    return items


def item_files(names: Sequence[str], folder: Path) -> list[Path]:
    """The files that hold some test sets, in their order.

    Raises:
        DataError: One is not in the folder.
    """
    return [path for name in names for path in _paths(name, folder)]


def item_of(row: Any, benchmark: str, number: int, place: str) -> Item:
    """One row of a test set as an item, by the names of its fields.

    Raises:
        DataError: It has no field that is known to hold a question.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{place} is no row with fields but {shown(row)}", allowed="{question, answer, ...}")
    field = next((key for key in _QUESTION_FIELDS if isinstance(row.get(key), str) and row[key].strip()), None)
    if field is None:
        raise DataError(
            f"{place} has no question; its fields: {shown(', '.join(map(str, row)), 200)}",
            allowed=", ".join(_QUESTION_FIELDS),
        )
    question, answer = row[field], _answer(row)
    if "option1" in row and "_" in question:  # a blank: the sentence with its right words is what a model may have seen
        chosen = row.get(f"option{row.get('answer')}")
        question, answer = question.replace("_", str(chosen or " ")), ""
    if field == "query" and "endings" in row:  # "activity: context"; texts on the web have the context alone
        question = question.partition(": ")[2] or question
    if row.get("ctx") and row.get("activity_label") and field != "ctx":
        question = row["ctx"]
    return Item(benchmark, str(row.get("id", row.get("ind", number))), question, answer)


def _answer(row: Mapping[str, Any]) -> str:
    targets = row.get("mc1_targets")
    if isinstance(targets, Mapping):  # TruthfulQA: {answer: 1 or 0}, or {choices, labels} as on the hub
        if "choices" in targets and "labels" in targets:
            targets = dict(zip(targets["choices"], targets["labels"], strict=True))
        return next((str(text) for text, is_right in targets.items() if is_right == 1), "")
    answer = next((row[key] for key in (*_ANSWER_FIELDS, "answerKey") if row.get(key) is not None), "")
    choices = next((row[key] for key in _CHOICE_FIELDS if row.get(key)), None)
    if isinstance(choices, Mapping):  # {text, label} as on the hub
        labels = [str(label) for label in choices.get("label", ())]
        texts = list(choices.get("text", ()))
        return str(texts[labels.index(str(answer))]) if str(answer) in labels else ""
    if isinstance(choices, Sequence) and not isinstance(choices, str):
        text = str(answer)
        index = int(text) if text.isdigit() else _LETTERS.find(text) if len(text) == 1 else -1
        return str(choices[index]) if 0 <= index < len(choices) else ""
    return _CALCULATION.sub("", str(answer))


def _paths(name: str, folder: Path) -> Iterator[Path]:
    if name not in BENCHMARKS:
        yield folder / name
        return
    for file in BENCHMARKS[name]:
        found = next((path for path in (folder / file.file, folder / f"{file.file}.gz") if path.is_file()), None)
        if found is None:
            raise DataError(
                f"the test set {name} is not in {folder}",
                allowed=f"{folder / file.file}, or the same with .gz",
                next_step="give the folder with --data-dir, or take the name out of --against",
            )
        yield found


def _rows(path: Path) -> Iterator[Any]:
    open_text: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    name, number = path.name.removesuffix(".gz"), 0
    try:
        with open_text(path, "rt", encoding="utf-8") as file:
            if name.endswith(".csv"):
                yield from csv.DictReader(file)
            elif name.endswith(".json"):
                yield from json.load(file)
            else:
                for number, line in enumerate(file, 1):  # noqa: B007 (named in the error)
                    if line.strip():
                        yield json.loads(line)
    except (OSError, ValueError, EOFError, TypeError) as error:
        place = f"line {number} of {path}" if number else str(path)
        raise DataError(f"cannot read {place}: {error}", next_step="repair the file") from error
