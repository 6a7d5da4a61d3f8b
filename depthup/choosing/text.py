"""The text of a choice: rows to train on, and held-out rows, each from a document of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.packing import IGNORED, Batch, PackedRows, pack
from ..data.sources import Files, InstalledDocs, Source, select
from ..data.tokens import TokenizedDocuments, open_tokens, write_tokens
from ..errors import DataError
from ..files import made_once
from ..models import end_of_text

HELD_OUT = 0.2  # share of documents
_LEAST_TOKENS = 500_000  # read for training, even where short runs see fewer: rows are drawn from all of them
_DOCUMENTS_A_ROW = 40  # held-out documents of the length of a row that are read for each row that is chosen


@dataclass(frozen=True)
class Text:
    """What the short runs train on and are measured on.

    Attributes:
        training: Packed rows.
        held_out: Rows of token ids, int64 [num_rows, row_tokens], each the start of another document.
    """

    training: PackedRows
    held_out: Any

    def batch(self, row: int) -> Batch:
        """One held-out row as a batch."""
        ids = self.held_out[row : row + 1]
        labels = np.full_like(ids, IGNORED)
        labels[:, :-1] = ids[:, 1:]
        return Batch(ids, labels, np.arange(ids.shape[1])[None])


def source_of(files: tuple[str, ...], field: str) -> tuple[Source, dict[str, Any]]:
    """The source of text, and what a recipe says of it; without files, the documentation that Python carries."""
    if not files:
        return InstalledDocs(), {"source": "installed-docs", "packages": ["python"], "held_out": HELD_OUT}
    paths = [str(Path(file).resolve()) for file in files]
    return Files(files, field), {"source": "files", "paths": paths, "field": field, "held_out": HELD_OUT}


def read_text(
    source: Source,
    tokenizer: Any,
    folder: Path,
    *,
    row_tokens: int,
    num_held_out_rows: int,
    seed: int,
    train_tokens: int,
) -> Text:
    """Tokenize the beginning of a source into ``folder``, once, and choose held-out rows.

    Args:
        source: The text.
        tokenizer: Of the base.
        folder: Where tokens are kept.
        row_tokens: Tokens in a row.
        num_held_out_rows: Fewer are made where the text has fewer documents of that length.
        seed: Of their choice.
        train_tokens: That the longest run sees.

    Raises:
        DataError: There is too little text, or documents are shorter than a row.
    """
    most = {
        "train": max(2 * train_tokens, _LEAST_TOKENS),
        "held_out": _DOCUMENTS_A_ROW * num_held_out_rows * row_tokens,
    }
    sides = {side: _tokens(source, tokenizer, folder, side, tokens) for side, tokens in most.items()}
    documents = sides["held_out"]
    long = np.flatnonzero(documents.lengths >= row_tokens)
    if len(long) < 2:
        raise DataError(
            f"{len(long)} held-out documents have {row_tokens} tokens or more, of {documents.num_documents}",
            allowed="at least 2: intervals are told from row to row",
            next_step="give more text with --data, or shorter rows with --row-tokens",
        )
    chosen = np.random.default_rng(seed).permutation(long)[:num_held_out_rows]
    rows = np.stack([documents.tokens[documents.offsets[i] : documents.offsets[i] + row_tokens] for i in chosen])
    return Text(pack(sides["train"], row_tokens), rows.astype(np.int64))


def _tokens(source: Source, tokenizer: Any, folder: Path, side: Any, max_tokens: int) -> TokenizedDocuments:
    def make(partial: Path) -> None:
        documents = select(source, side, HELD_OUT)
        write_tokens(documents, tokenizer, end_of_text(tokenizer), partial, max_tokens=max_tokens)

    made_once(folder / side, make)
    return open_tokens(folder / side)
