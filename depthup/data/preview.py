"""What a run is trained on, to read: rows decoded, targets marked, borders and truncations shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .packing import IGNORED, Batch, PackedRows

_GREEN, _DIM, _BOLD, _RESET = "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"

Cut = Literal["", "begin", "end", "both"]  # the sides on which a document goes on outside its row


@dataclass(frozen=True)
class Style:
    """How a preview marks its parts: before and after each."""

    target: tuple[str, str]
    context: tuple[str, str]
    border: tuple[str, str]


PLAIN = Style(("⟦", "⟧"), ("", ""), ("", ""))
ANSI = Style((_GREEN, _RESET), (_DIM, _RESET), (_BOLD, _RESET))


@dataclass(frozen=True)
class Part:
    """One document in a row, or the padding after the last.

    Attributes:
        ids: int64 [num_tokens].
        is_target: bool [num_tokens].
        cut: The sides on which it is truncated, or cut into pieces; empty where that is not known.
        is_padding: Whether it is no document.
    """

    ids: NDArray[np.int64]
    is_target: NDArray[np.bool_]
    cut: Cut = ""
    is_padding: bool = False


def preview_rows(rows: PackedRows, indices: NDArray[np.int64], tokenizer: Any, *, color: bool = True) -> str:
    """Rows as text, with truncated documents marked.

    Args:
        rows: Packed rows.
        indices: Which of them, int64 [n].
        tokenizer: A transformers tokenizer.
        color: Targets green, context dim by ANSI codes; otherwise targets stand in ⟦ ⟧.
    """
    batch = rows.batch(indices)
    offsets = rows.documents.offsets
    lines = [_row(_parts(batch, place, [
        _cut_of(begin, end, offsets) for begin, end in rows.pieces[rows.row_offsets[row] : rows.row_offsets[row + 1]]
    ]), f"row {row}", tokenizer, color) for place, row in enumerate(indices)]  # fmt: skip
    lost = f"{rows.num_truncated:,} documents truncated, {rows.num_dropped:,} dropped: no target was left of them"
    return "\n".join([*lines, *([lost] if rows.num_truncated or rows.num_dropped else [])])


def preview_batch(batch: Batch, tokenizer: Any, *, color: bool = True) -> str:
    """A batch of any rows as text: of a mixture, of preferences; what is truncated it does not know.

    Without document mask, documents in a row are not told apart.
    """
    return "\n".join(
        _row(_parts(batch, place, None), f"row {place}", tokenizer, color) for place in range(batch.num_rows)
    )


def _parts(batch: Batch, place: int, cuts: list[Cut] | None) -> Iterator[Part]:
    """The documents of a row; a part without a target that is all zeros and ends the row is padding."""
    ids, labels, positions = batch.input_ids[place], batch.labels[place], batch.position_ids[place]
    is_target = np.concatenate([[False], labels[:-1] != IGNORED])
    borders = [*np.flatnonzero(positions == 0).tolist(), len(ids)]
    for number, (begin, end) in enumerate(pairwise(borders)):
        is_last = end == len(ids)
        if cuts is not None and len(borders) - 1 >= len(cuts):
            is_padding = number >= len(cuts)
        else:
            is_padding = bool(is_last and not is_target[begin:end].any() and not ids[begin:end].any())
        cut = cuts[number] if cuts and number < len(cuts) else ""
        yield Part(ids[begin:end], is_target[begin:end], cut, is_padding)


def _cut_of(begin: int, end: int, offsets: NDArray[np.int64]) -> Cut:
    document = int(np.searchsorted(offsets, begin, side="right")) - 1
    at_begin, at_end = bool(begin > offsets[document]), bool(end < offsets[document + 1])
    return "both" if at_begin and at_end else "begin" if at_begin else "end" if at_end else ""


def _row(parts: Iterator[Part], name: str, tokenizer: Any, color: bool) -> str:
    style = ANSI if color else PLAIN
    lines = []
    for number, part in enumerate(parts, 1):
        if part.is_padding:
            lines.append(_wrapped(f"── {name} · {len(part.ids)} tokens of padding", style.border))
            continue
        counts = f"{len(part.ids)} tokens, {int(part.is_target.sum())} targets"
        lines.append(_wrapped(f"── {name} · document {number} · {counts} ──", style.border))
        text = "".join(_wrapped(run, style.target if is_target else style.context) for is_target, run in
                       _runs(part, tokenizer))  # fmt: skip
        before = _wrapped("[…] ", style.border) if part.cut in ("begin", "both") else ""
        after = _wrapped(" [… truncated]", style.border) if part.cut in ("end", "both") else ""
        lines.append(before + text + after)
    return "\n".join(lines)


def _runs(part: Part, tokenizer: Any) -> Iterator[tuple[bool, str]]:
    """(whether they are targets, their text) of neighbouring tokens; special tokens are shown."""
    for is_target, group in groupby(range(len(part.ids)), key=lambda place: bool(part.is_target[place])):
        yield is_target, _shown(tokenizer.decode(part.ids[list(group)].tolist()))


def _wrapped(text: str, around: tuple[str, str]) -> str:
    return around[0] + text + around[1]


def _shown(text: str) -> str:
    """What does not print is escaped: text from outside must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
