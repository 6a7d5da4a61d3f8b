"""What a model is asked, and what it answers: the border between tasks and scorers. No torch, no harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Continuation:
    """How likely is ``text`` after ``context``? Answer: (log-probability in nats, all tokens the likeliest or not)."""

    context: str
    text: str


@dataclass(frozen=True)
class Whole:
    """How likely is a whole text, each token given what fits before it? Answer: sum of log-probabilities in nats."""

    text: str


@dataclass(frozen=True)
class Completion:
    """What follows ``context``, the likeliest token each time? Answer: the text up to the first of ``stop``."""

    context: str
    stop: tuple[str, ...]
    max_new_tokens: int


Request = Continuation | Whole | Completion
Answer = Any  # (float, bool), float, or str, as the request says: what JSON can hold


class Scorer(Protocol):
    """Anything that answers requests."""

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """One answer a request, in their order.

        Args:
            requests: Of any kinds, in any order.
            done: Called with the index and answer of each as soon as it is known, in any order: what a cache keeps.
        """
        ...
