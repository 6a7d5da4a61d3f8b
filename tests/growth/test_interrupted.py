"""Surgeries that do not come to their end: killed at any moment, on a full disk, at any failing call to the system.

Never is there half an output, and a rerun gives the same bytes. Short by default; killed a hundred times when
``DEPTHUP_FUZZ_EXAMPLES`` is set. What ``--resume`` keeps is proved in test_resume.py.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pico
import pytest

from depthup.cli import main
from depthup.errors import OutputError
from depthup.files import partial_path, publishing, write_text
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

N = pico.NUM_LAYERS
PLAN = LayerPlan.parse("0-4,2:identity,3-6", N)  # copies and tensors that are made
SHARD_BYTES = 40_000
NUM_KILLS = 100 if os.environ.get("DEPTHUP_FUZZ_EXAMPLES") else 8
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

# Each file that is opened, made, renamed or removed takes a while, and so does each shard: moments to be killed at lie
# everywhere. A number behind the pause: the child kills itself at this event.
CHILD = """
import itertools, os, signal, sys, time
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
base, out, plan, shard_bytes, pause, last, resume = sys.argv[1:]
pause, last, numbers = float(pause), int(last), itertools.count(1)
def watch(event, arguments):
    about = event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
    if about and os.path.dirname(out) in str(arguments[0]):
        number = next(numbers)
        time.sleep(pause)
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
print("begun", flush=True)
upscale(base, out, LayerPlan.parse(plan, 7), max_shard_bytes=int(shard_bytes), resume=bool(int(resume)),
        progress=lambda num_bytes: time.sleep(pause))
print(next(numbers) - 1, flush=True)
"""


def start(base: Path, out: Path, *, pause: float = 0.0, last: int = 0, resume: bool = False) -> subprocess.Popen[str]:
    """A surgery in a process of its own, which has just begun."""
    arguments = (base, out, PLAN.text, SHARD_BYTES, pause, last, int(resume))
    child = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    return child


def end(child: subprocess.Popen[str]) -> int:
    """How a child came to its end, which this waits for."""
    child.communicate(timeout=60)
    return child.returncode


def grow(base: Path, out: Path, **options: Any) -> dict[str, str]:
    upscale(base, out, PLAN, max_shard_bytes=SHARD_BYTES, **options)
    return digest(out)


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def folder(base) -> Path:
    return base("llama", tokenizer=True)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of all files of a surgery that came to its end."""
    return grow(base("llama", tokenizer=True), tmp_path_factory.mktemp("whole") / "out")


# -- killed ----------------------------------------------------------------------------------------------------------


def found(out: Path, whole: dict[str, str]) -> str:
    """What a killed surgery left, which is never half an output: the stage that it was at."""
    left = {path.name for path in out.parent.iterdir()} if out.parent.exists() else set()
    assert left <= {out.name} or left <= {partial_path(out).name}, left
    if out.exists():
        assert digest(out) == whole
        return "published"
    if not left:
        return "before the first file"
    names = {path.name for path in partial_path(out).iterdir()}
    if "depthup.json" in names:
        return "all written, not published"
    weights = {name for name in names if name.endswith(".safetensors")}
    return "among the small files" if names - weights else "among the shards" if weights else "before the first file"


def test_killed_at_random_moments_it_leaves_no_half_output_and_a_rerun_gives_the_same_bytes(
    folder, tmp_path: Path, whole, record_property: Callable[[str, object], None]
) -> None:
    random, stages, out = Random(0), Counter[str](), tmp_path / "new" / "out"
    child = start(folder, out, pause=0.005)
    begin = time.monotonic()
    assert end(child) == 0
    seconds = time.monotonic() - begin
    for _ in range(NUM_KILLS):
        remove(out.parent)
        child = start(folder, out, pause=0.005, resume=random.random() < 0.3)
        time.sleep(random.uniform(0, seconds))
        child.kill()
        assert end(child) in (0, -signal.SIGKILL)
        stages[found(out, whole)] += 1
        if not out.exists():
            assert grow(folder, out, resume=random.random() < 0.5) == whole
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    record_property("stages", dict(stages))
    print(dict(stages))
    assert len(stages) > 1


