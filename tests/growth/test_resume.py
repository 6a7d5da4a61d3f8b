"""Stopped surgeries: what --resume keeps is what is right, and the result is that of a run that was never stopped."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pico
import pytest

from depthup.cli import main
from depthup.errors import OutputError
from depthup.files import partial_path
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

N = pico.NUM_LAYERS
PLAN = "0-4,2:identity,3-5,5:average,6"  # copies and tensors that are made
SHARD_BYTES = 25_000

SLOW = """
import sys, time
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
base, out, plan, shard_bytes, resume = sys.argv[1:]
upscale(base, out, LayerPlan.parse(plan, 7), max_shard_bytes=int(shard_bytes), resume=bool(int(resume)),
        progress=lambda num_bytes: time.sleep(0.01))
"""


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def grow(base: Path, out: Path, plan: str = PLAN, **options: object) -> dict[str, str]:
    upscale(base, out, LayerPlan.parse(plan, N), max_shard_bytes=SHARD_BYTES, **options)
    return digest(out)


def stop(base: Path, out: Path, num_files: int, how: int = signal.SIGKILL, resume: bool = False) -> Path:
    """Stop a surgery in a process of its own when it has begun so many files; returns its partial folder."""
    arguments = [str(base), str(out), PLAN, str(SHARD_BYTES), str(int(resume))]
    child = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    begun = {path.name for path in partial_path(out).glob("*.safetensors")}
    while len({path.name for path in partial_path(out).glob("*.safetensors")} - begun) < num_files:
        if child.poll() is not None or time.monotonic() > end:
            child.kill()
            raise AssertionError(f"the child ended ({child.wait()}) before it began {num_files} files")
        time.sleep(0.002)
    child.send_signal(how)
    assert child.wait(timeout=60) == -how
    return partial_path(out)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of a surgery that was never stopped."""
    return grow(base(), tmp_path_factory.mktemp("whole") / "out")


@pytest.mark.parametrize("num_files", [1, 3, 8])
def test_a_killed_surgery_goes_on_and_gives_the_same_bytes(base, tmp_path: Path, whole, num_files: int) -> None:
    out = tmp_path / "out"
    partial = stop(base(), out, num_files)
    right = {name for name, value in digest(partial).items() if value == whole[name] and name.startswith("model-")}
    inodes = {name: (partial / name).stat().st_ino for name in right}
    assert grow(base(), out, resume=True) == whole
    assert {name: (out / name).stat().st_ino for name in right} == inodes  # kept, not written again
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if num_files == 8:
        assert right


def test_killed_again_and_again_it_still_ends_with_the_same_bytes(base, tmp_path: Path, whole) -> None:
    stop(base(), tmp_path / "out", 2)
    for _ in range(3):
        stop(base(), tmp_path / "out", 2, resume=True)
    assert grow(base(), tmp_path / "out", resume=True) == whole


def test_without_resume_a_rerun_starts_anew(base, tmp_path: Path, whole) -> None:
    partial = stop(base(), tmp_path / "out", 4)
    for path in partial.iterdir():
        path.write_bytes(b"wrong")
    assert grow(base(), tmp_path / "out") == whole


def test_ctrl_c_stops_all_threads_and_leaves_nothing_unless_it_is_to_be_resumed(base, tmp_path: Path, whole) -> None:
    assert not stop(base(), tmp_path / "out", 3, signal.SIGINT).exists()
    assert list(tmp_path.iterdir()) == []
    assert stop(base(), tmp_path / "out", 3, signal.SIGINT, resume=True).exists()
    assert grow(base(), tmp_path / "out", resume=True) == whole


def leave(base: Path, out: Path, plan: str = PLAN, **options: object) -> Path:
    """A partial folder in which nothing is missing but the end."""
    grow(base, out, plan, **options)
    return out.rename(partial_path(out))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_only_files_with_every_byte_right_are_kept(base, tmp_path: Path, whole, monkeypatch) -> None:
    monkeypatch.setattr("depthup.checkpoint.copy._CHUNK_BYTES", 1000)
    out = tmp_path / "out"
    partial = leave(base(), out)
    shards = sorted(path.name for path in partial.glob("model-*"))
    flip(partial / shards[0], -1)
    flip(partial / shards[1], 20)  # in the header
    os.truncate(partial / shards[2], 900)
    (partial / shards[3]).unlink()
    (partial / shards[4]).unlink()
    (partial / shards[4]).symlink_to(base() / "config.json")
    (partial / "stranger.safetensors").write_bytes(b"x")
    (partial / "folder").mkdir()
    inodes = {name: (partial / name).stat().st_ino for name in shards[5:]}
    reported: list[int] = []
    surgery = upscale(base(), out, LayerPlan.parse(PLAN, N), max_shard_bytes=SHARD_BYTES, resume=True,
                      progress=reported.append)  # fmt: skip
    assert digest(out) == whole and not (out / "folder").exists()
    assert {name: (out / name).stat().st_ino for name in shards[5:]} == inodes
    assert sum(reported) == surgery.num_bytes and min(reported) < 0  # what was compared for nothing is taken back


@pytest.mark.parametrize("other", ["plan", "base"])
def test_what_another_plan_or_base_left_is_not_taken(base, tmp_path: Path, whole, capsys, other: str) -> None:
    out = tmp_path / "out"
    if other == "plan":
        leave(base(), out, "0-6,1-6")
    else:
        leave(base("llama", seed=5), out)
    arguments = [str(base()), str(out), "--layers", PLAN, "--max-shard-gb", str(SHARD_BYTES / 1e9), "--resume"]
    assert main(["upscale", *arguments]) == 0
    assert f"resumed: 0 of {len(list(out.glob('model-*.safetensors')))} files were whole" in capsys.readouterr().out
    assert digest(out) == whole


def test_nothing_is_written_through_a_link_that_an_earlier_run_left(base, tmp_path: Path, whole) -> None:
    folder = shutil.copytree(base(), tmp_path / "base")
    partial = partial_path(tmp_path / "out")
    partial.mkdir()
    for name in whole:
        if name.startswith("model-"):
            os.link(folder / "model.safetensors", partial / name)
    before = digest(folder)
    assert grow(folder, tmp_path / "out", resume=True) == {
        **whole,
        "depthup.json": digest(tmp_path / "out")["depthup.json"],
    }
    assert digest(folder) == before and (folder / "model.safetensors").stat().st_nlink == 1


def test_a_full_disk_leaves_what_was_written_to_be_resumed(base, tmp_path: Path, whole, monkeypatch) -> None:
    real, calls, before = os.copy_file_range, [], threading.active_count()

    def fills(*args: int, **options: int) -> int:
        calls.append(args)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", fills)
        with pytest.raises(OutputError, match=r"is full[\s\S]*what is written is kept"):
            grow(base(), tmp_path / "out", resume=True)
    assert threading.active_count() == before and partial_path(tmp_path / "out").exists()
    assert grow(base(), tmp_path / "out", resume=True) == whole


def test_the_space_that_is_taken_already_is_not_asked_for_again(base, tmp_path: Path, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("depthup.growth.surgery.require_space", lambda folder, num_bytes: asked.append(num_bytes))
    leave(base(), tmp_path / "out")
    grow(base(), tmp_path / "out", resume=True)
    assert asked[0] > 200_000 and asked[1] < 2_000
