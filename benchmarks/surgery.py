"""Promise of speed: surgery runs at the speed of a plain file copy, in memory that no model size changes.

Measures `depthup upscale` between two peers in one run: a plain copy of as many bytes as the target has (the floor)
and mergekit's passthrough with its defaults. Standard library only; Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MERGEKIT, TORCH = "0.1.5", "2.13.0"
NUM_BASE_LAYERS, NUM_REMOVED = 32, 8
NUM_BASE_SHARDS, VOCABULARY, HEAD_SIZE = 4, 32_000, 64
TARGET_GIGABYTES = 4  # the design's targets are stated for bases of this size and more

EXAMPLES = """examples:
  python benchmarks/surgery.py --gigabytes 0.2 --without-mergekit     a first look, seconds
  python benchmarks/surgery.py --json docs/results/surgery.json       the published figures: 4 GB, 3 rounds
  python benchmarks/surgery.py --gigabytes 14.5 --dir /mnt/fast       the shape of Mistral 7B, on a disk of your choice
"""

# Runs one command and prints seconds, peak memory in KiB, CPU seconds and exit status. The kernel counts the memory of
# the process that starts a child towards the child's peak, so the one that does must itself be small: no imports.
MEASURE = """
import os, sys, time
log, *command = sys.argv[1:]
to_log = [(os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
begin = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(command[0], command, os.environ, file_actions=to_log), 0)
seconds = time.perf_counter() - begin
print(seconds, usage.ru_maxrss, usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status))
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


@dataclass(frozen=True)
class Run:
    """One run of one tool."""

    seconds: float
    peak_bytes: int
    cpu_seconds: float


Runs = dict[str, list[Run]]  # by tool
Hashes = dict[str, dict[str, str]]  # by tool and tensor


@dataclass(frozen=True)
class Shape:
    """A bf16 Mistral: its size follows from these two, the number of layers and the vocabulary."""

    hidden_size: int
    intermediate_size: int

    @classmethod
    def of_size(cls, gigabytes: float) -> Shape:
        """The shape, near Mistral 7B's proportions, whose tensors take about ``gigabytes`` (10^9 bytes) in bf16."""
        wanted = gigabytes * 1e9 / 2
        per_square = 13 * NUM_BASE_LAYERS  # 2.5 h^2 for attention, 3 * 3.5 h^2 for the MLP; outside 2 * vocabulary * h
        exact = (math.sqrt(VOCABULARY**2 + per_square * wanted) - VOCABULARY) / per_square
        hidden = max(256, round(exact / 256) * 256)
        left = wanted - cls(hidden, 0).num_parameters
        return cls(hidden, max(64, round(left / (3 * NUM_BASE_LAYERS * hidden * 64)) * 64))

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name on disk and shape of every tensor, in the order of the model."""
        h, i, kv = self.hidden_size, self.intermediate_size, self.hidden_size // 4
        yield "model.embed_tokens.weight", (VOCABULARY, h)
        for layer in range(NUM_BASE_LAYERS):
            prefix = f"model.layers.{layer}."
            for name, rows in (("q", h), ("k", kv), ("v", kv), ("o", h)):
                yield f"{prefix}self_attn.{name}_proj.weight", (rows, h)
            for name, shape in (("gate", (i, h)), ("up", (i, h)), ("down", (h, i))):
                yield f"{prefix}mlp.{name}_proj.weight", shape
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}{name}.weight", (h,)
        yield "model.norm.weight", (h,)
        yield "lm_head.weight", (VOCABULARY, h)

    def config(self) -> dict[str, Any]:
        """A ``config.json`` that transformers reads."""
        heads = self.hidden_size // HEAD_SIZE
        return {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "bfloat16",
            "hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size,
            "num_hidden_layers": NUM_BASE_LAYERS, "num_attention_heads": heads, "num_key_value_heads": heads // 4,
            "head_dim": HEAD_SIZE, "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": False, "hidden_act": "silu",
        }  # fmt: skip


def write_base(folder: Path, shape: Shape) -> None:
    """Write a checkpoint of random bytes: shards of about equal size, names sorted within each, as safetensors does."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(NUM_BASE_SHARDS)]
    done, total = 0, shape.num_parameters
    for name, dimensions in shape.tensors():
        shards[done * NUM_BASE_SHARDS // total].append((name, dimensions))
        done += math.prod(dimensions)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{NUM_BASE_SHARDS:05}.safetensors"
        weight_map |= {name: file for name, _ in tensors}
        _write_safetensors(folder / file, sorted(tensors), random.Random(number))
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_safetensors(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], source: random.Random) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (end, end := end + 2 * math.prod(shape))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, 1 << 20):
            file.write(source.randbytes(min(1 << 20, end - begin)))


