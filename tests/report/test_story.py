"""What the records tell: the control, tokens seen, recovery, tables; no number is anywhere but in the records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthup.artifacts.record import Record
from depthup.layers import LayerPlan
from depthup.report.citation import bibtex
from depthup.report.collect import collect_report
from depthup.report.lineage import control_of, models_behind, role_of, surgery_of, tokens_seen, trained_target
from depthup.report.values import DataSource, Report

PLAN = LayerPlan.upscale(30, 8)
BASE, GROWN = {"num_layers": 30, "num_parameters": 134_515_008}, {"num_layers": 44, "num_parameters": 184_072_896}
HELD_OUT = {"cpt": ((0, 3.35), (40_000, 3.01), (80_000, 2.81)), "control": ((0, 2.95), (40_000, 2.80), (80_000, 2.71))}


def record(name: str, kind: str, inputs: tuple[str, ...] = (), identity: dict[str, Any] | None = None,
           **results: Any) -> Record:  # fmt: skip
    return Record(
        stage=name, kind=kind, fingerprint=name * 12, identity={"kind": kind, **(identity or {})},
        inputs=dict.fromkeys(inputs, ""), results=results, circumstance={"seconds": 2.5, "device": "cpu", "torch": "2"},
    )  # fmt: skip


def loss(name: str, value: float, shape: dict[str, int]) -> Record:
    return record(f"{name}-loss", "evaluate", (name,), model=name, generations=[], loss=value, num_tokens=16_384,
                  **shape)  # fmt: skip


RECORDS = {
    one.stage: one
    for one in (
        record("base", "import", dtype="bfloat16", **BASE),
        record("grown", "upscale", ("base",), plan=PLAN.to_json(), **GROWN),
        record("cpt", "pretrain", ("grown",), {"seed": 7}, num_tokens_seen=80_000, **GROWN),
        record("control", "pretrain", ("base",), {"seed": 7}, num_tokens_seen=80_000, **BASE),
        record("math", "synthesize", (), {"seed": 7}, files=["rows.jsonl"], seeds="seeds.jsonl", num_rows=123,
               rejected={"rephrase": {"echo": 4}}, num_seeds=9),
        record("clean", "decontaminate", ("math",), files=["kept.jsonl"], num_rows=123, num_kept=120, num_flagged=3),
        record("tuned", "sft", ("cpt", "clean"), {"seed": 7}, num_tokens_seen=500, **GROWN),
        record("aligned", "sdpo", ("tuned",), {"seed": 7}, chunks=[{"num_tokens_seen": 20}, {"num_tokens_seen": 30}],
               num_pairs=77, **GROWN),
        record("merged", "merge", ("tuned", "aligned"), method="linear", weights=[0.25, 0.75], **GROWN),
        loss("base", 2.95, BASE), loss("grown", 3.36, GROWN), loss("cpt", 2.80, GROWN), loss("control", 2.70, BASE),
        loss("merged", 2.83, GROWN),
        record("table", "compare", ("base-loss", "merged-loss"), title="A table", headers=["H6", "ARC"], notes=["n"],
               rows=[
            {"name": "base", "cells": ["1", "2"], "paper": None, "paper_cells": [], "verdict": "baseline"},
            {"name": "merged", "cells": ["3", "4"], "paper": "SOLAR", "paper_cells": ["66.04", "61.95"],
             "verdict": "better by 2.0 ± 0.9"}]),
    )
}  # fmt: skip
EVALUATIONS = ("base-loss", "grown-loss", "cpt-loss", "control-loss", "merged-loss")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder a stage, with losses of both runs and the report of the audit."""
    for name, held_out in HELD_OUT.items():
        lines = [{"tokens_seen": tokens, "held_out_loss": value, "loss": value} for tokens, value in held_out]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "clean" / "audit").mkdir(parents=True)
    found = {"rows": {"clean": 120, "dirty": 3}, "rows_by_rule": {"ngram": 3}, "items": {"clean": 1317, "seen": 2}}
    (tmp_path / "clean" / "audit" / "report.json").write_text(json.dumps({"benchmarks": {"gsm8k": found}}))
    return tmp_path


def report(store: Path, records: dict[str, Record] = RECORDS, **options: Any) -> Report:
    given = {"evaluations": EVALUATIONS, "comparisons": ("table",), "flops": {"cpt": 2e15}} | options
    given.setdefault("sources", {"cpt": [DataSource("text", "files: a", "MIT")]})
    return collect_report("T", "S", ("N",), records=records, folder_of=lambda name, _: store / name, **given)


