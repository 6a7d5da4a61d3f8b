"""A model through a suite: prompts are built, what is not known yet is asked, answers become scores."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import RecipeError
from ..models import load_tokenizer, resolve_device
from .cache import Answers, RememberingScorer
from .harness import ChatTemplate, prepare, template_of
from .prepared import PreparedTask
from .requests import Answer, Completion, Request, Scorer
from .scorer import load_scorer
from .scores import ModelScores, Sample, TaskScores
from .sources import HubItems, LocalItems, digest
from .suites import Suite
from .texts import PROFILE, prepare_texts

ANSWERS_VERSION = 1  # raised when the same request to the same model gives another answer than before


@dataclass(frozen=True)
class Questions:
    """What models are asked.

    Attributes:
        asked: A suite, its name, or names of tasks; empty for ``texts`` alone.
        profile: ``harness-0.4`` or ``leaderboard-v1``.
        data_dir: Folder of benchmark items; None for the hub.
        limit: The first so many items of each task.
        sample: So many items of each task, drawn.
        seed: Of the draw.
        chat_template: Put prompts into the model's chat template.
        fewshot_as_multiturn: Examples become turns of their own under a chat template.
        texts: Files of held-out text, scored in bits per byte.
    """

    asked: str | Suite | Sequence[str] = "h6"
    profile: str = "harness-0.4"
    data_dir: Path | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    chat_template: bool = False
    fewshot_as_multiturn: bool = True
    texts: tuple[str, ...] = ()

    @property
    def suite(self) -> str:
        """Name of the suite, for tables."""
        if not self.asked:
            return PROFILE
        if isinstance(self.asked, Suite):
            return self.asked.name
        return self.asked if isinstance(self.asked, str) else ",".join(self.asked)

    def settings(self) -> dict[str, Any]:
        """What else changes a score: stated with it."""
        return {
            "limit": self.limit, "sample": self.sample, "seed": self.seed,
            "apply_chat_template": self.chat_template,
            "fewshot_as_multiturn": self.fewshot_as_multiturn if self.chat_template else None,
        }  # fmt: skip

    def prepare(self, template: ChatTemplate | None = None) -> list[PreparedTask]:
        """The tasks, ready to be asked; see :func:`depthup.evaluation.harness.prepare`."""
        tasks: list[PreparedTask] = []
        if self.asked:
            source = LocalItems(self.data_dir) if self.data_dir else HubItems()
            tasks += prepare(
                self.asked, self.profile, source, limit=self.limit, seed=self.seed, sample=self.sample,
                chat_template=template, fewshot_as_multiturn=self.fewshot_as_multiturn,
            )  # fmt: skip
        if self.texts:
            tasks.append(prepare_texts(self.texts, sample=self.sample or self.limit, seed=self.seed))
        names = [task.name for task in tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(
                f"{', '.join(twice)} would be there twice",
                allowed="a task once, by itself or in one group; a text with a file name that is no task's",
                next_step="leave one out, or rename the file of the text",
            )
        return tasks


@dataclass(frozen=True)
class Place:
    """Where and how a model computes: ``device`` or several ``devices``, type of the weights, size of a pass."""

    device: str = "auto"
    dtype: str = "float32"
    devices: tuple[str, ...] = ()
    max_length: int | None = None
    batch_tokens: int | None = None
    progress: bool = False

    def identity(self) -> dict[str, Any]:
        """What of it changes an answer, if only in the last digits."""
        kind = resolve_device(self.devices[0] if self.devices else self.device).partition(":")[0]
        return {"dtype": self.dtype, "device": kind, "max_length": self.max_length}


@dataclass
class Reader:
    """Evaluates models on the same questions; prompts are built once where they do not depend on the model.

    Attributes:
        questions: What is asked.
        place: Where the models compute.
        cache: Folder of known answers; None to keep none.
        generator: Answers the requests for text in place of the model itself, a server for example; its name.
        report: Hears of each task as it begins: its name and number of requests.
    """

    questions: Questions
    place: Place = Place()
    cache: Path | None = None
    generator: tuple[str, Scorer] | None = None
    report: Callable[[str, int], None] = lambda task, num_requests: None
    _prepared: list[PreparedTask] = field(default_factory=list)

    def read(self, name: str, folder: Path, fingerprint: str) -> tuple[ModelScores, tuple[Sample, ...]]:
        """The scores of one model, and every item as it saw it.

        Args:
            name: What the model is called.
            folder: Its checkpoint.
            fingerprint: Identity of the checkpoint's files.

        Raises:
            DepthupError: Bad questions, bad data, or a model that cannot be loaded.
        """
        started = time.perf_counter()
        tasks, template = self._tasks(folder)
        found: list[TaskScores] = []
        samples: list[Sample] = []
        for task, answers in self._answered(tasks, folder, fingerprint):
            of_task, items = task.score(answers)
            found.append(of_task)
            samples += items
        settings = {
            **self.questions.settings(),
            **self.place.identity(),
            "chat_template": template,
            "data": _data(tasks),
        }
        if self.generator is not None:
            settings["generator"] = self.generator[0]
        profile = self.questions.profile if self.questions.asked else PROFILE
        scores = ModelScores(
            name, fingerprint, self.questions.suite, profile, tuple(found), settings, versions(),
            time.perf_counter() - started,
        )  # fmt: skip
        return scores, tuple(samples)

    def _tasks(self, folder: Path) -> tuple[list[PreparedTask], str | None]:
        """The tasks for a model, and the chat template that they were put into."""
        if not self.questions.chat_template:
            self._prepared = self._prepared or self.questions.prepare()
            return self._prepared, None
        tokenizer = load_tokenizer(folder)
        return self.questions.prepare(template_of(tokenizer)), str(tokenizer.chat_template)

    def _answered(
        self, tasks: Sequence[PreparedTask], folder: Path, fingerprint: str
    ) -> Iterator[tuple[PreparedTask, list[Answer]]]:
        def make() -> Scorer:
            return load_scorer(
                folder, device=self.place.device, dtype=self.place.dtype, devices=self.place.devices,
                max_length=self.place.max_length, batch_tokens=self.place.batch_tokens, progress=self.place.progress,
            )  # fmt: skip

        generator = self.generator[1] if self.generator else None
        local = _Lazy(make)
        composed = Divided(local, generator) if generator else local
        try:
            yield from self._asked(tasks, composed, fingerprint)
        finally:
            local.close()

    def _asked(
        self, tasks: Sequence[PreparedTask], composed: Scorer, fingerprint: str
    ) -> Iterator[tuple[PreparedTask, list[Answer]]]:
        if self.cache is None:
            for task in tasks:
                self.report(task.name, len(task.requests))
                yield task, composed.answer(task.requests)
            return
        identity = {
            "checkpoint": fingerprint, "answers": ANSWERS_VERSION, **self.place.identity(),
            "generator": self.generator[0] if self.generator else None,
            **{key: value for key, value in versions().items() if key in ("torch", "transformers")},
        }  # fmt: skip
        with Answers(self.cache, identity) as answers:
            scorer = RememberingScorer(answers, lambda: composed)
            for task in tasks:
                self.report(task.name, len(task.requests))
                yield task, scorer.answer(task.requests)


class Divided:
    """Text is asked of one scorer, all else of another."""

    def __init__(self, likelihoods: Scorer, texts: Scorer) -> None:
        self._likelihoods, self._texts = likelihoods, texts

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """See :class:`depthup.evaluation.requests.Scorer`."""
        answers: list[Answer] = [None] * len(requests)
        for scorer, wanted in ((self._likelihoods, False), (self._texts, True)):
            indices = [index for index, one in enumerate(requests) if isinstance(one, Completion) is wanted]
            if not indices:
                continue

            def tell(at: int, answer: Answer, indices: list[int] = indices) -> None:
                answers[indices[at]] = answer
                if done is not None:
                    done(indices[at], answer)

            scorer.answer([requests[index] for index in indices], tell)
        return answers


class _Lazy:
    """A scorer that is made when something is asked."""

    def __init__(self, make: Callable[[], Scorer]) -> None:
        self._make = make
        self._scorer: Scorer | None = None

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        self._scorer = self._scorer or self._make()
        return self._scorer.answer(requests, done)

    def close(self) -> None:
        """End the processes of a scorer that has such, so that the next model finds their memory free."""
        close = getattr(self._scorer, "close", None)  # only a scorer with processes of its own has something to end
        if close is not None:
            close()
        self._scorer = None


def _data(tasks: Sequence[PreparedTask]) -> str:
    """A fingerprint of the rows, wherever they came from: scores on other rows are not compared."""
    rows = {task.name: {key: value for key, value in task.identity.items() if key != "source"} for task in tasks}
    return digest(rows)[:16]


def versions() -> dict[str, str]:
    """Of everything that a score depends on."""
    found = {"depthup": __version__}
    for key, package in (("lm_eval", "lm-eval"), ("transformers", "transformers"), ("torch", "torch")):
        try:
            found[key] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
