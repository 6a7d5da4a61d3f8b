"""From the records of a run to the values that the page shows. Computes nothing, loads no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..artifacts.fingerprint import flatten
from ..artifacts.record import Record
from ..evaluation.results import read_results
from ..evaluation.scores import ModelScores
from ..layers import LayerPlan
from .citation import bibtex
from .lineage import Records, control_of, lineage, role_of, surgery_of, tokens_seen, tokens_trained
from .record_tables import (
    contamination_tables,
    cost_table,
    data_tables,
    merge_tables,
    seam_table,
    strength_tables,
)
from .summary import Story, recovery_facts, summarize
from .values import ComparedModel, ComparedTable, Curve, DataSource, Generation, ModelRow, Probe, Report, StageCard

_NO_VERSION = ("seconds", "device", "stands_for", "adopted_from")
_DESCRIPTIONS = {
    "import": "as published",
    "upscale": "up-scaled, not trained",
    "upcycle": "upcycled, not trained",
    "pretrain": "after continued pretraining",
    "sft": "instruction-tuned",
    "dpo": "aligned (DPO)",
    "sdpo": "aligned (sDPO)",
    "merge": "merged",
}


def collect_rows(evaluations: Sequence[str], records: Records) -> tuple[ModelRow, ...]:
    """A row of the main table for each evaluate stage that measured a held-out loss.

    Args:
        evaluations: Names of evaluate stages.
        records: Records of those stages and of all that they come from, by name.
    """
    return tuple(_row(records[name], records) for name in evaluations if "loss" in records[name].results)


def collect_report(
    title: str,
    summary: str,
    notes: Sequence[str],
    evaluations: Sequence[str],
    records: Records,
    folder_of: Callable[[str, str], Path],
    comparisons: Sequence[str] = (),
    others: Sequence[str] = (),
    model: str | None = None,
    sources: Mapping[str, Sequence[DataSource]] | None = None,
    flops: Mapping[str, float] | None = None,
) -> Report:
    """Everything that :func:`depthup.report.page.render_page` shows.

    Args:
        title: Heading.
        summary: One sentence.
        notes: What the result shows, and what it does not.
        evaluations: Names of evaluate stages, one a row.
        records: Records of those stages and of all that they come from, by name.
        folder_of: Folder of a result, from stage name and fingerprint.
        comparisons: Names of compare stages, one a table.
        others: Names of further stages that are shown.
        model: Stage of the model that the story ends with; the one evaluated last, where it is not said.
        sources: Data of each stage that reads some, by its name.
        flops: Model FLOPs of each stage that trains, by its name.
    """
    shown = lineage([*evaluations, *comparisons, *others, *([model] if model else [])], records)
    rows = collect_rows(evaluations, records)
    plan = next((LayerPlan.from_json(record.results["plan"]) for record in shown if "plan" in record.results), None)
    places = {record.stage: folder_of(record.stage, record.fingerprint) for record in shown}
    curves = _curves(shown, records, places)
    tables = tuple(_compared(records[name].results) for name in comparisons)
    measured = _scores([record for record in shown if record.kind == "evaluate"], folder_of)
    story = Story(shown, records, rows, tables, measured, model or final_model(evaluations, records))
    return Report(
        title=title,
        summary=summary,
        notes=tuple(notes),
        plan=plan,
        rows=rows,
        reference_losses=tuple((row.name, row.loss) for row in rows if row.tokens_seen == 0),
        curves=curves,
        generations=_generations([records[name] for name in evaluations]),
        scores=_scores([records[name] for name in evaluations], folder_of),
        comparisons=tables,
        probes=tuple(_probe(one, places[one.stage]) for one in shown if one.kind == "probe"),
        stages=tuple(map(_card, shown)),
        environment=_environment(shown),
        summary_of=summarize(story) if plan else None,
        seams=seam_table(plan, shown, places) if plan else None,
        recovery=recovery_facts(story, curves),
        merges=merge_tables(shown),
        strengths=strength_tables(shown),
        data=data_tables(shown, sources or {}),
        contamination=contamination_tables(shown, places),
        cost=cost_table(shown, flops or {}),
        citation=bibtex(shown, __version__) if shown else "",
    )


def collect_model(
    model: str, records: Records, folder_of: Callable[[str, str], Path]
) -> tuple[tuple[ModelRow, ...], tuple[ModelScores, ...], LayerPlan | None, tuple[StageCard, ...], str]:
    """What a card tells of one model: its held-out losses and scores, the plan, the stages behind it, whom to cite.

    The first of the losses are the base's and the grown model's, where they were measured.
    """
    behind = lineage([model], records)
    surgery = surgery_of(model, records)
    told = [*(surgery.inputs if surgery else ()), *([surgery.stage] if surgery else []), model]
    measured = [name for name, one in records.items() if one.kind == "evaluate" and one.results["model"] in told]
    measured.sort(key=lambda name: told.index(records[name].results["model"]))
    own = [name for name in measured if records[name].results["model"] == model]
    rows = {row.name: row for row in collect_rows(measured, records)}
    return (
        tuple(rows.values()), _scores([records[name] for name in own], folder_of),
        LayerPlan.from_json(surgery.results["plan"]) if surgery else None, tuple(map(_card, behind)),
        bibtex(behind, __version__),
    )  # fmt: skip


def final_model(evaluations: Sequence[str], records: Records) -> str:
    """The model that the last evaluation measured."""
    return str(records[evaluations[-1]].results["model"]) if evaluations else ""


def _row(evaluation: Record, records: Records) -> ModelRow:
    results = evaluation.results
    model = records.get(results["model"])
    return ModelRow(
        name=results["model"],
        description=_DESCRIPTIONS.get(model.kind, "") if model else "as it came",
        num_layers=results["num_layers"],
        num_parameters=results["num_parameters"],
        tokens_seen=tokens_seen(results["model"], records),
        loss=results["loss"],
        num_held_out_tokens=results["num_tokens"],
    )


def _compared(results: Mapping[str, Any]) -> ComparedTable:
    if "left_out" in results:
        return ComparedTable(results["title"], (), (), (f"left out: {results['left_out']}",))
    rows = tuple(
        ComparedModel(row["name"], tuple(row["cells"]), row["paper"] or "", tuple(row["paper_cells"]), row["verdict"])
        for row in results["rows"]
    )
    return ComparedTable(results["title"], tuple(results["headers"]), rows, tuple(results["notes"]))


def _probe(record: Record, place: Path) -> Probe:
    path = place / "probe.json"
    return Probe(record.stage, json.loads(path.read_text(encoding="utf-8")))


def _curves(shown: Sequence[Record], records: Records, places: Mapping[str, Path]) -> tuple[Curve, ...]:
    """The losses of each continued pretraining that left some, over the tokens seen since the base."""
    control = control_of(shown, records)
    return tuple(
        _curve(one.stage, metrics, tokens_seen(one.stage, records) - tokens_trained(one), one is control)
        for one in shown
        if one.kind == "pretrain" and (metrics := places[one.stage] / "metrics.jsonl").is_file()
    )


def _curve(name: str, metrics: Path, before: int, is_control: bool) -> Curve:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]

    def points(key: str) -> tuple[tuple[int, float], ...]:
        return tuple((before + line["tokens_seen"], line[key]) for line in lines if key in line)

    return Curve(name, points("loss"), points("held_out_loss"), points("learning_rate"), is_control)


def _generations(evaluations: Sequence[Record]) -> tuple[Generation, ...]:
    by_prompt: dict[str, list[tuple[str, str]]] = {}
    for record in evaluations:
        for generation in record.results["generations"]:
            by_prompt.setdefault(generation["prompt"], []).append((record.results["model"], generation["text"]))
    return tuple(Generation(prompt, tuple(texts)) for prompt, texts in by_prompt.items())


def _scores(evaluations: Sequence[Record], folder_of: Callable[[str, str], Path]) -> tuple[ModelScores, ...]:
    """The scores of the evaluations that asked benchmarks, each under the name that its model has here."""
    return tuple(
        replace(read_results(folder_of(one.stage, one.fingerprint) / one.results["scores"]), model=one.results["model"])
        for one in evaluations
        if "scores" in one.results
    )


def _card(record: Record) -> StageCard:
    return StageCard(
        name=record.stage,
        kind=record.kind,
        fingerprint=record.fingerprint[:12],
        seconds=record.circumstance["seconds"],
        inputs=tuple(record.inputs),
        settings=tuple((key, _text(value)) for key, value in flatten(record.identity) if key != "kind"),
        role=role_of(record),
    )


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _environment(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    last = records[-1].circumstance if records else {}
    used = (str(record.circumstance.get("device", "auto")) for record in records)
    devices = list(dict.fromkeys(device for device in used if device != "auto"))
    versions = tuple((key, str(value)) for key, value in last.items() if key not in _NO_VERSION)
    return (("device", ", ".join(devices)), *versions) if devices else versions
