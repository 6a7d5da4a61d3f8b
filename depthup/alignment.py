"""Preference pairs of solved problems as files: what the verb and the recipe's stage have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from .synthesis.pairs import Alignment, Solved, Triplet

_WORDS = 3  # of an n-gram in the table of overlap


def write_alignment(
    paths: Sequence[Path], seeds: Sequence[str], folder: Path, variant: str, *, seed: int = 0, seeds_seed: int = 0,
    match_length: bool = False, max_pairs: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write ``pairs.jsonl``, ``bad.jsonl`` and ``report.json`` into a folder; returns the report.

    Args:
        paths: Solved problems, as synthesis writes them.
        seeds: What they were made of, for the original solutions: files, ``factory:N`` or ``reasoning-gym:N``.
        folder: An existing folder.
        variant: A key of :data:`depthup.synthesis.pairs.VARIANTS`.
        seed: Of what is left to chance.
        seeds_seed: Of the synthesis, where it made its own seeds.
        match_length: Only pairs among which length does not tell the chosen answer.
        max_pairs: Keep the first so many.

    Raises:
        DataError: A file cannot be read, or no pair can be made of it.
    """
    from .errors import DataError
    from .files import write_json
    from .synthesis.pairs import align, with_originals

    with open(folder / "bad.jsonl", "w", encoding="utf-8") as bad:
        rows, num_bad, first_bad = _read_solved(paths, bad)
    if num_bad and not rows:
        raise DataError(f"none of {num_bad:,} rows can be read: {first_bad}",
                        next_step="give rows-*.jsonl or rejected.jsonl of `depthup synthesize math`")  # fmt: skip
    rows = with_originals(rows, _originals(seeds, seeds_seed))
    made = align(rows, variant, seed=seed, match_length=match_length)
    made = replace(made, triplets=made.triplets[:max_pairs])
    settings = {"variant": variant, "seed": seed, "match_length": match_length}
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
        for triplet in made.triplets:
            file.write(json.dumps(pair_row(triplet, settings)) + "\n")
    report = {**settings, "files": [path.name for path in paths], "num_rows": len(rows) + num_bad,
              "num_bad": num_bad, **alignment_report(made)}  # fmt: skip
    write_json(folder / "report.json", report)
    return report


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


def _read_solved(paths: Sequence[Path], bad: TextIO) -> tuple[list[Solved], int, str]:
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
