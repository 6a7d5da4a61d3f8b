"""Promise of speed: surgery runs at the speed of a plain file copy, in memory that no model size changes.

Measures `depthup upscale` beside its peers in one run: a plain copy of as many bytes as the target has (the floor),
mergekit's passthrough with its defaults, and a script on transformers as people write it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Run, available_memory, machine, measure, output_of, read_all, say
from mistral import (
    MISTRAL_7B,
    NUM_BASE_LAYERS,
    NUM_REMOVED,
    SOURCES,
    Shape,
    expected_hashes,
    tensor_hashes,
    write_base,
)

MERGEKIT, TORCH = "0.1.5", "2.13.0"
TARGET_GIGABYTES = 4  # the targets are stated for bases of this size and more
TOOLS = {
    "depthup": "depthup upscale",
    "link": "depthup upscale --link",
    "digests": "depthup upscale --digests",
    "mergekit": "mergekit-yaml, its defaults",
    "transformers": "a script: load, copy the layers, save_pretrained",
}
DEFAULT_TOOLS = ("depthup", "link", "mergekit", "transformers")

EXAMPLES = """examples:
  python benchmarks/surgery.py --gigabytes 0.2 --tools depthup link           a first look, seconds
  python benchmarks/surgery.py --gigabytes 4 --json surgery.json              4 GB, 3 rounds
  python benchmarks/surgery.py --mistral-7b --json docs/results/surgery.json  the published figures: 36 GB of disk
"""

# Copies the base's files, over and over, into files of the given sizes: in the kernel, then fsync of each file.
PLAIN_COPY = """
import os, sys
folder, sizes, *sources = sys.argv[1:]
os.mkdir(folder)
inputs = [os.open(source, os.O_RDONLY) for source in sources]
lengths = [os.fstat(descriptor).st_size for descriptor in inputs]
outputs, turn, begin = [], 0, 0
for number, left in enumerate(map(int, sizes.split(","))):
    outputs.append(os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT))
    while left:
        count = os.copy_file_range(inputs[turn], outputs[-1], min(left, lengths[turn] - begin), offset_src=begin)
        left, begin = left - count, begin + count
        if begin == lengths[turn]:
            turn, begin = (turn + 1) % len(inputs), 0
for descriptor in outputs:
    os.fsync(descriptor)
"""

# What scripts on the hub do, at its most careful: only layers that stand twice are copied.
TRANSFORMERS = """
import copy, sys
from torch import nn
from transformers import AutoModelForCausalLM
base, out, sources = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
seen, layers = set(), []
for source in map(int, sources.split(",")):
    layer = model.model.layers[source]
    layers.append(copy.deepcopy(layer) if source in seen else layer)
    seen.add(source)
model.model.layers = nn.ModuleList(layers)
for index, layer in enumerate(layers):
    layer.self_attn.layer_idx = index
model.config.num_hidden_layers = len(layers)
model.save_pretrained(out, max_shard_size="5GB")
"""

Runs = dict[str, list[Run]]  # by tool
Hashes = dict[str, dict[str, str]]  # by tool and tensor


def install_mergekit(folder: Path) -> dict[str, str]:
    """Make mergekit's own virtual environment, or use the one that is there; returns the versions in it."""
    python = folder / "bin" / "python"
    if not (folder / "bin" / "mergekit-yaml").exists():
        say("making a virtual environment for mergekit (1.6 GB, minutes)")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"torch=={TORCH}", f"mergekit=={MERGEKIT}"], check=True)
    names = ("mergekit", "torch", "transformers", "safetensors")
    code = f"from importlib.metadata import version; print(*map(version, {names}))"
    found = dict(zip(names, output_of([str(python), "-c", code]).split(), strict=True))
    if found["mergekit"] != MERGEKIT:
        raise SystemExit(f"the environment holds mergekit {found['mergekit']}, not {MERGEKIT}: name another folder")
    return {f"{name} (mergekit's)" if name != "mergekit" else name: version for name, version in found.items()}


def versions_of(*packages: str) -> dict[str, str]:
    """The versions of packages that this interpreter finds (of depthup that of this repository)."""
    code = f"print(*(__import__(name).__version__ for name in {packages}))"
    return dict(zip(packages, output_of([sys.executable, "-B", "-c", code]).split(), strict=True))


def mergekit_yaml(base: Path) -> str:
    """The same surgery for mergekit (JSON is YAML)."""
    ranges = ([0, NUM_BASE_LAYERS - NUM_REMOVED], [NUM_REMOVED, NUM_BASE_LAYERS])
    slices = [{"sources": [{"model": str(base), "layer_range": layers}]} for layers in ranges]
    return json.dumps({"merge_method": "passthrough", "slices": slices})


def settle(base: Path, out: Path, plain_copy: Sequence[str]) -> None:
    """Bring every run to one starting point: memory for a copy is at hand (a virtual machine may have given it back to
    its host), nothing waits to be written, the base is in the page cache as far as it fits."""
    output_of(plain_copy)
    shutil.rmtree(out)
    os.sync()
    read_all(base)