def tensor_hashes(folder: Path) -> dict[str, str]:
    """``dtype shape sha256`` of every tensor in a folder, by name, read without depthup."""
    hashes: dict[str, str] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                digest = hashlib.sha256()
                file.seek(start + begin)
                for position in range(begin, end, 1 << 22):
                    digest.update(file.read(min(1 << 22, end - position)))
                hashes[name] = f"{entry['dtype']} {entry['shape']} {digest.hexdigest()}"
    return hashes


def expected_hashes(base: dict[str, str]) -> dict[str, str]:
    """The target's hashes, from the base's and the definition: base layers 0-23, then 8-31."""
    sources = (*range(NUM_BASE_LAYERS - NUM_REMOVED), *range(NUM_REMOVED, NUM_BASE_LAYERS))
    expected = {name: value for name, value in base.items() if not name.startswith("model.layers.")}
    for target, layer in enumerate(sources):
        prefix = f"model.layers.{layer}."
        layer_hashes = ((name, value) for name, value in base.items() if name.startswith(prefix))
        expected |= {f"model.layers.{target}.{name.removeprefix(prefix)}": value for name, value in layer_hashes}
    return expected


def measure(command: Sequence[str], log: Path) -> Run:
    """Run a command as a child process.

    Raises:
        SystemExit: The command failed; the end of its output is shown.
    """
    launcher = [sys.executable, "-I", "-S", "-c", MEASURE, str(log)]
    seconds, kibibytes, cpu_seconds, status = output_of([*launcher, *command]).split()
    if int(status):
        raise SystemExit(f"{' '.join(command)[:300]} failed ({status}):\n{log.read_text(errors='replace')[-3000:]}")
    return Run(round(float(seconds), 4), int(kibibytes) * 1024, round(float(cpu_seconds), 4))


