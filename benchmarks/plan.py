"""What `depthup plan` says of memory, against one training step on this machine's processor.

    python benchmarks/plan.py --json docs/results/plan.json

Each model is built and trained for two steps in a process of its own, with depthup's objective and optimizer: exact
sums of weights, gradients and moments, the storages that autograd keeps (saved-tensor hooks), and the peak of the
process's resident memory in the second step.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
# SmolLM2-135M's widths with fewer layers; the last two are thinner.
_SMOL = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
_THIN = {**_SMOL, "hidden_size": 288, "intermediate_size": 768, "vocab_size": 8192}
MODELS = {
    "smollm2, 10 layers, 4 x 256 tokens": ({**_SMOL, "num_hidden_layers": 10}, 4, 256),
    "half width, 22 layers, 4 x 512 tokens": ({**_THIN, "num_hidden_layers": 22}, 4, 512),
    "half width, qwen3, 12 layers, 8 x 256 tokens": (
        {**_THIN, "model_type": "qwen3", "head_dim": 32, "num_hidden_layers": 12}, 8, 256,
    ),
}  # fmt: skip


def planned(config: dict[str, Any], rows: int, row_tokens: int) -> dict[str, float]:
    """Bytes by item, as the plan counts them."""
    from depthup.planning.compute import ALL
    from depthup.planning.memory import Layout, memory
    from depthup.planning.shapes import shape_from_config
    from depthup.planning.workload import Workload

    shape = shape_from_config(config)
    work = Workload("t", "pretrain", shape, ALL, row_tokens, rows_per_step=rows, micro_batch_rows=rows, num_steps=1)
    return {item.name: item.num_bytes for item in memory(work, Layout(1, is_processor=True))}


def measured(config: dict[str, Any], rows: int, row_tokens: int) -> dict[str, float]:
    """Bytes by item of two real steps (the first one makes the moments)."""
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from depthup.data.packing import Batch
    from depthup.training.heads import choose_head
    from depthup.training.objectives import CausalLM
    from depthup.training.optimizers import make_optimizer

    torch.set_num_threads(1)
    before = _resident("VmRSS")
    fields = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields)).train()
    objective = CausalLM(choose_head(model))
    optimizer = make_optimizer(model, weight_decay=0.1, betas=(0.9, 0.95))
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], (rows, row_tokens + 1))
    places = np.tile(np.arange(row_tokens), (rows, 1))
    batch = Batch(ids[:, :-1], ids[:, 1:], places)
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step(count: bool) -> None:
        optimizer.zero_grad()
        if count:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = objective(model, batch).loss
        else:
            loss = objective(model, batch).loss
        loss.backward()
        optimizer.step()

    step(count=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    step(count=False)
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    return {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "gradients": sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None),
        "optimizer moments": sum(moment.nbytes for moment in moments),
        "activations": sum(kept.values()),
        "process": _resident("VmHWM"),
        "process before the model": before,
    }


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--one", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*MODELS[options.one])))
        return
    runs = {}
    for name, model in MODELS.items():
        said = planned(*model)
        command = [sys.executable, __file__, "--one", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        ratios = {item: round(said[item] / found[item], 3) for item in said if item in found}
        ratios["process"] = round(sum(said.values()) / found["process"], 3)
        runs[name] = {"planned": said, "measured": found, "planned / measured": ratios}
        print(f"{name}: planned / measured {ratios}")
    if options.json:
        import torch
        import transformers

        versions = {"python": platform.python_version(), "torch": torch.__version__,
                    "transformers": transformers.__version__}  # fmt: skip
        result = {"benchmark": "plan", "command": "python benchmarks/plan.py --json docs/results/plan.json",
                  "versions": versions, "runs": runs}  # fmt: skip
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
