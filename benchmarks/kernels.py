"""Promise of the kernels: the head's loss and attention within documents take less time and less memory.

Loss: each back end beside full logits, forward and backward, at SmolLM2-135M's head. Attention: transformers' dense
document mask beside ours, through one attention layer's call, on packed rows. Each case runs in a process of its own;
the cases take turns. Extra memory is the peak less what the inputs take. On CPU and, where there is one, on the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measuring import REPOSITORY, machine, output_of, say

SHAPES = {
    "cpu": {"num_tokens": 1024, "num_rows": 1, "row_tokens": 2048, "dtype": "float32", "rounds": 2},
    "cuda": {"num_tokens": 32768, "num_rows": 16, "row_tokens": 2048, "dtype": "bfloat16", "rounds": 20},
}
WIDTH, NUM_CLASSES, NUM_HEADS, NUM_KEY_VALUE_HEADS, HEAD_DIM = 576, 49152, 9, 3, 64  # SmolLM2-135M
MEAN_DOCUMENT = 256  # tokens
ATTENTION = ("dense mask", "depthup")
REFERENCES = {"loss": "full", "logps": "full", "attention": "dense mask"}

EXAMPLES = """examples:
  python benchmarks/kernels.py --repeats 1                                  a first look, a minute
  python benchmarks/kernels.py --json docs/results/kernels.json             the published figures
"""


def loss_case(name: str, device: str, log_probabilities: bool) -> Callable[[], None]:
    """One forward and backward pass of the head's loss, or of weighted log-probabilities (``full`` or ours)."""
    import torch
    import torch.nn.functional as F

    from depthup.training import kernels

    shape = SHAPES[device]
    dtype = getattr(torch, shape["dtype"])
    hidden = torch.randn(shape["num_tokens"], WIDTH, device=device, dtype=dtype).requires_grad_()
    weight = (torch.randn(NUM_CLASSES, WIDTH, device=device, dtype=dtype) / WIDTH**0.5).requires_grad_()
    labels = torch.randint(0, NUM_CLASSES, (shape["num_tokens"],), device=device)

    def run() -> None:
        hidden.grad = weight.grad = None
        if not log_probabilities:
            loss = kernels.summed_loss(hidden, weight, labels, backend=name)
        elif name == "full":
            logps = F.log_softmax(F.linear(hidden, weight).float(), dim=-1)
            loss = logps.gather(1, labels[:, None]).sum()
        else:
            loss = kernels.token_logps(hidden, weight, labels).sum()
        loss.backward()

    return run


def attention_case(name: str, device: str) -> Callable[[], None]:
    """One forward and backward pass of attention over packed rows, mask or borders made anew."""
    import numpy as np
    import torch

    from depthup.models import attention_interfaces
    from depthup.training import attention

    shape, draw = SHAPES[device], np.random.default_rng(0)
    positions = np.zeros((shape["num_rows"], shape["row_tokens"]), np.int64)
    for row in positions:
        begins = draw.random(len(row)) < 1 / MEAN_DOCUMENT
        begins[0] = True
        starts = np.flatnonzero(begins)
        row[:] = np.arange(len(row)) - np.repeat(starts, np.diff([*starts, len(row)]))
    options = {"device": device, "dtype": getattr(torch, shape["dtype"])}
    query, key, value = (
        torch.randn(shape["num_rows"], heads, shape["row_tokens"], HEAD_DIM, **options).requires_grad_()
        for heads in (NUM_HEADS, NUM_KEY_VALUE_HEADS, NUM_KEY_VALUE_HEADS)
    )
    layer = torch.nn.Module()
    layer.num_key_value_groups = NUM_HEADS // NUM_KEY_VALUE_HEADS
    functions, _ = attention_interfaces()
    ages = torch.ones(shape["row_tokens"], shape["row_tokens"], dtype=torch.bool, device=device).tril()
    documents = torch.from_numpy((np.diff(positions, axis=1, prepend=-1) != 1).cumsum(1)).to(device)
    note = torch.empty((0, 0), dtype=torch.bool, device=device)

    def run() -> None:
        query.grad = key.grad = value.grad = None
        if name == "depthup":
            borders, longest = attention.document_borders(positions)
            ends = torch.from_numpy(borders).to(device)
            found, _ = attention.attend(layer, query, key, value, note, cu_seq_lens_q=ends, max_length_q=longest)
        else:
            mask = ((documents[:, :, None] == documents[:, None, :]) & ages)[:, None]
            found, _ = functions["sdpa"](layer, query, key, value, mask)
        found.sum().backward()

    return run


