"""A scorer that asks a backend of generation: for tasks that are answered by text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import DepthupError
from ..generation.backend import Backend, Generated, Sampling
from .requests import Answer, Completion, Request


class BackendScorer:
    """Answers completions, the likeliest token each time; see :class:`.requests.Scorer`.

    Args:
        backend: Any backend: a server for GSM8K, where that is faster.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """One text a request.

        Raises:
            DepthupError: A request asks for probabilities, or has no answer; those that came were given to ``done``.
        """
        completions = [request for request in requests if isinstance(request, Completion)]
        if len(completions) < len(requests):
            raise DepthupError(
                f"{len(requests) - len(completions)} of {len(requests)} requests ask how likely a text is, and"
                f" {self._backend.identity} answers with text alone",
                allowed="tasks that generate: gsm8k, and other tasks of the kind generate_until",
                next_step="score the other tasks with the checkpoint itself: give its folder as the model",
            )
        samplings = [
            Sampling(request.max_new_tokens, stop=tuple(filter(None, request.stop))) for request in completions
        ]

        def heard(index: int, answer: Generated) -> None:
            if done is not None:
                done(index, answer.text)

        return list(self._backend.generate([request.context for request in completions], samplings, heard))
