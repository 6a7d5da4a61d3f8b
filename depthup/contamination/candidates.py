"""Which test items a stretch of text may hold: one pass over it for all of them, before any is looked at.

Candidates come from seeds (5-grams, in the way of Ai2's decon for Olmo 3) and from votes (rare words of an item, for
what was rephrased). Votes are counted in a byte for each item, which stays in the nearest cache: of each word, points
that are rounded up, so that none who has enough weight lacks points. Who has the points is weighed exactly later.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .index import ENOUGH, SEED, Index, seed_hash, two_bits
from .text import UNKNOWN, compiled

CHUNK, STRIDE = 1024, 640  # words looked at together; chunks overlap by more than the longest window
STRANGER = 1  # number in a chunk of all words of no test set; 0 is that of masked numbers


class Chunk(NamedTuple):
    """What is known of the chunk of words that is looked at, and of each item in it; memory that is used again.

    Attributes:
        plain, masked: Number in this chunk of each of its words, the one where numbers are masked: int32[CHUNK].
        distinct: Id of each number, int32.
        number_of: For each word of the vocabulary: the running number of the last chunk that held it, times
            ``2 * CHUNK``, plus its number there; int64[V].
        places: Where seeds may stand, int64[2 * CHUNK].
        points: Votes of each item, uint8[N].
        candidates: The items that may be there, int32[N].
        item_seen: In which chunk an item was a candidate, int64[N].
        stamp: Running number of the chunk, int64[1].
    """

    plain: np.ndarray
    masked: np.ndarray
    distinct: np.ndarray
    number_of: np.ndarray
    places: np.ndarray
    points: np.ndarray
    candidates: np.ndarray
    item_seen: np.ndarray
    stamp: np.ndarray


def make_chunk(index: Index) -> Chunk:
    """Memory for texts to be compared with an index."""
    items, words = len(index.total), len(index.weight)
    return Chunk(
        plain=np.zeros(CHUNK, np.int32), masked=np.zeros(CHUNK, np.int32), distinct=np.zeros(CHUNK + 2, np.int32),
        number_of=np.zeros(words, np.int64), places=np.zeros(2 * CHUNK, np.int64), points=np.zeros(items, np.uint8),
        candidates=np.zeros(items, np.int32), item_seen=np.zeros(items, np.int64), stamp=np.zeros(1, np.int64),
    )  # fmt: skip


@compiled
def number_in(chunk: Chunk, word: int) -> int:
    """Number of a word of the vocabulary in the chunk; -1 where it is not there."""
    value = int(chunk.number_of[word])
    return value % (2 * CHUNK) if value // (2 * CHUNK) == chunk.stamp[0] else -1


@compiled
def find_candidates(
    plain: np.ndarray, masked: np.ndarray, low: int, high: int, index: Index, chunk: Chunk
) -> tuple[int, int]:
    """Fill ``chunk`` for the words ``low`` to ``high`` of a text.

    Returns:
        Candidates by seeds, and all candidates: those by votes come after.
    """
    chunk.stamp[0] += 1
    num_distinct = _number_words(plain, masked, low, high, chunk)
    by_seeds = _by_seeds(plain, masked, low, high, index, chunk)
    return by_seeds, _by_votes(num_distinct, index, chunk, by_seeds)


@compiled
def _number_words(plain: np.ndarray, masked: np.ndarray, low: int, high: int, chunk: Chunk) -> int:
    """Number the words of a chunk in their order, from 2 on; returns the first number that no word has."""
    base = int(chunk.stamp[0]) * 2 * CHUNK
    count = STRANGER + 1
    for j in range(low, high):
        word = int(plain[j])
        number = STRANGER
        if word != UNKNOWN:
            number = int(chunk.number_of[word]) - base
            if number < 0:
                number = count
                chunk.number_of[word] = base + number
                chunk.distinct[number] = word
                count += 1
        chunk.plain[j - low] = number
        if masked[j] == word:
            chunk.masked[j - low] = number
        else:
            chunk.masked[j - low] = 0
            chunk.number_of[0] = base
    return count


@compiled
def _find_seed(ids: np.ndarray, at: int, index: Index) -> int:
    """Number of the seed that stands at a place, or -1."""
    last = len(index.seed_slot) - 1
    slot = seed_hash(ids, at) & last
    while index.seed_slot[slot] != -1:
        seed = int(index.seed_slot[slot])
        same = True
        for k in range(SEED):
            same = same and index.words[index.seed_at[seed] + k] == ids[at + k]
        if same:
            return seed
        slot = (slot + 1) & last
    return -1


@compiled
def _is_no_seed(ids: np.ndarray, at: int, index: Index) -> bool:
    """Whether the two bits of what stands at a place are not set; where they are, it may be a seed."""
    value = seed_hash(ids, at)
    wanted = two_bits(value)
    return int(index.seed_bits[value & (len(index.seed_bits) - 1)]) & wanted != wanted


@compiled
def _may_be_seeds(
    plain: np.ndarray, masked: np.ndarray, low: int, high: int, index: Index, places: np.ndarray
) -> tuple[int, int]:
    """Fill the places where seeds may stand; returns how many as the text is, and how many with masked numbers too."""
    count, differs = 0, low - 1
    for j in range(low, high - SEED + 1):  # without a branch: many look-ups of the large table are under way at once
        places[count] = j
        count += 0 if _is_no_seed(plain, j, index) else 1
    num_plain = count
    for last in range(low, high):
        if plain[last] != masked[last]:
            differs = last
        j = last - SEED + 1
        if differs >= j >= low and not _is_no_seed(masked, j, index):
            places[count] = j
            count += 1
    return num_plain, count


@compiled
def _add_candidates(seed: int, index: Index, chunk: Chunk, count: int) -> int:
    for k in range(index.seed_start[seed], index.seed_start[seed + 1]):
        item = int(index.seed_items[k])
        if chunk.item_seen[item] != chunk.stamp[0]:
            chunk.item_seen[item] = chunk.stamp[0]
            chunk.candidates[count] = item
            count += 1
    return count


@compiled
def _by_seeds(plain: np.ndarray, masked: np.ndarray, low: int, high: int, index: Index, chunk: Chunk) -> int:
    """Make candidates of the items that share a seed with a chunk; returns their number."""
    count = 0
    num_plain, num_places = _may_be_seeds(plain, masked, low, high, index, chunk.places)
    for k in range(num_places):
        seed = _find_seed(plain if k < num_plain else masked, chunk.places[k], index)
        if seed >= 0:
            count = _add_candidates(seed, index, chunk, count)
    return count


@compiled
def _by_votes(num_distinct: int, index: Index, chunk: Chunk, count: int) -> int:
    """Add the items whose rare words in a chunk make up enough of them; returns the number of candidates."""
    chunk.points[:] = 0
    for number in range(STRANGER + 1, num_distinct):
        word = int(chunk.distinct[number])
        for k in range(index.vote_start[word], index.vote_start[word + 1]):
            vote = int(index.votes[k])  # an item and its points
            item = vote >> 8
            before = int(chunk.points[item])
            if before < ENOUGH:
                after = before + (vote & 0xFF)
                chunk.points[item] = after
                if after >= ENOUGH and chunk.item_seen[item] != chunk.stamp[0]:
                    chunk.item_seen[item] = chunk.stamp[0]
                    chunk.candidates[count] = item
                    count += 1
    return count
