"""The test sets as arrays: words by their ids, what each word tells, and which 5-grams and words lead to an item."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from .benchmarks import MATH, Item
from .rules import PROSE
from .text import NUMBER, Vocabulary, compiled, make_vocabulary, words_of

SEED = 5  # words of a seed; Ai2's decon samples 5-grams too
MAX_WORDS = 256  # of a question: of a longer one, the end, where the question stands, not the passage before it
LONG_TEXT = 50  # words from which an answer, or what stands before the end of a long question, is looked for by itself
_COMMON = 16  # a 5-gram of more items than that is no seed, unless an item has no other
_KEPT = 2  # the rarest 5-grams of an item are seeds in any case
MIN_SHARE = 0.5  # of a question's weight in one window of a text: below it nothing is a hit
NEED = 0.3  # share of an item's weight that its rare words in 1,024 words must have, where no seed of it is there
_MAX_VOTERS = 256  # a word of more items than that is not rare
ENOUGH = 128  # points of votes that make a candidate
_LEAST = 0.2  # share of an item's weight below which its points are not asked for: then more of its words must vote
_FACTORS = (982451653, 674506111, 573259391, 899809343, 756065179)  # of the words of a seed: primes below 2**30

_SPELLED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million"
)


_PROSE = re.compile(r"(?<![\\a-z])[a-z]{3,}")


class Index(NamedTuple):
    """What the kernels read. N texts: all questions, then long answers and passages; V words, G seeds.

    Attributes:
        words: Of the texts as they are compared (masked for math), at ``start[k]:start[k + 1]``, int32.
        plain: The same as they are, int32.
        start: int64[N + 1].
        answers, answer_start: Of the answers, in the same way.
        distinct, distinct_start: The different words of each text, int32 and int64[N + 1].
        weight: What a word tells: log of items over items that have it, float64[V].
        is_rare: Whether so few items have a word that it counts for ``NEED``, uint8[V].
        total: Sum of the weights of an item's distinct words, float64[N].
        is_math: uint8[N].
        seed_bits: Of each seed's hash two bits in one of 2**k words, int64: most 5-grams of a text end here.
        seed_slot: Open table, int32[2**k]: number of a seed, or -1.
        seed_at: Where the words of a seed stand in ``words``, int64[G].
        seed_start, seed_items: Items of a seed, int64[G + 1] and int32.
        vote_start, votes: Items that a word votes for, times 256, plus the points; int64[V + 1] and int32.
        label_ids: Ids of ``question`` and ``answer``, int32[2].
    """

    words: np.ndarray
    plain: np.ndarray
    start: np.ndarray
    answers: np.ndarray
    answer_start: np.ndarray
    distinct: np.ndarray
    distinct_start: np.ndarray
    weight: np.ndarray
    is_rare: np.ndarray
    total: np.ndarray
    is_math: np.ndarray
    seed_bits: np.ndarray
    seed_slot: np.ndarray
    seed_at: np.ndarray
    seed_start: np.ndarray
    seed_items: np.ndarray
    vote_start: np.ndarray
    votes: np.ndarray
    label_ids: np.ndarray


@dataclass(frozen=True)
class Reference:
    """Test items, ready to be looked for.

    Attributes:
        items: In the order of their numbers.
        vocabulary: Their words.
        index: Their arrays.
        owners: The item of each text of the index, int64[N]; text k is the question of item k, the others come after.
        has_prose: Of each text, False for math questions of fewer than ``PROSE`` different words; bool[N].
    """

    items: tuple[Item, ...]
    vocabulary: Vocabulary
    index: Index
    owners: np.ndarray
    has_prose: np.ndarray

    @property
    def unsearchable(self) -> tuple[Item, ...]:
        """Items of fewer than five words, question and answer together: no rule of words can find them."""
        lengths = np.diff(self.index.start)
        return tuple(item for item, length in zip(self.items, lengths, strict=False) if length < SEED)


def make_reference(items: Sequence[Item]) -> Reference:
    """Index some items (28,600 of them in some 2 s).

    Raises:
        DataError: There are too many.
    """
    questions, digits = _split([item.question for item in items])
    answers, answer_digits = _split([item.answer for item in items])
    for k, question in enumerate(questions):
        if len(question) < SEED:  # too little to be known by; with its answer it may be enough
            questions[k], answers[k] = np.concatenate([question, answers[k]]), answers[k][:0]
    extra = _long_texts(questions, answers)
    owners = np.array([*range(len(items)), *(owner for owner, _ in extra)])
    questions = [question[-MAX_WORDS:] for question in questions] + [text for _, text in extra]
    answers += [np.zeros(0, np.int64)] * len(extra)
    (labels, spelled), _ = _split(["question answer", _SPELLED])
    everything = np.concatenate([*questions, *answers, labels])
    numbers = np.unique(np.concatenate([spelled, digits, answer_digits]))
    vocabulary, ids = make_vocabulary(everything, numbers)
    start, answer_start = _starts(questions), _starts(answers)
    plain, answer_ids = ids[: start[-1]], ids[start[-1] : start[-1] + answer_start[-1]]
    is_math = np.array([item.benchmark in MATH for item in items] + [False] * len(extra), np.uint8)
    owner = np.repeat(np.arange(len(questions)), np.diff(start))
    hidden = (is_math[owner] == 1) & (vocabulary.is_number[plain] == 1)
    words = np.where(hidden, NUMBER, plain).astype(np.int32)
    if len(questions) >= 1 << 23:
        raise DataError(
            f"{len(questions):,} test items and long answers are too many for one run",
            allowed=f"below {1 << 23:,}", next_step="give fewer test sets at a time",
        )  # fmt: skip
    pairs = _distinct(owner.astype(np.int64) << 32 | words)
    distinct, texts = pairs & 0xFFFFFFFF, pairs >> 32
    df = np.bincount(distinct[texts < len(items)], minlength=len(vocabulary.is_number))
    weight = np.log((len(items) + 1) / np.maximum(df, 1))
    total = np.bincount(texts, weights=weight[distinct], minlength=len(questions))
    is_rare = (df <= _MAX_VOTERS).astype(np.uint8)
    is_rare[NUMBER] = 0
    distinct_start = np.searchsorted(texts, np.arange(len(questions) + 1))
    vote_start, votes = _votes(distinct, texts, distinct_start, weight, is_rare)
    bits, slots, seed_at, seed_start, seed_items = _seeds(words, start, owner)
    index = Index(
        words, plain, start, answer_ids, answer_start, distinct.astype(np.int32), distinct_start, weight, is_rare,
        total, is_math, bits, slots, seed_at, seed_start, seed_items, vote_start, votes, ids[-2:].copy(),
    )  # fmt: skip
    has_prose = [item.benchmark not in MATH or _num_prose(item.question) >= PROSE for item in items]
    return Reference(tuple(items), vocabulary, index, owners, np.array(has_prose + [True] * len(extra)))


def _num_prose(question: str) -> int:
    """Different words of three letters and more: no variables, no commands of LaTeX, no numbers."""
    return len(set(_PROSE.findall(question.lower())) - set(_SPELLED.split()))


def _votes(words: np.ndarray, texts: np.ndarray, start: np.ndarray, weight: np.ndarray,
           is_rare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(start, votes): the votes of word k are ``votes[start[k]:start[k + 1]]``.

    Of a hit, rare words in a chunk have ``NEED`` of the weight, and all words ``MIN_SHARE``. Both limits less all that
    the rarest p words leave is what these alone must have; as few vote as need ``_LEAST`` of the weight at least.

    Args:
        words, texts: The different words of each text, text by text.
        start: Where those of a text begin, int64[N + 1].
        weight, is_rare: Of each word.
    """
    own, rare = weight[words], is_rare[words] == 1
    order = np.lexsort((-own, ~rare, texts))  # rare words first, the rarest before
    words, own, rare = words[order], own[order], rare[order]
    sums, rare_sums = (np.concatenate([[0.0], np.cumsum(values)]) for values in (own, own * rare))
    total, all_rare = np.diff(sums[start]), np.diff(rare_sums[start])
    missing = np.maximum(NEED * total - all_rare, (MIN_SHARE - 1) * total)  # what voters must have, less all they have
    before = sums[:-1] - sums[start[texts]]
    voting = rare & (missing[texts] + before < _LEAST * total[texts])
    num_voting = np.bincount(texts[voting], minlength=len(total))  # the first of each text
    needed = (missing + sums[start[:-1] + num_voting] - sums[start[:-1]]) * (1 - 1e-5)  # rounding loses no candidate
    points = np.ceil(np.minimum(own[voting] / needed[texts[voting]], 1.0) * ENOUGH).astype(np.int64)
    order = np.argsort(words[voting], kind="stable")
    vote_start = np.searchsorted(words[voting][order], np.arange(len(weight) + 1))
    return vote_start, (texts[voting] << 8 | points)[order].astype(np.int32)


