"""Errors, intervals and tests against scipy and lm-eval, and their coverage in simulations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scored

from depthup.evaluation import distributions, pairs, statistics
from depthup.evaluation.scores import TaskScores, Totals

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees", [1, 2.5, 9, 99, 1318, 20000])
def test_students_t_is_scipys(degrees: float) -> None:
    for value in (0.0, 0.01, 0.7, 1.96, 5.0, 40.0):
        expected = 2 * stats.t.sf(value, degrees)
        assert distributions.t_two_sided(value, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert distributions.t_two_sided(-value, degrees) == distributions.t_two_sided(value, degrees)
    for share in (0.5, 0.8, 0.975, 0.9999):
        expected = stats.t.ppf(share, degrees)
        assert distributions.t_quantile(share, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_fair_coin_is_scipys_binomial_test() -> None:
    for heads, tails in ((0, 0), (0, 1), (3, 3), (9, 2), (40, 71), (1000, 1100), (2300, 1900)):
        expected = stats.binomtest(heads, heads + tails).pvalue if heads + tails else 1.0
        assert distributions.fair_coin_two_sided(heads, tails) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("right,total", [(0, 20), (1, 20), (300, 1319), (20, 20), (7042, 14042)])
def test_interval_of_right_and_wrong_is_wilsons(right: int, total: int) -> None:
    values = (1.0,) * right + (0.0,) * (total - right)
    one = statistics.estimate(replace(scored.task(num_items=total), values=values))
    expected = stats.binomtest(right, total).proportion_ci(method="wilson")
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert one.interval == "wilson" and one.mean == right / total


def test_interval_of_probabilities_is_students() -> None:
    task = scored.task("truthfulqa_mc2", num_items=50)
    one = statistics.estimate(task)
    expected = stats.t.interval(0.95, 49, np.mean(task.values), stats.sem(task.values))
    assert one.interval == "t" and (one.low, one.high) == pytest.approx(expected)


def test_standard_errors_are_lm_evals() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    for task in (scored.task(), scored.task("truthfulqa_mc2", num_items=31)):
        one = statistics.estimate(task)
        assert one.standard_error == pytest.approx(metrics.mean_stderr(list(task.values)), rel=1e-12)
    mmlu = scored.task("mmlu", num_items=400, groups=9)
    subjects = [
        [v for v, g in zip(mmlu.values, mmlu.groups, strict=True) if g == name] for name in sorted(set(mmlu.groups))
    ]
    errors, sizes = [metrics.mean_stderr(values) for values in subjects], list(map(len, subjects))
    means = [float(np.mean(values)) for values in subjects]
    assert len(set(sizes)) > 1
    for weighting, error in (
        ("items", metrics.pooled_sample_stderr(errors, sizes)),
        ("groups", metrics.unweighted_mean_stderr(errors)),
    ):
        one = statistics.estimate(replace(mmlu, weighting=weighting))
        assert one.standard_error == pytest.approx(float(error), rel=1e-12)
        mean = metrics.aggregate_subtask_metrics(means, sizes, weighting == "items")
        assert one.mean == pytest.approx(mean, rel=1e-12)
        assert one.low < one.mean < one.high and one.margin == pytest.approx(1.96 * error, rel=0.05)


def test_error_of_h6_is_that_of_independent_means() -> None:
    """The figures of reference/paper.md: SOLAR-Instruct's errors in points make 0.44 for H6."""
    parts = [statistics.Moments(0.7, error / 100, 1000) for error in (1.32, 0.32, 0.38, 1.50, 1.05, 1.29)]
    assert 100 * statistics.mean_of(parts).standard_error == pytest.approx(0.44, abs=0.005)
    model = scored.model("a")
    total = statistics.suite_of(model)
    errors = [statistics.estimate(task).standard_error for task in model.tasks]
    assert total and total.standard_error == pytest.approx(math.hypot(*errors) / 6)