def run_rounds(
    commands: dict[str, list[str]], base: Path, out: Path, repeats: int, memory_bytes: int
) -> tuple[Runs, Hashes]:
    """Run all tools in each round, each round beginning with another one; every output is removed.

    Returns the runs of each tool (one that ran out of memory is not tried again), and the tensor hashes of the first
    output of each.
    """
    runs: Runs = {tool: [] for tool in commands}
    hashes: Hashes = {}
    for number in range(repeats):
        first = number % len(commands)
        for tool in [*commands][first:] + [*commands][:first]:
            if any(run.out_of_memory for run in runs[tool]):
                continue
            settle(base, out, commands["plain copy"])
            run = measure(commands[tool], out.parent / "log", memory_bytes if tool == "transformers" else 0)
            runs[tool].append(run)
            ended = "  out of memory" * run.out_of_memory
            say(f"round {number + 1}: {tool:<12} {run.seconds:7.2f} s  {run.peak_bytes / 1e6:9.1f} MB{ended}")
            if tool not in hashes and tool != "plain copy" and not run.out_of_memory:
                hashes[tool] = tensor_hashes(out)
            shutil.rmtree(out, ignore_errors=True)
    return runs, hashes


def make_commands(folder: Path, tools: Sequence[str], mergekit: Path) -> dict[str, list[str]]:
    """The command of each tool; depthup runs once before, which compiles its modules and tells the sizes to copy."""
    base, out, python = folder / "base", folder / "out", sys.executable
    compiled = ["-X", f"pycache_prefix={folder / 'compiled'}"]  # as an installed package has it
    depthup = [python, *compiled, "-m", "depthup", "upscale", str(base), str(out), "--remove", str(NUM_REMOVED)]
    measure(depthup, folder / "log")
    sizes = [path.stat().st_size for path in sorted(out.glob("*.safetensors"))]
    shutil.rmtree(out)
    (folder / "mergekit.yml").write_text(mergekit_yaml(base))
    sources = [str(path) for path in sorted(base.glob("*.safetensors"))]
    known = {
        "depthup": depthup,
        "link": [*depthup, "--link"],
        "digests": [*depthup, "--digests"],
        "mergekit": [str(mergekit / "bin" / "mergekit-yaml"), str(folder / "mergekit.yml"), str(out)],
        "transformers": [python, "-c", TRANSFORMERS, str(base), str(out), ",".join(map(str, SOURCES))],
    }
    plain_copy = [python, "-c", PLAIN_COPY, str(out), ",".join(map(str, sizes)), *sources]
    return {"plain copy": plain_copy, **{tool: known[tool] for tool in tools}}


def benchmark(folder: Path, shape: Shape, arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bool]]:
    """Make the base, run the rounds; returns the figures and what was checked of the outputs."""
    base = folder / "base"
    say(f"writing a base of {2 * shape.num_parameters / 1e9:.2f} GB")
    write_base(base, shape)
    commands = make_commands(folder, arguments.tools, arguments.mergekit_env.absolute())
    sizes = [int(size) for size in commands["plain copy"][4].split(",")]
    memory_bytes = available_memory() - 2_000_000_000
    runs, hashes = run_rounds(commands, base, folder / "out", arguments.repeats, memory_bytes)
    bare = [measure([sys.executable, "-c", "pass"], folder / "log") for _ in range(arguments.repeats)]
    runs = {"bare interpreter": bare, **runs}
    defined = expected_hashes(tensor_hashes(base))
    checks = {
        f"{tool}: names, types, shapes and SHA-256 of all tensors are those of base layers 0-23, then 8-31":
        found == defined for tool, found in hashes.items()
    }  # fmt: skip
    keys = ("seconds", "peak_bytes", "cpu_seconds")
    figures = {
        "base_bytes": 2 * shape.num_parameters, "target_bytes": sum(sizes), "num_target_tensors": len(defined),
        "num_base_files": len(list(base.glob("*.safetensors"))), "num_target_files": len(sizes),
        "memory_limit_bytes_of_transformers": memory_bytes,
        "runs": {tool: [asdict(run) for run in found] for tool, found in runs.items()},
        "medians": {tool: {k: median(getattr(run, k) for run in found) for k in keys} for tool, found in runs.items()},
        "out_of_memory": [tool for tool, found in runs.items() if any(run.out_of_memory for run in found)],
    }  # fmt: skip
    return figures, checks


def compare(figures: dict[str, Any]) -> tuple[dict[str, float], dict[str, bool | None]]:
    """The ratios of the medians, and whether each target is met (None: no target for a base of this size)."""
    medians: dict[str, dict[str, float]] = figures["medians"]
    copy, ours = medians["plain copy"], medians.get("depthup")
    ratios: dict[str, float] = {}
    met: dict[str, bool] = {}
    for tool in ("depthup", "link", "digests"):
        if tool in medians:
            ratios[f"time, {TOOLS[tool]} / plain copy"] = medians[tool]["seconds"] / copy["seconds"]
    if ours:
        met["depthup: at most 1.05 x the time of a plain copy"] = ours["seconds"] <= 1.05 * copy["seconds"]
        met["depthup: a peak of at most 60 MB"] = ours["peak_bytes"] <= 60e6
        for tool in ("mergekit", "transformers"):
            if tool in medians and tool not in figures["out_of_memory"]:
                for what, key in (("time", "seconds"), ("peak memory", "peak_bytes")):
                    ratios[f"{what}, {tool} / depthup"] = medians[tool][key] / ours[key]
    stated = figures["base_bytes"] >= TARGET_GIGABYTES * 0.98e9
    return ratios, {target: is_met if stated else None for target, is_met in met.items()}


