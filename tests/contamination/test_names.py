"""The filter by task name, against the real lists of names."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from depthup.contamination.names import PAPER, benchmark_of, named_tasks


def test_the_ten_of_the_paper_are_found_in_both_spellings() -> None:
    names = [(benchmark, name) for benchmark, group in PAPER.items() for name in group]
    assert len(names) == 10
    assert all(benchmark_of(name) == benchmark for benchmark, name in names)
    assert benchmark_of("ai2_arcARCChallenge:1.0.0") == benchmark_of("ai2_arcARCEasy:1.0.0") == "arc"


def test_every_real_task_that_is_made_from_a_test_set_is_found(shared_data: Callable[[str], Path]) -> None:
    with open(shared_data("flan/task_names.csv")) as file:
        names = [row["name"] for row in csv.DictReader(file)]
    found = {name: benchmark for name in names if (benchmark := benchmark_of(name))}
    assert sum(benchmark == "mmlu" for benchmark in found.values()) == 57
    assert found["task1391_winogrande_easy_answer_generation"] == "winogrande"
    words = ("winogrande", "hellaswag", "gsm8k", "mmmlu", "ai2_arc", "_arc_", "truthful", "drop_", "_swag_")
    expected = {name for name in names if any(word in name for word in words)} | {"drop:2.0.0"}
    assert set(found) == expected


@pytest.mark.parametrize("name", ["task664_amazon_reviews", "barcode", "search", "dropout", "swagger", ""])
def test_other_names_are_let_through(name: str) -> None:
    assert benchmark_of(name) is None


def test_a_row_tells_by_its_fields() -> None:
    assert list(named_tasks({"task": "cot_gsm8k", "question": "hellaswag"})) == [("gsm8k", "task", "cot_gsm8k")]
    assert list(named_tasks({"id": "hellaswag:1.1.0.17"})) == [("hellaswag", "id", "hellaswag:1.1.0.17")]
    assert list(named_tasks({"task": 7, "source": None})) == []
