"""Held-out texts as a task: bits per byte, which any two models can be compared by, whatever their tokenizers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from ..data.sources import Files
from ..errors import DataError
from .prepared import Choice, Item, Metrics, PreparedTask
from .requests import Answer, Whole

PROFILE = "texts"


def prepare_texts(
    paths: Sequence[str], *, field: str = "text", sample: int | None = None, seed: int = 0
) -> PreparedTask:
    """Documents, each scored whole, in windows of what the model reads at once (lm-eval's rolling log-likelihood).

    The score is bits per byte over all documents together: an item's value is its bits, divided by the mean number of
    bytes of a document, so that the mean of the values is that score.

    Args:
        paths: Text, JSON-lines or parquet files, plain or gzipped.
        field: Where a row of JSON has its text.
        sample: So many documents, drawn with ``seed``.
        seed: Of that draw.

    Raises:
        DataError: A file cannot be read, or none holds a text.
    """
    documents = [one for one in Files(tuple(paths), field).documents() if one.text.strip()]
    if not documents:
        raise DataError(f"there is no text in {', '.join(paths)}", next_step="give files with text in them")
    name = "+".join(dict.fromkeys(Path(path).name.split(".")[0] for path in paths))
    choice = Choice(None, sample, seed)
    ids = [hashlib.sha256(one.text.encode()).hexdigest()[:16] for one in documents]
    kept = sorted(choice.drawn(name, [""] * len(documents)))
    chosen = [(ids[index], documents[index]) for index in kept]
    sizes = [len(one.text.encode()) for _, one in chosen]
    mean_bytes = sum(sizes) / len(sizes)

    def grade(answers: Sequence[Sequence[Answer]]) -> list[Metrics]:
        nats = [-float(answer[0]) for answer in answers]
        return [{"bits_per_byte": value / math.log(2) / mean_bytes, "nats": value} for value in nats]

    items = tuple(Item(name_, {"name": one.name, "text": one.text}, (Whole(one.text),), "") for name_, one in chosen)
    return PreparedTask(
        name, PROFILE, "bits_per_byte", 0, items, grade, len(documents), version="1",
        notes=(f"{name}: {sum(sizes):,} bytes in {len(sizes):,} documents; less is better",
               *choice.notes(name, len(items), len(documents), "")),
        identity={"texts": hashlib.sha256("".join(ids).encode()).hexdigest()},
    )  # fmt: skip
