"""Results files: lm-eval reads ours, we read lm-eval's, nothing is lost, broken files are told in one message."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import scored

from depthup.errors import DataError, OutputError
from depthup.evaluation.results import find_results, read_results, read_samples, write_results
from depthup.evaluation.scores import ModelScores, Sample, TaskScores, Totals
from depthup.evaluation.statistics import estimate

DATE = datetime(2026, 11, 23, 12, 0, 0, 5)


def samples_of(scores: ModelScores) -> list[Sample]:
    return [
        Sample(task.task, item, {"question": f"What is\n{item}?"}, (("Q: é", " A"), ("Q: é", " B")),
               ((-1.25, True), (-3.0, False)), "A", value)
        for task in scores.tasks
        for item, value in zip(task.items, task.values, strict=True)
    ]  # fmt: skip


@pytest.fixture
def scores() -> ModelScores:
    made = scored.model("owner/model: a", num_items=40)
    gsm8k = replace(made.tasks[-1], others={"exact_match,flexible-extract": made.tasks[0].values}, notes=("noted",))
    return replace(made, tasks=(*made.tasks[:-1], replace(gsm8k, num_available=1319)))


def test_nothing_is_lost_on_the_disk(scores: ModelScores, tmp_path: Path) -> None:
    samples = samples_of(scores)
    path = write_results(tmp_path, scores, samples, date=DATE)
    assert path.name == "results_2026-11-23T12-00-00.000005.json" and path.parent.name == "owner__model__ a"
    assert read_results(path) == read_results(tmp_path) == scores
    for task in ("arc_challenge", "mmlu", "gsm8k"):
        written = [sample for sample in samples if sample.task == task]
        assert sorted(read_samples(path, task), key=str) == sorted(written, key=str)
    assert not list(path.parent.glob(".*")), "no temporary file stays"
    bits = TaskScores("text", "bits_per_byte", 0, ("a", "b"), (0.1 + 0.2, 1e-300), 9, weighting="items")
    known = TaskScores("other", "acc", 0, (), (), 50, totals=Totals(50, 0.5, 0.0714))
    odd = replace(scores, model="odd", tasks=(bits, known))
    assert read_results(write_results(tmp_path, odd)) == odd


def test_the_harness_prints_our_file(scores: ModelScores, tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    path = write_results(tmp_path, scores, samples_of(scores), date=DATE)
    form = json.loads(path.read_text())
    table, groups = utils.make_table(form), utils.make_table(form, "groups")
    for task in scores.tasks:
        one = estimate(task)
        lines = table.splitlines()
        begin = next(i for i, line in enumerate(lines) if line.startswith(f"|{task.task} "))
        row = lines[begin + (task.task == "gsm8k")]  # whose other metric comes first
        for cell in (f"{one.mean:.4f}", f"{one.standard_error:.4f}", "↑", str(task.num_fewshot)):
            assert cell in row
    assert "- mmlu_subject_0" in table and "|mmlu" in groups
    assert "flexible-extract" in table and "strict-match" in table
    files = [str(file) for file in path.parent.iterdir()]
    assert utils.get_results_filenames(files) == [str(path)]
    found = {utils.get_file_task_name(Path(file).name) for file in utils.get_sample_results_filenames(files)}
    assert {"arc_challenge", "gsm8k", "mmlu_subject_0"} <= found


def test_a_file_of_the_harness_is_read_item_by_item(tmp_path: Path) -> None:
    """lm-eval evaluates a model on tasks of ours and writes its files; we read the scores that it printed."""
    evaluator = pytest.importorskip("lm_eval.evaluator")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.dummy import DummyLM
    from lm_eval.tasks import TaskManager

    for name, subject in (("knowledge_one", 5), ("knowledge_two", 9), ("alone", 12)):
        rows = [{"q": f"{name} {i}", "choices": ["a", "b"], "gold": i % 2} for i in range(subject)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": name, "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
            "dataset_kwargs": {"data_files": {"test": f"{tmp_path}/{name}.jsonl"}},
            "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}", "doc_to_target": "gold", "num_fewshot": 0,
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "metadata": {"version": 1.0},
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
    group = {
        "group": "knowledge", "task": ["knowledge_one", "knowledge_two"],
        "aggregate_metric_list": [{"metric": "acc_norm", "weight_by_size": True}], "metadata": {"version": 2.0},
    }  # fmt: skip
    (tmp_path / "knowledge.yaml").write_text(json.dumps(group))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.general_config_tracker.log_experiment_args("dummy", "pretrained=some/model", None, None, False)
    found = evaluator.evaluate(lm=DummyLM(), task_dict=manager.load(["knowledge", "alone"]), bootstrap_iters=10)
    samples = found.pop("samples")
    tracker.save_results_aggregated(found | {"lm_eval_version": "0.4.13"}, samples)
    for name, lines in samples.items():
        tracker.save_results_samples(name, lines)

    read = read_results(tmp_path / "out")
    tasks = {task.task: task for task in read.tasks}
    assert read.model == "some/model" and read.profile == "harness-0.4" and tasks.keys() == {"knowledge", "alone"}
    for name, task in tasks.items():
        row = found["results"][name]
        one = estimate(task)
        assert task.metric == "acc_norm" and task.num_available == len(task.items) == row["sample_len"]
        assert one.mean == pytest.approx(row["acc_norm,none"], abs=1e-12)
        assert one.standard_error == pytest.approx(row["acc_norm_stderr,none"], abs=1e-12)
    assert set(tasks["knowledge"].groups) == {"knowledge_one", "knowledge_two"}
    (first, *_) = read_samples(tmp_path / "out", "alone")
    assert first.document["q"] == "alone 0" and first.prompts[1] == ("alone 0", " b") and len(first.responses) == 2
    assert len(read_samples(tmp_path / "out", "knowledge")) == 14

    for file in (tmp_path / "out").rglob("samples_*.jsonl"):
        file.unlink()
    bare = read_results(tmp_path / "out")
    for task in bare.tasks:
        assert not task.items and task.num_items == tasks[task.task].num_items
        assert estimate(task).mean == pytest.approx(estimate(tasks[task.task]).mean)
        assert estimate(task).standard_error == pytest.approx(estimate(tasks[task.task]).standard_error)


def test_macro_averages_are_recognised() -> None:
    from depthup.evaluation.foreign_results import from_harness

    rows = {f"m_{i}": {"acc,none": share, "acc_stderr,none": 0.05, "sample_len": size}
            for i, (share, size) in enumerate([(0.5, 10), (0.75, 100)])}  # fmt: skip
    form = {"group_subtasks": {"m": list(rows), "m_0": [], "m_1": []}, "n-shot": {}, "versions": {}}
    for mean, weighting in ((0.625, "groups"), ((5 + 75) / 110, "items")):
        results = {**rows, "m": {"acc,none": mean, "acc_stderr,none": 0.03, "alias": "m"}}
        (task,) = from_harness({**form, "results": results}, Path("results_x.json")).tasks
        assert (task.task, task.weighting, task.num_items) == ("m", weighting, 110)
    results = {**rows, "m": {"acc,none": 0.123, "acc_stderr,none": 0.03}}  # some other mean: the tasks stand alone
    assert [t.task for t in from_harness({**form, "results": results}, Path("results_x.json")).tasks] == ["m_0", "m_1"]


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "cannot be read"),
        ("[1]", "no results file"),
        ('{"results": 3}', "no results file"),
        ('{"results": {}}', "holds no score"),
        ("[" * 100_000, "cannot be read"),
        ('{"results": {"a": {"acc,none": 0.5}}}', "how many items"),
        ('{"results": {"a": {"acc,none": 0.51234, "sample_len": 10}}}', "no standard error"),
        ('{"results": {}, "depthup": {}}', "'version' is missing"),
        ('{"results": {}, "depthup": {"version": 99}}', "version 99"),
    ],
)
def test_broken_files_are_told(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "results_x.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message) as told:
        read_results(file)
    assert "results_x.json" in str(told.value)


@pytest.mark.parametrize(
    "key,value", [("values", "1 0"), ("values", "x"), ("weighting", "both"), ("items", 3), ("group_names", []),
                  ("values", "nan " * 40), ("metric", None), ("num_available", "many")],
)  # fmt: skip
def test_changed_files_are_told(key: str, value: object, scores: ModelScores, tmp_path: Path) -> None:
    path = write_results(tmp_path, scores)
    form = json.loads(path.read_text())
    form["depthup"]["tasks"]["mmlu"][key] = value
    path.write_text(json.dumps(form))
    with pytest.raises(DataError, match="no results file that depthup can read"):
        read_results(path)


def test_which_file_is_meant(scores: ModelScores, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        find_results(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no results_\*\.json"):
        find_results(tmp_path)
    write_results(tmp_path, scores, date=DATE)
    newer = write_results(tmp_path, scores, date=DATE.replace(hour=13))
    assert find_results(tmp_path) == newer
    write_results(tmp_path, replace(scores, model="other"), date=DATE)
    with pytest.raises(DataError, match="the results of 2 models"):
        find_results(tmp_path)


def test_what_cannot_be_written_or_found_is_told(scores: ModelScores, tmp_path: Path) -> None:
    broken = replace(scores.tasks[0], values=(float("nan"), *scores.tasks[0].values[1:]))
    with pytest.raises(DataError, match="item 0 of arc_challenge is nan"):
        write_results(tmp_path, replace(scores, tasks=(broken,)))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="was not written"):
        write_results(tmp_path / "file", scores)
    path = write_results(tmp_path, scores, samples_of(scores))
    with pytest.raises(DataError, match="has no task nosuch"):
        read_samples(path, "nosuch")
    samples = next(path.parent.glob("samples_gsm8k*"))
    samples.write_text("{}\n")
    with pytest.raises(DataError, match="no file of samples"):
        read_samples(path, "gsm8k")
    samples.unlink()
    with pytest.raises(DataError, match=r"there is no .*samples_gsm8k"):
        read_samples(path, "gsm8k")
