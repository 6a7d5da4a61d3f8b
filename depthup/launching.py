"""A stage that several ranks make: started through torchrun or Slurm, stopped by a file, its errors brought back."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from .errors import DepthupError, Stopped
from .stage_settings import Launch

WORKER = "DEPTHUP_WORKER"  # set in a process that makes one stage for another one
PROBLEM_FILE = "DEPTHUP_PROBLEM_FILE"  # where a rank writes what was wrong with its input
_STOP_FILE = "DEPTHUP_STOP_FILE"
_POLL_SECONDS = 0.1


def launch_command(launch: Launch, run: Sequence[str], key: str, device: str) -> list[str]:
    """The command that starts the ranks.

    Args:
        launch: How many, where, by what.
        run: What each rank runs: arguments of ``python``.
        key: Hexadecimal digits that tell this run from others on the same machines.
        device: ``cpu`` ranks ask Slurm for no GPUs.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(launch.ranks)]
    if launch.by == "torchrun":
        return [*torchrun, "--standalone", *launch.options, *run]
    port = 20000 + int(key[:8], 16) % 12000  # below those that systems give out
    torchrun += ["--nnodes", str(launch.nodes), "--rdzv-id", key, "--rdzv-backend", "c10d", "--rdzv-endpoint"]
    first = f'"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):{port}"'  # known where the step runs
    gpus = [] if device == "cpu" else ["--gpus-per-node", str(launch.ranks)]
    srun = ["srun", "--nodes", str(launch.nodes), "--ntasks-per-node", "1", *gpus, *launch.options]
    return [*srun, "bash", "-c", f"exec {shlex.join(torchrun)} {first} {shlex.join(run)}"]


def launch_ranks(launch: Launch, name: str, recipe: Path, store: Path, fingerprint: str, device: str) -> None:
    """Let ranks make a stage, and wait for them.

    SIGINT, SIGTERM, SIGUSR1 and the caller's ``DEPTHUP_STOP_FILE`` become a stop file of the ranks, which all see the
    store: launchers hand signals on at their own pace, and kill soon after. A second signal ends the launcher.

    Raises:
        DepthupError: A rank was given bad input (its message); or they died, which may pass.
        Stopped: They were asked to stop, and did; KeyboardInterrupt on SIGINT.
    """
    kind = device.partition(":")[0]
    run = ["-m", "depthup", "run", str(recipe), "--store", str(store.absolute()), "--only", name, "--device", kind]
    stop, problem = (store.absolute() / f".{what}-{fingerprint[:12]}-{os.getpid()}" for what in ("stop", "problem"))
    environment = {**os.environ, WORKER: "1", _STOP_FILE: str(stop), PROBLEM_FILE: str(problem)}
    others = os.environ.get(_STOP_FILE)
    try:
        with catch_signals() as asked:
            process = subprocess.Popen(
                launch_command(launch, run, fingerprint[:12], kind), env=environment, stdin=subprocess.DEVNULL,
                process_group=None if WORKER in os.environ else 0,  # a terminal's Ctrl-C must not reach it by itself
            )  # fmt: skip
            num_passed_on = 0
            while process.poll() is None:
                if others and not asked and os.path.exists(others):
                    asked.append(int(signal.SIGUSR1))
                if len(asked) > num_passed_on:
                    stop.touch()
                    if num_passed_on:
                        process.terminate()
                    num_passed_on = len(asked)
                time.sleep(_POLL_SECONDS)
        if process.returncode == 0:
            return
        if asked:
            if asked[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise Stopped(signal.Signals(asked[0]).name)
        if problem.exists():
            raise DepthupError(problem.read_text(encoding="utf-8"))
        raise DepthupError(
            f"the ranks of stage {name} died: {launch.by} ended with status {process.returncode}",
            next_step="see what they wrote above; run again, it goes on from the last saved state",
        ) from ChildProcessError()
    except FileNotFoundError as error:
        raise DepthupError(
            f"cannot start {error.filename}", next_step="run this where Slurm is, or by: torchrun"
        ) from error
    finally:
        for file in (stop, problem):
            file.unlink(missing_ok=True)


def tell_problem(error: DepthupError) -> None:
    """In a rank: leave the message for whoever launched it."""
    if PROBLEM_FILE in os.environ:
        Path(os.environ[PROBLEM_FILE]).write_text(str(error), encoding="utf-8")


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """The signals that came and ask to stop, in order, while the block runs."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread: signals are the caller's
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
