"""Where the words of a test item stand together in a text: a score for each candidate.

For each candidate the window of the text that holds most of the question is found; the words are weighted by how few
items have them (IDF). In it are measured: the share of the question there in any order and in order, the longest exact
match, the share inside exact matches of eight words, and the share of the answer nearby.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .candidates import CHUNK, STRIDE, Chunk, find_candidates, make_chunk, number_in
from .index import MAX_WORDS, MIN_SHARE, NEED, Index
from .rules import BAG, LONG, RUN
from .text import UNKNOWN, Vocabulary, Words, compiled, look_up, split_words

NEAR = 96  # words around the question in which its answer is looked for: its choices may stand between
MAX_HITS = 4096  # of one text; of more, the first
FIELDS = 12  # of a hit
_LONG_MATCH = 8  # words


class Scratch(NamedTuple):
    """Memory of the kernels, for one process.

    Attributes:
        chunk: What is known of the chunk that is looked at.
        own: Whether a word of the chunk, by its number there, is one of the question's, uint8.
        inside: How often it is in the window, int32.
        places: Where words of the question stand in the chunk, int32.
        mark: The last stretch of text in which a word was looked for, int64[V].
        stamp: Running number of such stretches, int64[1].
    """

    chunk: Chunk
    own: np.ndarray
    inside: np.ndarray
    places: np.ndarray
    mark: np.ndarray
    stamp: np.ndarray


def make_scratch(index: Index) -> Scratch:
    """Memory for texts to be compared with an index."""
    return Scratch(
        make_chunk(index), np.zeros(CHUNK + 2, np.uint8), np.zeros(CHUNK + 2, np.int32), np.zeros(CHUNK + 1, np.int32),
        np.zeros(len(index.weight), np.int64), np.zeros(1, np.int64),
    )  # fmt: skip


@compiled
def drop_labels(words: Words, count: int, plain: np.ndarray, masked: np.ndarray, labels: np.ndarray) -> int:
    """Leave out ``Question`` and ``Answer`` where they begin a line; returns the number of words that stay."""
    there = False
    for k in range(count):
        there = there or plain[k] == labels[0] or plain[k] == labels[1]
    if not there:
        return count
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
def _mark_own(item: int, index: Index, scratch: Scratch) -> tuple[float, float]:
    """Mark the words of a question that the chunk holds; returns the weight of all of them, and of the rare ones."""
    held = rare = 0.0
    for k in range(index.distinct_start[item], index.distinct_start[item + 1]):
        word = index.distinct[k]
        number = number_in(scratch.chunk, word)
        if number >= 0:
            scratch.own[number] = 1
            scratch.inside[number] = 0
            held += index.weight[word]
            if index.is_rare[word] == 1:
                rare += index.weight[word]
    return held, rare


@compiled
def _unmark(item: int, index: Index, scratch: Scratch) -> None:
    for k in range(index.distinct_start[item], index.distinct_start[item + 1]):
        number = number_in(scratch.chunk, index.distinct[k])
        if number >= 0:
            scratch.own[number] = 0


@compiled
def _own_places(numbers: np.ndarray, size: int, scratch: Scratch) -> tuple[int, int]:
    """(how many words of a chunk are the question's, most of them in one piece); fills where they stand."""
    count = run = longest = 0
    for j in range(size):  # without a branch: which words are of the question cannot be foreseen
        own = int(scratch.own[numbers[j]])
        scratch.places[count] = j
        count += own
        run = (run + 1) * own
        longest = max(longest, run)
    return count, longest


@compiled
def _best_window(numbers: np.ndarray, count: int, num_words: int, index: Index, scratch: Scratch) -> tuple[float, int]:
    """(weight of the question's distinct words in the best window, where that window begins in the chunk).

    Args:
        numbers: Of the words of the chunk.
        count: How many of them are the question's; ``scratch.places`` tells where.
        num_words: Of the question.
    """
    places, inside, distinct, weight = scratch.places, scratch.inside, scratch.chunk.distinct, index.weight
    length = num_words + max(4, num_words // 4)
    held, best, best_at, oldest = 0.0, 0.0, 0, 0
    for k in range(count):
        j = int(places[k])
        while places[oldest] <= j - length:
            leaving = numbers[places[oldest]]
            inside[leaving] -= 1
            if inside[leaving] == 0:
                held -= weight[distinct[leaving]]
            oldest += 1
        coming = numbers[j]
        if inside[coming] == 0:
            held += weight[distinct[coming]]
        inside[coming] += 1
        if held > best + 1e-9:
            best, best_at = held, max(0, j - length + 1)
    return best, best_at


@compiled
def _longest_of_its_words(numbers: np.ndarray, low: int, high: int, scratch: Scratch) -> int:
    """Most words in one piece that the question has, in any order: no exact match is longer."""
    run = longest = 0
    for j in range(low, high):
        run = (run + 1) * int(scratch.own[numbers[j]])
        longest = max(longest, run)
    return longest


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
    scratch.stamp[0] += 1
    mark = int(scratch.stamp[0])
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
def _find_window(
    item: int, by_seed: bool, low: int, high: int, index: Index, scratch: Scratch, hit: np.ndarray
) -> tuple[int, int]:
    """The stretch of a text to align with a question, half-open; (0, 0) where too little of it stands together.

    Args:
        item: The question.
        by_seed: Whether it is a candidate by a seed; others need rare words.
        low, high: The chunk.
        index, scratch: The test sets; memory, where the words of the question are marked.
        hit: Told the share of the question in the best window.
    """
    held, rare = _mark_own(item, index, scratch)
    total, num_words = index.total[item], int(index.start[item + 1] - index.start[item])
    if held < MIN_SHARE * total - 1e-9 or not (by_seed or rare >= NEED * total * (1 - 1e-5)):
        return 0, 0
    is_math, run = index.is_math[item] == 1, min(RUN, num_words)
    numbers = scratch.chunk.masked if is_math else scratch.chunk.plain
    count, longest = _own_places(numbers, high - low, scratch)
    if longest < run and num_words < LONG:
        return 0, 0
    best, at = _best_window(numbers, count, num_words, index, scratch)
    if best < MIN_SHARE * total:
        return 0, 0
    hit[3] = best / total
    slack = 8 + num_words // 2  # a window is full where its last new word stands; the question may go on
    first, last = max(0, at - slack), min(high - low, at + num_words + slack)
    if not _may_be_reworded(item, hit, index) and _longest_of_its_words(numbers, first, last, scratch) < run:
        return 0, 0
    return low + first, low + last


@compiled
def _may_be_reworded(item: int, hit: np.ndarray, index: Index) -> bool:
    """Whether a question may be there with no words in a row."""
    is_long = index.start[item + 1] - index.start[item] >= LONG
    return is_long and (hit[3] >= BAG or index.is_math[item] == 1)


@compiled
def _score(item: int, words: Words, plain: np.ndarray, masked: np.ndarray, first: int, last: int, count: int,
           index: Index, scratch: Scratch, numbers: np.ndarray, hit: np.ndarray) -> bool:  # fmt: skip
    """Fill a hit; False where too little of the question stands together for any rule."""
    start, end = int(index.start[item]), int(index.start[item + 1])
    question = index.words[start:end]
    _in_order(masked if index.is_math[item] == 1 else plain, first, last, question, index.weight, hit)
    begin, after = int(hit[1]), int(hit[2])
    if begin < 0 or not (_may_be_reworded(item, hit, index) or hit[5] >= min(RUN, len(question))):
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
    hit[0], hit[9], hit[10] = item, own, found
    hit[1], hit[2] = words.begin[begin], words.end[after - 1]
    return True


@compiled
def _scan(words: Words, count: int, plain: np.ndarray, masked: np.ndarray, index: Index, numbers: np.ndarray,
          scratch: Scratch, hits: np.ndarray) -> int:  # fmt: skip
    """Find the items that a text may hold; returns how many hits there are, of which ``hits`` holds the first."""
    found, low, most = 0, 0, min(len(hits) - 1, MAX_HITS)
    while True:
        high = min(count, low + CHUNK)
        by_seeds, candidates = find_candidates(plain, masked, low, high, index, scratch.chunk)
        for k in range(candidates):
            hit = hits[min(found, most)]
            item = int(scratch.chunk.candidates[k])
            first, last = _find_window(item, k < by_seeds, low, high, index, scratch, hit)
            _unmark(item, index, scratch)
            if last > 0 and _score(item, words, plain, masked, first, last, count, index, scratch, numbers, hit):
                found += 1
        if high == count:
            return min(found, most)
        low += STRIDE


@compiled
def scan_texts(data: np.ndarray, ends: np.ndarray, begin: int, classes: np.ndarray, words: Words, plain: np.ndarray,
               masked: np.ndarray, vocabulary: Vocabulary, index: Index, scratch: Scratch, hits: np.ndarray) -> tuple[
                   int, int]:  # fmt: skip
    """Find the items that some texts may hold, as far as ``hits`` has room for all of a text.

    Args:
        data: The texts one behind the other, UTF-8 bytes, uint8[n].
        ends: Where each ends, int64[texts].
        begin: The first text to look at.
        classes: ``BYTE_CLASSES``.
        words, plain, masked: Memory; room for the words of the longest text.
        vocabulary, index: The test sets.
        scratch: Memory.
        hits: Filled, float64[above MAX_HITS, FIELDS]: item; first byte and last + 1 in its text; share in any order, in
            order; longest match in words; share in matches of 8 words; share of the answer, -1 where there is none;
            whether it stands alone on its lines; numbers of a math question, and how many of them stand there; text.

    Returns:
        Number of the first text that was not looked at, number of hits.
    """
    found = 0
    for text in range(begin, len(ends)):
        if found + MAX_HITS >= len(hits):
            return text, found
        low = int(ends[text - 1]) if text > 0 else 0
        count = split_words(data[low : ends[text]], classes, words)
        look_up(words, count, vocabulary, plain, masked)
        count = drop_labels(words, count, plain, masked, index.label_ids)
        more = _scan(words, count, plain, masked, index, vocabulary.is_number, scratch, hits[found:])
        hits[found : found + more, 11] = text
        found += more
    return len(ends), found


assert MAX_WORDS + MAX_WORDS // 4 <= CHUNK - STRIDE
