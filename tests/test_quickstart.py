"""The main job as a newcomer does it, on the real model: minutes, so not in CI (`pytest -m slow`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def run(store: Path) -> tuple[list[str], float]:
    command = [
        sys.executable,
        "-m",
        "depthup",
        "run",
        str(REPOSITORY / "recipes" / "quickstart"),
        "--store",
        str(store),
    ]
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), time.perf_counter() - started


@pytest.mark.slow
def test_the_quickstart_ends_with_its_table_and_page_and_is_then_cached(tmp_path: Path) -> None:
    lines, _ = run(tmp_path / "store")
    names, losses = zip(*((line.split()[0], float(line.split()[-2])) for line in lines[-7:-2]), strict=True)
    assert names == ("base", "target", "trained", "tuned", "merged")
    base, target, trained = losses[:3]
    assert trained < base < target
    assert Path(lines[-1].removeprefix("report: ")).is_file()
    again, seconds = run(tmp_path / "store")
    assert again[-7:] == lines[-7:]
    assert sum("cached" in line for line in again) == 17
    assert seconds < 5
