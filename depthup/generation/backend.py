"""What generates text: anything with this one method; and the values that go in and come out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import DepthupError, nearest, shown

if TYPE_CHECKING:
    from .limits import Budget, Limits

ENTRY_POINTS = "depthup.backends"

Prompt = (
    str | Sequence[Mapping[str, str]]
)  # a text to continue, or the messages of a chat: {"role": ..., "content": ...}


@dataclass(frozen=True)
class Sampling:
    """How text is drawn.

    Attributes:
        max_new_tokens: Most tokens to add.
        temperature: 0 takes the likeliest token each time.
        top_p: Share of probability to draw from (nucleus sampling, arXiv:1904.09751).
        seed: Start of the random numbers.
        stop: The text ends before the first of these.
        sample: Which of several texts for one prompt: other random numbers under the same seed.

    Raises:
        DepthupError: A value is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    sample: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature < 1e3 or not 0 < self.top_p <= 1:
            raise DepthupError(
                f"cannot draw {self.max_new_tokens} tokens with temperature {self.temperature} and top_p {self.top_p}",
                allowed="at least 1 token, temperature from 0 up, 0 < top_p <= 1",
            )
        if isinstance(self.stop, str) or "" in self.stop or self.sample < 0:
            raise DepthupError(
                f"cannot draw sample {self.sample} up to one of {self.stop!r}",
                allowed="a tuple of stop strings of a character or more; samples count from 0",
            )

    @property
    def stream(self) -> int:
        """Seed of this sample's own random numbers, below 2^31: the seed itself for the first sample."""
        if self.sample == 0:
            return self.seed
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{self.sample}".encode()).digest()[:4]) >> 1


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        text: The continuation without the prompt, up to the first stop string.
        finish_reason: ``stop`` (it ended of itself or at a stop string), ``length``, or what a server said.
        prompt_tokens: Tokens read; None where a server does not tell.
        completion_tokens: Tokens made; None where a server does not tell.
        model: Name of the model that a server says it was.
        seconds: From asking to the answer, waiting and trying again left out; circumstance.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A prompt that has no answer, for good.

    Attributes:
        index: Of the prompt in the call.
        reason: In words.
        attempts: How often it was asked.
    """

    index: int
    reason: str
    attempts: int


class Unanswered(DepthupError):
    """Some prompts have no answer; all others were given to ``done`` before this was raised.

    Attributes:
        failures: Those without, by index.
    """

    def __init__(self, failures: Sequence[Failure], num_prompts: int, next_step: str) -> None:
        self.failures = tuple(sorted(failures, key=lambda failure: failure.index))
        first = self.failures[0]
        super().__init__(
            f"{len(failures)} of {num_prompts} prompts have no answer; the first, number {first.index}: {first.reason}",
            next_step=next_step,
        )


Done = Callable[[int, Generated], None]


class Backend(Protocol):
    """A source of continuations.

    Attributes:
        identity: Which model this is, in words that do not change from run to run: part of a request's identity.
    """

    identity: str

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling], done: Done | None = None
    ) -> list[str]:
        """The continuation of each prompt, without the prompt.

        Args:
            prompts: Texts, or chats where the backend has a chat template.
            sampling: One for all, or one a prompt.
            done: Called with the index and answer of each as soon as it is known, in any order, from one thread.

        Raises:
            Unanswered: Some have no answer; the others have been given to ``done``.
        """
        ...


def each_sampling(sampling: Sampling | Sequence[Sampling], num_prompts: int) -> list[Sampling]:
    """One Sampling a prompt.

    Raises:
        DepthupError: There are more or fewer than prompts.
    """
    each = [sampling] * num_prompts if isinstance(sampling, Sampling) else list(sampling)
    if len(each) != num_prompts:
        raise DepthupError(f"{len(each)} samplings for {num_prompts} prompts", allowed="one for all, or one a prompt")
    return each


def open_backend(
    spec: str, *, device: str = "auto", chat: bool = False, limits: Limits | None = None, budget: Budget | None = None
) -> Backend:
    """The backend that a short text names.

    Args:
        spec: ``local:FOLDER``, ``http://host:8000/v1`` or ``https://...`` with ``#MODEL`` where the server has
            several, ``mock:echo`` (see :mod:`.mock`), or ``NAME:REST`` of an installed entry point of the group
            ``depthup.backends``, which is called with ``REST``.
        device: Of a local model.
        chat: Put plain prompts into the chat template of a local model or a server, as the user's message.
        limits: How fast, how long and how often a server is asked.
        budget: Prices of a server, and where to stop.

    Raises:
        DepthupError: Nothing has that name; its package is missing; the model does not load.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("http", "https"):
        from .server import ServerBackend

        url, _, model = spec.partition("#")
        return ServerBackend(url, model or None, chat=chat, limits=limits, budget=budget)
    if kind == "local":
        from ..models import load_model, load_tokenizer, resolve_device
        from .local import LocalBackend

        if not Path(rest).is_dir():
            raise DepthupError(f"there is no folder '{rest}'", next_step="name a checkpoint folder: local:FOLDER")
        model = load_model(rest, resolve_device(device))
        return LocalBackend(model, load_tokenizer(rest), chat, identity=f"local:{os.path.abspath(rest)}")
    if kind == "mock":
        from .mock import MockBackend

        return MockBackend.named(rest)
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if kind not in found:
        names = ["local", "http", "https", "mock", *sorted(found)]
        raise DepthupError(
            f"no backend is called '{shown(kind)}'{nearest(kind, names)}",
            allowed=f"local:FOLDER, http://HOST:PORT/v1#MODEL, mock:echo{''.join(f', {name}:...' for name in found)}",
            next_step=f"a package can add one: an entry point of the group {ENTRY_POINTS}",
        )
    return _from_entry_point(found[kind], rest)


def _from_entry_point(entry: importlib.metadata.EntryPoint, rest: str) -> Backend:
    try:
        backend: Backend = entry.load()(rest)
    except DepthupError:
        raise
    except Exception as error:  # code of others: whatever it raises, the user has to know which package it was
        raise DepthupError(
            f"the backend '{entry.name}' ({entry.value}) does not open '{shown(rest)}':"
            f" {type(error).__name__}: {shown(str(error), 300)}",
            next_step="ask the authors of that package",
        ) from error
    if not callable(getattr(backend, "generate", None)) or not isinstance(getattr(backend, "identity", None), str):
        raise DepthupError(
            f"the backend '{entry.name}' ({entry.value}) has no method generate and text identity",
            next_step="see depthup.generation.backend.Backend",
        )
    return backend
