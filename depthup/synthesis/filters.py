"""What a rewritten question may be: not an echo of its seed, with the same numbers, no near-duplicate of another."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

from .answers import NUMBER_WORDS, in_words

_FIGURE = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(?P<above>\d+)\s*\}|(?P<a>\d))\s*(?:\{\s*(?P<below>\d+)\s*\}|(?P<b>\d))"
    r"|(?<![\d/.])(?P<top>\d+)\s*/\s*(?P<bottom>\d+)(?![\d/]|\.\d)"
    r"|(?P<number>\d{1,3}(?:,\d{3})+(?![\d,])|\d*\.\d+|\d+)"
)
_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*|[^\sA-Za-z]")
_LARGE = frozenset({"hundred", "thousand", "million", "billion"})
# Words that may stand for a number: a question must not be refused for saying half instead of 1/2, nor for a pronoun.
_PERHAPS = {
    "one": Fraction(1), "zero": Fraction(0), "half": Fraction(1, 2), "halves": Fraction(1, 2), "third": Fraction(1, 3),
    "quarter": Fraction(1, 4), "fourth": Fraction(1, 4), "fifth": Fraction(1, 5), "sixth": Fraction(1, 6),
    "eighth": Fraction(1, 8), "tenth": Fraction(1, 10), "twice": Fraction(2), "double": Fraction(2),
    "doubled": Fraction(2), "thrice": Fraction(3), "triple": Fraction(3), "tripled": Fraction(3),
    "dozen": Fraction(12), "pair": Fraction(2), "couple": Fraction(2), "both": Fraction(2),
}  # fmt: skip


@lru_cache(maxsize=8192)
def numbers_in(text: str) -> tuple[frozenset[Fraction], frozenset[Fraction]]:
    """The numbers of a text: those it surely names (figures, ``twenty-five``), and those it may (``half``, ``one``)."""
    sure = set()
    for found in _FIGURE.finditer(text):
        above, below = found["above"] or found["a"] or found["top"], found["below"] or found["b"] or found["bottom"]
        if above is not None and int(below[:400] or 0):
            sure.add(Fraction(int(above[:400]), int(below[:400])))
        elif above is not None:
            sure.update((Fraction(int(above[:400])), Fraction(0)))
        else:
            sure.add(Fraction(found["number"].replace(",", "")[:400]))
    perhaps = set[Fraction]()
    run: list[str] = []
    for word in [*_WORD.findall(re.sub(r"\\[A-Za-z]+", " ", text).lower()), ""]:
        parts = word.split("-")
        if all(part in NUMBER_WORDS for part in parts) and (not run or _goes_on(run[-1], parts[0])):
            run += parts
            continue
        if word == "and" and run and run[-1] in _LARGE:
            continue
        value = in_words(" ".join(run))
        if value is not None:
            (perhaps if run in (["one"], ["zero"]) else sure).add(value)
        run = parts if all(part in NUMBER_WORDS for part in parts) else []
        perhaps.update(_PERHAPS[part] for part in parts if part in _PERHAPS)
    return frozenset(sure), frozenset(perhaps)


def _goes_on(word: str, following: str) -> bool:
    """Whether two neighbouring words are of one number: ``twenty five``, ``two hundred``, ``hundred six``."""
    if following in _LARGE or word in _LARGE:
        return True
    return word.endswith("ty") and following in NUMBER_WORDS and not following.endswith(("ty", "teen"))


def changed_numbers(seed: str, rewritten: str) -> tuple[frozenset[Fraction], frozenset[Fraction]]:
    """Numbers that the rewritten text has lost, and those it has gained; both empty where they are preserved."""
    (sure, perhaps), (new_sure, new_perhaps) = numbers_in(seed), numbers_in(rewritten)
    return sure - new_sure - new_perhaps, new_sure - sure - perhaps


def plain_form(text: str) -> str:
    """Letters, digits and the signs of formulas in lower case: what is left when wording alone is compared."""
    return re.sub(r"[^\w+\-*/^=<>\\|.]|\.(?!\d)|(?<!\d)\.", "", text.lower())


def is_echo(seed: str, rewritten: str) -> bool:
    """Whether two texts differ in case, blanks and punctuation at most."""
    return plain_form(seed) == plain_form(rewritten)


@lru_cache(maxsize=8192)
def shingles(text: str, size: int = 3) -> tuple[int, ...]:
    """Hashes of all runs of ``size`` words of a text, sorted: its set for :class:`NearDuplicates`."""
    words = re.findall(r"[a-z]+|\d+|[+\-*/^=<>]", text.lower())
    # Python's own hashes differ from process to process; what is found does not depend on the order they give.
    return tuple(sorted({hash(tuple(words[i : i + size])) for i in range(max(1, len(words) - size + 1))}))


class NearDuplicates:
    """Texts whose word runs overlap, found exactly.

    Two sets of Jaccard similarity ``t`` or more share an element among the first ``n - ceil(t * n) + 1`` of each in any
    fixed order (prefix filtering: Chaudhuri et al. 2006; Bayardo et al. 2007), so only prefixes are indexed, and every
    candidate is compared in full: no near-duplicate is missed and none is guessed. Other numbers make another problem:
    questions that differ in them are not compared.

    Args:
        threshold: Least Jaccard similarity of a near-duplicate, above 0, up to 1.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self._threshold = Fraction(str(threshold))
        self._sets: list[tuple[str, frozenset[int]]] = []
        self._places: dict[tuple[frozenset[Fraction], int], list[int]] = defaultdict(list)

    def add(self, name: str, text: str) -> None:
        """Add a text under a name."""
        ordered, numbers = shingles(text), numbers_in(text)[0]
        for shingle in ordered[: self._prefix(len(ordered))]:
            self._places[numbers, shingle].append(len(self._sets))
        self._sets.append((name, frozenset(ordered)))

    def find(self, text: str) -> tuple[str, float] | None:
        """Name and similarity of the text most like this one, None if none is a near-duplicate."""
        ordered, numbers = shingles(text), numbers_in(text)[0]
        mine, best = frozenset(ordered), None
        candidates: set[int] = set()
        for shingle in ordered[: self._prefix(len(ordered))]:
            candidates.update(self._places.get((numbers, shingle), ()))
        for place in sorted(candidates):
            name, other = self._sets[place]
            common = len(mine & other)
            if common >= self._threshold * (len(mine) + len(other) - common):
                similarity = common / (len(mine) + len(other) - common)
                if best is None or similarity > best[1]:
                    best = (name, similarity)
        return best

    def _prefix(self, size: int) -> int:
        return size - -(-self._threshold.numerator * size // self._threshold.denominator) + 1


def vote(same: Sequence[Sequence[bool]]) -> list[int]:
    """How many answers each answer agrees with, itself included, from a table of which equal which."""
    return [sum(row) for row in same]


def too_like(text: str, others: Iterable[str], threshold: float = 0.9) -> bool:
    """Whether the text's word runs overlap with those of one of the others, by Jaccard similarity."""
    mine = set(shingles(text))
    return any(
        len(mine & set(theirs)) >= threshold * len(mine | set(theirs)) for theirs in (shingles(each) for each in others)
    )
