"""Where the words of a test item stand together in a text: candidates in one pass, then a score for each.

Candidates come from seeds (5-grams, in the way of Ai2's decon for Olmo 3) and from votes (rare words of an item, for
what was rephrased). For each candidate the window of the text that holds most of the question is found; the words are
weighted by how few items have them (IDF). In it are measured: the share of the question there in any order and in
order, the longest exact match, the share inside exact matches of eight words, and the share of the answer nearby.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .index import MAX_WORDS, SEED, Index
from .text import MASK, MULTIPLIER_1, NUMBER, UNKNOWN, Words, compiled

CHUNK, STRIDE = 1024, 640  # words looked at together; chunks overlap by more than the longest window
NEAR = 96  # words around the question in which its answer is looked for: its choices may stand between
MIN_SHARE = 0.5  # of the question's weight in one window: below it nothing is a hit
_LONG_MATCH = 8  # words
FIELDS = 11  # of a hit


class Scratch(NamedTuple):
    """Memory of the kernels, for one process.

    Attributes:
        votes: float64[N].
        item_seen, word_seen: In which chunk an item was a candidate, a word cast its votes: int64[N], int64[V].
        mark, inside: Whether a word belongs to the question, how often it is in the window: int64[V] each.
        candidates: int32[N].
        stamp: Running numbers: of the chunk, of the mark: int64[2].
    """

    votes: np.ndarray
    item_seen: np.ndarray
    word_seen: np.ndarray
    mark: np.ndarray
    inside: np.ndarray
    candidates: np.ndarray
    stamp: np.ndarray


def make_scratch(index: Index) -> Scratch:
    """Memory for texts to be compared with an index."""
    items, words = len(index.total), len(index.weight)
    return Scratch(
        np.zeros(items), np.zeros(items, np.int64), np.zeros(words, np.int64), np.zeros(words, np.int64),
        np.zeros(words, np.int64), np.zeros(items, np.int32), np.zeros(2, np.int64),
    )  # fmt: skip


@compiled
def drop_labels(words: Words, count: int, plain: np.ndarray, masked: np.ndarray, labels: np.ndarray) -> int:
    """Leave out ``Question`` and ``Answer`` where they begin a line; returns the number of words that stay."""
    kept, before = 0, -1
    for k in range(count):
        line = int(words.line[k])
        if line == before or (plain[k] != labels[0] and plain[k] != labels[1]):
            words.begin[kept], words.end[kept], words.line[kept] = words.begin[k], words.end[k], line
            plain[kept], masked[kept] = plain[k], masked[k]
            kept += 1
        before = line
    return kept


@compiled
def _find_seed(ids: np.ndarray, at: int, index: Index) -> int:
    """Number of the seed that stands at a place, or -1."""
    value = 17
    for k in range(SEED):
        word = int(ids[at + k])
        if word == UNKNOWN:
            return -1
        value = value * MULTIPLIER_1 + (word + 1)
        value = (value & MASK) + (value >> 31)
    value &= MASK
    bit = (value ^ (value >> 9)) & (8 * len(index.seed_bits) - 1)
    if (int(index.seed_bits[bit >> 3]) >> (bit & 7)) & 1 == 0:
        return -1
    last = len(index.seed_slot) - 1
    slot = value & last
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
def _add_candidates(seed: int, index: Index, scratch: Scratch, count: int) -> int:
    for k in range(index.seed_start[seed], index.seed_start[seed + 1]):
        item = int(index.seed_items[k])
        if scratch.item_seen[item] != scratch.stamp[0]:
            scratch.item_seen[item] = scratch.stamp[0]
            scratch.candidates[count] = item
            count += 1
    return count


@compiled
def _by_votes(plain: np.ndarray, masked: np.ndarray, low: int, high: int, index: Index, scratch: Scratch, count: int,
              need: float) -> int:  # fmt: skip
    """Add the items whose rare words make up a share ``need`` of them in a chunk."""
    chunk = int(scratch.stamp[0])
    touched = count
    for j in range(low, high):
        word = int(plain[j])
        if word == UNKNOWN or scratch.word_seen[word] == chunk:
            continue
        scratch.word_seen[word] = chunk
        for k in range(index.voter_start[word], index.voter_start[word + 1]):
            scratch.votes[index.voter_items[k]] += index.weight[word]
    for j in range(low, high):
        word = int(plain[j])
        if word == UNKNOWN or scratch.word_seen[word] == -chunk:
            continue
        scratch.word_seen[word] = -chunk
        for k in range(index.voter_start[word], index.voter_start[word + 1]):
            item = int(index.voter_items[k])
            if scratch.votes[item] >= need * index.total[item] and scratch.item_seen[item] != chunk:
                scratch.item_seen[item] = chunk
                scratch.candidates[touched] = item
                touched += 1
            scratch.votes[item] = 0.0
    return touched


@compiled
def _may_be_there(item: int, index: Index, scratch: Scratch) -> bool:
    """Whether the words of a chunk, whose votes were counted, hold enough of a question at all; most do not."""
    chunk, held = int(scratch.stamp[0]), 0.0
    for k in range(index.start[item], index.start[item + 1]):
        word = int(index.words[k])
        if word == NUMBER or abs(scratch.word_seen[word]) == chunk:
            held += index.weight[word]
    return held >= MIN_SHARE * index.total[item] - 1e-9


@compiled
def _best_window(
    ids: np.ndarray, low: int, high: int, question: np.ndarray, index: Index, scratch: Scratch
) -> tuple[float, int]:
    """(weight of the question's distinct words in the best window, where that window begins)."""
    scratch.stamp[1] += 1
    mark = int(scratch.stamp[1])
    for k in range(len(question)):
        scratch.mark[question[k]] = mark
        scratch.inside[question[k]] = 0
    length = len(question) + max(4, len(question) // 4)
    held, best, best_at = 0.0, 0.0, low
    for j in range(low, high):
        word = int(ids[j])
        if word != UNKNOWN and scratch.mark[word] == mark:
            if scratch.inside[word] == 0:
                held += index.weight[word]
            scratch.inside[word] += 1
            if held > best + 1e-9:
                best, best_at = held, max(low, j - length + 1)
        leaving = int(ids[j - length + 1]) if j - length + 1 >= low else UNKNOWN
        if leaving != UNKNOWN and scratch.mark[leaving] == mark:
            scratch.inside[leaving] -= 1
            if scratch.inside[leaving] == 0:
                held -= index.weight[leaving]
    return best, best_at


@compiled
def _in_order(ids: np.ndarray, low: int, high: int, question: np.ndarray, weight: np.ndarray, hit: np.ndarray) -> None:
    """Align a window with a question: fills begin, end, share in order, longest match, share in long matches of a hit.

    The longest common subsequence by weight, row by row; each cell carries where its first word stands.
    """
    width, size = high - low, len(question)
    score, first = np.zeros(width + 1), np.full(width + 1, -1, np.int64)
    runs, covered = np.zeros(width + 1, np.int64), np.zeros(size, np.uint8)
    everything, inside, best, longest, last = 0.0, 0.0, 0.0, 0, low
    for i in range(size):
        gain = weight[question[i]] + 0.01  # a word that every item has is still a word
        everything += gain
        corner, corner_first, corner_run = 0.0, -1, 0
        for j in range(1, width + 1):
            above, above_first, above_run = score[j], first[j], runs[j]
            runs[j] = 0
            if score[j - 1] > score[j]:
                score[j], first[j] = score[j - 1], first[j - 1]
            if ids[low + j - 1] == question[i]:
                runs[j] = corner_run + 1
                longest = max(longest, runs[j])
                if runs[j] >= _LONG_MATCH:
                    for k in range(i - _LONG_MATCH + 1, i + 1):
                        covered[k] = 1
                if corner + gain > score[j]:
                    score[j] = corner + gain
                    first[j] = corner_first if corner_first >= 0 else low + j - 1
                    if score[j] > best:
                        best, last = score[j], low + j
            corner, corner_first, corner_run = above, above_first, above_run
    hit[1], hit[2] = first[width], last
    for i in range(size):
        inside += (weight[question[i]] + 0.01) * covered[i]
    hit[4], hit[5], hit[6] = best / everything, longest, inside / everything


@compiled
def _share_of(ids: np.ndarray, low: int, high: int, wanted: np.ndarray, weight: np.ndarray, scratch: Scratch) -> float:
    """Share of the weight of some distinct words that a stretch of the text holds; -1 where there are none."""
    scratch.stamp[1] += 1
    mark = int(scratch.stamp[1])
    everything, held = 0.0, 0.0
    for k in range(len(wanted)):
        if scratch.mark[wanted[k]] != mark:
            scratch.mark[wanted[k]] = mark
            everything += weight[wanted[k]] + 0.01
    for j in range(low, high):
        word = int(ids[j])
        if word != UNKNOWN and scratch.mark[word] == mark:
            scratch.mark[word] = 0
            held += weight[word] + 0.01
    return held / everything if len(wanted) > 0 else -1.0


@compiled
def _score(item: int, words: Words, plain: np.ndarray, masked: np.ndarray, low: int, high: int, count: int,
           index: Index, scratch: Scratch, numbers: np.ndarray, hit: np.ndarray) -> bool:  # fmt: skip
    """Fill a hit; False where too little of the question stands together."""
    start, end = int(index.start[item]), int(index.start[item + 1])
    question = index.words[start:end]
    ids = masked if index.is_math[item] == 1 else plain
    best, at = _best_window(ids, low, high, question, index, scratch)
    if best < MIN_SHARE * index.total[item]:
        return False
    hit[0], hit[3] = item, best / index.total[item]
    slack = 8 + len(question) // 2  # a window is full where its last new word stands; the question may go on
    _in_order(ids, max(low, at - slack), min(high, at + len(question) + slack), question, index.weight, hit)
    begin, after = int(hit[1]), int(hit[2])
    if begin < 0:
        return False
    answer = index.answers[index.answer_start[item] : index.answer_start[item + 1]]
    hit[7] = _share_of(plain, after, min(count, after + len(answer) + NEAR), answer, index.weight, scratch)
    alone = begin == 0 or words.line[begin - 1] < words.line[begin]
    hit[8] = 1.0 if alone and (after == count or words.line[after] > words.line[after - 1]) else 0.0
    own, found = 0, 0
    if index.is_math[item] == 1:
        for k in range(start, end):
            if numbers[index.plain[k]] == 1:
                own += 1
                for j in range(begin, after):
                    if plain[j] == index.plain[k]:
                        found += 1
                        break
    hit[9], hit[10] = own, found
    return True


@compiled
def scan(words: Words, count: int, plain: np.ndarray, masked: np.ndarray, index: Index, numbers: np.ndarray,
         scratch: Scratch, need: float, hits: np.ndarray) -> int:  # fmt: skip
    """Find the items that a text may hold; returns how many hits there are, of which ``hits`` holds the first.

    Args:
        words, count, plain, masked: The text, by ``split_words``, ``look_up`` and ``drop_labels``.
        index: The test sets.
        numbers: Which words are numbers, uint8[V].
        scratch: Memory.
        need: Share of an item's weight that its rare words in a chunk must have, to make it a candidate.
        hits: Filled, float64[most, 11]: item; first and last word + 1; share in any order, in order; longest match in
            words; share in matches of 8 words; share of the answer, -1 where there is none; whether it stands alone
            on its lines; numbers of a math question, and how many of them stand there.
    """
    found, low, most = 0, 0, len(hits)
    spare = np.zeros(hits.shape[1])
    while True:
        high = min(count, low + CHUNK)
        scratch.stamp[0] += 1
        candidates = 0
        for j in range(low, high - SEED + 1):
            seed = _find_seed(plain, j, index)
            if seed >= 0:
                candidates = _add_candidates(seed, index, scratch, candidates)
            differs = False
            for k in range(SEED):
                differs = differs or plain[j + k] != masked[j + k]
            if differs:
                seed = _find_seed(masked, j, index)
                if seed >= 0:
                    candidates = _add_candidates(seed, index, scratch, candidates)
        candidates = _by_votes(plain, masked, low, high, index, scratch, candidates, need)
        for k in range(candidates):
            hit = hits[found] if found < most else spare
            item = int(scratch.candidates[k])
            if _may_be_there(item, index, scratch) and _score(
                item, words, plain, masked, low, high, count, index, scratch, numbers, hit
            ):
                found += 1
        if high == count:
            return found
        low += STRIDE


assert MAX_WORDS + MAX_WORDS // 4 <= CHUNK - STRIDE
