"""What generates text: anything with this one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import DepthupError


@dataclass(frozen=True)
class Sampling:
    """How text is drawn.

    Attributes:
        max_new_tokens: Most tokens to add.
        temperature: 0 takes the likeliest token each time.
        top_p: Share of probability to draw from (nucleus sampling, arXiv:1904.09751).
        seed: Start of the random numbers.

    Raises:
        DepthupError: A value is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature < 1e3 or not 0 < self.top_p <= 1:
            raise DepthupError(
                f"cannot draw {self.max_new_tokens} tokens with temperature {self.temperature} and top_p {self.top_p}",
                allowed="at least 1 token, temperature from 0 up, 0 < top_p <= 1",
            )


class Backend(Protocol):
    """A source of continuations."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        """The continuation of each prompt, without the prompt."""
        ...
