"""Runs to fit, as values, and the files that hold them: a table of points, metrics of a run, a store of stages."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifacts.record import RECORD_NAME, Record, read_record
from ..errors import CheckpointError, DataError, PlanError, nearest, shown

COLUMNS = ("run", "tokens", "loss", "flops", "seed")
_METRICS = "metrics.jsonl"
_MOST_POINTS = 200  # of a longer log equally many neighbours are averaged


@dataclass(frozen=True)
class Run:
    """Loss of one method against tokens, with as many seeds as there are.

    Attributes:
        name: Of the method.
        tokens: Seen, one a point.
        losses: Nats per token.
        seeds: Which training run each point is of.
        flops_per_token: Forward and backward; None where it is not known.
        is_held_out: Whether losses are of text that is not trained on.
    """

    name: str
    tokens: tuple[float, ...]
    losses: tuple[float, ...]
    seeds: tuple[int, ...]
    flops_per_token: float | None = None
    is_held_out: bool = True

    @property
    def num_seeds(self) -> int:
        return len(set(self.seeds))

    @property
    def most_tokens(self) -> float:
        return max(self.tokens)


def read_runs(places: Sequence[str], from_tokens: float = 0.0) -> tuple[Run, ...]:
    """All runs of some files and folders, each as ``PLACE`` or, to rename a run, ``NAME=PLACE``.

    A place is a ``.csv`` or ``.json`` table with the columns of :data:`COLUMNS` (the last two may be left out), the
    ``metrics.jsonl`` of a run, the folder of a pretrain stage, or a store, all of whose pretrain stages are taken.
    Points of one name from several places are seeds of one run.

    Args:
        places: As above.
        from_tokens: Points below are left out, such as the first fast part of a run from scratch.

    Raises:
        DataError: Something is not there, or not of that form; the file and the row are named.
    """
    found: dict[str, list[Run]] = {}
    for place in places:
        name, equals, path = place.rpartition("=")
        if equals and (not name or Path(place).exists()):
            name, path = "", place
        runs = _read(Path(path))
        if name and len(runs) > 1:
            raise DataError(
                f"{path} holds {len(runs)} runs, and one name is given to them: {name}",
                allowed=", ".join(run.name for run in runs),
                next_step="leave the name out",
            )
        for run in runs:
            found.setdefault(name or run.name, []).append(replace(run, name=name or run.name))
    joined = [_joined(runs) for runs in found.values()]
    return tuple(_cut(run, from_tokens) for run in joined)


def _read(path: Path) -> list[Run]:
    if path.is_dir():
        return _stages(path)
    if not path.is_file():
        raise DataError(f"there is no file or folder {path}", allowed=".csv, .json, metrics.jsonl, a stage, a store")
    if path.suffix == ".jsonl":
        name = path.parent.name if path.name == _METRICS else path.stem
        return [_from_metrics(name or str(path), path, None)]
    if path.suffix not in (".csv", ".json"):
        raise DataError(f"cannot read {path}", allowed=".csv, .json, metrics.jsonl, a stage, a store")
    return _table(path)


# -- tables -----------------------------------------------------------------------------------------------------------


def _table(path: Path) -> list[Run]:
    points: dict[str, list[tuple[float, float, int, float | None]]] = {}
    for number, row in enumerate(_rows(path), 1):
        place = f"row {number} of {path}"
        unknown = [key for key in row if key not in COLUMNS]
        if unknown:
            raise DataError(
                f"{place}: unknown column {shown(unknown[0])}{nearest(str(unknown[0]), COLUMNS)}",
                allowed=f"{', '.join(COLUMNS[:3])}, and if known {', '.join(COLUMNS[3:])}",
            )
        if not str(row.get("run") or "").strip():
            raise DataError(f"{place} names no run", allowed="a column 'run' with a name")
        tokens, loss = _number(row, "tokens", place), _number(row, "loss", place)
        assert tokens is not None and loss is not None
        seed, flops = _number(row, "seed", place, optional=True), _number(row, "flops", place, optional=True)
        points.setdefault(str(row["run"]).strip(), []).append((tokens, loss, int(seed or 0), flops))
    if not points:
        raise DataError(f"{path} holds no points", allowed=f"a row for each point: {', '.join(COLUMNS)}")
    return [_from_points(name, rows, path) for name, rows in points.items()]


def _rows(path: Path) -> Iterator[Mapping[Any, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            yield from csv.DictReader(text.splitlines())
            return
        value = json.loads(text)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rows = value.get("rows") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is no list of points", allowed='[{"run": "base", "tokens": 0, "loss": 3.17}, ...]')
    yield from rows


def _number(row: Mapping[Any, Any], key: str, place: str, optional: bool = False) -> float | None:
    value = row.get(key)
    if optional and value in (None, ""):
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (key == "loss" and number == 0):
        raise DataError(
            f"{place}: {key} = {shown(value)}",
            allowed="a number above 0" if key == "loss" else "at least 0",
        )
    return number


def _from_points(name: str, rows: Sequence[tuple[float, float, int, float | None]], path: Path) -> Run:
    tokens, losses, seeds, flops = zip(*rows, strict=True)
    each = [flop / token for token, flop in zip(tokens, flops, strict=True) if flop and token]
    if each and max(each) > 1.01 * min(each):
        raise DataError(
            f"{path}: the FLOPs of run '{name}' do not grow in step with its tokens"
            f" ({min(each):.3g} to {max(each):.3g} a token)",
            next_step="split the run where its size changed, or leave the column flops out",
        )
    return Run(name, tokens, losses, seeds, sum(each) / len(each) if each else None)


# -- what training leaves ---------------------------------------------------------------------------------------------


def _stages(folder: Path) -> list[Run]:
    """The pretrain stage that lies in a folder, or all those of a store, the newest of each name."""
    own = [(folder, record)] if (record := read_record(folder)) else _newest(folder)
    found = [(path, record) for path, record in own if record.kind == "pretrain" and (path / _METRICS).is_file()]
    if not found and (folder / _METRICS).is_file():
        return [_from_metrics(folder.name, folder / _METRICS, None)]
    if not found:
        raise DataError(
            f"{folder} holds no pretrain stage", allowed="a stage's folder, or a store (runs/NAME)",
            next_step="make them with `depthup run`",
        )  # fmt: skip
    runs = []
    for path, record in found:
        run = _from_metrics(record.stage, path / _METRICS, _flops(path, record))
        seed = record.identity.get("seed")
        runs.append(replace(run, seeds=(seed,) * len(run.tokens)) if isinstance(seed, int) else run)
    return runs


def _newest(store: Path) -> list[tuple[Path, Record]]:
    by_stage: dict[str, tuple[float, Path, Record]] = {}
    for file in sorted(store.glob(f"*/[0-9a-f]*/{RECORD_NAME}")):
        record, when = read_record(file.parent), file.stat().st_mtime
        if record and not file.parent.is_symlink() and when >= by_stage.get(record.stage, (-1.0,))[0]:
            by_stage[record.stage] = (when, file.parent, record)
    return [(path, record) for when, path, record in sorted(by_stage.values(), key=lambda one: one[0])]


def _flops(folder: Path, record: Record) -> float | None:
    """FLOPs of a token in training, from the stage's own checkpoint; None where they cannot be told."""
    from ..checkpoint.reader import open_checkpoint
    from ..planning.compute import training_flops
    from ..planning.shapes import shape_of

    row_tokens = record.identity.get("row_tokens")
    try:
        return training_flops(shape_of(open_checkpoint(folder)), row_tokens) if isinstance(row_tokens, int) else None
    except (CheckpointError, PlanError, OSError):
        return None


