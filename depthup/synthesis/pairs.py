"""Synth. Math-Alignment: preference pairs out of solved problems, as SOLAR makes them and as a test of that rule.

SOLAR (arXiv:2312.15166, section 3) takes the rephrased question as prompt, the rephrased answer as chosen and the
original answer as rejected. The rejected answer is then right, too, and answers other words. ``VARIANTS`` holds this
rule and its controls: what a model learns from ``paper`` and not from them is due to the rule.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import DataError, nearest, shown
from .answers import extract_answer
from .verify import quick_verdict, shows_wrong

REPHRASED = "rephrase"  # the kind whose question is the seed's in other words
# Rejected rows that pairs may be made of: the answer is not the gold one, or right but beyond what was to be kept.
_USABLE = ("", "wrong answer", "quota")
CALIPER = 0.1  # most difference of log length ratios that counter each other in matching, about ten per cent


@dataclass(frozen=True, slots=True)
class Solved:
    """A question with one answer, and what is known of both.

    Attributes:
        seed_id: The seed that the question comes from.
        question: The question that is answered.
        answer: A worked solution.
        kind: ``rephrase``, ``answer``, ...; see :mod:`depthup.synthesis`.
        correct: Whether the answer was verified right (True) or wrong (False); None where it was not verified.
        original_question: The seed's question.
        original_answer: The seed's solution.
        reason: Why synthesis rejected the row; empty where it kept it.
        name: Finds the row again, as in ``rows.jsonl:7``.
        lineage: What else the row knows of its origin.
    """

    seed_id: str
    question: str
    answer: str
    kind: str
    correct: bool | None = None
    original_question: str = ""
    original_answer: str = ""
    reason: str = ""
    name: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Triplet:
    """One preference pair, with whether each answer is right (None: not verified), and where it is from."""

    prompt: str
    chosen: str
    rejected: str
    chosen_correct: bool | None
    rejected_correct: bool | None
    seed_id: str
    original_question: str
    rows: tuple[str, ...]
    lineage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def skew(self) -> float:
        """Logarithm of chosen length over rejected length, in characters."""
        return math.log((len(self.chosen) + 1) / (len(self.rejected) + 1))

    def swapped(self) -> Triplet:
        """The same with the other answer chosen."""
        return replace(self, chosen=self.rejected, rejected=self.chosen,
                       chosen_correct=self.rejected_correct, rejected_correct=self.chosen_correct)  # fmt: skip


@dataclass(frozen=True)
class Alignment:
    """Pairs of a variant, and the rows that gave none: reason -> how many."""

    triplets: tuple[Triplet, ...]
    left_out: Mapping[str, int]


_Candidates = tuple[list[Triplet], Counter[str]]
_Maker = Callable[[Sequence[Solved], random.Random, bool], _Candidates]


def align(rows: Sequence[Solved], variant: str = "paper", *, seed: int = 0, match_length: bool = False) -> Alignment:
    """Preference pairs of solved problems.

    Args:
        rows: In a fixed order.
        variant: A name of ``VARIANTS``.
        seed: Of every choice that is left to chance.
        match_length: Choose pairs whose answers are equally long, then keep only pairs that are, or that counter one
            another: see :func:`balanced`.

    Raises:
        DataError: No such variant, or no pair is left.
    """
    if variant not in VARIANTS:
        raise DataError(f"no variant is called '{variant}'{nearest(variant, VARIANTS)}", allowed=", ".join(VARIANTS))
    made, left_out = VARIANTS[variant][1](rows, random.Random(f"{variant}/{seed}"), match_length)
    kept, seen = [], set()
    for triplet in made:
        key = (triplet.prompt, triplet.chosen.strip(), triplet.rejected.strip())
        reason = "answers equal" if key[1] == key[2] else "repeated" if key in seen else ""
        if reason:
            left_out[reason] += 1
        else:
            seen.add(key)
            kept.append(triplet)
    if match_length:
        matched = balanced([triplet.skew for triplet in kept])
        left_out["length not matched"] += len(kept) - len(matched)
        kept = [kept[index] for index in matched]
    if not kept:
        reasons = (
            "; ".join(f"{reason}: {count}" for reason, count in left_out.most_common() if count) or "there is no row"
        )
        raise DataError(f"the variant '{variant}' has no pair ({reasons})", allowed=VARIANTS[variant][0],
                        next_step="give rows that it can be made of, wrong answers included")  # fmt: skip
    return Alignment(tuple(kept), {reason: count for reason, count in left_out.items() if count})


def balanced(skews: Sequence[float], caliper: float = CALIPER) -> list[int]:
    """Indices, in order, of the most pairs among which length tells nothing.

    A pair stays if its answers are equally long, or if it is coupled with a pair that leans the other way as much,
    within the caliper; so the chosen answer is the longer one in exactly as many pairs as it is the shorter one. Both
    sides are sorted and coupled from the smallest on, which gives the greatest number of couples on a line.

    Args:
        skews: Of each pair the logarithm of chosen length over rejected length.
        caliper: Most difference in size of two skews that counter each other.
    """
    kept = [index for index, skew in enumerate(skews) if skew == 0]
    longer = sorted((skew, index) for index, skew in enumerate(skews) if skew > 0)
    shorter = sorted((-skew, index) for index, skew in enumerate(skews) if skew < 0)
    left = right = 0
    while left < len(longer) and right < len(shorter):
        gap = longer[left][0] - shorter[right][0]
        if abs(gap) <= caliper:
            kept += [longer[left][1], shorter[right][1]]
        left += gap <= caliper
        right += gap >= -caliper
    return sorted(kept)


def with_originals(rows: Sequence[Solved], seeds: Mapping[str, tuple[str, str]]) -> list[Solved]:
    """The rows with question and solution of their seeds, ``seeds``: id -> (question, solution).

    Raises:
        DataError: A seed's solution ends with another answer than the row was checked against: other seeds of one name.
    """
    found = []
    for row in rows:
        if row.seed_id in seeds:
            question, solution = seeds[row.seed_id]
            _require_gold(row, question, solution)
            row = replace(row, original_question=question, original_answer=solution)
        found.append(row)
    return found


def _require_gold(row: Solved, question: str, solution: str) -> None:
    gold, answer = row.lineage.get("gold"), extract_answer(solution)
    if row.kind not in ("answer", REPHRASED) or not isinstance(gold, str):
        return  # of backward questions the gold answer is the number that was masked
    verdict = quick_verdict(gold, answer[0]) if answer else None
    if (answer is None or answer[0] != gold) and (verdict is None or not verdict.equal):
        raise DataError(
            f"the seed {row.seed_id} of {row.name} is another one: its answer is"
            f" {shown(answer[0]) if answer else 'not told'}, the row was checked against {shown(gold)}"
            f" ({shown(question)})",
            next_step="give with --seeds the files that the rows were made of",
        )


def solved_of(row: Any, place: str, name: str = "") -> Solved:
    """A row of the synthesis pipeline, kept or rejected, as a value.

    Read are ``prompt`` (or ``question``) and ``response`` (or ``answer``); from the row or its ``lineage`` ``seed`` (or
    ``seed_id``), ``kind``, ``verdict`` (or ``correct``), and the originals where they stand there.

    Raises:
        DataError: A field is missing or of another kind; it is the first word of the message.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"row: {place} is {shown(row)}", allowed="an object with prompt, response and lineage")
    lineage = row.get("lineage", {})
    if not isinstance(lineage, Mapping):
        raise DataError(f"lineage: {place} holds {shown(lineage)}", allowed="an object")
    known = {**lineage, **{key: value for key, value in row.items() if key != "lineage"}}
    reason = str(known.get("reason") or "")
    names = (("prompt", "question"), ("response", "answer", "solution"), ("seed", "seed_id"), ("kind",))
    # What was rejected before it was solved has no solution, or no question.
    question, answer, seed_id, kind = (_text(known, each, place, bool(reason)) for each in names)
    originals = [str(known.get(each) or "") for each in ("original_question", "original_answer")]
    correct = _verdict(known, place)
    return Solved(seed_id, question, answer, kind, correct, originals[0], originals[1], reason, name, dict(lineage))


