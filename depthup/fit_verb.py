"""The verb that fits loss curves and tells where one passes another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .recipe_verbs import add_verb


def add_fit(verbs: Any) -> None:
    """`depthup fit`."""
    parser = add_verb(verbs, "fit", _fit, "fit loss against tokens and compute, and tell where curves cross", """
examples:
  depthup fit runs/smol --control control --out fits/smol         all pretrain stages of a store
  depthup fit curves.csv --control base --out fit                 columns run, tokens, loss; flops and seed if known
  depthup fit dus=a/metrics.jsonl dus=b/metrics.jsonl base=c/metrics.jsonl --control base --out fit    two seeds of dus
  depthup fit scratch.csv --from-tokens 1e6 --out fit             the first, fast part of a run left out
OUT gets fit.json, tokens.svg, and flops.svg where FLOPs are known. docs/choosing.md says what is fitted, and what its
intervals hold. Nothing beyond the largest measured tokens is known: what is said of it is marked as extrapolated.
""")  # fmt: skip
    parser.add_argument(
        "places", metavar="[NAME=]PLACE", nargs="+", help=".csv, .json, metrics.jsonl, a stage's folder, or a store"
    )
    parser.add_argument("--out", metavar="DIR", help="folder to make for fit.json and figures (none: only the table)")
    parser.add_argument("--control", metavar="NAME", help="run that the others are compared with (each with each)")
    parser.add_argument("--from-tokens", type=_amount, default=0.0, metavar="T", help="leave out points below (0)")
    parser.add_argument("--reach", type=_reach, default=10.0, metavar="N", help="look ahead N times the data (10)")
    parser.add_argument("--confidence", type=_share, default=0.95, metavar="C", help="of the intervals (0.95)")
    parser.add_argument("--draws", type=_draws, default=500, metavar="N", help="refits that make the intervals (500)")
    parser.add_argument("--seed", type=int, default=0, help="of these (0)")


def _amount(text: str) -> float:
    return _between(text, 0, 1e18, "at least 0")


def _reach(text: str) -> float:
    return _between(text, 1, 1e4, "between 1 and 10,000")


def _share(text: str) -> float:
    return _between(text, 0.5, 0.999, "between 0.5 and 0.999")


def _draws(text: str) -> int:
    return int(_between(text, 50, 20_000, "between 50 and 20,000"))


def _between(text: str, low: float, high: float, allowed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
    return value


def _fit(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .errors import DataError, nearest
    from .files import publishing, refuse_existing, write_json, write_text
    from .fitting.intervals import compare_runs, fit_run, pairs_of
    from .fitting.runs import read_runs
    from .report.fit_figure import fit_svg
    from .report.fit_tables import fit_json, fit_text

    if options.out:
        refuse_existing(Path(options.out))
    runs = read_runs(options.places, options.from_tokens)
    names = [run.name for run in runs]
    if options.control is not None and options.control not in names:
        raise DataError(
            f"no run is called '{options.control}'{nearest(options.control, names)}", allowed=", ".join(names)
        )
    settings = {"num_draws": options.draws, "confidence": options.confidence, "seed": options.seed}
    with tqdm(total=len(runs), desc="fit", unit="run", disable=None, dynamic_ncols=True, leave=False) as bar:
        fitted = []
        for run in runs:
            fitted.append(fit_run(run, **settings))
            bar.update()
    pairs = [compare_runs(one, other, seed=options.seed) for one, other in pairs_of(fitted, options.control)]
    print(fit_text(fitted, pairs, options.reach))
    if not options.out:
        return
    with publishing(Path(options.out)) as folder:
        write_json(folder / "fit.json", fit_json(fitted, pairs, options.reach, settings))
        write_text(folder / "tokens.svg", fit_svg(fitted, reach=options.reach, standalone=True) + "\n")
        if all(run.flops_per_token for run in runs):
            write_text(folder / "flops.svg", fit_svg(fitted, "flops", reach=options.reach, standalone=True) + "\n")
    print(f"written: {options.out}")
