"""Run by test_leaderboard.py in an interpreter of its own: lm-eval 0.3.0's task classes and evaluator over given rows.

``python oracle_030.py FOLDER ROWS OUT``: FOLDER holds the unzipped wheel. Its tasks are taken one by one, and what they
do not need of its many imports is stood in for.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

CLASSES = {
    "arc_challenge": ("arc", "ARCChallenge"),
    "hellaswag": ("hellaswag", "HellaSwag"),
    "truthfulqa_mc2": ("truthfulqa", "TruthfulQAMultipleChoice"),
    "winogrande": ("winogrande", "Winogrande"),
    "gsm8k": ("gsm8k", "GradeSchoolMath8K"),
}


def number(*asked: Any) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(asked).encode()).digest()[:4], "big")


class Model:
    """Answers are a function of context and continuation; what is asked is kept."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self.asked += [list(request) for request in requests]
        return [(-(number(*request) % 10_000) / 500 - 0.1 * len(request[1]), False) for request in requests]

    def greedy_until(self, requests: list[Any]) -> list[str]:
        self.asked += [[request[0]] for request in requests]
        return [f"so\n#### {number(request[0]) % 4_000:,}" for request in requests]


def main(folder: str, rows: str, out: str) -> None:
    sys.path.insert(0, folder)
    package = types.ModuleType("lm_eval.tasks")
    package.__path__ = [str(Path(folder) / "lm_eval" / "tasks")]  # its own __init__ imports two hundred tasks
    sys.modules["lm_eval.tasks"] = package
    sys.modules["lm_eval.models"] = types.ModuleType("lm_eval.models")
    evaluator = importlib.import_module("lm_eval.evaluator")
    found = {}
    for task, (splits, num_fewshot, limit) in json.loads(Path(rows).read_text()).items():
        module, name = CLASSES[task]
        made = getattr(importlib.import_module(f"lm_eval.tasks.{module}"), name)
        if task == "hellaswag" and "train" not in splits:
            made.has_training_docs = lambda self: False
        made.download = lambda self, *_, splits=splits, **__: setattr(self, "dataset", splits)
        model = Model()
        results = evaluator.evaluate(model, {task: made()}, num_fewshot=num_fewshot, limit=limit, bootstrap_iters=0)
        found[task] = {"asked": model.asked, "results": results["results"][task]}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
