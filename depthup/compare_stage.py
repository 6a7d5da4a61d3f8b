"""The compare stage: one table of models with the verdict of each against the first, beside the paper's rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .stage_data import Job
from .stage_settings import CompareStage

if TYPE_CHECKING:
    from .evaluation.compare import Comparison
    from .evaluation.scores import ModelScores


def run_compare(job: Job, folder: Path) -> dict[str, Any]:
    """Scores -> ``comparison.json``, ``comparison.txt`` and the cells of the table; none where scores are left out."""
    from .evaluation.results import read_results

    stage: CompareStage = job.stage
    evaluations = (*stage.evaluations, *stage.merged)
    records = [job.records[name] for name in evaluations]
    left_out = next((one.results["scores_left_out"] for one in records if "scores_left_out" in one.results), None)
    if left_out is not None:
        return {"title": stage.title, "left_out": left_out}
    models = [
        replace(read_results(job.folders[name] / one.results["scores"]), model=one.results["model"])
        for name, one in zip(evaluations, records, strict=True)
    ]
    tell = _strengths if stage.merged else _comparison
    return {"title": stage.title, **tell(stage, models, job.recipe.seed, folder)}


def _comparison(stage: CompareStage, models: list[ModelScores], seed: int, folder: Path) -> dict[str, Any]:
    from .evaluation.compare import compare
    from .files import write_json, write_text
    from .report.comparison import comparison_json, comparison_text

    found = compare(models, alpha=stage.alpha, seed=seed)
    write_json(folder / "comparison.json", comparison_json(found))
    write_text(folder / "comparison.txt", comparison_text(found) + "\n")
    return _table(found, stage.paper)


def _strengths(stage: CompareStage, models: list[ModelScores], seed: int, folder: Path) -> dict[str, Any]:
    """A row for each task: both candidates, the merges, and what the first candidate is there."""
    from .evaluation.strengths import strengths
    from .files import write_json, write_text
    from .report.strengths import strengths_json, strengths_notes, strengths_rows, strengths_text

    first, second, *merges = models
    found = strengths(first, second, merges, stage.shares, alpha=stage.alpha, seed=seed)
    write_json(folder / "comparison.json", strengths_json(found))
    write_text(folder / "comparison.txt", strengths_text(found) + "\n")
    headers, rows = strengths_rows(found)
    lines = [
        {"name": name, "cells": cells, "paper": None, "paper_cells": [], "verdict": f"{found.names[0]}: {said}"}
        for name, cells, said in rows
    ]
    explained = "behind each merge's score its lead over the candidates' mean, item by item"
    return {"headers": headers, "rows": lines, "notes": [*strengths_notes(found), explained, *found.warnings]}


def _table(found: Comparison, paper: tuple[str | None, ...]) -> dict[str, Any]:
    """Headers, and for each model its cells, the paper's cells for its row, and the verdict on the mean."""
    from .evaluation.paper_tables import SCORES, TASKS, mean_score
    from .evaluation.statistics import is_lower_better
    from .report.scores import task_title, with_margin

    titles = [task_title(task) for task, _, _ in found.tasks]
    in_points = [not is_lower_better(metric) for _, metric, _ in found.tasks]
    has_mean = all(mean is not None for mean in found.means)
    verdicts = {name: rows[-1].verdict for name, rows in zip(found.others, found.compared, strict=True)}
    rows = []
    for place, (name, scores, mean) in enumerate(zip(found.names, found.scores, found.means, strict=True)):
        cells = [with_margin(one, unit) for one, unit in zip(scores, in_points, strict=True)]
        theirs: list[str] = []
        row = paper[place] if paper else None
        if row is not None:
            printed = dict(zip(TASKS, SCORES[row], strict=True))
            theirs = [f"{printed[title]:.2f}" if title in printed else "" for title in titles]
            theirs_mean = f"{mean_score(row):.2f}" if set(titles) == TASKS.keys() else ""  # H6 is a mean of these six
            theirs = [theirs_mean, *theirs] if has_mean else theirs
        rows.append({
            "name": name,
            "cells": [with_margin(mean, in_points[0]), *cells] if has_mean else cells,
            "paper": row,
            "paper_cells": theirs,
            "verdict": verdicts.get(name, "baseline"),
        })  # fmt: skip
    headers = [found.suite, *titles] if has_mean else titles
    notes = [f"{found.num_comparisons} differences, corrected together (Holm), level {found.alpha:g}", *found.warnings]
    return {"headers": headers, "rows": rows, "notes": notes}
