"""Answers are kept by model and by the whole request; a killed run loses seconds; two models never mix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from depthup.errors import DepthupError
from depthup.evaluation.cache import Answers, RememberingScorer
from depthup.evaluation.requests import Completion, Continuation, Whole

REQUESTS = [
    Continuation("Q: 1 + 1\nA:", " 2"),
    Whole("A text."),
    Completion("Q: 2 + 2\nA:", ("\n", "Q:"), 16),
    Continuation("Q: 1 + 1\nA:", " 2"),  # the same once more
    Continuation("Q: 1 + 1\nA: ", "2"),  # another border
]


class Counting:
    """Answers from the request alone, and counts."""

    def __init__(self, limit: int = 1000) -> None:
        self.asked: list = []
        self.limit = limit

    def answer(self, requests, done=None):
        answers = []
        for index, request in enumerate(requests):
            if len(self.asked) == self.limit:
                raise KeyboardInterrupt
            self.asked.append(request)
            match request:
                case Continuation():
                    answer = (-float(len(request.context)) / 3, False)
                case Whole():
                    answer = -len(request.text) / 7
                case Completion():
                    answer = f" {request.max_new_tokens}ä"
            answers.append(answer)
            if done is not None:
                done(index, answer)
        return answers


def test_each_thing_is_asked_once_and_answers_return_exactly(tmp_path: Path) -> None:
    plain = Counting().answer(REQUESTS)
    inner = Counting()
    with Answers(tmp_path, {"model": "a"}) as answers:
        seen: dict = {}
        scorer = RememberingScorer(answers, lambda: inner)
        assert scorer.answer(REQUESTS, seen.__setitem__) == plain
        assert seen == dict(enumerate(plain))
        assert len(inner.asked) == 4 == scorer.num_asked
    with Answers(tmp_path, {"model": "a"}) as answers:
        again = RememberingScorer(answers, lambda: pytest.fail("the model is not loaded for what is known"))
        assert again.answer(REQUESTS) == plain
        assert type(again.answer(REQUESTS[:1])[0]) is tuple


def test_two_models_never_mix(tmp_path: Path) -> None:
    with Answers(tmp_path, {"model": "a"}) as first:
        RememberingScorer(first, Counting).answer(REQUESTS)
    for other in ({"model": "b"}, {"model": "a", "dtype": "bfloat16"}):
        with Answers(tmp_path, other) as answers:
            assert all(answers.get(request) is None for request in REQUESTS)
    with Answers(tmp_path, {"model": "b"}) as second:
        first.path.replace(second.path)  # what a careless copy would do
    with pytest.raises(DepthupError, match="belongs to another model"):
        Answers(tmp_path, {"model": "b"})


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    with Answers(tmp_path, {"model": "a"}) as answers, pytest.raises(KeyboardInterrupt):
        RememberingScorer(answers, lambda: Counting(limit=2)).answer(REQUESTS)
    rest = Counting()
    with Answers(tmp_path, {"model": "a"}) as answers:
        assert RememberingScorer(answers, lambda: rest).answer(REQUESTS) == Counting().answer(REQUESTS)
    assert len(rest.asked) == 2


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    with Answers(tmp_path, {"model": "a"}) as answers:
        path = answers.path
    path.write_bytes(b"no database, but long enough to be read as one" * 100)
    with pytest.raises(DepthupError, match="delete it"):
        Answers(tmp_path, {"model": "a"})


def test_a_killed_run_leaves_a_readable_file(tmp_path: Path) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        import depthup.evaluation.cache as cache
        from depthup.evaluation.requests import Whole
        cache._COMMIT_SECONDS = 0.0
        answers = cache.Answers(Path({str(tmp_path)!r}), {{"model": "a"}})
        for number in range(10**6):
            answers.put(Whole(str(number)), -float(number))
            if number == 50:
                print("50", flush=True)
    """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.readline()
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    with Answers(tmp_path, {"model": "a"}) as answers:
        assert [answers.get(Whole(str(number))) for number in range(50)] == [-float(number) for number in range(50)]
