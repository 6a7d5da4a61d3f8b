"""Growth at a size at which every run fits a laptop: a byte-level Llama of 8 layers, grown in many ways, and trained.

    python benchmarks/laboratory.py --data-dir DATA --out DIR --seeds 1,2 [--only 'control;dus'] [--json FILE]

All of it is ordinary depthup. The script cuts the text into two halves, one for the base and one for what comes after,
writes a recipe for the base and one for each seed, lets ``depthup run`` make what is missing, and gathers the held-out
losses. Stopped, it goes on. Several seeds may run side by side, as processes of their own with ``--seeds``.

A seed draws the order of the rows; base, text and held-out rows are the same for all.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from depthup.fitting.runs import Run, read_runs

FILES = ("novels", "nltk_gutenberg", "wikipedia_boolq", "us_speeches", "technical_docs", "tinystories_sample",
         "c4_demo", "wiki_demo")  # fmt: skip
PIECE = 4000  # characters: what is shared out between the halves
NUM_LAYERS, HIDDEN = 8, 64
BASE = {"steps": 1000, "learning_rate": 3e-3, "schedule": "wsd", "warmup_steps": 50, "eval_every": 250,
        "checkpoint_every": 100}  # fmt: skip
ROWS = {"rows_per_step": 16, "row_tokens": 256, "micro_batch_rows": 16, "eval_tokens": 65536}
AFTER = {"learning_rate": 3e-4, "schedule": "cosine", "warmup_steps": 10, "eval_every": 50, "eval_tokens": 32768}
SHORT, LONG = 100, 400  # steps of 4,096 bytes
HIGH = 1e-3
FROZEN = {"original": {"factor": 0}, "outside": {"factor": 0}}
LATER = {"original": {"from_step": 20}, "outside": {"from_step": 20}}
DUS, IDENTITY, RANDOM = "0-5,2-7", "llama-pro(4)", "0-5,2:random,3:random,4:random,5:random,6-7"


def trained(**training: object) -> dict:
    """The base itself, trained on: a control."""
    return {"surgery": None, "training": {"steps": SHORT, **training}}


def grown(layers: str | None = None, preset: str | None = None, **training: object) -> dict:
    """A method: how the model is made of the base, and how it is trained on."""
    surgery = {"kind": "upscale", **({"layers": layers} if layers else {"preset": preset})}
    return {"surgery": surgery, "training": {"steps": SHORT, **training}}


METHODS: dict[str, dict] = {
    "control": trained(),
    "control, twice as long": trained(steps=2 * SHORT),
    "dus": grown(DUS),
    "identity": grown(preset=IDENTITY),
    "random": grown(RANDOM),
    "control, high rate": trained(learning_rate=HIGH),
    "dus, high rate": grown(DUS, learning_rate=HIGH),
    "identity, high rate": grown(preset=IDENTITY, learning_rate=HIGH),
    "random, high rate": grown(RANDOM, learning_rate=HIGH),
    "naive (m=0)": grown("0-7,0-7"),
    "dus m=1": grown("0-6,1-7"),
    "dus m=3": grown("0-4,3-7"),
    "early block": grown("0-4,1-7"),
    "late block": grown("0-6,3-7"),
    "blocks of 2": grown(preset="idus(2)"),
    "single layers": grown(preset="idus(1)"),
    "learned": grown(preset="lesa(3-7)"),
    "transport": grown(preset="opt-deus(3-7)"),
    "average": grown(preset="avg-deus(3-7)"),
    "attenuated": grown("0-5," + ",".join(f"{k}:attenuated" for k in range(2, 6)) + ",6-7"),
    "dus, new layers alone": grown(DUS, rates=FROZEN),
    "identity, new layers alone": grown(preset=IDENTITY, rates=FROZEN),
    "dus, new layers first": grown(DUS, rates=LATER),
    "experts": {"surgery": {"kind": "upcycle", "experts": 4}, "training": {"steps": SHORT}},
    "looped, seam adapter": {"surgery": {"kind": "loop", "layers": DUS}, "training": {"steps": SHORT}},
    "control, long": trained(steps=LONG, learning_rate=HIGH),
    "dus, long": grown(DUS, steps=LONG, learning_rate=HIGH),
    "identity, long": grown(preset=IDENTITY, steps=LONG, learning_rate=HIGH),
}


def stage_name(method: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in method).split())


def split_text(data: Path, out: Path) -> None:
    """Write ``first.jsonl`` and ``second.jsonl``: the pieces of all documents, shared out by hash."""
    if (out / "second.jsonl").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    parts = [out / "first.partial", out / "second.partial"]
    with open(parts[0], "w") as first, open(parts[1], "w") as second:
        for name in FILES:
            with gzip.open(data / "pretrain" / f"{name}.jsonl.gz", "rt") as file:
                for line in file:
                    text = json.loads(line)["text"]
                    for start in range(0, len(text), PIECE):
                        piece = text[start : start + PIECE]
                        half = second if hashlib.sha256(piece.encode()).digest()[0] & 1 else first
                        half.write(json.dumps({"text": piece}) + "\n")
    for part in parts:
        part.rename(part.with_suffix(".jsonl"))


def run(recipe: dict, out: Path) -> Path:
    """Let depthup make a recipe; returns its store."""
    path, store = out / f"{recipe['name']}.yaml", out / "runs" / recipe["name"]
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    subprocess.run([sys.executable, "-m", "depthup", "run", str(path), "--store", str(store)], check=True)
    return store


def data_of(text: Path) -> dict:
    return {"text": {"source": "files", "paths": [str(text)], "held_out": 0.02}}


def make_base(out: Path) -> Path:
    stages = {
        "start": {"kind": "import", "random": {"num_layers": NUM_LAYERS, "hidden_size": HIDDEN}},
        "base": {"kind": "pretrain", "model": "start", "data": "text", **ROWS, **BASE},
    }
    store = run({"name": "base", "seed": 1, "data": data_of(out / "first.jsonl"), "stages": stages}, out)
    return (store / "base" / "latest").resolve()


def make_seed(seed: int, base: Path, methods: list[str], out: Path) -> None:
    """Grow and train by every method."""
    stages: dict[str, dict] = {}
    for method in methods:
        settings, name = METHODS[method], stage_name(method)
        model = str(base)
        if settings["surgery"]:
            stages[f"{name}-grown"] = {**settings["surgery"], "base": model}
            model = f"{name}-grown"
        stages[name] = {"kind": "pretrain", "model": model, "data": "text", **ROWS, **AFTER, **settings["training"]}
    run({"name": f"seed-{seed}", "seed": seed, "data": data_of(out / "second.jsonl"), "stages": stages}, out)


def gather(out: Path) -> dict[str, Run]:
    """The held-out losses of every method that is made, all seeds together."""
    places = []
    for method in METHODS:
        for folder in sorted(out.glob(f"runs/seed-*/{stage_name(method)}/latest")):
            places.append(f"{method}={folder.resolve()}")
    return {found.name: found for found in read_runs(places)}


def by_seed(run: Run) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Tokens and losses of each seed."""
    tokens, losses, seeds = np.array(run.tokens), np.array(run.losses), np.array(run.seeds)
    return {int(seed): (tokens[seeds == seed], losses[seeds == seed]) for seed in np.unique(seeds)}


