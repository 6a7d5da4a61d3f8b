"""Words of a text by one pass over its UTF-8 bytes, and the vocabulary of the test sets.

A word is a run of letters and digits. Case is dropped for ASCII and Latin-1 letters; punctuation parts words, save
that an apostrophe, and a comma between digits, is left out (``Janet's`` -> ``janets``, ``1,000`` -> ``1000``). Every
other byte from 0x80 on is a letter: the test sets are English, and no code point is cut where only whole words are
compared. Words are equal where 62 bits of hash are.

The kernels are plain Python over NumPy arrays. With the extra ``contamination`` numba compiles them; without it the
same code runs, and gives the same, some hundred times slower: of a product only the low 62 bits are kept, and these are
the same where it wraps around.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

numba: Any
try:
    import numba
except ImportError:
    numba = None


def compiled(function: Function) -> Function:
    """The function compiled by numba (kept on the disk for the next process), or as it is where numba is missing."""
    if numba is None:
        return function
    return numba.njit(cache=True, nogil=True)(function)


def python_of(function: Any) -> Any:
    """A kernel as plain Python, compiled or not; for tests that both give the same."""
    return getattr(function, "py_func", function)


MASK_62 = (1 << 62) - 1
PRIME, FIRST = (1 << 40) + 0x1B3, 0x0BF29CE484222325  # of FNV-1a: a word's hash begins as the second
UNKNOWN = -1  # a word of no test set
NUMBER = 0  # id of every number, where numbers are masked

_PART, _DROP, _COMMA, _LEAD, _NEWLINE = 0, 1, 2, 3, 4


def _byte_classes() -> np.ndarray:
    """What each byte does: a class below 5, or the letter that it stands for."""
    table = np.zeros(256, np.uint8)
    for byte in range(256):
        if chr(byte).isalnum() and byte < 0x80:
            table[byte] = ord(chr(byte).lower())
        elif byte >= 0x80:
            table[byte] = byte
    table[ord("'")] = table[ord("`")] = _DROP
    table[ord(",")] = _COMMA
    table[ord("\n")] = _NEWLINE
    for lead in (0xC2, 0xC3, 0xE2, 0xE3):
        table[lead] = _LEAD
    return table


BYTE_CLASSES = _byte_classes()


class Words(NamedTuple):
    """Room for the words of a text; the first ``n`` of each array are filled.

    Attributes:
        begin, end: Byte offsets in the text, int32.
        line: Number of the line that the word stands in, int32.
        digits: 1 where the word is a number in digits, uint8.
        hash: 62 bits of the word, int64.
    """

    begin: np.ndarray
    end: np.ndarray
    line: np.ndarray
    digits: np.ndarray
    hash: np.ndarray


def room_for(num_bytes: int) -> Words:
    """Room for the words of a text of so many bytes."""
    most = num_bytes // 2 + 1
    begin, end, line = (np.empty(most, np.int32) for _ in range(3))
    return Words(begin, end, line, np.empty(most, np.uint8), np.empty(most, np.int64))


@compiled
def _punctuation_width(data: np.ndarray, i: int) -> int:
    """Bytes of the sign at a lead byte: above 0 it parts words, below 0 it is left out, 0 it is a letter."""
    lead = int(data[i])
    second = int(data[i + 1]) if i + 1 < len(data) else 0
    if lead == 0xC2:
        return 2
    if lead == 0xC3:
        return 2 if second == 0x97 or second == 0xB7 else 0
    if lead == 0xE2 and (second == 0x80 or second == 0x81):
        third = int(data[i + 2]) if i + 2 < len(data) else 0
        return -3 if second == 0x80 and (third == 0x98 or third == 0x99) else 3
    return 3 if lead == 0xE3 and second == 0x80 else 0


@compiled
def split_words(data: np.ndarray, classes: np.ndarray, words: Words) -> int:
    """Find the words of a text; returns their number.

    Args:
        data: UTF-8 bytes, uint8[n].
        classes: ``BYTE_CLASSES``.
        words: Filled; room for n // 2 + 1 words.
    """
    count = line = begin = end = i = value = 0
    inside, letters = False, 0  # of a word; whether it has more than digits
    size = len(data)
    while i <= size:
        kind = int(classes[data[i]]) if i < size else 0
        if kind > 4:
            if not inside:
                begin, value, inside, letters = i, FIRST, True, 0
            while 4 < kind < 0x80:
                value = ((value ^ kind) * PRIME) & MASK_62
                letters |= kind & 0x40  # no digit has this bit
                i += 1
                kind = int(classes[data[i]]) if i < size else 0
            end = i
        width = 1
        if kind == 3:
            width = _punctuation_width(data, i)
            kind = 0 if width > 0 else 1 if width < 0 else int(data[i])
            width = max(abs(width), 1)
        elif kind == 2:
            goes_on = inside and letters == 0 and i + 1 < size and 48 <= int(data[i + 1]) <= 57
            kind = 1 if goes_on else 0
        if kind > 4:
            if not inside:
                begin, value, inside = i, FIRST, True
            if i > 0 and int(data[i - 1]) == 0xC3 and kind <= 0x9E:
                kind += 0x20  # capital letters of Latin-1
            value = ((value ^ kind) * PRIME) & MASK_62
            letters = 1
            end = i + 1
        elif kind != 1 and inside:
            words.begin[count] = begin
            words.end[count] = end
            words.line[count] = line
            words.digits[count] = 1 if letters == 0 else 0
            words.hash[count] = value
            count += 1
            inside = False
        if kind == 4:
            line += 1
        i += width
    return count


class Vocabulary(NamedTuple):
    """The words of the test sets, as an open table of 2**k slots.

    Attributes:
        slots: Hash of the word in each slot, -1 where it is empty, and its id, int64[2**k, 2].
        is_number: Whether the word of an id is a number, in digits or spelled, uint8[V].
    """

    slots: np.ndarray
    is_number: np.ndarray


@compiled
def look_up(words: Words, count: int, vocabulary: Vocabulary, plain: np.ndarray, masked: np.ndarray) -> None:
    """Ids of words, int32: ``plain`` as they are, ``masked`` with ``NUMBER`` for numbers; ``UNKNOWN`` for strangers."""
    slots, last = vocabulary.slots, len(vocabulary.slots) - 1
    for k in range(count):
        wanted = int(words.hash[k])
        slot = (wanted ^ (wanted >> 29)) & last
        while slots[slot, 0] != wanted and slots[slot, 0] != -1:
            slot = (slot + 1) & last
        found = int(slots[slot, 1])
        plain[k] = found
        if words.digits[k] == 1 or (found >= 0 and vocabulary.is_number[found] == 1):
            found = 0
        masked[k] = found


def make_vocabulary(hashes: np.ndarray, number_hashes: np.ndarray) -> tuple[Vocabulary, np.ndarray]:
    """The vocabulary of some words.

    Args:
        hashes: Of all words of the test sets, int64, repetitions and all.
        number_hashes: Of those that are numbers.

    Returns:
        The vocabulary, and the id of each of ``hashes``, from 1 on (0 is ``NUMBER``). Frequent words have low ids, so
        that what is known of them lies together in memory.
    """
    distinct, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    id_of = np.empty(len(distinct), np.int64)
    id_of[by_count] = np.arange(1, len(distinct) + 1)
    slots = np.full((1 << max(10, (2 * len(distinct)).bit_length()), 2), -1, np.int64)
    _fill(distinct[by_count], slots)
    is_number = np.zeros(len(distinct) + 1, np.uint8)
    is_number[0] = 1
    is_number[1:] = np.isin(distinct[by_count], number_hashes)
    return Vocabulary(slots, is_number), id_of[inverse].astype(np.int32)


@compiled
def _fill(distinct: np.ndarray, slots: np.ndarray) -> None:
    last = len(slots) - 1
    for k in range(len(distinct)):
        wanted = int(distinct[k])
        slot = (wanted ^ (wanted >> 29)) & last
        while slots[slot, 0] != -1:
            slot = (slot + 1) & last
        slots[slot, 0] = wanted
        slots[slot, 1] = k + 1


def words_of(text: str) -> tuple[Words, int, np.ndarray]:
    """The words of a text, their number, and its bytes."""
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    words = room_for(len(data))
    return words, int(split_words(data, BYTE_CLASSES, words)), data
