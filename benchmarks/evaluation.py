"""Promise of speed: the scorer answers real items several times faster than lm-evaluation-harness's own HF backend.

Peer in the same run and process, on the same requests: lm-eval's ``HFLM`` at batch sizes 1 and 8, of which the faster
counts. On a CPU the clock is the processor time of the process, which other load on the machine does not stretch.
Log-likelihoods are compared, too. Prompts come from lm-eval's stock tasks over local files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from measuring import machine, say

EXAMPLES = """examples:
  python benchmarks/evaluation.py smollm2 --data-dir ../shared/data --limit 4 --json docs/results/evaluation.json
  python benchmarks/evaluation.py smollm2 --data-dir data --device cuda --limit 200 --batch-sizes 8 32
"""
# task -> (stock file, worked examples, split of the items, split of the examples). MMLU gets more items, as many of its
# items share their examples; they are of one subject, which has 135.
MORE_ITEMS = {"mmlu": 12}
TASKS: dict[str, tuple[str, int, str, str | None]] = {
    "arc_challenge": ("arc/arc_challenge.yaml", 25, "test", "train"),
    "hellaswag": ("hellaswag/hellaswag.yaml", 10, "validation", "train"),
    "mmlu": ("mmlu/default/mmlu_anatomy.yaml", 5, "test", "dev"),
    "truthfulqa": ("truthfulqa/truthfulqa_mc2.yaml", 0, "validation", None),
    "winogrande": ("winogrande/default.yaml", 5, "validation", "train"),
}


def rows_of(task: str, split: str, data: Path, num_items: int) -> Iterator[dict[str, Any]]:
    """The first rows of a split, with the fields of the hub's data sets."""
    if task == "arc_challenge":
        for row in read(data / f"arc/arc_challenge_{split}.jsonl"):
            labels = ["A", "B", "C", "D", "E"][: len(row["choices"])]
            choices = {"text": row["choices"], "label": labels}
            yield {"question": row["question"], "choices": choices, "answerKey": labels[row["answer"]]}
    elif task == "hellaswag":  # the examples are other rows of validation: the training split is not at hand
        rows = list(read(data / "hellaswag/validation.jsonl.gz"))
        for row in rows[:num_items] if split == "validation" else rows[-1000:]:
            activity, colon, context = row["query"].rpartition(": ")
            yield {"activity_label": activity, "ctx_a": context if colon else row["query"], "ctx_b": "",
                   "endings": row["endings"], "label": str(row["label"])}  # fmt: skip
    elif task == "mmlu":
        for row in read(data / f"mmlu/{split}.jsonl{'.gz' if split == 'test' else ''}"):
            if row["subject"] == "anatomy":
                yield {**row, "answer": "ABCD".index(row["answer"])}
    elif task == "truthfulqa":
        for row in json.loads((data / "truthfulqa/mc_task.json").read_text()):
            yield {"question": row["question"], **{
                kind: {"choices": list(row[kind]), "labels": list(row[kind].values())}
                for kind in ("mc1_targets", "mc2_targets")}}  # fmt: skip
    else:
        yield from read(data / ("winogrande/dev.jsonl" if split == "validation" else "winogrande/train_xl.jsonl.gz"))


