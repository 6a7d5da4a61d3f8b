"""A writer that knows the truth and errs where it is told to, for tests of everything behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from depthup.generation.backend import Done, Generated, Prompt, Sampling, each_sampling
from depthup.synthesis.asking import Ask, FactoryAsker
from depthup.synthesis.pipeline import synthesize
from depthup.synthesis.seeds import Seed
from depthup.synthesis.settings import Settings
from depthup.synthesis.verify import Verifier


class Planted(FactoryAsker):
    """The offline factory with faults at given places.

    Args:
        faults: (seed, step, sample) -> from the right text to the wrong one. The step ``answer*`` is a solution of a
            rewritten question.

    Attributes:
        table: All that it was asked: (prompt, seed of the random numbers) -> text.
        planted: Places where it erred.
    """

    def __init__(self, faults: Mapping[tuple[str, str, int], Callable[[str], str]] | None = None) -> None:
        self.faults = dict(faults or {})
        self.table: dict[tuple[str, int], str] = {}
        self.planted: list[tuple[str, str, int]] = []

    def _text(self, ask: Ask) -> str:
        text = super()._text(ask)
        rewritten = ask.step == "answer" and ask.question != ask.seed.question
        place = (ask.seed.id, f"{ask.step}{'*' if rewritten else ''}", ask.sampling.sample)
        if place in self.faults:
            text = self.faults[place](text)
            self.planted.append(place)
        self.table[ask.prompt, ask.sampling.stream] = text
        return text

    def backend(self) -> Table:
        """A backend that gives the same replies by their prompts."""
        return Table(self.table)


class Table:
    """A backend with one answer to each prompt and seed.

    Attributes:
        asked: All that was asked, in order.
        limit: Stop with :class:`Stop` in place of this answer, from 1.
    """

    identity = "table"

    def __init__(self, table: Mapping[tuple[str, int], str]) -> None:
        self.table, self.asked, self.limit = table, list[tuple[str, int]](), 0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling], done: Done | None = None
    ) -> list[str]:
        each = each_sampling(sampling, len(prompts))
        for index, (prompt, how) in enumerate(zip(prompts, each, strict=True)):
            if len(self.asked) + 1 == self.limit:
                raise Stop
            self.asked.append((str(prompt), how.stream))
            assert done is not None
            done(index, Generated(self.table[self.asked[-1]], "stop", 3, 4))
        return [self.table[str(prompt), how.stream] for prompt, how in zip(prompts, each, strict=True)]


class Stop(Exception):
    """What stops a run in these tests."""


def run(seeds: Sequence[Seed], backend: Any, out: Path, settings: Settings, **options: Any) -> dict[str, Any]:
    return synthesize(seeds, backend, out, settings, verifier=Verifier(symbolic=False), **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def files(folder: Path) -> dict[str, bytes]:
    """All that a run leaves besides the journal, whose order is that of arrival."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("journal")}
