"""The problems that synthesis starts from, and which of them may not be: test items always, GSM8K unless told.

SOLAR took its seeds from MATH alone to stay clear of GSM8K (arXiv:2312.15166, section 3). GSM8K is recognised by the
form of its answers and by its text; test items of MATH and GSM8K by their text alone, wherever they lie:
``known_items.bin`` holds a hash of every question of GSM8K and of MATH's test split, and nothing of the text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import DataError, shown
from .answers import extract_answer
from .filters import plain_form

KNOWN_ITEMS = Path(__file__).with_name("known_items.bin")
_HASH_BYTES = 5  # 40 bits: of a million foreign questions, one in a hundred runs meets one of the 13,792 by chance
_SETS = ("GSM8K train", "GSM8K test", "MATH test")
Writers = Callable[[Mapping[str, Any]], Iterable[str]]
_CALCULATION = re.compile(r"<<[^<>]*=[^<>]*>>")


@dataclass(frozen=True)
class Seed:
    """One problem with its solution.

    Attributes:
        id: Finds it again in its source; no two seeds of a run share it.
        question: The problem.
        solution: A worked solution; may be empty for problems of a generator.
        answer: The final answer, the gold one.
        source: Where it is from, as in ``MATH train``.
        licence: Its licence, as in ``MIT``.
        tellings: Other wordings of the solution, of a factory's problems.
        factory: The factory that made it; empty for the rows of a data set.
        generators: Models that wrote it, as its row names them: what is made of it holds their text.
    """

    id: str
    question: str
    solution: str
    answer: str
    source: str
    licence: str
    tellings: tuple[str, ...] = ()
    factory: str = ""
    generators: tuple[str, ...] = ()


@dataclass
class Refused:
    """Rows that are no seeds, counted by reason, with the first place of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, place)


def read_seeds(
    paths: Iterable[str | Path],
    *,
    allow_gsm8k: bool = False,
    licence: str | None = None,
    writers: Writers = lambda row: (),
) -> tuple[list[Seed], Refused]:
    """Seeds out of JSON-lines files (``.jsonl``, also ``.gz``), in order, and what was refused.

    Args:
        paths: Rows of MATH's layout (``id, problem, level, type, solution``), or ``question`` and ``answer``; a row may
            also have ``source`` and ``licence``.
        allow_gsm8k: Take GSM8K's training rows.
        licence: Of rows that do not state theirs and are of no known set.
        writers: From a row to the models that it names as its writers.

    Raises:
        DataError: A file cannot be read, is mostly a set that is refused, or no seed is left.
    """
    seeds: dict[str, Seed] = {}
    refused = Refused()
    for path in map(Path, paths):
        _refuse_by_name(path, allow_gsm8k)
        barred, number, last_set = 0, 0, ""
        for number, row in enumerate(_rows(path), 1):
            place = f"row {number} of {path}"
            known = _set_of(row)
            seed = _seed_of(row, f"{path.name}:{number}", licence, writers)
            if known and not (allow_gsm8k and known == "GSM8K train"):
                barred, last_set = barred + 1, known
                refused.add(f"an item of {known}", place)
            elif isinstance(seed, str):
                refused.add(seed, place)
            elif seed.id in seeds:
                refused.add(f"its id '{shown(seed.id)}' was there before", place)
            else:
                seeds[seed.id] = seed
        if barred * 2 > number:
            raise _barred(path, last_set)
    if not seeds:
        reasons = "; ".join(f"{reason} ({refused.counts[reason]})" for reason in refused.counts) or "no rows"
        raise DataError(f"no seed is left of {', '.join(map(str, paths))}: {reasons}",
                        allowed="rows with problem and solution (\\boxed{}), or question and answer")  # fmt: skip
    return list(seeds.values()), refused


def known_set(question: str, solution: str = "") -> str:
    """``GSM8K train``, ``GSM8K test`` or ``MATH test`` for an item of these; else an empty string."""
    found = _known().get(item_hash(question), "")
    if not found and "####" in solution and _CALCULATION.search(solution):
        return "GSM8K train"  # its calculation marks are nobody else's: a row whose question was edited
    return found