def _from_metrics(name: str, path: Path, flops: float | None) -> Run:
    """Held-out losses of a log, or means of its training losses where nothing was held out."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        points = {key: _finite(lines, key) for key in ("held_out_loss", "loss")}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"cannot read {path}: {error}", allowed="the metrics.jsonl of a training run") from error
    is_held_out = len(points["held_out_loss"]) > 2 or not points["loss"]
    chosen = points["held_out_loss" if is_held_out else "loss"]
    if not chosen:
        raise DataError(f"{path} holds no loss", allowed="lines with tokens_seen and held_out_loss")
    tokens, losses = zip(*_thinned(chosen), strict=True)
    return Run(name, tokens, losses, (0,) * len(tokens), flops, is_held_out)


def _finite(lines: Iterable[Any], key: str) -> list[tuple[float, float]]:
    return [
        (float(line["tokens_seen"]), float(line[key]))
        for line in lines
        if isinstance(line.get(key), int | float) and isinstance(line.get("tokens_seen"), int | float)
        and math.isfinite(line[key]) and line[key] > 0 and not line.get("skipped")
    ]  # fmt: skip


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


# -- all together -----------------------------------------------------------------------------------------------------


def _joined(runs: Sequence[Run]) -> Run:
    """Runs of one name as seeds of one; those that name the same seed get numbers of their own."""
    if len(runs) == 1:
        return runs[0]
    firsts = [run.seeds[0] for run in runs]
    apart = len(set(firsts)) == len(firsts) and all(run.num_seeds == 1 for run in runs)
    seeds = [seed if apart else number for number, run in enumerate(runs) for seed in run.seeds]
    if len({run.is_held_out for run in runs}) > 1 or len({run.flops_per_token for run in runs}) > 1:
        raise DataError(
            f"the runs named '{runs[0].name}' are of different sizes, or have held-out losses in some only",
            next_step="give them names of their own: NAME=PLACE",
        )
    tokens, losses = ([value for run in runs for value in getattr(run, key)] for key in ("tokens", "losses"))
    return replace(runs[0], tokens=tuple(tokens), losses=tuple(losses), seeds=tuple(seeds))


def _cut(run: Run, from_tokens: float) -> Run:
    kept = sorted(
        (point for point in zip(run.tokens, run.losses, run.seeds, strict=True) if point[0] >= from_tokens),
        key=lambda point: (point[2], point[0]),
    )
    if not kept:
        raise DataError(f"run '{run.name}' has no points from {from_tokens:,.0f} tokens on")
    tokens, losses, seeds = zip(*kept, strict=True)
    return replace(run, tokens=tokens, losses=losses, seeds=seeds)