def test_roles_control_and_tokens_come_from_the_lineage() -> None:
    shown = list(RECORDS.values())
    assert {role_of(one) for one in shown if one.kind in ("synthesize", "decontaminate")} == {"data"}
    assert role_of(RECORDS["merged"]) == "model"
    assert role_of(RECORDS["table"]) == role_of(RECORDS["cpt-loss"]) == "measure"
    behind = ["base", "grown", "cpt", "tuned", "aligned", "merged"]
    assert [one.stage for one in models_behind("merged", RECORDS)] == behind
    assert surgery_of("merged", RECORDS) is RECORDS["grown"] and surgery_of("control", RECORDS) is None
    assert control_of(shown, RECORDS) is RECORDS["control"] and trained_target(shown, RECORDS) is RECORDS["cpt"]
    assert tokens_seen("merged", RECORDS) == 80_000 + 500 + 50 and tokens_seen("grown", RECORDS) == 0
    without = {name: one for name, one in RECORDS.items() if name != "grown"}
    assert control_of(without.values(), without) is None  # nothing was grown, so nothing is a control


def test_the_minute_holds_problem_method_result_and_limits(store: Path) -> None:
    told = report(store).summary_of
    assert told and "30 layers and 135M parameters" in told.problem
    method = " ".join(told.method)
    for words in ("30 layers become 44", "base layers 0–21, then 8–29", "seam 21|8, layer distance 13",
                  "cpt (80,000 tokens)", "120 of 123 rows kept", "77 pairs in 2 chunks",
                  "merged (linear, 0.25 : 0.75)"):  # fmt: skip
        assert words in method, words
    assert told.result[0] == "merged against base, by H6: better by 2.0 ± 0.9."
    assert told.result[1] == "Surgery alone takes the held-out loss from 2.950 to 3.360 nats per token."
    assert "2.800, 0.150 below the base." in told.result[2]
    assert "ends at 2.700: the grown model is 0.100 above it." in told.result[3]
    assert "control" not in " ".join(told.limits) and "seed 7" in told.limits[0]


def test_every_number_of_the_minute_is_one_of_the_records(store: Path) -> None:
    told = report(store).summary_of
    assert told
    known = json.dumps([one.model_dump() for one in RECORDS.values()]) + PLAN.text + str(PLAN.seams)
    known += " 2312.15166 135 184 0.150 0.100 44 13 23 8 2"  # computed: compact counts, differences, the plan's
    for text in (told.problem, *told.method, *told.result, *told.limits):
        for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text.replace("H6", "")):
            assert number.replace(",", "").rstrip("0").rstrip(".") in known, (number, text)


def test_what_is_missing_is_a_limit_and_not_made_up(store: Path) -> None:
    without = {name: one for name, one in RECORDS.items() if not name.startswith(("control", "table"))}
    names = tuple(name for name in EVALUATIONS if name in without)
    made = report(store, without, evaluations=names, comparisons=())
    assert made.summary_of and "No control" in made.summary_of.limits[0]
    assert made.summary_of.result[0].startswith("Surgery alone")
    assert "No benchmark was scored." in made.summary_of.limits
    assert not any("control" in name.lower() for name, _ in made.recovery)
    bare = {"base": RECORDS["base"], "base-loss": RECORDS["base-loss"]}
    plain = report(store, bare, evaluations=("base-loss",), comparisons=())
    assert plain.summary_of is None and plain.seams is None and plain.recovery == ()


def test_a_base_from_elsewhere_is_known_by_its_fingerprint(store: Path) -> None:
    """As in recipes/solar-10.7b: no stage makes the base, and records name stages alone."""
    renamed = {
        "grown": RECORDS["grown"].model_copy(update={"inputs": {}, "identity": {"base": "abc"}}),
        "control": RECORDS["control"].model_copy(update={"inputs": {}, "identity": {"model": "abc", "seed": 7}}),
        "base-loss": RECORDS["base-loss"].model_copy(
            update={
                "inputs": {},
                "identity": {"model": "abc"},
                "results": RECORDS["base-loss"].results | {"model": "o/m"},
            }
        ),
    }
    records = {name: renamed.get(name, one) for name, one in RECORDS.items() if name != "base"}
    made = report(store, records)
    assert made.summary_of and made.summary_of.problem.startswith("Make o/m, a trained model of 30 layers, deeper")
    assert [curve.is_control for curve in made.curves] == [False, True] and "0.150 below the base" in str(
        made.summary_of
    )