def controls(runs: dict[str, Run]) -> dict[tuple[float, int], tuple[np.ndarray, np.ndarray]]:
    """Per rate and seed, bytes and last losses of the base trained on, each from a run with a schedule of its own."""
    found: dict[tuple[float, int], list[tuple[float, float]]] = {}
    for method in filter(lambda name: name.startswith("control"), runs):
        for seed, (tokens, losses) in by_seed(runs[method]).items():
            found.setdefault((rate_of(method), seed), []).append((tokens[-1], losses[-1]))
    return {key: tuple(np.array(sorted(ends)).T) for key, ends in found.items()}


def rate_of(method: str) -> float:
    return METHODS[method]["training"].get("learning_rate", AFTER["learning_rate"])


def rows_of(runs: dict[str, Run]) -> list[dict]:
    """For each method: the loss at the start, at the end, and the distance to the control at the same rate there.

    Differences are between runs that saw the same rows in the same order; with two seeds or more they have the
    standard error of their mean. At equal FLOPs the control has seen more bytes: the ends of controls of several
    lengths are joined by straight lines over the logarithm of the bytes; past the longest there is no figure.
    """
    ends_of, rows = controls(runs), []
    per_byte = runs["control"].flops_per_token
    for method, run in runs.items():
        seeds = by_seed(run)
        starts, ends, equal_bytes, equal_flops = [], [], [], []
        for seed, (tokens, losses) in seeds.items():
            starts.append(losses[0])
            ends.append(losses[-1])
            if (rate_of(method), seed) not in ends_of:
                continue
            lengths, others = ends_of[rate_of(method), seed]
            if np.any(np.isclose(lengths, tokens[-1], rtol=0.01)):
                equal_bytes.append(losses[-1] - others[np.argmin(abs(lengths - tokens[-1]))])
            as_many = tokens[-1] * (run.flops_per_token or np.nan) / per_byte
            if lengths[0] * 0.99 <= as_many <= lengths[-1] * 1.01:
                equal_flops.append(losses[-1] - np.interp(np.log(as_many), np.log(lengths), others))
        rows.append({
            "method": method, "rate": rate_of(method), "seeds": len(seeds), "bytes": int(run.most_tokens),
            "flops_per_byte": run.flops_per_token, "start": summary(starts), "end": summary(ends),
            "against_control_same_bytes": summary(equal_bytes), "against_control_same_flops": summary(equal_flops),
        })  # fmt: skip
    return rows


