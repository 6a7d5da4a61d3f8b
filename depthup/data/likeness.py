"""Texts that are alike: words, sets of word n-grams, sets that nearly agree, and known phrases within a text.

All of it is exact over 64-bit hashes of n-grams: nothing is sampled, so that equal input gives equal findings.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Shingles = NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no place of an n-gram is lost modulo 2^64


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, case folded; a run of a script without spaces is one word."""
    return _WORD.findall(text.casefold())


def shingles(words: Sequence[str], size: int) -> Shingles:
    """The distinct n-grams of ``size`` words as sorted hashes; of fewer words than that, all of them as one n-gram."""
    if not words:
        return np.zeros(0, np.uint64)
    numbers = np.fromiter(map(_hash, words), np.uint64, len(words))
    width = min(size, len(numbers))
    made = np.full(len(numbers) - width + 1, width, np.uint64)
    for place in range(width):  # arrays of unsigned integers wrap around without a warning
        made = made * _MULTIPLIER + numbers[place : place + len(made)]
    return np.unique(made)


def jaccard(first: Shingles, second: Shingles) -> float:
    """Shared n-grams over all n-grams of two sets; 1 for two empty ones."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    total = len(first) + len(second) - shared
    return shared / total if total else 1.0


def alike(sets: Sequence[Shingles], threshold: float) -> dict[int, tuple[int, float]]:
    """Each set that nearly agrees with an earlier one -> (the first such, their Jaccard similarity).

    Two sets with a similarity of ``threshold`` must share one of their rarest n-grams, so only sets that do are
    compared (the prefix filter of Bayardo et al. 2007, doi:10.1145/1242572.1242591). No pair is missed.

    Args:
        sets: Empty ones are like no other.
        threshold: Above 0, up to 1.
    """
    filled = [each for each in sets if len(each)]
    if not filled:
        return {}
    known, counts = np.unique(np.concatenate(filled), return_counts=True)
    holders: dict[int, list[int]] = defaultdict(list)  # rare n-gram -> the sets before this one that it begins
    found: dict[int, tuple[int, float]] = {}
    for index, each in enumerate(sets):
        if not len(each):
            continue
        frequency = counts[np.searchsorted(known, each)]
        rarest = np.argsort(frequency, kind="stable")[: len(each) - int(np.ceil(threshold * len(each) - 1e-9)) + 1]
        prefix = each[rarest[frequency[rarest] > 1]].tolist()  # an n-gram that no other set has finds none
        for other in sorted({other for gram in prefix for other in holders[gram]}):
            small, large = sorted((len(each), len(sets[other])))
            if small >= threshold * large - 1e-9 and (likeness := jaccard(each, sets[other])) >= threshold - 1e-9:
                found[index] = other, likeness
                break
        for gram in prefix if index not in found or found[index][1] < 1 else ():  # what equals another adds nothing
            holders[gram].append(index)
    return found


class Phrases:
    """Known phrases, to be found in texts by the share of their n-grams that a text holds.

    Args:
        phrases: The phrases.
        size: Words of an n-gram. A phrase of fewer words is never found.
    """

    def __init__(self, phrases: Sequence[str], size: int) -> None:
        self._size = size
        sets = [shingles(words, size) if len(words := words_of(phrase)) >= size else shingles((), size)
                for phrase in phrases]  # fmt: skip
        owners = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
        grams = np.concatenate([*sets, np.zeros(0, np.uint64)])
        order = np.argsort(grams, kind="stable")
        self._grams, self._owners = grams[order], owners[order]
        self._sizes = np.asarray([max(len(each), 1) for each in sets], np.float64)

    def best(self, text: str) -> tuple[int, float] | None:
        """(index of the phrase of which ``text`` holds the greatest share of n-grams, that share), or None."""
        grams = shingles(words_of(text), self._size)
        begins = np.searchsorted(self._grams, grams, "left")
        ends = np.searchsorted(self._grams, grams, "right")
        hits = [self._owners[begin:end] for begin, end in zip(begins, ends, strict=True) if begin < end]
        if not hits:
            return None
        shares = np.bincount(np.concatenate(hits), minlength=len(self._sizes)) / self._sizes
        best = int(shares.argmax())
        return best, float(shares[best])


@lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
