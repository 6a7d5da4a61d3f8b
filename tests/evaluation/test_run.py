"""A model through a suite, from the command line and in a recipe: kept answers, resumed runs, samples, files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import items
import pico
import pytest

from depthup.artifacts.store import Store
from depthup.cli import main
from depthup.errors import DataError, RecipeError
from depthup.evaluation import run as run_module
from depthup.evaluation.results import read_results
from depthup.evaluation.run import Place, Questions, Reader
from depthup.evaluation.scorer import LocalScorer
from depthup.generation.mock import MockBackend
from depthup.pipeline import run
from depthup.recipe import load_recipe

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TASKS = "mmlu,truthfulqa_mc2,gsm8k"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return items.write(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    for seed in range(2):
        pico.checkpoint(
            root / f"m{seed}", "llama", num_layers=1, seed=seed, tokenizer=True, max_position_embeddings=4096
        )
    return [root / "m0", root / "m1"]


def test_a_stopped_run_asks_only_what_is_missing(
    data: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = Questions(TASKS.split(","), data_dir=data, limit=2)
    plain, _ = Reader(questions, Place("cpu")).read("m0", models[0], "f0")

    told: list[int] = []
    answer = LocalScorer.answer

    def stops(self, requests, done=None):
        def counted(index, one):
            if len(told) == 25:
                raise KeyboardInterrupt
            told.append(index)
            done(index, one)

        return answer(self, requests, counted)

    monkeypatch.setattr(LocalScorer, "answer", stops)
    with pytest.raises(KeyboardInterrupt):
        Reader(questions, Place("cpu"), tmp_path).read("m0", models[0], "f0")
    num_before = len(told)
    told.append(-1)  # never 25 again
    resumed, samples = Reader(questions, Place("cpu"), tmp_path).read("m0", models[0], "f0")
    num_requests = len({request for task in questions.prepare() for request in task.requests})
    assert num_before == 25 and len(told) - 1 == num_requests
    assert [task.values for task in resumed.tasks] == [pytest.approx(task.values) for task in plain.tasks]
    assert len(samples) == sum(len(task.items) for task in plain.tasks)
    monkeypatch.setattr(run_module, "load_scorer", lambda *a, **k: pytest.fail("all is known: no model is loaded"))
    again, _ = Reader(questions, Place("cpu"), tmp_path).read("m0", models[0], "f0")
    assert again.tasks == resumed.tasks
    other = Reader(questions, Place("cpu"), tmp_path)
    with pytest.raises(pytest.fail.Exception, match="no model is loaded"):
        other.read("m1", models[1], "f1")  # another model's answers are not taken


def test_the_command_line_scores_compares_and_shows(
    data: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    how = ["--tasks", "winogrande,gsm8k", "--data-dir", str(data), "--out", out, "--device", "cpu"]
    figure = ["--figure", str(tmp_path / "scores.svg"), "--card", str(tmp_path / "card")]
    assert main(["evaluate", *map(str, models), *how, *figure]) == 0
    said = capsys.readouterr()
    assert "WinoGrande" in said.out and "harness-0.4" in said.out and "verdict" in said.out
    assert (tmp_path / "scores.svg").read_text().startswith("<svg")
    cards = sorted((tmp_path / "card").rglob("README.md"))
    assert len(cards) == 2 and "model-index" in cards[0].read_text()
    assert list((tmp_path / "card").rglob(".eval_results/*.yaml"))
    assert main(["evaluate", "--show", "2", "--task", "gsm8k", "--wrong", "--out", out]) == 0
    said = capsys.readouterr()
    assert said.out.count("── gsm8k · item") == 4 and "right answer" in said.out
    found = sorted(Path(out).glob("*/results_*.json"))
    assert main(["compare", *map(str, found)]) == 0
    form = json.loads(found[0].read_text())
    assert "exact_match,strict-match" in form["results"]["gsm8k"]
    assert main(["evaluate", str(models[0]), "--text", str(data / "gsm8k/train.jsonl"), "--out", out]) == 2
    assert "field" in capsys.readouterr().err
    text = tmp_path / "held.txt"
    text.write_text("A page of plain words.\n" * 20)
    assert main(["evaluate", str(models[0]), "--text", str(text), "--out", out, "--device", "cpu"]) == 0
    assert "bits_per_byte" in capsys.readouterr().out.replace(" ", "_")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model is given"),
        (["M", "--wrong"], "--wrong without --show"),
        (["M", "--suite", "h7"], "allowed: h6, quick, bpb"),
        (["M", "--tasks", "arc_chalenge", "--data-dir", "D"], "arc_challenge"),
        (["M", "--suite", "h6", "--tasks", "gsm8k"], "both given"),
        (["M", "--profile", "leaderboard"], "leaderboard-v1"),
        (["M", "--limit", "0", "--data-dir", "D"], "limit is 0"),
        (["M", "--suite", "h6", "--data-dir", "nowhere"], "has no arc"),
        (["M", "--tasks", "winogrande", "--fewshot-as-one-turn", "--data-dir", "D"], "add --chat-template"),
        (["M", "--tasks", "winogrande", "--max-length", "0", "--data-dir", "D"], "--max-length is 0"),
        (["M", "--tasks", "winogrande", "--batch-tokens", "-4", "--data-dir", "D"], "--batch-tokens is -4"),
        (["M", "--tasks", "winogrande", "--data-dir", "D", "--out", "D/gsm8k/train.jsonl"], "choose another folder"),
        (["--show", "3"], "--task"),
    ],
)
def test_bad_requests_are_told(
    data: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    places = {"M": str(models[0]), "D": str(data), "D/gsm8k/train.jsonl": str(data / "gsm8k/train.jsonl")}
    assert main(["evaluate", "--out", str(tmp_path), *[places.get(one, one) for one in arguments]]) == 2
    assert said in capsys.readouterr().err


def test_a_model_without_a_chat_template_is_told(
    data: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(models[0], plain)
    (plain / "chat_template.jinja").unlink()
    how = ["--tasks", "winogrande", "--data-dir", str(data), "--chat-template", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(plain), *how]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_a_single_item_is_scored_and_what_cannot_be_written_is_told_last(
    data: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--tasks", "winogrande", "--data-dir", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["evaluate", *map(str, models), *how, "--limit", "1"]) == 0
    said = capsys.readouterr().out
    assert "note: not compared" in said and "note: WinoGrande: the first 1 of 6" in said
    (tmp_path / "file").write_text("")
    for option in ("--card", "--figure"):
        assert main(["evaluate", *map(str, models), *how, option, str(tmp_path / "file/x")]) == 2
        said = capsys.readouterr()
        assert "verdict" in said.out and "choose another" in said.err and ".tmp" not in said.err
    bits = ["--suite", "bpb", "--limit", "1", "--figure", str(tmp_path / "bits.svg")]
    assert main(["evaluate", str(models[0]), *how[2:], *bits]) == 2
    said = capsys.readouterr()
    assert "points" not in said.out and "nothing to draw" in said.err and not (tmp_path / "bits.svg").exists()


def test_a_text_with_the_name_of_a_task_is_refused(data: Path, tmp_path: Path) -> None:
    """Their files of samples would be one, and their scores one row."""
    (tmp_path / "winogrande.txt").write_text("A page of plain words.")
    questions = Questions(["winogrande"], data_dir=data, texts=(str(tmp_path / "winogrande.txt"),))
    with pytest.raises(RecipeError, match="winogrande would be there twice"):
        questions.prepare()


def test_a_models_processes_end_with_it(data: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next model finds the memory of the devices taken."""
    closed = []

    class Several:
        def answer(self, requests, done=None):
            return [(-1.0, False)] * len(requests)

        def close(self):
            closed.append(self)

    monkeypatch.setattr(run_module, "load_scorer", lambda *a, **k: Several())
    reader = Reader(Questions(["winogrande"], data_dir=data, limit=1), Place("cpu"))
    for number, model in enumerate(models, 1):
        reader.read("m", model, f"f{number}")
        assert len(closed) == number


