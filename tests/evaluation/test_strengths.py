"""Strengths of two candidates: planted ones are found, luck is not taken for them, gains are what arithmetic says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scored
from scipy import stats

from depthup.cli import main
from depthup.errors import DataError
from depthup.evaluation.distributions import chi_square_above
from depthup.evaluation.results import write_results
from depthup.evaluation.scores import ModelScores
from depthup.evaluation.statistics import crossing, holm
from depthup.evaluation.strengths import strengths
from depthup.report.strengths import strengths_json, strengths_notes, strengths_text

DRAWS = 400


def _model(name: str, seed: int, *skills: float, num_items: int = 400) -> ModelScores:
    """One skill a task: the first tasks of H6, without groups."""
    tasks = tuple(
        scored.task("arc_challenge" if i == 0 else f"task_{i}", num_items, seed=seed, skill=skill, version="1.0")
        for i, skill in enumerate(skills)
    )
    return replace(scored.model(name, seed=seed), tasks=tasks, suite="")


def _values(model: ModelScores) -> np.ndarray:
    return np.array([task.values for task in model.tasks])


@pytest.fixture(scope="module")
def planted() -> tuple[ModelScores, ModelScores, ModelScores]:
    """The first is strong at task 1, the second at task 2; the third keeps both."""
    return (
        _model("math", 1, 0.6, 0.8, 0.5, 0.6),
        _model("chat", 2, 0.6, 0.5, 0.8, 0.6),
        _model("both", 3, 0.6, 0.8, 0.8, 0.6),
    )


def test_planted_strengths_are_found_and_a_merge_that_keeps_both_pays(planted: tuple) -> None:
    found = strengths(planted[0], planted[1], [planted[2]], num_draws=DRAWS)
    assert found.stronger == (("task_1",), ("task_2",))
    assert found.room.real and found.room.p_value < 1e-6
    math_scores, chat, both = (_values(model).mean(1) for model in planted)
    best, better = np.maximum(math_scores, chat).mean(), max(math_scores.mean(), chat.mean())
    assert found.room.measured == pytest.approx(best - better)
    assert found.room.low < 0.3 / 4 < found.room.high
    assert found.room.lasting == pytest.approx(found.room.measured, abs=0.01)
    (gain,) = found.gains
    assert gain.over_better.better and gain.over_mean[-1].better
    assert gain.over_better.difference.difference == pytest.approx(both.mean() - better)
    between = (math_scores.mean() + chat.mean()) / 2
    assert gain.over_mean[-1].difference.difference == pytest.approx(both.mean() - between)
    assert gain.kept == pytest.approx((both.mean() - between) / (best - between))
    assert "a merge should pay" in strengths_notes(found)[0]


def test_a_stronger_model_and_its_weaker_copy_leave_no_room() -> None:
    """As the paper's SFT v4 and v3: one leads on every task, so the best of both is the better one."""
    strong, weak = _model("strong", 1, 0.8, 0.8, 0.8), _model("weak", 1, 0.6, 0.6, 0.6)
    found = strengths(strong, weak, [strong, weak], num_draws=DRAWS)
    assert found.room.measured == 0 and found.room.p_value == 1 and not found.room.real
    assert found.better == 0 and found.stronger[1] == ()
    same, worse = found.gains
    assert same.over_better.verdict == "the same on every item" and same.kept == pytest.approx(1)
    assert worse.over_better.better is False and worse.over_mean[-1].better is False
    assert "nothing speaks for a merge" in strengths_notes(found)[0]
    turned = strengths(weak, strong, num_draws=DRAWS)
    assert turned.better == 1 and turned.room == found.room


def test_a_model_that_answers_as_its_parents_on_average_gains_nothing(planted: tuple) -> None:
    """Half of the items as the one, half as the other: the mean of both, up to the luck of the halves."""
    one, two, _ = planted
    half = np.arange(len(one.tasks[0].values)) % 2 == 0
    mixed = replace(one, model="mixed", tasks=tuple(
        replace(a, values=tuple(np.where(half, a.values, b.values).tolist()))
        for a, b in zip(one.tasks, two.tasks, strict=True)
    ))  # fmt: skip
    (gain,) = strengths(one, two, [mixed], num_draws=DRAWS).gains
    assert gain.over_mean[-1].better is None and gain.over_better.better is None
    for rows, a, b, c in zip(gain.over_mean, _values(one), _values(two), _values(mixed), strict=False):
        assert rows.difference.difference == pytest.approx((c - (a + b) / 2).mean())
        assert rows.difference.p_value == pytest.approx(stats.ttest_1samp(c - (a + b) / 2, 0).pvalue)


def test_shares_say_what_the_mean_of_the_candidates_is(planted: tuple) -> None:
    one, two, merged = planted
    found = strengths(one, two, [merged, merged], [1.0, 0.25], num_draws=DRAWS)
    whole, quarter = (gain.over_mean[1].difference.difference for gain in found.gains)
    a, b, c = (_values(model)[1].mean() for model in planted)
    assert whole == pytest.approx(c - a) and quarter == pytest.approx(c - 0.25 * a - 0.75 * b)


