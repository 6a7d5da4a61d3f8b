"""Run commands as processes of their own and measure them: wall time, peak memory, processor time. Linux only."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent

# Runs one command and prints seconds, peak memory in KiB, CPU seconds, exit status, and whether it was ended for want
# of memory. The kernel counts the memory of the process that starts a child towards the child's peak, so the one that
# does must itself be small: no imports.
MEASURE = """
import os, sys, time
log, limit_kib, *command = sys.argv[1:]
to_log = [(os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
begin = time.perf_counter()
child = os.posix_spawn(command[0], command, os.environ, file_actions=to_log)
over = done = 0
while int(limit_kib) and not done:
    done, status, usage = os.wait4(child, os.WNOHANG)
    if not done:
        time.sleep(0.01)
        with open(f"/proc/{child}/status") as file:
            held = [int(line.split()[1]) for line in file if line.startswith("RssAnon:")]
        if held and held[0] > int(limit_kib):
            over = held[0]
            os.kill(child, 9)
            break
if not done:
    _, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - begin
print(seconds, usage.ru_maxrss, usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status), over)
"""


@dataclass(frozen=True)
class Run:
    """One run of one tool."""

    seconds: float
    peak_bytes: int
    cpu_seconds: float
    out_of_memory: bool = False


def measure(command: Sequence[str], log: Path, memory_bytes: int = 0) -> Run:
    """Run a command as a child process, to its end, or until its own memory (not that of files) passes a limit.

    Raises:
        SystemExit: The command failed; the end of its output is shown.
    """
    launcher = [sys.executable, "-I", "-S", "-c", MEASURE, str(log), str(memory_bytes // 1024)]
    seconds, kibibytes, cpu_seconds, status, over = output_of([*launcher, *command]).split()
    if int(status) and not int(over):
        raise SystemExit(f"{' '.join(command)[:300]} failed ({status}):\n{log.read_text(errors='replace')[-3000:]}")
    return Run(round(float(seconds), 4), int(kibibytes) * 1024, round(float(cpu_seconds), 4), bool(int(over)))


def output_of(command: Sequence[str]) -> str:
    """What a command prints; it finds this repository's depthup, and no network."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def read_all(folder: Path) -> None:
    """Read the files of a folder once, so that they are in the page cache as far as memory goes."""
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def available_memory() -> int:
    """Bytes that processes may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def machine(folder: Path) -> dict[str, Any]:
    """What the figures depend on: no host names, no paths."""
    fields = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [(len(place), kind) for _, place, kind, *_ in fields if folder.resolve().is_relative_to(place)]
    return {
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "file_system": max(holding)[1],
    }


def say(text: str) -> None:
    """Tell how far we are, on standard error."""
    print(text, file=sys.stderr, flush=True)