def test_killed_at_any_operation_on_a_file_it_leaves_no_half_output(folder, tmp_path: Path, whole) -> None:
    out = tmp_path / "new" / "out"
    num_events = int(start(folder, out).communicate(timeout=60)[0])
    assert num_events > 20
    stages = Counter[str]()
    for last in range(1, num_events + 1, max(num_events // NUM_KILLS, 1)):
        remove(out.parent)
        assert end(start(folder, out, last=last)) == -signal.SIGKILL
        stages[found(out, whole)] += 1
        if not out.exists():
            assert grow(folder, out) == whole
    assert stages.keys() >= {"before the first file", "among the small files", "among the shards"}


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_of_two_surgeries_at_once_one_is_refused_and_the_other_ends_whole(folder, tmp_path: Path, whole) -> None:
    out = tmp_path / "out"
    child = start(folder, out, pause=0.02)
    wait_for(lambda: any(partial_path(out).glob("*.safetensors")))
    with pytest.raises(OutputError, match=r"another process is writing .*out[\s\S]*next: wait"):
        upscale(folder, out, PLAN)
    assert end(child) == 0
    assert digest(out) == whole


def wait_for(there: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_an_interrupt_in_the_middle_leaves_nothing(folder, tmp_path: Path) -> None:
    reported = []

    def interrupt(num_bytes: int) -> None:
        reported.append(num_bytes)
        if len(reported) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(folder, tmp_path / "new" / "out", progress=interrupt)
    assert len(reported) == 3 and list(tmp_path.iterdir()) == []


# -- a full disk, and any other refusal of the system ------------------------------------------------------------------


class Refusals:
    """Lets the system refuse one call of many: the ``last``-th that makes, writes, syncs, renames a file."""

    def __init__(self) -> None:
        self.root, self.error, self.last = "", FULL, 0
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def arm(self, root: Path, last: int, error: OSError) -> None:
        self.root, self.last, self.error, self.calls = str(root), last, error, []

    def disarm(self) -> list[str]:
        self.root = ""
        return self.calls

    def pass_by(self, what: str) -> None:
        with self._lock:
            if self.root:
                self.calls.append(what)
                if len(self.calls) == self.last:
                    raise OSError(self.error.errno, self.error.strerror, what)

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        about = event in ("os.mkdir", "os.rename") or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if self.root and about and self.root in str(arguments[0]):
            self.pass_by(f"{event} {arguments[0]}")

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(*arguments: Any, **options: Any) -> Any:
            self.pass_by(function.__name__)
            return function(*arguments, **options)

        return refusing


@pytest.fixture(scope="module")
def hook() -> Refusals:
    made = Refusals()
    sys.addaudithook(made.watch)  # for good: a hook cannot be taken away
    return made


@pytest.fixture
def refusals(hook: Refusals, monkeypatch):
    for name in ("copy_file_range", "sendfile", "fsync"):
        monkeypatch.setattr(os, name, hook.wrap(getattr(os, name)))
    yield hook
    hook.disarm()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE], ids=errno.errorcode.get)
def test_whichever_call_the_system_refuses_the_error_is_clear_and_nothing_is_left(
    folder, tmp_path: Path, whole, refusals: Refusals, code: int
) -> None:
    out, error, before = tmp_path / "new" / "out", OSError(code, os.strerror(code)), threading.active_count()
    refused = set()
    for last in range(1, 1000):
        refusals.arm(tmp_path, last, error)
        try:
            grow(folder, out)
        except OutputError as caught:
            calls = refusals.disarm()
            refused.add(calls[last - 1].replace(str(out.parent), ""))
            assert caught.next_step and (os.strerror(code) in str(caught) or "is full" in str(caught))
            assert list(tmp_path.iterdir()) == [] and threading.active_count() == before
        else:  # none was refused, or one that does not matter: to sync a folder, to copy in the quickest of many ways
            calls = refusals.disarm()
            assert digest(out) == whole and [path.name for path in out.parent.iterdir()] == ["out"]
            remove(out.parent)
            if len(calls) < last:
                break
    assert {"os.mkdir ", "os.mkdir /.out.partial", "os.rename /.out.partial", "fsync", "copy_file_range"} <= refused
    for name in ("config.json", "tokenizer.json", "depthup.json", "model.safetensors.index.json"):
        assert any(name in call for call in refused), name


def test_a_disk_that_fills_in_the_middle_is_one_clear_error_and_what_stood_there_stays(
    folder, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.setattr(os, "copy_file_range", lambda *_, **__: (_ for _ in ()).throw(FULL))
    with pytest.raises(OutputError, match=r"disk of .* is full[\s\S]*next: free space"):
        upscale(folder, tmp_path / "old" / "a" / "b" / "out", PLAN)
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


@pytest.mark.parametrize("limit", [0, 100, 1_000, 3_000, 12_000, 40_000, 60_000])
def test_a_limit_on_the_size_of_files_is_one_clear_error_and_leaves_nothing(folder, tmp_path: Path, limit: int) -> None:
    """The real thing, without a mock: the kernel cuts writes short, then refuses them."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError) as caught:
            upscale(folder, tmp_path / "new" / "out", PLAN, max_shard_bytes=1 << 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in caught.value.problem and caught.value.next_step
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import os, sys
from pathlib import Path
from depthup.errors import OutputError
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
base, disk, plan, filler = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def fill(num_bytes):
    if filler and not (disk / "filler").exists():
        (disk / "filler").write_bytes(bytes(filler))
try:
    upscale(base, disk / "new" / "out", LayerPlan.parse(plan, 7), max_shard_bytes=20_000, progress=fill)
except OutputError as error:
    print(error)
print(sorted(path.name for path in disk.rglob("*") if path.name != "filler"))
"""


@pytest.mark.parametrize(
    ("size", "inodes", "filler"), [("2m", 9, 0), ("2m", 20, 0), ("700k", 0, 400_000), ("700k", 0, 500_000)]
)
def test_a_disk_that_is_really_full_is_one_clear_error_and_left_clean(
    folder, tmp_path: Path, size: str, inodes: int, filler: int
) -> None:
    """On a file system in memory: with too few inodes, or filled by another while the surgery runs."""
    mount = f'mount -t tmpfs -o size={size},nr_inodes={inodes} none "$1" && shift && exec "$@"'
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [sys.executable, "-c", FULL_DISK, str(folder), str(disk), PLAN.text, str(filler)]
    try:
        done = subprocess.run(["unshare", "-Urm", "sh", "-c", mount, "sh", str(disk), *arguments],
                              capture_output=True, text=True, timeout=60)  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("file systems cannot be mounted here")
    assert done.returncode == 0, done.stderr
    assert "is full" in done.stdout and "next: free space" in done.stdout and done.stdout.endswith("[]\n")


def test_on_the_command_line_a_refusal_of_the_system_is_one_message(folder, tmp_path: Path, refusals, capsys) -> None:
    refusals.arm(tmp_path, 4, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    assert main(["upscale", str(folder), str(tmp_path / "new" / "out"), "--remove", "2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("depthup: ") and "was not written: Read-only file system" in said and "next:" in said
    assert list(tmp_path.iterdir()) == []


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, FULL])
def test_parents_that_were_made_for_an_output_go_with_it(tmp_path: Path, error: Any) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises((ValueError, KeyboardInterrupt, OutputError)), publishing(tmp_path / "old" / "a" / "b" / "out"):
        raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


def test_a_parent_in_which_another_has_put_something_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError), publishing(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "theirs").touch()
        raise ValueError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "theirs"]


def test_a_text_that_cannot_be_written_leaves_no_other_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(FULL))
    with pytest.raises(OSError):
        write_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == []
