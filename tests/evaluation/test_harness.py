"""The profile harness-0.4 against lm-eval itself: the same prompts, the same numbers; any other task by its name."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import items
import pico
import pytest
import yaml

from depthup.errors import DepthupError, RecipeError
from depthup.evaluation.compare import compare
from depthup.evaluation.harness import ChatTemplate, prepare, template_of
from depthup.evaluation.prepared import PreparedTask
from depthup.evaluation.requests import Answer, Completion, Continuation, Request
from depthup.evaluation.results import read_results, read_samples, write_results
from depthup.evaluation.scores import ModelScores
from depthup.evaluation.sources import LocalItems
from depthup.evaluation.suites import TASKS, find_suite

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
logging.getLogger("lm_eval").setLevel(logging.ERROR)

SPLIT_KEYS = {"training_split": "train", "validation_split": "validation", "test_split": "test"}


class Hashed:
    """A scorer without a model: its answers are a function of the request alone."""

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Answer:
        number = int.from_bytes(hashlib.sha256(repr(request).encode()).digest()[:4], "big")
        if isinstance(request, Continuation):
            return -(number % 10_000) / 500 - 0.1 * len(request.text), number % 3 == 0
        if isinstance(request, Completion):
            return f"It is {number % 7} and so\n#### {number % 4_000:,}" + "." * (number % 2)
        return -float(number % 1000)


def render(messages: list[dict[str, str]], start: bool) -> str:
    return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + ("<assistant>" if start else "")


CHAT = ChatTemplate("brackets", render)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return items.write(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def stock(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """``stock(name, lm, ...)``: lm-eval's own task, group of subjects included, over the same rows as JSON files."""
    work = tmp_path_factory.mktemp("stock")
    tasks = Path(lm_eval.__file__).parent / "tasks"
    for name, splits in items.benchmarks().items():
        subjects = items.SUBJECTS if name == "mmlu" else ("",)
        for subject in subjects:
            files = {}
            for split, rows in splits.items():
                path = work / f"{name}{subject}-{split}.jsonl"
                items.write_rows(path, [row for row in rows if not subject or row["subject"] == subject])
                files[split] = str(path)
            config = {
                "include": str(tasks / TASKS[name].stock.format(subject=subject)),
                "task": f"mmlu_{subject}" if subject else name, "num_fewshot": TASKS[name].num_fewshot, "tag": None,
                "dataset_path": "json", "dataset_name": None,
                "dataset_kwargs": {"data_files": files, "cache_dir": str(work / "cache")},
                **{key: None for key, split in SPLIT_KEYS.items() if split not in splits},
            }  # fmt: skip
            (work / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    group = {"group": "mmlu", "task": [f"mmlu_{subject}" for subject in items.SUBJECTS],
             "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}  # fmt: skip
    (work / "mmlu.yaml").write_text(yaml.safe_dump(group))

    def evaluate(name: str, lm: Any, **options: Any) -> dict[str, Any]:
        from lm_eval.tasks import TaskManager

        loaded = TaskManager(include_path=str(work), include_defaults=False).load([name])
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(1234)  # as simple_evaluate does
        return lm_eval.evaluate(lm, loaded, bootstrap_iters=0, **options)

    return evaluate


def lm(scorer: Any) -> Any:
    from depthup.evaluation.harness_lm import as_lm

    return as_lm(scorer, CHAT)


def same_as_stock(task: PreparedTask, results: dict[str, Any], answers: list[Answer]) -> None:
    """Every prompt, every item's metric and the task's own number are lm-eval's."""
    scores, samples = task.score(answers)
    assert {scores.metric, *scores.others} == {
        key.removesuffix(",none") for key in results["results"][task.name] if "stderr" not in key
    } - {"name", "alias", "sample_len", "sample_count"}
    for metric in (scores.metric, *scores.others):
        values = scores.values if metric == scores.metric else scores.others[metric]
        name, _, key = metric.partition(",")
        logged = [
            row for rows in results["samples"].values() for row in sorted(rows, key=lambda row: row["doc_id"])
            if row["filter"] == (key or "none")
        ]  # fmt: skip
        if task.name == "mmlu":
            logged = [row for subject in items.SUBJECTS for row in logged if row["doc"]["subject"] == subject]
        assert [float(row[name]) for row in logged] == list(values)
        theirs = results["results"][task.name][f"{name},{key or 'none'}"]
        assert sum(values) / len(values) == pytest.approx(theirs, abs=1e-12)
    asked = [[prompt[:2] for prompt in sample.prompts] for sample in samples]
    if not key:
        assert asked == [[tuple(arguments) for arguments in row["arguments"]] for row in logged]
    else:
        assert [prompts[0][0] for prompts in asked] == [row["arguments"][0][0] for row in logged]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("chat", [None, CHAT], ids=["plain", "chat"])
def test_prompts_and_numbers_are_those_of_lm_eval(
    name: str, limit: int | None, chat: ChatTemplate | None, folder: Path, stock: Callable[..., dict[str, Any]]
) -> None:
    (task,) = prepare(name, source=LocalItems(folder), limit=limit, chat_template=chat, fewshot_as_multiturn=False)
    results = stock(name, lm(Hashed()), limit=limit, apply_chat_template=chat is not None)
    same_as_stock(task, results, Hashed().answer(task.requests))
    assert task.metric == TASKS[name].metric


def test_turns_of_a_chat_are_those_of_lm_eval(folder: Path, stock: Callable[..., dict[str, Any]]) -> None:
    (task,) = prepare("arc_challenge", source=LocalItems(folder), chat_template=CHAT)
    results = stock("arc_challenge", lm(Hashed()), apply_chat_template=True, fewshot_as_multiturn=True)
    same_as_stock(task, results, Hashed().answer(task.requests))
    assert task.requests[0].context.count("<user>") == 26  # type: ignore[union-attr]


def test_a_tokenizers_chat_template_is_used_as_lm_eval_uses_it(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from lm_eval.models.huggingface import HFLM

    tokenizer = pico.tiny_tokenizer(tmp_path)
    messages = [{"role": "system", "content": "of birds"}, {"role": "user", "content": "what?"}]
    open_turn = [*messages, {"role": "assistant", "content": "The best"}]
    plain = tokenizer.chat_template
    for text in (plain, "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + plain):
        tokenizer.chat_template = text
        theirs = HFLM.apply_chat_template
        model = SimpleNamespace(tokenizer=tokenizer, chat_template_args={})
        ours = template_of(tokenizer)
        assert ours(messages) == theirs(model, messages)
        assert ours(open_turn, add_generation_prompt=False) == theirs(model, open_turn, add_generation_prompt=False)
    assert "of birds" not in ours(messages) and ours.name != ChatTemplate("x", render).name
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(RecipeError, match="cannot write an item: never"):
        template_of(tokenizer)(messages[1:])
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="no chat template"):
        template_of(tokenizer)


def test_a_real_model_scores_as_under_lm_eval(
    folder: Path, stock: Callable[..., dict[str, Any]], base: Callable[..., Path]
) -> None:
    from lm_eval.models.huggingface import HFLM

    from depthup.evaluation.harness_lm import LMScorer

    made = base("llama", num_layers=1, tokenizer=True, max_position_embeddings=2048)
    model = HFLM(pretrained=str(made), device="cpu", dtype="float32", batch_size=8)
    for name in ("arc_challenge", "truthfulqa_mc2", "winogrande", "gsm8k"):
        (task,) = prepare(name, source=LocalItems(folder), limit=1)
        same_as_stock(task, stock(name, model, limit=1), LMScorer(model).answer(task.requests))


@pytest.mark.parametrize("name", TASKS)
def test_files_of_both_are_compared_item_by_item(
    name: str, folder: Path, stock: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from lm_eval.loggers import EvaluationTracker

    results = stock(name, lm(Hashed()))
    tracker = EvaluationTracker(output_path=str(tmp_path))
    log = tracker.general_config_tracker.log_experiment_args
    log("dummy", "pretrained=theirs", None, None, fewshot_as_multiturn=True)  # what simple_evaluate writes by default
    samples = results.pop("samples")
    tracker.save_results_aggregated(results | {"lm_eval_version": "0.4.13"}, samples)
    for task_name, lines in samples.items():
        tracker.save_results_samples(task_name, lines)
    theirs = read_results(tmp_path / "theirs")
    (task,) = prepare(name, source=LocalItems(folder))
    scores, ours = task.score(Hashed().answer(task.requests))
    settings = {"chat_template": None, "fewshot_as_multiturn": None, "data": "0123"}
    path = write_results(tmp_path, ModelScores("ours", "f", "tasks", task.profile, (scores,), settings), ours)
    (row,) = compare([read_results(path), theirs], num_draws=50).compared[0]
    assert row.difference.paired and row.verdict == "the same on every item"
    assert [sample.item for sample in read_samples(tmp_path / "theirs", name)] == list(theirs.tasks[0].items)


def test_a_missing_training_split_gives_other_items_of_the_same_split_and_says_so(tmp_path: Path) -> None:
    made = items.benchmarks()
    rows = [*made["hellaswag"].pop("train"), *made["hellaswag"]["validation"]]
    made["hellaswag"]["validation"] = rows
    (task,) = prepare("hellaswag", source=LocalItems(items.write(tmp_path, made)))
    assert any("the examples are other items of the split that is scored" in note for note in task.notes)
    for item in task.items:
        context = item.requests[0].context  # type: ignore[union-attr]
        assert context.count(item.document["query"]) == 1 and context.endswith(item.document["query"])


@pytest.mark.parametrize("name", ["arc_challenge", "mmlu", "hellaswag"])
def test_a_sampled_item_has_the_prompt_that_it_has_among_all(name: str, folder: Path) -> None:
    for profile in ("harness-0.4", "leaderboard-v1"):
        (whole,) = prepare(name, profile, LocalItems(folder))
        (drawn,) = prepare(name, profile, LocalItems(folder), sample=4, seed=3)
        requests = {item.id: item.requests for item in whole.items}
        assert len(drawn.items) == 4 and all(requests[item.id] == item.requests for item in drawn.items)
        assert any("4 of" in note and "seed 3" in note for note in drawn.notes)


def test_samples_are_balanced_over_subjects_and_the_same_for_both_profiles(folder: Path) -> None:
    found = [
        {(item.id, item.group) for item in prepare("mmlu", profile, LocalItems(folder), sample=6)[0].items}
        for profile in ("harness-0.4", "leaderboard-v1")
    ]
    assert found[0] == found[1]
    assert sorted(group for _, group in found[0]) == sorted(2 * items.SUBJECTS)


def test_bits_per_byte_are_of_the_gold_answer(folder: Path) -> None:
    made = items.benchmarks()
    bpb = {task.name: task for task in prepare("bpb", source=LocalItems(folder))}
    gold = {
        "arc_challenge": f" {made['arc_challenge']['test'][0]['choices']['text'][0]}",
        "gsm8k": f" {made['gsm8k']['test'][0]['answer']}",
    }
    row = made["arc_challenge"]["test"][0]
    gold["arc_challenge"] = f" {row['choices']['text'][row['choices']['label'].index(row['answerKey'])]}"
    row = next(row for row in made["mmlu"]["test"] if row["subject"] == "anatomy")
    gold["mmlu"] = f" {row['choices'][row['answer']]}"
    for name, text in gold.items():
        request = bpb[name].requests[0]
        assert isinstance(request, Continuation) and request.text == text
    task = bpb["truthfulqa_mc2"]
    for item in task.items:
        right = item.document["mc2_targets"]
        assert item.requests[0].text[1:] in right["choices"]  # type: ignore[union-attr]
        assert right["labels"][right["choices"].index(item.requests[0].text[1:])] == 1  # type: ignore[union-attr]
    scores, _ = task.score([(-8.0 * 0.6931471805599453, True)] * len(task.requests))
    sizes = [len(request.text.encode()) for request in task.requests]  # type: ignore[union-attr]
    assert list(scores.values) == pytest.approx([8 / size for size in sizes])
    wino = bpb["winogrande"].items[0]
    assert wino.document[f"option{wino.document['answer']}"] in wino.requests[0].context  # type: ignore[union-attr]


def test_scoring_twice_never_mixes_answers(folder: Path) -> None:
    (task,) = prepare("gsm8k", source=LocalItems(folder))
    right = [f"#### {item.document['answer'].rpartition('#### ')[2]}" for item in task.items]
    assert set(task.score(right)[0].values) == {1.0}
    assert set(task.score(["no"] * len(right))[0].values) == {0.0}
    scores, samples = task.score(json.loads(json.dumps(right)))
    assert set(scores.values) == {1.0} and "exact_match,flexible-extract" in scores.others
    assert samples[0].responses == (right[0],) and samples[0].value == 1.0


def test_stock_templates_come_back(folder: Path) -> None:
    from lm_eval import utils

    stock_render = utils.apply_template
    prepare("arc_challenge", source=LocalItems(folder))
    with pytest.raises(DepthupError):
        prepare("arc_challenge", source=LocalItems(folder / "nowhere"))
    assert utils.apply_template is stock_render


@pytest.mark.parametrize(
    ("asked", "options", "says"),
    [
        ("hh6", {}, "did you mean 'h6'"),
        ("quik", {"profile": "leaderboard-v1"}, "has no task 'quik'"),
        ("arc_chalenge", {}, "did you mean 'arc_challenge'"),
        ("h6", {"profile": "leaderboard"}, "did you mean 'leaderboard-v1'"),
        ("piqa", {"profile": "leaderboard-v1"}, "has no task 'piqa'"),
        ("h6", {"profile": "leaderboard-v1", "chat_template": CHAT}, "never gave"),
        ("bpb", {"profile": "leaderboard-v1"}, "knows no bits per byte"),
        ("h6", {"limit": 0}, "limit is 0"),
        ("h6", {"limit": 3, "sample": 3}, "one of them"),
        (" , ", {}, "no task is named"),
    ],
)
def test_bad_asking_names_what_is_allowed(
    asked: str, options: dict[str, Any], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from depthup.evaluation import harness_tasks

    monkeypatch.setattr(harness_tasks, "_written", lambda: b"task: arc_easy\ngroup: 'piqa'")
    monkeypatch.setattr(harness_tasks, "known_names", lambda: ["arc_easy", "piqa"])
    with pytest.raises(RecipeError, match=says):
        prepare(asked, source=LocalItems(folder), **options)


def test_the_quick_suite_states_its_sizes() -> None:
    suite = find_suite("quick")
    assert suite.sample["mmlu"] == 2 * 57 and "100 items" in suite.about and suite.sample["arc_challenge"] == 100
