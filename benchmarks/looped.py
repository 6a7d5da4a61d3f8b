"""A looped SmolLM2 beside depth up-scaling: what is stored, the loss before training, and after the same few tokens.

One recipe, so that every number comes from depthup's own stages: a model of copied layers and looped models of the same
plan, evaluated as they are; then trained on the same rows, the looped ones by their adapters alone, one of them whole.
Few tokens: it shows that all of it works on real weights and where the first steps go, not which is better in the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, machine, say

sys.path.insert(0, str(REPOSITORY))

EXAMPLES = """examples:
  python benchmarks/looped.py smollm2 /tmp/looped-store --json docs/results/looped-smollm2.json
"""
TRAINED = {  # name -> (model, peak rate, whether all weights are trained)
    "linear-trained": ("linear", 1e-2, False),
    "copied-trained": ("copied", 2e-4, True),
    "bridge-trained": ("bridge", 1e-2, False),
    "whole-trained": ("linear", 2e-4, True),
}
FROZEN = {"original": {"factor": 0}, "outside": {"factor": 0}}


def recipe(
    base: str, runs: Sequence[str], remove: int, steps: int, row_tokens: int, eval_tokens: int
) -> dict[str, Any]:
    """The recipe as a mapping; ``runs`` are keys of :data:`TRAINED`."""
    measured = {"kind": "evaluate", "data": "docs", "tokens": eval_tokens, "row_tokens": row_tokens}
    made: dict[str, Any] = {"copied": {"kind": "upscale", "base": base, "remove": remove}}
    for adapter in ("linear", "bridge"):
        made[adapter] = {"kind": "loop", "base": base, "remove": remove, "adapter": adapter, "rank": 16}
    trained = {
        name: {
            "kind": "pretrain", "model": model, "data": "docs", "steps": steps, "rows_per_step": 1,
            "row_tokens": row_tokens, "learning_rate": rate, "warmup_steps": 1, "weight_decay": 0.0,
            "eval_tokens": eval_tokens // 4, "rates": {} if whole else FROZEN,
        }
        for name, (model, rate, whole) in TRAINED.items()
        if name in runs
    }  # fmt: skip
    evaluated = {f"{name}-loss": {**measured, "model": name} for name in made}
    evaluated = {"base-loss": {**measured, "model": base}, **evaluated}
    data = {"docs": {"source": "installed-docs", "packages": ["python"], "held_out": 0.2}}
    return {"name": "looped", "seed": 0, "data": data, "stages": {**made, **evaluated, **trained}}


def main() -> None:
    """Run the recipe and write what it found."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="SmolLM2-135M as a float32 folder")
    parser.add_argument("store", help="folder for what is made")
    parser.add_argument("--remove", type=int, default=8, metavar="M")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--row-tokens", type=int, default=128)
    parser.add_argument("--eval-tokens", type=int, default=1024)
    parser.add_argument("--runs", nargs="*", default=list(TRAINED), choices=list(TRAINED), help="what is trained")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    from depthup.artifacts.store import Store
    from depthup.pipeline import run
    from depthup.recipe import parse_recipe
    from depthup.training.metrics import read_metrics

    sizes = {"steps": options.steps, "row_tokens": options.row_tokens, "eval_tokens": options.eval_tokens}
    begin = time.perf_counter()
    told = parse_recipe(recipe(options.base, options.runs, options.remove, **sizes))
    nodes = run(told, Store(Path(options.store)), device="cpu", progress=False, tell=lambda line: say(line))
    results = {name: json.loads((node.folder / "record.json").read_text())["results"] for name, node in nodes.items()}
    curves = {}
    for name in options.runs:
        lines = list(read_metrics(nodes[name].folder / "metrics.jsonl"))
        curves[name] = {
            key: [round(line[key], 4) for line in lines if key in line] for key in ("loss", "held_out_loss")
        }
    found = {
        "command": f"python benchmarks/looped.py BASE STORE --remove {options.remove} --steps {options.steps}"
        f" --row-tokens {options.row_tokens} --eval-tokens {options.eval_tokens} --runs {' '.join(options.runs)}",
        "machine": machine(Path(options.store)),
        "seconds": round(time.perf_counter() - begin),
        **sizes,
        "trained_tokens": options.steps * options.row_tokens,
        "num_parameters": {name: results[name]["num_parameters"] for name in ("copied", "linear", "bridge")},
        "num_adapter_parameters": {name: results[name]["num_adapter_parameters"] for name in ("linear", "bridge")},
        "loss_before_training": {
            name.removesuffix("-loss"): results[name]["loss"] for name in results if name.endswith("-loss")
        },
        "learning_rates": {name: rate for name, (_, rate, _) in TRAINED.items() if name in curves},
        "curves": curves,
    }
    say(json.dumps(found, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