def test_recovery_is_read_off_the_curve(store: Path) -> None:
    made = report(store)
    assert [(curve.name, curve.is_control) for curve in made.curves] == [("cpt", False), ("control", True)]
    facts = dict(made.recovery)
    tokens, losses = zip(*HELD_OUT["cpt"], strict=True)
    crossing = np.interp(-2.95, [-value for value in losses], tokens)
    found = re.fullmatch(r"reached after about ([\d.]+)k tokens", facts["Level of the base"])
    assert found and float(found[1]) == pytest.approx(crossing / 1000, rel=0.01)
    assert facts["Cost of surgery"].startswith("+0.410") and facts["Against the control"].startswith("+0.100")


def test_tables_hold_what_the_stages_recorded(store: Path) -> None:
    made = report(store)
    assert made.merges[0].rows == (("merged", "linear", "0.25 tuned, 0.75 aligned"),)
    assert made.contamination[0].rows == (("gsm8k", "120", "3", "1,317", "2", "ngram 3"),)
    assert made.data[0].rows == (("text", "files: a", "MIT", "cpt"),)
    assert ("math", "synthesize", "123", "4 echo") in made.data[1].rows
    assert made.cost and made.cost.rows[-1][2] == "37.5 s" and made.cost.rows[-1][4] == "160,550"
    assert made.cost.rows[-1][5] == "2.00e15" and made.environment[0] == ("device", "cpu")
    assert made.comparisons[0].rows[1].paper_cells == ("66.04", "61.95")


@pytest.mark.parametrize("trained", [False, True])
def test_seams_show_what_a_probe_of_this_plan_measured(store: Path, trained: bool) -> None:
    def seams(cosine: float) -> list[dict[str, Any]]:
        return [{"target_layer": 22, "below": 21, "above": 8, "layer_distance": 13, "cosine": cosine, "rms_ratio": 1.5,
                 "loss_jump": None}]  # fmt: skip

    others = {"layers": "0-21,9-29", "seams": seams(9.0)}
    found: dict[str, Any] = {"upscale": [others, {"layers": PLAN.text, "seams": seams(0.4)}]}
    if trained:
        found["trained"] = {"layers": PLAN.text, "before": {"seams": seams(0.4)}, "after": {"seams": seams(-0.7)}}
    (store / "probed").mkdir()
    (store / "probed" / "probe.json").write_text(json.dumps(found))
    records = {**RECORDS, "probed": record("probed", "probe", ("base",))}
    table = report(store, records, others=("probed",)).seams
    assert table
    if trained:
        assert table.headers[3:] == ("cosine, before training", "RMS ratio, before training", "cosine, after training",
                                     "RMS ratio, after training")  # fmt: skip
        assert table.rows == (("21|8", "21|22", "13", "0.400", "1.500", "−0.700", "1.500"),)
    else:
        assert table.rows == (("21|8", "21|22", "13", "0.400", "1.500"),)
    plain = report(store).seams
    assert plain and plain.headers == ("seam", "target layers", "layer distance") and "no probe" in plain.notes[0]


def test_strengths_of_a_record_are_shown(store: Path) -> None:
    found = {"title": "A and B", "headers": ["task", "lead"], "rows": [["GSM8K", "+7"]], "notes": ["pays"]}
    paying = record("pay", "compare", (), title="t", headers=[], rows=[], notes=[], strengths=found)
    records = {**RECORDS, "pay": paying}
    table = report(store, records, others=("pay",)).strengths[0]
    assert (table.title, table.rows, table.notes) == ("A and B", (("GSM8K", "+7"),), ("pays",))


def test_papers_of_the_kinds_that_stand_in_the_lineage_are_cited() -> None:
    entries = bibtex(list(RECORDS.values()), "1.2")
    assert [key for key in ("2312.15166", "2309.12284", "2403.19270", "version = {1.2}") if key in entries] and (
        "2305.18290" not in entries  # sDPO is its own paper
    )
    assert entries.count("{") == entries.count("}") and "http" not in entries
    assert bibtex((), "1").startswith("@software")
