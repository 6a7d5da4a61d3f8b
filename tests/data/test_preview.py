"""Previews: everything of a row is shown, targets are told from context, borders and cuts are marked."""

from __future__ import annotations

import re
from typing import Any

import chats
import numpy as np
import pytest
from chats import TALKS

from depthup.data.chat import chat_encoder
from depthup.data.packing import PackedRows, pack
from depthup.data.preview import preview_batch, preview_rows
from depthup.data.tokens import TokenizedDocuments, write_encoded

ANSWERS = ["Yes, it is.", "Hello 🙂 — naïve", "Größe.\n\nThe end"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return chats.byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def rows(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> PackedRows:
    folder = tmp_path_factory.mktemp("tokens")
    return pack(write_encoded(TALKS[:2], chat_encoder(tokenizer, "chatml"), folder), 150, whole=True)


def test_targets_stand_in_brackets_and_nothing_is_missing(tokenizer: Any, rows: PackedRows) -> None:
    text = preview_rows(rows, np.arange(1), tokenizer, color=False)
    assert sorted(re.findall("⟦(.*?)⟧", text, re.DOTALL)) == sorted(f"{answer}<|im_end|>" for answer in ANSWERS)
    assert text.count("· document ") == 2 and "tokens of padding" in text
    for talk in TALKS[:2]:
        assert all(message.content in text for message in talk.messages)


def test_colours_mark_what_the_brackets_mark(tokenizer: Any, rows: PackedRows) -> None:
    plain, coloured = (preview_rows(rows, np.arange(1), tokenizer, color=color) for color in (False, True))
    green = re.findall("\x1b\\[32m(.*?)\x1b\\[0m", coloured, re.DOTALL)
    assert green == re.findall("⟦(.*?)⟧", plain, re.DOTALL)
    assert re.sub("\x1b\\[[0-9]+m", "", coloured) == re.sub("[⟦⟧]", "", plain)


def test_a_batch_shows_the_same_rows(tokenizer: Any, rows: PackedRows) -> None:
    batch = preview_batch(rows.batch(np.arange(1)), tokenizer, color=False)
    assert batch == preview_rows(rows, np.arange(1), tokenizer, color=False)


def test_truncated_documents_are_marked_and_counted(tokenizer: Any, rows: PackedRows) -> None:
    short = pack(rows.documents, 60, whole=True)
    text = preview_rows(short, np.arange(short.num_rows), tokenizer, color=False)
    assert text.count("[… truncated]") == short.num_truncated == 1
    assert text.endswith("1 documents truncated, 0 dropped: no target was left of them")
    pieces = pack(rows.documents, 60)
    text = preview_rows(pieces, np.arange(pieces.num_rows), tokenizer, color=False)
    assert text.count("[… truncated]") == text.count("[…] ") == len(pieces.pieces) - 2


def test_text_from_outside_does_not_steer_the_terminal(tokenizer: Any) -> None:
    ids = np.asarray(tokenizer("Red \x1b[31m alert\x07", add_special_tokens=False)["input_ids"], np.int32)
    rows = pack(TokenizedDocuments(ids, np.asarray([0, len(ids)])), 64)
    text = preview_rows(rows, np.arange(1), tokenizer, color=False)
    assert "\x1b" not in text and "\x07" not in text and "\\x1b[31m alert\\x07" in text
