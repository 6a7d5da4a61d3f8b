"""Promise of speed: upcycling takes at most 1.1 times what a plain copy of the same number of bytes takes.

A bf16 checkpoint with Mistral's shape becomes a mixture of four experts, of which a token goes to two. Peers in the
same run: mergekit 0.1.5's mergekit-moe in its quickest mode (random routers), and the limit: as many bytes copied in
the kernel by one process, synced to the disk. depthup syncs, mergekit does not. The tools take turns; the experts of
the first outputs are compared. Times of the processor stand beside those of the clock: on a busy machine they say more.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Run, machine, measure, output_of, read_all, say
from mistral import MISTRAL_7B, Shape, write_base
from surgery import install_mergekit, versions_of

EXAMPLES = """examples:
  python benchmarks/upcycling.py --gigabytes 0.2 --repeats 1
  python benchmarks/upcycling.py --gigabytes 1 --mergekit-env FOLDER --json docs/results/upcycling.json
  python benchmarks/upcycling.py --mistral-7b                                  65 GB of disk
"""
NUM_EXPERTS = 4
TOKENIZER: dict[str, Any] = {
    "tokenizer.json": {"version": "1.0", "added_tokens": [],
                       "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
}  # fmt: skip
# Copies the files of a folder one after the other, from the first again, until so many bytes are written; syncs them.
COPY = """
import os, sys
from pathlib import Path
base, out, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
out.mkdir()
number = 0
while left:
    for path in sorted(base.glob("*.safetensors")):
        with open(path, "rb", 0) as source, open(out / f"{number}.safetensors", "wb", 0) as target:
            while left and (count := os.copy_file_range(source.fileno(), target.fileno(), min(left, 1 << 26))):
                left -= count
            os.fsync(target.fileno())
        number += 1
