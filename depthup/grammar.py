"""The one-line grammar of plans, ``0-9,9:identity,10-12:average(13,0.25)``: reading it, without what it means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .errors import PlanError, shown

_RUN = re.compile(
    r"(?P<first>[0-9]{1,9})\s*(?:-\s*(?P<last>[0-9]{1,9})\s*)?"
    r"(?::\s*(?P<kind>[a-z-]{1,20})\s*(?:\((?P<numbers>[^()]{0,80})\))?)?"
)


class Run(NamedTuple):
    """Base layers ``first`` to ``last``, inclusive, and how they start: a kind (None: not said) and its numbers."""

    first: int
    last: int
    kind: str | None
    numbers: tuple[float, ...]


def read_runs(text: str, num_base_layers: int) -> Iterator[Run]:
    """The comma-separated parts of a plan, in order.

    Raises:
        PlanError: A part is no layer and no rising run, or names a layer that the base does not have.
    """
    for part in _parts(text):
        match = _RUN.fullmatch(part.strip())
        first, last = (int(match["first"]), int(match["last"] or match["first"])) if match else (1, 0)
        if match is None or first > last:
            raise PlanError(
                f"'{shown(part.strip())}' in '{shown(text)}' is no layer and no run of layers",
                allowed="numbers and rising runs with commas between, first layer 0, as in 0-23,8-31, each with an"
                " init if it is no plain copy, as in 9:identity",
            )
        if last >= num_base_layers:
            raise PlanError(
                f"'{shown(part.strip())}' names base layer {last}, but the base has {num_base_layers} layers",
                allowed=f"0 to {num_base_layers - 1} (the first layer is 0)",
            )
        yield Run(first, last, match["kind"], _numbers(match["numbers"]))


def _parts(text: str) -> list[str]:
    """The text cut at the commas that do not stand inside brackets."""
    parts, start, inside = [], 0, False
    for mark in re.finditer(r"[,()]", text):
        if mark[0] != ",":
            inside = mark[0] == "("
        elif not inside:
            parts.append(text[start : mark.start()])
            start = mark.end()
    return [*parts, text[start:]]


def _numbers(text: str | None) -> tuple[float, ...]:
    if text is None or not text.strip():
        return ()
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise PlanError(
            f"'({text})' holds no numbers", allowed="numbers with commas between, as in (13,0.25)"
        ) from None
