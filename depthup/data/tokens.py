"""Documents as token ids on disk: one flat memory-mapped array and the offsets of its documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .sources import Document

_TOKENS, _OFFSETS = "tokens.bin", "offsets.npy"
_BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class TokenizedDocuments:
    """Token ids of documents that lie one after another.

    Attributes:
        tokens: int32 [num_tokens], memory-mapped.
        offsets: int64 [num_documents + 1]; document i is ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, int64 [num_documents]."""
        return np.diff(self.offsets)


def write_tokens(
    documents: Iterable[Document],
    tokenizer: Any,
    end_of_text: int,
    folder: Path,
    progress: Callable[[int], object] | None = None,
) -> TokenizedDocuments:
    """Tokenize documents into ``folder``; each begins as the tokenizer has it begin, and ends with ``end_of_text``.

    Args:
        documents: Read once, in order.
        tokenizer: A transformers tokenizer.
        end_of_text: Token id that ends each document.
        folder: An existing folder.
        progress: Called with the number of documents done since the last call.

    Raises:
        DataError: There is no document.
    """
    offsets = [0]
    with open(folder / _TOKENS, "wb") as file:
        for batch in _batches(documents):
            for ids in tokenizer([document.text for document in batch], verbose=False)["input_ids"]:
                if not ids or ids[-1] != end_of_text:
                    ids = [*ids, end_of_text]
                file.write(np.asarray(ids, dtype=np.int32).tobytes())
                offsets.append(offsets[-1] + len(ids))
            if progress:
                progress(len(batch))
    if len(offsets) == 1:
        raise DataError(
            "the data hold no document on this side of the split",
            next_step="add text, or change held_out (the share of documents that is held out)",
        )
    np.save(folder / _OFFSETS, np.asarray(offsets, dtype=np.int64))
    return open_tokens(folder)


def open_tokens(folder: Path) -> TokenizedDocuments:
    """Open what :func:`write_tokens` wrote, without reading it into memory."""
    tokens = np.memmap(folder / _TOKENS, dtype=np.int32, mode="r")
    return TokenizedDocuments(tokens, np.load(folder / _OFFSETS))


def sample(documents: TokenizedDocuments, max_tokens: int, seed: int = 0) -> TokenizedDocuments:
    """A fixed random choice of documents with ``max_tokens`` tokens in all (the last one is cut), in memory.

    Returns all documents if they hold fewer.
    """
    if documents.num_tokens <= max_tokens:
        return documents
    chosen: list[NDArray[np.int32]] = []
    left = max_tokens
    for index in np.random.default_rng(seed).permutation(documents.num_documents):
        begin, end = documents.offsets[index], documents.offsets[index + 1]
        chosen.append(np.asarray(documents.tokens[begin : min(end, begin + left)]))
        left -= len(chosen[-1])
        if left <= 0:
            break
    return TokenizedDocuments(np.concatenate(chosen), np.cumsum([0, *map(len, chosen)]))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, _BATCH_DOCUMENTS)):
        yield batch