"""
# Compares all tensors but routers. mergekit writes experts fused, by the names that transformers has in memory.
SAME = """
import sys
from pathlib import Path
import torch
from safetensors import safe_open
def opened(folder):
    files = [safe_open(path, "pt") for path in sorted(Path(folder).glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}
def bits(tensor):  # noise of any bytes may be NaN
    return tensor.view(torch.int16)
ours, theirs = map(opened, sys.argv[1:])
num = 0
for name, file in theirs.items():
    if name.endswith("mlp.gate.weight"):
        continue
    tensor = file.get_tensor(name)
    if ".mlp.experts." not in name:
        same = torch.equal(bits(tensor), bits(ours[name].get_tensor(name)))
    else:
        prefix = name.split("mlp.")[0] + "block_sparse_moe.experts"
        parts = ("w1", "w3") if name.endswith("gate_up_proj") else ("w2",)
        got = [torch.cat([ours[key].get_tensor(key) for part in parts for key in [f"{prefix}.{i}.{part}.weight"]])
               for i in range(len(tensor))]
        same = all(torch.equal(bits(one), bits(other)) for one, other in zip(tensor, got))
    if not same:
        raise SystemExit(f"{name} differs")
    num += 1
print(num)
"""


def commands_of(folder: Path, num_bytes: int, mergekit: Path | None) -> dict[str, list[str]]:
    """The command of each tool."""
    base, out = str(folder / "base"), str(folder / "out")
    commands = {
        "plain copy": [sys.executable, "-c", COPY, base, out, str(num_bytes)],
        "depthup": [sys.executable, "-m", "depthup", "upcycle", base, out, "--experts", str(NUM_EXPERTS)],
    }
    if mergekit is not None:
        text = {"base_model": base, "gate_mode": "random", "dtype": "bfloat16", "experts_per_token": 2,
                "experts": [{"source_model": base}] * NUM_EXPERTS}  # fmt: skip
        (folder / "moe.yml").write_text(json.dumps(text))
        commands["mergekit-moe"] = [str(mergekit / "bin" / "mergekit-moe"), str(folder / "moe.yml"), out]
    return commands


def rounds(folder: Path, num_bytes: int, repeats: int, mergekit: Path | None) -> tuple[dict[str, list[Run]], int]:
    """All tools in turns; returns their runs, and how many tensors of the two mixtures were found equal."""
    commands = commands_of(folder, num_bytes, mergekit)
    runs: dict[str, list[Run]] = {tool: [] for tool in commands}
    num_equal = 0
    for number in range(repeats):
        for tool in [*commands][number % len(commands) :] + [*commands][: number % len(commands)]:
            read_all(folder / "base")
            run = measure(commands[tool], folder / "log")
            runs[tool].append(run)
            times = f"{run.seconds:7.2f} s, {run.cpu_seconds:6.2f} s of the processor"
            say(f"round {number + 1}: {tool:<14}{times}, {run.peak_bytes / 1e6:9.1f} MB")
            if number == 0 and tool != "plain copy" and mergekit is not None:
                shutil.move(folder / "out", folder / tool)
            shutil.rmtree(folder / "out", ignore_errors=True)
        if number == 0 and mergekit is not None:
            folders = [str(folder / tool) for tool in ("depthup", "mergekit-moe")]
            num_equal = int(output_of([sys.executable, "-c", SAME, *folders]))
            for made in folders:
                shutil.rmtree(made)
    return runs, num_equal


def medians(runs: dict[str, list[Run]], field: str) -> dict[str, float]:
    """The median of one figure of each tool."""
    return {tool: median(getattr(run, field) for run in found) for tool, found in runs.items()}


def as_text(runs: dict[str, list[Run]], num_equal: int) -> str:
    """A table of medians and ratios."""
    seconds, cpu, peaks = (medians(runs, field) for field in ("seconds", "cpu_seconds", "peak_bytes"))
    lines = [
        f"{tool:<14}{seconds[tool]:8.2f} s {cpu[tool]:8.2f} s of the processor {peaks[tool] / 1e6:10.1f} MB "
        f"{seconds[tool] / seconds['depthup']:6.2f} x depthup's time, {cpu[tool] / cpu['depthup']:6.2f} x its"
        f" processor's, {peaks[tool] / peaks['depthup']:6.2f} x its memory"
        for tool in runs
    ]
    lines.append(f"depthup / plain copy: {seconds['depthup'] / seconds['plain copy']:.2f} (promised: 1.1)")
    if num_equal:
        lines.append(f"{num_equal} tensors of mergekit-moe equal depthup's to the bit (routers left out)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the dense model (1)")
    parser.add_argument("--mistral-7b", action="store_true", help="Mistral 7B's shape: 14.5 GB, 48.3 GB of experts")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where checkpoints are written")
    parser.add_argument("--mergekit-env", type=Path, help="virtual environment with mergekit 0.1.5 (left out without)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    shape = MISTRAL_7B if options.mistral_7b else Shape.of_size(options.gigabytes)
    versions = {"python": platform.python_version(), **versions_of("depthup", "torch")}
    if options.mergekit_env:
        versions |= install_mergekit(options.mergekit_env)
    with tempfile.TemporaryDirectory(prefix="depthup-benchmark-", dir=options.dir) as name:
        folder = Path(name)
        say(f"writing a model of {2 * shape.num_parameters / 1e9:.2f} GB")
        write_base(folder / "base", shape, seed=0)
        for file, text in TOKENIZER.items():  # mergekit-moe loads it first
            (folder / "base" / file).write_text(json.dumps(text))
        experts = 3 * (NUM_EXPERTS - 1) * shape.hidden_size * shape.intermediate_size + NUM_EXPERTS * shape.hidden_size
        num_bytes = 2 * (shape.num_parameters + 32 * experts)
        runs, num_equal = rounds(folder, num_bytes, options.repeats, options.mergekit_env)
        surroundings = machine(folder)
    print(as_text(runs, num_equal))
    if options.json:
        size = "--mistral-7b" if options.mistral_7b else f"--gigabytes {options.gigabytes:g}"
        command = f"python benchmarks/upcycling.py {size} --repeats {options.repeats} --mergekit-env FOLDER"
        result: dict[str, Any] = {
            "benchmark": "upcycling", "command": command, "machine": surroundings, "versions": versions,
            "base_bytes": 2 * shape.num_parameters, "target_bytes": num_bytes, "num_experts": NUM_EXPERTS,
            "num_equal_tensors": num_equal, "median_seconds": medians(runs, "seconds"),
            "median_cpu_seconds": medians(runs, "cpu_seconds"), "median_peak_bytes": medians(runs, "peak_bytes"),
            "runs": {tool: [asdict(run) for run in found] for tool, found in runs.items()},
        }  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
