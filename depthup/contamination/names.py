"""Tasks of instruction collections that are made from a test set, by their names.

The ten of the paper (SOLAR 10.7B, arXiv:2312.15166, table 8), and those of FLAN 2022 and Natural Instructions that it
missed. A name says nothing of the split that a row is from: a row is taken out because it may be a test row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# benchmark -> names; "*" stands for any text.
PAPER: dict[str, tuple[str, ...]] = {
    "arc": ("task228_arc_answer_generation_easy", "task229_arc_answer_generation_hard", "ai2_arc/ARC-Challenge:1.0.0",
            "ai2_arc/ARC-Easy:1.0.0"),
    "hellaswag": ("hellaswag:1.1.0", "task1389_hellaswag_completion"),
    "gsm8k": ("cot_gsm8k", "cot_gsm8k_ii"),
    "drop": ("drop:2.0.0",),
    "winogrande": ("winogrande:1.1.0",),
}  # fmt: skip
MISSED: dict[str, tuple[str, ...]] = {
    "arc": ("ai2_arc_ARC_*", "ai2_arc*"),
    "hellaswag": ("hellaswag_*", "hellaswag", "task453_swag_*", "task454_swag_*", "task455_swag_*"),
    "mmlu": ("*_mmmlu_answer_generation_*", "mmlu*", "hendrycks_test*"),
    "truthfulqa": ("truthful_qa*", "truthfulqa*"),
    "gsm8k": ("gsm8k*",),
    "drop": ("task026_drop_*", "task027_drop_*", "task028_drop_*", "drop"),
    "winogrande": ("task1391_winogrande_easy_answer_generation", "task029_winogrande_*", "task030_winogrande_*",
                   "task031_winogrande_*", "task032_winogrande_*", "task033_winogrande_*", "task034_winogrande_*",
                   "task035_winogrande_*", "winogrande_*", "winogrande"),
}  # fmt: skip
FIELDS = ("task", "task_name", "source", "dataset", "template", "_task_name", "_task_source", "_template_idx", "id")
_FIELDS = frozenset(FIELDS)


def _pattern(name: str) -> str:
    return ".*".join(map(re.escape, name.lower().split("*")))


_PATTERNS = {
    benchmark: re.compile("|".join(_pattern(name) for table in (PAPER, MISSED) for name in table.get(benchmark, ())))
    for benchmark in {**PAPER, **MISSED}
}


def benchmark_of(name: str) -> str | None:
    """The benchmark that a task is made from, as in ``hellaswag:1.1.0`` -> ``hellaswag``; None for other tasks.

    ARC's names may also lack the slash and the hyphen, as the paper prints them.
    """
    plain = name.lower().strip()
    return next((benchmark for benchmark, pattern in _PATTERNS.items() if pattern.fullmatch(plain)), None)


def named_tasks(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(benchmark, field, name) for each field of a row that names such a task; ``id`` may end in a number."""
    if _FIELDS.isdisjoint(row):
        return
    for field in FIELDS:
        value = row.get(field)
        if isinstance(value, str) and 0 < len(value) < 200:
            name = re.sub(r"[-_.:]\d+$", "", value) if field == "id" else value
            benchmark = benchmark_of(name)
            if benchmark is not None:
                yield benchmark, field, value
