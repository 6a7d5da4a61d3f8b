"""The profile leaderboard-v1 against lm-eval 0.3.0, where its wheel lies unzipped, and against frozen prompts.

0.3.0 (December 2022) draws and writes prompts as the leaderboard's commit b281b09 (June 2023) does, save MMLU and what
ends an answer of GSM8K; those two are held by tests of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import items
import pytest
from evaluation.oracle_030 import CLASSES, number

from depthup.evaluation.harness import prepare
from depthup.evaluation.prepared import PreparedTask
from depthup.evaluation.requests import Answer, Completion, Continuation
from depthup.evaluation.sources import LocalItems
from depthup.evaluation.suites import TASKS

WHEEL = os.environ.get("DEPTHUP_LM_EVAL_030")  # the folder of the unzipped wheel of lm-eval 0.3.0
PROFILE = "leaderboard-v1"

# SHA-256 of every request on the rows of items.py; what 0.3.0 confirmed (MMLU: what harness-0.4 confirms).
FROZEN = {
    "arc_challenge": "04316df9f109a0cd",
    "hellaswag": "5026cb4ca8767351",
    "mmlu": "a17e64c773478c6c",
    "truthfulqa_mc2": "9da18a112baaa714",
    "winogrande": "37f232850743b7d4",
    "gsm8k": "c339bf6039d86ce7",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return items.write(tmp_path_factory.mktemp("items"))


def prepared(name: str, folder: Path, **options: Any) -> PreparedTask:
    (task,) = prepare(name, PROFILE, LocalItems(folder), **options)
    return task


def answers(task: PreparedTask) -> list[Answer]:
    """What the oracle's model gives to the same requests."""
    return [
        f"so\n#### {number(request.context) % 4_000:,}" if isinstance(request, Completion)
        else (-(number(request.context, request.text) % 10_000) / 500 - 0.1 * len(request.text), False)
        for request in task.requests
    ]  # fmt: skip


def compare(asked: dict[str, tuple[dict[str, Any], int | None]], folder: Path, tmp_path: Path) -> None:
    """Prompts and scores of some tasks are those of 0.3.0 on the same rows."""
    assert WHEEL
    rows = {name: (splits, TASKS[name].num_fewshot, limit) for name, (splits, limit) in asked.items()}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = [sys.executable, str(Path(__file__).with_name("oracle_030.py")), WHEEL, str(tmp_path / "rows.json"),
               str(tmp_path / "found.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, theirs in json.loads((tmp_path / "found.json").read_text()).items():
        task = prepared(name, folder, limit=asked[name][1])
        given = iter(theirs["asked"])
        for item in task.items:
            if name == "truthfulqa_mc2":  # 0.3.0 asks the choices of mc1 too
                for _ in item.document["mc1_targets"]["choices"]:
                    next(given)
            for request in item.requests:
                ours = [request.context, request.text] if isinstance(request, Continuation) else [request.context]  # type: ignore[union-attr]
                assert ours == next(given)
        assert next(given, None) is None
        scores, _ = task.score(answers(task))
        for metric in (scores.metric, *scores.others):
            values = scores.values if metric == scores.metric else scores.others[metric]
            assert sum(values) / len(values) == pytest.approx(theirs["results"][metric], abs=1e-12)


@pytest.mark.skipif(not WHEEL, reason="DEPTHUP_LM_EVAL_030 names no unzipped wheel of lm-eval 0.3.0")
@pytest.mark.parametrize("limit", [None, 3])
def test_draws_prompts_and_scores_are_those_of_0_3_0(limit: int | None, folder: Path, tmp_path: Path) -> None:
    made = items.benchmarks()
    compare({name: (made[name], limit) for name in CLASSES}, folder, tmp_path)


@pytest.mark.skipif(not WHEEL, reason="DEPTHUP_LM_EVAL_030 names no unzipped wheel of lm-eval 0.3.0")
def test_without_training_rows_the_draws_are_those_of_0_3_0(tmp_path: Path) -> None:
    made = items.benchmarks()
    rows = {"validation": [*made["hellaswag"]["train"], *made["hellaswag"]["validation"]]}
    folder = items.write(tmp_path / "items", {"hellaswag": rows})
    compare({"hellaswag": (rows, None)}, folder, tmp_path)


@pytest.mark.skipif(not WHEEL, reason="DEPTHUP_LM_EVAL_030 names no unzipped wheel of lm-eval 0.3.0")
def test_real_rows_are_asked_as_0_3_0_asks_them(shared_data: Any, tmp_path: Path) -> None:
    folder = shared_data("arc").parent
    compare({name: (dict(LocalItems(folder).load(name).splits), 5) for name in CLASSES}, folder, tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_requests_are_frozen(name: str, folder: Path) -> None:
    text = "\n".join(map(repr, prepared(name, folder).requests))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == FROZEN[name]


def test_gsm8k_ends_at_a_colon_and_takes_the_first_number(folder: Path) -> None:
    task = prepared("gsm8k", folder)
    request = task.requests[0]
    assert isinstance(request, Completion)
    assert request.stop == (":", "Question:", "Question") and request.max_new_tokens == 256
    gold = [item.document["answer"].rpartition("#### ")[2] for item in task.items]
    assert set(task.score([f"#### {text.replace(',', '')} #### 5" for text in gold])[0].values) == {1.0}
    assert set(task.score([f"#### -1 or {text}" for text in gold])[0].values) == {0.0}
    assert set(task.score(["the answer is 7"] * len(gold))[0].values) == {0.0}


def test_mmlu_is_asked_as_lm_eval_still_does_and_averaged_over_subjects(folder: Path) -> None:
    pytest.importorskip("lm_eval")
    v1 = prepared("mmlu", folder)
    (now,) = prepare("mmlu", source=LocalItems(folder))
    assert sorted(map(repr, v1.requests)) == sorted(map(repr, now.requests))
    assert (v1.weighting, now.weighting) == ("groups", "items")
    rng = random.Random(42)
    order = [row["question"] for row in items.benchmarks()["mmlu"]["test"] if row["subject"] == "anatomy"]
    rng.shuffle(order)
    assert [item.document["question"] for item in v1.items if item.group == "anatomy"] == order


def test_each_score_says_profile_and_what_was_left_out(folder: Path) -> None:
    task = prepared("hellaswag", folder, limit=2)
    scores, samples = task.score([(-1.0, False)] * len(task.requests))
    assert scores.version.startswith("leaderboard-v1") and "b281b09" in scores.version
    assert any("the first 2 of 6 items after a shuffle with seed 42" in note for note in scores.notes)
    assert len(samples) == scores.num_available - 4 == 2
    assert all(f" {sample.target}" in {prompt[1] for prompt in sample.prompts} for sample in samples)
