"""Tables that are read off the records: seams, merges, data, contamination, cost. What a run did not do has none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts.record import Record
from ..layers import LayerPlan
from .lineage import role_of, tokens_trained
from .text import format_compact, format_count, format_seconds
from .values import DataSource, Table

_MOST_SEAMS = 24
# A figure of a probe at a seam -> its heading.
_MEASURES = {"cosine": "cosine", "rms_ratio": "RMS ratio", "loss_jump": "loss jump"}


def seam_table(plan: LayerPlan, shown: Sequence[Record], places: Mapping[str, Path]) -> Table | None:
    """A row a seam: where it is, its layer distance, and what a probe on the page measured there; None for none.

    Of a probe that saw the trained target, cosine and RMS ratio stand before and after training.
    """
    if not plan.seams:
        return None
    probed = next((found for one in shown if (found := _probed(places[one.stage], plan))), {})
    columns = [
        (side, key) for side, found in probed.items() for key in _MEASURES if any(_number(one, key) for one in found)
    ]
    rows = []
    for seam in plan.seams[:_MOST_SEAMS]:
        row = [f"{seam.below}|{seam.above}", f"{seam.target_layer - 1}|{seam.target_layer}", str(seam.layer_distance)]
        for side, key in columns:
            row.append(
                next((_number(one, key) for one in probed[side] if one["target_layer"] == seam.target_layer), "")
            )
        rows.append(tuple(row))
    notes = [f"{len(plan.seams) - _MOST_SEAMS} more seams are not shown."] if len(plan.seams) > _MOST_SEAMS else []
    if probed:
        notes += [
            "Cosine: of the stream that arrives at the upper layer with the one that reached it in the base. RMS ratio:"
            " of their sizes. Loss jump: what the seam adds to the loss, in nats per token.",
        ]
    else:
        notes.append("Only distances in layers are known: the page shows no probe of this plan.")
    headers = ("seam", "target layers", "layer distance", *(f"{_MEASURES[key]}{side}" for side, key in columns))
    return Table("", headers, tuple(rows), tuple(notes))


def _probed(place: Path, plan: LayerPlan) -> dict[str, list[Mapping[str, Any]]]:
    """What ``probe.json`` in a stage's folder tells of the seams of a plan, by the side of training; empty for none."""
    path = place / "probe.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    trained = found.get("trained") or {}
    if trained.get("layers") == plan.text:
        return {f", {side} training": list(trained[side]["seams"]) for side in ("before", "after")}
    tried = (one for one in [*found.get("tried", ()), *found.get("upscale", ())] if one.get("layers") == plan.text)
    seams = next((list(one["seams"]) for one in tried), [])
    return {"": seams} if seams else {}


def _number(measured: Mapping[str, Any], key: str) -> str:
    value = measured.get(key)
    return f"{value:.3f}".replace("-", "\u2212") if isinstance(value, int | float) else ""


def merge_tables(shown: Sequence[Record]) -> tuple[Table, ...]:
    """Every merge of the lineage: method, what went into it, with which weights."""
    rows: list[tuple[str, ...]] = []
    for one in shown:
        if one.kind == "merge":
            parts = list(one.inputs)[: len(one.results["weights"])]
            weights = (f"{weight:g} {name}" for weight, name in zip(one.results["weights"], parts, strict=False))
            layers = one.identity.get("layer_weights") or {}
            others = "; ".join(f"layers {key}: {', '.join(f'{x:g}' for x in each)}" for key, each in layers.items())
            rows.append((one.stage, one.results["method"], ", ".join(weights), others))
    if not any(row[-1] for row in rows):
        rows = [row[:-1] for row in rows]
    headers = ("merge", "method", "weights", "other weights")
    return (Table("", headers[: len(rows[0])], tuple(rows)),) if rows else ()


def strength_tables(shown: Sequence[Record]) -> tuple[Table, ...]:
    """Tables that stages leave in their records under ``strengths``: title, headers, rows, notes."""
    return tuple(
        Table(
            str(found.get("title", "")), tuple(map(str, found["headers"])),
            tuple(tuple(map(str, row)) for row in found["rows"]), tuple(map(str, found.get("notes", ()))),
        )
        for one in shown
        if isinstance(found := one.results.get("strengths"), Mapping)
    )  # fmt: skip


