"""Where the words of a test item stand together in a text: candidates in one pass, then a score for each.

Candidates come from seeds (5-grams, in the way of Ai2's decon for Olmo 3) and from votes (rare words of an item, for
what was rephrased). For each candidate the window of the text that holds most of the question is found; the words are
weighted by how few items have them (IDF). In it are measured: the share of the question there in any order and in
order, the longest exact match, the share inside exact matches of eight words, and the share of the answer nearby.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .index import MAX_WORDS, SEED, Index, seed_hash
from .rules import BAG, LONG, RUN
from .text import NUMBER, UNKNOWN, Words, compiled

CHUNK, STRIDE = 1024, 640  # words looked at together; chunks overlap by more than the longest window
NEAR = 96  # words around the question in which its answer is looked for: its choices may stand between
MIN_SHARE = 0.5  # of the question's weight in one window: below it nothing is a hit
_LONG_MATCH = 8  # words
FIELDS = 11  # of a hit


class Scratch(NamedTuple):
    """Memory of the kernels, for one process.

    Attributes:
        missing: What an item's votes in this chunk still lack to make it a candidate, float32[N].
        missing_at_first: The same before the first vote, float32[N].
        item_seen, word_seen: In which chunk an item was a candidate, a word cast its votes: int64[N], int64[V].
        mark, inside: Whether a word belongs to the question, how often it is in the window: int64[V + 1], int64[V].
        places: Where words of the question stand in a chunk, int32.
        candidates: int32[N].
        stamp: Running numbers: of the chunk, of the mark: int64[2].
    """

    missing: np.ndarray
    missing_at_first: np.ndarray
    item_seen: np.ndarray
    word_seen: np.ndarray
    mark: np.ndarray
    inside: np.ndarray
    places: np.ndarray
    candidates: np.ndarray
    stamp: np.ndarray


def make_scratch(index: Index, need: float) -> Scratch:
    """Memory for texts to be compared with an index.

    Args:
        index: The test sets.
        need: Share of an item's weight that its rare words in a chunk must have, to make it a candidate.
    """
    items, words = len(index.total), len(index.weight)
    missing = np.maximum(index.total * need * (1 - 1e-5), 1e-6).astype(np.float32)  # rounding loses no candidate
    return Scratch(
        missing.copy(), missing, np.zeros(items, np.int64), np.zeros(words, np.int64), np.zeros(words + 1, np.int64),
        np.zeros(words, np.int64), np.zeros(CHUNK + 1, np.int32), np.zeros(items, np.int32), np.zeros(2, np.int64),
    )  # fmt: skip


@compiled
def drop_labels(words: Words, count: int, plain: np.ndarray, masked: np.ndarray, labels: np.ndarray) -> int:
    """Leave out ``Question`` and ``Answer`` where they begin a line; returns the number of words that stay."""
    kept, before = 0, -1
    for k in range(count):
        line = int(words.line[k])
        if line == before or (plain[k] != labels[0] and plain[k] != labels[1]):
            if kept < k:
                words.begin[kept], words.end[kept], words.line[kept] = words.begin[k], words.end[k], line
                plain[kept], masked[kept] = plain[k], masked[k]
            kept += 1
        before = line
    return kept


@compiled
def _find_seed(ids: np.ndarray, at: int, index: Index) -> int:
    """Number of the seed that stands at a place, or -1."""
    value = seed_hash(ids, at)
    bit = value & (8 * len(index.seed_bits) - 1)
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
def _by_seeds(plain: np.ndarray, masked: np.ndarray, low: int, high: int, index: Index, scratch: Scratch) -> int:
    """Make candidates of the items that share a seed with a chunk; returns their number."""
    count, differs = 0, low - 1  # the last place where a number is masked
    for j in range(low, min(low + SEED - 1, high)):
        if plain[j] != masked[j]:
            differs = j
    for j in range(low, high - SEED + 1):
        seed = _find_seed(plain, j, index)
        if seed >= 0:
            count = _add_candidates(seed, index, scratch, count)
        if plain[j + SEED - 1] != masked[j + SEED - 1]:
            differs = j + SEED - 1
        if differs >= j:
            seed = _find_seed(masked, j, index)
            if seed >= 0:
                count = _add_candidates(seed, index, scratch, count)
    return count


@compiled
def _by_votes(plain: np.ndarray, low: int, high: int, index: Index, scratch: Scratch, count: int) -> int:
    """Add the items whose rare words in a chunk make up enough of them; returns the number of candidates."""
    chunk = int(scratch.stamp[0])
    for item in range(len(scratch.missing)):
        scratch.missing[item] = scratch.missing_at_first[item]
    for j in range(low, high):
        word = int(plain[j])
        if word == UNKNOWN or scratch.word_seen[word] == chunk:
            continue
        scratch.word_seen[word] = chunk
        vote = np.float32(index.weight[word])
        for k in range(index.voter_start[word], index.voter_start[word + 1]):
            item = index.voter_items[k]
            before = scratch.missing[item]
            scratch.missing[item] = before - vote
            if before > 0 and before - vote <= 0 and scratch.item_seen[item] != chunk:
                scratch.item_seen[item] = chunk
                scratch.candidates[count] = item
                count += 1
    return count


@compiled
def _may_be_there(item: int, index: Index, scratch: Scratch) -> bool:
    """Whether the words of a chunk, whose votes were counted, hold enough of a question at all; most do not."""
    chunk, held = int(scratch.stamp[0]), 0.0
    for k in range(index.start[item], index.start[item + 1]):
        word = int(index.words[k])
        if word == NUMBER or scratch.word_seen[word] == chunk:
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
    places, count = scratch.places, 0
    for j in range(low, high):  # without a branch: which words are of the question cannot be foreseen
        places[count] = j
        count += 1 if scratch.mark[ids[j]] == mark else 0  # UNKNOWN is -1, the last place: no word's
    length = len(question) + max(4, len(question) // 4)
    held, best, best_at, oldest = 0.0, 0.0, low, 0
    for k in range(count):
        j = int(places[k])
        while places[oldest] <= j - length:
            leaving = ids[places[oldest]]
            scratch.inside[leaving] -= 1
            if scratch.inside[leaving] == 0:
                held -= index.weight[leaving]
            oldest += 1
        word = ids[j]
        if scratch.inside[word] == 0:
            held += index.weight[word]
        scratch.inside[word] += 1
        if held > best + 1e-9:
            best, best_at = held, max(low, j - length + 1)
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
def _longest_of_its_words(ids: np.ndarray, low: int, high: int, scratch: Scratch) -> int:
    """Most words in one piece that the question marked last has, in any order: no exact match is longer."""
    mark, run, longest = int(scratch.stamp[1]), 0, 0
    for j in range(low, high):
        word = int(ids[j])
        run = run + 1 if word != UNKNOWN and scratch.mark[word] == mark else 0
        longest = max(longest, run)
    return longest


@compiled
def _score(item: int, words: Words, plain: np.ndarray, masked: np.ndarray, low: int, high: int, count: int,
           index: Index, scratch: Scratch, numbers: np.ndarray, hit: np.ndarray) -> bool:  # fmt: skip
    """Fill a hit; False where too little of the question stands together for any rule."""
    start, end = int(index.start[item]), int(index.start[item + 1])
    question = index.words[start:end]
    ids = masked if index.is_math[item] == 1 else plain
    best, at = _best_window(ids, low, high, question, index, scratch)
    if best < MIN_SHARE * index.total[item]:
        return False
    hit[0], hit[3] = item, best / index.total[item]
    slack = 8 + len(question) // 2  # a window is full where its last new word stands; the question may go on
    first, last, run = max(low, at - slack), min(high, at + len(question) + slack), min(RUN, len(question))
    reworded = len(question) >= LONG and (hit[3] >= BAG or index.is_math[item] == 1)  # may be, with no words in a row
    if not reworded and _longest_of_its_words(ids, first, last, scratch) < run:
        return False
    _in_order(ids, first, last, question, index.weight, hit)
    begin, after = int(hit[1]), int(hit[2])
    if begin < 0 or not (reworded or hit[5] >= run):
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
         scratch: Scratch, hits: np.ndarray) -> int:  # fmt: skip
    """Find the items that a text may hold; returns how many hits there are, of which ``hits`` holds the first.

    Args:
        words, count, plain, masked: The text, by ``split_words``, ``look_up`` and ``drop_labels``.
        index: The test sets.
        numbers: Which words are numbers, uint8[V].
        scratch: Memory.
        hits: Filled, float64[most, 11]: item; first and last word + 1; share in any order, in order; longest match in
            words; share in matches of 8 words; share of the answer, -1 where there is none; whether it stands alone
            on its lines; numbers of a math question, and how many of them stand there.
    """
    found, low, most = 0, 0, len(hits)
    spare = np.zeros(hits.shape[1])
    while True:
        high = min(count, low + CHUNK)
        scratch.stamp[0] += 1
        candidates = _by_seeds(plain, masked, low, high, index, scratch)
        candidates = _by_votes(plain, low, high, index, scratch, candidates)
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
