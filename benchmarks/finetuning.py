"""Promise of speed: SFT and DPO learn more target tokens a second than TRL at its defaults, on real ragged texts.

A target is a token that the loss counts: of completions in SFT, of both answers in DPO. Peers in the same run, each in
a process of its own, on the same token ids, masks and examples a step: TRL at its defaults (padding, gradient
checkpointing, a reference that is run in each step), and at its best (SFT packed, no gradient checkpointing, the
reference computed ahead, Liger's kernels on a GPU). What computing a reference ahead costs is counted in.
The first step is left out (three on a GPU); the figure is the targets of all others over their seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from measuring import REPOSITORY, machine, say
from training import SHAPES, TOOLS

sys.path.insert(0, str(REPOSITORY))

EXAMPLES = """examples:
  python benchmarks/finetuning.py data --json docs/results/finetuning-cpu.json                   CPU, minutes
  python benchmarks/finetuning.py data --shape smol44 --steps 12 --json docs/results/finetuning.json   one H100
"""
TASKS = ("sft", "dpo")
FILES = {"sft": ("instruct/alpaca_en_demo.json", "instruct/instruction-data.json"), "dpo": ("preference",)}


@dataclass(frozen=True)
class Sizes:
    """What one shape is run with, besides its model.

    Attributes:
        examples: Conversations or pairs in a step, for every tool.
        max_tokens: Longest conversation, or prompt with one of its answers; TRL's default is 1024.
        row_tokens: Of depthup's rows (of TRL's too, where it packs).
        rows: Of depthup's and of packed TRL's rows in one forward pass.
        trl_examples: In one forward pass of padded TRL; its default is 8.
        trl_best_examples: The same at its best.
    """

    examples: int
    max_tokens: int
    row_tokens: int
    rows: int
    trl_examples: int = 8
    trl_best_examples: int = 8


SIZES = {
    "narrow": Sizes(8, 256, 512, 1),
    "smol44": Sizes(64, 1024, 2048, 16, trl_best_examples=32),
    "b1_32": Sizes(64, 1024, 2048, 8, trl_best_examples=8),
}


# -- data: made once, read by every tool -------------------------------------------------------------------------------


def prepare(data: Path, shape: str, task: str, num_examples: int, folder: Path) -> None:
    """Token ids and masks of the task into ``folder``, by a tokenizer trained on the texts, of the shape's size."""
    from depthup.data.chat import chat_encoder
    from depthup.data.conversations import read_conversations
    from depthup.data.pair_tokens import chat_encode, write_pairs
    from depthup.data.preferences import read_pairs, select_pairs
    from depthup.data.sources import Files
    from depthup.data.tokens import write_encoded

    files = Files(tuple(str(data / name) for name in FILES[task]))
    tokenizer = _tokenizer(_texts(files), SHAPES[shape][0]["vocab_size"])
    encoder = chat_encoder(tokenizer, "solar", turns="last")
    if task == "sft":
        write_encoded(read_conversations(files), encoder, folder)
        return
    write_pairs(
        select_pairs(read_pairs(files), "train", 0.0), chat_encode(encoder), folder, truncate="end",
        max_tokens=SIZES[shape].max_tokens, end_of_turn=[encoder.end_of_turn],
    )  # fmt: skip


def _texts(files: Any) -> Iterator[str]:
    for row in files.rows():
        yield json.dumps(row[1] if isinstance(row, tuple) else row, ensure_ascii=False, default=str)


