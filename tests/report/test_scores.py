"""Scores on the page, in figures, in the card: each number stands where it should, the Hub's parser reads ours."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import huggingface_hub
import pytest
import scored
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from depthup.errors import DataError, OutputError
from depthup.evaluation.scores import ModelScores
from depthup.evaluation.statistics import estimate, suite_of
from depthup.report import svg
from depthup.report.card import Source, eval_results, model_index, with_model_index, write_eval_results
from depthup.report.figures import radar_svg, score_bars_svg
from depthup.report.page import render_page
from depthup.report.scores import score_board, scores_table, with_margin
from depthup.report.values import Report

SOURCE = Source("https://example.org/scores", "scores")
EMPTY = Report("Nothing yet", "", (), None, (), (), (), (), (), ())


@pytest.fixture(scope="module")
def models() -> list[ModelScores]:
    return [scored.model(f"model {i}", seed=i, skill=0.5 + 0.06 * i, num_items=80) for i in range(6)]


def cells_of(model: ModelScores) -> list[str]:
    mean = suite_of(model)
    assert mean
    return [f"{100 * one.mean:.1f} ± {100 * one.margin:.1f}" for one in (mean, *map(estimate, model.tasks))]


def parsed(figure: str) -> ElementTree.Element:
    root = ElementTree.fromstring(figure)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    return root


# -- tables and the page ----------------------------------------------------------------------------------------------


def test_table_holds_each_score_with_its_margin(models: list[ModelScores]) -> None:
    text = scores_table(models)
    assert " ".join(text.splitlines()[0].split()) == "model H6 ARC HellaSwag MMLU TruthfulQA WinoGrande GSM8K"
    for line, model in zip(text.splitlines()[2:], models, strict=False):
        assert re.split(r"\s{2,}", line) == [model.model, *cells_of(model)]
    assert "h6 harness-0.4" in text and "25 shots" in text
    part = replace(models[0], tasks=(replace(models[0].tasks[0], num_available=1172, notes=("odd shots",)),))
    assert "ARC: a sample of 80 of 1,172 items" in scores_table([part]) and "ARC: odd shots" in scores_table([part])


def test_a_mean_stands_only_over_the_same_tasks(models: list[ModelScores]) -> None:
    board = score_board([models[0], replace(models[1], tasks=models[1].tasks[:3])])
    assert [column.title for column in board.columns][:2] == ["ARC", "HellaSwag"] and board.cells[1][-1] is None
    assert with_margin(None) == "" and score_board([]).columns == ()


def test_page_has_a_section_of_scores_where_there_are_some(models: list[ModelScores]) -> None:
    page = render_page(replace(EMPTY, scores=tuple(models[:2])))
    assert '<h2 id="scores">Scores</h2>' in page and page.count('class="fig"') == 4  # two figures, wide and narrow
    for model in models[:2]:
        for cell in cells_of(model):
            score, _, margin = cell.partition(" ± ")
            assert f">{score} <small>± {margin}</small></span></td>" in page
    assert 'id="scores"' not in render_page(EMPTY)
    nasty = render_page(replace(EMPTY, scores=(replace(models[0], model="<i>\x07"),)))
    assert "<i>" not in nasty and "\x07" not in nasty


# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [370, 760])
def test_bars_show_each_score_where_it_is(width: int, models: list[ModelScores]) -> None:
    root = parsed(score_bars_svg(models, width=width))
    labels = [node.text for node in root.iter("text")]
    for model in models:
        for cell in cells_of(model):
            assert cell in labels
    for title in ("H6", "ARC", "GSM8K", "acc_norm, 25 shots", "score, points"):
        assert title in labels
    lines = [node for node in root.iter("g") if (node.findtext("title") or "").startswith("model 0, ")]
    assert len(lines) == 7
    ends = []
    for line, one in zip(lines[1:], map(estimate, models[0].tasks), strict=True):
        path = next(node for node in line.iter("path") if node.get("class") == "whisker")
        low, high = map(float, re.fullmatch(r"M([\d.]+) [\d.]+H([\d.]+)", path.get("d", "")).groups())
        ends += [(one.low, low), (one.high, high)]
    scale = (ends[1][1] - ends[0][1]) / (ends[1][0] - ends[0][0])
    for share, x in ends:
        assert x == pytest.approx(ends[0][1] + scale * (share - ends[0][0]), abs=0.4)


@pytest.mark.parametrize("width", [370, 560])
def test_radar_has_an_outline_for_each_model(width: int, models: list[ModelScores]) -> None:
    root = parsed(radar_svg(models, width=width))
    outlines = [node for node in root.iter("path") if node.get("class") == "area"]
    assert len(outlines) == 6 and len({node.get("stroke-dasharray") for node in outlines}) == 6
    assert all(node.get("d", "").count("L") == 5 for node in outlines)
    words = " ".join(node.text or "" for node in root.iter("text"))
    for word in ("TruthfulQA", "model 5", f"H6 {cells_of(models[0])[0]}"):
        assert word in words


@pytest.mark.parametrize("draw", [score_bars_svg, radar_svg])
@pytest.mark.parametrize("width", [370, 760])
def test_figures_of_scores_stay_in_their_frame_and_say_what_they_show(draw, width: int, models: list) -> None:
    root = parsed(draw(models, width=width))
    _, _, wide, high = map(float, root.get("viewBox", "").split())
    for node in root.iter("text"):
        assert 0 <= float(node.get("x", "")) <= wide and 6 < float(node.get("y", "")) < high
    assert root.get("role") == "img" and cells_of(models[2])[3] in (root.findtext("desc") or "")
    assert "prefers-color-scheme" in draw(models, standalone=True)


def test_nothing_to_draw_is_nothing(models: list[ModelScores]) -> None:
    bits = [replace(m, tasks=tuple(replace(t, metric="bits_per_byte") for t in m.tasks)) for m in models[:2]]
    assert score_bars_svg([]) == radar_svg([]) == score_bars_svg(bits) == radar_svg(bits) == ""
    two = [replace(m, tasks=m.tasks[:2]) for m in models[:2]]
    assert radar_svg(two) == "" != score_bars_svg(two)


def test_marks_are_told_apart_without_colour() -> None:
    marks = [svg.mark(i, 10, 10, 4) for i in range(svg.NUM_SERIES)]
    assert len(set(marks)) == svg.NUM_SERIES and svg.mark(svg.NUM_SERIES, 10, 10, 4) == marks[0]


# -- the model card ---------------------------------------------------------------------------------------------------


def test_model_index_is_what_the_hub_reads(models: list[ModelScores]) -> None:
    made = model_index(models[0], SOURCE)
    name, results = model_index_to_eval_results(made)
    assert name == "model 0" and len(results) == 6
    for result, task in zip(results, models[0].tasks, strict=True):
        one = estimate(task)
        assert result.metric_value == round(100 * one.mean, 2) and result.source_url == SOURCE.url
        assert result.dataset_args == {"num_few_shot": task.num_fewshot}
        assert result.metric_args["standard_error"] == round(100 * one.standard_error, 2)
        assert result.metric_args["profile"] == "harness-0.4" and result.task_type == "text-generation"
    assert {(r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type) for r in results} >= {
        ("allenai/ai2_arc", "ARC-Challenge", "test", "acc_norm"),
        ("openai/gsm8k", "main", "test", "exact_match"),
        ("truthfulqa/truthful_qa", "multiple_choice", "validation", "mc2"),
    }
    again = eval_results_to_model_index(name, results)
    assert without_none(again) == without_none(made)


def without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_none(one) for key, one in value.items() if one is not None}
    return [without_none(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "card", ["", "# Title\n", "---\nlicense: mit\ntags: [a]\nmodel-index: []\n---\n# Title\n---\nx\n"]
)
def test_a_card_gets_the_scores_and_keeps_the_rest(card: str, models: list[ModelScores]) -> None:
    made = with_model_index(card, models[0], SOURCE)
    read = ModelCard(made)
    assert len(read.data.eval_results) == 6 and read.data.model_name == "model 0"
    assert read.text == card.partition("\n---\n")[2] or read.text == card
    assert read.data.license == ("mit" if "license" in card else None)
    assert with_model_index(made, models[0], SOURCE) == made


def test_a_broken_card_is_told(models: list[ModelScores]) -> None:
    for head in ("a: [", "- one"):
        with pytest.raises(DataError, match="front matter"):
            with_model_index(f"---\n{head}\n---\n", models[0])


def test_eval_results_are_what_the_hub_reads(models: list[ModelScores], tmp_path: Path) -> None:
    parse = huggingface_hub._eval_results.parse_eval_result_entries
    tasks = (*models[0].tasks, scored.task("homemade"))
    part = replace(tasks[0], num_available=1172)
    scores = replace(models[0], tasks=(part, *tasks[1:]))
    written = write_eval_results(tmp_path, scores, SOURCE, "2026-11-23")
    assert [path.name for path in written] == [f"{task.task}.yaml" for task in models[0].tasks]
    assert {path.parent for path in written} == {tmp_path / ".eval_results"}
    for path, task in zip(written, models[0].tasks, strict=True):
        data = yaml.safe_load(path.read_text())
        (entry,) = parse(data)
        assert isinstance(entry, EvalResultEntry) and eval_result_entries_to_yaml([entry]) == data
        assert entry.value == round(100 * estimate(task).mean, 2) and entry.task_id == task.task
        assert (entry.date, entry.source_url) == ("2026-11-23", SOURCE.url)
        assert f"{task.num_fewshot}-shot; {task.metric}; profile harness-0.4; no chat template" in entry.notes
    assert "a sample of 80 of 1,172 items" in written[0].read_text()
    assert "source" not in eval_results(scores)["gsm8k.yaml"]
    with pytest.raises(OutputError, match="was not written"):
        write_eval_results(written[0], scores)
