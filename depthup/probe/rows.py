"""Text to probe with, as rows of tokens of one length, each from a document of its own as far as there are enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from ..errors import DataError
from ..models import Tokenizer

_CHARACTERS_PER_TOKEN = 12  # of a document no more is tokenized than may be needed


def cut_rows(tokenizer: Tokenizer, sources: Sequence[Iterable[str]], num_rows: int, row_tokens: int) -> Tensor:
    """Token ids [num_rows, row_tokens], from the sources in turn.

    A row is the beginning of a document that is long enough. Only where these are too few, further rows are cut from
    what follows in them.

    Args:
        tokenizer: The model's.
        sources: Documents, one iterable for each file.
        num_rows: At least 2.
        row_tokens: At least 2.

    Raises:
        DataError: The texts are too short.
    """
    found, later = [], []
    for text in _in_turn([islice(source, 50 * num_rows) for source in sources]):
        tokens = tokenizer(text[: num_rows * row_tokens * _CHARACTERS_PER_TOKEN], verbose=False)["input_ids"]
        pieces = [tokens[start : start + row_tokens] for start in range(0, len(tokens) - row_tokens + 1, row_tokens)]
        found += pieces[:1]
        later += pieces[1:]
        if len(found) >= num_rows:
            break
    rows = list(islice(chain(found, later), num_rows))
    if len(rows) < num_rows:
        raise DataError(
            f"the text gives {len(rows)} rows of {row_tokens} tokens, and {num_rows} are wanted",
            next_step="give more text (--text), or ask for fewer or shorter rows (--tokens, --row-tokens)",
        )
    return torch.tensor(rows)


def _in_turn(sources: Sequence[Iterable[str]]) -> Iterator[str]:
    """One text of each source, then the next of each, until none has any."""
    waiting = [iter(source) for source in sources]
    while waiting:
        left = []
        for source in waiting:
            for text in islice(source, 1):
                yield text
                left.append(source)
        waiting = left