def _tokenizer(texts: Iterator[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def examples_of(task: str, shape: str, num_examples: int, folder: Path) -> Any:
    """The first examples of a fixed permutation: documents cut to the shape's length, or pairs."""
    import numpy as np

    from depthup.data.pair_tokens import open_pairs
    from depthup.data.tokens import TokenizedDocuments, open_tokens

    if task == "dpo":
        pairs = open_pairs(folder)
        return pairs.subset(np.random.default_rng(0).permutation(pairs.num_pairs)[:num_examples])
    whole = open_tokens(folder)
    assert whole.targets is not None
    chosen = np.random.default_rng(0).permutation(whole.num_documents)[:num_examples]
    ends = np.minimum(whole.offsets[1:], whole.offsets[:-1] + SIZES[shape].max_tokens)
    parts = [slice(whole.offsets[index], ends[index]) for index in chosen]
    parts = [part for part in parts if whole.targets[part].any()]
    offsets = np.cumsum([0, *(part.stop - part.start for part in parts)])
    tokens, targets = (np.concatenate([values[part] for part in parts]) for values in (whole.tokens, whole.targets))
    return TokenizedDocuments(tokens, offsets, targets)


# -- tools -------------------------------------------------------------------------------------------------------------


@dataclass
class Timed:
    """Of each step its seconds and targets; and what a reference computed ahead cost, for all examples together."""

    seconds: list[float]
    targets: list[int]
    reference_seconds: float = 0.0


def run_tool(tool: str, task: str, shape: str, num_steps: int, data: Path) -> dict[str, float]:
    """Targets a second of one tool, in this process, and the peak of the GPU's memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    gpu = torch.cuda.is_available()
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape][0])).to("cuda" if gpu else "cpu")
    examples = examples_of(task, shape, num_steps * SIZES[shape].examples, data)
    run = {("depthup", "sft"): _sft, ("depthup", "dpo"): _dpo}.get((tool, task))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if run is not None:
            timed = run(model, examples, SIZES[shape], num_steps, folder, gpu)
        else:
            timed = _trl(model, examples, task, SIZES[shape], num_steps, folder, gpu, best=tool == "trl-best")
    first = 3 if gpu else 1
    share = sum(timed.targets[first:]) / sum(timed.targets)
    seconds = sum(timed.seconds[first:]) + timed.reference_seconds * share
    return {
        "targets_per_second": sum(timed.targets[first:]) / seconds,
        "reference_share": timed.reference_seconds * share / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if gpu else 0,
    }


def _sft(model: Any, documents: Any, sizes: Sizes, num_steps: int, folder: Path, gpu: bool) -> Timed:
    from depthup.data.packing import pack
    from depthup.training.heads import choose_head
    from depthup.training.objectives import CausalLM

    rows = pack(documents, sizes.row_tokens, whole=True)
    rows_per_step = max(1, rows.num_rows // num_steps)
    return _train(model, rows, CausalLM(choose_head(model)), rows_per_step, sizes, num_steps, folder, gpu)


def _dpo(model: Any, pairs: Any, sizes: Sizes, num_steps: int, folder: Path, gpu: bool) -> Timed:
    from depthup.data.pairs import PairRows
    from depthup.training.dpo import answer_logps, dpo
    from depthup.training.heads import choose_head
    from depthup.training.reference import reference_log_probs

    head = choose_head(model)
    spent: list[float] = []

    def rows(laid_out: Any) -> Any:
        begin = time.perf_counter()
        found = reference_log_probs(
            laid_out, PairRows(pairs, sizes.row_tokens), folder / "reference", {"weights": "fresh"}, progress=False,
            rows_per_batch=sizes.rows, log_probs=lambda policy, batch: answer_logps(head, policy, batch),
        )  # fmt: skip
        spent.append(time.perf_counter() - begin)
        return PairRows(pairs, sizes.row_tokens, found)

    timed = _train(model, rows, dpo(head=head), sizes.examples, sizes, num_steps, folder, gpu)
    timed.reference_seconds = spent[0]
    return timed


def _train(
    model: Any, rows: Any, objective: Any, rows_per_step: int, sizes: Sizes, num_steps: int, folder: Path, gpu: bool
) -> Timed:
    from depthup.training.loop import train
    from depthup.training.metrics import read_metrics
    from depthup.training.objectives import choose_attention
    from depthup.training.schedule import Schedule
    from depthup.training.settings import TrainSettings

    choose_attention(model)
    settings = TrainSettings(
        Schedule("constant", num_steps), 1e-5, rows_per_step, micro_batch_rows=sizes.rows, compile=gpu,
        precision="mixed" if gpu else "float32",
    )  # fmt: skip
    train(model, rows, objective, settings, folder, progress=False)
    lines = list(read_metrics(folder / "metrics.jsonl"))
    seen = [0, *(line["tokens_seen"] for line in lines)]
    targets = [after - before for before, after in itertools.pairwise(seen)]
    return Timed([num / line["tokens_per_second"] for num, line in zip(targets, lines, strict=True)], targets)


def _trl_settings(
    examples: Any, task: str, sizes: Sizes, num_steps: int, folder: Path, gpu: bool, best: bool
) -> dict[str, Any]:
    """TRL's settings: its defaults, or its best for the task."""
    in_pass = sizes.trl_best_examples if best else sizes.trl_examples
    packed = best and task == "sft"
    common: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": num_steps, "learning_rate": 1e-5, "lr_scheduler_type": "constant",
        "report_to": [], "save_strategy": "no", "bf16": gpu, "use_cpu": not gpu, "disable_tqdm": True,
        "per_device_train_batch_size": in_pass, "gradient_accumulation_steps": max(1, sizes.examples // in_pass),
        "max_length": sizes.row_tokens if packed else sizes.max_tokens,
    }  # fmt: skip
    if best:
        common |= {"gradient_checkpointing": False, "use_liger_kernel": gpu}
    if packed:
        rows_per_step = max(1, round(examples.num_tokens / sizes.row_tokens / num_steps))
        rows = min(rows_per_step, sizes.rows)
        common |= {"packing": True, "per_device_train_batch_size": rows,
                   "gradient_accumulation_steps": max(1, rows_per_step // rows)}  # fmt: skip
    return common


def _trl(
    model: Any, examples: Any, task: str, sizes: Sizes, num_steps: int, folder: Path, gpu: bool, best: bool
) -> Timed:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    tokenizer = _tokenizer(iter(["a"]), 300)
    common = _trl_settings(examples, task, sizes, num_steps, folder, gpu, best)
    spent: list[float] = []

    class Clocked(DPOTrainer):  # type: ignore[misc, valid-type]
        def _prepare_dataset(self, dataset: Any, *arguments: Any, **named: Any) -> Any:
            return dataset  # ids already, the same as everybody's

        def _precompute_ref_logps(self, *arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments, **named)
            spent.append(time.perf_counter() - begin)
            return found

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            if not ends:
                ends.append(time.perf_counter())

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    if task == "sft":
        rows_of = _sft_rows(examples)
        trainer = SFTTrainer(model, SFTConfig(completion_only_loss=True, **common), processing_class=tokenizer,
                             train_dataset=Dataset.from_list(rows_of), callbacks=[Clock()])  # fmt: skip
    else:
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        parts = [map(_listed, examples.pair(index)) for index in range(examples.num_pairs)]
        pairs = Dataset.from_list([dict(zip(names, each, strict=True)) for each in parts])
        reference = None if best else _copy_of(model)
        trainer = Clocked(model, reference, DPOConfig(precompute_ref_log_probs=best, **common),
                          processing_class=tokenizer, train_dataset=pairs, callbacks=[Clock()])  # fmt: skip
    counts = _counted(trainer)
    trainer.train()
    per_step = trainer.args.gradient_accumulation_steps
    targets = [sum(counts[step * per_step : (step + 1) * per_step]) for step in range(num_steps)]
    return Timed([after - before for before, after in itertools.pairwise(ends)], targets, sum(spent))


def _sft_rows(documents: Any) -> list[dict[str, list[int]]]:
    found = []
    for begin, end in zip(documents.offsets[:-1], documents.offsets[1:], strict=True):
        mask = documents.targets[begin:end].astype(int).tolist()
        found.append({"input_ids": documents.tokens[begin:end].tolist(), "completion_mask": mask})
    return found


def _listed(ids: Any) -> list[int]:
    found: list[int] = ids.tolist()
    return found


def _copy_of(model: Any) -> Any:
    import copy

    return copy.deepcopy(model)


def _counted(trainer: Any) -> list[int]:
    """Targets of each batch that the trainer's collator makes, in their order."""
    collate, counts = trainer.data_collator, []

    def count(examples: Any) -> Any:
        made = collate(examples)
        counts.append(int((made["labels"] != -100).sum() if "labels" in made else made["completion_mask"].sum()))
        return made

    trainer.data_collator = count
    return counts


# -- the run -----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("data", type=Path, help="folder with instruct/ and preference/")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=list(TOOLS), help="all three")
    parser.add_argument("--shape", choices=SIZES, default="narrow", help="model to train (narrow)")
    parser.add_argument("--steps", type=int, default=4, help="steps of each run (4)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool; they take turns (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("FIGURES " + json.dumps(run_tool(*options.one, options.shape, options.steps, options.data)))
        return 0
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    ratios: dict[str, dict[str, float]] = {}
    for task in options.task:
        with tempfile.TemporaryDirectory() as name:
            prepare(options.data, options.shape, task, options.steps * SIZES[options.shape].examples, Path(name))
            runs[task] = _rounds(options, task, Path(name))
        speed = {tool: median(run["targets_per_second"] for run in found) for tool, found in runs[task].items()}
        print(f"{task}: " + ", ".join(f"{tool} {value:,.0f} targets/s" for tool, value in speed.items()))
        if "depthup" in speed:
            ratios[task] = {f"depthup / {tool}": round(speed["depthup"] / speed[tool], 3) for tool in speed}
            del ratios[task]["depthup / depthup"]
            print("  times: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios[task].items()))
    if options.json:
        versions = {name: version(name) for name in ("torch", "transformers", "trl", "depthup")}
        versions["python"] = platform.python_version()
        command = "python benchmarks/finetuning.py " + " ".join(sys.argv[1:]).replace(str(options.data), "data")
        text = {"benchmark": "finetuning", "command": command, "machine": machine(Path(".")), "versions": versions,
                "shape": options.shape, "runs": runs, "ratios": ratios}  # fmt: skip
        options.json.write_text(json.dumps(text, indent=1) + "\n")
    return 0


def _rounds(options: Any, task: str, data: Path) -> dict[str, list[dict[str, float]]]:
    """Each tool in turn, ``options.repeats`` times, each round begun by another one."""
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in options.tool}
    for number in range(options.repeats):
        turn = number % len(options.tool)
        for tool in options.tool[turn:] + options.tool[:turn]:
            command = [sys.executable, __file__, str(data), "--one", tool, task, "--shape", options.shape,
                       "--steps", str(options.steps)]  # fmt: skip
            ended = subprocess.run(command, capture_output=True, text=True)
            found = [line for line in ended.stdout.splitlines() if line.startswith("FIGURES ")]
            if not found:
                raise SystemExit(f"{tool} failed at {task}:\n{ended.stderr[-2000:]}")
            runs[tool].append(json.loads(found[0].removeprefix("FIGURES ")))
            say(f"round {number + 1}: {task} {tool:<9} {runs[tool][-1]['targets_per_second']:10,.1f} targets/s")
    return runs


if __name__ == "__main__":
    sys.exit(main())