def test_finite_population_correction_asks_for_the_whole_split() -> None:
    task = scored.task(num_items=300, num_available=1172)
    plain, whole = statistics.estimate(task), statistics.estimate(task, whole_split=True)
    assert whole.standard_error == pytest.approx(plain.standard_error * math.sqrt(1 - 300 / 1172))
    assert plain.low < whole.low < whole.high < plain.high
    full = statistics.estimate(scored.task(), whole_split=True)
    assert (full.standard_error, full.low, full.high) == (0.0, full.mean, full.mean)


def test_a_single_item_has_a_wide_interval_and_no_error() -> None:
    one = statistics.estimate(scored.task(num_items=1))
    assert math.isnan(one.standard_error) and one.high - one.low > 0.7
    assert statistics.as_json(one)["standard_error"] is None
    assert math.isnan(statistics.estimate(scored.task("truthfulqa_mc2", num_items=1)).low)
    each_alone = replace(scored.task(num_items=20), groups=tuple(f"g{i}" for i in range(20)))
    plain = statistics.estimate(scored.task(num_items=20))
    assert statistics.estimate(each_alone).standard_error == pytest.approx(plain.standard_error)
    assert statistics.estimate(replace(each_alone, weighting="groups")).standard_error == pytest.approx(
        plain.standard_error
    )


def test_a_mean_needs_one_unit() -> None:
    bits = replace(scored.task(), metric="bits_per_byte")
    assert statistics.has_mean([bits, bits]) and not statistics.has_mean([bits, scored.task()])
    with pytest.raises(ValueError, match="different units"):
        statistics.suite_estimate([bits, scored.task()])


def test_holm_is_the_textbooks() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == [] and statistics.holm([0.9, 0.8]) == [1.0, 1.0]


# -- simulations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share,num_items", [(0.03, 40), (0.25, 100), (0.7, 1319)])
def test_intervals_cover_the_truth(share: float, num_items: int) -> None:
    rng = np.random.default_rng(7)
    task, covered, runs = scored.task(num_items=num_items), 0, 1000
    for right in rng.binomial(num_items, share, runs):
        one = statistics.estimate(replace(task, values=(1.0,) * right + (0.0,) * (num_items - right)))
        covered += one.low <= share <= one.high
    assert 0.925 < covered / runs < 0.985


def test_grouped_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(3)
    shares, sizes = rng.uniform(0.3, 0.9, 20), rng.integers(10, 60, 20)
    groups = tuple(f"g{i}" for i, size in enumerate(sizes) for _ in range(size))
    for weighting, truth in (("items", np.average(shares, weights=sizes)), ("groups", shares.mean())):
        covered, runs = 0, 250
        for _ in range(runs):
            values = tuple(float(v) for v in rng.random(len(groups)) < np.repeat(shares, sizes))
            task = replace(scored.task(num_items=len(groups)), values=values, groups=groups, weighting=weighting)
            one = statistics.estimate(task)
            covered += one.low <= truth <= one.high
        assert 0.9 < covered / runs < 0.99, weighting


def test_a_sample_of_a_split_covers_the_split() -> None:
    rng = np.random.default_rng(5)
    split = (rng.random(1000) < 0.55).astype(float)
    task, covered, runs = scored.task(num_items=400, num_available=1000), 0, 600
    for _ in range(runs):
        drawn = tuple(rng.choice(split, 400, replace=False))
        one = statistics.estimate(replace(task, values=drawn), whole_split=True)
        covered += one.low <= split.mean() <= one.high
    assert 0.925 < covered / runs < 0.975


def test_power_is_what_the_detectable_difference_promises() -> None:
    """Items in pairs with a true difference of the size named: found 4 times in 5."""
    rng, num_items = np.random.default_rng(11), 400
    only_one, only_other = 0.10, 0.16  # chances that one model alone is right
    error = math.sqrt((only_one + only_other - 0.06**2) / num_items)
    size = statistics.detectable_difference(error)
    needed = statistics.items_needed(0.06, error, num_items)
    assert needed == pytest.approx(num_items * (size / 0.06) ** 2)
    found, runs = 0, 1500
    for one, other, _ in rng.multinomial(round(needed), (only_one, only_other, 1 - only_one - only_other), runs):
        found += distributions.fair_coin_two_sided(int(one), int(other)) <= 0.05
    assert 0.75 < found / runs < 0.84


