"""What an audit counts: rows flagged, and test items seen. Sums of parts give the whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .benchmarks import Item
from .scanner import Leak


@dataclass
class Seen:
    """A test item that stands in the training rows: in how many, and the nearest of them."""

    num_rows: int = 0
    score: float = 0.0
    rule: str = ""
    longest: int = 0
    dirty: float = 0.0

    def add(self, other: Seen) -> None:
        """Count another sight of the same item."""
        self.num_rows += other.num_rows
        if (-other.score, other.rule) < (-self.score, self.rule) or not self.rule:
            self.score, self.rule = other.score, other.rule
        self.longest, self.dirty = max(self.longest, other.longest), max(self.dirty, other.dirty)


@dataclass
class Tally:
    """The counts of some rows.

    Attributes:
        rows, flagged: By file.
        by_benchmark: Rows that a benchmark was found in.
        by_rule: The same by (benchmark, rule).
        items: What was seen, by (benchmark, id).
    """

    rows: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    by_benchmark: Counter[str] = field(default_factory=Counter)
    by_rule: Counter[tuple[str, str]] = field(default_factory=Counter)
    items: dict[tuple[str, str], Seen] = field(default_factory=dict)

    def add_flagged(self, file: str, leaks: Sequence[Leak]) -> None:
        """Count the leaks of one row."""
        self.flagged[file] += 1
        self.by_benchmark.update({leak.benchmark for leak in leaks})
        self.by_rule.update({(leak.benchmark, leak.rule) for leak in leaks})
        seen: dict[tuple[str, str], Seen] = {}
        for leak in leaks:
            if leak.item:
                one = Seen(1, round(leak.score, 4), leak.rule, leak.longest, round(leak.dirty, 4))
                seen.setdefault((leak.benchmark, leak.item), Seen()).add(one)
        for key, one in seen.items():
            one.num_rows = 1
            self.items.setdefault(key, Seen()).add(one)

    def add(self, other: Tally) -> None:
        """Count the rows of another part."""
        for name in ("rows", "flagged", "by_benchmark", "by_rule"):
            getattr(self, name).update(getattr(other, name))
        for key, seen in other.items.items():
            self.items.setdefault(key, Seen()).add(seen)

    def to_json(self) -> dict[str, Any]:
        """As JSON, from which :meth:`from_json` makes it again."""
        return {
            "rows": dict(self.rows),
            "flagged": dict(self.flagged),
            "by_benchmark": dict(self.by_benchmark),
            "by_rule": [[*key, number] for key, number in self.by_rule.items()],
            "items": [[*key, *vars(seen).values()] for key, seen in self.items.items()],
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Tally:
        """What :meth:`to_json` wrote."""
        return Tally(
            Counter(value["rows"]),
            Counter(value["flagged"]),
            Counter(value["by_benchmark"]),
            Counter({(benchmark, rule): number for benchmark, rule, number in value["by_rule"]}),
            {(benchmark, item): Seen(*seen) for benchmark, item, *seen in value["items"]},
        )

    def tables(self, items: Sequence[Item], unsearchable: Iterable[Item]) -> dict[str, Any]:
        """Clean and dirty, of the rows and of the test items, for each benchmark."""
        sizes = Counter(item.benchmark for item in items)
        sizes.update(dict.fromkeys(sorted(self.by_benchmark), 0))
        short = Counter(item.benchmark for item in unsearchable)
        seen = Counter(benchmark for benchmark, _ in self.items)
        num_rows = self.rows.total()
        return {
            benchmark: {
                "rows": {"clean": num_rows - self.by_benchmark[benchmark], "dirty": self.by_benchmark[benchmark]},
                "rows_by_rule": {rule: n for (name, rule), n in sorted(self.by_rule.items()) if name == benchmark},
                "items": {"clean": size - seen[benchmark], "seen": seen[benchmark]},
                "items_too_short_to_find": short[benchmark],
            }
            for benchmark, size in sizes.items()
        }

    def item_lines(self, items: Sequence[Item]) -> Iterable[str]:
        """Each test item as a line of ``items.jsonl``."""
        for item in items:
            line: dict[str, Any] = {"benchmark": item.benchmark, "item": item.id, "seen": False}
            seen = self.items.get((item.benchmark, item.id))
            if seen is not None:
                line |= {"seen": True, "num_rows": seen.num_rows, "score": seen.score, "rule": seen.rule,
                         "longest_match": seen.longest, "dirty": seen.dirty}  # fmt: skip
            yield json.dumps(line, ensure_ascii=False)
