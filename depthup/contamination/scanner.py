"""One row against the test sets: its texts, and the leaks in it with where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clusters import FIELDS, drop_labels, make_scratch, scan
from .index import Reference
from .names import named_tasks
from .rules import Hit, Rule, rule_of, rule_of_long_text
from .text import BYTE_CLASSES, look_up, room_for, split_words

NEED = 0.3  # share of an item's weight that its rare words in 1,024 words must have: below it, it is not looked at
_MAX_HITS = 4096  # of one row; of more, the first
_QUOTE = 200  # characters


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a row's text: a field, as in ``messages[0].content``, and bytes of its UTF-8 text, half-open."""

    field: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Leak:
    """A test item in a row.

    Attributes:
        benchmark: Name of the test set.
        item: The item's id; empty where only the name of the row's task tells.
        rule: What found it.
        score: Share of the question that stands there, from 0 to 1.
        answer: Share of the answer near it; None where the item has none, or the rule does not look.
        longest: Words of the longest exact match.
        dirty: Share of the question, by weight, inside exact matches of 8 words.
        spans: Where, one for each field that it touches.
        quote: The text there, or its beginning.
    """

    benchmark: str
    item: str
    rule: Rule
    score: float
    answer: float | None
    longest: int
    dirty: float
    spans: tuple[Span, ...]
    quote: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in ``flagged.jsonl``."""
        spans = [{"field": span.field, "begin": span.begin, "end": span.end} for span in self.spans]
        return {"benchmark": self.benchmark, "item": self.item, "rule": self.rule, "score": round(self.score, 4),
                "answer": None if self.answer is None else round(self.answer, 4), "longest_match": self.longest,
                "dirty": round(self.dirty, 4), "spans": spans, "text": self.quote}  # fmt: skip


def texts_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(field, text) of each text in a row, in its order, whatever its layout: columns, turns, pairs, lists of them."""
    stack: list[tuple[str, Any]] = [(path, value)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, Mapping):
            stack += [(f"{path}.{key}" if path else str(key), child) for key, child in reversed(list(value.items()))]
        elif isinstance(value, (list, tuple)):
            stack += [(f"{path}[{number}]", value[number]) for number in reversed(range(len(value)))]


class Scanner:
    """Looks for the items of a reference in rows; holds memory that is used again for each row.

    Args:
        reference: The test items.
        rules: Those by which a row is flagged.
        against: Benchmarks whose task names flag a row; where none is given, those of the items.
    """

    def __init__(self, reference: Reference, rules: Sequence[Rule], against: Sequence[str] = ()) -> None:
        self._reference = reference
        self._rules = frozenset(rules)
        self._scratch = make_scratch(reference.index, NEED)
        self._hits = np.zeros((_MAX_HITS, FIELDS))
        self._lengths = np.diff(reference.index.start)
        self._benchmarks = frozenset(against) or frozenset(item.benchmark for item in reference.items)
        self._make_room(1 << 16)

    def _make_room(self, num_bytes: int) -> None:
        self._room = num_bytes
        self._words = room_for(num_bytes)
        self._plain = np.empty(len(self._words.begin), np.int32)
        self._masked = np.empty_like(self._plain)

    def leaks_in_row(self, row: Any, fields: Sequence[str] = ()) -> list[Leak]:
        """The leaks of one row.

        Args:
            row: As parsed.
            fields: Only the texts of these fields; of all where none is given.
        """
        found: list[Leak] = []
        if isinstance(row, Mapping):
            if "name" in self._rules:
                for benchmark, field, name in named_tasks(row):
                    if benchmark in self._benchmarks:
                        span = Span(field, 0, len(name.encode()))
                        found.append(Leak(benchmark, "", "name", 1.0, None, 0, 0.0, (span,), name))
            if fields:
                row = {key: row[key] for key in fields if key in row}
        return found + self.leaks_in_texts(list(texts_of(row)))

    def leaks_in_texts(self, texts: Sequence[tuple[str, str]]) -> list[Leak]:
        """The leaks of some texts, (field, text) each, that stand one behind the other."""
        parts = [text.encode("utf-8", "surrogatepass") for _, text in texts]
        data = b"\n".join(parts)
        if len(data) > self._room:
            self._make_room(2 * len(data))
        words, index, vocabulary = self._words, self._reference.index, self._reference.vocabulary
        count = split_words(np.frombuffer(data, np.uint8), BYTE_CLASSES, words)
        look_up(words, count, vocabulary, self._plain, self._masked)
        count = drop_labels(words, count, self._plain, self._masked, index.label_ids)
        number = scan(words, count, self._plain, self._masked, index, vocabulary.is_number, self._scratch, self._hits)
        best: dict[int, tuple[tuple[bool, float], Leak]] = {}
        for row in self._hits[: min(number, _MAX_HITS)].tolist():
            hit = Hit(int(row[0]), int(row[1]), int(row[2]), row[3], row[4], int(row[5]), row[6], row[7],
                      row[8] == 1.0, int(row[9]), int(row[10]))  # fmt: skip
            item, num_words = int(self._reference.owners[hit.text]), int(self._lengths[hit.text])
            is_question = hit.text < len(self._reference.items)
            rule = rule_of(hit, num_words) if is_question else rule_of_long_text(hit, num_words)
            if rule in self._rules and rule is not None:
                key = is_question, hit.order
                if item not in best or best[item][0] < key:  # chunks overlap; a question tells more than its answer
                    best[item] = key, self._leak(hit, rule, data, texts, parts)
        return [leak for _, leak in best.values()]

    def _leak(self, hit: Hit, rule: Rule, data: bytes, texts: Sequence[tuple[str, str]], parts: list[bytes]) -> Leak:
        begin, end = int(self._words.begin[hit.begin]), int(self._words.end[hit.end - 1])
        item, spans, offset = self._reference.items[int(self._reference.owners[hit.text])], [], 0
        for (field, _), part in zip(texts, parts, strict=True):
            low, high = max(begin - offset, 0), min(end - offset, len(part))
            if low < high:
                spans.append(Span(field, low, high))
            offset += len(part) + 1
        quote = data[begin:end].decode("utf-8", "replace")
        return Leak(
            item.benchmark, item.id, rule, min(1.0, hit.bag if rule == "rephrased" else hit.order),
            None if hit.answer < 0 else hit.answer, hit.longest, hit.covered, tuple(spans),
            quote if len(quote) <= _QUOTE else f"{quote[: _QUOTE - 3]}...",
        )  # fmt: skip
