"""Where benchmark items come from: a local folder, or the Hugging Face Hub; checked row by row. No torch, no harness.

Both give rows in the fields of the hub, which lm-eval's tasks read. The layout of a folder: docs/benchmark-data.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..data.sources import Files, Row
from ..errors import DataError, nearest, shown
from .suites import MMLU_SUBJECTS

Rows = list[dict[str, Any]]
_KINDS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Benchmark:
    """The rows of one benchmark.

    Attributes:
        task: Name of the task that asks them.
        splits: Split -> rows in the hub's fields.
        notes: What a reader of a score on them must know.
        identity: JSON that changes when a row does: SHA-256 of each split.
    """

    task: str
    splits: Mapping[str, Rows]
    notes: tuple[str, ...]
    identity: Mapping[str, Any]

    @property
    def scored(self) -> str:
        """The split whose items are scored."""
        return "test" if "test" in self.splits else "validation"

    def by_subject(self) -> dict[str, Benchmark]:
        """One benchmark a subject, in order of their names; rows say theirs in the field ``subject``."""
        parted: dict[str, dict[str, Rows]] = {}
        for split, rows in self.splits.items():
            for row in rows:
                parted.setdefault(row["subject"], {name: [] for name in self.splits})[split].append(row)
        return {subject: Benchmark(self.task, parted[subject], self.notes, {}) for subject in sorted(parted)}


class ItemSource(Protocol):
    """Anything that holds benchmarks."""

    def load(self, task: str) -> Benchmark:
        """The rows of a task of :data:`~depthup.evaluation.suites.TASKS`."""
        ...


@dataclass(frozen=True)
class _Split:
    """Where a split lies: ``stems`` are file names without ending, the first that is there is read."""

    name: str
    stems: tuple[str, ...]
    needed: bool = True


@dataclass(frozen=True)
class _Layout:
    """Where a task's rows lie in a folder and on the hub, and the fields that make an item what it is."""

    folder: str
    splits: tuple[_Split, ...]
    hub: str
    config: str | None
    fields: tuple[str, ...]
    convert: Callable[[_Fields], dict[str, Any]]


@dataclass(frozen=True)
class LocalItems:
    """Benchmarks in a folder, in this project's layout or as exported from the hub, plain or gzipped.

    Attributes:
        folder: Holds ``arc/``, ``hellaswag/``, ``mmlu/``, ``truthfulqa/``, ``winogrande/``, ``gsm8k/``; those that are
            asked for must be there.
    """

    folder: Path

    def load(self, task: str) -> Benchmark:
        """The rows of a task.

        Raises:
            DataError: The folder has no such file, or a row lacks a field or has it wrong: file, row and field are
                named.
        """
        layout = _layout(task)
        splits = {}
        for split in layout.splits:
            if path := self._find(layout, split):
                splits[split.name] = _rows(layout, Files((str(path),)).rows())
        notes = {
            "hellaswag": ("HellaSwag: rows were cleaned before; the second half of a context is not capitalised",)
            if any("query" in row for rows in splits.values() for row in rows[:1]) else (),
        }.get(task, ())  # fmt: skip
        return _benchmark(task, splits, notes, "folder")

    def files(self, tasks: Iterable[str]) -> list[Path]:
        """The files that hold some tasks.

        Raises:
            DataError: One is missing.
        """
        layouts = map(_layout, tasks)
        found = (self._find(layout, split) for layout in layouts for split in layout.splits)
        return [path for path in found if path is not None]

    def _find(self, layout: _Layout, split: _Split) -> Path | None:
        paths = [self.folder / layout.folder / f"{stem}{kind}" for stem in split.stems for kind in _KINDS]
        found = next((path for path in paths if path.is_file()), None)
        if found is None and split.needed:
            raise DataError(
                f"{self.folder} has no {layout.folder}/{split.stems[0]}.jsonl",
                allowed=f"{' or '.join(split.stems)} in {self.folder / layout.folder}, ending in {', '.join(_KINDS)}",
                next_step="see docs/benchmark-data.md, or leave --data-dir out to read from the Hugging Face Hub",
            )
        return found


