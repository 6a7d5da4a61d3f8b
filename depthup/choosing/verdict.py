"""From evidence to a recommendation, in words. Pure: no model, no file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..evaluation.distributions import t_quantile
from ..fitting.words import compact
from .candidates import Candidate
from .facts import MEASURED_TOKENS, PUBLISHED_TOKENS

Decision = Literal["grow", "continue-base", "do-not-grow"]
# The base trained on, at the rate of the candidates and at a third of it: a finished model is first disturbed by a high
# rate, and a method that trains fewer weights would win by that alone (docs/findings.md 3).
CONTROL, GENTLE = "control", "control-gentle"
CONTROLS = (CONTROL, GENTLE)


@dataclass(frozen=True)
class Measurement:
    """Losses of one model on the same held-out rows as all others.

    Attributes:
        name: Of a candidate, or one of :data:`CONTROLS`.
        step: Optimiser steps before it.
        rows: Mean loss of each row, nats per token.
    """

    name: str
    step: int
    rows: tuple[float, ...]

    @property
    def loss(self) -> float:
        return sum(self.rows) / len(self.rows)


@dataclass(frozen=True)
class Difference:
    """One model's loss minus another's, row by row, with its interval (Student's t)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        mean, low, high = (f"{round(value, 3) + 0.0:+.3f}" for value in (self.mean, self.low, self.high))  # no -0.000
        return f"{mean} ({low} to {high})"


@dataclass(frozen=True)
class Verdict:
    """A recommendation.

    Attributes:
        decision: What to do.
        best: The candidate to grow by; where the decision is another, the best if the size is needed anyway.
        words: One paragraph.
        unknown: What this evidence does not tell.
    """

    decision: Decision
    best: Candidate | None
    words: str
    unknown: tuple[str, ...]


def difference(one: Measurement, other: Measurement, *, comparisons: int = 1, confidence: float = 0.95) -> Difference:
    """``one`` minus ``other``; of several comparisons the intervals hold together (Bonferroni)."""
    gaps = [a - b for a, b in zip(one.rows, other.rows, strict=True)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
    half = spread * t_quantile(1 - (1 - confidence) / (2 * comparisons), len(gaps) - 1)
    return Difference(mean, mean - half, mean + half)


def control_of(rung: Sequence[Measurement]) -> Measurement:
    """The better of a rung's controls."""
    return min((one for one in rung if one.name in CONTROLS), key=lambda one: one.loss)


def decide(
    tried: Sequence[Candidate], zero: Sequence[Measurement], rungs: Sequence[Sequence[Measurement]], *,
    budget_tokens: float, tokens_per_step: int,
) -> Verdict:  # fmt: skip
    """The recommendation.

    Args:
        tried: All candidates that were measured.
        zero: The base, named :data:`CONTROL`, and each candidate before any training.
        rungs: The same after each number of steps that all runs of a rung reached, with fewer candidates in each;
            empty where nothing was trained.
        budget_tokens: Of the user.
        tokens_per_step: Of the short runs.
    """
    by_name = {one.name: one for one in tried}
    trained = rungs[-1] if rungs else ()
    unknown = _unknown(trained, budget_tokens, tokens_per_step)
    if budget_tokens == 0 or not trained:
        return _untrained(by_name, zero, budget_tokens, unknown)
    control = control_of(trained)
    best = min((one for one in trained if one.name not in CONTROLS), key=lambda one: one.loss)
    comparisons = sum(one.name not in CONTROLS for one in rungs[0])  # the best was looked for among as many
    gap = difference(best, control, comparisons=comparisons)
    before = _earlier_gap(rungs, best.name)
    fades = control.step * tokens_per_step < budget_tokens and before is not None and gap.mean > before
    seen = f"{compact(control.step * tokens_per_step)} tokens"
    measured = (
        f"After {control.step} steps ({seen}) of the same text, the base continued{_gently(control)} has a held-out"
        f" loss of {control.loss:.3f}, and the best of {comparisons} ways to grow, {best.name}, {best.loss:.3f}: a"
        f" difference of {gap}"
    )
    if gap.high < 0 and not fades:
        decision: Decision = "grow"
        said = f"{measured}, so growing by {best.name} is ahead, and its lead does not shrink. Grow."
    elif budget_tokens >= PUBLISHED_TOKENS:
        decision, best = "grow", _best_stack(by_name, [zero, *rungs]) or best
        said = (
            f"{measured}, so growth is not ahead yet. But at {compact(budget_tokens)} tokens all published runs of"
            " depth up-scaling that we know of report a gain over their base, though none trained the base on the same"
            f" tokens to compare. They are stacks, all weights trained; here {best.name} is the best of these. Grow by"
            " it, and run the control beside it for as long as you can."
        )
    else:
        decision = "continue-base"
        behind = "the base continued is ahead" if gap.low > 0 else "the two cannot be told apart"
        if gap.high < 0:
            behind = f"growth is ahead, and its lead shrinks (from {before:+.3f} in the rung before)"
        said = f"{measured}; {behind}. Continue the base: it costs less to train and to run. {_why(budget_tokens)}"
    return Verdict(decision, by_name[best.name], said + _must(decision, best.name), unknown)


def _earlier_gap(rungs: Sequence[Sequence[Measurement]], name: str) -> float | None:
    """A candidate's loss minus the control's in the rung before the last; None where there is none."""
    if len(rungs) < 2:
        return None
    losses = {one.name: one.loss for one in rungs[-2]}
    return losses[name] - control_of(rungs[-2]).loss


def _best_stack(by_name: Mapping[str, Candidate], rounds: Sequence[Sequence[Measurement]]) -> Measurement | None:
    """The best stack in the last round that has one; None where none was measured."""
    for measured in reversed(rounds):
        stacks = [one for one in measured if one.name not in CONTROLS and by_name[one.name].family == "stack"]
        if stacks:
            return min(stacks, key=lambda one: one.loss)
    return None


def _why(budget_tokens: float) -> str:
    if budget_tokens <= 2 * MEASURED_TOKENS:
        return (
            f"That is also what was measured on SmolLM2-135M: at {MEASURED_TOKENS / 1e6:g} M tokens plain stacking had"
            " not passed its control."
        )
    return (
        f"No control at {compact(budget_tokens)} tokens is known to us; whether growth passes it there is not known,"
        " and `depthup fit` tells from runs of yours."
    )


def _gently(control: Measurement) -> str:
    return " at a third of the rate" if control.name == GENTLE else ""


def _must(decision: Decision, name: str) -> str:
    return "" if decision == "grow" else f" If the size is needed all the same, grow by {name}."


def _untrained(
    by_name: dict[str, Candidate], zero: Sequence[Measurement], budget_tokens: float, unknown: tuple[str, ...]
) -> Verdict:
    """What losses before training tell: with no budget all there is, with one not enough to recommend growth."""
    base = next(one for one in zero if one.name == CONTROL)
    grown = [one for one in zero if one is not base]
    best = min(grown, key=lambda one: one.loss)
    gap = difference(best, base, comparisons=len(grown))
    measured = (
        f"Without training, the base has a held-out loss of {base.loss:.3f}, and the best of {len(grown)} plans,"
        f" {best.name}, {best.loss:.3f}: a difference of {gap}"
    )
    if budget_tokens > 0:
        said = f"{measured}. No short training was finished, and losses before training do not tell who wins after it."
        said += " Continue the base, or run this again with more --minutes."
        return Verdict("continue-base", by_name[best.name], said + _must("continue-base", best.name), unknown)
    if gap.high < 0:
        said = f"{measured}, so repeating these layers helps as it is. Grow by {best.name}, without training."
        return Verdict("grow", by_name[best.name], said, unknown)
    still = next((one.name for one in grown if by_name[one.name].family.startswith("identity")), None)
    said = f"{measured}. With no tokens to train on, do not grow: the target would cost more and be no better."
    if still is not None:
        said += f" If the size is needed all the same, grow by {still}: it computes what the base computes."
        return Verdict("do-not-grow", by_name[still], said, unknown)
    return Verdict("do-not-grow", by_name[best.name], said + _must("do-not-grow", best.name), unknown)


def _unknown(trained: Sequence[Measurement], budget_tokens: float, tokens_per_step: int) -> tuple[str, ...]:
    seen = trained[0].step * tokens_per_step if trained else 0
    found = ["intervals hold the choice of held-out rows, not what another seed or another text would change"]
    if 0 < seen < budget_tokens:
        found.append(
            f"the short runs saw {compact(seen)} of {compact(budget_tokens)} tokens ({seen / budget_tokens:.2%}):"
            " methods that repair a seam catch up later, and who wins in the end is not measured"
        )
    if seen > budget_tokens > 0:
        found.append("the short runs saw more tokens than the budget has")
    found.append("loss on this text is not what tasks score: `depthup evaluate` and `depthup compare` tell that")
    return tuple(found)
