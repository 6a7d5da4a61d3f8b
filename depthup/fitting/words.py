"""What fits say, in words: tables' cells and sentences. Where a figure rests on extrapolation, the sentence says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from .intervals import BreakEven, FittedRun, Interval, Pair

MISFIT = 0.003  # relative error above which the form does not describe a run well


def compact(count: float) -> str:
    """``1.15e7`` -> ``11.5 M``; FLOPs above quadrillions in powers of ten."""
    if math.isinf(count):
        return "never"
    if count >= 1e15:
        return f"{count:.2e}"
    for power, letter in ((12, " T"), (9, " B"), (6, " M"), (3, " k")):
        if float(f"{count:.3g}") >= 10**power:
            return f"{float(f'{count:.3g}') / 10**power:g}{letter}"
    return f"{count:.3g}"


def signed(difference: float) -> str:
    """``+0.017``."""
    return f"{difference:+.3f}"


def ranged(value: Interval, digits: int = 3) -> str:
    """``2.772 (1.950 to 2.891)``."""
    return f"{value.estimate:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def break_even_words(found: BreakEven, confidence: float) -> str:
    """One sentence on where the challenger passes the reference."""
    who, whom, unit = found.challenger, found.reference, "tokens" if found.axis == "tokens" else "FLOPs"
    reach = f"{found.limit / found.measured:g} times the data ({compact(found.limit)} {unit})"
    share = f"{found.share:.0%} of the refits"
    if math.isinf(found.at.estimate):
        low = "" if math.isinf(found.at.low) else f"; at the earliest at {_place(found.at.low, unit)}"
        crossing = "cross" if found.share else "none of the refits crosses"
        return (
            f"{who} does not pass {whom} within {reach}, by the fit"
            + (f"; {share} {crossing}{low}" if found.share else f"; {crossing}")
            + "."
        )
    if found.at.estimate == 0.0:
        tail = "" if found.at.high == 0.0 else f"; in {share} it ends up below, in the others it does not"
        return f"{who} lies below {whom} from the first point on, by the fit, up to {reach}{tail}."
    high = f"beyond {reach}" if math.isinf(found.at.high) else compact(found.at.high)
    interval = f"({confidence:.0%} interval {_place(found.at.low, unit)} to {high})"
    if found.is_extrapolated:
        factor = found.at.estimate / found.measured
        return (
            f"{who} passes {whom} at {compact(found.at.estimate)} {unit} {interval}: EXTRAPOLATED, {factor:.1f} times"
            f" beyond the data, which end at {compact(found.measured)}."
        )
    return f"{who} passes {whom} at {compact(found.at.estimate)} {unit} {interval}, within the data."


def _place(value: float, unit: str) -> str:
    return "the first point" if value == 0 else f"{compact(value)} {unit}"


def difference_words(found: BreakEven, pair: Pair, confidence: float) -> str:
    """One sentence on who is ahead at the end of the data."""
    unit = "tokens" if found.axis == "tokens" else "FLOPs"
    gap = found.difference
    fitted = f"{signed(gap.estimate)} ({confidence:.0%} interval {signed(gap.low)} to {signed(gap.high)})"
    ahead = "the two cannot be told apart" if found.leader is None else f"{found.leader} is ahead"
    said = f"At {compact(found.measured)} {unit} {ahead}: {found.challenger} minus {found.reference} is {fitted}"
    if found.axis == "tokens" and pair.last_gap is not None:
        said += f"; measured there: {signed(pair.last_gap[1])}"
    return said + "."


def warnings(runs: Sequence[FittedRun]) -> Iterator[str]:
    """What a reader must know of these fits, each with the runs that it is true of."""
    checks: tuple[tuple[Callable[[FittedRun], bool], str], ...] = (
        (
            lambda one: one.error > MISFIT,
            f"errors above {MISFIT:.1%} around the fit, so the form does not describe it well (a grown model repairs"
            " its seam first, a model from scratch falls fast first): do not extrapolate its own curve; --from-tokens"
            " leaves out the first part",
        ),
        (lambda one: len(set(one.run.tokens)) < 8, "fewer than 8 points for a form of four numbers: wide intervals"),
        (
            lambda one: one.run.num_seeds < 3,
            "fewer than 3 seeds: intervals hold the noise around one curve, not what another seed would change",
        ),
        (
            lambda one: not one.run.is_held_out,
            "losses of the training text, in means of steps: held-out losses are worth more",
        ),
    )
    for holds, said in checks:
        names = [one.run.name for one in runs if holds(one)]
        if names:
            yield f"{', '.join(names)}: {said}"
    if len({one.run.is_held_out for one in runs}) > 1:
        yield "some losses are held-out and some are not: do not compare these runs"
    yield (
        "points inside a run whose rate decays are not where a shorter run would end: compare runs of the same"
        " schedule, and do not read the budget of one off its curve"
    )