@dataclass(frozen=True)
class HubItems:
    """Benchmarks as the Hugging Face Hub serves them, from the data sets that lm-eval's tasks name."""

    def load(self, task: str) -> Benchmark:
        """The rows of a task; MMLU's 57 subjects are read at once, from the files that hold them all.

        Raises:
            DataError: The package datasets is missing, or the hub is out of reach.
        """
        layout = _layout(task)
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                "the hub's data need the package datasets", next_step="pip install 'depthup[eval]'"
            ) from error
        files = {split.name: f"all/{split.name}-*" for split in layout.splits} if task == "mmlu" else None
        try:
            loaded = datasets.load_dataset(layout.hub, layout.config, data_files=files)
        except Exception as error:  # datasets raises many kinds: no network, no such name
            raise DataError(
                f"cannot read {layout.hub} from the Hugging Face Hub: {error}",
                next_step="check the network, or give a folder with --data-dir (docs/benchmark-data.md)",
            ) from error
        splits = {}
        for split in layout.splits:
            places = (Row("", f"row {n} of {layout.hub}, {split.name}", r) for n, r in enumerate(loaded[split.name], 1))
            splits[split.name] = _rows(layout, places)
        return _benchmark(task, splits, (), "hub")


def item_ids(task: str, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Identity of each row: a hash of the fields that make the item; one that stands twice gets a number."""
    fields = LAYOUTS[task].fields if task in LAYOUTS else ()
    seen: dict[str, int] = {}
    names = []
    for row in rows:
        name = digest([row[field] for field in fields] if fields else row)[:16]
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def digest(value: object) -> str:
    """SHA-256 of a value as JSON; what JSON cannot hold counts by its text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def _benchmark(task: str, splits: dict[str, Rows], notes: tuple[str, ...], source: str) -> Benchmark:
    for split, rows in splits.items():
        if not rows:
            raise DataError(f"the split '{split}' of {task} is empty", next_step="see docs/benchmark-data.md")
    return Benchmark(
        task, splits, notes, {"source": source, **{split: digest(rows)[:16] for split, rows in splits.items()}}
    )


def _layout(task: str) -> _Layout:
    if task not in LAYOUTS:
        raise DataError(
            f"depthup knows no layout of files for the task '{task}'{nearest(task, LAYOUTS)}",
            allowed=", ".join(LAYOUTS),
            next_step="leave --data-dir out: lm-eval reads this task's data from the Hugging Face Hub",
        )
    return LAYOUTS[task]


def _rows(layout: _Layout, rows: Iterable[Row]) -> Rows:
    return [layout.convert(_Fields(row)) for row in rows]


class _Fields:
    """The fields of one row, each read with a check that names file, row, field and what is allowed."""

    def __init__(self, row: Row) -> None:
        self.place = row.place
        if not isinstance(row.value, Mapping):
            raise DataError(f"{row.place} is {shown(row.value)}", allowed="an object with named fields")
        self.row: Mapping[str, Any] = row.value

    def __contains__(self, field: str) -> bool:
        return field in self.row

    def error(self, field: str, value: object, allowed: str) -> DataError:
        return DataError(
            f"{self.place}: field '{field}' is {shown(value)}",
            allowed=allowed,
            next_step="mend the row; the fields of each benchmark stand in docs/benchmark-data.md",
        )

    def get(self, field: str) -> Any:
        if field not in self.row:
            raise DataError(
                f"{self.place}: there is no field '{field}'{nearest(field, self.row)}",
                allowed=f"it has: {', '.join(map(str, self.row))}"[:200],
                next_step="the fields of each benchmark stand in docs/benchmark-data.md",
            )
        return self.row[field]

    def text(self, field: str, holding: str = "") -> str:
        value = self.get(field)
        if not isinstance(value, str) or not value.strip() or holding not in value:
            raise self.error(field, value, f"a text that holds '{holding}'" if holding else "a text that is not empty")
        return value

    def texts(self, field: str, value: object, num: int | None = None) -> list[str]:
        wrong = not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value)
        if wrong or len(value) < 2 or (num and len(value) != num):  # type: ignore[arg-type]
            raise self.error(field, value, f"a list of {num or 'two or more'} texts")
        return list(value)  # type: ignore[call-overload]

    def one_of(self, field: str, allowed: Collection[Any]) -> Any:
        value = self.get(field)
        if isinstance(value, bool) or value not in allowed:
            raise self.error(field, value, f"one of {', '.join(map(repr, allowed))}"[:200])
        return value

    def index(self, field: str, size: int) -> int:
        """The position of an answer, given as a number from 0, the same as text, or a letter from A."""
        places: dict[int | str, int] = {}
        for place in range(size):
            places.update({place: place, str(place): place, _LETTERS[place]: place})
        value = self.get(field)
        if isinstance(value, bool) or not isinstance(value, int | str) or value not in places:
            raise self.error(field, value, f"0 to {size - 1} or {_LETTERS[0]} to {_LETTERS[size - 1]}")
        return places[value]


