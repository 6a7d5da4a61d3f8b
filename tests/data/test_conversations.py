"""Conversations: every usual format is read as it comes, and what is none is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from depthup.data.conversations import (
    FORMATS,
    Conversation,
    Message,
    conversations_of,
    read_conversations,
    select_conversations,
)
from depthup.data.sources import Files, HubDataset, Row
from depthup.errors import DataError

QUESTION, ANSWER = "Is water wet?", "Yes, it is."
EXCHANGE = (Message("user", QUESTION), Message("assistant", ANSWER))
SYSTEM = Message("system", "Be brief.")


def read(value: Any, format: str | None = None) -> list[Conversation]:
    return list(conversations_of(Row("f.jsonl:3", "row 3 of f.jsonl", value), format))


SAME = {
    "messages": {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]},
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "self-instruct": {"instruction": QUESTION, "instances": [{"input": "", "output": ANSWER}]},
    "dolly": {"instruction": QUESTION, "context": "", "response": ANSWER, "category": "open_qa"},
    "prompt-completion": {"prompt": QUESTION, "completion": ANSWER, "template": "x"},
    "prompt-response": {"prompt": QUESTION, "response": ANSWER},
    "question-answer": {"question": QUESTION, "answer": ANSWER},
    "orca": {"system_prompt": "", "question": QUESTION, "response": ANSWER},
    "metamath": {"query": QUESTION, "response": ANSWER, "type": "MATH_FOBAR"},
    "problem-solution": {"problem": QUESTION, "solution": ANSWER, "level": "Level 1"},
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_recognised_and_says_the_same(format: str) -> None:
    assert read(SAME[format]) == read(SAME[format], format) == [Conversation(EXCHANGE, "f.jsonl:3")]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({**SAME["alpaca"], "input": "Salt water."}, (Message("user", f"{QUESTION}\n\nSalt water."), EXCHANGE[1])),
        ({**SAME["alpaca"], "system": "Be brief.", "history": [["Hi", "Hello"]]},
         (SYSTEM, Message("user", "Hi"), Message("assistant", "Hello"), *EXCHANGE)),
        ({**SAME["orca"], "system_prompt": "Be brief."}, (SYSTEM, *EXCHANGE)),
        ({**SAME["sharegpt"], "system": "Be brief."}, (SYSTEM, *EXCHANGE)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]},
                       {"role": "assistant", "content": ANSWER}]}, EXCHANGE),
        # conversational prompt and completion, as TRL has them
        ({"prompt": SAME["messages"]["messages"][:1], "completion": SAME["messages"]["messages"][1:]}, EXCHANGE),
        # the list of turns says more than the prompt that stands beside it
        ({**SAME["messages"], "prompt": QUESTION, "response": "other"}, EXCHANGE),
        # a mark that the data bring along: the template sets its own
        ({"prompt": QUESTION, "completion": ANSWER + "<|endoftext|>"}, EXCHANGE),
    ],
)  # fmt: skip
def test_fields_that_some_rows_have(row: dict[str, Any], messages: tuple[Message, ...]) -> None:
    (conversation,) = read(row)
    assert conversation.messages == messages


def test_a_row_with_several_instances_gives_as_many_conversations() -> None:
    row = {"instruction": "Double it.", "instances": [{"input": "2", "output": "4"}, {"input": "3", "output": "6"}]}
    assert [(c.name, c.messages[0].content, c.messages[1].content) for c in read(row)] == [
        ("f.jsonl:3.1", "Double it.\n\n2", "4"), ("f.jsonl:3.2", "Double it.\n\n3", "6"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "format", "said"),
    [
        ({"txt": "x"}, None, r"row 3 of f.jsonl is of no known format: its keys are txt\n  allowed: messages \{mess"),
        ({"instruction": "", "output": "", "response": ""}, None, r"fits several formats \(alpaca, dolly\)"),
        (SAME["alpaca"], "sharegpt", "not of the format 'sharegpt': its keys are instruction, input, output"),
        ([1], None, "row 3 of f.jsonl is no mapping"),
        ({"prompt": 7, "completion": "x"}, None, "'prompt' in row 3 of f.jsonl is no text but 7"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, None, "turn 1 of row 3 of f.jsonl is spoken by narr"),
        ({"messages": [{"role": "user", "text": "x"}]}, None, "turn 1 of row 3 of f.jsonl is no turn: role, text"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}]}, None, "calls tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, None, "is no text"),
        ({"messages": []}, None, "without a turn"),
        ({"prompt": "\ud800", "completion": "x"}, None, "half of a surrogate pair"),
    ],
)
def test_what_is_no_conversation_is_named(row: Any, format: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(row, format)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(DataError, match=r"'share-gpt' \(did you mean 'sharegpt'"):
        list(read_conversations(Files(("x.jsonl",)), "share-gpt"))


def test_equal_prompts_stand_on_one_side_and_nothing_twice() -> None:
    talks = [Conversation((Message("user", f"Question {i % 50}"), Message("assistant", f"Answer {i % 150}")))
             for i in range(300)]  # fmt: skip
    train, held_out = (list(select_conversations(talks, side, 0.3)) for side in ("train", "held_out"))
    assert len(train) + len(held_out) == 150
    assert not {talk.prompt for talk in train} & {talk.prompt for talk in held_out}
    assert list(select_conversations(talks, "train", 0.3, 7)) == train[:7]


def test_hub_rows_are_read_like_files(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "rows.jsonl").write_text(json.dumps(SAME["messages"]) + "\n")
    (conversation,) = read_conversations(HubDataset(str(tmp_path)))
    assert conversation.messages == EXCHANGE


def test_the_shared_instruction_data_are_read_as_they_lie(shared_data) -> None:
    """Counts of data/README.md; 70 rows of T0 have no completion but an end mark."""
    talks = list(read_conversations(Files((str(shared_data("instruct")),))))
    assert Counter(talk.name.rpartition(":")[0] for talk in talks) == {
        "alpaca_en_demo.json": 999, "instruction-data.json": 1100, "seed_tasks.jsonl": 175,
        "t0_sample.jsonl.gz": 2808, "user_oriented_instructions.jsonl": 252,
    }  # fmt: skip
    empty = [talk.name for talk in talks if not talk.has_answer]
    assert len(empty) == 70 and all(name.startswith("t0_sample") for name in empty)
    assert not any("<|endoftext|>" in message.content for talk in talks for message in talk.messages)


def test_the_shared_math_is_read_as_it_lies(shared_data) -> None:
    for name, num_rows in (("gsm8k/train.jsonl.gz", 7473), ("math/train.jsonl.gz", 7500)):
        assert sum(talk.has_answer for talk in read_conversations(Files((str(shared_data(name)),)))) == num_rows