def _text(known: Mapping[str, Any], names: Sequence[str], place: str, may_be_empty: bool) -> str:
    value = next((known[name] for name in names if name in known), None)
    if isinstance(value, Mapping):
        value = value.get("id")
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise DataError(f"{names[0]}: {place} holds {shown(value)} where a text belongs")
    return value


def _verdict(known: Mapping[str, Any], place: str) -> bool | None:
    value = next((known[name] for name in ("correct", "verdict") if name in known), None)
    if isinstance(value, Mapping):
        method, value = value.get("method"), value.get("equal", value.get("correct"))
        if value is False and isinstance(method, str) and not shows_wrong(value, method):
            return None  # not known to be right, and not to be wrong either
    if value is not None and not isinstance(value, bool):
        raise DataError(f"verdict: {place} holds {shown(value)}", allowed="true, false, null, or an object with equal")
    return value


# -- the variants -----------------------------------------------------------------------------------------------------


def _paper(rows: Sequence[Solved], chance: random.Random, match: bool) -> _Candidates:
    made, left_out = [], Counter[str]()
    for row in rows:
        if row.reason:
            left_out[f"rejected: {row.reason}"] += 1
        elif row.kind != REPHRASED:
            left_out["not a rephrased question"] += 1
        elif not row.original_answer.strip():
            left_out["no original answer"] += 1
        else:
            # The seed's own solution is right: the gold answer was read from it.
            made.append(_triplet(row, row.original_answer, True, (row.name,)))
    return made, left_out


