"""publishing: a folder exists only when it is whole, and there is one writer."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from depthup import files
from depthup.errors import OutputError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_folder_appears_whole_and_at_the_end(out: Path) -> None:
    with files.publishing(out) as partial:
        (partial / "a").write_text("1")
        assert not out.exists() and partial.parent == out.parent and partial.name.startswith(".")
    assert [path.name for path in out.iterdir()] == ["a"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(out: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), files.publishing(out) as partial:
        (partial / "a").write_text("1")
        raise error
    assert list(out.parent.iterdir()) == []


def test_resumable_work_finds_its_files_again(out: Path) -> None:
    with pytest.raises(ValueError), files.publishing(out, keep_partial=True) as partial:
        (partial / "a").write_text("1")
        raise ValueError
    assert not out.exists()
    with files.publishing(out, keep_partial=True) as partial:
        assert (partial / "a").read_text() == "1"
    assert (out / "a").read_text() == "1"


def test_what_a_killed_process_left_is_cleared(out: Path) -> None:
    left = files.partial_path(out)
    (left / "folder").mkdir(parents=True)
    (left / "file").write_text("old")
    (left / "link").symlink_to(out.parent)
    with files.publishing(out) as partial:
        assert list(partial.iterdir()) == []
    assert out.parent.exists() and list(out.iterdir()) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda out: out.symlink_to("nowhere")])
def test_an_existing_output_is_never_touched(out: Path, make) -> None:
    make(out)
    with pytest.raises(OutputError, match=rf"{out} exists[\s\S]*allowed[\s\S]*next"), files.publishing(out):
        raise AssertionError("not reached")
    assert os.path.lexists(out) and not files.partial_path(out).exists()


def test_an_output_that_appears_meanwhile_is_never_touched(out: Path) -> None:
    with pytest.raises(OutputError, match="exists"), files.publishing(out):
        out.mkdir()
    assert list(out.parent.iterdir()) == [out]


def test_a_parent_that_is_a_file_is_one_clear_error(out: Path) -> None:
    out.write_text("")
    with pytest.raises(OutputError, match="cannot write in"), files.publishing(out / "below"):
        raise AssertionError("not reached")


def test_parents_are_made(out: Path) -> None:
    with files.publishing(out / "a" / "b"):
        pass
    assert (out / "a" / "b").is_dir()


@pytest.mark.parametrize("keep_partial", [False, True])
def test_of_two_writers_one_gets_one_clear_error_and_harms_nothing(out: Path, keep_partial: bool) -> None:
    with files.publishing(out, keep_partial=keep_partial) as partial:
        (partial / "a").write_text("first")
        with pytest.raises(OutputError, match="another process is writing"), files.publishing(out):
            raise AssertionError("not reached")
    assert (out / "a").read_text() == "first"


def test_the_lock_holds_between_processes_and_ends_with_a_killed_one(out: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from depthup.files import publishing\n"
        "with publishing(Path(sys.argv[1])) as partial: (partial / 'held').touch(); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(out)])
    try:
        wait_for(files.partial_path(out) / "held")
        with pytest.raises(OutputError, match="another process is writing"), files.publishing(out):
            raise AssertionError("not reached")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not out.exists()
    with files.publishing(out) as partial:
        assert list(partial.iterdir()) == []


def wait_for(path: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def test_too_small_a_disk_says_how_much_is_missing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    files.require_space(out / "not" / "there", 1_000_000)
    with pytest.raises(OutputError, match=r"3\.50 MB needed, 1\.00 MB free[\s\S]*free 2\.50 MB"):
        files.require_space(out / "not" / "there", 3_500_000)


def test_text_is_written_whole_or_not_at_all(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(out, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        files.write_text(out, "new")
    assert out.read_text() == "old"


def test_json_is_readable_and_ends_with_a_newline(out: Path) -> None:
    files.write_json(out, {"ü": [1, None]})
    assert out.read_text(encoding="utf-8") == '{\n  "ü": [\n    1,\n    null\n  ]\n}\n'


def test_sha256_is_that_of_the_bytes(out: Path) -> None:
    out.write_bytes(bytes(range(256)) * 5000)
    assert files.sha256_of(out) == hashlib.sha256(out.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (1.2345e9, "1.23 GB"), (5e15, "5000.00 TB")]
)
def test_bytes_are_written_for_people(num_bytes: float, text: str) -> None:
    assert files.human_bytes(num_bytes) == text
