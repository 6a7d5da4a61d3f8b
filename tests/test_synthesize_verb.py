"""The verb `synthesize`: offline from the shell, what it tells beforehand, and bad input without a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from depthup.cli import main
from depthup.data_stages import make_gate

MADE = ["synthesize", "math", "--seeds", "factory:20", "--backend", "factory", "--no-symbolic"]


def test_offline_from_seeds_to_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([*MADE, "--out", str(out), "--keep", "rephrase=1", "--max-rows", "answer=7"]) == 0
    told = capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] and manifest["statistics"]["kept"]["answer"] == 7
    assert manifest["statistics"]["kept"]["rephrase"] <= 20 and f"rows in {out}" in told
    assert main([*MADE, "--out", str(out), "--keep", "rephrase=1", "--max-rows", "answer=7"]) == 0
    assert main([*MADE, "--out", str(out)]) == 2
    assert "another 'settings'" in capsys.readouterr().err


def test_a_dry_run_tells_requests_tokens_and_cost_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--backend", "http://127.0.0.1:9/v1#m", "--price-in", "1", "--price-out", "2"]
    assert main([*MADE, *server, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "20 seeds" in told and "at most" in told and "by the prices given" in told and "dry run" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--kinds", "answer,rephrse"], "did you mean 'rephrase'"), (["--keep", "answer"], "gives no number"),
        (["--ask", "answer=0"], "would be asked"), (["--seeds", "factory:none"], "how many problems"),
        (["--seeds", "nowhere.jsonl"], "cannot be read"), (["--backend", "nobody:x"], "nobody"),
        (["--min-agreement", "1.5"], "shares from 0 to 1"), (["--against", "h7"], "h7"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*MADE, "--out", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_the_gate_holds_back_what_hits_a_test_set(
    shared_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question of GSM8K's test set with words before it: no hash knows it, the scanner does."""
    item = json.loads(shared_data("gsm8k/test.jsonl").read_text().splitlines()[0])
    leak = {"question": f"Here is something to work out. {item['question']}", "answer": "The answer is: 18"}
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(json.dumps(leak) + "\n")
    out = tmp_path / "out"
    gate = ["--against", "gsm8k", "--data-dir", str(shared_data("gsm8k").parent)]
    made = ["synthesize", "math", "--seeds", str(seeds), "--backend", "factory", "--out", str(out), "--no-symbolic"]
    assert main([*made, *gate]) == 1  # nothing is kept
    assert not list(out.glob("rows-*.jsonl"))
    reasons = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert any(row["reason"] == "contaminated" and "gsm8k" in row["detail"] for row in reasons)


def test_the_gate_is_known_by_what_the_test_sets_hold(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    rows, names = tmp_path / "gsm8k" / "test.jsonl", []
    for answer, rules in ((28, ["exact"]), (29, ["exact"]), (29, ["ngram", "exact"])):
        rows.write_text(json.dumps({"question": "How many crates of oranges are in each wagon?", "answer": answer}))
        names.append(make_gate("gsm8k", tmp_path, rules)[1])
    assert len(set(names)) == 3
    assert make_gate("gsm8k", tmp_path, ["exact", "ngram"])[1] == names[2]
