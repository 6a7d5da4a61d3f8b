"""Fits as text for the terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..fitting.intervals import Axis, BreakEven, FittedRun, Interval, Pair, break_even
from ..fitting.words import break_even_words, compact, difference_words, ranged, warnings
from .tables import render_table

_HEADERS = ("run", "points", "seeds", "tokens", "loss at the end", "E", "A", "tokens to D0", "alpha", "error")


def fit_text(runs: Sequence[FittedRun], pairs: Sequence[Pair], reach: float) -> str:
    """The table of fits, a paragraph for each pair, and what a reader must know."""
    rows = [
        (
            one.run.name, len(one.run.tokens), one.run.num_seeds, compact(one.run.most_tokens),
            ranged(one.loss_at(one.run.most_tokens)), ranged(one.parameter("end")), ranged(one.parameter("gain")),
            compact(float(one.curve.offset[0])), ranged(one.parameter("alpha"), 2), f"{one.error:.2%}",
        )
        for one in runs
    ]  # fmt: skip
    lines = ["loss = E + A (1 + tokens / D0) ^ -alpha, nats per token", "", render_table(_HEADERS, rows)]
    for pair in pairs:
        lines += ["", *_said(pair, reach)]
    lines += ["", *(f"note: {warning}" for warning in warnings(runs))]
    return "\n".join(lines)


def _said(pair: Pair, reach: float) -> Iterator[str]:
    confidence = pair.reference.confidence
    for axis in _axes(pair):
        found = break_even(pair, axis, reach=reach)
        yield difference_words(found, pair, confidence)
        yield break_even_words(found, confidence)


def _axes(pair: Pair) -> tuple[Axis, ...]:
    knows = pair.challenger.run.flops_per_token and pair.reference.run.flops_per_token
    return ("tokens", "flops") if knows else ("tokens",)


def fit_json(
    runs: Sequence[FittedRun], pairs: Sequence[Pair], reach: float, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that was fitted; what is never reached is null."""
    return {
        "form": "loss = E + A (1 + tokens / D0) ^ -alpha",
        "settings": {**settings, "reach": reach},
        "runs": [_run(one) for one in runs],
        "pairs": [_pair(pair, axis, reach) for pair in pairs for axis in _axes(pair)],
        "notes": list(warnings(runs)),
    }


def _run(one: FittedRun) -> dict[str, Any]:
    names = {"E": "end", "A": "gain", "D0": "offset", "alpha": "alpha"}
    return {
        "name": one.run.name,
        "num_points": len(one.run.tokens),
        "num_seeds": one.run.num_seeds,
        "is_held_out": one.run.is_held_out,
        "flops_per_token": one.run.flops_per_token,
        "points": [list(point) for point in zip(one.run.tokens, one.run.losses, one.run.seeds, strict=True)],
        "parameters": {key: _interval(one.parameter(name)) for key, name in names.items()},  # type: ignore[arg-type]
        "relative_error": one.error,
        "extrapolation_begins_at_tokens": one.run.most_tokens,
        "loss_at_end_of_data": _interval(one.loss_at(one.run.most_tokens)),
    }


def _pair(pair: Pair, axis: Axis, reach: float) -> dict[str, Any]:
    found: BreakEven = break_even(pair, axis, reach=reach)
    return {
        "challenger": found.challenger,
        "reference": found.reference,
        "axis": axis,
        "fitted": "their difference at equal tokens" if found.paired else "each alone",
        "break_even": _interval(found.at),
        "share_of_refits_that_cross": found.share,
        "is_extrapolated": found.is_extrapolated,
        "extrapolation_begins_at": found.measured,
        "looked_up_to": found.limit,
        "difference_at_end_of_data": _interval(found.difference),
        "measured_difference": None if pair.last_gap is None else pair.last_gap[1],
        "ahead_at_end_of_data": found.leader,
        "words": [
            difference_words(found, pair, pair.reference.confidence),
            break_even_words(found, pair.reference.confidence),
        ],
    }


def _interval(value: Interval) -> dict[str, float | None]:
    ends = {"estimate": value.estimate, "low": value.low, "high": value.high}
    return {name: None if math.isinf(number) else number for name, number in ends.items()}
