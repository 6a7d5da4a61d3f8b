"""One prompt on its way to an answer: which token comes next, and whether it was the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models import Tokenizer
from .backend import Sampling


@dataclass
class Row:
    """A prompt and its answer so far.

    Attributes:
        index: Of the prompt in the call.
        prompt: Its tokens.
        sampling: How it is drawn, where it stops, how long it may get.
        ends: Tokens that end a text.
        tokens: The answer so far; an ending token is not kept.
        finish_reason: Empty while it goes on; ``stop`` or ``length``.
        columns: Columns of its batch from its first token to its last.
        generator: Random numbers of this row alone, so that the batch it is in does not matter.
    """

    index: int
    prompt: Sequence[int]
    sampling: Sampling
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    columns: int = 0
    generator: torch.Generator | None = None

    @property
    def num_tokens(self) -> int:
        """Most tokens that the row will ever have."""
        return len(self.prompt) + self.sampling.max_new_tokens

    def restart(self) -> None:
        """Forget the answer so far."""
        self.tokens, self.finish_reason, self.columns, self.generator = [], "", 0, None

    def take(self, token: int, tokenizer: Tokenizer) -> None:
        """Add a token, unless the answer has ended."""
        if self.finish_reason:
            return
        if token in self.ends:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        if self.sampling.stop:
            # A stop string that ends in this token lies in the last tokens: one byte each at least, and a few to spare.
            num_bytes = max(len(stop.encode()) for stop in self.sampling.stop)
            tail = tokenizer.decode(self.tokens[-num_bytes - 3 :])
            if any(stop in tail for stop in self.sampling.stop):
                self.finish_reason = "stop"
                return
        if len(self.tokens) >= self.sampling.max_new_tokens:
            self.finish_reason = "length"

    def text(self, tokenizer: Tokenizer) -> str:
        """The answer without special tokens, cut at the stop strings, one after the other."""
        text: str = tokenizer.decode(self.tokens, skip_special_tokens=True)
        for stop in self.sampling.stop:
            text = text.split(stop)[0]
        return text


def draw(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The next token of each row, on the device of the logits.

    Temperature first, then the fewest likeliest tokens that hold ``top_p``, as transformers orders them; each row with
    random numbers of its own. Equal logits: the first of them.

    Args:
        logits: Of the next token: [rows, vocabulary].
        rows: What they belong to.
    """
    tokens = logits.argmax(-1)
    for place, row in enumerate(rows):
        if row.sampling.temperature == 0 or row.finish_reason:
            continue
        if row.generator is None:
            row.generator = torch.Generator(logits.device).manual_seed(row.sampling.stream)
        scores = logits[place : place + 1].float() / row.sampling.temperature
        if row.sampling.top_p < 1:
            ordered, order = scores.sort(descending=False)
            left_out = ordered.softmax(-1).cumsum(-1) <= 1 - row.sampling.top_p
            left_out[:, -1] = False
            scores = scores.masked_fill(left_out.scatter(1, order, left_out), -torch.inf)
        tokens[place] = torch.multinomial(scores.softmax(-1), 1, generator=row.generator)[0, 0]
    return tokens
