"""Seconds to answer GSM8K questions with a real model: depthup, lm-eval's HF backend, transformers.

The same few-shot prompts, stop strings and limits for all, in one process and in turns; the texts are compared. With
each engine's own batches: lm-eval's with 1 and 8 rows, transformers' `generate` one prompt at a time. On a machine that
others use too, the processor's time (OMP_NUM_THREADS=1) says more than the clock.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import REPOSITORY, machine, say

sys.path.insert(0, str(REPOSITORY))

from depthup.generation.greedy import complete
from depthup.models import load_model, load_tokenizer

STOP = ["Question:", "</s>", "<|im_end|>"]

EXAMPLES = """examples:
  depthup import ... smollm2 && python benchmarks/generation.py smollm2 --data data/gsm8k --questions 8
"""


def prompts_of(data: Path, num_questions: int, num_shots: int) -> list[str]:
    """Few-shot prompts as the harness makes them: other shots for each question."""
    with gzip.open(data / "train.jsonl.gz", "rt") as file:
        train = [json.loads(line) for line in file]
    test = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()[:num_questions]]
    draw = random.Random(1234)
    return [
        "\n\n".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}" for shot in draw.sample(train, num_shots))
        + f"\n\nQuestion: {row['question']}\nAnswer:"
        for row in test
    ]


def engines(model: Any, tokenizer: Any, prompts: list[str], limit: int) -> dict[str, Callable[[], list[str]]]:
    """Each way to answer all prompts, by its name."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]

    def ours() -> list[str]:
        return complete(
            model, tokenizer, ids, stop=[tuple(STOP)] * len(ids), max_new_tokens=[limit] * len(ids), progress=False
        )

    def harness(batch_size: int) -> list[str]:
        backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        arguments = {"until": list(STOP), "max_gen_toks": limit, "do_sample": False, "temperature": 0.0}
        requests = [Instance("generate_until", {}, (prompt, arguments), 0) for prompt in prompts]
        return backend.generate_until(requests, disable_tqdm=True)

    def transformers() -> list[str]:
        texts = []
        for row in ids:
            given = torch.tensor([row], device=model.device)
            made = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=limit, do_sample=False,
                stop_strings=STOP, tokenizer=tokenizer, pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            text = tokenizer.decode(made[0, len(row) :], skip_special_tokens=True)
            for stop in STOP:
                text = text.split(stop)[0]
            texts.append(text)
        return texts

    return {
        "depthup": ours,
        "lm-eval, batch 8": lambda: harness(8),
        "lm-eval, batch 1": lambda: harness(1),
        "transformers, one at a time": transformers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with GSM8K's train.jsonl.gz and test.jsonl")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", nargs="+", help="beginnings of names of engines; depthup always runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tokenizer = load_model(options.model, options.device, options.dtype), load_tokenizer(options.model)
    prompts = prompts_of(options.data, options.questions, options.shots)
    found: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for name, engine in engines(model, tokenizer, prompts, options.max_new_tokens).items():
        if options.only and name != "depthup" and not name.startswith(tuple(options.only)):
            continue
        started, computed = time.perf_counter(), time.process_time()
        texts[name] = engine()
        seconds, computed = time.perf_counter() - started, time.process_time() - computed
        same = sum(ours == other for ours, other in zip(texts["depthup"], texts[name], strict=True))
        found[name] = {"seconds": round(seconds, 2), "processor_seconds": round(computed, 2), "same_texts": same}
        ratios = [found[name][kind] / found["depthup"][kind] for kind in ("seconds", "processor_seconds")]
        times = f"{seconds:8.1f} s {ratios[0]:5.2f} x   processor {computed:8.1f} s {ratios[1]:5.2f} x"
        say(f"{name:28} {times}   {same} of {len(prompts)} texts the same")
    if options.json:
        kept = ("questions", "shots", "max_new_tokens", "dtype", "device")
        shown = {"model": Path(options.model).name, **{name: getattr(options, name) for name in kept}}
        options.json.write_text(
            json.dumps({"machine": machine(Path.cwd()), **shown, "engines": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
