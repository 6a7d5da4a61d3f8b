"""The verb that makes preference pairs of solved problems: a sub-verb of `depthup synthesize`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .recipe_verbs import add_verb

if TYPE_CHECKING:
    from .synthesis.pairs import Alignment, Solved, Triplet

_WORDS = 3  # of an n-gram in the table of overlap


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
    from .data.raw_rows import files_of
    from .errors import DataError
    from .files import publishing, refuse_existing, write_json
    from .synthesis.pairs import align, with_originals

    refuse_existing(Path(options.out))
    paths = files_of(options.rows)
    with publishing(Path(options.out)) as folder:
        with open(folder / "bad.jsonl", "w", encoding="utf-8") as bad:
            rows, num_bad, first_bad = _read(paths, bad)
        if num_bad and not rows:
            raise DataError(f"none of {num_bad:,} rows can be read: {first_bad}",
                            next_step="give rows-*.jsonl or rejected.jsonl of `depthup synthesize math`")  # fmt: skip
        rows = with_originals(rows, _originals(options.seeds, options.seeds_seed))
        made = align(rows, options.variant, seed=options.seed, match_length=options.match_length)
        settings = {"variant": options.variant, "seed": options.seed, "match_length": options.match_length}
        with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
            for triplet in made.triplets:
                file.write(json.dumps(pair_row(triplet, settings)) + "\n")
        report = {**settings, "files": [path.name for path in paths], "num_rows": len(rows) + num_bad,
                  "num_bad": num_bad, **alignment_report(made)}  # fmt: skip
        write_json(folder / "report.json", report)
    print(_page(report))
    print(f"written: {options.out}")


def pair_row(triplet: Triplet, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a pair as it is written: what training reads, and where it is from."""
    lineage = {
        **triplet.lineage,
        "seed_id": triplet.seed_id,
        "original_question": triplet.original_question,
        "rows": list(triplet.rows),
        "alignment": {**settings, "chosen_correct": triplet.chosen_correct,
                      "rejected_correct": triplet.rejected_correct},
    }  # fmt: skip
    return {"prompt": triplet.prompt, "chosen": triplet.chosen, "rejected": triplet.rejected, "lineage": lineage}


def alignment_report(made: Alignment) -> dict[str, Any]:
    """Tables of pairs: how many are right against wrong, lengths in characters, overlap of word 3-grams (Jaccard)."""
    from collections import Counter
    from dataclasses import asdict
    from statistics import fmean

    from .data.length_bias import length_bias
    from .data.likeness import jaccard, shingles, words_of

    said = {True: "right", False: "wrong", None: "not verified"}
    correctness = Counter(
        f"{said[triplet.chosen_correct]} over {said[triplet.rejected_correct]}" for triplet in made.triplets
    )
    bias = length_bias([len(each.chosen) for each in made.triplets], [len(each.rejected) for each in made.triplets])
    answers, prompts = [], []
    for triplet in made.triplets:
        sets = [shingles(words_of(text), _WORDS)
                for text in (triplet.chosen, triplet.rejected, triplet.prompt, triplet.original_question)]  # fmt: skip
        answers.append(jaccard(sets[0], sets[1]))
        if triplet.original_question:
            prompts.append(jaccard(sets[2], sets[3]))
    return {
        "num_pairs": len(made.triplets),
        "num_prompts": len({triplet.prompt for triplet in made.triplets}),
        "num_seeds": len({triplet.seed_id for triplet in made.triplets}),
        "rows_left_out": dict(made.left_out),
        "correctness": dict(correctness.most_common()),
        "length": asdict(bias) if bias else None,
        "overlap": {
            "chosen with rejected": fmean(answers),
            "prompt with original question": fmean(prompts) if prompts else None,
        },
    }


def _read(paths: Sequence[Path], bad: TextIO) -> tuple[list[Solved], int, str]:
    """Rows that can be read, the number of the others, which are set aside, and what the first of these is."""
    from .data.raw_rows import raw_rows
    from .errors import DataError
    from .synthesis.pairs import solved_of

    rows, num_bad, first = [], 0, ""
    for path in paths:
        for raw in raw_rows(path):
            problem = raw.problem and f"row: {raw.problem}"
            try:
                if not problem:
                    rows.append(solved_of(raw.value, raw.row.place, raw.row.name))
            except DataError as error:
                problem = error.problem
            if problem:
                num_bad += 1
                first = first or f"{raw.row.place}, {problem}"
                where, _, what = problem.partition(": ")
                found = {"file": str(path), "row": raw.number, "field": where, "problem": what, "text": raw.text}
                bad.write(json.dumps(found) + "\n")
    return rows, num_bad, first


def _originals(given: Sequence[str], seed: int) -> dict[str, tuple[str, str]]:
    """Id of each seed -> (question, solution); a seed without an id is called by its place, as synthesis calls it.

    Raises:
        DataError: A file cannot be read, or two problems have one id.
    """
    from .data.raw_rows import files_of, raw_rows
    from .errors import DataError
    from .synthesis.problems import parse_factory, problems_of

    specs = [parse_factory(text) for text in given]
    made = [problem for spec in specs if spec for problem in problems_of(spec, seed)]
    found = {problem.id: (problem.question, problem.solution) for problem in made}
    files = [text for text, spec in zip(given, specs, strict=True) if spec is None]
    for raw in (raw for path in (files_of(files) if files else ()) for raw in raw_rows(path)):
        for names in (("problem", "solution"), ("question", "answer")):
            texts = [raw.value.get(name) if isinstance(raw.value, Mapping) else None for name in names]
            if isinstance(texts[0], str) and isinstance(texts[1], str):
                name, pair = str(raw.value.get("id") or raw.row.name), (texts[0].strip(), texts[1].strip())
                if found.setdefault(name, pair) != pair:
                    raise DataError(f"two seeds have the id {name}, the second is {raw.row.place}",
                                    next_step="give each file once, and files of unlike names")  # fmt: skip
    return found


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