def _arc(fields: _Fields) -> dict[str, Any]:
    fields.text("question")
    choices = fields.get("choices")
    if isinstance(choices, Mapping):
        texts = fields.texts("choices.text", choices.get("text"))
        labels = fields.texts("choices.label", choices.get("label"), len(texts))
        answer = fields.one_of("answerKey", labels)
    else:
        texts = fields.texts("choices", choices)
        labels = list(_LETTERS[: len(texts)])
        answer = labels[fields.index("answer", len(texts))]
    return {**fields.row, "choices": {"text": texts, "label": labels}, "answerKey": answer}


def _hellaswag(fields: _Fields) -> dict[str, Any]:
    row = dict(fields.row)
    if "query" in fields:
        activity, _, context = fields.text("query", ": ").partition(": ")
        row.update(activity_label=activity, ctx_a=context, ctx_b="")
    for field in ("activity_label", "ctx_a"):
        _Fields(Row("", fields.place, row)).text(field)
    if not isinstance(row.get("ctx_b"), str):
        raise fields.error("ctx_b", row.get("ctx_b"), "a text, empty where the context has one part")
    row["endings"] = fields.texts("endings", fields.get("endings"), 4)
    row["label"] = str(fields.index("label", 4))
    return row


def _mmlu(fields: _Fields) -> dict[str, Any]:
    fields.one_of("subject", MMLU_SUBJECTS)
    fields.text("question")
    choices = fields.texts("choices", fields.get("choices"), 4)
    return {**fields.row, "choices": choices, "answer": fields.index("answer", 4)}


def _truthfulqa(fields: _Fields) -> dict[str, Any]:
    fields.text("question")
    return {**fields.row, **{name: _targets(fields, name) for name in ("mc1_targets", "mc2_targets")}}


def _targets(fields: _Fields, name: str) -> dict[str, list[Any]]:
    """Answers and whether each is right, from ``{answer: 0 or 1}`` or ``{"choices": [...], "labels": [...]}``."""
    value = fields.get(name)
    if not isinstance(value, Mapping):
        raise fields.error(name, value, "answers with 0 or 1 each, or choices and labels")
    listed = isinstance(value.get("choices"), Sequence)
    choices = fields.texts(name, value["choices"] if listed else list(value))
    labels = list(value.get("labels", ())) if listed else list(value.values())
    if len(labels) != len(choices) or any(label not in (0, 1) for label in labels) or len(set(labels)) != 2:
        raise fields.error(name, labels, "a label of 0 or 1 for each answer, at least one of each")
    return {"choices": choices, "labels": labels}


def _winogrande(fields: _Fields) -> dict[str, Any]:
    fields.text("sentence", "_")
    for field in ("option1", "option2"):
        fields.text(field)
    fields.one_of("answer", ("1", "2"))
    return dict(fields.row)


def _gsm8k(fields: _Fields) -> dict[str, Any]:
    fields.text("question")
    fields.text("answer", "#### ")
    return dict(fields.row)


LAYOUTS: dict[str, _Layout] = {
    "arc_challenge": _Layout(
        "arc", (_Split("train", ("arc_challenge_train",)), _Split("test", ("arc_challenge_test",))),
        "allenai/ai2_arc", "ARC-Challenge", ("question", "choices", "answerKey"), _arc,
    ),
    "hellaswag": _Layout(
        "hellaswag", (_Split("train", ("train",), needed=False), _Split("validation", ("validation",))),
        "Rowan/hellaswag", None, ("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag,
    ),
    "mmlu": _Layout(
        "mmlu", (_Split("dev", ("dev",)), _Split("test", ("test",))),
        "cais/mmlu", None, ("subject", "question", "choices", "answer"), _mmlu,
    ),
    "truthfulqa_mc2": _Layout(
        "truthfulqa", (_Split("validation", ("mc_task", "validation")),),
        "truthfulqa/truthful_qa", "multiple_choice", ("question", "mc2_targets"), _truthfulqa,
    ),
    "winogrande": _Layout(
        "winogrande", (_Split("train", ("train_xl", "train")), _Split("validation", ("dev", "validation"))),
        "allenai/winogrande", "winogrande_xl", ("sentence", "option1", "option2", "answer"), _winogrande,
    ),
    "gsm8k": _Layout(
        "gsm8k", (_Split("train", ("train",)), _Split("test", ("test",))),
        "openai/gsm8k", "main", ("question", "answer"), _gsm8k,
    ),
}  # fmt: skip
