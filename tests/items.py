"""Small benchmarks in the hub's fields, made up on the spot, and the folder that ``--data-dir`` takes."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

SUBJECTS = ("anatomy", "us_foreign_policy", "virology")
_WORDS = (
    "the",
    "Red",
    "apple",
    "\u00e9tude",
    "house",
    "[step]",
    "",
    "of",
    "small",
    "12",
    "light",
    "[title]",
    "sang",
    "why?",
)
Splits = dict[str, list[dict[str, Any]]]


def text(rng: random.Random, num_words: int) -> str:
    """Words in no sense, with brackets and double spaces as HellaSwag has them."""
    return "w" + " ".join(rng.choice(_WORDS) for _ in range(num_words)) + "."


def benchmarks(seed: int = 0) -> dict[str, Splits]:
    """Task -> split -> rows in the hub's fields; enough rows for the examples of each task."""
    rng = random.Random(seed)
    mmlu = [(split, subject) for subject in SUBJECTS for split in ["dev"] * 5 + ["test"] * (3 + len(subject) % 3)]
    return {
        "arc_challenge": {"train": [_arc(rng, n) for n in range(30)], "test": [_arc(rng, n) for n in range(6)]},
        "hellaswag": {"train": [_hellaswag(rng) for _ in range(16)], "validation": [_hellaswag(rng) for _ in range(6)]},
        "mmlu": {name: [_mmlu(rng, subject) for split, subject in mmlu if split == name] for name in ("dev", "test")},
        "truthfulqa_mc2": {"validation": [_truthfulqa(rng, n) for n in range(6)]},
        "winogrande": {
            "train": [_winogrande(rng) for _ in range(20)],
            "validation": [_winogrande(rng) for _ in range(6)],
        },
        "gsm8k": {"train": [_gsm8k(rng) for _ in range(12)], "test": [_gsm8k(rng) for _ in range(5)]},
    }


FILES = {
    ("arc_challenge", "train"): "arc/arc_challenge_train.jsonl",
    ("arc_challenge", "test"): "arc/arc_challenge_test.jsonl",
    ("hellaswag", "train"): "hellaswag/train.jsonl",
    ("hellaswag", "validation"): "hellaswag/validation.jsonl.gz",
    ("mmlu", "dev"): "mmlu/dev.jsonl",
    ("mmlu", "test"): "mmlu/test.jsonl.gz",
    ("truthfulqa_mc2", "validation"): "truthfulqa/validation.jsonl",
    ("winogrande", "train"): "winogrande/train_xl.jsonl.gz",
    ("winogrande", "validation"): "winogrande/dev.jsonl",
    ("gsm8k", "train"): "gsm8k/train.jsonl",
    ("gsm8k", "test"): "gsm8k/test.jsonl",
}


def write(folder: Path, made: dict[str, Splits] | None = None) -> Path:
    """Write benchmarks in the layout of ``--data-dir``; splits that are not in ``made`` are left out."""
    made = made or benchmarks()
    for (task, split), name in FILES.items():
        if split in made.get(task, {}):
            write_rows(folder / name, made[task][split])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _arc(rng: random.Random, number: int) -> dict[str, Any]:
    size = 3 + number % 3
    labels = [str(place + 1) for place in range(size)] if number % 4 == 1 else list("ABCDE"[:size])
    choices = {"text": [text(rng, 1 + place) for place in range(size)], "label": labels}
    return {"id": f"q{number}", "question": text(rng, 6), "choices": choices, "answerKey": rng.choice(labels)}


def _hellaswag(rng: random.Random) -> dict[str, Any]:
    return {"ind": rng.randrange(9), "activity_label": text(rng, 2), "ctx_a": text(rng, 5), "ctx_b": text(rng, 2),
            "endings": [text(rng, 4) for _ in range(4)], "label": str(rng.randrange(4))}  # fmt: skip


def _mmlu(rng: random.Random, subject: str) -> dict[str, Any]:
    return {"subject": subject, "question": f" {text(rng, 5)}\n\n{text(rng, 2)} ",
            "choices": [text(rng, 2) for _ in range(4)], "answer": rng.randrange(4)}  # fmt: skip


def _truthfulqa(rng: random.Random, number: int) -> dict[str, Any]:
    labels = [1, 0, 1, 0] if number == 2 else [1] * (1 + number % 3) + [0] * (1 + number % 2)
    first = {"choices": [text(rng, 3) for _ in range(3)], "labels": [1, 0, 0]}
    return {"question": text(rng, 5), "mc1_targets": first,
            "mc2_targets": {"choices": [text(rng, 3) for _ in labels], "labels": labels}}  # fmt: skip


def _winogrande(rng: random.Random) -> dict[str, Any]:
    return {"sentence": f"{text(rng, 3)} _ {text(rng, 3)}", "option1": text(rng, 1), "option2": text(rng, 1),
            "answer": rng.choice("12")}  # fmt: skip


def _gsm8k(rng: random.Random) -> dict[str, Any]:
    return {"question": text(rng, 8), "answer": f"{text(rng, 4)}\n{text(rng, 2)}\n#### {rng.randrange(5_000):,}"}
