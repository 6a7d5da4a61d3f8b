"""Whether two answers are the same: a ladder from cheap and exact to symbolic, each verdict with the rung that gave it.

1. both are numbers: compared exactly, as fractions, and this decides;
2. both have the same text form (:func:`depthup.synthesis.answers.text_form`);
3. math-verify, in processes with a wall clock: one that hangs is ended, and its pair counts as unequal.
   (Its own timeouts are alarms of the main thread; without them one hung sympy call would block a run for ever.)
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal

from ..errors import DepthupError
from .answers import exact_number, normalise, text_form

Method = Literal["exact", "text", "math-verify", "timeout", "failed"]
_START_SECONDS = 120.0  # loading sympy on a busy machine
_PLAIN = re.compile(r"-?[0-9]{1,100}(?:\.[0-9]{1,100})?")
_MAX_CHARS = 2000  # of an answer; longer ones are no answers


def shows_wrong(equal: bool, method: str) -> bool:
    """Whether a verdict proves an answer wrong: no comparison that broke off, nor one of letters alone, does so."""
    return not equal and method in ("exact", "math-verify")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer equals the gold one, and how that was found.

    Attributes:
        equal: The verdict.
        method: The rung that gave it; ``timeout`` and ``failed`` are math-verify without an outcome, hence unequal.
        gold: The gold answer as that rung read it.
        answer: The other one.
    """

    equal: bool
    method: Method
    gold: str
    answer: str


def quick_verdict(gold: str, answer: str) -> Verdict | None:
    """The first two rungs: exact numbers, then text forms; None where they do not decide."""
    if _PLAIN.fullmatch(gold) and _PLAIN.fullmatch(answer):  # most answers; the general way takes ten times as long
        values = Fraction(gold), Fraction(answer)
        return Verdict(values[0] == values[1], "exact", str(values[0]), str(values[1]))
    forms = normalise(gold), normalise(answer)
    numbers = exact_number(forms[0]), exact_number(forms[1])
    if numbers[0] is not None and numbers[1] is not None:
        return Verdict(numbers[0] == numbers[1], "exact", str(numbers[0]), str(numbers[1]))
    texts = text_form(forms[0]), text_form(forms[1])
    if texts[0] == texts[1]:
        return Verdict(bool(texts[0]), "text", texts[0], texts[1])
    if not texts[0] or not texts[1] or max(map(len, texts)) > _MAX_CHARS:
        return Verdict(False, "text", texts[0][:100], texts[1][:100])
    return None


class Verifier:
    """Compares answers; a context manager that ends its processes.

    Args:
        num_workers: Processes of math-verify; they start with the first pair that needs them.
        seconds: Wall clock of one comparison by math-verify.
        symbolic: False leaves math-verify out: what is neither the same number nor the same text is unequal.

    Raises:
        DepthupError: math-verify is not installed.
    """

    def __init__(self, num_workers: int = 2, seconds: float = 5.0, *, symbolic: bool = True) -> None:
        if symbolic and find_spec("math_verify") is None:
            raise DepthupError(
                "comparing answers needs the package math-verify", next_step="pip install 'depthup[synthesis]'"
            )
        self._num_workers, self._seconds, self._symbolic = num_workers, seconds, symbolic
        self._judges: list[_Judge] = []
        self._known: dict[tuple[str, str], Verdict] = {}

    @property
    def identity(self) -> str:
        """What its verdicts depend on: which rungs, the version of the last, and its clock."""
        if not self._symbolic:
            return "exact, text"
        from importlib.metadata import version  # slow to load

        return f"exact, text, math-verify {version('math-verify')} within {self._seconds:g} s"

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for judge in self._judges:
            judge.end()
        self._judges = []

    def verify(self, gold: str, answer: str) -> Verdict:
        """The verdict on one pair."""
        return self.verify_all([(gold, answer)])[0]

    def verify_all(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """One verdict a pair of gold and answer, in their order; equal pairs are compared once."""
        hard = []
        for pair in dict.fromkeys(pairs):
            if pair not in self._known:
                verdict = quick_verdict(*pair)
                if verdict is None and not self._symbolic:
                    verdict = Verdict(False, "text", text_form(normalise(pair[0])), text_form(normalise(pair[1])))
                if verdict is None:
                    hard.append(pair)
                else:
                    self._known[pair] = verdict
        self._judge(hard)
        found = [self._known[pair] for pair in pairs]
        if len(self._known) > 100_000:  # a run of any length in bounded memory
            self._known.clear()
        return found

    def _judge(self, pairs: Iterable[tuple[str, str]]) -> None:
        waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        for pair in pairs:
            waiting.put(pair)
        while len(self._judges) < min(self._num_workers, waiting.qsize()):
            self._judges.append(_Judge(self._seconds))

        failures: list[BaseException] = []

        def work(judge: _Judge) -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    pair = waiting.get_nowait()
                    try:
                        self._known[pair] = judge.compare(*pair)
                    except BaseException as error:  # raised again where the caller sees it
                        failures.append(error)
                        return

        threads = [threading.Thread(target=work, args=(judge,)) for judge in self._judges] if waiting.qsize() else []
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


class _Judge:
    """One process of math-verify, replaced when it does not answer in time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def compare(self, gold: str, answer: str) -> Verdict:
        if self._process is None:
            self._start()
        forms = normalise(gold), normalise(answer)
        line, late = self._exchange(json.dumps(forms), self._seconds)
        if line is None:
            self.end()
            return Verdict(False, "timeout" if late else "failed", forms[0], forms[1])
        equal, gold_form, answer_form, failure = json.loads(line)
        return Verdict(equal, "failed" if failure else "math-verify", gold_form or forms[0], answer_form or forms[1])

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        command = [sys.executable, "-P", str(Path(__file__).with_name("judge.py"))]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="utf-8", env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        line, _ = self._exchange(None, _START_SECONDS)
        if line is None:
            self.end()
            raise DepthupError(
                "the process that compares answers does not start",
                next_step=f"see what this prints: {' '.join(command)}",
            )

    def _exchange(self, message: str | None, seconds: float) -> tuple[str | None, bool]:
        """Send a line and read one; (None, True) when the clock ran out, (None, False) when the process died."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(seconds, stop)
        clock.daemon = True
        clock.start()
        try:
            if message is not None:
                process.stdin.write(message + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            clock.cancel()
        return (line, False) if line.endswith("\n") else (None, late.is_set())