def data_tables(shown: Sequence[Record], sources: Mapping[str, Sequence[DataSource]]) -> tuple[Table, ...]:
    """What was trained on, and what stages made of it."""
    users: dict[str, list[str]] = {}
    entries: dict[str, DataSource] = {}
    for one in shown:
        for source in sources.get(one.stage, ()) if role_of(one) != "measure" else ():
            entries[source.name] = source
            users.setdefault(source.name, []).append(one.stage)
    read = Table(
        "Data that stages read", ("data", "from", "licence", "read by"),
        tuple((name, one.where, one.licence or "not stated", ", ".join(users[name])) for name, one in entries.items()),
    )  # fmt: skip
    made = Table(
        "Data that stages made", ("stage", "kind", "rows", "held back"),
        tuple((one.stage, one.kind, *_made(one)) for one in shown if role_of(one) == "data"),
    )  # fmt: skip
    return tuple(table for table in (read, made) if table.rows)


def _made(record: Record) -> tuple[str, str]:
    """Rows that a data stage gives on, and what it left out and why."""
    results = record.results
    if record.kind == "decontaminate":
        return format_count(results["num_kept"]), f"{results['num_flagged']:,} of {results['num_rows']:,}: leaks"
    left: dict[str, int] = dict(results.get("rows_left_out", {}))
    for reasons in results.get("rejected", {}).values():
        for reason, number in reasons.items():
            left[reason] = left.get(reason, 0) + number
    said = ", ".join(f"{number:,} {reason}" for reason, number in sorted(left.items(), key=lambda one: -one[1]))
    return format_count(results.get("num_pairs", results.get("num_rows", 0))), said or "none"


def contamination_tables(shown: Sequence[Record], places: Mapping[str, Path]) -> tuple[Table, ...]:
    """Clean and dirty rows, and test items that were seen, for each benchmark of each decontaminate stage."""
    tables = []
    for one in shown:
        path = places[one.stage] / "audit" / "report.json"
        if one.kind == "decontaminate" and path.is_file():
            report = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(_of_benchmark(name, found) for name, found in report["benchmarks"].items())
            kept = f"{one.results['num_kept']:,} of {one.results['num_rows']:,} rows were kept; the others are in none"
            tables.append(Table(
                one.stage, ("test set", "rows clean", "rows dirty", "items not seen", "items seen", "found by"), rows,
                (f"{kept} of the models below.",),
            ))  # fmt: skip
    return tuple(tables)


def _of_benchmark(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    rules = ", ".join(f"{rule} {number:,}" for rule, number in found.get("rows_by_rule", {}).items())
    rows, items = found["rows"], found["items"]
    return (name, *(format_count(one) for one in (rows["clean"], rows["dirty"], items["clean"], items["seen"])), rules)


def cost_table(shown: Sequence[Record], flops: Mapping[str, float]) -> Table | None:
    """Time, device, tokens and model FLOPs of each stage, and of all; None where there is no stage."""
    if not shown:
        return None
    rows = [
        (
            one.stage, one.kind, format_seconds(_seconds(one)), _device(one),
            format_count(tokens_trained(one)) if tokens_trained(one) else "",
            _flops(flops[one.stage]) if one.stage in flops else "",
        )
        for one in shown
    ]  # fmt: skip
    total = (
        "all", "", format_seconds(sum(map(_seconds, shown))), "", format_count(sum(map(tokens_trained, shown))),
        _flops(sum(flops[one.stage] for one in shown if one.stage in flops)) if flops else "",
    )  # fmt: skip
    notes: tuple[str, ...] = (
        "Times are of the runs that made these results, wherever they ran; tokens are those trained on.",
    )
    if flops:
        notes += (
            "Model FLOPs of training as depthup plan counts them: nothing that is computed again; where rates or LoRA"
            " leave weights as they are, what training all of them would take.",
        )
    headers = ("stage", "kind", "time", "device", "tokens", "FLOPs")
    return Table("", headers, (*rows, total), notes)


def _seconds(record: Record) -> float:
    return float(record.circumstance.get("seconds", 0.0))


def _device(record: Record) -> str:
    device = str(record.circumstance.get("device", "auto"))
    return "" if device == "auto" else device


def _flops(value: float) -> str:
    """``1.23e18`` -> ``1.23e18``; below 1e15 with a letter as in ``12.4T``."""
    if value >= 1e15:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return format_compact(value)
