"""Verdicts from planted losses: who is ahead by more than the rows explain, and what is said where nobody is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from depthup.choosing.candidates import candidates
from depthup.choosing.facts import measured_facts, rate_for
from depthup.choosing.verdict import CONTROL, GENTLE, Measurement, Verdict, decide, difference

TRIED = candidates(8, 12)
ROWS = np.random.default_rng(0).normal(3.0, 0.4, 16)  # rows differ far more than models do


def measured(name: str, shift: float, step: int = 0, noise: float = 0.01) -> Measurement:
    jitter = noise * np.random.default_rng([step, *name.encode()]).normal(size=len(ROWS))
    return Measurement(
        name, step, tuple(ROWS + shift + (0 if name == CONTROL or (name, step) == ("identity", 0) else jitter))
    )


def rung(step: int, **shifts: float) -> list[Measurement]:
    return [measured(CONTROL, 0.0, step), *(measured(name, shift, step) for name, shift in shifts.items())]


def verdict(rungs: list[list[Measurement]], budget: float = 1e6, zero: list[Measurement] | None = None) -> Verdict:
    zero = zero or rung(0, solar=0.4, identity=0.0, spread=0.1)
    return decide(TRIED, zero, rungs, budget_tokens=budget, tokens_per_step=1024)


def test_the_interval_is_the_paired_t_interval_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    one, other = measured("solar", 0.05), measured(CONTROL, 0.0)
    wanted = stats.ttest_rel(one.rows, other.rows).confidence_interval(0.95)
    found = difference(one, other)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-6)
    wide = difference(one, other, comparisons=5)
    wanted = stats.ttest_rel(one.rows, other.rows).confidence_interval(1 - 0.05 / 5)
    assert (wide.low, wide.high) == pytest.approx((wanted.low, wanted.high), rel=1e-6)


def test_where_the_control_is_ahead_the_base_is_continued() -> None:
    found = verdict([rung(8, solar=0.3, identity=0.04), rung(16, solar=0.1, identity=0.03)])
    assert found.decision == "continue-base" and found.best is not None and found.best.name == "identity"
    assert "the base continued is ahead" in found.words and "If the size is needed all the same" in found.words
    assert "plain stacking had not passed its control" in found.words


def test_where_nobody_is_ahead_the_cheaper_is_recommended() -> None:
    found = verdict([rung(8, solar=0.3, identity=0.0), rung(16, solar=0.1, identity=0.0)])
    assert found.decision == "continue-base" and "cannot be told apart" in found.words


def test_a_lead_that_the_control_has_at_a_gentler_rate_too_is_none() -> None:
    """New layers alone disturb the base less, and so does a third of the rate."""
    rungs = [rung(8, identity=-0.06, spread=0.2), rung(16, identity=-0.08)]
    assert verdict(rungs).decision == "grow"
    gentle = [[*found, replace(measured(GENTLE, shift, found[0].step), rows=tuple(ROWS + shift))]
              for found, shift in zip(rungs, (-0.05, -0.09), strict=True)]  # fmt: skip
    found = verdict(gentle)
    assert found.decision == "continue-base" and "the base continued at a third of the rate" in found.words
    assert "2 ways to grow" in found.words


def test_growth_that_is_ahead_and_stays_ahead_is_recommended() -> None:
    found = verdict([rung(8, solar=0.2, spread=-0.02), rung(16, solar=0.1, spread=-0.05)])
    assert found.decision == "grow" and found.best is not None and found.best.name == "spread"
    assert any("16.4 k of 1 M tokens (1.64%)" in said for said in found.unknown)


def test_a_lead_that_shrinks_is_not_trusted_beyond_what_was_seen() -> None:
    rungs = [rung(8, solar=0.2, spread=-0.08), rung(16, solar=0.1, spread=-0.03)]
    found = verdict(rungs)
    assert found.decision == "continue-base" and "its lead shrinks" in found.words
    assert verdict(rungs, budget=16 * 1024).decision == "grow"


def test_at_published_budgets_growth_is_recommended_with_its_missing_control() -> None:
    found = verdict([rung(8, solar=0.3, identity=0.1), rung(16, identity=0.1)], budget=2e11)
    assert found.decision == "grow" and found.best is not None and found.best.name == "solar"
    assert "none trained the base on the same tokens" in found.words


def test_without_a_budget_only_what_helps_as_it_is_is_recommended() -> None:
    found = verdict([], budget=0)
    assert found.decision == "do-not-grow" and found.best is not None and found.best.name == "identity"
    found = verdict([], budget=0, zero=rung(0, solar=-0.05, identity=0.0))
    assert found.decision == "grow" and found.best is not None and found.best.name == "solar"
    stopped = verdict([], zero=rung(0, solar=-0.05, identity=0.0))
    assert stopped.decision == "continue-base" and "No short training was finished" in stopped.words


def test_facts_say_how_far_they_are_from_the_question() -> None:
    near = [fact.said for fact in measured_facts(1e7, 1.4e8)]
    far = [fact.said for fact in measured_facts(2e11, 7e9)]
    assert len(near) == 1 and "2.907" in near[0] and len(far) == 3
    assert rate_for(1.35e8).peak == 3e-4 and rate_for(7e9).peak == 3e-5
