"""Questions of benchmarks that stand in prompts, word for word or nearly.

Trained on, they make a score of nothing: UltraFeedback held questions of TruthfulQA, Orca's pairs those of GSM8K train.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, nearest
from .likeness import Phrases, jaccard, shingles, words_of

# benchmark -> (file under the data folder, field of the question)
BENCHMARKS: dict[str, tuple[str, str]] = {
    "truthfulqa": ("truthfulqa/TruthfulQA.csv", "Question"),
    "gsm8k": ("gsm8k/test.jsonl", "question"),
    "gsm8k-train": ("gsm8k/train.jsonl.gz", "question"),
}
_WORDS = 3  # of an n-gram
_NEAR_SHARE = 0.7  # of a long question's n-grams that make a text nearly the question
_NEAR_LIKENESS = 0.6  # of a question of fewer words than _LONG and the whole text (Jaccard): stock phrases are short
_LONG, _SHORT = 16, 6  # words; a question of fewer than _SHORT is found only where it is the whole text


@dataclass(frozen=True, slots=True)
class Question:
    """One question; ``item`` is its row in the benchmark's file, from 0."""

    benchmark: str
    item: int
    text: str


class Leak(NamedTuple):
    """A question that a text holds.

    Attributes:
        question: The question.
        how: ``exact`` (its very characters), ``normalised`` (its words in order), ``near`` (most of its n-grams).
        share: Of its word 3-grams that the text holds.
    """

    question: Question
    how: str
    share: float


def read_questions(data_dir: Path, benchmarks: Iterable[str] = tuple(BENCHMARKS)) -> list[Question]:
    """The questions of benchmarks whose files lie under ``data_dir``.

    Raises:
        DataError: A benchmark is unknown, or its file is missing or unlike itself.
    """
    found: list[Question] = []
    for name in benchmarks:
        if name not in BENCHMARKS:
            raise DataError(f"no benchmark is called '{name}'{nearest(name, BENCHMARKS)}",
                            allowed=", ".join(BENCHMARKS))  # fmt: skip
        path, field = data_dir / BENCHMARKS[name][0], BENCHMARKS[name][1]
        try:
            found += [Question(name, item, row[field]) for item, row in enumerate(_rows(path))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"cannot read the questions of {name} in {path}: {error}",
                allowed=f"rows with '{field}'",
                next_step=f"--data-dir names the folder in which {BENCHMARKS[name][0]} lies",
            ) from error
    return found


class BenchmarkPrompts:
    """Finds questions in texts."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self.questions = tuple(questions)
        self._phrases = Phrases([question.text for question in self.questions], _WORDS)
        self._words = [words_of(question.text) for question in self.questions]

    def leak(self, text: str) -> Leak | None:
        """The question that ``text`` holds the most of, if that is enough to call it one."""
        best = self._phrases.best(text)
        if best is None or best[1] < _NEAR_SHARE:
            return None
        question, words, said, share = self.questions[best[0]], self._words[best[0]], words_of(text), best[1]
        if len(words) < _SHORT and words != said:
            return None
        if question.text.strip() in text:
            return Leak(question, "exact", share)
        if f" {' '.join(words)} " in f" {' '.join(said)} ":
            return Leak(question, "normalised", share)
        whole = len(words) < _LONG
        if whole and jaccard(shingles(words, _WORDS), shingles(said, _WORDS)) < _NEAR_LIKENESS:
            return None
        return Leak(question, "near", share)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8-sig") as file:
        yield from csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
