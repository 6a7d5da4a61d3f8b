"""One question to whatever writes: a model behind a backend, or the offline factory."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..generation.backend import Backend, Generated, Sampling, Unanswered
from ..generation.journal import Journal, JournaledBackend
from ..generation.requests import identity
from .metamath import STOPS, VERSION, Masked, Step, load_prompt
from .rephrasing import rephrase, retell
from .seeds import Seed

TEMPLATE = f"depthup-math-{VERSION}"


@dataclass(frozen=True)
class Ask:
    """A request and what it is made of.

    Attributes:
        step: Which prompt.
        seed: The seed behind it.
        question: What the prompt's open example asks.
        sampling: How it is drawn; its sample tells several requests of one prompt apart.
        answer: The answer that a statement has to state.
        masked: The unknown, for backward questions and their statements.
    """

    step: Step
    seed: Seed
    question: str
    sampling: Sampling
    answer: str = ""
    masked: Masked | None = None

    @property
    def prompt(self) -> str:
        """The text that a model continues."""
        return load_prompt(self.step).render(self.question, self.answer)


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        request: Identity of the request.
        text: The continuation; None where there is none for good.
        cut: Whether it ended for want of tokens.
        reason: Why there is none.
        attempts: How often it was asked for; 0 where the budget did not allow it.
        prompt_tokens: Read; 0 where nobody counted.
        completion_tokens: Made; 0 where nobody counted.
    """

    request: str
    text: str | None
    cut: bool = False
    reason: str = ""
    attempts: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Asker(Protocol):
    """Anything that answers asks.

    Attributes:
        identity: Which model or factory it is.
        made_by: ``model`` or ``factory``, for lineage.
    """

    identity: str
    made_by: Literal["model", "factory"]

    def ask(self, asks: Sequence[Ask], progress: Callable[[int], object] | None = None) -> list[Reply]:
        """One reply an ask, in their order; ``progress`` hears of each that came."""
        ...


class ModelAsker:
    """Asks a backend, each request once in the life of a journal.

    Args:
        backend: What generates.
        journal: Keeps its answers.
    """

    made_by: Literal["model", "factory"] = "model"

    def __init__(self, backend: Backend, journal: Journal) -> None:
        self._backend = JournaledBackend(backend, journal, TEMPLATE)
        self.identity = backend.identity

    def ask(self, asks: Sequence[Ask], progress: Callable[[int], object] | None = None) -> list[Reply]:
        """See :class:`Asker`."""
        prompts = [ask.prompt for ask in asks]
        keys = [request_id(self.identity, ask) for ask in asks]
        replies = [Reply(key, None) for key in keys]

        def arrived(index: int, answer: Generated) -> None:
            replies[index] = Reply(
                keys[index], answer.text, answer.finish_reason == "length",
                prompt_tokens=answer.prompt_tokens or 0, completion_tokens=answer.completion_tokens or 0,
            )  # fmt: skip
            if progress is not None:
                progress(1)

        try:
            self._backend.generate(prompts, [ask.sampling for ask in asks], arrived)
        except Unanswered as error:
            for failure in error.failures:
                replies[failure.index] = Reply(
                    keys[failure.index], None, reason=failure.reason, attempts=failure.attempts
                )
        return replies


class FactoryAsker:
    """Answers from the seeds themselves, by rules: no network, no model, and every row says so.

    Questions are reworded by :mod:`.rephrasing`; solutions are the seed's own, told again; a backward question is
    answered by trying the masked number. What it cannot do (a seed without a solution) is a failure, not an invention.
    """

    made_by: Literal["model", "factory"] = "factory"
    identity = f"factory:rules-{VERSION}"

    def ask(self, asks: Sequence[Ask], progress: Callable[[int], object] | None = None) -> list[Reply]:
        """See :class:`Asker`."""
        replies = []
        for ask in asks:
            key, text = request_id(self.identity, ask), self._text(ask)
            replies.append(Reply(key, text) if text else Reply(key, None, reason="the seed has no worked solution"))
            if progress is not None:
                progress(1)
        return replies

    def _text(self, ask: Ask) -> str:
        sample = ask.sampling.sample
        if ask.step == "rephrase":
            text = rephrase(ask.question, zlib.crc32(ask.seed.id.encode()) + 5 * sample)
            return re.sub(r"\n\s*\n", "\n", text)  # one paragraph, as the prompt asks
        if ask.step == "statement":
            if ask.question.endswith("?"):
                return f'The answer to the question "{ask.question}" is {ask.answer}.'
            return f'The task "{ask.question}" has the answer {ask.answer}.'
        solution = self._solution(ask.seed, sample)
        if not solution or ask.masked is None:
            return solution
        unknown, value = ask.masked.unknown, ask.masked.value
        return (
            f"Try {unknown} = {value} and solve the problem with it.\n{solution}\nThat is the outcome that was given.\n"
            f"The value of {unknown} is: {value}"
        )

    def _solution(self, seed: Seed, sample: int) -> str:
        """Telling 0 is a factory's second wording; retellings follow."""
        tellings = seed.tellings[1:]
        if sample < len(tellings):
            return tellings[sample]
        solution = seed.tellings[0] if seed.tellings else seed.solution
        if not solution:
            return ""
        body = solution.removesuffix(f"\nThe answer is: {seed.answer}")
        return f"{retell(body, sample - len(tellings))}\nThe answer is: {seed.answer}"


def request_id(backend: str, ask: Ask) -> str:
    """Identity of a request: model, prompt, sampling, version of the prompts."""
    return identity(backend, ask.prompt, ask.sampling, TEMPLATE)


def sampling_of(
    step: Step, sample: int, *, temperature: float, top_p: float, max_new_tokens: int, seed: int
) -> Sampling:
    """How a step is drawn: statements by the likeliest words, all else with the temperature."""
    if step == "statement":
        return Sampling(min(max_new_tokens, 128), 0.0, 1.0, seed, STOPS[step], sample)
    return Sampling(max_new_tokens, temperature, top_p, seed, STOPS[step], sample)
