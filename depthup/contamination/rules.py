"""When a hit is a leak: thresholds by the length of the question, and what an answer nearby changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["name", "exact", "cluster", "ngram", "numbers", "rephrased", "copy", "embedding"]
RULES: tuple[Rule, ...] = ("name", "exact", "cluster", "ngram", "numbers", "rephrased", "copy")  # those without a model

_SHORT, LONG = 8, 20  # words of a question
_NEEDED_SHORT, _NEEDED_LONG = 0.95, 0.7  # share in order at these lengths, in between on a line
_WITH_ANSWER = 0.15  # less is needed where the answer stands near,
_ANSWERED = 0.9  # by this share
BAG, _BAG_WITH_NUMBERS = 0.7, 0.5  # share in any order of what is rephrased; with all its numbers, less is enough,
_MIN_NUMBERS = 3  # if there are so many
RUN = 4  # words that a cluster must have in one piece
PROSE = 10  # different words that a math question must have for likeness to tell anything: no numbers, no LaTeX
_HALF = 0.5  # of the question's weight in 8-grams: the rule of Tulu 3 (arXiv:2411.15124)


@dataclass(frozen=True, slots=True)
class Hit:
    """How much of a test item stands in a text.

    Attributes:
        text: Number of the text of the index: a question, or a long answer or passage.
        begin, end: Its bytes in the texts of the row, half-open.
        bag: Share of the question's words, in any order, weighted.
        order: The same in the question's order.
        longest: Words of the longest exact match.
        covered: Share of the question's words inside exact matches of 8 words.
        answer: Share of the answer's words nearby; -1 where the item has no answer of its own.
        alone: Whether it stands on lines of its own.
        num_numbers, num_found: Numbers of a math question, and how many of them are there.
    """

    text: int
    begin: int
    end: int
    bag: float
    order: float
    longest: int
    covered: float
    answer: float
    alone: bool
    num_numbers: int
    num_found: int


def needed(num_words: int) -> float:
    """Share of a question in order that makes a leak: 0.95 at 8 words, 0.7 from 20 on."""
    t = min(max((num_words - _SHORT) / (LONG - _SHORT), 0.0), 1.0)
    return _NEEDED_SHORT + t * (_NEEDED_LONG - _NEEDED_SHORT)


def rule_of(hit: Hit, num_words: int, has_prose: bool = True) -> Rule | None:
    """The rule by which a hit is a leak; None where it is none.

    Args:
        hit: What stands in the text.
        num_words: Of the item's question.
        has_prose: Whether a math question is told in words, and not all but in formulas, which resemble one another.
    """
    answered = hit.answer >= _ANSWERED
    same_numbers = hit.num_found == hit.num_numbers
    rule: Rule | None = None
    if hit.longest >= num_words:
        rule = "exact" if num_words > _SHORT or answered or hit.alone else None
    elif hit.longest >= RUN and _is_cluster(hit, num_words, answered):
        rule = "cluster"
    elif num_words >= LONG and hit.covered > _HALF:
        rule = "ngram"
    if rule is not None:
        if 2 * hit.num_found >= hit.num_numbers:
            return rule
        return "numbers" if has_prose else None
    with_numbers = same_numbers and hit.num_numbers >= _MIN_NUMBERS
    is_rephrased = num_words >= LONG and hit.bag >= (_BAG_WITH_NUMBERS if with_numbers else BAG)
    return "rephrased" if is_rephrased and has_prose else None


def _is_cluster(hit: Hit, num_words: int, answered: bool) -> bool:
    if num_words < _SHORT:
        return answered and hit.order >= _NEEDED_SHORT - _WITH_ANSWER
    return hit.order >= needed(num_words) - (_WITH_ANSWER if answered else 0.0)


def rule_of_long_text(hit: Hit, num_words: int) -> Rule | None:
    """``copy`` where a long answer or passage stands there by the rules of a question; None where it does not."""
    return "copy" if rule_of(hit, num_words) in ("exact", "cluster", "ngram") else None
