"""Promise of speed: training takes less time for a token than TRL at its defaults, and than TRL at its best.

Peers in the same run, each in a process of its own, on one model and one stream of random tokens: TRL's SFTTrainer at
its defaults (gradient checkpointing on), and without gradient checkpointing (with Liger's kernels on a GPU). The first
steps are left out; the figure is the median step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from measuring import machine, say

EXAMPLES = """examples:
  python benchmarks/training.py --shape narrow --json docs/results/training-cpu.json     CPU, some minutes
  python benchmarks/training.py --shape smol44 b1_32 --json docs/results/training.json   one H100
"""
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
          "tie_word_embeddings": True, "hidden_act": "silu", "rms_norm_eps": 1e-5}  # fmt: skip
# name -> (config, row_tokens, rows in a step, rows in one pass)
SHAPES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "narrow": ({**_LLAMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 12, "vocab_size": 16384,
                "num_attention_heads": 4, "num_key_value_heads": 2}, 512, 4, 4),
    "smol44": ({**_LLAMA, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 44, "vocab_size": 49152,
                "num_attention_heads": 9, "num_key_value_heads": 3}, 2048, 32, 32),
    "b1_32": ({**_LLAMA, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 32, "vocab_size": 32000,
               "num_attention_heads": 16, "num_key_value_heads": 16}, 2048, 12, 12),
}  # fmt: skip
TOOLS = ("depthup", "trl", "trl-best")


def run_tool(tool: str, shape: str, num_steps: int, folder: Path) -> dict[str, float]:
    """Time ``num_steps`` steps of one tool, in this process: seconds of the median step, and the peak of memory."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    config, row_tokens, rows_per_step, _ = SHAPES[shape]
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config))
    ids = np.random.default_rng(0).integers(3, config["vocab_size"], (rows_per_step * num_steps, row_tokens))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    times = _depthup(model, ids, shape, num_steps, folder, device) if tool == "depthup" else _trl(
        model, ids, shape, num_steps, folder, device, best=tool == "trl-best")  # fmt: skip
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"seconds": median(times[2:]), "peak_bytes": peak, "num_tokens": rows_per_step * row_tokens}


def _depthup(model: Any, ids: Any, shape: str, num_steps: int, folder: Path, device: str) -> list[float]:
    import numpy as np

    from depthup.data.packing import pack
    from depthup.data.tokens import TokenizedDocuments
    from depthup.training.heads import choose_head
    from depthup.training.loop import train
    from depthup.training.metrics import read_metrics
    from depthup.training.objectives import CausalLM, choose_attention
    from depthup.training.schedule import Schedule
    from depthup.training.settings import TrainSettings

    _, row_tokens, rows_per_step, micro_rows = SHAPES[shape]
    documents = TokenizedDocuments(ids.astype(np.int32).ravel(), np.arange(0, ids.size + 1, row_tokens))
    rows = pack(documents, row_tokens)
    choose_attention(model)
    gpu = device == "cuda"
    settings = TrainSettings(
        Schedule("constant", num_steps), 1e-4, rows_per_step, micro_batch_rows=micro_rows, compile=gpu,
        precision="mixed" if gpu else "float32",
    )  # fmt: skip
    train(model, rows, CausalLM(choose_head(model)), settings, folder, progress=False)
    return [
        rows_per_step * (row_tokens - 1) / line["tokens_per_second"] for line in read_metrics(folder / "metrics.jsonl")
    ]


def _trl(model: Any, ids: Any, shape: str, num_steps: int, folder: Path, device: str, best: bool) -> list[float]:
    import time

    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    _, row_tokens, rows_per_step, micro_rows = SHAPES[shape]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<e>": 1, "<u>": 2}, unk_token="<u>")),
        eos_token="<e>", pad_token="<e>",
    )  # fmt: skip
    gpu = device == "cuda"
    changed: dict[str, Any] = {}
    if best:
        changed = {"gradient_checkpointing": False, "use_liger_kernel": gpu}
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=num_steps, per_device_train_batch_size=micro_rows,
        gradient_accumulation_steps=rows_per_step // micro_rows, learning_rate=1e-4, lr_scheduler_type="constant",
        max_length=row_tokens, report_to=[], save_strategy="no", logging_steps=1, bf16=gpu, use_cpu=not gpu,
        disable_tqdm=True, **changed,
    )  # fmt: skip
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    data = Dataset.from_dict({"input_ids": ids.tolist()})
    trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    trainer.train()
    return [after - before for before, after in itertools.pairwise(ends)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["narrow"], help="models to train (narrow)")
    parser.add_argument("--steps", type=int, default=8, help="steps of each run, the first two left out (8)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool; they take turns (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "SHAPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print("FIGURES " + json.dumps(run_tool(*options.one, options.steps, Path(folder))))
        return 0
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        shape: {tool: [] for tool in TOOLS} for shape in options.shape
    }
    for number in range(options.repeats):
        for shape in options.shape:
            for tool in TOOLS[number % 3 :] + TOOLS[: number % 3]:
                command = [sys.executable, __file__, "--one", tool, shape, "--steps", str(options.steps)]
                ended = subprocess.run(command, capture_output=True, text=True)
                found = [line for line in ended.stdout.splitlines() if line.startswith("FIGURES ")]
                if not found:
                    raise SystemExit(f"{tool} failed on {shape}:\n{ended.stderr[-2000:]}")
                runs[shape][tool].append(json.loads(found[0].removeprefix("FIGURES ")))
                say(f"round {number + 1}: {shape} {tool:<9} {runs[shape][tool][-1]['seconds']:8.3f} s a step")
    ratios: dict[str, dict[str, float]] = {}
    for shape, tools in runs.items():
        seconds = {tool: median(run["seconds"] for run in found) for tool, found in tools.items()}
        speed = {tool: tools[tool][0]["num_tokens"] / value for tool, value in seconds.items()}
        ratios[shape] = {f"{tool} / depthup": round(seconds[tool] / seconds["depthup"], 3) for tool in TOOLS[1:]}
        print(f"{shape}: " + ", ".join(f"{tool} {value:,.0f} tokens/s" for tool, value in speed.items()))
        print("  times: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios[shape].items()))
    if options.json:
        versions = {name: version(name) for name in ("torch", "transformers", "trl", "depthup")}
        command = "python benchmarks/training.py " + " ".join(arg for arg in sys.argv[1:])
        versions["python"] = platform.python_version()
        text = {"benchmark": "training", "command": command, "machine": machine(Path(".")), "versions": versions,
                "runs": runs, "ratios": ratios}  # fmt: skip
        options.json.write_text(json.dumps(text, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
