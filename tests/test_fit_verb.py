"""`depthup fit`: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fitting.planted import CONTROL, CROSSING, loss, planted

from depthup.cli import main
from depthup.fitting.runs import read_runs

_FEW = ["--draws", "50"]


def write_csv(path: Path, flops: bool = True) -> Path:
    lines = ["run,tokens,loss" + ",flops" * flops]
    for name, curve, each in (("control", CONTROL, 1e9), ("grown", CROSSING, 1.5e9)):
        run = planted(name, curve, num_points=8)
        for tokens, value in zip(run.tokens, run.losses, strict=True):
            lines.append(f"{name},{tokens},{value}" + f",{each * tokens}" * flops)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_metrics(path: Path, curve: tuple[float, ...], held_out: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    key = "held_out_loss" if held_out else "loss"
    lines = [{"step": i, "tokens_seen": 1e6 * i * i, key: loss(curve, 1e6 * i * i)} for i in range(8)]
    lines.insert(3, {"step": 3, "tokens_seen": 9e6, "loss": None, "skipped": True})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_table_becomes_json_figures_and_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fit"
    table = write_csv(tmp_path / "curves.csv")
    assert main(["fit", str(table), "--control", "control", "--out", str(out), *_FEW]) == 0
    said = capsys.readouterr().out
    assert re.search(r"grown passes control at [\d.]+ M tokens \(95% interval", said)
    found = json.loads((out / "fit.json").read_text())
    assert [run["name"] for run in found["runs"]] == ["control", "grown"]
    assert [pair["axis"] for pair in found["pairs"]] == ["tokens", "flops"]
    for pair in found["pairs"]:
        assert pair["break_even"]["low"] < pair["break_even"]["estimate"] and all(
            word in said for word in pair["words"]
        )
    for name in ("tokens.svg", "flops.svg"):
        figure = ElementTree.fromstring((out / name).read_text())
        text = " ".join(figure.itertext())
        assert "extrapolated" in text and "grown" in text and "prefers-color-scheme:dark" in text
        assert {"control", "grown"} <= set(re.findall(r"(\w+): [\d.]+ by the fit", text))


def test_without_flops_there_is_no_compute_axis(tmp_path: Path) -> None:
    out = tmp_path / "fit"
    assert main(["fit", str(write_csv(tmp_path / "c.csv", flops=False)), "--out", str(out), *_FEW]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["fit.json", "tokens.svg"]


def test_metrics_of_two_places_are_two_seeds_of_one_run(tmp_path: Path) -> None:
    places = [write_metrics(tmp_path / f"run-{i}" / "metrics.jsonl", CONTROL) for i in range(2)]
    (run,) = read_runs([f"dus={place}" for place in places])
    assert run.name == "dus" and run.num_seeds == 2 and run.is_held_out and len(run.tokens) == 16
    apart = read_runs([str(place) for place in places])
    assert [run.name for run in apart] == ["run-0", "run-1"]
    (training,) = read_runs([str(write_metrics(tmp_path / "x.jsonl", CONTROL, held_out=False))], from_tokens=2e6)
    assert not training.is_held_out and min(training.tokens) == 4e6


def test_the_pretrain_stages_of_a_store_are_found_with_their_compute(
    tmp_path: Path, base: object, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from depthup.artifacts.record import Record

    for name, layers in (("control", 7), ("grown", 9)):
        folder = tmp_path / "runs" / name / f"abc{layers}"
        shutil.copytree(base("llama", num_layers=layers), folder)  # type: ignore[operator]
        write_metrics(folder / "metrics.jsonl", CONTROL)
        Record(stage=name, kind="pretrain", fingerprint="f", identity={"row_tokens": 64, "seed": 3}, inputs={},
               results={}, circumstance={}).write(folder)  # fmt: skip
    control, grown = read_runs([str(tmp_path / "runs")])
    assert (control.name, grown.name) == ("control", "grown") and control.seeds[0] == 3
    assert control.flops_per_token and grown.flops_per_token and grown.flops_per_token > control.flops_per_token


@pytest.mark.parametrize("text, said", [
    ("run,tokens,loss\na,1,2\na,x,2\n", "row 2 of"),
    ("run,tokens,loss\na,1,0\n", "a number above 0"),
    ("run,tokens,los\na,1,2\n", "did you mean 'loss'"),
    ("run,tokens,loss,flops\na,1,2,10\na,2,2,40\n", "do not grow in step"),
    ("run,tokens,loss\n,1,2\n", "names no run"),
    ("run,tokens,loss\n", "holds no points"),
    ("run,tokens,loss\na,1,2\n", "a curve of 1 points"),
])  # fmt: skip
def test_bad_tables_are_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert main(["fit", str(path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("options, said", [
    (["nowhere.csv"], "there is no file"),
    (["{csv}", "--control", "contrl"], "did you mean 'control'"),
    (["x={csv}"], "holds 2 runs"),
    (["{csv}", "--from-tokens", "1e12"], "has no points from"),
    (["{empty}"], "holds no pretrain stage"),
    (["{csv}", "--out", "{empty}"], "exists"),
])  # fmt: skip
def test_bad_input_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"csv": write_csv(tmp_path / "c.csv"), "empty": tmp_path / "empty"}
    assert main(["fit", *(option.format(**places) for option in options)]) == 2
    assert said in capsys.readouterr().err
