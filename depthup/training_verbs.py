"""The verbs that look at a training stage before it is run: what is trained on, and at which rate."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .recipe_verbs import add_verb, open_recipe


def add_preview(verbs: Any) -> None:
    """`depthup preview`."""
    parser = add_verb(verbs, "preview", _preview, "show what a stage trains on, decoded, targets coloured", """
examples:
  depthup preview recipes/pico tuned
  depthup preview my.yaml sft --rows 3 --step 10
  depthup preview my.yaml sft --plain | less
The loss is on what is green (in [brackets] with --plain); the rest is context. Stages before it must be made.
""")  # fmt: skip
    _add_stage_options(parser)
    parser.add_argument("--rows", type=int, default=2, metavar="N", help="rows to show (2)")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="the optimiser step whose rows are shown (0)")
    parser.add_argument("--plain", action="store_true", help="no colours (as when the output is no terminal)")


def add_rates(verbs: Any) -> None:
    """`depthup rates`."""
    parser = add_verb(verbs, "rates", _rates, "try rising learning rates on a stage, and see where its loss turns", """
examples:
  depthup rates recipes/pico trained
  depthup rates my.yaml cpt --low 1e-6 --high 1e-2 --steps 60
A range test (Smith 2015): one step at each rate, from the stage's own model and rows; nothing is written.
""")  # fmt: skip
    _add_stage_options(parser)
    parser.add_argument("--low", type=float, default=1e-6, metavar="RATE", help="first rate (1e-6)")
    parser.add_argument("--high", type=float, default=1e-1, metavar="RATE", help="last rate (1e-1)")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="number of rates (40)")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1")


def _add_stage_options(parser: Any) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="recipe.yaml, or the folder that it lies in")
    parser.add_argument("stage", metavar="STAGE", help="name of a stage of kind pretrain, sft, dpo or sdpo")
    parser.add_argument("--store", metavar="DIR", help="where results are kept (runs/NAME)")


def _preview(options: argparse.Namespace) -> None:
    from .data.preview import preview_batch
    from .pipeline import prepare
    from .training_stages import rows_to_look_at

    recipe, store = open_recipe(options)
    rows, tokenizer, num_rows = rows_to_look_at(prepare(recipe, store, options.stage))
    batch = rows.batch_of_step(options.step, num_rows, recipe.seed)
    shown = batch.rows(0, min(options.rows, batch.num_rows))
    print(preview_batch(shown, tokenizer, color=not options.plain and sys.stdout.isatty()))
    share = shown.num_targets / max(1, shown.input_ids.size)
    print(f"{shown.num_rows} of {batch.num_rows} rows of step {options.step}: {share:.0%} of the places are targets")


def _rates(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .pipeline import prepare
    from .training_stages import range_test

    recipe, store = open_recipe(options)
    job = prepare(recipe, store, options.stage, options.device)
    with tqdm(total=options.steps, desc=options.stage, unit="step", disable=not sys.stderr.isatty()) as bar:
        found = range_test(job, options.low, options.high, options.steps, lambda step, rate, loss: bar.update())
    width = max(found.smoothed) - min(found.smoothed) or 1.0
    for rate, loss, mean in zip(found.rates, found.losses, found.smoothed, strict=True):
        bar_length = round(40 * (mean - min(found.smoothed)) / width)
        print(f"{rate:9.2e}  {loss:8.4f}  {'█' * bar_length}")
    print(f"lowest at {found.best:.2e}; as a peak with warmup try {found.suggested:.1e}, and stay below the turn")