# -- differences ------------------------------------------------------------------------------------------------------


def two(name: str, num_items: int = 200, **fields: object) -> tuple:
    return (
        scored.task(name, num_items, seed=1, **fields),
        scored.task(name, num_items, seed=2, skill=0.65, **fields),
    )


def test_paired_t_is_scipys() -> None:
    one, other = two("truthfulqa_mc2")
    (row,) = pairs.differences([one], [other], num_draws=100)
    expected = stats.ttest_rel(other.values, one.values)
    interval = expected.confidence_interval()
    assert row.test == "paired t" and row.paired
    assert row.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (row.difference - row.margin, row.difference + row.margin) == pytest.approx((interval.low, interval.high))
    assert row.correlation == pytest.approx(stats.pearsonr(one.values, other.values).statistic)
    paired = statistics.difference_error(
        *(statistics.estimate(task).standard_error for task in (one, other)), row.correlation
    )
    assert row.standard_error == pytest.approx(paired, rel=1e-9)


def test_mcnemar_is_scipys_binomial_test() -> None:
    one, other = two("arc_challenge")
    (row,) = pairs.differences([one], [other], num_draws=100)
    gained = sum(b > a for a, b in zip(one.values, other.values, strict=True))
    lost = sum(b < a for a, b in zip(one.values, other.values, strict=True))
    assert row.test == "McNemar, exact"
    assert row.p_value == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)


def test_items_that_differ_are_not_paired() -> None:
    one, other = two("arc_challenge", 60)
    other = replace(other, items=tuple(f"{item}x" for item in other.items))
    (row,) = pairs.differences([one], [other], num_draws=2000)
    expected = stats.ttest_ind(other.values, one.values, equal_var=False)
    assert not row.paired and row.correlation is None
    assert row.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    only_totals = [
        replace(task, items=(), values=(), totals=Totals(e.num_items, e.mean, e.standard_error))
        for task in (one, other)
        for e in [statistics.estimate(task)]
    ]
    (same,) = pairs.differences(only_totals[:1], only_totals[1:], num_draws=2000)
    assert same.p_value == pytest.approx(row.p_value) and same.margin == pytest.approx(row.margin)
    assert (same.low, same.high) == pytest.approx((row.low, row.high), abs=0.02)


def test_pairs_are_found_in_any_order_and_where_an_item_stands_twice() -> None:
    one, other = two("truthfulqa_mc2")
    shuffled = np.random.default_rng(0).permutation(len(one.items))
    moved = replace(
        other, items=tuple(other.items[i] for i in shuffled), values=tuple(other.values[i] for i in shuffled)
    )
    assert pairs.differences([one], [moved], num_draws=50) == pairs.differences([one], [other], num_draws=50)
    assert pairs.order_like(["b", "a", "b"], ["b", "b", "a"]) == [0, 2, 1]
    assert pairs.order_like(["a", "a", "b"], ["a", "b", "b"]) is None and pairs.order_like([], []) is None


