"""One row against the test sets: its texts, and the leaks in it with where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clusters import FIELDS, MAX_HITS, make_scratch, scan_texts
from .embeddings import Near, Nearness
from .index import Reference
from .names import named_tasks
from .rules import Hit, Rule, rule_of, rule_of_long_text
from .text import BYTE_CLASSES, room_for

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
        score: Share of the question that stands there, from 0 to 1; of the rule ``embedding``, the cosine.
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
        nearness: Looks by embeddings, too, at rows in which nothing else was found.
    """

    def __init__(self, reference: Reference, rules: Sequence[Rule], against: Sequence[str] = (),
                 nearness: Nearness | None = None) -> None:  # fmt: skip
        self._reference, self._nearness = reference, nearness
        self._rules = frozenset(rules)
        self._scratch = make_scratch(reference.index)
        self._hits = np.zeros((2 * MAX_HITS, FIELDS))
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
        return self.leaks_in_rows([row], fields)[0]

    def leaks_in_rows(self, rows: Sequence[Any], fields: Sequence[str] = ()) -> list[list[Leak]]:
        """The leaks of each row; many rows at once are quicker."""
        found = [self._named(row) if isinstance(row, Mapping) else [] for row in rows]
        if fields:
            rows = [
                {key: row[key] for key in fields if key in row} if isinstance(row, Mapping) else row for row in rows
            ]
        texts = [list(texts_of(row)) for row in rows]
        for leaks, more in zip(found, self._leaks_in_many(texts), strict=True):
            leaks += more
        if self._nearness is not None:
            self._add_near(found, texts, self._nearness)
        return found

    def _add_near(
        self, found: Sequence[list[Leak]], texts: Sequence[Sequence[tuple[str, str]]], nearness: Nearness
    ) -> None:
        """Add what only embeddings find: of each item in a row, the nearest window."""
        clean = [k for k, leaks in enumerate(found) if not leaks]
        best: dict[tuple[int, int], Near] = {}
        for near in nearness.find([texts[k] for k in clean]):
            key = near.row, near.item
            if key not in best or best[key].cosine < near.cosine:
                best[key] = near
        for near in best.values():
            item, row = self._reference.items[near.item], clean[near.row]
            text = dict(texts[row])[near.field].encode("utf-8", "surrogatepass")
            quote = _shortened(text[near.begin : near.end].decode("utf-8", "replace"))
            span = Span(near.field, near.begin, near.end)
            found[row].append(
                Leak(item.benchmark, item.id, "embedding", near.cosine, None, 0, 0.0, (span,), quote)
            )  # fmt: skip

    def leaks_in_texts(self, texts: Sequence[tuple[str, str]]) -> list[Leak]:
        """The leaks of some texts, (field, text) each, that stand one behind the other."""
        return self._leaks_in_many([texts])[0]

    def _named(self, row: Mapping[str, Any]) -> list[Leak]:
        if "name" not in self._rules:
            return []
        return [
            Leak(benchmark, "", "name", 1.0, None, 0, 0.0, (Span(field, 0, len(name.encode())),), name)
            for benchmark, field, name in named_tasks(row) if benchmark in self._benchmarks
        ]  # fmt: skip

    def _leaks_in_many(self, rows: Sequence[Sequence[tuple[str, str]]]) -> list[list[Leak]]:
        """The leaks in the texts of each row."""
        parts = [b"\n".join([text.encode("utf-8", "surrogatepass") for _, text in texts]) for texts in rows]
        data, ends = np.frombuffer(b"".join(parts), np.uint8), np.cumsum([len(part) for part in parts])
        longest = max(map(len, parts), default=0)
        if longest > self._room:
            self._make_room(2 * longest)
        reference, leaks, begin = self._reference, list[list[Leak]]([] for _ in rows), 0
        while begin < len(rows):
            begin, number = scan_texts(
                data, ends, begin, BYTE_CLASSES, self._words, self._plain, self._masked, reference.vocabulary,
                reference.index, self._scratch, self._hits,
            )  # fmt: skip
            hits: dict[int, list[Hit]] = {}
            for row in self._hits[:number].tolist():
                hit = Hit(int(row[0]), int(row[1]), int(row[2]), row[3], row[4], int(row[5]), row[6], row[7],
                          row[8] == 1.0, int(row[9]), int(row[10]))  # fmt: skip
                hits.setdefault(int(row[11]), []).append(hit)
            for k, found in hits.items():
                leaks[k] = self._judged(found, parts[k], rows[k])
        return leaks

    def _judged(self, hits: Sequence[Hit], data: bytes, texts: Sequence[tuple[str, str]]) -> list[Leak]:
        """The best hit of each item, if it is a leak, by place."""
        best: dict[int, tuple[tuple[bool, float], Hit, Rule]] = {}
        for hit in hits:
            item, num_words = int(self._reference.owners[hit.text]), int(self._lengths[hit.text])
            is_question = hit.text < len(self._reference.items)
            prose = bool(self._reference.has_prose[hit.text])
            rule = rule_of(hit, num_words, prose) if is_question else rule_of_long_text(hit, num_words)
            if rule in self._rules and rule is not None:
                key = is_question, hit.order
                if item not in best or best[item][0] < key:  # chunks overlap; a question tells more than its answer
                    best[item] = key, hit, rule
        places = sorted((hit.begin, item, hit, rule) for item, (_, hit, rule) in best.items())
        return [self._leak(item, hit, rule, data, texts) for _, item, hit, rule in places]

    def _leak(self, number: int, hit: Hit, rule: Rule, data: bytes, texts: Sequence[tuple[str, str]]) -> Leak:
        item, spans, offset = self._reference.items[number], [], 0
        for field, text in texts:
            size = len(text.encode("utf-8", "surrogatepass"))
            low, high = max(hit.begin - offset, 0), min(hit.end - offset, size)
            if low < high:
                spans.append(Span(field, low, high))
            offset += size + 1
        quote = data[hit.begin : hit.end].decode("utf-8", "replace")
        return Leak(
            item.benchmark, item.id, rule, min(1.0, hit.bag if rule == "rephrased" else hit.order),
            None if hit.answer < 0 else hit.answer, hit.longest, hit.covered, tuple(spans), _shortened(quote),
        )  # fmt: skip


def _shortened(quote: str) -> str:
    return quote if len(quote) <= _QUOTE else f"{quote[: _QUOTE - 3]}..."
