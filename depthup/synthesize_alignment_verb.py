"""The verb that makes preference pairs of solved problems: a sub-verb of `depthup synthesize`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recipe_verbs import add_verb


def add_alignment(kinds: Any) -> None:
    """`depthup synthesize alignment`; ``kinds`` are the sub-parsers of `synthesize`."""
    from .synthesis.pairs import VARIANTS

    parser = add_verb(kinds, "alignment", _alignment, "make preference pairs of solved problems", f"""
variants:
{chr(10).join(f"  {name:<9}{what}" for name, (what, _) in VARIANTS.items())}
examples:
  depthup synthesize alignment synth/rows-*.jsonl --seeds math/train.jsonl.gz --out alignment
  depthup synthesize alignment synth/rows-*.jsonl synth/rejected.jsonl --out checked --variant checked --match-length
The folder holds pairs.jsonl (prompt, chosen, rejected, lineage), report.json (correctness, length, overlap), and
bad.jsonl (file, row, field) where a row could not be read. docs/pairs.md has the method.
""")  # fmt: skip
    parser.add_argument("rows", metavar="ROWS", nargs="+", help=".jsonl, .json or .parquet of `depthup synthesize`")
    parser.add_argument(
        "--seeds", metavar="FILE", nargs="+", default=[],
        help="what the rows were made of, for the original solutions; factory:N and reasoning-gym:N too",
    )  # fmt: skip
    parser.add_argument(
        "--seeds-seed", type=int, default=0, metavar="SEED", help="--seed of the synthesis, for factory:N (0)"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    parser.add_argument("--variant", default="paper", choices=tuple(VARIANTS), help="which pairs (paper)")
    parser.add_argument("--seed", type=int, default=0, help="of what is left to chance (0)")
    parser.add_argument(
        "--match-length", action="store_true", help="only pairs among which length does not tell the chosen answer"
    )


def _alignment(options: argparse.Namespace) -> None:
    from .alignment import write_alignment
    from .data.raw_rows import files_of
    from .files import publishing, refuse_existing

    refuse_existing(Path(options.out))
    paths = files_of(options.rows)
    with publishing(Path(options.out)) as folder:
        report = write_alignment(
            paths, options.seeds, folder, options.variant, seed=options.seed, seeds_seed=options.seeds_seed,
            match_length=options.match_length,
        )  # fmt: skip
    print(_page(report))
    print(f"written: {options.out}")


def _page(report: Mapping[str, Any]) -> str:
    from .report.tables import render_table

    length, overlap = report["length"], report["overlap"]
    rows = [
        ["rows", f"{report['num_rows']:,}"],
        ["rows that could not be read (bad.jsonl)", f"{report['num_bad']:,}"],
        *([f"left out: {reason}", f"{count:,}"] for reason, count in report["rows_left_out"].items()),
        ["pairs", f"{report['num_pairs']:,}"],
        ["prompts", f"{report['num_prompts']:,}"],
        ["seeds", f"{report['num_seeds']:,}"],
        *([f"answer {how}", f"{count:,}"] for how, count in report["correctness"].items()),
        ["chosen answer longer", f"{100 * length['longer']:.1f}%"],
        ["  p of the sign test", f"{length['p_value']:.2g}"],
        ["chosen over rejected length", f"{length['ratio']:.2f}"],
        ["length alone guesses", f"{100 * length['accuracy']:.1f}%"],
        *([f"overlap of {which}", f"{100 * share:.1f}%"] for which, share in overlap.items() if share is not None),
    ]
    return render_table([f"variant {report['variant']}", "value"], rows)
