"""The table of a run in the terminal: what it tells, and that it is drawn in place."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
import yaml
from test_why import SURGERIES, recipe

from depthup.artifacts.store import Store
from depthup.cli import main
from depthup.files import is_being_written, partial_path, publishing
from depthup.live_view import Screen, last_metrics, table
from depthup.pipeline import survey
from depthup.recipe import parse_recipe

TRAINING = {
    "name": "x",
    "data": {"docs": {"source": "installed-docs", "max_documents": 2}},
    "stages": {
        "base": {"kind": "import", "random": {"num_layers": 2, "hidden_size": 32}},
        "trained": {"kind": "pretrain", "model": "base", "data": "docs", "steps": 40, "rows_per_step": 1,
                    "learning_rate": 1e-3},
    },
}  # fmt: skip


def test_a_running_stage_tells_step_loss_and_time(tmp_path: Path) -> None:
    nodes = survey(parse_recipe(TRAINING), Store(tmp_path))
    folder = partial_path(nodes["trained"].folder)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 9, "loss": 5.0}\n{"step": 10, "loss": 4.25}\n{"step": 11, "lo')
    base, trained = table(nodes, {"trained": time.time() - 75}, {"base": "it crashed (status 1)"})
    assert re.fullmatch(r"trained +pretrain +running +████░+ 10/40  loss 4\.250  1 min 15 s", trained)
    assert base.split(maxsplit=2) == ["base", "import", "failed   it crashed (status 1)"]
    assert last_metrics(tmp_path / "none") is None


def test_the_table_is_drawn_in_place_and_lines_stay_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "5")
    nodes, out = survey(recipe(), Store(tmp_path)), io.StringIO()
    screen = Screen(out)
    screen.update(nodes, {}, {})
    assert out.getvalue().splitlines()[0] == "3 stages above"  # five do not fit
    screen.line("made")
    assert out.getvalue().endswith("\x1b[3A\x1b[Jmade\n")
    screen.update(nodes, {}, {"deep": "x" * 200})
    assert all(len(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line)) < 60 for line in out.getvalue().splitlines())
    screen.close()
    assert out.getvalue().endswith("\x1b[3A\x1b[J")


def test_what_is_being_written_is_told_and_watching_ends_when_all_is_made(tmp_path: Path, capsys) -> None:
    out = tmp_path / "store" / "deep" / ("0" * 12)
    with publishing(tmp_path / "out") as partial:
        assert is_being_written(tmp_path / "out")
        (partial / "file").touch()
    assert not is_being_written(tmp_path / "out") and not is_being_written(out)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SURGERIES | {"stages": {"base": SURGERIES["stages"]["base"]}}))
    assert main(["run", str(path), "--store", str(tmp_path / "store"), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["status", str(path), "--store", str(tmp_path / "store"), "--watch"]) == 0
    assert "cached" in capsys.readouterr().out
