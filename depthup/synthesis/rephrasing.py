"""Rewriting without a model: rules that change words and order, never a number, a name or a formula.

Rules for questions, in this order; a rewriting is one choice for each, so a question has several:

1. words: one of two fixed lists of swaps outside of formulas (``find`` -> ``determine``, ``How many`` -> ``What number
   of`` is not among them: it would change grammar);
2. the asking sentence: ``What is X?`` -> ``Determine X.``, ``Find X.`` -> ``What is X?`` and the like;
3. order: the asking sentence first, with what is known behind it, or left in its place with an opening before it.

A solution is retold with an opening and numbered steps. Formulas ($...$, \\[...\\]) and drawings are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .metamath import split_asking

_FORMULA = re.compile(
    r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}|\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\[asy\].*?\[/asy\]", re.DOTALL
)
_SWAPS: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        ("find", "determine"), ("compute", "calculate"), ("evaluate", "work out"), ("suppose", "assume"),
        ("altogether", "in all"), ("in total", "in all"), ("buys", "purchases"), ("receives", "gets"),
        ("integers", "whole numbers"), ("integer", "whole number"), ("positive number", "number above zero"),
        ("at the same time", "simultaneously"), ("how long will it take", "how much time will it take"),
        ("begins", "starts"), ("contains", "holds"), ("such that", "so that"),
    ),
    (
        ("find", "work out"), ("compute", "find"), ("evaluate", "find the value of"), ("suppose", "say"),
        ("altogether", "taken together"), ("in total", "taken together"), ("buys", "acquires"),
        ("receives", "is given"),
        ("common fraction", "fraction in lowest terms"), ("begins", "sets out"), ("largest", "greatest"),
        ("smallest", "least"), ("possible values", "values possible"), ("satisfies", "fulfils"),
        ("such that", "for which"),
    ),
)  # fmt: skip
_ASKING: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"What (?:is|are) (.+)\?", re.DOTALL), ("Determine {}.", "Give {}.")),
    (re.compile(r"(?:Find|Compute|Determine|Calculate|Evaluate) ((?:the|all|its) .+)\.", re.DOTALL),
     ("Work out {}.", "We want to know {}.")),
    (re.compile(r"(?:Find|Compute|Calculate|Evaluate) (\$.+\$)\.?", re.DOTALL),
     ("What is {}?", "Give the value of {}.")),
    (re.compile(r"How many (.+)\?", re.DOTALL), ("Tell how many {}.", "Say exactly how many {}.")),
    (re.compile(r"(In how many .+)\?", re.DOTALL), ("Answer this: {}?", "Count with care: {}?")),
)  # fmt: skip
_OPENINGS = ("Here is a problem to solve.", "Look at the following.", "Consider this situation.")
_TELLINGS = (
    ("Let us go through it step by step.", "Step {}: "), ("We work from what is given.", "({}) "),
    ("Here is one way to see it.", "{}. "), ("First what is known, then what follows.", "Part {}: "),
)  # fmt: skip
NUM_REPHRASINGS = len(_SWAPS) * 2 * 3


def rephrase(question: str, variant: int) -> str:
    """The question in other words: variant 0 to ``NUM_REPHRASINGS - 1``, counted on in a circle.

    Where no rule applies, what comes back says little new; the filters behind find that out.
    """
    variant %= NUM_REPHRASINGS
    swaps, rest = _SWAPS[variant % len(_SWAPS)], variant // len(_SWAPS)
    form, order = rest % 2, rest // 2
    before, asking, behind = split_asking(question)
    known = _outside(before, swaps)
    asking = f"{_outside(_ask(asking, form), swaps)} {_outside(behind, swaps)}".strip()
    if not known:
        return asking if order == 0 else f"{_OPENINGS[order]} {asking}"
    if order == 0:
        return f"{asking} This is known: {known}"
    if order == 1:
        return f"{_OPENINGS[(form + order) % len(_OPENINGS)]} {known} {asking}"
    return f"{known} With this in mind: {asking}"


def retell(solution: str, variant: int) -> str:
    """The steps of a worked solution, one a line, with an opening: four tellings, counted on in a circle."""
    opening, label = _TELLINGS[variant % len(_TELLINGS)]
    held: list[str] = []

    def hold(found: re.Match[str]) -> str:
        held.append(found.group())
        return f"\x00{len(held) - 1}\x00"

    text = _FORMULA.sub(hold, solution.strip())
    parts = [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z\x00])|\n+", text) if part.strip()]
    lines = [label.format(number) + part for number, part in enumerate(parts, 1)]
    return re.sub(r"\x00(\d+)\x00", lambda found: held[int(found[1])], "\n".join([opening, *lines]))


def _ask(asking: str, form: int) -> str:
    for pattern, tellings in _ASKING:
        found = pattern.fullmatch(asking)
        if found:
            return tellings[form % len(tellings)].format(found[1].strip())
    return asking


def _outside(text: str, swaps: tuple[tuple[str, str], ...]) -> str:
    """Swap words, each at most by one rule, outside of formulas; a capital stays one."""
    table = dict(swaps)
    words = re.compile(r"\b(" + "|".join(sorted(map(re.escape, table), key=len, reverse=True)) + r")\b", re.IGNORECASE)

    def swap(found: re.Match[str]) -> str:
        new = table[found.group().lower()]
        return new[0].upper() + new[1:] if found.group()[0].isupper() else new

    return _parts(text, lambda plain: words.sub(swap, plain))


def _parts(text: str, change: Callable[[str], str]) -> str:
    made, end = [], 0
    for formula in _FORMULA.finditer(text):
        made += [change(text[end : formula.start()]), formula.group()]
        end = formula.end()
    return "".join([*made, change(text[end:])])