def output_of(command: Sequence[str]) -> str:
    """What a command prints; it finds this repository's depthup, and no network."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def settle(base: Path, out: Path, plain_copy: list[str]) -> None:
    """Bring every run to one starting point: memory for a copy is at hand (a virtual machine may have given it back to
    its host), nothing waits to be written, the base is in the page cache."""
    output_of(plain_copy)
    shutil.rmtree(out)
    os.sync()
    for path in base.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass


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
    return found


def mergekit_yaml(base: Path) -> str:
    """The same surgery for mergekit (JSON is YAML)."""
    ranges = ([0, NUM_BASE_LAYERS - NUM_REMOVED], [NUM_REMOVED, NUM_BASE_LAYERS])
    slices = [{"sources": [{"model": str(base), "layer_range": layers}]} for layers in ranges]
    return json.dumps({"merge_method": "passthrough", "slices": slices})


def run_rounds(commands: dict[str, list[str]], base: Path, out: Path, repeats: int) -> tuple[Runs, Hashes]:
    """Run all tools in each round, each round beginning with another one; every output is removed.

    Returns the runs of each tool, and the tensor hashes of the first output of depthup and of mergekit.
    """
    runs: Runs = {tool: [] for tool in commands}
    hashes: Hashes = {}
    for number in range(repeats):
        first = number % len(commands)
        for tool in [*commands][first:] + [*commands][:first]:
            settle(base, out, commands["plain copy"])
            run = measure(commands[tool], out.parent / "log")
            runs[tool].append(run)
            say(f"round {number + 1}: {tool:<10} {run.seconds:7.2f} s  {run.peak_bytes / 1e6:9.1f} MB")
            if number == 0 and tool != "plain copy":
                hashes[tool] = tensor_hashes(out)
            shutil.rmtree(out)
    return runs, hashes


def benchmark(
    folder: Path, shape: Shape, repeats: int, mergekit: Path | None
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Make the base, run the rounds; returns the figures and what was checked of the outputs."""
    base, out = folder / "base", folder / "out"
    say(f"writing a base of {2 * shape.num_parameters / 1e9:.2f} GB")
    write_base(base, shape)
    python = sys.executable
    compiled = ["-X", f"pycache_prefix={folder / 'compiled'}"]  # as an installed package has it
    depthup = [python, *compiled, "-m", "depthup", "upscale", str(base), str(out), "--remove", str(NUM_REMOVED)]
    measure(depthup, folder / "log")  # compiles the modules, and says how large the target's files are
    sizes = [path.stat().st_size for path in sorted(out.glob("*.safetensors"))]
    sources = [str(path) for path in sorted(base.glob("*.safetensors"))]
    shutil.rmtree(out)
    commands = {
        "plain copy": [python, "-c", PLAIN_COPY, str(out), ",".join(map(str, sizes)), *sources],
        "depthup": depthup,
    }
    if mergekit:
        (folder / "mergekit.yml").write_text(mergekit_yaml(base))
        commands["mergekit"] = [str(mergekit / "bin" / "mergekit-yaml"), str(folder / "mergekit.yml"), str(out)]
    runs, hashes = run_rounds(commands, base, out, repeats)
    runs = {"bare interpreter": [measure([python, "-c", "pass"], folder / "log") for _ in range(repeats)], **runs}
    ours, defined = hashes["depthup"], expected_hashes(tensor_hashes(base))
    checks = {"depthup's tensors are those of the base, layers 0-23 then 8-31": ours == defined}
    if mergekit:
        checks["depthup's tensors equal mergekit's (names, types, shapes, SHA-256)"] = ours == hashes["mergekit"]
    keys = ("seconds", "peak_bytes", "cpu_seconds")
    figures = {
        "base_bytes": 2 * shape.num_parameters, "target_bytes": sum(sizes), "num_target_tensors": len(ours),
        "num_base_files": len(sources), "num_target_files": len(sizes),
        "runs": {tool: [asdict(run) for run in found] for tool, found in runs.items()},
        "medians": {tool: {k: median(getattr(run, k) for run in found) for k in keys} for tool, found in runs.items()},
    }  # fmt: skip
    return figures, checks


def compare(medians: dict[str, dict[str, float]], gigabytes: float) -> tuple[dict[str, float], dict[str, bool | None]]:
    """The ratios of the medians, and whether each target is met (None: no target for a base of this size)."""
    bare, copy, ours = (medians[tool] for tool in ("bare interpreter", "plain copy", "depthup"))
    slower = ours["seconds"] / copy["seconds"]
    ratios = {"time, depthup / plain copy": slower}
    met = {"at most 1.1 x the time of a plain copy": slower <= 1.1}
    if theirs := medians.get("mergekit"):
        faster, smaller = theirs["seconds"] / ours["seconds"], theirs["peak_bytes"] / ours["peak_bytes"]
        above = [tool["peak_bytes"] - bare["peak_bytes"] for tool in (theirs, ours)]
        ratios |= {"time, mergekit / depthup": faster, "peak memory, mergekit / depthup": smaller}
        ratios["peak memory above the bare interpreter, mergekit / depthup"] = above[0] / max(above[1], 1)
        met |= {"at least 8 x faster than mergekit": faster >= 8, "at least 100 x less memory": smaller >= 100}
    return ratios, {target: is_met if gigabytes >= TARGET_GIGABYTES else None for target, is_met in met.items()}


