"""The verb that judges data before it is trained on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .recipe_verbs import add_verb

if TYPE_CHECKING:
    from .data.length_bias import LengthBias
    from .data.pair_audit import Audit


def add_audit(verbs: Any) -> None:
    """`depthup audit`."""
    parser = add_verb(verbs, "audit", _audit_pairs, "judge data before it is trained on", """
examples:
  depthup audit pairs --help
""")  # fmt: skip
    _add_pairs(parser.add_subparsers(title="what", metavar="WHAT", required=True))


def _add_pairs(kinds: Any) -> None:
    parser = add_verb(kinds, "pairs", _audit_pairs, "judge preference pairs: ties, swaps, repeats, leaks, length", """
examples:
  depthup audit pairs ultrafeedback.jsonl orca.parquet
  depthup audit pairs pairs/ --data-dir benchmarks --out audited
  depthup audit pairs pairs.jsonl --tokenizer solar-base --max-tokens 1024 --template solar
With --out, every row goes to kept.jsonl (as it came), flagged.jsonl (row, rule, detail) or bad.jsonl (file, row,
field), and report.json tells the figures. docs/pairs.md has the rules, docs/preferences.md the spellings of rows.
""")  # fmt: skip
    parser.add_argument("files", metavar="FILE", nargs="+", help=".jsonl, .json, .parquet, or a folder of them")
    parser.add_argument("--out", metavar="DIR", help="folder to make, for kept.jsonl, flagged.jsonl, bad.jsonl")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder of benchmarks: truthfulqa/, gsm8k/; prompts are looked for in them"
    )
    parser.add_argument(
        "--near", type=_share, default=0.8, metavar="SHARE", help="of shared word 3-grams that makes rows alike (0.8)"
    )
    limit = parser.add_argument_group("truncation that removes the difference")
    limit.add_argument("--tokenizer", metavar="DIR", help="checkpoint folder whose tokenizer will be trained with")
    limit.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of a prompt with one answer")
    limit.add_argument("--template", default="tokenizer", metavar="NAME", help="chat template (the tokenizer's own)")
    limit.add_argument("--truncate", default="prompt", choices=("prompt", "end"), help="what gives way first (prompt)")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0, up to 1")
    return value


def _audit_pairs(options: argparse.Namespace) -> None:
    import sys
    from pathlib import Path

    from tqdm import tqdm

    from .data.benchmark_prompts import BENCHMARKS, BenchmarkPrompts, read_questions
    from .data.pair_audit import audit, write_audit
    from .data.raw_rows import files_of
    from .errors import DataError
    from .files import publishing, refuse_existing

    if (options.tokenizer is None) != (options.max_tokens is None):
        raise DataError("--tokenizer and --max-tokens belong together", next_step="give both, or neither")
    if options.out:
        refuse_existing(Path(options.out))
    paths = files_of(options.files)
    benchmarks = BenchmarkPrompts(read_questions(Path(options.data_dir))) if options.data_dir else None
    limit, specials = _limit(options)
    with tqdm(unit="row", desc="audit", disable=not sys.stderr.isatty()) as bar:
        result = audit(
            paths, benchmarks=benchmarks, limit=limit, special_tokens=specials, near=options.near, progress=bar.update
        )
    print(_page(result))
    if benchmarks is None:
        print("prompts were not compared with benchmarks: --data-dir names the folder in which they lie")
    if options.out:
        about = {
            "near": options.near,
            "benchmarks": list(BENCHMARKS) if benchmarks else [],
            "max_tokens": options.max_tokens,
            "template": options.template if options.tokenizer else None,
            "truncate": options.truncate if options.tokenizer else None,
        }
        with publishing(Path(options.out)) as folder:
            write_audit(result, folder, about)
        print(f"written: {options.out}")
    if all(len(file.bad) == file.num_rows for file in result.files):
        raise DataError(
            f"none of {sum(file.num_rows for file in result.files):,} rows is a preference pair: nothing was judged",
            next_step="docs/preferences.md has the spellings of pairs that are read",
        )


def _limit(options: argparse.Namespace) -> tuple[Any, tuple[str, ...]]:
    if options.tokenizer is None:
        return None, ()
    from .checkpoint.remote import local_folder
    from .data.pair_limit import token_limit
    from .models import load_tokenizer

    tokenizer = load_tokenizer(local_folder(options.tokenizer))
    return token_limit(tokenizer, options.max_tokens, options.template, options.truncate)


def _page(result: Audit) -> str:
    from pathlib import Path

    from .data.pair_rules import RULES
    from .report.tables import render_table

    files = [(str(number), file) for number, file in enumerate(result.files, 1)]
    head = ["", "file", "rows", "kept", "flagged", "bad", "prompts"]
    rows = [[number, Path(file.name).name, f"{file.num_rows:,}", f"{file.num_kept:,}", f"{file.num_flagged:,}",
             f"{len(file.bad):,}", f"{file.num_prompts:,}"] for number, file in files]  # fmt: skip
    parts = [render_table(head, rows)]
    broken = [rule for rule in RULES if any(file.rules[rule] for _, file in files)]
    if broken:
        counts = [
            [rule, *(f"{file.rules[rule]:,}" if file.rules[rule] else "" for _, file in files)] for rule in broken
        ]
        parts.append(render_table(["rows that break a rule, by file", *(number for number, _ in files)], counts))
    biases = [(number, file.bias) for number, file in files]
    if len(biases) > 1:
        biases.append(("all", result.bias))
    lengths = [[number, *_length_cells(bias)] for number, bias in biases if bias]
    if lengths:
        headers = ["length", "pairs", "chosen longer %", "95 %", "p", "chosen/rejected", "guessed %", "AUC"]
        parts.append(render_table(headers, lengths))
    for _, file in files:
        for bad in file.bad[:5]:
            parts.append(f"bad: row {bad.row} of {bad.file}{f', {bad.field}' if bad.field else ''}: {bad.problem}")
        if len(file.bad) > 5:
            parts.append(f"bad: {len(file.bad) - 5:,} more rows of {file.name}")
    return "\n\n".join(parts)


def _length_cells(bias: LengthBias) -> list[str]:
    return [
        f"{bias.num_pairs:,}",
        f"{100 * bias.longer:.1f}",
        f"{100 * bias.longer_low:.1f} to {100 * bias.longer_high:.1f}",
        f"{bias.p_value:.1e}" if bias.p_value < 0.001 else f"{bias.p_value:.3f}",
        f"{bias.ratio:.2f}",
        f"{100 * bias.accuracy:.1f}",
        f"{bias.auc:.3f}",
    ]
