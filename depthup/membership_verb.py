"""The verb that asks whether a model was trained on given items."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipe_verbs import add_verb

if TYPE_CHECKING:
    from .contamination.membership import Settings, TokenStatistics

_FIELDS = (("text",), ("question", "answer"), ("problem", "solution"), ("prompt", "response"))


def add_membership(verbs: Any) -> None:
    """`depthup membership`."""
    parser = add_verb(verbs, "membership", _membership, "ask whether a model was trained on given items", """
examples:
  depthup membership solar --reference mistral-7b --items gsm8k/test.jsonl --out membership
  depthup membership solar --reference mistral-7b --reference llama-2-7b --items gsm8k/test.jsonl \\
      --planted solar-leaked --unseen new-problems.jsonl --out membership
The rank test of SOLAR's Table 9 ("result < 0.1"), seeded, with intervals, for several references; with --unseen also
Min-K% and Min-K%++. --planted is a copy of MODEL trained on the items: a test that does not catch it says nothing.
docs/membership.md tells what the figures mean, and what they do not.
""")  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder")
    parser.add_argument(
        "--reference", action="append", required=True, metavar="REF", help="checkpoint folder; may be given again"
    )
    parser.add_argument("--items", required=True, metavar="FILE", help="rows with text, or question and answer")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--planted", metavar="MODEL", help="a copy trained on the items, which must be caught")
    parser.add_argument("--unseen", metavar="FILE", help="items of the same kind that no model here saw, for Min-K%%")
    parser.add_argument("--num-items", type=_count, default=100, metavar="N", help="drawn from FILE (100)")
    parser.add_argument("--neighbours", type=_count, default=100, metavar="N", help="of each item (100)")
    parser.add_argument("--max-tokens", type=_count, default=512, metavar="N", help="of a text that are read (512)")
    parser.add_argument(
        "--alarm", type=float, default=0.85, metavar="SHARE", help="result of a leak (0.85; SOLAR: 0.9)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all drawing (0)")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1")


def _count(text: str) -> int:
    value = int(text)
    if not 0 < value < 10**9:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _membership(options: argparse.Namespace) -> None:
    from .contamination.membership import Settings
    from .files import publishing, refuse_existing, write_json
    from .models import resolve_device

    refuse_existing(Path(options.out))
    device = resolve_device(options.device)
    items, bad = _texts(Path(options.items), options)
    unseen = _texts(Path(options.unseen), options)[0] if options.unseen else []
    settings = Settings(num_neighbours=options.neighbours, max_tokens=options.max_tokens, seed=options.seed)
    names = list(dict.fromkeys([options.model, *([options.planted] if options.planted else [])]))
    references = list(dict.fromkeys(options.reference))
    with publishing(Path(options.out)) as folder:
        neighbours = {name: _neighbours(name, [text for _, text in items], settings, device) for name in references}
        report, rows = measured(names, neighbours, items, [text for _, text in unseen], settings, device, options.alarm)
        about = {"items": Path(options.items).name, "num_bad_rows": len(bad), "bad_rows": bad[:20]}
        write_json(folder / "report.json", {**about, **report})
        _write_items(folder, rows, neighbours)
    print(_page(report, options))
    for line in bad[:5]:
        print(f"left out: {line}")
    if len(bad) > 5:
        print(f"left out: {len(bad) - 5:,} more rows")
    print(f"written: {options.out}")


def measured(
    names: Sequence[str],
    neighbours: Mapping[str, Sequence[Sequence[str]]],
    items: Sequence[tuple[str, str]],
    unseen: Sequence[str],
    settings: Settings,
    device: str,
    alarm: float,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(report, a row for each item) of models on items, one model in memory at a time.

    Args:
        names: Checkpoint folders: the model, and its planted leak if there is one.
        neighbours: Reference -> the neighbours of each item.
        items: (name, text) of each item.
        unseen: Texts that no model saw.
        settings: Of drawing and reading.
        device: Where models run.
        alarm: Result from which a model is called leaked.
    """
    from dataclasses import asdict

    import numpy as np

    from .contamination import membership as test

    rows: list[dict[str, Any]] = [{"item": name, "models": {}} for name, _ in items]
    models: dict[str, Any] = {}
    lower: dict[tuple[str, str], Any] = {}
    for name in names:
        parts = [[text for _, text in items], list(unseen), *([text for group in drawn for text in group]
                                                              for drawn in neighbours.values())]  # fmt: skip
        of_items, of_unseen, *rest = _statistics(name, parts, settings, device)
        losses = [test.mean_loss(each) for each in of_items]
        models[name] = {"mean_loss": sum(losses) / len(losses), "rank": {}}
        for reference, flat in zip(neighbours, rest, strict=True):
            theirs = np.reshape([test.mean_loss(each) for each in flat], (len(items), settings.num_neighbours))
            ranks = lower[name, reference] = test.rank_scores(losses, theirs)
            result = test.rank_result(ranks, settings.seed)
            models[name]["rank"][reference] = {**_figure(result), "reading": test.reading(result, alarm),
                                               "mean_score": float(ranks.mean())}  # fmt: skip
        for index, (row, loss) in enumerate(zip(rows, losses, strict=True)):
            scores = {reference: float(lower[name, reference][index].mean()) for reference in neighbours}
            row["models"][name] = {"loss": loss, "score": scores}
        for key, measure in (("min_k", test.min_k), ("min_k_plus_plus", test.min_k_plus_plus)) if unseen else ():
            values = [measure(each, settings.min_k_share) for each in [*of_items, *of_unseen]]
            models[name][key] = _figure(test.auc(values[: len(items)], values[len(items) :], settings.seed))
    report: dict[str, Any] = {"settings": asdict(settings), "alarm": alarm, "num_items": len(items),
                              "num_unseen": len(unseen), "model": names[0], "models": models,
                              "planted": names[1] if len(names) > 1 else None}  # fmt: skip
    if len(names) > 1:
        report["planted_above_model"] = {
            reference: _figure(
                test.rank_difference(lower[names[1], reference], lower[names[0], reference], settings.seed)
            )
            for reference in neighbours
        }
    return report, rows