def as_text(result: dict[str, Any]) -> str:
    """The result as text."""
    medians, bare = result["medians"], result["medians"]["bare interpreter"]["peak_bytes"]
    says = {True: "met", False: "NOT MET", None: f"stated for bases of {TARGET_GIGABYTES} GB and more, no verdict"}
    head = f"{'median of ' + str(result['repeats']):<18}{'wall':>10}{'CPU':>10}{'peak memory':>14}{'above bare':>14}"
    return "\n".join([
        f"base {result['base_bytes'] / 1e9:.2f} GB in {result['num_base_files']} files -> target"
        f" {result['target_bytes'] / 1e9:.2f} GB in {result['num_target_files']} files", "", head,
        *(f"{tool:<18}{m['seconds']:>8.2f} s{m['cpu_seconds']:>8.2f} s{m['peak_bytes'] / 1e6:>11.1f} MB"
          f"{(m['peak_bytes'] - bare) / 1e6:>11.1f} MB" for tool, m in medians.items()), "",
        *(f"{name}: {value:.2f}" for name, value in result["ratios"].items()), "",
        *(f"{name}: {'yes' if value else 'NO'}" for name, value in result["checks"].items()), "",
        *(f"target {name}: {says[value]}" for name, value in result["targets_met"].items()),
    ])  # fmt: skip


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


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "depthup-benchmarks"
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    add = parser.add_argument
    add("--gigabytes", type=float, default=4.0, help="size of the base, 10^9 bytes (default: 4)")
    add("--repeats", type=int, default=3, help="rounds; each runs every tool once (default: 3)")
    where = "where the checkpoints are written and removed; takes 2.6 x --gigabytes (default: the temporary folder)"
    add("--dir", type=Path, default=Path(tempfile.gettempdir()), metavar="FOLDER", help=where)
    where = "mergekit's virtual environment, made if it is not there (default: in your cache)"
    add("--mergekit-env", type=Path, default=cache / f"mergekit-{MERGEKIT}", metavar="FOLDER", help=where)
    add("--without-mergekit", action="store_true", help="compare with the plain copy only")
    add("--json", type=Path, metavar="FILE", help="write all figures here as well")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or not 0.05 <= arguments.gigabytes <= 1000:
        parser.error("--repeats is at least 1, --gigabytes from 0.05 to 1000")
    if shutil.disk_usage(arguments.dir).free < 2.6e9 * arguments.gigabytes:
        parser.error(f"{2.6 * arguments.gigabytes:.1f} GB must be free in --dir")
    return arguments


def main() -> None:
    """Run the benchmark and print the report."""
    arguments = parse_arguments()
    compared = not arguments.without_mergekit
    ours = output_of([sys.executable, "-B", "-c", "import depthup; print(depthup.__version__, end='')"])
    versions = {"python": platform.python_version(), "depthup": ours}
    versions |= install_mergekit(arguments.mergekit_env) if compared else {}
    shape, mergekit = Shape.of_size(arguments.gigabytes), arguments.mergekit_env.absolute() if compared else None
    with tempfile.TemporaryDirectory(prefix="depthup-benchmark-", dir=arguments.dir) as folder:
        figures, checks = benchmark(Path(folder), shape, arguments.repeats, mergekit)
        surroundings = machine(Path(folder))
    ratios, targets_met = compare(figures["medians"], arguments.gigabytes)
    command = f"python benchmarks/surgery.py --gigabytes {arguments.gigabytes:g} --repeats {arguments.repeats}"
    result = {
        "benchmark": "surgery", "command": command + " --without-mergekit" * (not compared),
        "machine": surroundings, "versions": versions, "repeats": arguments.repeats, "base": asdict(shape),
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