def read(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def build_items(names: list[str], data: Path, limit: int, folder: Path) -> dict[str, list[list[Any]]]:
    """The requests of the first items of each task, as lm-eval makes them: one list an item."""
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager

    stock = Path(lm_eval.__file__).parent / "tasks"
    for name in names:
        file, num_fewshot, items, examples = TASKS[name]
        files = {}
        for split, most in ((items, limit * MORE_ITEMS.get(name, 1)), (examples, 2000)):
            if split is not None:
                files[split] = str(folder / f"{name}-{split}.jsonl")
                rows = [row for _, row in zip(range(most), rows_of(name, split, data, limit), strict=False)]
                Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {"include": str(stock / file), "task": f"{name}_here", "num_fewshot": num_fewshot,
                  "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files},
                  "fewshot_split": examples}  # fmt: skip
        config |= {f"{split}_split": None for split in ("training", "validation", "test")}
        config |= {f"{'training' if split == 'train' else split}_split": split for split in files if split != "dev"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    tasks = TaskManager(include_path=str(folder), include_defaults=False).load([f"{name}_here" for name in names])
    found: dict[str, list[list[Any]]] = {}
    for name in names:
        task = tasks["tasks"][f"{name}_here"]
        task.build_all_requests(limit=limit * MORE_ITEMS.get(name, 1), rank=0, world_size=1)
        by_item: dict[int, list[Any]] = {}
        for instance in task.instances:
            by_item.setdefault(instance.doc_id, []).append(instance)
        found[name] = list(by_item.values())
    return found


def compare(
    items: list[list[Any]], peers: dict[str, Callable[[list[Any]], list[Any]]], chunk: int, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], float, float]:
    """Seconds of each tool for each ``chunk`` of items, the largest difference of a score, and the peer's own."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    worst, noise, names = 0.0, 0.0, list(peers)
    for number, begin in enumerate(range(0, len(items), chunk)):
        requests = [one for item in items[begin : begin + chunk] for one in item]
        answers = {}
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = clock()
            answers[name] = peers[name](requests)
            seconds[name].append(clock() - started)
        theirs = [answers[name] for name in names if name != "depthup"]
        worst = max(worst, *(largest(found, answers["depthup"]) for found in theirs))
        noise = max(noise, *(largest(found, theirs[0]) for found in theirs))
    return seconds, worst, noise


def largest(first: list[Any], second: list[Any]) -> float:
    """The largest difference of two lists of log-likelihoods."""
    return max(abs(one[0] - other[0]) for one, other in zip(first, second, strict=True))


def write(options: argparse.Namespace, figures: dict[str, dict[str, Any]], overall: float) -> None:
    """Write what has been measured so far."""
    versions = {name: version(name) for name in ("torch", "transformers", "lm-eval", "depthup")}
    versions["python"] = platform.python_version()
    shown = [Path(word).name if Path(word).exists() else word for word in sys.argv[1:]]
    text = {"benchmark": "evaluation", "command": "python benchmarks/evaluation.py " + " ".join(shown),
            "machine": machine(Path(".")), "versions": versions, "device": options.device, "dtype": options.dtype,
            "tasks": figures, "ratio of all": round(overall, 3)}  # fmt: skip
    options.json.write_text(json.dumps(text, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with arc/, hellaswag/, mmlu/ ...")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what to score (all)")
    parser.add_argument("--limit", type=int, default=8, help="items of each task, of MMLU 12 times as many (8)")
    parser.add_argument("--chunk", type=int, default=0, help="items that a tool gets at once (all)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="of lm-eval (1 8)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    logging.disable(logging.WARNING)
    from lm_eval.models.huggingface import HFLM

    from depthup.evaluation.requests import Continuation
    from depthup.evaluation.scorer import LocalScorer
    from depthup.models import load_model, load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        items = build_items(options.tasks, options.data_dir, options.limit, Path(folder))
    model, tokenizer = load_model(options.model, options.device, options.dtype), load_tokenizer(options.model)
    scorer = LocalScorer(model, tokenizer)
    peers: dict[str, Callable[[list[Any]], list[Any]]] = {
        "depthup": lambda asked: scorer.answer([Continuation(*one.args) for one in asked])
    }
    for size in options.batch_sizes:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
        peers[f"lm-eval {size}"] = lambda asked, lm=lm: lm.loglikelihood(asked, disable_tqdm=True)
    for answer in peers.values():
        answer(min((found[0] for found in items.values()), key=len)[:2])  # warm
    figures: dict[str, dict[str, Any]] = {}
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    for name in options.tasks:
        seconds, worst, noise = compare(items[name], peers, options.chunk or len(items[name]), clock)
        totals = {tool: sum(times) for tool, times in seconds.items()}
        best = min((tool for tool in totals if tool != "depthup"), key=totals.__getitem__)
        ratios = [theirs / ours for theirs, ours in zip(seconds[best], seconds["depthup"], strict=True)]
        figures[name] = {"seconds": {tool: round(value, 3) for tool, value in totals.items()}, "best": best,
                         "ratio": round(totals[best] / totals["depthup"], 3), "median ratio": round(median(ratios), 3),
                         "largest difference": worst, "of lm-eval among its batch sizes": noise,
                         "items": len(items[name])}  # fmt: skip
        say(f"{name}: " + ", ".join(f"{tool} {value:.2f} s" for tool, value in totals.items()))
        print(
            f"{name:<14} {figures[name]['ratio']:6.2f} times ({best}); log-likelihoods differ by {worst:.1e} at most,"
            f" lm-eval's among themselves by {noise:.1e}"
        )
        overall = sum(one["seconds"][one["best"]] for one in figures.values())
        overall /= sum(one["seconds"]["depthup"] for one in figures.values())
        if options.json:
            write(options, figures, overall)
    print(f"{'all':<14} {overall:6.2f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