def test_p_values_are_corrected_in_two_families(planted: tuple) -> None:
    found = strengths(planted[0], planted[1], [planted[2], planted[0]], num_draws=DRAWS)
    assert [one.adjusted_p for one in found.leads] == holm([one.difference.p_value for one in found.leads])
    rows = [row for gain in found.gains for row in (*gain.over_mean, gain.over_better)]
    assert [row.adjusted_p for row in rows] == holm([row.difference.p_value for row in rows])


def test_to_be_ahead_of_both_takes_the_larger_p_value() -> None:
    """Else the choice of the better candidate by the same items would be forgotten."""
    one, two, merged = (_model(f"m{i}", i, 0.6, skill) for i, skill in ((1, 0.6), (2, 0.62), (3, 0.75)))
    (gain,) = strengths(one, two, [merged], num_draws=DRAWS).gains
    alone = [strengths(each, merged, num_draws=DRAWS).leads[-1].difference.p_value for each in (one, two)]
    assert gain.over_better.difference.p_value == pytest.approx(max(alone))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10])
def test_chi_square_is_scipys(degrees: int) -> None:
    for value in (0.0, 1e-3, 0.5, 3.84, 20.0, 200.0):
        assert chi_square_above(value, degrees) == pytest.approx(stats.chi2.sf(value, degrees), rel=1e-10)


def test_crossing_keeps_its_level_and_finds_what_is_there() -> None:
    """At the edge of the hypothesis (one difference far from 0, the others 0) the level is kept, and nearly used."""
    draw = np.random.default_rng(0)
    edge = draw.normal([8, 0, 0, 0, 0, 0], 1, (2000, 6))
    level = np.mean([crossing(row, [1] * 6) <= 0.05 for row in edge.tolist()])
    assert 0.03 < level < 0.07
    inside = draw.normal(0, 1, (2000, 6))
    assert np.mean([crossing(row, [1] * 6) <= 0.05 for row in inside.tolist()]) < 0.05
    both = draw.normal([4, -4, 0, 0, 0, 0], 1, (500, 6))
    assert np.mean([crossing(row, [1] * 6) <= 0.05 for row in both.tolist()]) > 0.8
    # Gail and Simon 1985, table 1: critical values at 0.05 for two tasks to six
    for num_tasks, value in zip(range(2, 7), (2.71, 4.23, 5.43, 6.50, 7.48), strict=True):
        leads = [math.sqrt(value), -9.0, *[0.0] * (num_tasks - 2)]
        assert crossing(leads, [1] * num_tasks) == pytest.approx(0.05, abs=3e-4)
    assert crossing([1, 2, 3], [0, 1, 1]) == 1 and crossing([1, -1], [0, 0]) == 0


def test_luck_leaves_room_that_does_not_last() -> None:
    """Candidates of one skill: the scores leave room in nearly all draws, of which nothing lasts, on average."""
    skills = (0.6,) * 4
    rooms = [
        strengths(_model("a", 2 * i, *skills), _model("b", 2 * i + 1, *skills), num_draws=200).room for i in range(30)
    ]
    measured, lasting = (np.array([getattr(room, name) for room in rooms]) for name in ("measured", "lasting"))
    assert measured.mean() > 0.003 and abs(lasting.mean()) < 3 * lasting.std() / math.sqrt(30) + 5e-4
    assert lasting.mean() < measured.mean() / 3
    assert sum(room.real for room in rooms) <= 4 and sum(room.low == 0 for room in rooms) >= 25


def test_what_tells_nothing_of_strengths_is_refused(planted: tuple) -> None:
    one, two, merged = planted
    with pytest.raises(DataError, match="several tasks"):
        strengths(replace(one, tasks=one.tasks[:1]), replace(two, tasks=two.tasks[:1]))
    with pytest.raises(DataError, match="do not fit 1 merges"):
        strengths(one, two, [merged], [0.5, 0.5])
    with pytest.raises(DataError, match="from 0 to 1"):
        strengths(one, two, [merged], [1.5])
    others = replace(merged, tasks=tuple(replace(t, items=tuple(f"{i}x" for i in t.items)) for t in merged.tasks))
    with pytest.raises(DataError, match="not of the same items"):
        strengths(one, two, [others])


def test_the_command_line(planted: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write_results(tmp_path / model.model, model)) for model in planted]
    how = ["compare", files[0], files[1], "--merged", files[2]]
    assert main([*how, "--json", str(tmp_path / "found.json"), "--figure", str(tmp_path / "bars.svg")]) == 0
    text = capsys.readouterr().out
    assert "math is stronger on task_1; chat is stronger on task_2" in text and "better by" in text
    assert max(map(len, text.splitlines())) < 260
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["room"]["real"] and written["stronger"] == [["task_1"], ["task_2"]]
    assert (tmp_path / "bars.svg").is_file()
    for wrong in (["compare", files[0], "--merged", files[2]], [*how, "--baseline", files[0]], [*how, "--shares", "x"],
                  ["compare", *files, "--shares", "0.5"]):  # fmt: skip
        assert main(wrong) == 2
        assert "allowed" in capsys.readouterr().err


def test_json_holds_all_figures(planted: tuple) -> None:
    found = strengths(planted[0], planted[1], [planted[2]], num_draws=DRAWS)
    written = json.loads(json.dumps(strengths_json(found), allow_nan=False))
    assert written["gains"][0]["over_better"]["better"] is True
    assert all(one.verdict in strengths_text(found) for one in found.leads)
