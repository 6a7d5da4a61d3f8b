"""Promise of contamination: a million 500-word documents against the six test sets in 3 minutes on 2 cores, under 2 GB.

Documents are real text, 500 words each; into some of them test items are planted, as they are and lightly edited, and
long answers without their questions. What is flagged in text without test items is counted twice: in the sources that
the thresholds were chosen on (pretrain/*.jsonl.gz), and in others (WikiText-2, instruct/, flan/, preference/).
Measures `depthup decontaminate` (speed, memory, what it finds, what it flags in clean text) beside two peers in the
same run: datatrove's NGramsDecontFilter (12-grams of spaCy words, questions counted too) and the Janitor of
lm-evaluation-harness (13-grams). Peers are slow: they read the first of the same documents. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, machine, measure, output_of, say

sys.path.insert(0, str(REPOSITORY))
from depthup.contamination.benchmarks import SUITES, Item, load_items
from depthup.contamination.index import LONG_TEXT, make_reference
from depthup.contamination.rules import RULES
from depthup.contamination.scanner import Scanner
from depthup.contamination.text import words_of

EXAMPLES = """examples:
  python benchmarks/contamination.py --data-dir data --documents 3000 --planted 100                a first look
  python benchmarks/contamination.py --data-dir data --peer-python datatrove-venv/bin/python \\
      --json docs/results/contamination.json                                                      the published figures
A peer runs with --peer-python (datatrove 0.10 with spaCy) and --lm-eval-python, by default this one; where it is not
installed it is left out.
"""
WORDS = 500

# Both read items {question, answer}, then files of documents, as JSON lines; print [CPU seconds, flagged] of each file.
READ = """
import json, sys, time
items = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
def measure(is_flagged):
    results = []
    for path in sys.argv[2:]:
        documents = [json.loads(line)["text"] for line in open(path, encoding="utf-8")]
        begin = time.process_time()
        flagged = sum(is_flagged(text) for text in documents)
        results.append([time.process_time() - begin, flagged])
    print(json.dumps(results))
"""
DATATROVE = (
    READ
    + """
import numpy, tempfile
from pathlib import Path
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.text import ngrams, simplify_text
config = NGramsDecontConfig(find_query_ngrams=True)
with tempfile.TemporaryDirectory() as folder:
    decontaminate = NGramsDecontFilter(folder, config)
    hashes = set()
    for item in items:  # what its indexer computes; it needs an older lighteval to run
        normal = simplify_text(item["question"] + " " + item["answer"], config.norm_config)
        words = decontaminate.tokenizer.word_tokenize(normal)
        hashes.update(decontaminate.hash_func(" ".join(gram)) for gram in ngrams(words, config.n_grams))
    numpy.array(list(hashes), config.hash_config.np_descr).tofile(Path(folder) / "items.index.hashes")
    decontaminate.load_index_hashes()
    measure(lambda text: decontaminate.filter(Document(text, "0")) is not True)
"""
)
JANITOR = (
    READ
    + """
from lm_eval.decontamination.janitor import Janitor
janitor = Janitor(too_dirty_cutoff=1, window_to_remove=0, minimum_slice_length=0)  # a clean text comes back whole
for item in items:
    janitor.register_contaminant_python(item["question"] + " " + item["answer"])
measure(lambda text: janitor.clean_python(text) != [text])
"""
)


def documents_of(texts: Iterable[str]) -> Iterator[str]:
    """Texts one after the other, cut to documents of 500 words; what is left at the end is not one."""
    words: list[str] = []
    for text in texts:
        words += text.split(" ")
        full = len(words) - len(words) % WORDS
        yield from (" ".join(words[k : k + WORDS]) for k in range(0, full, WORDS))
        del words[:full]


def rows_of(path: Path) -> Iterator[Any]:
    """The rows of a file of JSON lines or a JSON array; a text file is cut to documents."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        if path.name.endswith(".json"):
            yield from json.load(file)
        elif path.name.endswith(".txt.gz"):
            yield from ({"text": text} for text in documents_of(file))
        else:
            yield from map(json.loads, file)


def held_out(data_dir: Path) -> Iterator[tuple[str, Any]]:
    """(source, row) of real text and instructions that no threshold was chosen on (alpaca_en_demo was looked at)."""
    for name in ("pretrain/wikitext2_*.txt.gz", "instruct/[!a]*", "flan/flan_cot.jsonl.gz", "preference/*"):
        for path in sorted(data_dir.glob(name)):
            for row in rows_of(path):
                if row.get("task") != "cot_gsm8k":  # GSM8K train, counted by itself
                    yield str(path.relative_to(data_dir)), row


