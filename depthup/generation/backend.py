"""What generates text: anything with this one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """How text is drawn.

    Attributes:
        max_new_tokens: Most tokens to add.
        temperature: 0 takes the likeliest token each time.
        top_p: Share of probability to draw from (nucleus sampling, arXiv:1904.09751).
        seed: Start of the random numbers.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Backend(Protocol):
    """A source of continuations."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        """The continuation of each prompt, without the prompt."""
        ...