def _set_of(row: Any) -> str:
    """The known set that a row is of: by its id in MATH, by its question, or by the question that it was made of."""
    if not isinstance(row, Mapping):
        return ""
    if "problem" in row and "level" in row and str(row.get("id", "")).startswith("test/"):
        return "MATH test"
    solution = next((row[name] for name in ("solution", "answer") if isinstance(row.get(name), str)), "")
    questions = [row.get(name) for name in ("problem", "question", "original_question")]
    found = [known_set(question, solution) for question in questions if isinstance(question, str)]
    return next((name for name in found if name.endswith("test")), next(filter(None, found), ""))


def item_hash(question: str) -> bytes:
    """Hash of a question without blanks, case, and the signs between sentences: an edited copy has the same."""
    return hashlib.sha256(plain_form(question).encode()).digest()[:_HASH_BYTES]


def write_known(sets: Mapping[str, Iterable[str]], path: Path = KNOWN_ITEMS) -> None:
    """Make ``known_items.bin`` of the questions of each set: sorted hashes, set after set, compressed."""
    blocks = [sorted({item_hash(question) for question in sets[name]}) for name in _SETS]
    header = json.dumps([len(block) for block in blocks]).encode() + b"\n"
    path.write_bytes(header + zlib.compress(b"".join(b"".join(block) for block in blocks), 9))


@cache
def _known() -> dict[bytes, str]:
    header, _, packed = KNOWN_ITEMS.read_bytes().partition(b"\n")
    content, found, start = zlib.decompress(packed), {}, 0
    for name, count in zip(_SETS, json.loads(header), strict=True):
        for _ in range(count):
            found[content[start : start + _HASH_BYTES]] = name
            start += _HASH_BYTES
    return found


def _seed_of(row: Any, place: str, licence: str | None, writers: Writers) -> Seed | str:
    """The seed of a row, or why it is none."""
    if not isinstance(row, Mapping):
        return "no JSON object"
    names = next((pair for pair in (("problem", "solution"), ("question", "answer")) if pair[0] in row), None)
    if names is None:
        return "neither 'problem' nor 'question'"
    texts = [row.get(name) for name in names]
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            return f"'{name}' is no text, or empty"
    question, solution = str(texts[0]).strip(), str(texts[1]).strip()
    is_math = names[0] == "problem" and "level" in row and "type" in row
    identity = str(row.get("id") or place)
    found = extract_answer(solution)
    if found is None or (is_math and found[1] == "last number"):
        return "its solution has no final answer"
    if names[0] == "question" and found[1] == "last number" and len(solution.split()) > 6:
        return "its answer states no final answer (The answer is, \\boxed{} or ####)"
    gsm8k = "####" in solution
    source = str(row.get("source") or ("MATH train" if is_math else "GSM8K train" if gsm8k else place.split(":")[0]))
    known = "MIT" if is_math or gsm8k else ""
    stated = str(row.get("licence") or row.get("license") or known or licence or "unknown")
    return Seed(identity, question, solution, found[0], source, stated, generators=tuple(writers(row)))


def _rows(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    try:
                        yield json.loads(line)
                    except (ValueError, RecursionError):
                        yield None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read: {error}", allowed="JSON lines in UTF-8, .jsonl or .jsonl.gz"
        ) from error


def _refuse_by_name(path: Path, allow_gsm8k: bool) -> None:
    name = f"{path.parent.name}/{path.name}".lower()
    if ("gsm8k" in name or "grade_school" in name or "grade-school" in name) and not allow_gsm8k:
        raise _barred(path, "GSM8K")


def _barred(path: Path, name: str) -> DataError:
    if name.endswith("test"):
        return DataError(f"{path} holds {name}: test items are never seeds", next_step="give the training split")
    return DataError(
        f"{path} holds {name}, on which models are scored later; SOLAR kept it out of its seeds",
        allowed="seeds from MATH train, or your own",
        next_step="take the file out, or say --allow-gsm8k (its training split only)",
    )
