"""Preference pairs without padding: pairs read and packed in a second, how full rows are, and what a pass costs.

The peer is TRL's collator (DataCollatorForPreference), which pads the texts of some random pairs to the longest. The
model is tiny and on the CPU, where attention over a packed row costs the whole row; figures are processor seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import REPOSITORY, machine
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(REPOSITORY))

from depthup.data.chat import chat_encoder
from depthup.data.pair_tokens import TokenizedPairs, chat_encode, write_pairs
from depthup.data.pairs import PairRows
from depthup.data.preferences import read_pairs, select_pairs
from depthup.data.sources import Files
from depthup.models import load_tokenizer

EXAMPLES = """example:
  python benchmarks/preferences.py data/preference CHECKPOINT --width 256
"""


def seconds_of(action: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    begin = clock()
    result = action()
    return clock() - begin, result


def trl_batches(pairs: TokenizedPairs, pairs_per_batch: int) -> list[dict[str, torch.Tensor]]:
    """What TRL's collator makes of the pairs in their order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer.dpo_trainer import DataCollatorForPreference
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    examples = [
        dict(zip(names, (part.tolist() for part in pairs.pair(i)), strict=True)) for i in range(pairs.num_pairs)
    ]
    collate = DataCollatorForPreference(pad_token_id=0)
    return [collate(examples[i : i + pairs_per_batch]) for i in range(0, len(examples), pairs_per_batch)]


def packed_batches(pairs: TokenizedPairs, row_tokens: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"input_ids": torch.from_numpy(batch.input_ids), "position_ids": torch.from_numpy(batch.position_ids)}
        for batch in PairRows(pairs, row_tokens).in_order(1)
    ]


def forward(model: LlamaForCausalLM, batches: list[dict[str, torch.Tensor]]) -> float:
    """Processor seconds of a pass over all batches: the better of two."""

    @torch.no_grad()
    def once() -> None:
        for batch in batches:
            model(**{name: batch[name] for name in batch if name != "completion_mask"}, use_cache=False)

    return min(seconds_of(once, time.process_time)[0] for _ in range(2))


def measure(files: str, tokenizer: Any, max_tokens: int, width: int, num_pairs: int) -> dict[str, Any]:
    chat = chat_encoder(tokenizer, "chatml", turns="last")
    reading, read = seconds_of(lambda: list(read_pairs(Files((files,)))))
    kept = list(select_pairs(read, "train", 0.0))
    with tempfile.TemporaryDirectory() as folder:
        tokenizing, pairs = seconds_of(lambda: write_pairs(
            kept, chat_encode(chat), Path(folder), max_tokens=max_tokens, end_of_turn=[chat.end_of_turn]
        ))  # fmt: skip
        rows = PairRows(pairs, 2 * max_tokens)
        packing, batches = seconds_of(lambda: [rows.batch_of_step(step, 128, seed=0) for step in range(20)])
        num_packed = sum(int(pairs.lengths[rows.pairs_of_step(step, 128, seed=0)].sum()) for step in range(20))
        some = pairs.subset(np.random.default_rng(0).permutation(pairs.num_pairs)[:num_pairs])
        vocabulary = len(tokenizer)
        config = LlamaConfig(
            hidden_size=width, intermediate_size=3 * width, num_hidden_layers=4, num_attention_heads=width // 32,
            num_key_value_heads=width // 32, vocab_size=vocabulary, max_position_embeddings=2 * max_tokens,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        model.lm_head = (
            torch.nn.Identity()
        )  # its cost, which padding doubles too, would drown the layers' at this width
        ways = {f"trl, {size} pairs": trl_batches(some, size) for size in (4, 8)}
        for row_tokens in (int(some.lengths.max()), 2 * max_tokens):
            ways[f"rows of {row_tokens}"] = packed_batches(some, row_tokens)
        num_tokens = int(some.lengths.sum())
        passes = {
            name: {
                "full": num_tokens / sum(batch["input_ids"].numel() for batch in made), "seconds": forward(model, made)
            }
            for name, made in ways.items()
        }  # fmt: skip
    return {
        "rows_read_per_second": len(read) / reading,
        "pairs_tokenized_per_second": pairs.num_pairs / tokenizing,
        "pairs_packed_per_second": 20 * 128 / packing,
        "full_at_128_pairs_a_step": num_packed / sum(batch.input_ids.size for batch in batches),
        "passes": passes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", help="file or folder of preference rows")
    parser.add_argument("tokenizer", type=Path, help="checkpoint folder with a tokenizer that knows <|im_end|>")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=256, help="of the model")
    parser.add_argument("--pairs", type=int, default=32, help="pairs in a pass")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(
        arguments.files, load_tokenizer(arguments.tokenizer), arguments.max_tokens, arguments.width, arguments.pairs
    )
    text = json.dumps({"machine": machine(Path.cwd()), "command": " ".join(sys.argv), **figures}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
