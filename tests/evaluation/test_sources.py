"""Benchmark items from a folder and from the hub: every layout gives the hub's fields, every fault names its place."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import items
import pytest

from depthup.errors import DataError
from depthup.evaluation.harness import prepare
from depthup.evaluation.sources import HubItems, LocalItems, item_ids
from depthup.evaluation.suites import TASKS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return items.write(tmp_path)


def test_rows_in_the_hubs_fields_stay_as_they_are(folder: Path) -> None:
    for name, splits in items.benchmarks().items():
        loaded = LocalItems(folder).load(name)
        assert dict(loaded.splits) == splits
        assert loaded.notes == () and loaded.identity["source"] == "folder"


def test_the_projects_own_layout_gives_the_same_rows(folder: Path) -> None:
    """Choices as a list with an index, MMLU's letters, TruthfulQA's dictionaries: converted, not asked otherwise."""
    made = items.benchmarks()
    arc = [
        {"question": row["question"], "choices": row["choices"]["text"],
         "answer": row["choices"]["label"].index(row["answerKey"])} for row in made["arc_challenge"]["test"]
    ]  # fmt: skip
    items.write_rows(folder / "arc/arc_challenge_test.jsonl", arc)
    for row, theirs in zip(LocalItems(folder).load("arc_challenge").splits["test"], made["arc_challenge"]["test"],
                           strict=True):  # fmt: skip
        label = row["choices"]["label"].index(row["answerKey"])
        assert (
            row["choices"]["text"][label]
            == theirs["choices"]["text"][theirs["choices"]["label"].index(theirs["answerKey"])]
        )
    items.write_rows(
        folder / "mmlu/dev.jsonl", [{**row, "answer": "ABCD"[row["answer"]]} for row in made["mmlu"]["dev"]]
    )
    assert LocalItems(folder).load("mmlu").splits["dev"] == made["mmlu"]["dev"]
    rows = made["truthfulqa_mc2"]["validation"]
    keyed = [
        {**row, **{name: dict(zip(row[name]["choices"], row[name]["labels"], strict=True))
                   for name in ("mc1_targets", "mc2_targets")}} for row in rows
    ]  # fmt: skip
    (folder / "truthfulqa/mc_task.json").write_text(json.dumps(keyed))
    assert LocalItems(folder).load("truthfulqa_mc2").splits["validation"] == rows


def test_cleaned_rows_of_hellaswag_give_their_own_text_as_prompt(folder: Path) -> None:
    query = "Roof shingle removal: A man is sitting on a roof. he"
    row = {"query": query, "endings": ["is using wrap.", "is ripping tiles.", "is holding.", "starts."], "label": 3}
    items.write_rows(folder / "hellaswag/train.jsonl", [{**row, "query": f"{query} {n}"} for n in range(12)])
    (folder / "hellaswag/validation.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    for profile in ("harness-0.4", "leaderboard-v1"):
        (task,) = prepare("hellaswag", profile, LocalItems(folder))
        assert task.items[0].requests[0].context.endswith("\n\n" + query)  # type: ignore[union-attr]
        assert any("not capitalised" in note for note in task.notes)
        assert any("1 items here, 10042 in the benchmark" in note for note in task.notes)


def test_parquet_and_hub_give_the_same_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.parquet

    asked = []

    def load_dataset(path: str, name: str | None, data_files: Any) -> Any:
        asked.append((path, name, data_files))
        splits = items.benchmarks()[next(task for task in TASKS if HUB[task] == path)]
        return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    HUB = {"arc_challenge": "allenai/ai2_arc", "mmlu": "cais/mmlu", "gsm8k": "openai/gsm8k",
           "hellaswag": "Rowan/hellaswag", "winogrande": "allenai/winogrande",
           "truthfulqa_mc2": "truthfulqa/truthful_qa"}  # fmt: skip
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for (name, split), file in items.FILES.items():
        path = folder / file
        path.unlink()
        stem = path.parent / path.name.partition(".")[0]
        table = pyarrow.Table.from_pylist(items.benchmarks()[name][split])
        pyarrow.parquet.write_table(table, stem.with_suffix(".parquet"))
    for name in TASKS:
        local, hub = LocalItems(folder).load(name), HubItems().load(name)
        assert local.splits == hub.splits == items.benchmarks()[name]
        assert hub.identity == {**local.identity, "source": "hub"}
    assert ("cais/mmlu", None, {"dev": "all/dev-*", "test": "all/test-*"}) in asked and len(asked) == 6


def test_no_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"cannot read openai/gsm8k.*\n.*--data-dir"):
        HubItems().load("gsm8k")


def test_items_are_told_apart_by_what_they_ask(folder: Path) -> None:
    rows = LocalItems(folder).load("gsm8k").splits["test"]
    ids = item_ids("gsm8k", rows)
    assert len(set(ids)) == len(rows)
    assert item_ids("gsm8k", [{**row, "extra": 1} for row in rows]) == ids
    assert item_ids("gsm8k", [rows[0], rows[1], rows[0]]) == [ids[0], ids[1], f"{ids[0]}-2"]


Edit = Callable[[dict[str, Any]], object]
FAULTS: list[tuple[str, str, Edit, str]] = [
    ("arc_challenge", "test", lambda row: row.pop("question"), "no field 'question'"),
    ("arc_challenge", "test", lambda row: row.update(answerKey="Z"), "field 'answerKey' is Z"),
    ("arc_challenge", "test", lambda row: row.update(choices=["a", "b"], answer=2), "0 to 1 or A to B"),
    ("arc_challenge", "test", lambda row: row.update(choices=["a", 2]), "a list of two or more texts"),
    ("hellaswag", "train", lambda row: row.update(label="4"), "field 'label' is 4"),
    ("hellaswag", "train", lambda row: row.update(endings=["a"] * 3), "a list of 4 texts"),
    ("hellaswag", "train", lambda row: row.update(query="no colon"), "a text that holds ': '"),
    ("hellaswag", "train", lambda row: row.pop("ctx_b"), "field 'ctx_b' is None"),
    ("mmlu", "dev", lambda row: row.update(subject="anatomi"), "field 'subject' is anatomi"),
    ("mmlu", "dev", lambda row: row.update(answer="E"), "0 to 3 or A to D"),
    ("mmlu", "dev", lambda row: row.update(answer=True), "field 'answer' is True"),
    ("truthfulqa_mc2", "validation", lambda row: row.update(mc2_targets={"a": 1, "b": 1}), "at least one of each"),
    ("truthfulqa_mc2", "validation", lambda row: row.update(mc2_targets=[1]), "answers with 0 or 1 each"),
    ("winogrande", "train", lambda row: row.update(sentence="no blank"), "a text that holds '_'"),
    ("winogrande", "train", lambda row: row.update(answer=1), "'1', '2'"),
    ("gsm8k", "test", lambda row: row.update(answer="42"), "a text that holds '#### '"),
    ("gsm8k", "test", lambda row: row.update(question=""), "a text that is not empty"),
]


@pytest.mark.parametrize(("name", "split", "edit", "says"), FAULTS)
def test_a_fault_names_file_row_and_field(name: str, split: str, edit: Edit, says: str, folder: Path) -> None:
    rows = items.benchmarks()[name][split]
    edit(rows[2])
    items.write_rows(folder / items.FILES[name, split], rows)
    with pytest.raises(DataError, match=r"row 3 of ") as caught:
        LocalItems(folder).load(name)
    assert says in str(caught.value) and Path(items.FILES[name, split]).name in str(caught.value)


def test_missing_files_and_too_few_rows_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no layout of files for the task 'piqa'"):
        LocalItems(folder).load("piqa")
    items.write_rows(folder / "gsm8k/train.jsonl", items.benchmarks()["gsm8k"]["train"][:4])
    for profile in ("harness-0.4", "leaderboard-v1"):
        with pytest.raises(DataError, match="gsm8k has 4 rows to draw examples from"):
            prepare("gsm8k", profile, LocalItems(folder))
    rows = [row for row in items.benchmarks()["mmlu"]["dev"] if row["subject"] != "virology"]
    items.write_rows(folder / "mmlu/dev.jsonl", rows)
    with pytest.raises(DataError, match="virology has 0 rows to draw examples from"):
        prepare("mmlu", source=LocalItems(folder))
    (folder / "winogrande/dev.jsonl").write_text("")
    with pytest.raises(DataError, match="'validation' of winogrande is empty"):
        LocalItems(folder).load("winogrande")
    shutil.rmtree(folder / "arc")
    with pytest.raises(DataError, match=r"has no arc/arc_challenge_train.jsonl\n.*\.parquet"):
        LocalItems(folder).load("arc_challenge")


def test_the_shared_data_load_as_they_lie(shared_data: Callable[[str], Path]) -> None:
    source = LocalItems(shared_data("arc").parent)
    for name, spec in TASKS.items():
        loaded = source.load(name)
        assert len(loaded.splits[loaded.scored]) == spec.num_items
