"""The verb that recommends how to grow a model, or not to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .recipe_verbs import STOPPED, add_verb


def add_choose(verbs: Any) -> None:
    """`depthup choose`."""
    parser = add_verb(verbs, "choose", _choose, "recommend how to grow a model for a budget, or not to grow it", """
examples:
  depthup choose smollm2 --params 180e6 --budget-tokens 50e6 --data corpus.jsonl --out choice
  depthup choose mistral-7b --target-layers 48 --budget-tokens 200e9 --data corpus/ --probe-steps 64 --out choice
  depthup choose my-model --factor 1.5 --budget-tokens 0 --out choice          use it without training
  depthup choose smollm2 --factor 1.5 --budget-tokens 1e6 --minutes 5 --out choice
Plans are measured before training, the best of each family is trained for a few steps, and so is the base: the control.
OUT gets choose.json and recipe.yaml, for `depthup run OUT`. Stopped, or out of time, the same command goes on.
docs/choosing.md says what is tried, and what the verdict rests on.
""")  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, or a model on the hub")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for the choice and its runs")
    parser.add_argument("--budget-tokens", type=_count(0), required=True, metavar="T", help="to train on; 0 for none")
    size = parser.add_argument_group("the size wanted, one of")
    size.add_argument("--params", type=_positive, metavar="P", help="parameters, as in 10.7e9")
    size.add_argument("--target-layers", type=_count(1), metavar="S", help="depth")
    size.add_argument("--factor", type=_positive, metavar="F", help="depth as a multiple of the base's, up to 2")
    text = parser.add_argument_group("the text")
    text.add_argument(
        "--data", nargs="+", default=[], metavar="FILE",
        help="what it will be trained on: .jsonl, .json, .txt, .parquet, or folders (the documentation of Python)",
    )  # fmt: skip
    text.add_argument("--field", default="text", help="of rows: the one that holds the text (text)")
    runs = parser.add_argument_group("the short runs")
    runs.add_argument("--probe-steps", type=_count(1), default=32, metavar="K", help="steps of the longest (32)")
    runs.add_argument(
        "--keep",
        type=_count(1),
        default=6,
        metavar="N",
        help="most candidates that are trained; below 6, families that are worse at the start drop out (6)",
    )
    runs.add_argument("--rows", type=_count(1), default=4, metavar="N", help="rows in a step (4)")
    runs.add_argument("--row-tokens", type=_count(8), default=256, metavar="N", help="tokens in a row (256)")
    runs.add_argument("--eval-rows", type=_count(2), default=16, metavar="N", help="held-out rows (16)")
    runs.add_argument("--learning-rate", type=_positive, metavar="R", help="(what is known at this size)")
    runs.add_argument("--minutes", type=_positive, metavar="M", help="begin no run that would end later")
    runs.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda")
    runs.add_argument("--seed", type=_count(0), default=0, help="of everything (0)")


def _count(minimum: int) -> Any:
    def number(text: str) -> int:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not minimum <= value <= 1e16 or value != int(value):
            raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {minimum}")
        return int(value)

    return number


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e18:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _choose(options: argparse.Namespace) -> int:
    from .checkpoint.remote import local_folder
    from .choosing.choose import RECIPE, RESULT, Request, choose
    from .errors import Stopped

    request = Request(
        model=str(local_folder(options.model)), budget_tokens=options.budget_tokens, params=options.params,
        target_layers=options.target_layers, factor=options.factor, files=tuple(options.data), field=options.field,
        probe_steps=options.probe_steps, keep=options.keep, rows_per_step=options.rows, row_tokens=options.row_tokens,
        eval_rows=options.eval_rows, learning_rate=options.learning_rate, seed=options.seed,
    )  # fmt: skip
    out = Path(options.out)
    try:
        choice = choose(request, out, minutes=options.minutes, device=options.device, progress=sys.stderr.isatty())
    except Stopped as stopped:
        print(f"stopped by {stopped} with the state saved; the same command goes on", file=sys.stderr)
        return STOPPED
    print(_shown(choice))
    print(f"\nwritten: {out / RESULT}, {out / RECIPE} (depthup run {out})")
    return 0


def _shown(choice: Any) -> str:
    from .choosing.verdict import CONTROLS, control_of, difference
    from .report.tables import render_table

    base = choice.zero[0]
    headers = ["candidate", "family", "before training", "minus base"]
    headers += [f"after {rung[0].step} steps" for rung in choice.trained]
    if choice.trained:
        headers.append("minus control, last rung")
    families = {one.name: one.family for one in choice.tried} | dict.fromkeys(CONTROLS, "the base")
    before = {one.name: one for one in sorted(choice.zero, key=lambda each: each.loss)}
    if choice.trained:
        before = {key: one for name, one in before.items()
                  for key in (CONTROLS if name == base.name else (name,))}  # fmt: skip
    rows = []
    for name, one in before.items():
        after = [next((m for m in rung if m.name == name), None) for rung in choice.trained]
        cells = [name, families[name], f"{one.loss:.3f}", "" if one is base else str(difference(one, base))]
        cells += ["" if m is None else f"{m.loss:.3f}" for m in after]
        if choice.trained:
            last = None if one is base else after[-1]
            cells.append("" if last is None else str(difference(last, control_of(choice.trained[-1]))))
        rows.append(cells)
    lines = ["", render_table(headers, rows), "", choice.verdict.words, ""]
    if choice.verdict.best is not None:
        trains = "new layers only" if choice.verdict.best.trains_new_only else "all weights"
        lines += [
            f"plan    {choice.verdict.best.plan.text}",
            f"train   {trains}; {choice.rate.fact.said} ({choice.rate.fact.source})",
        ]
    lines += [f"known   {fact.said} ({fact.source})" for fact in choice.facts[:3]]
    lines += [f"not known: {said}" for said in choice.verdict.unknown]
    lines += [f"left out: {said}" for said in choice.left_out]
    return "\n".join(lines)
