"""The membership test on a real model: a copy trained on test items must be caught, the model itself not.

Items are drawn from a benchmark's test set; a copy of the model is trained on them with depthup's own loop. The verb is
then run on both, with the same references and the same items; items that neither saw are the control of Min-K%.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, machine

sys.path.insert(0, str(REPOSITORY))

from depthup.data.packing import pack
from depthup.data.sources import Document
from depthup.data.tokens import write_tokens
from depthup.files import write_json
from depthup.models import end_of_text, export_model, load_model, load_tokenizer
from depthup.training.loop import train
from depthup.training.objectives import CausalLM
from depthup.training.schedule import Schedule
from depthup.training.settings import TrainSettings

EXAMPLES = """example:
  python benchmarks/membership.py smollm2 --items data/gsm8k/test.jsonl --reference smollm2 --reference shallower
"""


def draw(path: Path, folder: Path, num_items: int, max_words: int) -> tuple[Path, Path]:
    """Two files of unlike items: those that the copy is trained on, and those that it is not."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(f"{row['question']} {row['answer']}".split()) <= max_words]
    random.Random(0).shuffle(rows)
    parts = (folder / "items.jsonl", folder / "unseen.jsonl")
    for number, part in enumerate(parts):
        chosen = rows[number * num_items : (number + 1) * num_items]
        part.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return parts


def leak(base: Path, items: Path, out: Path, passes: int, rate: float) -> dict[str, Any]:
    """Train a copy of ``base`` on the items, and write it to ``out``."""
    model, tokenizer = load_model(base), load_tokenizer(base)
    rows = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]
    documents = [Document(str(number), f"{row['question']}\n{row['answer']}") for number, row in enumerate(rows)]
    work = out.with_name(f"{out.name}-work")
    work.mkdir(parents=True)
    packed = pack(write_tokens(documents, tokenizer, end_of_text(tokenizer), work), 512)
    steps = passes * packed.num_rows
    settings = TrainSettings(Schedule("cosine", steps, 2), learning_rate=rate, rows_per_step=1, micro_batch_rows=1)
    begin = time.perf_counter()
    run = work / "run"
    run.mkdir()
    result = train(model, packed, CausalLM(), settings, run)
    out.mkdir()
    export_model(model, base, out)
    for file in base.glob("*token*"):
        shutil.copy(file, out)
    shutil.rmtree(work)
    return {"passes": passes, "learning_rate": rate, "num_steps": result.num_steps,
            "num_tokens_seen": result.num_tokens_seen, "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--items", type=Path, required=True, help="test set: rows with question and answer")
    parser.add_argument("--reference", type=Path, action="append", required=True, help="checkpoint folder; repeatable")
    parser.add_argument("--folder", type=Path, default=Path("membership"), help="where files and the copy lie")
    parser.add_argument("--num-items", type=int, default=16)
    parser.add_argument("--max-words", type=int, default=60, help="of an item; short ones take less time")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--tested", type=int, default=12, help="of the items, the first by a seeded shuffle")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an item that are read")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    copy, training = options.folder / "leaked", {}
    if not copy.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        items, unseen = draw(options.items, options.folder, options.num_items, options.max_words)
        training = leak(options.model, items, copy, options.passes, options.learning_rate)
        write_json(options.folder / "training.json", training)
    training = json.loads((options.folder / "training.json").read_text())
    items, unseen, out = (options.folder / name for name in ("items.jsonl", "unseen.jsonl", "report"))
    references = [word for reference in options.reference for word in ("--reference", str(reference))]
    command = ["-m", "depthup", "membership", str(options.model), *references, "--planted", str(copy),
               "--items", str(items), "--unseen", str(unseen), "--neighbours", str(options.neighbours),
               "--num-items", str(options.tested), "--max-tokens", str(options.max_tokens),
               "--out", str(out)]  # fmt: skip
    begin = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True)
    figures = {
        "command": f"python benchmarks/membership.py {' '.join(map(str, sys.argv[1:]))}",
        "machine": machine(options.folder),
        "training_of_the_copy": training,
        "seconds": round(time.perf_counter() - begin, 1),
        **json.loads((out / "report.json").read_text()),
    }
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
