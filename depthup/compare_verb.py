"""The verb that tells whether models differ."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipe_verbs import add_verb

if TYPE_CHECKING:
    from .evaluation.scores import ModelScores


def add_compare(verbs: Any) -> None:
    """`depthup compare`."""
    parser = add_verb(verbs, "compare", _compare, "tell which of several models is better, and what is noise", """
examples:
  depthup compare results/base results/target results/trained
  depthup compare base.json trained.json --baseline base.json --figure scores.svg
  depthup compare ours/results_2026-11-23T12-00-00.json theirs/results_2026-11-22T09-30-00.json --json found.json
  depthup compare math.json chat.json --merged average.json slerp.json   different strengths? did merging pay?
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
    parser.add_argument(
        "--merged", metavar="RESULTS", nargs="+", help="merges of the two models: are these strong at different tasks,"
        " and what did each merge make of it?",
    )  # fmt: skip
    parser.add_argument("--shares", metavar="A,B,...", help="the first model's weight in each merge (a half)")
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

    if options.merged or options.shares:
        _strengths(options)
        return
    baseline = _place(options)
    models = [read_results(path) for path in options.results]
    found = compare(
        models, baseline, alpha=options.alpha, seed=options.seed, allow_differences=options.allow_differences
    )  # fmt: skip
    print(comparison_text(found))
    _write_json(options.json, comparison_json(found))
    _write_figure(options.figure, models, found.names)


def _strengths(options: argparse.Namespace) -> None:
    from .errors import DataError
    from .evaluation.results import read_results
    from .evaluation.strengths import strengths
    from .report.strengths import strengths_json, strengths_text

    if len(options.results) != 2 or options.baseline is not None or not options.merged:
        raise DataError(
            f"{len(options.results)} models{' with a baseline' * (options.baseline is not None)} and"
            f" {len(options.merged or ())} merges of them",
            allowed="two models and --merged with one merge of both or more",
            next_step="name the two that were merged before --merged, and what became of them after it",
        )
    first, second, *merges = [read_results(path) for path in (*options.results, *options.merged)]
    found = strengths(
        first, second, merges, _shares(options.shares), alpha=options.alpha, seed=options.seed,
        allow_differences=options.allow_differences,
    )  # fmt: skip
    print(strengths_text(found))
    _write_json(options.json, strengths_json(found))
    _write_figure(options.figure, (first, second, *merges), (*found.names, *(gain.name for gain in found.gains)))


def _shares(text: str | None) -> list[float] | None:
    from .errors import DataError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise DataError(f"'{text}' is no list of shares", allowed="0.5,0.4") from error


def _write_json(path: str | None, content: dict[str, Any]) -> None:
    from .errors import OutputError
    from .files import write_json

    try:
        if path:
            write_json(Path(path), content)
    except OSError as error:
        raise OutputError(
            f"{path} was not written: {error.strerror}", next_step="choose another place with --json"
        ) from error


def _write_figure(path: str | None, models: Sequence[ModelScores], names: Sequence[str]) -> None:
    if path:
        from dataclasses import replace

        from .report.score_bars import write_score_bars

        write_score_bars(Path(path), [replace(model, model=name) for model, name in zip(models, names, strict=True)])


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
