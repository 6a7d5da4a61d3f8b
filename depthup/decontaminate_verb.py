"""The verb that takes test sets out of training data."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from .recipe_verbs import add_verb


def add_decontaminate(verbs: Any) -> None:
    """`depthup decontaminate`."""
    parser = add_verb(verbs, "decontaminate", _decontaminate, "find test sets in training data, and take them out", """
examples:
  depthup decontaminate train.jsonl --against h6 --data-dir tests/ --out clean
  depthup decontaminate sft/ pairs.parquet --against gsm8k,mmlu --data-dir tests/ --out clean --workers 8
  depthup decontaminate corpus/ --against h6 --data-dir tests/ --out clean --shard 3/16    on one of 16 machines
  depthup decontaminate sft.jsonl --data-dir tests/ --out clean --embeddings sentence-transformers/all-MiniLM-L6-v2
  depthup decontaminate --merge --out clean                                                when all 16 are done
Written to DIR: kept.jsonl, flagged.jsonl (row, benchmark, item, where, score, rule), items.jsonl (which test items were
seen), report.json. Kept and flagged together are every row of the input, in its order, byte for byte where it is JSON
lines. Stopped or cut off, the same command goes on. docs/contamination.md tells what each rule finds.
exit status: 0 nothing found, 1 some rows were flagged
""")  # fmt: skip
    from .contamination.rules import RULES

    parser.add_argument("train", metavar="TRAIN", nargs="*", help=".jsonl, .json, .txt (.gz), .parquet, or folders")
    parser.add_argument(
        "--against", default="h6", metavar="NAMES",
        help="test sets, with commas between: h6 (default: arc, hellaswag, mmlu, truthfulqa, winogrande, gsm8k),"
        " arc-easy, math, drop (by the names of its tasks), or files of the data folder with a question in each row",
    )  # fmt: skip
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="where the test sets lie (data)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make; it must not exist")
    parser.add_argument(
        "--rules", type=_rules, default=RULES, metavar="NAMES",
        help=f"by which rows are flagged, with commas between, of: {', '.join(RULES)}",
    )  # fmt: skip
    parser.add_argument(
        "--embeddings", metavar="MODEL",
        help="folder or hub name of a sentence encoder, as sentence-transformers/all-MiniLM-L6-v2: looks for rephrased"
        " questions in rows in which words find nothing; slow",
    )  # fmt: skip
    parser.add_argument("--field", action="append", default=[], metavar="NAME", help="only this field of each row")
    parser.add_argument("--workers", type=_at_least_1, metavar="N", help="processes (one for each core)")
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="only the I-th of N parts of the files"
    )
    parser.add_argument("--merge", action="store_true", help="put the shards of --out together")


def _rules(text: str) -> tuple[str, ...]:
    from .contamination.rules import RULES

    names = tuple(text.split(","))
    for name in names:
        if name not in RULES:
            raise argparse.ArgumentTypeError(f"no rule is called '{name}'; allowed: {', '.join(RULES)}")
    return names


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is no part such as 1/4, up to 4/4")
    return int(match[1]), int(match[2])


def _decontaminate(options: argparse.Namespace) -> int:
    from .contamination.audit import merge_shards
    from .errors import DataError

    out = Path(options.out)
    if options.merge:
        report = merge_shards(out)
    elif options.train:
        report = _audit(options, out)
    else:
        raise DataError("no training data is named", next_step="depthup decontaminate TRAIN... --out DIR")
    print(_page(report))
    print(f"written: {out if options.shard[1] == 1 else f'{out}.shard-{options.shard[0]}-of-{options.shard[1]}'}")
    return 1 if report["num_flagged"] else 0


def _audit(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    import os

    from tqdm import tqdm

    from .checkpoint.remote import local_folder
    from .contamination.audit import Audit, run_audit
    from .contamination.benchmarks import parse_benchmarks
    from .contamination.text import numba

    if numba is None:
        tqdm.write("numba is not installed: some hundred times slower; pip install 'depthup[contamination]'")
    folder = Path(options.data_dir)
    audit = Audit(
        tuple(options.train), parse_benchmarks(options.against, folder), folder, options.rules, tuple(options.field),
        options.shard, local_folder(options.embeddings) if options.embeddings else None,
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = options.workers or cores
    with tqdm(desc="decontaminate", unit="B", unit_scale=True, disable=None, dynamic_ncols=True) as bar:
        return run_audit(audit, out, workers, bar.update, bar.reset)


def _page(report: dict[str, Any]) -> str:
    from .report.tables import render_table

    lines = []
    for name, table in report["benchmarks"].items():
        rows, items = table["rows"], table["items"]
        rules = ", ".join(f"{rule} {number:,}" for rule, number in table["rows_by_rule"].items())
        share = 100 * items["seen"] / max(items["seen"] + items["clean"], 1)
        lines.append([name, f"{rows['dirty']:,}", f"{items['seen']:,}", f"{items['clean']:,}", f"{share:.2f}", rules])
    table = render_table(["benchmark", "rows flagged", "items seen", "items clean", "seen %", "rows by rule"], lines)
    return f"{table}\n{report['num_rows']:,} rows: {report['num_kept']:,} kept, {report['num_flagged']:,} flagged"
