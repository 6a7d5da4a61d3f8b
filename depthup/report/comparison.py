"""A comparison of models as text for the terminal and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from ..evaluation.compare import Compared, Comparison
from ..evaluation.statistics import is_lower_better
from .scores import points, signed_points, task_title, with_margin
from .tables import render_table
from .text import visible

_HEADERS = ("", "difference", "interval", "p", "p, Holm", "finds", "verdict")


def comparison_text(found: Comparison) -> str:
    """Scores of all models, then for each model its differences from the baseline with their verdicts, in words."""
    confidence = f"{100 * (1 - found.alpha):g} %"
    of = " ".join(filter(None, (found.suite, found.profile)))
    lines = [f"{of}: scores in points; ± is half of a {confidence} interval", "", _scores(found)]
    for name, rows in zip(found.others, found.compared, strict=True):
        unpaired = [task_title(row.difference.of) for row in rows if not row.difference.paired]
        how = "item by item" if not unpaired else "as independent samples" if len(unpaired) == len(rows) else "in part"
        lines += ["", f"{name} against {found.names[found.baseline]}, {how}", _differences(found, rows)]
    verdicts = [
        f"{name}: {rows[-1].verdict}" for name, rows in zip(found.others, found.compared, strict=True)
    ]  # fmt: skip
    lines += ["", f"{found.suite}, against {found.names[found.baseline]}:", *(f"  {line}" for line in verdicts)]
    lines += [
        "",
        f"{found.num_comparisons} comparisons, corrected together (Holm), level {found.alpha:g}",
        "interval: bootstrap over items within tasks (BCa)",
        "finds: the smallest true difference that these items find 4 times in 5, uncorrected",
        *(f"note: {warning}" for warning in found.warnings),
    ]
    return visible("\n".join(lines))


def _scores(found: Comparison) -> str:
    headers = ["", *(task_title(task) for task, _, _ in found.tasks)]
    rows = []
    in_points = [not is_lower_better(metric) for _, metric, _ in found.tasks]
    for name, scores, mean in zip(found.names, found.scores, found.means, strict=True):
        cells = [with_margin(one, unit) for one, unit in zip(scores, in_points, strict=True)]
        rows.append([name, *cells] + ([with_margin(mean, in_points[0])] if mean else []))
    if found.means[0]:
        headers.append(found.suite)
    details = [f"{shots} shot{'' if shots == 1 else 's'}" for _, _, shots in found.tasks]
    last = ["", *details, *([""] if found.means[0] else [])]
    return render_table(headers, [*_to_the_right(rows), last])


def _differences(found: Comparison, rows: tuple[Compared, ...]) -> str:
    metrics = {task: metric for task, metric, _ in found.tasks}
    cells = []
    for row in rows:
        one = row.difference
        unit = not is_lower_better(metrics.get(one.of, found.tasks[0][1]))
        interval = f"{signed_points(one.low, unit)} to {signed_points(one.high, unit)}"
        p_values = [_p(one.p_value), _p(row.adjusted_p)]
        finds = points(one.detectable, unit)
        cells.append([task_title(one.of), signed_points(one.difference, unit), interval, *p_values, finds, row.verdict])
    verdicts = [row.pop() for row in cells]
    return render_table(_HEADERS, [[*row, said] for row, said in zip(_to_the_right(cells), verdicts, strict=True)])


def _to_the_right(rows: list[list[str]]) -> list[list[str]]:
    """Pad all columns but the first to one width, so that their ends stand below each other."""
    widths = [0, *(max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])]
    return [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def comparison_json(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON can hold it: what is not finite is null; shares, not points."""
    made = asdict(found)
    made["compared"] = dict(zip(found.others, made["compared"], strict=True))
    plain: dict[str, Any] = finite(made)
    return plain


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
