"""Tables: plain text for the terminal, and the cells of the same table for the page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .text import format_count, format_loss, format_perplexity, perplexity, visible
from .values import ModelRow

MODEL_HEADERS = ("model", "layers", "parameters", "tokens seen", "held-out loss", "perplexity")
_LIKE_A_NUMBER = re.compile(r"[-+\u2212]?\d[\d.,|eE]*( ?(%|[kMBT]|s|± [\d.,]+|min( \d\d s)?|h \d\d min))?")
_NUMBER = re.compile(r"[-+\u2212]?(\d[\d,]*(\.\d+)?([eE][-+]?\d+)?[%kMBT]?|inf|nan)")


def render_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows for the terminal in aligned columns: numbers to the right, everything else to the left.

    A column is one of numbers if each of its cells that is not empty is a number. Control characters are made
    visible, so no cell can steer the terminal. The text has no final newline.

    Args:
        headers: One heading a column.
        rows: As many cells a row as there are headings; a cell is shown as ``str(cell)``.

    Raises:
        ValueError: A row has more or fewer cells than there are headings.
    """
    texts = [[_one_line(str(cell)) for cell in row] for row in rows]
    columns = [[_one_line(header), *cells] for header, *cells in zip(headers, *texts, strict=True)]
    widths = [max(map(_terminal_width, column)) for column in columns]
    is_number = [
        any(column[1:]) and all(not cell or _NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns
    ]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for cell, width, right in zip(cells, widths, is_number, strict=True):
            space = " " * (width - _terminal_width(cell))
            padded.append(space + cell if right else cell + space)
        return "  ".join(padded).rstrip()

    lines = [line(cells) for cells in zip(*columns, strict=True)]
    return "\n".join([lines[0], "  ".join("\u2500" * width for width in widths), *lines[1:]]) if lines else ""


def number_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Of each column whether all that stands in it are numbers, with or without what goes with one (``5.1 ± 0.2``)."""
    return [
        any(column) and all(not cell or _LIKE_A_NUMBER.fullmatch(cell) for cell in column)
        for column in zip(*rows, strict=True)
    ]


def model_cells(row: ModelRow) -> tuple[str, ...]:
    """One model as text in the order of :data:`MODEL_HEADERS`: exact counts, loss in nats per token, exp(loss)."""
    return (
        row.name,
        format_count(row.num_layers),
        format_count(row.num_parameters),
        format_count(row.tokens_seen),
        format_loss(row.loss),
        format_perplexity(perplexity(row.loss)),
    )


def model_table(rows: Sequence[ModelRow]) -> str:
    """The main table for the terminal, one line a model."""
    return render_table(MODEL_HEADERS, [model_cells(row) for row in rows])


def _one_line(text: str) -> str:
    return visible(text).replace("\n", " ").replace("\t", " ")


def _terminal_width(text: str) -> int:
    """Columns that the text takes: two for wide characters and emoji, none for combining marks."""
    return sum(
        0
        if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )
