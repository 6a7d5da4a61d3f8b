"""A scorer as a model of lm-eval and back, and lm-eval's other tasks by their names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import items
import pytest
import yaml
from evaluation.test_harness import CHAT, Hashed

from depthup.errors import RecipeError
from depthup.evaluation.harness import prepare
from depthup.evaluation.requests import Completion, Continuation, Request, Whole

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
logging.getLogger("lm_eval").setLevel(logging.ERROR)

REQUESTS: tuple[Request, ...] = (
    Whole("all of it"), Completion("so", ("\n", "Q:"), 7), Continuation("a", " b"), Completion("then", (), 5),
    Continuation("", "c"),
)  # fmt: skip


def test_round_trip() -> None:
    from depthup.evaluation.harness_lm import LMScorer, as_lm

    told = {}
    answers = LMScorer(as_lm(Hashed())).answer(REQUESTS, told.__setitem__)
    assert answers == Hashed().answer(REQUESTS) == [told[index] for index in range(len(REQUESTS))]


def test_chat_template_is_the_one_given() -> None:
    from depthup.evaluation.harness_lm import as_lm

    model = as_lm(Hashed(), CHAT)
    messages = [{"role": "user", "content": "hi"}]
    assert model.apply_chat_template(messages) == "<user>hi</><assistant>"
    assert model.apply_chat_template(messages, add_generation_prompt=False) == "<user>hi</>"
    assert model.tokenizer_name == model.chat_template(True) == "brackets"
    with pytest.raises(RecipeError, match="this scorer has none"):
        as_lm(Hashed()).apply_chat_template(messages)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"do_sample": True, "temperature": 0.7}, "draws its text at random"),
        ({"num_beams": 4}, "one beam"),
        ({"until": ["x"], "penalty": 2}, "asks for generation with penalty"),
    ],
)
def test_what_is_not_greedy_is_refused(options: dict[str, Any], says: str) -> None:
    from depthup.evaluation.harness_tasks import completion

    with pytest.raises(RecipeError, match=says):
        completion("t", "context", options)


def test_options_of_generation_are_read_as_lm_eval_reads_them() -> None:
    from depthup.evaluation.harness_tasks import completion

    assert completion("t", "c", {"until": "\n\n", "temperature": 0.0}) == Completion("c", ("\n\n",), 256)
    assert completion("t", "c", {"until": [], "max_gen_toks": 9, "do_sample": False}) == Completion("c", (), 9)


@pytest.fixture
def stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """lm-eval's index with four tasks of our own making, so that no test waits for its thousands."""
    from lm_eval.tasks import TaskManager

    from depthup.evaluation import harness_tasks

    made = items.benchmarks()
    splits = {}
    for split, rows in made["arc_challenge"].items():
        splits[split] = str(tmp_path / f"{split}.jsonl")
        items.write_rows(tmp_path / f"{split}.jsonl", rows)
    tasks = Path(lm_eval.__file__).parent / "tasks"
    data = {"dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": splits, "cache_dir": str(tmp_path / "cache")}}  # fmt: skip
    easy = {"include": str(tasks / "arc/arc_easy.yaml"), "tag": None, "validation_split": None, **data}
    texts = {"output_type": "loglikelihood_rolling", "test_split": "test", "doc_to_text": "",
             "metadata": {"version": 1}, "doc_to_target": "{{question}}", **data,
             "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity",
                              "higher_is_better": False}]}  # fmt: skip
    for config in (
        {**easy, "task": "first"}, {**easy, "task": "second", "num_fewshot": 2}, {**texts, "task": "texts"},
        {"group": "both", "task": ["first", "second"],
         "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}]},
    ):  # fmt: skip
        (tmp_path / f"{config.get('task', 'both') if 'group' not in config else 'both'}.yaml").write_text(
            yaml.safe_dump(config)
        )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "_manager", lambda: manager)
    written = b"\n".join(path.read_bytes() for path in tmp_path.glob("*.yaml"))
    monkeypatch.setattr(harness_tasks, "_written", lambda: written)
    return tmp_path


def test_other_tasks_of_lm_eval_by_name(stock: Path) -> None:
    from lm_eval.tasks import TaskManager

    from depthup.evaluation.harness_lm import as_lm

    second, both = prepare("second,both", limit=3)
    loaded = TaskManager(include_path=str(stock), include_defaults=False).load(["second"])
    loaded["tasks"]["second"].set_fewshot_seed(1234)
    results = lm_eval.evaluate(as_lm(Hashed()), loaded, limit=3, bootstrap_iters=0)
    scores, _ = second.score(Hashed().answer(second.requests))
    assert (scores.metric, scores.num_fewshot, scores.num_available) == ("acc", 2, 6)
    assert sum(scores.values) / 3 == pytest.approx(results["results"]["second"]["acc,none"])
    assert [row["acc"] for row in results["samples"]["second"]] == list(scores.values)
    assert both.weighting == "groups" and {item.group for item in both.items} == {"first", "second"}


def test_a_task_without_a_number_an_item_is_refused(stock: Path) -> None:
    with pytest.raises(RecipeError, match="no metric that is a number an item: word_perplexity"):
        prepare("texts")


def test_an_unknown_task_names_the_nearest(stock: Path) -> None:
    with pytest.raises(RecipeError, match=r"no task 'secnd' .did you mean 'second'"):
        prepare("secnd")


def test_a_task_that_cannot_load_says_why(stock: Path) -> None:
    (stock / "test.jsonl").unlink()
    with pytest.raises(Exception, match="lm-eval cannot load the task 'first'"):
        prepare("first")
