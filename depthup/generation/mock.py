"""A backend without a model: for tests, and for dry runs of what stands above it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import DepthupError, shown
from .backend import Done, Failure, Generated, Prompt, Sampling, Unanswered, each_sampling


class MockBackend:
    """Answers by a function, or by a table.

    Args:
        answer: From a prompt and its sampling to a text; or a text, or one a sample, by prompt. A chat is looked up by
            its last message. The function may raise DepthupError: that prompt then has no answer.
        identity: Which model it plays.

    Attributes:
        asked: All that was asked, in order.
    """

    def __init__(
        self, answer: Callable[[Prompt, Sampling], str] | Mapping[str, str | Sequence[str]], identity: str = "mock"
    ) -> None:
        self._answer = answer if callable(answer) else _from_table(answer)
        self.identity = identity
        self.asked: list[tuple[Prompt, Sampling]] = []

    @classmethod
    def named(cls, name: str) -> MockBackend:
        """``echo`` says the prompt's last words again; any other name is that of a JSON file with a table.

        Raises:
            DepthupError: There is no such file, or it holds no table.
        """
        if name == "echo":
            return cls(
                lambda prompt, sampling: " ".join(last_text(prompt).split()[-sampling.max_new_tokens :]), "mock:echo"
            )
        try:
            table = json.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DepthupError(
                f"mock:{shown(name)} cannot be read: {error}", allowed="mock:echo, or mock:FILE.json with a table"
            ) from error
        if not isinstance(table, dict) or not all(
            isinstance(value, str) or (isinstance(value, list) and value) for value in table.values()
        ):
            raise DepthupError(f"{shown(name)} is no table", allowed='{"prompt": "text"}, or {"prompt": ["text", ...]}')
        return cls(table, f"mock:{name}")

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling], done: Done | None = None
    ) -> list[str]:
        """See :class:`.backend.Backend`; tokens are words."""
        texts, failures = [""] * len(prompts), []
        for index, (prompt, how) in enumerate(zip(prompts, each_sampling(sampling, len(prompts)), strict=True)):
            self.asked.append((prompt, how))
            try:
                text = self._answer(prompt, how)
            except DepthupError as error:
                failures.append(Failure(index, error.problem, 1))
                continue
            ended = "stop"
            for stop in how.stop:
                text = text.split(stop)[0]
            words = text.split()
            if len(words) > how.max_new_tokens:
                text, ended = " ".join(words[: how.max_new_tokens]), "length"
            texts[index] = text
            if done is not None:
                num_words = len(last_text(prompt).split())
                done(index, Generated(text, ended, num_words, len(text.split()), self.identity))
        if failures:
            raise Unanswered(failures, len(prompts), "give the mock an answer for each prompt")
        return texts


def last_text(prompt: Prompt) -> str:
    """A plain prompt, or the last message of a chat."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _from_table(table: Mapping[str, str | Sequence[str]]) -> Callable[[Prompt, Sampling], str]:
    def answer(prompt: Prompt, sampling: Sampling) -> str:
        text = last_text(prompt)
        if text not in table:
            raise DepthupError(f"the table has no answer to '{shown(text)}'")
        found = table[text]
        return found if isinstance(found, str) else found[sampling.sample % len(found)]

    return answer
