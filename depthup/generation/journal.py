"""Answers kept by the identity of their request, in one append-only file: a rerun asks only what is missing."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import DataError, OutputError
from .backend import Backend, Done, Failure, Generated, Prompt, Sampling, Unanswered, each_sampling
from .requests import identity

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two writers of one file are then not told apart
    fcntl = None  # type: ignore[assignment]


class Journal:
    """A JSONL file of answers, one writer at a time; each line is whole, or is dropped when the file is opened again.

    Only places are kept in memory; texts are read back from the file.

    Args:
        path: The file; made where it does not exist.

    Raises:
        OutputError: It cannot be written, or another process writes it.
        DataError: A line before the last is not an answer.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}", next_step="name another file") from error
        self._places: dict[str, tuple[int, int]] = {}  # identity -> (offset, number of bytes)
        self._changed = threading.Condition()
        self._asking: set[str] = set()
        try:
            self._lock()
            self._end = self._read()
            os.ftruncate(self._file, self._end)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Put all on disk and let others write."""
        os.fsync(self._file)
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Generated:
        """The answer of an identity that is in it."""
        offset, num_bytes = self._places[key]
        fields = json.loads(os.pread(self._file, num_bytes, offset))
        fields.pop("id")
        return Generated(**fields)

    def put(self, key: str, answer: Generated) -> None:
        """Add an answer; the first of an identity stays.

        Raises:
            OutputError: The disk is full.
        """
        line = json.dumps({"id": key, **asdict(answer)}, ensure_ascii=True).encode() + b"\n"
        with self._changed:
            if key in self._places:
                return
            try:
                num_written = os.write(self._file, line)
                if num_written < len(line):
                    raise OSError(28, "the disk is full")
            except OSError as error:
                os.ftruncate(self._file, self._end)
                raise OutputError(
                    f"cannot write {self.path}: {error.strerror}", next_step="make room, and run again"
                ) from error
            self._places[key] = (self._end, len(line) - 1)
            self._end += len(line)

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Those of the identities that this thread has to ask: no one has the answer, and no one is asking."""
        with self._changed:
            mine = [key for key in dict.fromkeys(keys) if key not in self._places and key not in self._asking]
            self._asking.update(mine)
            return mine

    def release(self, keys: Sequence[str]) -> None:
        """Asking for these has ended, with an answer or without."""
        with self._changed:
            self._asking.difference_update(keys)
            self._changed.notify_all()

    def wait_for(self, keys: Sequence[str]) -> None:
        """Until no other thread asks for any of these."""
        with self._changed:
            self._changed.wait_for(lambda: self._asking.isdisjoint(keys))

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"another process writes {self.path}", next_step="wait for it, or name another file"
            ) from error

    def _read(self) -> int:
        """Find the answers; bytes of whole lines."""
        end = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # a writer was killed in the middle of it
                try:
                    fields = json.loads(line)
                    Generated(**{name: value for name, value in fields.items() if name != "id"})
                    self._places.setdefault(fields["id"], (end, len(line) - 1))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise DataError(
                        f"{self.path}, line {number} is not an answer",
                        next_step="remove that line, or name another file",
                    ) from error
                end += len(line)
        return end


class JournaledBackend:
    """A backend that asks another only for what a journal has no answer to; equal requests are asked once.

    Args:
        backend: The one to ask.
        journal: Its answers.
        template: Version of what makes the prompts; see :func:`.requests.identity`.
    """

    def __init__(self, backend: Backend, journal: Journal, template: str = "") -> None:
        self._backend, self._journal, self._template = backend, journal, template
        self.identity = backend.identity

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling], done: Done | None = None
    ) -> list[str]:
        """See :class:`.backend.Backend`; each answer is in the journal before ``done`` hears of it."""
        each = each_sampling(sampling, len(prompts))
        places: dict[str, list[int]] = {}
        for index, (prompt, how) in enumerate(zip(prompts, each, strict=True)):
            places.setdefault(identity(self.identity, prompt, how, self._template), []).append(index)
        texts = [""] * len(prompts)

        def arrived(key: str, answer: Generated) -> None:
            for index in places[key]:
                texts[index] = answer.text
                if done is not None:
                    done(index, answer)

        failures: list[Failure] = []
        left = list(places)
        while left:
            known = {key for key in left if key in self._journal}
            for key in known:
                arrived(key, self._journal.get(key))
            left = [key for key in left if key not in known]
            mine = self._journal.claim(left)
            if mine:
                asks = [(prompts[places[key][0]], each[places[key][0]]) for key in mine]
                failed = self._ask(mine, asks, arrived)
                failures += [
                    Failure(index, failure.reason, failure.attempts)
                    for failure in failed
                    for index in places[mine[failure.index]]
                ]
                left = [key for key in left if key not in set(mine)]
            else:
                self._journal.wait_for(left)
        if failures:
            raise Unanswered(failures, len(prompts), "run again: only these are asked")
        return texts

    def _ask(
        self, keys: list[str], asks: list[tuple[Prompt, Sampling]], arrived: Callable[[str, Generated], None]
    ) -> Sequence[Failure]:
        """Ask for what this thread has claimed; what failed for good."""
        heard: set[int] = set()

        def keep(index: int, answer: Generated) -> None:
            heard.add(index)
            self._journal.put(keys[index], answer)
            arrived(keys[index], answer)

        try:
            texts = self._backend.generate([prompt for prompt, _ in asks], [how for _, how in asks], keep)
            for index in set(range(len(keys))) - heard:  # a backend that tells nothing on the way
                keep(index, Generated(texts[index], ""))
            return ()
        except Unanswered as error:
            return error.failures
        finally:
            self._journal.release(keys)