def measure_case(kind: str, name: str, device: str) -> dict[str, float]:
    """Medians of the rounds after a first one, and the peak of memory above the inputs."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    run = attention_case(name, device) if kind == "attention" else loss_case(name, device, kind == "logps")

    def held() -> int:
        if device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before, rounds = held(), []
    for _ in range(int(SHAPES[device]["rounds"]) + 1):
        begin, cpu = time.perf_counter(), time.process_time()
        run()
        peak = held()
        rounds.append((time.perf_counter() - begin, time.process_time() - cpu))
    return {
        "seconds": round(median(seconds for seconds, _ in rounds[1:]), 5),
        "cpu_seconds": round(median(cpu for _, cpu in rounds[1:]), 5),
        "extra_bytes": peak - before,
    }


def cases(device: str) -> list[tuple[str, str]]:
    from depthup.training.kernels import BACKENDS

    losses = [("loss", name) for name, backend in BACKENDS.items() if backend.is_present(device)]
    return [*losses, ("logps", "full"), ("logps", "chunked"), *(("attention", name) for name in ATTENTION)]


def benchmark(device: str, repeats: int) -> dict[str, Any]:
    """Figures by kind and name: single runs, medians, ratios to the reference."""
    figures: dict[str, Any] = {}
    for _ in range(repeats):
        for kind, name in cases(device):
            command = [sys.executable, str(Path(__file__).resolve()), "--case", kind, name, device]
            found = json.loads(output_of(command).splitlines()[-1])
            figures.setdefault(kind, {}).setdefault(name, {"runs": []})["runs"].append(found)
            say(f"{device} {kind:<10}{name:<12}{found['seconds']:9.4f} s {found['extra_bytes'] / 1e6:9.1f} MB")
    for kind, names in figures.items():
        for values in names.values():
            runs: Sequence[dict[str, float]] = values["runs"]
            values["median"] = {key: median(run[key] for run in runs) for key in runs[0]}
        reference = names[REFERENCES[kind]]["median"]
        for values in names.values():
            values["ratio"] = {key: round(values["median"][key] / reference[key], 3) for key in reference}
    return figures


def main() -> None:
    """Run, print the ratios, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="processes for each case (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--case", nargs=3, metavar=("KIND", "NAME", "DEVICE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    if arguments.case:
        print(json.dumps(measure_case(*arguments.case)))
        return
    import torch

    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "benchmark": "kernels",
            "command": " ".join(["python benchmarks/kernels.py", *(Path(word).name for word in sys.argv[1:])]),
            "machine": machine(Path(folder)) | {"load_average_before": round(os.getloadavg()[0], 1)},
            "gpu": torch.cuda.get_device_name() if "cuda" in devices else None,
            "torch": torch.__version__,
            "head": {"width": WIDTH, "num_classes": NUM_CLASSES},
            "attention": {"num_heads": NUM_HEADS, "num_key_value_heads": NUM_KEY_VALUE_HEADS, "head_dim": HEAD_DIM,
                          "mean_document": MEAN_DOCUMENT},
            "shapes": {device: SHAPES[device] for device in devices},
            "figures": {device: benchmark(device, arguments.repeats) for device in devices},
        }  # fmt: skip
    for device, kinds in result["figures"].items():
        for kind, names in kinds.items():
            for name, values in names.items():
                figure, ratio = values["median"], values["ratio"]
                # Of a processor, its own time counts: others may be at work on the machine.
                clock = "cpu_seconds" if device == "cpu" else "seconds"
                print(f"{device:<6}{kind:<11}{name:<12}{figure[clock]:9.4f} s ({ratio[clock]:.2f} x)"
                      f"{figure['extra_bytes'] / 1e6:10.1f} MB ({ratio['extra_bytes']:.2f} x)")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
