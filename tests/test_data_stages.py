"""Stages that make data, models of models, and verdicts: what they leave is what later stages read, and names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from safetensors.torch import load_file

from depthup import stages
from depthup.artifacts.store import Store
from depthup.contamination.rules import RULES
from depthup.data_stage_settings import AlignmentStage, DecontaminateStage
from depthup.errors import DataError, RecipeError
from depthup.evaluation.paper_tables import SCORES
from depthup.merging.methods import METHODS
from depthup.pipeline import Node, run, survey
from depthup.recipe import parse_recipe
from depthup.report.collect import collect_rows
from depthup.stage_settings import NEED_BASE, PAPER_ROWS, MergeStage
from depthup.synthesis.pairs import VARIANTS
from depthup.workloads import workloads

SFT = {"kind": "sft", "model": "base", "template": "solar", "steps": 2, "rows_per_step": 2, "row_tokens": 1024,
       "learning_rate": 1e-3, "eval_tokens": 512}  # fmt: skip
DPO = {"kind": "dpo", "model": "tuned", "template": "solar", "steps": 2, "pairs_per_step": 2, "max_tokens": 1024,
       "learning_rate": 1e-4, "eval_pairs": 2}  # fmt: skip
RECIPE: dict[str, Any] = {
    "name": "made", "seed": 3,
    "data": {
        "math": {"source": "stage", "stage": "synth", "held_out": 0.2},
        "clean": {"source": "stage", "stage": "cleaned", "held_out": 0.2},
        "mixed": {"source": "mixture", "parts": {"math": 1, "clean": 1}},
        "math-pairs": {"source": "stage", "stage": "pairs", "held_out": 0.3},
        "own-pairs": {"source": "files", "paths": ["recipes/pico/pairs.jsonl"], "held_out": 0.2},
        "all-pairs": {"source": "joined", "parts": ["own-pairs", "math-pairs"]},
    },
    "stages": {
        "base": {"kind": "import", "random": {"num_layers": 2, "hidden_size": 16}},
        "synth": {"kind": "synthesize", "factory": 16, "symbolic": False,
                  "quotas": {"rephrase": {"asked": 2, "kept": 2}, "answer": {"asked": 2, "kept": 1}}},
        "cleaned": {"kind": "decontaminate", "data": "math", "against": "planted.jsonl", "rules": ["exact"]},
        "pairs": {"kind": "alignment", "rows": "synth", "max_pairs": 24},
        "tuned": {**SFT, "data": "mixed"},
        "preferred": {**DPO, "data": "all-pairs"},
        "stepwise": {**DPO, "kind": "sdpo", "data": "all-pairs", "chunks": 2, "chunk_by": "source"},
        "average": {"kind": "merge", "models": ["tuned", "preferred"], "weights": [0.4, 0.6]},
        "same": {"kind": "merge", "models": ["preferred", "preferred"], "method": "slerp"},
        "offsets": {"kind": "merge", "models": ["tuned", "preferred"], "method": "ties", "base": "base"},
    },
}  # fmt: skip


def changed(stage: str, **settings: Any):
    value = json.loads(json.dumps(RECIPE))
    place = value["data"] if stage == "data" else value["stages"]
    for key, new in settings.items():
        if stage == "data":
            place[key] = new
        else:
            place[stage][key] = new
    return parse_recipe(value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Node], Path]:
    """The recipe, run once; one of its synthetic questions was planted in the test set."""
    tests = tmp_path_factory.mktemp("tests")
    store = Store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPTHUP_DATA", str(tests))
        (tests / "planted.jsonl").write_text(json.dumps({"question": "none yet of all of these words", "answer": ""}))
        first = run(_until("synth"), store, device="cpu", progress=False, tell=lambda line: None)["synth"]
        row = json.loads((first.folder / first.record.results["files"][0]).read_text().splitlines()[0])
        (tests / "planted.jsonl").write_text(json.dumps({"question": row["prompt"], "answer": "none"}) + "\n")
        nodes = run(parse_recipe(RECIPE), store, device="cpu", progress=False, tell=lambda line: None)
        yield store, nodes, tests


def _until(last: str):
    names = list(RECIPE["stages"])
    stages = {name: RECIPE["stages"][name] for name in names[: names.index(last) + 1]}
    return parse_recipe({**RECIPE, "stages": stages})


def test_rows_that_a_stage_made_are_trained_on_without_what_was_planted(made) -> None:
    _, nodes, _ = made
    synth, cleaned = nodes["synth"].record.results, nodes["cleaned"].record.results
    assert synth["num_rows"] == cleaned["num_rows"] > 16
    assert cleaned["num_flagged"] >= 1
    rows = (nodes["synth"].folder / synth["files"][0]).read_text().splitlines()
    kept = (nodes["cleaned"].folder / cleaned["files"][0]).read_text().splitlines()
    assert len(kept) == cleaned["num_kept"] == len(rows) - cleaned["num_flagged"]
    assert set(kept) < set(rows)
    assert rows[0] not in kept
    assert nodes["tuned"].record.inputs.keys() == {"base", "synth", "cleaned"}
    assert nodes["tuned"].record.results["num_tokens_seen"] > 0


def test_pairs_of_several_entries_stand_one_after_another_and_are_chunks_by_source(made) -> None:
    _, nodes, _ = made
    pairs = [json.loads(line) for line in (nodes["pairs"].folder / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == nodes["pairs"].record.results["num_pairs"] == 24
    seeds = (nodes["synth"].folder / "seeds.jsonl").read_text().splitlines()
    solutions = {json.loads(line)["solution"] for line in seeds}
    assert all(pair["rejected"] in solutions and pair["chosen"] != pair["rejected"] for pair in pairs)
    chunks = nodes["stepwise"].record.results["chunks"]
    counts = sorted(chunk["num_pairs"] for chunk in chunks)
    assert sum(counts) == nodes["preferred"].record.results["num_pairs"]
    assert counts[0] < 24 < counts[1]  # the math pairs that are not held out, and the recipe's own


def test_an_average_is_the_average_and_a_model_merged_with_itself_is_that_model(made) -> None:
    _, nodes, _ = made
    files = {
        name: load_file(nodes[name].folder / "model.safetensors") for name in ("tuned", "preferred", "average", "same")
    }
    for name, merged in files["average"].items():
        assert (merged - (0.4 * files["tuned"][name] + 0.6 * files["preferred"][name])).abs().max() < 1e-6
        assert (files["same"][name] - files["preferred"][name]).abs().max() < 1e-6
    assert nodes["offsets"].record.results["method"] == "ties"


def test_a_second_run_does_nothing_and_what_changed_data_rebuilds_is_what_reads_them(made) -> None:
    store, nodes, _ = made
    assert {node.state for node in survey(parse_recipe(RECIPE), store).values()} == {"cached"}

    def stale(recipe) -> list[str]:
        return [name for name, node in survey(recipe, store).items() if node.state != "cached"]

    assert stale(changed("synth", samples=3)) == [name for name in nodes if name != "base"]
    assert stale(changed("synth", concurrency=3)) == []
    below = ["preferred", "stepwise", "average", "same", "offsets"]
    assert stale(changed("pairs", variant="swapped")) == ["pairs", *below]
    assert stale(changed("cleaned", rules=["exact", "ngram"])) == ["cleaned", "tuned", *below]
    assert stale(changed("average", weights=[0.5, 0.5])) == ["average"]


def test_other_test_sets_make_the_decontaminated_data_stale(made) -> None:
    store, _, tests = made
    before = (tests / "planted.jsonl").read_text()
    (tests / "planted.jsonl").write_text(before + json.dumps({"question": "another one", "answer": "x"}) + "\n")
    assert survey(parse_recipe(RECIPE), store)["cleaned"].state == "stale"
    (tests / "planted.jsonl").write_text(before)


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        ("data", {"math": {"source": "stage", "stage": "synht"}},
         r"data: the data 'math' are made by 'synht', which is no stage above this one \(did you mean 'synth'"),
        ("data", {"math": {"source": "stage", "stage": "base"}}, "those of 'base', which is of kind import"),
        ("data", {"math": {"source": "stage", "stage": "pairs"}}, "made by 'pairs', which is no stage above this one"),
        ("data", {"all-pairs": {"source": "joined", "parts": ["own-pairs", "pears"]}}, "no data are called 'pears'"),
        ("tuned", {"data": "all-pairs"}, "the data 'all-pairs' are joined, which is for preference pairs"),
        ("cleaned", {"data": "mixed"}, "a mixture, and decontaminate reads one source"),
        ("pairs", {"rows": "base"}, "stage 'base' is of kind import\n.*a synthesize stage"),
        ("pairs", {"rows": "cleaned"}, "stage 'cleaned' is of kind decontaminate"),
        ("tuned", {"model": "synth"}, "stage 'synth' is of kind synthesize"),
        ("synth", {"data": "own-pairs"}, "give exactly one of data, factory"),
        ("synth", {"quotas": {"rephrse": {"asked": 1, "kept": 1}}}, "quotas.rephrse"),
        ("average", {"weights": [0.5]}, r"the weights \[0.5\] do not fit 2 models"),
        ("average", {"method": "ties"}, "ties needs the base"),
        ("average", {"base": "base"}, "linear has no base"),
        ("same", {"models": ["tuned", "preferred", "base"]}, "slerp merges 2 models"),
        ("average", {"models": ["tuned", "nothing"]}, "models: 'nothing' is no stage above this one"),
    ],
)  # fmt: skip
def test_wrong_references_are_told_by_their_path(stage: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){said}"):
        changed(stage, **settings)


def test_settings_know_what_their_libraries_know() -> None:
    assert get_args(MergeStage.model_fields["method"].annotation) == tuple(METHODS)
    assert {name for name, method in METHODS.items() if method.needs_base} == NEED_BASE
    assert get_args(AlignmentStage.model_fields["variant"].annotation) == tuple(VARIANTS)
    assert get_args(get_args(DecontaminateStage.model_fields["rules"].annotation)[0]) == RULES
    assert tuple(SCORES) == PAPER_ROWS


def test_every_kind_has_a_plan() -> None:
    found = {work.stage: work for work in workloads(parse_recipe(RECIPE))}
    assert {name.split(" ")[0] for name in found} == RECIPE["stages"].keys()
    one = found["base"].shape.num_bytes
    assert found["average"].copied_bytes == 3 * one
    assert found["offsets"].copied_bytes == 4 * one
    assert found["synth"].kept_bytes > 0


def test_tokens_behind_a_merge_are_counted_once(made) -> None:
    _, nodes, _ = made
    records = {name: node.record for name, node in nodes.items()}
    own = {name: records[name].results["num_tokens_seen"] for name in ("tuned", "preferred")}
    rows = {}
    for name in ("tuned", "average", "same"):
        loss = {"model": name, "loss": 1.0, "num_tokens": 1, "num_layers": 2, "num_parameters": 1}
        evaluation = records[name].model_copy(update={"results": loss})
        rows[name] = collect_rows([f"{name}-loss"], {**records, f"{name}-loss": evaluation})[0].tokens_seen
    assert rows == {"tuned": own["tuned"], "average": sum(own.values()), "same": sum(own.values())}


def test_scores_that_are_left_out_leave_the_table_out_with_the_reason(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("DEPTHUP_DATA", raising=False)
    monkeypatch.setattr(stages, "score_benchmarks", lambda job, folder: {"scores_left_out": "no network today"})
    scored = {"kind": "evaluate", "model": "base", "tasks": ["winogrande"], "optional": True}
    recipe = parse_recipe({"name": "left", "stages": {
        "base": RECIPE["stages"]["base"], "one": scored, "two": {**scored, "sample": 3},
        "table": {"kind": "compare", "title": "A table", "evaluations": ["one", "two"], "paper": ["SFT v1", None]},
        "page": {"kind": "report", "title": "T", "evaluations": ["one"], "comparisons": ["table"]},
    }})  # fmt: skip
    nodes = run(recipe, Store(tmp_path / "store"), device="cpu", progress=False, tell=lambda line: None)
    assert nodes["table"].record.results == {"title": "A table", "left_out": "no network today"}
    page = (nodes["page"].folder / "index.html").read_text()
    assert "A table" in page
    assert "left out: no network today" in page


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluations": ["loss", "loss"]}, "stage 'loss' scores no benchmarks"),
        ({"evaluations": ["loss"]}, "evaluations"),
        ({"evaluations": ["base", "base"]}, "stage 'base' is of kind import"),
        ({"evaluations": ["scored", "scored"], "paper": ["SFT v5", None]}, "the paper has no row 'SFT v5'"),
        ({"evaluations": ["scored", "scored"], "paper": [None]}, "1 rows of the paper for 2 evaluations"),
        ({"evaluations": ["scored"] * 3, "merged": ["scored"]}, "names the two models that were merged"),
        ({"evaluations": ["scored"] * 2, "merged": ["scored"], "shares": [0.5, 0.4]}, "2 shares for 1 merges"),
        ({"evaluations": ["scored"] * 2, "merged": ["loss"]}, "stage 'loss' scores no benchmarks"),
    ],
)
def test_a_wrong_comparison_is_refused(settings: dict[str, Any], said: str) -> None:
    value = {"name": "x", "stages": {
        "base": RECIPE["stages"]["base"],
        "loss": {"kind": "evaluate", "model": "base", "prompts": ["a"]},
        "scored": {"kind": "evaluate", "model": "base", "suite": "quick"},
        "table": {"kind": "compare", "title": "T", **settings},
    }}  # fmt: skip
    with pytest.raises(RecipeError, match=said):
        parse_recipe(value)


def test_files_below_an_unset_variable_can_be_looked_at_and_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("DEPTHUP_DATA", raising=False)
    value = {"name": "x", "data": {"text": {"source": "files", "paths": ["$DEPTHUP_DATA/pretrain"]}}, "stages": {
        "base": RECIPE["stages"]["base"],
        "loss": {"kind": "evaluate", "model": "base", "data": "text"},
    }}  # fmt: skip
    recipe, store = parse_recipe(value), Store(tmp_path / "store")
    assert survey(recipe, store)["loss"].state == "missing"
    with pytest.raises(DataError, match=r"reads \$DEPTHUP_DATA/pretrain, and DEPTHUP_DATA is not set"):
        run(recipe, store, device="cpu", progress=False, tell=lambda line: None)