def test_bootstrap_interval_is_scipys() -> None:
    one, other = two("truthfulqa_mc2", 60)
    (row,) = pairs.differences([one], [other], num_draws=20_000)
    moved = np.subtract(other.values, one.values)
    theirs = stats.bootstrap((moved,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    interval = theirs.confidence_interval
    assert (row.low, row.high) == pytest.approx((interval.low, interval.high), abs=0.004)
    again = pairs.differences([one], [other], num_draws=20_000)
    assert again == (row,) != pairs.differences([one], [other], num_draws=20_000, seed=1)


def test_both_ways_of_drawing_have_the_same_distribution() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat([-1.0, 0.0, 1.0], [20, 140, 40])
    counted = pairs.resampled_means(values, None, "items", 4000, rng)
    gathered = pairs.resampled_means(values + rng.normal(scale=1e-9, size=200), None, "items", 4000, rng)
    assert stats.ks_2samp(counted, gathered + rng.normal(scale=1e-9, size=4000)).pvalue > 0.01
    assert counted.std() == pytest.approx(values.std() / math.sqrt(200), rel=0.05)


@pytest.mark.parametrize("weighting", ["items", "groups"])
def test_bootstrap_over_groups_has_the_error_of_the_formula(weighting: str) -> None:
    one, other = two("mmlu", 500, groups=7, weighting=weighting)
    (row,) = pairs.differences([one], [other], num_draws=4000)
    assert row.test == ("McNemar, exact" if weighting == "items" else "paired t")
    assert row.high - row.low == pytest.approx(2 * row.margin, rel=0.08)
    assert row.low < row.difference < row.high


def test_mean_over_tasks_is_the_mean_of_the_differences() -> None:
    one, other = scored.model("a", seed=1), scored.model("b", seed=2, skill=0.66)
    *rows, total = pairs.differences(one.tasks, other.tasks, suite="H6")
    assert total.of == "H6" and total.num_items == 6 * 300
    assert total.difference == pytest.approx(np.mean([row.difference for row in rows]))
    assert total.standard_error == pytest.approx(math.hypot(*(row.standard_error for row in rows)) / 6)
    assert (total.low, total.high) == pytest.approx(
        (total.difference - total.margin, total.difference + total.margin), abs=0.002
    )
    alone = pairs.differences(one.tasks[2:3], other.tasks[2:3])
    assert alone == (rows[2],)  # other tasks do not change its draws


def test_a_model_is_no_better_than_itself() -> None:
    one = scored.model("a")
    for row in pairs.differences(one.tasks, one.tasks, suite="H6"):
        assert (row.difference, row.low, row.high, row.p_value, row.margin) == (0, 0, 0, 1.0, 0)


def test_models_of_one_skill_are_found_different_as_often_as_alpha_says() -> None:
    found, runs = np.zeros(3), 120
    for seed in range(runs):
        tasks = [
            [scored.task(name, 150, seed=s, noise=0.4) for name in ("arc_challenge", "truthfulqa_mc2")]
            for s in (2 * seed, 2 * seed + 1)
        ]
        rows = pairs.differences(*tasks, suite="both", num_draws=200)
        found += [row.p_value <= 0.05 for row in rows]
    assert all(0.0 <= share <= 0.095 for share in found / runs) and found[2] / runs > 0.01


def test_bootstrap_intervals_cover_the_true_difference() -> None:
    rng, covered, runs = np.random.default_rng(2), 0, 200
    one, other = two("arc_challenge", 250)
    for gained, lost, same in rng.multinomial(250, (0.15, 0.08, 0.77), runs):
        before, after = (0.0,) * gained + (1.0,) * lost + (1.0,) * same, (1.0,) * gained + (0.0,) * lost + (1.0,) * same
        (row,) = pairs.differences([replace(one, values=before)], [replace(other, values=after)], num_draws=1000)
        covered += row.low <= 0.07 <= row.high
    assert 0.91 < covered / runs < 0.985


def test_the_interval_of_a_share_stays_within_its_range() -> None:
    """Two items of TruthfulQA: Student's t with one degree of freedom would reach beyond 0 and 1."""
    two = TaskScores("truthfulqa_mc2", "acc", 0, ("a", "b"), (0.2, 0.9), 817)
    found = statistics.estimate(two)
    assert (found.low, found.high) == (0.0, 1.0)
    one = statistics.estimate(TaskScores("truthfulqa_mc2", "acc", 0, ("a",), (0.2,), 817))
    assert math.isnan(one.low) and math.isnan(one.high)
