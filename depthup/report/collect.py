"""From the records of a run to the values that the page shows. Computes nothing, loads no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..artifacts.fingerprint import flatten
from ..artifacts.record import Record
from ..evaluation.results import read_results
from ..evaluation.scores import ModelScores
from ..layers import LayerPlan
from .values import ComparedModel, ComparedTable, Curve, Generation, ModelRow, Probe, Report, StageCard

_DESCRIPTIONS = {
    "import": "as published",
    "upscale": "up-scaled, not trained",
    "pretrain": "after continued pretraining",
    "sft": "instruction-tuned",
    "dpo": "aligned (DPO)",
    "sdpo": "aligned (sDPO)",
    "merge": "merged",
}


def collect_rows(evaluations: Sequence[str], records: Mapping[str, Record]) -> tuple[ModelRow, ...]:
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
    records: Mapping[str, Record],
    folder_of: Callable[[str, str], Path],
    comparisons: Sequence[str] = (),
    probes: Sequence[str] = (),
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
        probes: Names of probe stages.
    """
    lineage = _lineage([*evaluations, *comparisons, *probes], records)
    rows = collect_rows(evaluations, records)
    plans = [record.results["plan"] for record in lineage if record.kind == "upscale" and "plan" in record.results]
    return Report(
        title=title,
        summary=summary,
        notes=tuple(notes),
        plan=LayerPlan.from_json(plans[0]) if plans else None,
        rows=rows,
        reference_losses=tuple((row.name, row.loss) for row in rows if row.tokens_seen == 0),
        curves=tuple(
            _curve(record.stage, folder_of(record.stage, record.fingerprint) / "metrics.jsonl")
            for record in lineage
            if record.kind == "pretrain" and (folder_of(record.stage, record.fingerprint) / "metrics.jsonl").is_file()
        ),
        generations=_generations([records[name] for name in evaluations]),
        scores=_scores([records[name] for name in evaluations], folder_of),
        comparisons=tuple(_compared(records[name].results) for name in comparisons),
        probes=tuple(_probe(records[name], folder_of) for name in probes),
        stages=tuple(_card(record) for record in lineage),
        environment=_environment(lineage),
    )


def _lineage(names: Sequence[str], records: Mapping[str, Record]) -> list[Record]:
    """The records of ``names`` and of all that they come from, in the order of the recipe."""
    wanted = set(names)
    for name in reversed(list(records)):
        if name in wanted:
            wanted |= records[name].inputs.keys()
    return [record for name, record in records.items() if name in wanted]


def _row(evaluation: Record, records: Mapping[str, Record]) -> ModelRow:
    results = evaluation.results
    model = records.get(results["model"])
    return ModelRow(
        name=results["model"],
        description=_DESCRIPTIONS.get(model.kind, "") if model else "as it came",
        num_layers=results["num_layers"],
        num_parameters=results["num_parameters"],
        tokens_seen=_tokens_seen(results["model"], records),
        loss=results["loss"],
        num_held_out_tokens=results["num_tokens"],
    )


def _tokens_seen(name: str, records: Mapping[str, Record]) -> int:
    """Training tokens since the base: those of the stage and of every model that it comes from, each once."""
    wanted, found = {name}, 0
    for other in reversed(list(records)):
        record = records[other]
        if other in wanted:
            runs = [record.results, *record.results.get("chunks", ())]  # the steps of sDPO are runs of their own
            found += sum(run.get("num_tokens_seen", 0) for run in runs)
            wanted |= {
                source for source in record.inputs if source in records and "files" not in records[source].results
            }
    return found


def _compared(results: Mapping[str, Any]) -> ComparedTable:
    if "left_out" in results:
        return ComparedTable(results["title"], (), (), (f"left out: {results['left_out']}",))
    rows = tuple(
        ComparedModel(row["name"], tuple(row["cells"]), row["paper"] or "", tuple(row["paper_cells"]), row["verdict"])
        for row in results["rows"]
    )
    return ComparedTable(results["title"], tuple(results["headers"]), rows, tuple(results["notes"]))


def _probe(record: Record, folder_of: Callable[[str, str], Path]) -> Probe:
    path = folder_of(record.stage, record.fingerprint) / record.results["probe"]
    return Probe(record.stage, json.loads(path.read_text(encoding="utf-8")))


def _curve(name: str, metrics: Path) -> Curve:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]

    def points(key: str) -> tuple[tuple[int, float], ...]:
        return tuple((line["tokens_seen"], line[key]) for line in lines if key in line)

    return Curve(name, points("loss"), points("held_out_loss"), points("learning_rate"))


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
    )


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _environment(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    last = records[-1].circumstance if records else {}
    return tuple((key, str(value)) for key, value in last.items() if key != "seconds")