def _swapped(rows: Sequence[Solved], chance: random.Random, match: bool) -> _Candidates:
    made, left_out = _paper(rows, chance, match)
    return [triplet.swapped() for triplet in made], left_out


def _random(rows: Sequence[Solved], chance: random.Random, match: bool) -> _Candidates:
    made, left_out = _paper(rows, chance, match)
    return [triplet.swapped() if chance.random() < 0.5 else triplet for triplet in made], left_out


def _checked(rows: Sequence[Solved], chance: random.Random, match: bool) -> _Candidates:
    """Right against wrong answers to one question, each used once: at random, or the most alike in length first."""
    made, left_out = [], Counter[str]()
    for group in _by_question(rows, left_out):
        right = [row for row in group if row.correct]
        wrong = [row for row in group if not row.correct]
        left_out["no wrong answer to the question is left"] += max(0, len(right) - len(wrong))
        left_out["no right answer to the question is left"] += max(0, len(wrong) - len(right))
        for better, worse in _couples(right, wrong, chance, match):
            made.append(_triplet(better, worse.answer, False, (better.name, worse.name)))
    return made, left_out


def _same(rows: Sequence[Solved], chance: random.Random, match: bool) -> _Candidates:
    """Two right answers to one question, the chosen one by chance; neighbours in length where it is matched."""
    made, left_out = [], Counter[str]()
    for group in _by_question(rows, left_out):
        right = list({row.answer.strip(): row for row in group if row.correct}.values())
        left_out["answer is wrong, or repeated"] += len(group) - len(right)
        chance.shuffle(right)
        if match:
            right.sort(key=lambda row: len(row.answer))
        left_out["no second right answer"] += len(right) % 2
        for one, other in zip(right[::2], right[1::2], strict=False):
            better, worse = (one, other) if chance.random() < 0.5 else (other, one)
            made.append(_triplet(better, worse.answer, True, (better.name, worse.name)))
    return made, left_out


# name -> (what its pairs are, how they are made)
VARIANTS: dict[str, tuple[str, _Maker]] = {
    "paper": ("rephrased question; its answer chosen, the seed's own solution rejected (arXiv:2312.15166)", _paper),
    "checked": ("one question; an answer verified right chosen, one verified wrong rejected", _checked),
    "same": ("one question; two answers verified right, the chosen one drawn by lot", _same),
    "swapped": ("as paper, with the seed's own solution chosen", _swapped),
    "random": ("as paper, the chosen one drawn by lot", _random),
}


def _by_question(rows: Sequence[Solved], left_out: Counter[str]) -> list[list[Solved]]:
    groups: dict[str, list[Solved]] = defaultdict(list)
    for row in rows:
        if row.reason not in _USABLE:  # contaminated, or near another question, for all that it is right
            left_out[f"rejected: {row.reason}"] += 1
        elif row.correct is None:
            left_out["answer not verified"] += 1
        else:
            groups[row.question.strip()].append(row)
    return list(groups.values())


def _couples(
    right: list[Solved], wrong: list[Solved], chance: random.Random, match: bool
) -> list[tuple[Solved, Solved]]:
    chance.shuffle(right)
    chance.shuffle(wrong)
    if not match:
        return list(zip(right, wrong, strict=False))
    gaps = sorted((abs(math.log((len(one.answer) + 1) / (len(other.answer) + 1))), here, there)
                  for here, one in enumerate(right) for there, other in enumerate(wrong))  # fmt: skip
    couples, used_right, used_wrong = [], set(), set()
    for _, here, there in gaps:
        if here not in used_right and there not in used_wrong:
            used_right.add(here)
            used_wrong.add(there)
            couples.append((right[here], wrong[there]))
    return couples


def _triplet(row: Solved, rejected: str, rejected_correct: bool | None, names: tuple[str, ...]) -> Triplet:
    return Triplet(row.question, row.answer, rejected, row.correct, rejected_correct, row.seed_id,
                   row.original_question, names, row.lineage)  # fmt: skip
