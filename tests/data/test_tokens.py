"""Token shards: the same bytes in one process or several, and after any number of interruptions."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import chats
import numpy as np
import pico
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import TEXTS, ByteEncoder

from depthup.data.chat import chat_encoder
from depthup.data.sources import Document
from depthup.data.tokens import open_tokens, sample, write_encoded, write_tokens
from depthup.errors import DataError


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    made = write_encoded(TEXTS, ByteEncoder(), folder)
    assert made.num_documents == 2940 and made.left_out == {"empty": 60}
    assert set(files(folder)) == {"tokens.bin", "targets.bin", "offsets.npy", "tokens.json"}
    return files(folder)


def test_documents_and_targets_come_back_as_they_were_encoded(tmp_path: Path) -> None:
    write_encoded(TEXTS, ByteEncoder(), tmp_path)
    made = open_tokens(tmp_path)
    kept = [text for text in TEXTS if text]
    for index in (0, 6, 7, 2939):
        part = slice(made.offsets[index], made.offsets[index + 1])
        assert bytes(made.tokens[part].astype(np.uint8)).decode() == kept[index]
        assert made.targets is not None and made.targets.dtype == bool
        assert (made.targets[part] == (made.tokens[part] % 2 == 1)).all()


@given(st.lists(st.integers(0, 3100), min_size=1, max_size=4), st.sampled_from([256, 512, 4096]))
@settings(max_examples=12, deadline=None)
def test_interrupted_runs_go_on_and_leave_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, whole: dict[str, bytes], stops: list[int], shard_items: int
) -> None:
    folder = tmp_path_factory.mktemp("stopped")

    def until(stop: int) -> Iterator[str]:
        yield from TEXTS[:stop]
        raise KeyboardInterrupt

    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            write_encoded(until(stop), ByteEncoder(), folder, shard_items=shard_items)
    done: list[int] = []
    write_encoded(TEXTS, ByteEncoder(), folder, done.append, shard_items=shard_items)
    assert files(folder) == whole
    assert sum(done) == len(TEXTS)
    assert done[0] >= max(0, max(stops) - 256 - shard_items) or done[0] == 256  # what was safe is not done again


def test_a_killed_run_goes_on_at_its_last_whole_shard(tmp_path: Path, whole: dict[str, bytes]) -> None:
    script = f"""
import sys, time, pathlib
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]!r}
from texts import TEXTS, ByteEncoder
from depthup.data.tokens import write_encoded
def slow():
    for text in TEXTS:
        time.sleep(0.001)
        yield text
write_encoded(slow(), ByteEncoder(), pathlib.Path(sys.argv[1]), shard_items=256)
"""
    for num_items in (256, 1024):
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None:
            if (journal := tmp_path / "journal.json").exists() and f'"num_items": {num_items},' in journal.read_text():
                break
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    done: list[int] = []
    write_encoded(TEXTS, ByteEncoder(), tmp_path, done.append, shard_items=256)
    assert done[0] >= 1024
    assert files(tmp_path) == whole


def test_a_run_is_not_continued_with_other_data(tmp_path: Path) -> None:
    def stopped() -> Iterator[str]:
        yield from TEXTS[:1000]
        raise KeyboardInterrupt

    for other in ([f"other {text}" for text in TEXTS], TEXTS[:100]):
        with pytest.raises(KeyboardInterrupt):
            write_encoded(stopped(), ByteEncoder(), tmp_path, shard_items=256)
        with pytest.raises(DataError, match=r"are not those that .* was begun with"):
            write_encoded(other, ByteEncoder(), tmp_path)


def test_two_processes_leave_the_same_bytes(tmp_path: Path) -> None:
    tokenizer = chats.byte_tokenizer(tmp_path)
    talks = [chats.talk(f"Question {i}?", f"Answer {i} " * (i % 7)) for i in range(700)]
    folders = [tmp_path / "one", tmp_path / "two"]
    for num_workers, folder in enumerate(folders, 1):
        folder.mkdir()
        write_encoded(
            talks, chat_encoder(tokenizer, "solar"), folder, num_workers=num_workers, max_left_out=0.2, shard_items=256
        )
    assert files(folders[0]) == files(folders[1])
    assert open_tokens(folders[0]).left_out == {"no answer": 100}


def test_errors_of_workers_are_raised_here(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="encode"):
        write_encoded([1, 2], ByteEncoder(), tmp_path, num_workers=2)  # type: ignore[list-item]


@pytest.mark.parametrize("max_tokens", [1, 100, 5000, 10**9])
def test_a_budget_ends_with_the_document_that_reaches_it_and_reads_little_beyond(
    tmp_path: Path, max_tokens: int
) -> None:
    num_read = 0

    def reading() -> Iterator[str]:
        nonlocal num_read
        for text in TEXTS:
            num_read += 1
            yield text

    made = write_encoded(reading(), ByteEncoder(), tmp_path, max_tokens=max_tokens)
    lengths = [len(text) for text in TEXTS if text]
    ends = np.cumsum(lengths)
    expected = min(int(np.searchsorted(ends, max_tokens)) + 1, len(lengths))
    assert made.num_documents == expected and made.num_tokens == ends[expected - 1]
    assert num_read <= len(TEXTS) if max_tokens > ends[-1] else num_read <= 256 * (expected // 256 + 2)


def test_documents_go_by_the_same_way(tmp_path: Path) -> None:
    tokenizer = pico.tiny_tokenizer(tmp_path)
    documents = [Document(str(i), f"Document {i}, and what it says.") for i in range(20)]
    made = write_tokens(documents, tokenizer, tokenizer.eos_token_id, tmp_path, max_tokens=60)
    assert made.targets is None and not (tmp_path / "targets.bin").exists()
    assert 60 <= made.num_tokens < 120
    assert tokenizer.decode(made.tokens[: made.offsets[1]].tolist()) == documents[0].text + pico.END


def test_too_many_rows_left_out_are_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 of 5 rows would be left out \(empty: 3\)\n  allowed: at most 10%"):
        write_encoded(["a", "", "", "", "b"], ByteEncoder(), tmp_path)
    with pytest.raises(DataError, match=r"no document on this side of the split \(empty: 2\)"):
        write_encoded(["", ""], ByteEncoder(), tmp_path)


def test_a_sample_keeps_tokens_and_targets_together(tmp_path: Path) -> None:
    documents = write_encoded(TEXTS, ByteEncoder(), tmp_path)
    made = sample(documents, 500)
    assert made.targets is not None and made.num_tokens == 500
    assert (made.targets == (made.tokens % 2 == 1)).all()


def test_a_sample_of_whole_documents_cuts_none(tmp_path: Path) -> None:
    documents = write_encoded(TEXTS, ByteEncoder(), tmp_path)
    lengths = {tuple(documents.tokens[a:b]) for a, b in itertools.pairwise(documents.offsets)}
    for wanted in (1, 500):
        made = sample(documents, wanted, whole=True)
        assert {tuple(made.tokens[a:b]) for a, b in itertools.pairwise(made.offsets)} <= lengths
        assert made.num_documents == 1 or made.num_tokens <= wanted
