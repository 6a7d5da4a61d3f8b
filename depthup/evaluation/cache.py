"""Answers that are kept, so that nothing is asked twice: a suite goes on where it stopped, and models are never mixed.

A file belongs to one identity (weights, tokenizer, type of the weights, versions of the code); a key is the hash of the
whole request, prompt and all. A change of data, shots, template or profile changes prompts, so it changes keys.
(The harness's own caches are keyed by task names or by nothing of the model: EleutherAI/lm-evaluation-harness, pull
request 4123 and issue 2715.)
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import DepthupError
from .requests import Answer, Request, Scorer

_COMMIT_SECONDS = 2.0  # at most so much work is lost when a run is killed


class Answers:
    """The answers of one model on disk; a context manager.

    Args:
        folder: Holds one file for each identity; it is made.
        identity: Everything that an answer depends on besides its request. Small enough for a line of JSON.

    Raises:
        DepthupError: The file of this identity is broken, belongs to another, or cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True)
        self.path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.sqlite"
        self._unsaved = time.monotonic()
        self._new: dict[bytes, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=60)
            self._file.execute("CREATE TABLE IF NOT EXISTS identity (text TEXT PRIMARY KEY)")
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, answer TEXT NOT NULL)")
            self._file.execute("INSERT OR IGNORE INTO identity VALUES (?)", (text,))
            self._file.commit()
            os.utime(self.path)  # `depthup gc` keeps what was used of late
            found = [row[0] for row in self._file.execute("SELECT text FROM identity")]
        except (sqlite3.Error, OSError) as error:
            raise _unusable(self.path, str(error)) from error
        if found != [text]:
            raise _unusable(self.path, "it belongs to another model")

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        self._file.close()

    def get(self, request: Request) -> Answer | None:
        """The answer to a request, None if it is not known."""
        key = _key(request)
        if key in self._new:
            return _restored(json.loads(self._new[key]))
        row = self._file.execute("SELECT answer FROM answers WHERE request = ?", (key,)).fetchone()
        return None if row is None else _restored(json.loads(row[0]))

    def put(self, request: Request, answer: Answer) -> None:
        """Keep an answer; it is on the disk seconds later, or when the file is closed.

        Raises:
            DepthupError: It cannot be written.
        """
        try:
            self._new[_key(request)] = json.dumps(answer, allow_nan=True)
            if time.monotonic() - self._unsaved > _COMMIT_SECONDS:
                self._write()
        except sqlite3.Error as error:
            raise _unusable(self.path, str(error)) from error

    def _write(self) -> None:
        """Put what is new on the disk at once: no transaction stays open, so another stage can write beside this."""
        self._file.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", self._new.items())
        self._file.commit()
        self._new.clear()
        self._unsaved = time.monotonic()


class RememberingScorer:
    """A scorer that asks another one only what is not known yet, each thing once.

    Args:
        answers: What is known.
        make: Makes the scorer that is asked; called only if there is something to ask, so that a run whose answers
            are all known loads no model.
    """

    def __init__(self, answers: Answers, make: Callable[[], Scorer]) -> None:
        self._answers, self._make = answers, make
        self._scorer: Scorer | None = None
        self.num_asked = self.num_known = 0

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """One answer a request, in their order; see :class:`depthup.evaluation.requests.Scorer`."""
        places: dict[Request, list[int]] = {}
        for index, request in enumerate(requests):
            places.setdefault(request, []).append(index)
        found: list[Answer] = [None] * len(requests)

        def spread(request: Request, answer: Answer) -> None:
            for index in places[request]:
                found[index] = answer
                if done is not None:
                    done(index, answer)

        unknown = []
        for request in places:
            known = self._answers.get(request)
            if known is None:
                unknown.append(request)
            else:
                self.num_known += 1
                spread(request, known)

        def keep(index: int, answer: Answer) -> None:
            self._answers.put(unknown[index], answer)
            spread(unknown[index], answer)

        if unknown:
            self._scorer = self._scorer or self._make()
            self.num_asked += len(unknown)
            self._scorer.answer(unknown, keep)
        return found


def _key(request: Request) -> bytes:
    text = json.dumps([type(request).__name__, *astuple(request)], ensure_ascii=True)
    return hashlib.sha256(text.encode()).digest()


def _restored(answer: Answer) -> Answer:
    return tuple(answer) if isinstance(answer, list) else answer


def _unusable(path: Path, reason: str) -> DepthupError:
    return DepthupError(
        f"the file of known answers {path} cannot be used: {reason}",
        next_step="delete it (answers are computed again), or give another folder with --cache",
    )