def _statistics(
    name: str, parts: Sequence[Sequence[str]], settings: Settings, device: str
) -> list[list[TokenStatistics]]:
    """Of each part's texts, under one model."""
    from .contamination.membership import token_statistics
    from .models import load_model, load_tokenizer

    model, tokenizer = load_model(name, device), load_tokenizer(name)
    with _bar(sum(map(len, parts)), f"read by {Path(name).name}") as advance:
        return [token_statistics(model, tokenizer, part, settings, advance) for part in parts]


def _neighbours(name: str, texts: Sequence[str], settings: Settings, device: str) -> list[list[str]]:
    from .contamination.membership import draw_neighbours
    from .models import load_model, load_tokenizer

    with _bar(len(texts), f"continued by {Path(name).name}") as advance:
        return draw_neighbours(load_model(name, device), load_tokenizer(name), texts, settings, advance)


def _bar(total: int, label: str) -> Any:
    import contextlib
    import sys

    from tqdm import tqdm

    @contextlib.contextmanager
    def opened() -> Iterator[Any]:
        with tqdm(total=total, desc=label, disable=not sys.stderr.isatty()) as bar:
            yield bar.update

    return opened()


def _texts(path: Path, options: argparse.Namespace) -> tuple[list[tuple[str, str]], list[str]]:
    """((name, text) of each item that is drawn, what is wrong with the rows that are none)."""
    import random

    from .data.raw_rows import raw_rows
    from .errors import DataError

    found, bad = [], []
    for raw in raw_rows(path):
        text = _text(raw.value)
        if text is None:
            fields = " or ".join(" and ".join(names) for names in _FIELDS)
            bad.append(f"{raw.row.place}: {raw.problem or f'no text in {fields}'}")
        else:
            found.append((raw.row.name, text))
    if not found:
        raise DataError(f"{path} has no item", allowed=f"rows with {_FIELDS}", next_step="give another file")
    random.Random(options.seed).shuffle(found)
    return found[: options.num_items], bad


def _text(value: Any) -> str | None:
    """The text of an item: question and answer together, as they would lie in training data."""
    for names in _FIELDS:
        texts = [value.get(name) if isinstance(value, Mapping) else None for name in names]
        if all(isinstance(text, str) and text.strip() for text in texts):
            whole = "\n".join(map(str, texts))
            return whole if len(whole.split()) > 4 else None
    return None


def _write_items(folder: Path, rows: Sequence[Any], neighbours: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """``items.jsonl``: loss and score of each item; ``neighbours.jsonl``: what it was compared with."""
    import json

    with open(folder / "items.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with open(folder / "neighbours.jsonl", "w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            drawn = {name: list(made[index]) for name, made in neighbours.items()}
            file.write(json.dumps({"item": row["item"], "neighbours": drawn}) + "\n")


def _figure(estimate: Any) -> dict[str, float]:
    return {key: round(value, 4) for key, value in estimate._asdict().items()}


def _page(report: Mapping[str, Any], options: argparse.Namespace) -> str:
    from .report.tables import render_table

    def shown(figure: Mapping[str, float]) -> list[str]:
        return [f"{figure['value']:.2f}", f"{figure['low']:.2f} to {figure['high']:.2f}"]

    rows, k_rows = [], []
    for name, found in report["models"].items():
        which = f"{name} (planted)" if name == report["planted"] else name
        for reference, figure in found["rank"].items():
            rows.append([which, reference, *shown(figure), f"{figure['mean_score']:.2f}", figure["reading"]])
        if "min_k" in found:
            k_rows.append([which, *shown(found["min_k"]), *shown(found["min_k_plus_plus"])])
    parts = [f"{report['num_items']} items, {options.neighbours} neighbours each; alarm {report['alarm']:g}",
             render_table(["model", "reference", "result", "95 %", "mean score", "reading"], rows)]  # fmt: skip
    if k_rows:
        parts.append(render_table(["model", "Min-K% AUC", "95 %", "Min-K%++ AUC", "95 %"], k_rows))
    for reference, gap in report.get("planted_above_model", {}).items():
        caught = gap["low"] > 0 and report["models"][report["planted"]]["rank"][reference]["value"] >= report["alarm"]
        verdict = "is caught" if caught else "is NOT caught: with this reference the test says nothing"
        parts.append(
            f"{reference}: the planted leak {verdict}; it is {shown(gap)[0]} ({shown(gap)[1]}) above the model"
        )
    if report["planted"] is None:
        parts.append("no planted leak: whether the test would see one on these items is not known (--planted)")
    return "\n\n".join(parts)
