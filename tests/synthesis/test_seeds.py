"""Seeds: what is read, what is refused, and that test items never come through."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthup.errors import DataError
from depthup.synthesis import seeds as seeds_module
from depthup.synthesis.seeds import item_hash, known_set, read_seeds, write_known

MATH = {"id": "train/algebra/1", "problem": "What is 2 + 3?", "level": "Level 1", "type": "Algebra",
        "solution": "It is $\\boxed{5}$."}  # fmt: skip
OWN = {"question": "How many legs have 3 cows?", "answer": "3 * 4 = 12.\nThe answer is: 12"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


def test_both_layouts_are_read_with_source_and_licence(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", MATH, OWN, {**OWN, "question": "And 4?", "licence": "CC0", "source": "me"})
    seeds, refused = read_seeds([path], licence="mine")
    assert [(seed.id, seed.answer, seed.source, seed.licence) for seed in seeds] == [
        ("train/algebra/1", "5", "MATH train", "MIT"), ("mine.jsonl:2", "12", "mine.jsonl", "mine"),
        ("mine.jsonl:3", "12", "me", "CC0"),
    ]  # fmt: skip
    assert not refused.counts


def test_bad_rows_are_counted_with_their_place_and_good_ones_kept(tmp_path: Path) -> None:
    bad = [[1], {"text": "x"}, {**OWN, "answer": 3}, {**MATH, "solution": "no box 5"}, {**OWN, "answer": "dunno"}, MATH]
    path = write(tmp_path / "mixed.jsonl", MATH, OWN, *bad)
    path.write_text(path.read_text() + "{broken\n")
    seeds, refused = read_seeds([path])
    assert len(seeds) == 2 and refused.counts.total() == 7
    assert refused.first["'answer' is no text, or empty"] == f"row 5 of {path}"
    assert any("was there before" in reason for reason in refused.counts)


def test_no_seed_left_and_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no seed is left.*no JSON object"):
        read_seeds([write(tmp_path / "bad.jsonl", [1])])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n')[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_seeds([tmp_path / "cut.jsonl.gz"])
    with pytest.raises(DataError, match="cannot be read"):
        read_seeds([tmp_path / "nowhere.jsonl"])


def test_gsm8k_is_refused_by_name_by_form_and_by_text(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    train = shared_data("gsm8k/train.jsonl.gz")
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(DataError, match="allow-gsm8k"):
        read_seeds([train])
    rows = rows_of(train)[:50]
    with pytest.raises(DataError, match="GSM8K train"):
        read_seeds([write(folder / "renamed.jsonl", *rows)])
    plain = [{"question": row["question"].upper(), "answer": "The answer is: 1"} for row in rows[:5]]
    edited = {"question": "An edited question", "answer": rows[0]["answer"]}
    seeds, refused = read_seeds([write(folder / "few.jsonl", *[{**OWN, "question": f"{i}?"} for i in range(9)], *plain,
                                       edited)])  # fmt: skip
    assert len(seeds) == 9 and refused.counts == {"an item of GSM8K train": 6}
    seeds, refused = read_seeds([train], allow_gsm8k=True)
    assert len(seeds) == 7473 and seeds[0].source == "GSM8K train" and not refused.counts


@pytest.mark.parametrize("name", ["math/test.jsonl.gz", "gsm8k/test.jsonl", "metamath/gsm8k_backward.jsonl.gz"])
def test_test_items_are_refused_in_any_case(name: str, shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    rows = rows_of(shared_data(name))[:40]
    for row in rows:
        row.pop("id", None)
    with pytest.raises(DataError, match="test items are never seeds"):
        read_seeds([write(tmp_path / "innocent.jsonl", *rows)], allow_gsm8k=True)


def test_of_math_train_four_problems_are_test_items(shared_data: Callable[[str], Path]) -> None:
    """The split is not clean: the same problems, with other blanks."""
    seeds, refused = read_seeds([shared_data("math/train.jsonl.gz")])
    assert len(seeds) == 7494
    assert refused.counts == {"an item of MATH test": 4, "its solution has no final answer": 2}


def test_the_hashes_are_those_of_the_public_sets(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    sets = {
        "GSM8K train": [row["question"] for row in rows_of(shared_data("gsm8k/train.jsonl.gz"))],
        "GSM8K test": [row["question"] for row in rows_of(shared_data("gsm8k/test.jsonl"))],
        "MATH test": [row["problem"] for row in rows_of(shared_data("math/test.jsonl.gz"))],
    }
    write_known(sets, tmp_path / "known.bin")
    assert (tmp_path / "known.bin").read_bytes() == seeds_module.KNOWN_ITEMS.read_bytes()
    assert all(known_set(question) == name for name, questions in sets.items() for question in questions[:100])


def test_the_hash_forgives_blanks_and_case_and_nothing_of_the_problem() -> None:
    same = {item_hash(text) for text in ("What is $2+3$?", " what is $2 + 3$", "What is\n$2 + 3.$")}
    assert len(same) == 1
    unlike = ["Compute tan 22.5.", "Compute tan 225.", "Compute $2-3$", "Compute $2+3$", "Compute $2/3$"]
    assert len({item_hash(text) for text in unlike}) == len(unlike)
