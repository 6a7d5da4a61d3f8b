"""Rows of preferences: every spelling gives the same pair, every real file is read, and nothing is lost unseen."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl.data_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.data.conversations import Message
from depthup.data.preferences import Dropped, PreferencePair, pair_of, read_pairs, select_pairs
from depthup.data.sources import Files, Row
from depthup.errors import DataError

QUESTION = [{"role": "user", "content": "Why?"}]
YES, NO = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
SHAREGPT = [{"from": "human", "value": "Why?"}]
PAIR = PreferencePair((Message("user", "Why?"),), "Because.", "No.", "set:1", "set")
TEXTS = {"chosen": "Because.", "rejected": "No."}


def read(value: Any, min_margin: float | None = None) -> PreferencePair | Dropped:
    return pair_of(Row("set:1", "row 1 of set", value), min_margin)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", **TEXTS},
        {"question": "Why?", "system": "", **TEXTS},
        {"instruction": "Why?", "input": "", "output": "Because.", **TEXTS},
        {"input": "Why?", "system": None, **TEXTS},
        {"prompt": QUESTION, **TEXTS},
        {"prompt": QUESTION, "chosen": [YES], "rejected": [NO]},
        {"prompt": QUESTION, "chosen": YES, "rejected": NO},
        {"prompt": "Why?", "chosen": [*QUESTION, YES], "rejected": [*QUESTION, NO], "messages": [*QUESTION, YES]},
        {"prompt": QUESTION, "chosen": [*QUESTION, YES], "rejected": [*QUESTION, NO]},
        {"messages": [*QUESTION, YES], **TEXTS},
        {"chosen": [*QUESTION, YES], "rejected": [*QUESTION, NO]},
        {"conversations": SHAREGPT, "chosen": {"from": "gpt", "value": "Because."},
         "rejected": {"from": "gpt", "value": "No."}},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No. "},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:", **TEXTS},
        {"prompt": "\n\nHuman: Why?", "chosen": "\n\nHuman: Why?\n\nAssistant: Because.",
         "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
    ],
)  # fmt: skip
def test_every_spelling_of_a_row_is_the_same_pair(row: dict[str, Any]) -> None:
    assert read(row) == PAIR


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Why?", "responses": ["Hm.", "No.", "Because."], "scores": [3, 1, 4.5]},
        {"prompt": "Why?", "completions": [{"response": "Because.", "score": "5"}, {"response": "No.", "score": 1.5}]},
        {"prompt": "Why?", **TEXTS, "score_chosen": 9, "score_rejected": 5.5},
        {"prompt": "Why?", **TEXTS, "chosen_rating": 5.0, "rejected_rating": 1.5},
    ],
)
def test_scores_give_the_pair_and_its_margin(row: dict[str, Any]) -> None:
    pair = read(row)
    assert isinstance(pair, PreferencePair)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == (PAIR.prompt, PAIR.chosen, PAIR.rejected, 3.5)
    assert read(row, 4) == Dropped("set:1", "margin too small")
    assert read({"prompt": "Why?", **TEXTS}, 4) == PAIR


def test_instruction_and_input_and_system_are_one_prompt() -> None:
    pair = read({"system": "Be brief.", "instruction": "Add.", "input": "1 1", **TEXTS})
    assert pair.prompt == (Message("system", "Be brief."), Message("user", "Add.\n\n1 1"))
    whole = {"system": "Be brief.", "chosen": [*QUESTION, YES], "rejected": [*QUESTION, NO], "prompt": "Why?"}
    assert read(whole).prompt == (Message("system", "Be brief."), Message("user", "Why?"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?", "chosen": "Yes ", "rejected": "Yes"}, "chosen equals rejected"),
        ({"prompt": "Why?", "chosen": "Yes", "rejected": " \n"}, "empty answer"),
        ({"prompt": " ", **TEXTS}, "no prompt"),
        ({"chosen": [YES], "rejected": [NO]}, "no prompt"),
        ({"chosen": [*QUESTION, YES, *QUESTION], "rejected": [*QUESTION, NO]}, "no answer of the assistant"),
        ({"chosen": [*QUESTION, YES, *QUESTION, YES], "rejected": [*QUESTION, NO, *QUESTION, NO]},
         "dialogues part before the answer"),
        ({"prompt": [*QUESTION, *QUESTION], **TEXTS}, "turns do not alternate"),
        ({"prompt": [*QUESTION, YES], **TEXTS}, "turns do not alternate"),
        ({"prompt": "Why?", "responses": ["a", "b"], "scores": [3, 3]}, "chosen equals rejected"),
    ],
)  # fmt: skip
def test_rows_that_hold_no_preference_are_dropped_with_the_reason(row: dict[str, Any], reason: str) -> None:
    assert read(row) == Dropped("set:1", reason)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "label": True}, "its fields: text, label"),
        (["x"], "is ['x']"),
        ({"prompt": "Why?", "chosen": 3, "rejected": "x"}, "no list of turns but 3"),
        ({"prompt": 3, **TEXTS}, "no list of turns but 3"),
        ({"prompt": [], "chosen": [], "rejected": [YES]}, "empty list"),
        ({"prompt": "Why?", "system": 3, **TEXTS}, "holds 3"),
        (TEXTS, "do not tell where the prompt ends"),
        ({"prompt": [{"role": "narrator", "content": "x"}], **TEXTS}, "spoken by narrator"),
        ({"prompt": "Why?", "chosen": "\ud800", "rejected": "x"}, "surrogate"),
        ({"prompt": "Who?", "chosen": [*QUESTION, YES], "rejected": [*QUESTION, NO]}, "do not hold: Who"),
        ({"prompt": "Why?", "responses": ["a", "b"], "scores": [3]}, "no score for each"),
        ({"prompt": "Why?", "responses": ["a", "b"], "scores": [3, "nan"]}, "the score nan"),
    ],
)
def test_rows_of_no_known_spelling_are_errors_that_name_the_row(row: Any, message: str) -> None:
    with pytest.raises(DataError, match="row 1 of set") as error:
        read(row)
    assert message in str(error.value)


WORDS = st.sampled_from(
    ["", "Why?", "Yes", "\n\nHuman: Why?", "\n\nHuman: Why?\n\nAssistant: No", "\ud800", "\n\nAssistant:"]
)
TURN = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": WORDS | st.none(),
                  "from": st.sampled_from(["human", "gpt", 3]), "value": WORDS, "response": WORDS,
                  "score": st.integers() | st.floats() | WORDS},
)  # fmt: skip
VALUE = (
    WORDS | TURN | st.lists(TURN | WORDS, max_size=4) | st.none() | st.integers() | st.lists(st.integers(), max_size=3)
)
KEYS = ("prompt", "messages", "conversations", "question", "instruction", "input", "system",
        "responses", "completions", "scores", "score_chosen", "score_rejected")  # fmt: skip


ROW = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, VALUE))
ANSWERS = st.fixed_dictionaries({"chosen": VALUE, "rejected": VALUE}, optional=dict.fromkeys(KEYS, VALUE))


@given(ANSWERS | ROW, st.none() | st.floats(0, 3))
@settings(max_examples=200, deadline=None)
def test_whatever_a_row_holds_it_is_a_pair_or_dropped_or_an_error_that_names_it(row: Any, min_margin: Any) -> None:
    try:
        found = read(row, min_margin)
    except DataError as error:
        assert "row 1 of set" in str(error)
        return
    if isinstance(found, PreferencePair):
        assert found.prompt and found.prompt[-1].role != "assistant"
        assert found.chosen.strip() and found.rejected.strip() and found.chosen.strip() != found.rejected.strip()


# file -> (rows, pairs, what was dropped)
REAL = {
    "alpaca_eval_gpt4_pairs.jsonl.gz": (3199, 3196, {"chosen equals rejected": 2, "repeated": 1}),
    "dpo_en_demo.json": (300, 295, {"repeated": 5}),
    "hh_harmless-base_test.jsonl.gz": (
        2312, 2299, {"dialogues part before the answer": 5, "empty answer": 4, "turns do not alternate": 4},
    ),
    "hh_helpful-base_test.jsonl.gz": (
        2354, 2333, {"dialogues part before the answer": 9, "turns do not alternate": 6, "empty answer": 4,
                     "chosen equals rejected": 2},
    ),
    "instruction-data-with-preference.json": (1100, 1094, {"chosen equals rejected": 6}),
    "orca_dpo_pairs_sample.jsonl": (284, 284, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_every_real_file_is_read_and_each_row_accounted_for(shared_data: Callable[[str], Path], name: str) -> None:
    path = shared_data(f"preference/{name}")
    num_rows, num_pairs, dropped = REAL[name]
    found = list(select_pairs(read_pairs(Files((str(path),))), "train", 0.0))
    pairs = [pair for pair in found if isinstance(pair, PreferencePair)]
    assert (len(found), len(pairs)) == (num_rows, num_pairs)
    assert Counter(each.reason for each in found if isinstance(each, Dropped)) == dropped
    assert all(pair.prompt[-1].role == "user" and pair.source == name for pair in pairs)


def test_no_real_file_was_forgotten(shared_data: Callable[[str], Path]) -> None:
    assert {path.name for path in shared_data("preference").iterdir()} == REAL.keys()


def test_prompts_of_message_lists_are_those_that_trl_finds(shared_data: Callable[[str], Path]) -> None:
    """HH-RLHF, its turns taken apart by the simplest means, through TRL's search for the shared beginning."""
    path = shared_data("preference/hh_helpful-base_test.jsonl.gz")
    pairs = {pair.name: pair for pair in read_pairs(Files((str(path),))) if isinstance(pair, PreferencePair)}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            pair = pairs.get(f"{path.name}:{number}")
            if pair is None or number % 7:
                continue
            row = json.loads(line)
            for side in row:
                said = row[side].replace("\n\nHuman:", "\0user\1").replace("\n\nAssistant:", "\0assistant\1")
                turns = [turn.split("\1") for turn in said.split("\0")[1:]]
                row[side] = [{"role": role, "content": content.strip()} for role, content in turns]
            found = trl.data_utils.extract_prompt(row)
            assert [(message.role, message.content) for message in pair.prompt] == [
                (message["role"], message["content"]) for message in found["prompt"]
            ]
            assert ([pair.chosen], [pair.rejected]) == tuple(
                [message["content"] for message in found[side]] for side in ("chosen", "rejected")
            )


def test_no_prompt_stands_on_both_sides_and_repetitions_are_dropped() -> None:
    rows = [{"prompt": f"Question {number % 40}", "chosen": f"Yes {number % 80}", "rejected": "No"}
            for number in range(120)]  # fmt: skip
    pairs = [read(row) for number, row in enumerate(rows)]
    sides = {side: list(select_pairs(pairs, side, 0.3)) for side in ("train", "held_out")}
    kept = {side: [pair for pair in found if isinstance(pair, PreferencePair)] for side, found in sides.items()}
    assert sum(map(len, sides.values())) == 120 and sum(map(len, kept.values())) == 80
    prompts = [{pair.prompt for pair in found} for found in kept.values()]
    assert all(prompts) and not prompts[0] & prompts[1]
    assert len([p for p in select_pairs(pairs, "train", 0.0, max_pairs=10) if isinstance(p, PreferencePair)]) == 10
