"""Promise of speed: a fifth of mergekit's time, a tenth of its memory, at most 1.3 times reading and writing the bytes.

Average and SLERP of two bf16 checkpoints with Mistral's shape. Peers in the same run: mergekit 0.1.5 with its defaults,
and the limit: both models read once and as much as one of them written, by one process, synced to the disk. (SLERP
reads each tensor twice, the second time from memory where it still is there: its limit is the same.) depthup syncs,
mergekit does not. The tools take turns; the tensors of the first outputs are compared. On a machine that others use
too, read the processor's seconds: they change less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Run, machine, measure, output_of, read_all, say
from mistral import MISTRAL_7B, Shape, write_base
from surgery import install_mergekit, versions_of

EXAMPLES = """examples:
  python benchmarks/merging.py --gigabytes 0.5 --repeats 1
  python benchmarks/merging.py --mistral-7b --json docs/results/merging.json       46 GB of disk, 58 with mergekit
"""
METHODS = {"linear": {"weights": "0.4,0.6"}, "slerp": {"weights": "0.6,0.4"}}
# Reads all files of two folders a piece at a time, and writes as many bytes as the first has.
READ_AND_WRITE = """
import os, sys
from pathlib import Path
one, other, out = map(Path, sys.argv[1:])
out.mkdir()
buffer = memoryview(bytearray(1 << 20))
for path in sorted(one.glob("*.safetensors")):
    with open(path, "rb", 0) as a, open(other / path.name, "rb", 0) as b, open(out / path.name, "wb", 0) as c:
        while count := a.readinto(buffer):
            b.readinto(buffer)
            c.write(buffer[:count])
        os.fsync(c.fileno())
