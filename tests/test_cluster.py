"""The Slurm script of docs/cluster.md, as it stands there: signalled in the middle, requeued, and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
RECIPE = {
    "name": "test",
    "data": {"docs": {"source": "installed-docs", "max_documents": 20, "held_out": 0.2}},
    "stages": {
        "base": {"kind": "import", "random": {"num_layers": 2, "hidden_size": 32}},
        "trained": {
            "kind": "pretrain", "model": "base", "data": "docs", "steps": 400, "rows_per_step": 2, "row_tokens": 64,
            "learning_rate": 1e-3, "eval_tokens": 256,
        },
    },
}  # fmt: skip
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")
def test_the_slurm_script_stops_in_time_requeues_and_goes_on(tmp_path: Path) -> None:
    script = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / "cluster.md").read_text(), re.DOTALL)[0]
    with socket.socket() as free:  # the script's port may be taken on this machine
        free.bind(("127.0.0.1", 0))
        script = script.replace(":29500", f":{free.getsockname()[1]}")
    (tmp_path / "depthup.sbatch").write_text(script)
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("srun", '#!/bin/bash\nexec "$@"\n'),
        ("scontrol", SCONTROL),
        ("torchrun", f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'),
    ):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2",
        "REQUEUED": str(tmp_path / "requeued"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    store = tmp_path / "store"
    command = ["bash", str(tmp_path / "depthup.sbatch"), str(tmp_path / "recipe.yaml"), str(store)]
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        metrics = store / "trained"
        for _ in range(1200):  # until it has trained for some steps
            if any(path.stat().st_size > 1000 for path in metrics.glob(".*.partial/metrics.jsonl")):
                break
            assert job.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(120) == 0, (tmp_path / "log").read_text()[-3000:]
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
        (state,) = metrics.glob(".*.partial/state/step-*")
        num_steps = int(state.name.removeprefix("step-"))
        assert 0 < num_steps < 400 and not (metrics / "latest").exists()
        assert subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=300).returncode == 0
    lines = [json.loads(line) for line in (metrics / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 401))