def test_text_of_another_model_behind_the_same_name_is_asked_anew(
    data: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server at one address may come to serve another model: its answers are then not those that are kept."""
    how = ["--tasks", "gsm8k", "--data-dir", str(data), "--out", str(tmp_path), "--backend", "mock:echo"]
    asked: list[str] = []
    served = ["one"]

    def opened(spec: str, **options: object) -> MockBackend:
        return MockBackend(lambda prompt, sampling: asked.append(served[-1]) or "#### 1", f"server:{served[-1]}")

    monkeypatch.setattr("depthup.generation.backend.open_backend", opened)
    for name in ("one", "two", "two"):
        served.append(name)
        assert main(["evaluate", str(models[0]), *how]) == 0
    assert asked == ["one"] * 5 + ["two"] * 5


def test_a_recipe_scores_its_models_and_the_page_shows_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHUP_DATA", str(data))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("""
name: scored
stages:
  base: {kind: import, random: {num_layers: 4, hidden_size: 32}}
  target: {kind: upscale, base: base, remove: 1}
  base-scores: &scores {kind: evaluate, model: base, tasks: [winogrande, truthfulqa_mc2], sample: 4}
  target-scores: {<<: *scores, model: target}
  page: {kind: report, title: Scores, evaluations: [base-scores, target-scores]}
""")
    store = Store(tmp_path / "runs")
    nodes = run(load_recipe(recipe), store, device="cpu", progress=False, tell=lambda text: None)
    page = (store.folder("page", nodes["page"].fingerprint) / "index.html").read_text()
    assert "WinoGrande" in page and "TruthfulQA" in page
    scores = read_results(store.folder("target-scores", nodes["target-scores"].fingerprint) / "scores")
    assert [len(task.values) for task in scores.tasks] == [4, 4]
    items.write(data, {**items.benchmarks(), "winogrande": items.benchmarks(seed=5)["winogrande"]})
    again = run(load_recipe(recipe), store, device="cpu", progress=False, tell=lambda text: None)
    assert again["base-scores"].fingerprint != nodes["base-scores"].fingerprint
    assert again["target"].fingerprint == nodes["target"].fingerprint


@pytest.mark.parametrize("out_of_reach", [True, False])
def test_optional_scores_are_left_out_where_there_are_no_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out_of_reach: bool
) -> None:
    monkeypatch.delenv("DEPTHUP_DATA", raising=False)

    def offline(self, task):
        raise DataError("cannot read it from the hub: no network")

    monkeypatch.setattr("depthup.evaluation.sources.HubItems.load", offline)
    monkeypatch.setattr("depthup.score_stage._hub_is_out_of_reach", lambda: out_of_reach)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("""
name: left
stages:
  base: {kind: import, random: {num_layers: 4, hidden_size: 32}}
  scores: {kind: evaluate, model: base, suite: quick, optional: true}
""")
    store = Store(tmp_path / "runs")
    nodes = run(load_recipe(recipe), store, device="cpu", progress=False, tell=lambda text: None)
    record = store.find("scores", nodes["scores"].fingerprint)
    assert (
        record is not None and ("out of reach" if out_of_reach else "no network") in record.results["scores_left_out"]
    )