"""
# The largest difference of two merges, as a share of the largest number, and the share of numbers that are unlike.
DIFFER = """
import sys
from pathlib import Path
import torch
from safetensors import safe_open
def opened(folder):
    files = [safe_open(path, "pt") for path in sorted(Path(folder).glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}
one, other = map(opened, sys.argv[1:])
assert one.keys() == other.keys()
worst, largest, num_unlike, num = 0.0, 0.0, 0, 0
for name in one:
    a, b = (held[name].get_tensor(name).float() for held in (one, other))
    num_unlike, num = num_unlike + int((a != b).sum()), num + a.numel()
    worst, largest = max(worst, float((a - b).abs().max())), max(largest, float(b.abs().max()))
print(worst / largest, num_unlike / num)
"""


def commands_of(folder: Path, method: str, mergekit: Path | None) -> dict[str, list[str]]:
    """The command of each tool."""
    one, other, out = (str(folder / name) for name in ("one", "other", "out"))
    weights = METHODS[method]["weights"]
    depthup = [sys.executable, "-m", "depthup", "merge", one, other, "--out", out, "--method", method]
    commands = {
        "read and write": [sys.executable, "-c", READ_AND_WRITE, one, other, out],
        "depthup": [*depthup, "--weights", weights],
    }
    if mergekit is not None:
        shares = [float(share) for share in weights.split(",")]
        text: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16", "models": [
            {"model": model, "parameters": {"weight": share}}
            for model, share in zip((one, other), shares, strict=True)
        ]}  # fmt: skip
        if method == "slerp":
            text |= {"base_model": one, "parameters": {"t": shares[1]}, "models": [{"model": one}, {"model": other}]}
        (folder / f"{method}.yml").write_text(json.dumps(text))
        commands["mergekit"] = [str(mergekit / "bin" / "mergekit-yaml"), str(folder / f"{method}.yml"), out]
    return commands


def rounds(folder: Path, method: str, repeats: int, mergekit: Path | None) -> tuple[dict[str, list[Run]], list[float]]:
    """All tools in turns; returns their runs, and how far the two merges are apart."""
    commands = commands_of(folder, method, mergekit)
    runs: dict[str, list[Run]] = {tool: [] for tool in commands}
    apart: list[float] = []
    for number in range(repeats):
        for tool in [*commands][number % len(commands) :] + [*commands][: number % len(commands)]:
            read_all(folder / "one")
            read_all(folder / "other")
            run = measure(commands[tool], folder / "log")
            runs[tool].append(run)
            say(f"{method}, round {number + 1}: {tool:<14} {run.seconds:7.2f} s  {run.peak_bytes / 1e6:9.1f} MB")
            if tool != "read and write" and number == 0 and mergekit is not None:
                shutil.move(folder / "out", folder / tool)
            shutil.rmtree(folder / "out", ignore_errors=True)
        if number == 0 and mergekit is not None:
            found = output_of([sys.executable, "-c", DIFFER, str(folder / "depthup"), str(folder / "mergekit")])
            apart = [float(value) for value in found.split()]
            for tool in ("depthup", "mergekit"):
                shutil.rmtree(folder / tool)
    return runs, apart


def as_text(method: str, runs: dict[str, list[Run]], apart: Sequence[float]) -> list[str]:
    """A table of medians and ratios."""
    seconds = {tool: median(run.seconds for run in found) for tool, found in runs.items()}
    peaks = {tool: median(run.peak_bytes for run in found) for tool, found in runs.items()}
    work = {tool: median(run.cpu_seconds for run in found) for tool, found in runs.items()}
    lines = [f"{method}:"]
    for tool in runs:
        times, busy, sizes = (of[tool] / of["depthup"] for of in (seconds, work, peaks))
        ratio = f"{times:6.2f} x depthup's time, {busy:6.2f} x its processor time, {sizes:6.2f} x its memory"
        lines.append(f"  {tool:<16}{seconds[tool]:8.2f} s {work[tool]:8.2f} s {peaks[tool] / 1e6:10.1f} MB  {ratio}")
    lines.append(f"  depthup / read and write: {seconds['depthup'] / seconds['read and write']:.2f} (promised: 1.3)")
    if apart:
        lines.append(f"  merges: {apart[1]:.2e} of the numbers unlike, by {apart[0]:.1e} of the largest at most")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of each model (2)")
    parser.add_argument("--mistral-7b", action="store_true", help="Mistral 7B's shape: 14.5 GB each")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where checkpoints are written")
    parser.add_argument("--mergekit-env", type=Path, help="virtual environment with mergekit 0.1.5 (left out without)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    shape = MISTRAL_7B if options.mistral_7b else Shape.of_size(options.gigabytes)
    versions = {"python": platform.python_version(), **versions_of("depthup", "numpy")}
    if options.mergekit_env:
        versions |= install_mergekit(options.mergekit_env)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="depthup-benchmark-", dir=options.dir) as name:
        folder = Path(name)
        for number, model in enumerate(("one", "other")):
            say(f"writing a model of {2 * shape.num_parameters / 1e9:.2f} GB")
            write_base(folder / model, shape, seed=number)
        for method in options.methods:
            runs, apart = rounds(folder, method, options.repeats, options.mergekit_env)
            print("\n".join(as_text(method, runs, apart)), flush=True)
            figures[method] = {
                "runs": {tool: [asdict(run) for run in found] for tool, found in runs.items()},
                "median_seconds": {tool: median(run.seconds for run in found) for tool, found in runs.items()},
                "median_cpu_seconds": {tool: median(run.cpu_seconds for run in found) for tool, found in runs.items()},
                "median_peak_bytes": {tool: median(run.peak_bytes for run in found) for tool, found in runs.items()},
                "share_of_numbers_unlike": apart[1] if apart else None,
                "largest_difference_as_share_of_the_largest": apart[0] if apart else None,
            }
        surroundings = machine(folder) | {"load_average_at_the_end": round(os.getloadavg()[1], 1)}
    if options.json:
        size = "--mistral-7b" if options.mistral_7b else f"--gigabytes {options.gigabytes:g}"
        command = f"python benchmarks/merging.py {size} --repeats {options.repeats} --mergekit-env FOLDER"
        result = {"benchmark": "merging", "command": command, "machine": surroundings, "versions": versions,
                  "model_bytes": 2 * shape.num_parameters, **figures}  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
