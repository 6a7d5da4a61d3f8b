"""Promise of speed: the six tasks are scored several times faster than by lm-evaluation-harness with its HF backend.

Both build the prompts of the same items and answer them with the same model in one process: depthup's `prepare` and
`LocalScorer`; lm-eval's `build_all_requests` and `HFLM` at each batch size, of which the fastest counts. Loading of
model and rows is not counted. On a CPU the clock is the processor time of the process, which other load on the machine
does not stretch. Log-likelihoods and texts are compared, too.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, machine, say

sys.path.insert(0, str(REPOSITORY))
from prompts import ours, stock

EXAMPLES = """examples:
  python benchmarks/evaluation.py smollm2 --data-dir data --limit 4 --json docs/results/evaluation.json
  python benchmarks/evaluation.py smollm2 --data-dir data --device cuda --limit 200 --batch-sizes 8 32
"""
MMLU_SUBJECT = "anatomy"  # its items share their examples, as those of every subject do
MORE_ITEMS = {"mmlu": 12, "truthfulqa_mc2": 4}  # as many of their items share a beginning


@dataclass
class Figures:
    """Seconds of both for one task: to build its prompts, and to answer them, by tool."""

    num_items: int
    build: dict[str, float]
    answer: dict[str, float]
    worst: float  # largest difference of a log-likelihood
    alike: str  # texts that are the same, of all

    def of(self, tool: str) -> float:
        return self.build["depthup" if tool == "depthup" else "lm-eval"] + self.answer[tool]

    def best_peer(self) -> str:
        return min((tool for tool in self.answer if tool != "depthup"), key=self.of)


def measured(
    name: str, data: Path, limit: int, tools: dict[str, Callable[[Any], list[Any]]], clock: Callable[[], float]
) -> Figures:
    """Build and answer the first items of a task with every tool."""
    from depthup.evaluation.harness_templates import quiet
    from depthup.evaluation.prepared import Choice
    from depthup.evaluation.sources import LocalItems
    from depthup.evaluation.suites import TASKS

    spec, benchmark = TASKS[name], LocalItems(data).load(name)
    if name == "mmlu":
        benchmark = replace(benchmark, splits={
            split: [row for row in rows if row["subject"] == MMLU_SUBJECT] for split, rows in benchmark.splits.items()
        })  # fmt: skip
    choice = Choice(limit=limit * MORE_ITEMS.get(name, 1))
    build: dict[str, float] = {}
    prepared: Any = None
    for tool, make in (("lm-eval", stock), ("depthup", ours)):
        with quiet():
            run = make(spec, benchmark, choice)
            started = clock()
            prepared = run()
            build[tool] = clock() - started
    answers, answer = {}, {}
    for tool, ask in tools.items():
        started = clock()
        answers[tool] = ask(prepared.requests)
        answer[tool] = clock() - started
        say(f"  {name}: {tool} {answer[tool]:.1f} s")
    mine = answers["depthup"]
    others = [theirs for tool, theirs in answers.items() if tool != "depthup"]
    if isinstance(mine[0], str):
        same = sum(one == other for one, other in zip(mine, others[0], strict=True))
        return Figures(len(prepared.items), build, answer, 0.0, f"{same} of {len(mine)}")
    worst = max(abs(one[0] - two[0]) for theirs in others for one, two in zip(mine, theirs, strict=True))
    return Figures(len(prepared.items), build, answer, worst, "")


def tools_of(options: argparse.Namespace) -> dict[str, Callable[[Any], list[Any]]]:
    """depthup's scorer and lm-eval's at each batch size, over one loaded model."""
    from lm_eval.models.huggingface import HFLM

    from depthup.evaluation.harness_lm import LMScorer
    from depthup.evaluation.requests import Continuation
    from depthup.evaluation.scorer import LocalScorer
    from depthup.models import load_model, load_tokenizer

    model, tokenizer = load_model(options.model, options.device, options.dtype), load_tokenizer(options.model)
    tools: dict[str, Callable[[Any], list[Any]]] = {"depthup": LocalScorer(model, tokenizer).answer}
    for size in options.batch_sizes:
        tools[f"lm-eval, batch {size}"] = LMScorer(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)).answer
    for ask in tools.values():
        ask([Continuation("A short text", " to warm up"), Continuation("A short text", " once")])
    return tools


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with arc/, hellaswag/, mmlu/ ...")
    parser.add_argument("--tasks", nargs="+", help="what to score (all six)")
    parser.add_argument(
        "--limit", type=int, default=4, help="items of each task; of TruthfulQA 4, of MMLU 12 times (4)"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="of lm-eval (1 8)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, after each task")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                   "TQDM_DISABLE": "1"}  # fmt: skip
    logging.disable(logging.WARNING)
    from depthup.evaluation.suites import H6

    clock = time.process_time if options.device == "cpu" else time.perf_counter
    tools = tools_of(options)
    found: dict[str, Figures] = {}
    for name in options.tasks or H6:
        found[name] = one = measured(name, options.data_dir, options.limit, tools, clock)
        peer = one.best_peer()
        what = f"texts alike: {one.alike}" if one.alike else f"log-likelihoods at most {one.worst:.0e} apart"
        say(f"{name:16} {one.num_items:3} items  {one.of('depthup'):7.1f} s  {peer} {one.of(peer):7.1f} s"
            f"  {one.of(peer) / one.of('depthup'):5.2f} times  {what}")  # fmt: skip
        if options.json:
            options.json.write_text(json.dumps(as_json(options, found), indent=1) + "\n")
    say(f"all: {ratio_of_all(found):.2f} times; weighted by all items of each task: {ratio_of_suite(found):.2f} times")


def ratio_of_all(found: dict[str, Figures]) -> float:
    """Over the items that were asked."""
    return sum(one.of(one.best_peer()) for one in found.values()) / sum(one.of("depthup") for one in found.values())


def ratio_of_suite(found: dict[str, Figures]) -> float:
    """Over all items of the tasks, at the seconds an item that were measured."""
    from depthup.evaluation.suites import TASKS

    weights = {name: TASKS[name].num_items / one.num_items for name, one in found.items()}
    theirs = sum(weights[name] * one.of(one.best_peer()) for name, one in found.items())
    return theirs / sum(weights[name] * one.of("depthup") for name, one in found.items())


def as_json(options: argparse.Namespace, found: dict[str, Figures]) -> dict[str, Any]:
    versions = {name: version(name) for name in ("torch", "transformers", "lm-eval", "depthup")}
    shown = [Path(word).name if Path(word).exists() else word for word in sys.argv[1:]]
    return {
        "benchmark": "evaluation", "command": "python benchmarks/evaluation.py " + " ".join(shown),
        "machine": machine(Path(".")), "versions": {**versions, "python": platform.python_version()},
        "device": options.device, "dtype": options.dtype,
        "clock": "processor time" if options.device == "cpu" else "wall time",
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "tasks": {
            name: {
                "items": one.num_items, "build_seconds": one.build, "answer_seconds": one.answer,
                "ratio_build": one.build["lm-eval"] / one.build["depthup"],
                "ratio_answer": one.answer[one.best_peer()] / one.answer["depthup"],
                "ratio": one.of(one.best_peer()) / one.of("depthup"),
                "largest_difference": one.worst, "texts_alike": one.alike,
            } for name, one in found.items()
        },
        "ratio_of_all": ratio_of_all(found), "ratio_weighted_by_all_items": ratio_of_suite(found),
    }  # fmt: skip


if __name__ == "__main__":
    main()