def as_text(result: dict[str, Any]) -> str:
    """The result as text."""
    medians, bare = result["medians"], result["medians"]["bare interpreter"]["peak_bytes"]
    says = {True: "met", False: "NOT MET", None: f"stated for bases of {TARGET_GIGABYTES} GB and more, no verdict"}
    head = f"{'median of ' + str(result['repeats']):<18}{'wall':>10}{'CPU':>10}{'peak memory':>14}{'above bare':>14}"
    limit = result["memory_limit_bytes_of_transformers"] / 1e9
    return "\n".join([
        f"base {result['base_bytes'] / 1e9:.2f} GB in {result['num_base_files']} files -> target"
        f" {result['target_bytes'] / 1e9:.2f} GB in {result['num_target_files']} files", "", head,
        *(f"{tool:<18}{m['seconds']:>8.2f} s{m['cpu_seconds']:>8.2f} s{m['peak_bytes'] / 1e6:>11.1f} MB"
          f"{(m['peak_bytes'] - bare) / 1e6:>11.1f} MB"
          + f"  ended: more than {limit:.1f} GB of its own" * (tool in result["out_of_memory"])
          for tool, m in medians.items()), "",
        *(f"{name}: {value:.2f}" for name, value in result["ratios"].items()), "",
        *(f"{name}: {'yes' if value else 'NO'}" for name, value in result["checks"].items()), "",
        *(f"target {name}: {says[value]}" for name, value in result["targets_met"].items()),
    ])  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "depthup-benchmarks"
    raw = argparse.RawDescriptionHelpFormatter
    tools = "".join(f"\n  {tool:<14}{what}" for tool, what in TOOLS.items())
    parser = argparse.ArgumentParser(description=f"{__doc__}\ntools:{tools}", epilog=EXAMPLES, formatter_class=raw)
    add = parser.add_argument
    add("--gigabytes", type=float, default=4.0, help="size of the base, 10^9 bytes (default: 4)")
    add("--mistral-7b", action="store_true", help="the shape of Mistral 7B: 14.5 GB, target 21.5 GB")
    add("--repeats", type=int, default=3, help="rounds; each runs every tool once (default: 3)")
    add("--tools", nargs="+", choices=TOOLS, default=DEFAULT_TOOLS, metavar="TOOL",
        help=f"which to run beside the plain copy (default: {' '.join(DEFAULT_TOOLS)})")  # fmt: skip
    where = "where the checkpoints are written and removed; takes 2.6 x the base (default: the temporary folder)"
    add("--dir", type=Path, default=Path(tempfile.gettempdir()), metavar="FOLDER", help=where)
    where = "mergekit's virtual environment, made if it is not there (default: in your cache)"
    add("--mergekit-env", type=Path, default=cache / f"mergekit-{MERGEKIT}", metavar="FOLDER", help=where)
    add("--json", type=Path, metavar="FILE", help="write all figures here as well")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or not 0.05 <= arguments.gigabytes <= 1000:
        parser.error("--repeats is at least 1, --gigabytes from 0.05 to 1000")
    if arguments.mistral_7b:
        arguments.gigabytes = 2e-9 * MISTRAL_7B.num_parameters
    if shutil.disk_usage(arguments.dir).free < 2.6e9 * arguments.gigabytes:
        parser.error(f"{2.6 * arguments.gigabytes:.1f} GB must be free in --dir")
    return arguments


def main() -> None:
    """Run the benchmark and print the report."""
    arguments = parse_arguments()
    versions = {"python": platform.python_version(), **versions_of("depthup")}
    if "transformers" in arguments.tools:
        versions |= versions_of("torch", "transformers", "safetensors")
    versions |= install_mergekit(arguments.mergekit_env) if "mergekit" in arguments.tools else {}
    shape = MISTRAL_7B if arguments.mistral_7b else Shape.of_size(arguments.gigabytes)
    with tempfile.TemporaryDirectory(prefix="depthup-benchmark-", dir=arguments.dir) as folder:
        figures, checks = benchmark(Path(folder), shape, arguments)
        surroundings = machine(Path(folder))
    ratios, targets_met = compare(figures)
    size = "--mistral-7b" if arguments.mistral_7b else f"--gigabytes {arguments.gigabytes:g}"
    command = f"python benchmarks/surgery.py {size} --repeats {arguments.repeats} --tools {' '.join(arguments.tools)}"
    result = {
        "benchmark": "surgery", "command": command, "machine": surroundings, "versions": versions,
        "repeats": arguments.repeats, "base": asdict(shape),
        **figures, "ratios": ratios, "checks": checks, "targets_met": targets_met,
    }  # fmt: skip
    print(as_text(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if not all(checks.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
