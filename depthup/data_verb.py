"""The verb that tells what data are made of, and leaves out what may not be used."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipe_verbs import add_verb

if TYPE_CHECKING:
    from .data.card import Card, Lineage
    from .data.raw_rows import RawRow


def add_data(verbs: Any) -> None:
    """`depthup data`."""
    parser = add_verb(verbs, "data", _card, "tell what data are made of, and leave out what may not be used", """
examples:
  depthup data card --help
  depthup data filter --help
""")  # fmt: skip
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    _add_card(kinds)
    _add_filter(kinds)


def _add_files(parser: Any) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help=".jsonl, .json, .parquet, or a folder of them")
    parser.add_argument("--source", default="unknown", metavar="NAME", help="of rows that name none")
    parser.add_argument("--licence", default="unknown", metavar="NAME", help="of rows that name none")


def _add_card(kinds: Any) -> None:
    parser = add_verb(kinds, "card", _card, "write the data card and the licence ledger, from the lineage of rows", """
examples:
  depthup data card synth/rows-*.jsonl --out card.md
  depthup data card orca.jsonl --source 'Orca DPO pairs' --licence Apache-2.0
""")  # fmt: skip
    _add_files(parser)
    parser.add_argument("--out", metavar="FILE", help="where the card is written; without it, it is printed")


def _add_filter(kinds: Any) -> None:
    parser = add_verb(kinds, "filter", _filter, "leave out rows by their lineage, and keep what was left out", """
examples:
  depthup data filter synth/rows-*.jsonl --exclude-closed --exclude-unknown --out open
  depthup data filter ours.jsonl --exclude-closed --keep-unknown --out open
  depthup data filter pairs.jsonl --exclude-closed --exclude-unknown --exclude-noncommercial --out free
Every row goes to kept.jsonl (as it came), flagged.jsonl (row, rule, detail) or bad.jsonl (no JSON).
""")  # fmt: skip
    _add_files(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    parser.add_argument("--exclude-closed", action="store_true", help="rows with text of closed models (docs/pairs.md)")
    parser.add_argument("--exclude-unknown", action="store_true", help="rows of writers that are not named or known")
    parser.add_argument("--keep-unknown", action="store_true", help="keep those: --exclude-closed wants one of the two")
    parser.add_argument(
        "--exclude-noncommercial", action="store_true", help="rows whose licence forbids it, or is none"
    )


def _card(options: argparse.Namespace) -> None:
    from .data.card import card_of, render_card
    from .data.raw_rows import files_of
    from .errors import OutputError
    from .files import refuse_existing, sha256_of, write_text

    if options.out:
        refuse_existing(Path(options.out))
        if not Path(options.out).absolute().parent.is_dir():
            raise OutputError(f"{options.out} cannot be written: there is no folder {Path(options.out).parent}",
                              next_step="make the folder, or name another file")  # fmt: skip
    paths = files_of(options.files)
    bad: list[RawRow] = []
    card = card_of(lineage for _, lineage in _lineages(paths, options, bad))
    text = render_card(card, {str(path): sha256_of(path) for path in paths}, len(bad))
    if not options.out:
        print(text, end="")
        return
    write_text(Path(options.out), text)
    print(_summary(card))
    if bad:
        print(f"{len(bad):,} rows are no JSON; the first: {bad[0].row.place}")
    print(f"written: {options.out}")


def _lineages(
    paths: Sequence[Path], options: argparse.Namespace, bad: list[RawRow]
) -> Iterator[tuple[RawRow, Lineage]]:
    """Each row with its lineage; rows that are no JSON are added to ``bad``."""
    from .data.card import lineage_of
    from .data.raw_rows import raw_rows

    for path in paths:
        for raw in raw_rows(path):
            if raw.problem:
                bad.append(raw)
            else:
                yield raw, lineage_of(raw.value, options.source, options.licence)


def _filter(options: argparse.Namespace) -> None:
    from .data.raw_rows import files_of
    from .errors import DataError
    from .files import publishing, refuse_existing, write_json

    if not (options.exclude_closed or options.exclude_unknown or options.exclude_noncommercial):
        switches = "--exclude-closed, --exclude-unknown, --exclude-noncommercial"
        raise DataError("nothing is to be left out", allowed=switches)
    if options.exclude_unknown and options.keep_unknown:
        raise DataError("--exclude-unknown and --keep-unknown contradict each other", next_step="give one of them")
    refuse_existing(Path(options.out))
    told = options.exclude_unknown or options.keep_unknown or not options.exclude_closed
    paths, counts, bad = files_of(options.files), Counter[str](), list[Any]()
    with publishing(Path(options.out)) as folder:
        with (
            open(folder / "kept.jsonl", "w", encoding="utf-8") as kept,
            open(folder / "flagged.jsonl", "w", encoding="utf-8") as flagged,
        ):
            for raw, lineage in _lineages(paths, options, bad):
                if lineage.openness == "unknown" and not told:
                    raise DataError(
                        f"{raw.row.place} does not tell whether a closed model wrote it: {_writers(lineage)}",
                        next_step="--exclude-unknown leaves such rows out, --keep-unknown keeps them",
                    )
                why = _against(lineage, options)
                counts[why[0] if why else "kept"] += 1
                if why is None:
                    kept.write(raw.text + "\n")
                else:
                    about = {"file": str(raw.file), "number": raw.number, "rule": why[0], "detail": why[1]}
                    flagged.write(f'{{"row": {raw.text.strip()}, {json.dumps(about)[1:]}\n')
        with open(folder / "bad.jsonl", "w", encoding="utf-8") as file:
            for raw in bad:
                about = {"file": str(raw.file), "row": raw.number, "field": "", "problem": raw.problem}
                file.write(json.dumps({**about, "text": raw.text}) + "\n")
        report = {"num_rows": counts.total() + len(bad), "num_kept": counts.pop("kept", 0), "num_bad": len(bad)}
        write_json(folder / "report.json", {**report, "flagged_by_rule": dict(counts.most_common())})
    print(f"kept {report['num_kept']:,} of {report['num_rows']:,} rows")
    for why_not, count in counts.most_common():
        print(f"left out: {count:,}: {why_not}")
    if bad:
        print(f"left out: {len(bad):,}: no JSON; the first: {bad[0].row.place}")
    print(f"written: {options.out}")


def _against(lineage: Lineage, options: argparse.Namespace) -> tuple[str, str] | None:
    """(rule, detail) of what a row is left out for."""
    from .data.card import closed_by, commercial_use

    if options.exclude_closed and lineage.openness == "closed":
        name = next(name for name in lineage.generators if closed_by(name))
        return "closed model", f"{name} of {closed_by(name)}"
    if options.exclude_unknown and lineage.openness == "unknown":
        return "unknown generator", _writers(lineage)
    if options.exclude_noncommercial and not commercial_use(lineage.licence)[0]:
        return "no commercial use", lineage.licence
    return None


def _writers(lineage: Lineage) -> str:
    names = " and ".join(lineage.generators)
    return f"{names} may be open or closed" if names else "the row names no writer"


def _summary(card: Card) -> str:
    from .data.card import commercial_use
    from .report.tables import render_table

    said = {True: "yes", False: "NO", None: "not known"}
    licences = [[name, f"{count:,}", said[commercial_use(name)[0]]] for name, count in card.by_licence().items()]
    kinds = ", ".join(f"{card.count(kind):,} {kind}" for kind in ("closed", "open", "rules", "human", "unknown"))
    return f"{render_table(['licence', 'rows', 'commercial use'], licences)}\n\nwritten by: {kinds}"
