"""The strengths of two candidates and what merges made of them, as text, as cells of a table, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..evaluation.statistics import is_lower_better
from ..evaluation.strengths import Gain, Strengths
from .comparison import finite
from .scores import points, signed_points, task_title, with_margin
from .tables import render_table
from .text import visible


def strengths_rows(found: Strengths) -> tuple[list[str], list[tuple[str, list[str], str]]]:
    """Headers, and for each task and their mean its name, its cells and what the first candidate is there.

    Cells are both candidates' scores, then each merge's, with its lead over the candidates' mean and its margin.
    """
    headers = [*found.names, *(gain.name for gain in found.gains)]
    rows = []
    for place, lead in enumerate(found.leads):
        metric = found.tasks[min(place, len(found.tasks) - 1)][1]
        unit = not is_lower_better(metric)
        cells = [with_margin(scores[place], unit) for scores in found.scores]
        for gain in found.gains:
            over = gain.over_mean[place].difference
            lead_over = f"{signed_points(over.difference, unit)} ± {points(over.margin, unit)}"
            cells.append(f"{points(gain.scores[place].mean, unit)} ({lead_over})")
        rows.append((task_title(lead.difference.of), cells, lead.verdict))
    return headers, rows


def strengths_notes(found: Strengths) -> list[str]:
    """What follows, a sentence each: whether strengths differ, what a merge could gain, what each made of it."""
    first, second = (", ".join(task_title(task) for task in tasks) for tasks in found.stronger)
    ahead = [
        f"{name} is stronger on {tasks}" for name, tasks in zip(found.names, (first, second), strict=True) if tasks
    ]
    unit = not is_lower_better(found.tasks[0][1])
    room, better = found.room, found.names[found.better]
    said = "; ".join(ahead) or "on no task is one told to be stronger"
    if room.real:
        heading = f"different strengths (p {_p(room.p_value)}): a merge should pay"
    else:
        heading = f"no sign of different strengths (p {_p(room.p_value)}): nothing speaks for a merge"
    low, high = points(room.low, unit), points(room.high, unit)
    return [
        f"{heading}; {said}",
        f"as good as the better candidate on every task, a merge would gain {points(room.measured, unit)} ({low} to"
        f" {high}) over {better} on {found.suite}; {signed_points(room.lasting, unit)} where one half of the items"
        " tells the better one, and the other half counts",
        *(_gain_text(found, gain, better) for gain in found.gains),
    ]


def _gain_text(found: Strengths, gain: Gain, better: str) -> str:
    way = "" if gain.kept is None else f" ({100 * gain.kept:.0f} % of the way to the best of both)"
    kept = way.replace("-", "\u2212")
    return (
        f"{gain.name}, {found.suite}: against {better}, the better candidate: {gain.over_better.verdict}; against the"
        f" candidates' mean ({gain.share:g}/{1 - gain.share:g}): {gain.over_mean[-1].verdict}{kept}"
    )


def strengths_text(found: Strengths) -> str:
    """The table and what follows from it, for the terminal."""
    headers, rows = strengths_rows(found)
    lines = [
        f"{found.names[0]} and {found.names[1]}: scores in points; ± is half of a {100 * (1 - found.alpha):g} %"
        " interval; merges: score (lead over the candidates' mean)",
        "",
        render_table(["", *headers, f"{found.names[0]} is"], [[name, *cells, said] for name, cells, said in rows]),
        "",
        *strengths_notes(found),
        "",
        f"leads are corrected together, and gains together (Holm), level {found.alpha:g}; different strengths: Gail and"
        " Simon's test for leads of both signs",
        *(f"note: {warning}" for warning in found.warnings),
    ]
    return visible("\n".join(lines))


def strengths_json(found: Strengths) -> dict[str, Any]:
    """All figures as JSON can hold them; shares, not points."""
    plain: dict[str, Any] = finite(asdict(found) | {"stronger": found.stronger})
    return plain


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
