"""What fits say, in words: tables' cells and sentences. Where a figure rests on extrapolation, the sentence says so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    ahead = "cannot be told apart" if found.leader is None else f"{found.leader} is ahead"
    said = f"At {compact(found.measured)} {unit} {ahead}: {found.challenger} minus {found.reference} is {fitted}"
    if found.axis == "tokens" and pair.last_gap is not None:
        said += f"; measured there: {signed(pair.last_gap[1])}"
    return said + "."


def warnings(runs: Sequence[FittedRun]) -> Iterator[str]:
    """What a reader must know of these fits."""
    for one in runs:
        name, run = one.run.name, one.run
        if one.error > MISFIT:
            yield (
                f"{name}: errors of {one.error:.2%} around the fit, so the form does not describe it well (a grown model"
                " repairs its seam first, a model from scratch falls fast first): its own curve is not to be"
                " extrapolated, and --from-tokens leaves out the first part"
            )
        if len(set(run.tokens)) < 8:
            yield f"{name}: {len(set(run.tokens))} points for a form of four numbers, so its intervals are wide"
        if run.num_seeds < 3:
            yield (
                f"{name}: {run.num_seeds} seed{'s' * (run.num_seeds > 1)}, so intervals hold the noise around one"
                " curve, and not what another seed would change"
            )
        if not run.is_held_out:
            yield f"{name}: losses are of the training text, in means of steps; held-out losses are worth more"
    if len({one.run.is_held_out for one in runs}) > 1:
        yield "some losses are held-out and some are not: these runs are not to be compared"
    yield (
        "points inside a run whose rate decays are not where a shorter run would end: break-even between two runs of"
        " the same schedule is sound, the budget of one alone is not read off its curve"
    )
