"""Test sets as items, in the layouts that they come in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthup.contamination.benchmarks import BENCHMARKS, SUITES, item_of, load_items, parse_benchmarks
from depthup.errors import DataError

ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"question": "Q?", "choices": ["a", "b"], "answer": 1}, "Q?", "b"),
    ({"question": "Q?", "choices": ["a", "b", "c"], "answer": "C"}, "Q?", "c"),
    ({"question": "Q?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}, "Q?", "y"),
    ({"ctx": "A man sits.", "activity_label": "Roof", "endings": ["a", "b"], "label": "0"}, "A man sits.", "a"),
    ({"query": "Roof: A man sits.", "endings": ["a", "b"], "label": 0}, "A man sits.", "a"),
    ({"question": "Q?", "mc1_targets": {"yes": 0, "no": 1}}, "Q?", "no"),
    ({"question": "Q?", "mc1_targets": {"choices": ["yes", "no"], "labels": [1, 0]}}, "Q?", "yes"),
    ({"sentence": "So _ won.", "option1": "Ann", "option2": "Bo", "answer": "2"}, "So Bo won.", ""),
    ({"question": "2 and 2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}, "2 and 2?", "2+2=4\n#### 4"),
    ({"problem": "P", "solution": "S", "level": "Level 1"}, "P", "S"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "question", "answer"), ROWS)
def test_rows_of_every_layout_are_read(row: dict[str, Any], question: str, answer: str) -> None:
    item = item_of(row, "any", 3, "here")
    assert (item.question, item.answer, item.id) == (question, answer, "3")


def test_the_six_test_sets_are_whole(shared_data: Callable[[str], Path]) -> None:
    items = load_items(SUITES["h6"], shared_data(""))
    sizes = {"arc": 1172, "hellaswag": 10042, "mmlu": 14042, "truthfulqa": 817, "winogrande": 1267, "gsm8k": 1319}
    assert Counter(item.benchmark for item in items) == sizes
    assert all(item.question.strip() for item in items)
    assert all(item.answer for item in items if item.benchmark not in ("winogrande",))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'gsm8' \(did you mean 'gsm8k'"):
        parse_benchmarks("gsm8", tmp_path)
    with pytest.raises(DataError, match=str(tmp_path / BENCHMARKS["gsm8k"][0].file)):
        load_items(("gsm8k",), tmp_path)
    (tmp_path / "own.jsonl").write_text('{"question": "Q?"}\n{"question"\n')
    with pytest.raises(DataError, match=r"line 2 of .*own\.jsonl"):
        load_items(parse_benchmarks("own.jsonl", tmp_path), tmp_path)
    (tmp_path / "own.jsonl").write_text(json.dumps({"colour": "red"}))
    with pytest.raises(DataError, match="has no question; its fields: colour"):
        load_items(("own.jsonl",), tmp_path)