def summary(values: list[float]) -> list[float | None] | None:
    """Mean, and its standard error where there are two values or more."""
    if not values:
        return None
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return [round(float(np.mean(values)), 4), None if error is None else round(error, 4)]


def table(rows: list[dict]) -> str:
    def cell(value: list[float | None] | None, sign: str = "") -> str:
        if value is None:
            return "-"
        return f"{value[0]:{sign}.3f}" + (f" ± {value[1]:.3f}" if value[1] is not None else "")

    lines = ["| method | rate | seeds | bytes | at the start | at the end | less control, same bytes | same FLOPs |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in rows:
        what = [row["method"], f"{row['rate']:g}", str(row["seeds"]), f"{row['bytes']:,}", cell(row["start"])]
        less = (cell(row[f"against_control_same_{of}"], "+") for of in ("bytes", "flops"))
        lines.append(f"| {' | '.join([*what, cell(row['end']), *less])} |")
    return "\n".join(lines)


def points(runs: dict[str, Run]) -> str:
    """All losses as a table that ``depthup fit`` reads."""
    lines = ["run,tokens,loss,flops,seed"]
    for run in runs.values():
        for token, loss, seed in zip(run.tokens, run.losses, run.seeds, strict=True):
            lines.append(f'"{run.name}",{token:.0f},{loss:.5f},{token * (run.flops_per_token or 0):.0f},{seed}')
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with pretrain/*.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="where text, recipes and models are kept")
    parser.add_argument("--seeds", default="1", help="orders of the rows, as in 1,2,3; none: the base alone")
    parser.add_argument("--only", help="methods, by semicolon")
    parser.add_argument("--gather", action="store_true", help="make nothing, tell what is made")
    parser.add_argument("--json", type=Path, help="also write the table here, and all points beside it as .csv")
    options = parser.parse_args()
    if not options.gather:
        split_text(options.data_dir, options.out)
        base = make_base(options.out)
        for seed in filter(None, options.seeds.split(",")):
            make_seed(int(seed), base, options.only.split(";") if options.only else list(METHODS), options.out)
    runs = gather(options.out)
    if "control" not in runs:
        return
    print(table(rows_of(runs)))
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "command": f"python benchmarks/laboratory.py --data-dir DATA --out DIR --seeds {options.seeds}",
                    "rows": rows_of(runs),
                },
                indent=1,
            )
        )
        options.json.with_suffix(".csv").write_text(points(runs))


if __name__ == "__main__":
    main()
