"""Building the prompts of the six tasks: depthup's `prepare` against lm-eval's `build_all_requests`, items a second.

    python benchmarks/prompts.py DATA_DIR --json docs/results/prompts.json

Both build from lm-eval's own tasks over the same rows in memory (lm-eval's in a `datasets.Dataset`, as it has them from
the hub); what is loaded once is not counted. They take turns, the median of the rounds counts, and every request is
compared. Needs the extra `eval`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # lm-eval draws a bar for each task
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))


def measure(folder: Path, num_items: int = 100, num_rounds: int = 3) -> list[dict[str, Any]]:
    """One row a task: items a second of both, and their ratio.

    Args:
        folder: Benchmarks in the layout of docs/benchmark-data.md.
        num_items: Items of each task; of MMLU at least one of each subject.
        num_rounds: Rounds, whose median counts.
    """
    from depthup.evaluation.harness_templates import quiet
    from depthup.evaluation.prepared import Choice
    from depthup.evaluation.sources import LocalItems
    from depthup.evaluation.suites import TASKS

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    found = []
    for name, spec in TASKS.items():
        benchmark = LocalItems(folder).load(name)
        rows = benchmark.splits[benchmark.scored]
        kept = rows[:num_items]
        if name == "mmlu":
            parts = benchmark.by_subject().values()
            kept = [row for part in parts for row in part.splits["test"][: max(1, num_items // len(parts))]]
        cut = replace(benchmark, splits={**benchmark.splits, benchmark.scored: kept})
        seconds: dict[str, list[float]] = {"lm-eval": [], "depthup": []}
        for number in range(num_rounds):
            built = {}
            for tool in ("lm-eval", "depthup") if number % 2 else ("depthup", "lm-eval"):
                with quiet():
                    build = (stock if tool == "lm-eval" else ours)(spec, cut, Choice())
                    begin = time.perf_counter()
                    built[tool] = build()
                    seconds[tool].append(time.perf_counter() - begin)
            theirs = [tuple(map(str, instance.args[:1])) for task in built["lm-eval"] for instance in task.instances]
            if theirs != [(request.context,) for request in built["depthup"].requests]:
                raise SystemExit(f"{name}: the two do not build the same prompts")
        medians = {tool: statistics.median(times) for tool, times in seconds.items()}
        found.append({
            "task": name, "items": len(kept), "examples": spec.num_fewshot, "seconds": seconds,
            "items_per_second": {tool: len(kept) / median for tool, median in medians.items()},
            "ratio": medians["lm-eval"] / medians["depthup"],
            "seconds_of_all_items": {tool: median / len(kept) * len(rows) for tool, median in medians.items()},
        })  # fmt: skip
    return found


def ours(spec: Any, benchmark: Any, choice: Any) -> Callable[[], Any]:
    """What builds the prompts of a task as depthup does."""
    from depthup.evaluation.harness_tasks import prepare_parts, stock_parts

    parts = stock_parts(spec, benchmark)
    return lambda: prepare_parts(spec.name, parts, spec.metric, choice)


def stock(spec: Any, benchmark: Any, choice: Any) -> Callable[[], Any]:
    """What builds them as lm-eval does."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    from depthup.evaluation.harness_tasks import FEWSHOT_SEED, stock_config

    made = []
    for name, part in (benchmark.by_subject() if spec.name == "mmlu" else {"": benchmark}).items():
        held = {split: datasets.Dataset.from_list(rows) for split, rows in part.splits.items()}
        task = ConfigurableTask(config=stock_config(spec, name, held))
        task.set_fewshot_seed(FEWSHOT_SEED)
        made.append(task)

    def build() -> list[Any]:
        for task in made:
            task.build_all_requests(limit=choice.limit, rank=0, world_size=1)
        return made

    return build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="benchmarks, as --data-dir takes them")
    parser.add_argument("--items", type=int, default=100, help="items of each task (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, whose median counts (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    found = measure(options.folder, options.items, options.rounds)
    print(f"{'task':16} {'lm-eval':>12} {'depthup':>12} {'ratio':>8}")
    for row in found:
        rates = row["items_per_second"]
        print(f"{row['task']:16} {rates['lm-eval']:10.0f}/s {rates['depthup']:10.0f}/s {row['ratio']:7.1f}x")
    whole = {tool: sum(row["seconds_of_all_items"][tool] for row in found) for tool in ("lm-eval", "depthup")}
    print(f"all items of the six: {whole['lm-eval']:.0f} s, {whole['depthup']:.1f} s,"
          f" {whole['lm-eval'] / whole['depthup']:.1f}x")  # fmt: skip
    if options.json:
        shown = [Path(word).name if Path(word).exists() else word for word in sys.argv[1:]]
        figures = {"command": " ".join(["python", "benchmarks/prompts.py", *shown]), "tasks": found,
                   "seconds_of_all_items": whole, "machine": platform.processor() or platform.machine(),
                   "cores": os.cpu_count(), "python": platform.python_version(),
                   "lm_eval": version("lm_eval"), "datasets": version("datasets")}  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