def _long_texts(questions: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """(item, words) of what a copy may hold without the question: long answers, passages before the end of a question.

    In pieces of ``MAX_WORDS``; a last piece below ``LONG_TEXT`` words is left out.
    """
    found: list[tuple[int, np.ndarray]] = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        for text in (answer, question[:-MAX_WORDS]):
            pieces = (text[k : k + MAX_WORDS] for k in range(0, len(text), MAX_WORDS))
            found += [(number, piece) for piece in pieces if len(piece) >= LONG_TEXT]
    return found


def _split(texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """(hashes of the words of each text, hashes of all words that are numbers in digits)."""
    if not texts:
        return [], np.zeros(0, np.int64)
    words, count, _ = words_of("\n".join(text.replace("\n", " ") for text in texts))
    cuts = np.searchsorted(words.line[:count], np.arange(1, len(texts)))
    hashes = words.hash[:count]
    return np.split(hashes, cuts), hashes[words.digits[:count] == 1]


def _starts(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


def _distinct(values: np.ndarray) -> np.ndarray:
    """The different values, sorted (``np.unique`` hashes them first, which takes far longer for such pairs)."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _grouped(keys: np.ndarray, values: np.ndarray, num_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """(start, values): the values of key k are ``values[start[k]:start[k + 1]]``."""
    order = np.argsort(keys, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=num_keys))]).astype(np.int64)
    return start, values[order].astype(np.int32)


def _seeds(words: np.ndarray, start: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, ...]:
    """The seeds of all items: bits, slots, where each stands, and its items."""
    at = np.arange(max(len(words) - SEED + 1, 0))
    at = at[at + SEED <= start[owner[at] + 1]]
    values = sum((words[at + k].astype(np.int64) + 1) * _FACTORS[k] for k in range(SEED))
    _, where, gram = np.unique(values, return_index=True, return_inverse=True)
    pairs = _distinct(gram.astype(np.int64) << 32 | owner[at])
    grams, items = pairs >> 32, pairs & 0xFFFFFFFF
    df = np.bincount(grams, minlength=len(where))
    order = np.lexsort((df[grams], items))  # the grams of each item, rarest first
    items_in_order = items[order]
    new = np.concatenate([[True], items_in_order[1:] != items_in_order[:-1]]) if len(order) else np.zeros(0, bool)
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    keep = order[(df[grams[order]] <= _COMMON) | (rank < _KEPT)]
    kept, gram_number = np.unique(grams[keep], return_inverse=True)
    seed_start, seed_items = _grouped(gram_number, items[keep], len(kept))
    seed_at = at[where[kept]] if len(kept) else np.zeros(0, np.int64)
    bits = np.zeros(1 << 19, np.int64)  # 4 MB
    slots = np.full(1 << max(10, (2 * len(kept)).bit_length()), -1, np.int32)
    _fill_slots(words, seed_at, bits, slots)
    return bits, slots, seed_at, seed_start, seed_items


@compiled
def seed_hash(ids: np.ndarray, at: int) -> int:
    """31 bits of the words of a seed; no step waits for another, and none passes 2**62."""
    value = 0
    for k in range(SEED):
        value += (int(ids[at + k]) + 1) * _FACTORS[k]
    return (value ^ (value >> 27)) & 0x7FFFFFFF


@compiled
def two_bits(value: int) -> int:
    """Two bits of 62 by the upper bits of a seed's hash; the lower ones choose the word that they are set in."""
    return (1 << ((value >> 19) & 63) % 62) | (1 << (value >> 25) % 62)


@compiled
def _fill_slots(words: np.ndarray, seed_at: np.ndarray, bits: np.ndarray, slots: np.ndarray) -> None:
    last, last_bits = len(slots) - 1, len(bits) - 1
    for k in range(len(seed_at)):
        value = seed_hash(words, seed_at[k])
        bits[value & last_bits] |= two_bits(value)
        slot = value & last
        while slots[slot] != -1:
            slot = (slot + 1) & last
        slots[slot] = k
