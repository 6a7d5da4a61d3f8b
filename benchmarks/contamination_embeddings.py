"""What `--embeddings` adds to words: recall on rephrased GSM8K, false positives, and texts a second.

Items of GSM8K test, their rephrasings by GPT-4, other problems of the kind (GSM8K train), instructions and windows of
500-word documents are embedded; then each limit of cosine and of shared numbers is counted. Of a rephrasing its own
item counts, elsewhere any item. Processor time; one thread.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from contamination import documents_of, rows_of, told_options
from measuring import REPOSITORY, machine, say

sys.path.insert(0, str(REPOSITORY))
from depthup.contamination.benchmarks import load_items
from depthup.contamination.embeddings import Encoder, identity_of, long_enough, share_of_numbers, windows

EXAMPLES = """example:
  python benchmarks/contamination_embeddings.py all-MiniLM-L6-v2 --data-dir data --items 300
"""
COSINES, SHARES = (0.75, 0.8, 0.85, 0.9), (0.0, 0.5, 0.6, 0.75, 1.0)


def texts_of(data_dir: Path, number: int, num_documents: int) -> dict[str, list[str]]:
    """Texts without test items, by kind; of documents the windows."""
    draw = random.Random(1)
    train = [row["question"] for row in rows_of(data_dir / "gsm8k" / "train.jsonl.gz")]
    prompts = [row["prompt"] for row in rows_of(data_dir / "preference" / "alpaca_eval_gpt4_pairs.jsonl.gz")]
    with gzip.open(data_dir / "pretrain" / "wikitext2_test.txt.gz", "rt", encoding="utf-8") as file:
        documents = list(itertools.islice(documents_of(file), num_documents))
    return {
        "gsm8k train": draw.sample(train, number),
        "instructions": draw.sample([text for text in prompts if isinstance(text, str)], number // 2),
        "windows of WikiText-2": [text[begin:end] for text in documents for begin, end in windows(text)],
    }


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    data_dir, encoder = Path(options.data_dir), Encoder(Path(options.model), "cpu")
    items = load_items(("gsm8k",), data_dir)
    rephrased = [row["text"] for row in rows_of(data_dir / "contamination" / "rephrase_gsm8k_test.jsonl")]
    chosen = random.Random(0).sample(long_enough(items), options.items)
    questions, own = [items[k].question for k in chosen], [rephrased[k] for k in chosen]
    others = texts_of(data_dir, options.items, options.documents)
    begin = time.process_time()
    vectors = encoder.embed(questions)
    cosines = (encoder.embed(own) * vectors).sum(1)
    nearest = {kind: encoder.embed(texts) @ vectors.T for kind, texts in others.items()}
    seconds = time.process_time() - begin
    num_texts = len(questions) + len(own) + sum(map(len, others.values()))
    shares = np.array([share_of_numbers(*pair) for pair in zip(questions, own, strict=True)])
    table = []
    for cosine, share in itertools.product(COSINES, SHARES):
        flagged = {
            kind: sum(
                any(share_of_numbers(questions[k], text) >= share for k in np.flatnonzero(row >= cosine))
                for row, text in zip(nearest[kind], texts, strict=True)
            )
            for kind, texts in others.items()
        }
        recall = float(((cosines >= cosine) & (shares >= share)).mean())
        table.append({"cosine": cosine, "numbers": share, "recall": round(recall, 4), "flagged": flagged})
        say(json.dumps(table[-1]))
    return {
        "encoder": identity_of(Path(options.model)), "num_items": len(questions),
        "num_texts": {kind: len(texts) for kind, texts in others.items()},
        "texts_per_core_second": round(num_texts / seconds, 1), "limits": table,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", help="folder of a sentence encoder")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="GSM8K, rephrasings, other texts")
    parser.add_argument("--items", type=int, default=300, metavar="N", help="test items, and rows of GSM8K train (300)")
    parser.add_argument("--documents", type=int, default=30, metavar="N", help="of 500 words (30)")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    command = f"benchmarks/contamination_embeddings.py {' '.join(told_options(sys.argv[1:]))}"
    text = json.dumps({"machine": machine(Path.cwd()), "command": command, **benchmark(options)}, indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
