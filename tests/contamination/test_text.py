"""Words by one pass over bytes: against a slow and plain definition, compiled and not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.contamination.text import (
    BYTE_CLASSES,
    NUMBER,
    UNKNOWN,
    look_up,
    make_vocabulary,
    python_of,
    room_for,
    split_words,
    words_of,
)


def plain_words(text: str) -> list[str]:
    """The definition, for text of ASCII and Latin-1 letters."""
    words, word = [], ""
    for character, following in zip(text + " ", text[1:] + "  ", strict=False):
        if character in "'`’‘" or (character == "," and word.isdigit() and following.isdigit()):
            continue
        if character.isalnum():
            word += character.lower()
        elif word:
            words.append(word)
            word = ""
    return words


def found_words(text: str) -> list[str]:
    words, count, data = words_of(text)
    return [bytes(data[words.begin[k] : words.end[k]]).decode() for k in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Janet’s ducks lay 16 eggs", ["Janet’s", "ducks", "lay", "16", "eggs"]),
        ("$80,000 or 80000, 1,2", ["80,000", "or", "80000", "1,2"]),
        ("a—b…c\u00a0d«e»", ["a", "b", "c", "d", "e"]),
        ("$\\frac{1}{2}$ x^2", ["frac", "1", "2", "x", "2"]),
        ("", []),
        ("'' ,", []),
    ],
)
def test_words_begin_and_end_where_they_should(text: str, expected: list[str]) -> None:
    assert found_words(text) == expected


@given(st.text("aBc9 ,.'’\n-éÉ0", max_size=60))
@settings(max_examples=200, deadline=None)
def test_words_are_those_of_the_definition(text: str) -> None:
    words, count, _ = words_of(text)
    expected = plain_words(text)
    assert count == len(expected)
    for mine, word in zip(words.hash[:count].tolist(), expected, strict=True):
        alone, number, _ = words_of(word)
        assert number == 1 and alone.hash[0] == mine


@given(st.text(max_size=80))
@settings(max_examples=100, deadline=None)
def test_the_kernel_gives_the_same_with_and_without_numba(text: str) -> None:
    words, count, data = words_of(text)
    slow = room_for(len(data))
    assert python_of(split_words)(data, BYTE_CLASSES, slow) == count
    for fast_array, slow_array in zip(words, slow, strict=True):
        assert fast_array[:count].tolist() == slow_array[:count].tolist()


def test_numbers_are_masked_and_strangers_told() -> None:
    words, count, _ = words_of("six ducks lay 16 eggs")
    spelled, _, _ = words_of("six")
    vocabulary, ids = make_vocabulary(words.hash[:count], spelled.hash[:1])
    text, count, _ = words_of("Six geese lay 17 eggs")
    plain, masked = np.empty(count, np.int32), np.empty(count, np.int32)
    look_up(text, count, vocabulary, plain, masked)
    assert plain.tolist() == [ids[0], UNKNOWN, ids[2], UNKNOWN, ids[4]]
    assert masked.tolist() == [NUMBER, UNKNOWN, ids[2], NUMBER, ids[4]]
