"""The journal: answers survive a kill at any byte, and no request is asked twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import depthup
from depthup.errors import DataError, DepthupError, OutputError
from depthup.generation.backend import Generated, Sampling, Unanswered
from depthup.generation.journal import Journal, JournaledBackend
from depthup.generation.mock import MockBackend
from depthup.generation.requests import identity


def echo() -> MockBackend:
    return MockBackend(lambda prompt, how: f"<{prompt}/{how.stream}>")


def test_a_rerun_asks_only_what_is_missing(tmp_path: Path) -> None:
    prompts = ["a", "b", "ü\n\u2028", "a"]
    with Journal(tmp_path / "new" / "answers.jsonl") as journal:
        first = echo()
        heard: list[int] = []
        texts = JournaledBackend(first, journal).generate(prompts, Sampling(), lambda index, _: heard.append(index))
        assert len(first.asked) == 3 and sorted(heard) == [0, 1, 2, 3]  # "a" is asked once
    with Journal(tmp_path / "new" / "answers.jsonl") as journal:
        second, answers = echo(), list[Generated]()
        backend = JournaledBackend(second, journal)
        assert backend.generate(prompts, Sampling(), lambda _, answer: answers.append(answer)) == texts
        assert not second.asked and {answer.model for answer in answers} == {"mock"}
        backend.generate([*prompts, "c"], Sampling())
        backend.generate(["a"], Sampling(seed=1))
        backend.generate(["a"], Sampling(sample=1))
        JournaledBackend(second, journal, template="v2").generate(["a"], Sampling())
        assert [prompt for prompt, _ in second.asked] == ["c", "a", "a", "a"]


def test_an_identity_depends_on_everything_that_changes_the_answer() -> None:
    chat = [{"role": "user", "content": "a"}]
    keys = [
        identity("m", "a", Sampling()), identity("n", "a", Sampling()), identity("m", "b", Sampling()),
        identity("m", "a", Sampling(seed=1)), identity("m", "a", Sampling(sample=1)), identity("m", chat, Sampling()),
        identity("m", "a", Sampling(stop=("x",))), identity("m", "a", Sampling(), "v1"),
        identity("m", "a", Sampling(max_new_tokens=5)), identity("m", "a", Sampling(temperature=0.1)),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys) and keys[0] == identity("m", "a", Sampling())


def test_a_line_torn_at_any_byte_is_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path) as journal:
        for name in "ab":
            journal.put(name, Generated(f"text of {name}", "stop", 3, 4))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in {first, first + 1, *range(first, len(whole), 23), len(whole) - 1}:
        path.write_bytes(whole[:end])
        with Journal(path) as journal:
            assert "a" in journal and "b" not in journal
            journal.put("b", Generated("again", "stop"))
        with Journal(path) as journal:
            assert journal.get("a").text == "text of a" and journal.get("b").text == "again" and len(journal) == 2
    path.write_bytes(b'{"id": "a"}\n' + whole)
    with pytest.raises(DataError, match="line 1 is not an answer"):
        Journal(path)


KILLED = """
import sys
from depthup.generation.backend import Sampling
from depthup.generation.journal import Journal, JournaledBackend
from depthup.generation.mock import MockBackend
with Journal(sys.argv[1]) as journal:
    backend = JournaledBackend(MockBackend(lambda prompt, how: prompt * 3000), journal)
    for number in range(10**6):
        backend.generate([f"{number}-"], Sampling())
"""


def test_a_killed_writer_loses_no_whole_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(Path(depthup.__file__).parents[1])}
    for seconds in (0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=environment)
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size == size:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(seconds)
        with pytest.raises(OutputError, match="another process writes"):
            Journal(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Journal(path) as journal:
            for number in range(len(journal)):  # all that were asked, none in between is missing
                key = identity("mock", f"{number}-", Sampling())
                assert journal.get(key).text == f"{number}-" * 3000
            assert path.read_bytes().count(b"\n") == len(journal) > 0


def test_threads_ask_for_one_thing_once(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def slowly(prompt: object, how: Sampling) -> str:
        asked[str(prompt)] += 1
        time.sleep(0.002)
        return f"<{prompt}>"

    results: list[list[str]] = []
    with Journal(tmp_path / "answers.jsonl") as journal:
        prompts = [str(i) for i in range(30)]

        def work(turn: int) -> None:
            mine = prompts[turn:] + prompts[:turn]
            texts = JournaledBackend(MockBackend(slowly), journal).generate(mine, Sampling())
            results.append([texts[mine.index(prompt)] for prompt in prompts])

        threads = [threading.Thread(target=work, args=(turn * 5,)) for turn in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(asked.values()) == {1} and len(asked) == 30
    assert results == [[f"<{prompt}>" for prompt in prompts]] * 6


def test_failures_are_told_by_their_places_and_asked_again(tmp_path: Path) -> None:
    good = dict.fromkeys("abc", "yes")
    with Journal(tmp_path / "answers.jsonl") as journal:
        with pytest.raises(Unanswered) as caught:
            JournaledBackend(MockBackend(good), journal).generate(["a", "x", "b", "x"], Sampling())
        assert [failure.index for failure in caught.value.failures] == [1, 3] and len(journal) == 2
        second = MockBackend({**good, "x": "now"})
        assert JournaledBackend(second, journal).generate(["a", "x", "b", "x"], Sampling()) == [
            "yes",
            "now",
            "yes",
            "now",
        ]
        assert len(second.asked) == 1


def test_a_journal_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "answers.jsonl"):
        with pytest.raises(DepthupError, match="cannot write"):
            Journal(path)