def edited(text: str, draw: random.Random) -> str:
    """A light edit: one word in ten dropped, or swapped with its neighbour; case, punctuation or whitespace changed."""
    words = text.split()
    for _ in range(max(1, len(words) // 10)):
        at = draw.randrange(len(words))
        if draw.random() < 0.5 and len(words) > 3:
            del words[at]
        elif at + 1 < len(words):
            words[at], words[at + 1] = words[at + 1], words[at]
    text = " ".join(words)
    change = draw.randrange(4)
    if change == 0:
        return text.upper()
    if change == 1:
        return "".join(c for c in text if c.isalnum() or c.isspace() or c in "-'")
    return text.replace(" ", "\n  ") if change == 2 else text


def planted(documents: Sequence[str], items: Sequence[Item], kind: str, draw: random.Random) -> Iterator[str]:
    """Documents, each with one item at one of its line ends, or in its middle."""
    for text, item in zip(documents, items, strict=True):
        question = item.question if kind == "verbatim" else edited(item.question, draw)
        at = text.find("\n", draw.randrange(len(text) // 2 + 1))
        at = len(text) // 2 if at < 0 else at
        yield f"{text[:at]}\n\nQuestion: {question}\nAnswer: {item.answer}\n\n{text[at:]}"


def with_long_answers(documents: Sequence[str], items: Sequence[Item], draw: random.Random) -> Iterator[str]:
    """Documents with an edited answer in their middle, without its question."""
    for text, item in zip(documents, items, strict=True):
        yield f"{text[: len(text) // 2]}\n{edited(item.answer, draw)}\n{text[len(text) // 2 :]}"


def write_rows(path: Path, texts: Iterable[str]) -> None:
    write_lines(path, ({"text": text} for text in texts))


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


class Memory(threading.Thread):
    """Most memory that the processes below this one took together, shared pages once (PSS); ten looks a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes, self._over = 0, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            total, waiting = 0, self._children(os.getpid())
            while waiting:
                process = waiting.pop()
                waiting += self._children(process)
                with contextlib.suppress(OSError, StopIteration):  # it ended
                    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                    total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
            self.peak_bytes = max(self.peak_bytes, total)

    @staticmethod
    def _children(process: int) -> list[int]:
        with contextlib.suppress(OSError):
            return [
                int(child) for task in Path(f"/proc/{process}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]  # fmt: skip
        return []

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def __enter__(self) -> Memory:
        self.start()
        return self


class Ours:
    """`depthup decontaminate` as a command."""

    def __init__(self, data_dir: Path, work: Path, workers: int, keep: Path | None = None) -> None:
        self.keep = keep
        self._data_dir, self._work, self._workers, self._number = data_dir, work, workers, 0

    def run(self, path: Path) -> tuple[Any, dict[int, list[dict[str, Any]]]]:
        """(the run, leaks by number of the row from 0)."""
        self._number += 1
        out = self._work / f"out-{self._number}"
        # exit status 1 says that something was found
        script = "import sys; from depthup.cli import main; sys.exit(main(sys.argv[1:]) == 2)"
        run = measure(
            [sys.executable, "-c", script, "decontaminate", str(path), "--data-dir", str(self._data_dir), "--out",
             str(out), "--workers", str(self._workers)],
            self._work / "log",
        )  # fmt: skip
        with open(out / "flagged.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return run, {row["number"] - 1: row["leaks"] for row in rows}


def recall(leaks: dict[int, list[dict[str, Any]]], items: Sequence[Item], first: int = 0) -> dict[str, Any]:
    """Share of planted items that were found as themselves, in all and by benchmark; and by rule."""
    found, sizes, rules = Counter[str](), Counter[str](), Counter[str]()
    for k, item in enumerate(items):
        sizes[item.benchmark] += 1
        own = [
            leak for leak in leaks.get(first + k, ()) if (leak["benchmark"], leak["item"]) == (item.benchmark, item.id)
        ]
        if own:
            found[item.benchmark] += 1
            rules[own[0]["rule"]] += 1
    by_benchmark = {name: round(found[name] / sizes[name], 4) for name in sorted(sizes)}
    return {"num_items": len(items), "recall": round(found.total() / len(items), 4), "by_benchmark": by_benchmark,
            "by_rule": dict(rules)}  # fmt: skip


def peers(options: argparse.Namespace, work: Path, clean: Path, dirty: dict[str, Path]) -> dict[str, Any]:
    """Documents a second of a core, and shares of documents flagged, of each peer that is installed."""
    pythons = {"datatrove NGramsDecontFilter": (options.peer_python, DATATROVE, "datatrove"),
               "lm-eval Janitor": (options.lm_eval_python, JANITOR, "lm_eval")}  # fmt: skip
    results: dict[str, Any] = {}
    for name, (python, script, package) in pythons.items():
        version = f"import importlib.metadata as m; print(m.version({package.replace('_', '-')!r}))"
        try:
            found = output_of([python, "-W", "ignore", "-c", version]).strip()
        except Exception:
            say(f"{name} is not installed in {python}: left out")
            continue
        results[name] = {"version": found}
        heads = {kind: work / f"head-{kind}.jsonl" for kind in ("clean", *dirty)}
        for head, path in zip(heads.values(), (clean, *dirty.values()), strict=True):
            with open(path, encoding="utf-8") as file:
                head.write_text("".join(itertools.islice(file, options.peer_documents)), encoding="utf-8")
        command = [python, "-W", "ignore", "-c", script, str(work / "items.jsonl"), *map(str, heads.values())]
        told = json.loads(output_of(command).splitlines()[-1])
        number = min(options.peer_documents, options.planted)
        results[name]["num_documents_of_each"] = number
        results[name]["clean_documents_per_core_second"] = round(options.peer_documents / told[0][0], 1)
        for kind, (_, flagged) in zip(heads, told, strict=True):
            results[name][f"{kind}_flagged"] = round(flagged / number, 4)
        say(f"{name}: {results[name]}")
    return results


def benchmark(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    draw = random.Random(options.seed)
    data_dir = Path(options.data_dir).resolve()
    items = load_items(SUITES["h6"], data_dir)
    Scanner(make_reference(items[:10]), RULES).leaks_in_row({"text": "compiles what is not compiled yet"})
    sources = sorted((data_dir / "pretrain").glob("*.jsonl.gz"))
    texts = [text for path in sources for text in documents_of(row["text"] for row in rows_of(path))]
    draw.shuffle(texts)
    texts = texts[: options.documents]
    chosen = draw.sample(items, options.planted)
    long = draw.sample([item for item in items if words_of(item.answer)[1] >= LONG_TEXT], options.planted // 5)
    # The peers are told of the planted items alone: spaCy takes minutes for all; a hash table is as quick when larger.
    write_lines(work / "items.jsonl", ({"question": item.question, "answer": item.answer} for item in chosen))
    few, clean = work / "few.jsonl", work / "clean.jsonl"
    write_rows(few, texts[:100])
    write_rows(clean, texts)
    dirty = {kind: work / f"{kind}.jsonl" for kind in ("verbatim", "edited")}
    for kind, path in dirty.items():
        write_rows(path, planted(draw.choices(texts, k=len(chosen)), chosen, kind, draw))
    write_rows(work / "long.jsonl", with_long_answers(draw.choices(texts, k=len(long)), long, draw))
    ours = Ours(data_dir, work, options.workers, Path(options.flagged) if options.flagged else None)
    starts = [ours.run(few)[0] for _ in range(options.repeats)]
    with Memory() as memory:
        wholes = [ours.run(clean) for _ in range(options.repeats)]
    # Other work on the machine only adds: the least of each.
    start = min(starts, key=lambda run: run.cpu_seconds)
    whole, flagged = min(wholes, key=lambda run: run[0].cpu_seconds)
    cpu = whole.cpu_seconds - start.cpu_seconds
    result: dict[str, Any] = {
        "start_seconds": start.seconds,
        "start_core_seconds": start.cpu_seconds,
        "start_core_seconds_of_all": [run.cpu_seconds for run in starts],
        "seconds": whole.seconds,
        "core_seconds": whole.cpu_seconds,
        "core_seconds_of_all": [run.cpu_seconds for run, _ in wholes],
        "bytes_of_a_document": round(clean.stat().st_size / len(texts)),
        "documents_per_core_second": round(len(texts) / cpu, 1),
        "core_seconds_for_a_million": round(start.cpu_seconds + 1e6 / len(texts) * cpu, 1),
        "seconds_for_a_million_if_2_cores_were_free": round(start.cpu_seconds + 1e6 / len(texts) * cpu / 2, 1),
        "peak_bytes_of_parent_and_workers": memory.peak_bytes,
        "clean": summary(len(texts), flagged.values()),
    }
    say(json.dumps(result, indent=1))
    expected = {
        **{kind: (path, chosen) for kind, path in dirty.items()},
        "long_answers_edited": (work / "long.jsonl", long),
    }
    result |= found_in_others(ours, data_dir, work, items, expected)
    return {"depthup": result, "peers": peers(options, work, clean, dirty)}


def summary(num_rows: int, flagged: Iterable[list[dict[str, Any]]]) -> dict[str, Any]:
    """Rows, flagged rows, and those by rule."""
    found = list(flagged)
    rules = Counter(rule for leaks in found for rule in {leak["rule"] for leak in leaks})
    return {"num_rows": num_rows, "num_flagged": len(found), "by_rule": dict(rules)}


def found_in_others(ours: Ours, data_dir: Path, work: Path, items: Sequence[Item],
                    expected: dict[str, tuple[Path, Sequence[Item]]]) -> dict[str, Any]:  # fmt: skip
    """In one run: recall on planted items and on GSM8K test rephrased; what is flagged elsewhere."""
    rephrased = data_dir / "contamination" / "rephrase_gsm8k_test.jsonl"
    expected = {**expected, "rephrased_gsm8k": (rephrased, [item for item in items if item.benchmark == "gsm8k"])}
    rows = [(kind, row) for kind, (path, _) in expected.items() for row in rows_of(path)]
    num_planted = len(rows)
    rows += [("gsm8k_train", row) for row in rows_of(data_dir / "gsm8k" / "train.jsonl.gz")]
    backward = data_dir / "metamath" / "gsm8k_backward.jsonl.gz"
    rows += [("metamath_backward", row) for row in rows_of(backward)]
    rows += [(f"held_out {source}", row) for source, row in held_out(data_dir)]
    write_lines(work / "others.jsonl", (row for _, row in rows))
    leaks, first, result = ours.run(work / "others.jsonl")[1], 0, {}
    for kind, (_, planted_items) in expected.items():
        result[kind] = recall(leaks, planted_items, first)
        say(f"{kind}: {result[kind]}")
        first += len(planted_items)
    by_source: dict[str, list[list[dict[str, Any]]]] = {kind: [] for kind, _ in rows[num_planted:]}
    for number, found in leaks.items():
        if number >= num_planted:
            by_source[rows[number][0]].append(found)
    sizes = Counter(kind for kind, _ in rows)
    tables = {name: summary(sizes[name], found) for name, found in by_source.items()}
    result |= {name: table for name, table in tables.items() if not name.startswith("held_out")}
    result["held_out"] = {
        name.partition(" ")[2]: table for name, table in tables.items() if name.startswith("held_out")
    }
    say(json.dumps(result["held_out"], indent=1))
    if ours.keep:
        told = [{"source": rows[number][0], "leaks": found, "row": rows[number][1]} for number, found in leaks.items()
                if number >= num_planted]  # fmt: skip
        write_lines(ours.keep, told)
    return result


def told_options(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments of the run, without the paths of this machine."""
    for argument in arguments:
        yield Path(argument).name if argument.startswith("/") else argument


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="test sets, and pretrain/ to cut documents of")
    parser.add_argument("--documents", type=int, default=25_000, metavar="N", help="clean documents (25000)")
    parser.add_argument("--planted", type=int, default=3000, metavar="N", help="items planted of each kind (3000)")
    parser.add_argument(
        "--peer-documents", type=int, default=500, metavar="N", help="that the peers read, of each kind"
    )
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="a Python with datatrove")
    parser.add_argument("--lm-eval-python", default=sys.executable, metavar="PATH", help="a Python with lm-eval")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes of depthup (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of which the quickest counts (3)")
    parser.add_argument("--flagged", metavar="FILE", help="write the rows flagged in text without planted items")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = {"machine": machine(Path(work)), "load_before": round(os.getloadavg()[0], 2),
                 "workers": options.workers, **benchmark(options, Path(work))}  # fmt: skip
    found["command"] = f"benchmarks/contamination.py {' '.join(told_options(sys.argv[1:]))}"
    found["load_after"] = round(os.getloadavg()[0], 2)
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
