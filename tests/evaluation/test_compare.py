"""Comparisons: verdicts in words, corrected for their number; models asked in different ways are refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import scored

from depthup.cli import main
from depthup.errors import DataError
from depthup.evaluation.compare import compare, judge
from depthup.evaluation.results import write_results
from depthup.evaluation.scores import ModelScores
from depthup.evaluation.statistics import holm, is_lower_better
from depthup.report.comparison import comparison_json, comparison_text


@pytest.fixture(scope="module")
def models() -> list[ModelScores]:
    return [
        scored.model("base", seed=1, skill=0.6),
        scored.model("sibling", seed=2, skill=0.61),
        scored.model("better", seed=3, skill=0.75),
    ]


def test_verdicts_are_words(models: list[ModelScores]) -> None:
    found = compare(models, num_draws=500)
    assert found.others == ("sibling", "better") and found.suite == "H6" and found.num_comparisons == 14
    sibling, better = (rows[-1] for rows in found.compared)
    assert sibling.better is None
    assert re.fullmatch(r"within noise \([+−]\d\.\d ± \d\.\d, would need about [\d,]+ items.*\)", sibling.verdict)
    assert better.better and re.fullmatch(r"better by \d+\.\d ± \d\.\d", better.verdict)
    other_way = compare(models, baseline=2, num_draws=500)
    assert other_way.others == ("base", "sibling") and other_way.compared[0][-1].verdict == better.verdict.replace(
        "better", "worse"
    )


def test_p_values_are_corrected_for_all_comparisons(models: list[ModelScores]) -> None:
    found = compare(models, num_draws=200)
    rows = [row for of_model in found.compared for row in of_model]
    assert [row.adjusted_p for row in rows] == holm([row.difference.p_value for row in rows])
    alone = compare(models[:2], num_draws=200)
    assert all(
        one.adjusted_p <= many.adjusted_p for one, many in zip(alone.compared[0], found.compared[0], strict=True)
    )


def test_what_is_not_sure_among_many_is_said(models: list[ModelScores]) -> None:
    one = compare(models[:2], num_draws=100).compared[0][0].difference
    close = replace(one, difference=0.03, margin=0.028, p_value=0.04)
    assert judge(close, 0.04, "acc", 1172, 0.05).verdict == "better by 3.0 ± 2.8"
    assert judge(close, 0.2, "acc", 1172, 0.05).verdict == "open: +3.0 ± 2.8 by itself, not among so many comparisons"
    assert judge(replace(one, standard_error=0.0, p_value=1.0), 1.0, "acc", 9, 0.05).verdict == "the same on every item"
    none = judge(replace(one, difference=0.0, p_value=1.0, items_needed=math.inf), 1.0, "acc", 9, 0.05)
    assert none.verdict.endswith("no number of items would tell)")
    many = judge(replace(one, items_needed=31_234.0, p_value=0.5), 1.0, "acc", 1172, 0.05)
    assert many.verdict.endswith("would need about 31,000 items, there are 1,172)")


def test_less_is_better_for_bits(models: list[ModelScores]) -> None:
    bits = [
        replace(m, suite="bits", tasks=tuple(replace(t, metric="bits_per_byte") for t in m.tasks[:2])) for m in models
    ]
    found = compare([bits[0], bits[2]], num_draws=100)
    assert is_lower_better("bits_per_byte") and found.compared[0][-1].better is False
    assert re.fullmatch(r"worse by 0\.\d{3} ± 0\.\d{3}", found.compared[0][-1].verdict)
    assert re.search(r"0\.\d{3} ± 0\.\d{3}", comparison_text(found))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"profile": "leaderboard-v1"}, "profiles of base and sibling: harness-0.4 and leaderboard-v1"),
        ({"settings": {"chat_template": "{{ messages }}"}}, "chat template of base and sibling: none and applied"),
        ({"settings": {"data": "a folder"}}, "data of base and sibling: none and a folder"),
        ({"shots": 3}, "shots of arc_challenge in base and sibling: 25 and 3"),
        ({"metric": "acc"}, "metric of arc_challenge in base and sibling: acc_norm and acc"),
        ({"weighting": "groups"}, "averaging of arc_challenge"),
        ({"version": "2.0"}, "version of arc_challenge"),
        ({"num_available": 9000}, "split of arc_challenge in base and sibling: 300 items and 9,000 items"),
        ({"tasks": 4}, "only one has gsm8k, winogrande"),
    ],
)
def test_different_questions_are_refused(change: dict, message: str, models: list[ModelScores]) -> None:
    base, sibling, _ = models
    first = {"num_fewshot" if key == "shots" else key: value for key, value in change.items()}
    if "tasks" in change:
        sibling = replace(sibling, tasks=sibling.tasks[:4])
    elif first.keys() & {"profile", "settings"}:
        sibling = replace(sibling, **change)
    else:
        sibling = replace(sibling, tasks=(replace(sibling.tasks[0], **first), *sibling.tasks[1:]))
    with pytest.raises(DataError, match=re.escape(message)) as told:
        compare([base, sibling])
    assert "--allow-differences" in str(told.value)
    found = compare([base, sibling], allow_differences=True, num_draws=100)
    assert any(message in warning for warning in found.warnings)
    assert len(found.tasks) == (4 if "tasks" in change else 6)


def test_two_templates_of_two_models_may_differ(models: list[ModelScores]) -> None:
    both = [replace(m, settings={"chat_template": f"template of {m.model}"}) for m in models[:2]]
    assert compare(both, num_draws=50)


def test_samples_and_items_that_differ_are_noted(models: list[ModelScores]) -> None:
    other = replace(models[1], tasks=tuple(
        replace(t, items=tuple(f"{i}x" for i in t.items)) if t.task == "mmlu" else t for t in models[1].tasks
    ))  # fmt: skip
    found = compare([models[0], other], num_draws=50)
    assert any("not paired" in w and "mmlu" in w and "gsm8k" not in w for w in found.warnings)
    assert [row.difference.paired for row in found.compared[0]] == [True, True, False, True, True, True, False]
    assert "sibling against base, in part" in comparison_text(found)
    part = [replace(m, tasks=tuple(replace(t, num_available=2000) for t in m.tasks)) for m in models[:2]]
    assert any("300 of 2,000 of arc_challenge" in w for w in compare(part, num_draws=50).warnings)


def test_what_cannot_be_compared_is_told(models: list[ModelScores]) -> None:
    with pytest.raises(DataError, match="1 model to compare"):
        compare(models[:1])
    with pytest.raises(DataError, match="no task in common"):
        compare([models[0], replace(models[1], tasks=(scored.task("other"),))], allow_differences=True)
    single = replace(models[0], tasks=(scored.task(num_items=1),))
    with pytest.raises(DataError, match="answered 1 item of arc_challenge"):
        compare([single, single])


def test_models_of_one_name_are_told_apart(models: list[ModelScores]) -> None:
    twins = [models[0], replace(models[1], model="base"), replace(models[1], model="base")]
    assert compare(twins, num_draws=50).names == ("base 01010101", "base 02020202 (1)", "base 02020202 (2)")


def test_text_holds_each_score_and_each_verdict(models: list[ModelScores]) -> None:
    found = compare(models, num_draws=200)
    text = comparison_text(found)
    for rows in found.compared:
        for row in rows:
            assert row.verdict in text
    for means, scores in zip(found.means, found.scores, strict=True):
        for one in (means, *scores):
            assert one and f"{100 * one.mean:.1f} ± {100 * one.margin:.1f}" in text
    assert max(map(len, text.splitlines())) < 170
    made = json.loads(json.dumps(comparison_json(found), allow_nan=False))
    assert made["compared"]["better"][-1]["verdict"] == found.compared[1][-1].verdict


# -- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(models: list[ModelScores], tmp_path: Path) -> list[str]:
    return [str(write_results(tmp_path, model).parent) for model in models]


def test_verb_prints_compares_and_draws(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figure, figures = tmp_path / "scores.svg", tmp_path / "found.json"
    assert main(["compare", *folders, "--json", str(figures), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "better against base, item by item" in out and "  sibling: within noise" in out
    assert json.loads(figures.read_text())["names"] == ["base", "sibling", "better"]
    assert figure.read_text().startswith("<svg") and "better" in figure.read_text()
    assert main(["compare", *folders, "--baseline", folders[2]]) == 0
    assert "base against better" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["A"], "1 model to compare"),
        (["A", "B", "--baseline", "Bx"], "none of the results"),
        (["A", "nowhere"], "there is no nowhere"),
        (["A", "."], "holds no results"),
    ],
)
def test_verb_tells_what_is_wrong(
    arguments: list[str], message: str, folders: list[str], capsys: pytest.CaptureFixture, monkeypatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    places = {"A": folders[0], "B": folders[1], "Bx": f"{folders[1]}x"}
    assert main(["compare", *(places.get(one, one) for one in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_verb_draws_no_empty_figure(models: list[ModelScores], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tasks = (replace(models[0].tasks[0], metric="bits_per_byte"),)
    folders = [str(write_results(tmp_path, replace(one, tasks=tasks)).parent) for one in models[:2]]
    assert main(["compare", *folders, "--figure", str(tmp_path / "none.svg")]) == 2
    assert "nothing to draw" in capsys.readouterr().err and not (tmp_path / "none.svg").exists()
    assert main(["compare", *folders]) == 0 and "the same on every item" in capsys.readouterr().out
