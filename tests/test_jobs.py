"""`depthup run --jobs`: the results of a plain run, whatever dies on the way; one computing stage a device."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest
from test_why import recipe

import depthup.jobs as jobs
from depthup.artifacts.store import Store
from depthup.errors import CheckpointError, DepthupError, RecipeError, Stopped, may_pass
from depthup.jobs import run_jobs
from depthup.pipeline import run, survey
from depthup.recipe import Recipe, parse_recipe

REPOSITORY = Path(__file__).parents[1]
real_command = jobs.worker_command


class Kept(jobs.Lines):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(jobs, "_FIRST_PAUSE_SECONDS", 0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The recipe, run stage by stage in this process."""
    store = Store(tmp_path_factory.mktemp("made"))
    run(recipe(), store, progress=False, tell=lambda line: None)
    return store


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    """A store with the bases alone, whose making loads torch."""
    now = Store(tmp_path / "store")
    for name in ("base", "other"):
        run(recipe(), now, only=name, progress=False, tell=lambda line: None)
    return now


def shell(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let workers be a shell script; ``$NAME`` is the stage, ``$REAL`` the command that makes it."""

    def command(path: Path, root: Path, name: str, device: str) -> list[str]:
        real = shlex.join(real_command(path, root, name, device))
        return ["bash", "-c", f"NAME={name}; DEVICE={device}; REAL={shlex.quote(real)}; {script}"]

    monkeypatch.setattr(jobs, "worker_command", command)


def weights(store: Store, now: Recipe) -> dict[str, bytes]:
    return {name: (node.folder / "model.safetensors").read_bytes() for name, node in survey(now, store).items()}


def test_results_are_those_of_a_plain_run_and_a_second_run_does_nothing(made: Store, store: Store) -> None:
    view = Kept()
    nodes = run_jobs(recipe(), store, jobs=2, devices="cpu", view=view)
    assert {node.state for node in nodes.values()} == {"cached"}
    assert weights(store, recipe()) == weights(made, recipe())
    assert sum("done in" in line for line in view.lines) == 3
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    again = Kept()
    run_jobs(recipe(), store, jobs=2, view=again)
    assert all("cached" in line for line in again.lines) and len(again.lines) == 5
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before


def test_a_worker_that_dies_is_started_again_and_the_reason_told(made: Store, store: Store, tmp_path, monkeypatch):
    shell(monkeypatch, f'mkdir {tmp_path}/$NAME || exec $REAL; echo "out of luck"; kill -9 $$')
    view = Kept()
    run_jobs(recipe(), store, jobs=2, retries=1, devices="cpu", view=view)
    assert weights(store, recipe()) == weights(made, recipe())
    told = "its process was ended by SIGKILL; retry 1 of 1 in 0.1 s: out of luck"
    assert sum(line.endswith(told) for line in view.lines) == 3


def test_bad_input_is_not_tried_again_and_the_others_are_made(store: Store) -> None:
    now, view = recipe(deeper={"remove": 3}, sound={"kind": "upscale", "base": "deep", "remove": 0}), Kept()
    with pytest.raises(DepthupError, match=r"failed: deeper \(bad input \(status 2\)\); not made .*: deepest"):
        run_jobs(now, store, jobs=2, retries=5, devices="cpu", view=view)
    assert {name for name, node in survey(now, store).items() if node.record is None} == {"deeper", "deepest"}
    assert any(line.startswith("[deeper] depthup: ") and "depth would not grow" in line for line in view.lines)


def test_a_failure_that_does_not_pass_is_given_up(store: Store, monkeypatch) -> None:
    shell(monkeypatch, "exit 69")
    view = Kept()
    with pytest.raises(DepthupError, match=r"deep \(a failure that may pass"):
        run_jobs(recipe(), store, retries=2, devices="cpu", view=view)
    assert sum("retry" in line for line in view.lines) == 2


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_reaches_every_worker_once_and_all_end(number, raised, store: Store, tmp_path, monkeypatch) -> None:
    traps = " ".join(f'trap "echo {name} >> {tmp_path}/$NAME.log" {name};' for name in ("INT", "TERM"))
    waiting = f"while [ ! -e {tmp_path}/$NAME.log ]; do sleep 0.05; done; sleep 0.3; exit 75"
    shell(monkeypatch, f"{traps} touch {tmp_path}/$NAME.on; {waiting}")
    now = recipe(beside={"kind": "upscale", "base": "other", "remove": 1})

    def ask() -> None:
        while len(list(tmp_path.glob("*.on"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(raised):
        run_jobs(now, store, jobs=2, retries=3, devices="cpu", view=Kept())
    said = {path.stem: path.read_text().split() for path in tmp_path.glob("*.log")}
    assert said == {name: [number.name.removeprefix("SIG")] for name in ("deep", "beside")}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


LOSSES = {
    "name": "losses",
    "stages": {f"loss-{index}": {"kind": "evaluate", "model": "MODEL", "prompts": ["a"]} for index in range(3)}
    | {"surgery": {"kind": "upscale", "base": "MODEL", "remove": 1}},
}


@pytest.mark.parametrize(("devices", "most"), [("cpu", 1), ("cpu,cpu", 2)])
def test_one_computing_stage_a_device_and_others_beside_it(base, devices, most, tmp_path, monkeypatch) -> None:
    value = parse_recipe(eval(repr(LOSSES).replace("MODEL", str(base("llama")))))
    shell(monkeypatch, f"echo + $NAME $DEVICE >> {tmp_path}/log; sleep 0.4; echo - $NAME >> {tmp_path}/log; exit 2")
    with pytest.raises(DepthupError, match="failed: "):
        run_jobs(value, Store(tmp_path / "store"), jobs=4, devices=devices, view=Kept())
    computing, beside, peak, met = 0, False, 0, False
    for line in (tmp_path / "log").read_text().splitlines():
        sign, name = line.split()[:2]
        if name == "surgery":
            beside = sign == "+"
        else:
            computing += 1 if sign == "+" else -1
        peak, met = max(peak, computing), met or (beside and computing > 0)
    assert peak == most and met
    assert "+ loss-0 cpu\n" in (tmp_path / "log").read_text()


def test_what_cannot_be_is_refused(store: Store, monkeypatch) -> None:
    with pytest.raises(RecipeError, match="needs 'deeper', which is missing"):
        run_jobs(recipe(), store, only="deepest", view=Kept())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="a launcher started this run already"):
        run_jobs(recipe(), store, view=Kept())


def test_which_errors_may_pass() -> None:
    def raised(cause: BaseException) -> DepthupError:
        try:
            raise CheckpointError("no such model") from cause
        except DepthupError as error:
            return error

    class Response:
        status_code = 503

    late = RuntimeError()
    late.response = Response()  # type: ignore[attr-defined]
    assert may_pass(raised(ConnectionResetError())) and may_pass(raised(TimeoutError())) and may_pass(raised(late))
    late.response.status_code = 404  # type: ignore[attr-defined]
    assert not may_pass(raised(late)) and not may_pass(raised(ValueError())) and not may_pass(RecipeError("x"))
    assert not may_pass(raised(FileNotFoundError(2, "no")))
