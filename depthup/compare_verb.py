"""The verb that tells whether models differ."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .recipe_verbs import add_verb


def add_compare(verbs: Any) -> None:
    """`depthup compare`."""
    parser = add_verb(verbs, "compare", _compare, "tell which of several models is better, and what is noise", """
examples:
  depthup compare results/base results/target results/trained
  depthup compare base.json trained.json --baseline base.json --figure scores.svg
  depthup compare ours/results_2026-11-23T12-00-00.json theirs/results_2026-11-22T09-30-00.json --json found.json
A file is what `depthup evaluate` writes, or lm-eval (with --log_samples, models are compared item by item). Models that
were asked in different ways are refused. docs/noise.md shows what the same statistics say of the SOLAR paper.
""")  # fmt: skip
    parser.add_argument("results", metavar="RESULTS", nargs="+", help="results_*.json, or the folder of one model")
    parser.add_argument("--baseline", metavar="RESULTS", help="which one the others are compared with (the first)")
    parser.add_argument("--alpha", type=_level, default=0.05, metavar="LEVEL", help="of the tests, all together (0.05)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument(
        "--allow-differences", action="store_true",
        help="compare even models that were asked in different ways, on the tasks that all have",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write all figures there")
    parser.add_argument("--figure", metavar="FILE.svg", help="also draw the scores with their intervals there")


def _level(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 0.5")
    return value


def _compare(options: argparse.Namespace) -> None:
    from .evaluation.compare import compare
    from .evaluation.results import read_results
    from .report.comparison import comparison_json, comparison_text

    baseline = _place(options)
    models = [read_results(path) for path in options.results]
    found = compare(
        models, baseline, alpha=options.alpha, seed=options.seed, allow_differences=options.allow_differences
    )  # fmt: skip
    print(comparison_text(found))
    if options.json:
        from .errors import OutputError
        from .files import write_json

        try:
            write_json(Path(options.json), comparison_json(found))
        except OSError as error:
            raise OutputError(
                f"{options.json} was not written: {error.strerror}", next_step="choose another place with --json"
            ) from error
    if options.figure:
        from dataclasses import replace

        from .report.score_bars import write_score_bars

        named = [replace(model, model=name) for model, name in zip(models, found.names, strict=True)]
        write_score_bars(Path(options.figure), named)


def _place(options: argparse.Namespace) -> int:
    from .errors import DataError, nearest

    if options.baseline is None:
        return 0
    if options.baseline not in options.results:
        hint = nearest(options.baseline, options.results)
        raise DataError(
            f"the baseline {options.baseline} is none of the results{hint}", allowed=", ".join(options.results)
        )
    place: int = options.results.index(options.baseline)
    return place
