"""Several stages of a recipe at once, each in a process of its own, so that what befalls one does not befall another.

A stage starts when what it comes from is made: one that computes when a device is free, any other beside it. A failure
that may pass is tried again; where a stage fails for good, those that do not come from it are made all the same.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from .artifacts.store import Store
from .errors import DepthupError, RecipeError, Stopped
from .launching import WORKER, catch_signals
from .pipeline import Node, ended, heading, settle, snapshot, started, survey
from .recipe import Recipe
from .stages import KINDS

LEASH = "DEPTHUP_LEASH"  # descriptor of a pipe whose other end the parent holds: when it dies, the child stops
BAD_INPUT, UNAVAILABLE = 2, 69  # exit statuses; EX_UNAVAILABLE of sysexits.h: may pass
_POLL_SECONDS = 0.05
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_NUM_LINES_KEPT = 30


class View(Protocol):
    """What shows a run while it goes on."""

    def line(self, text: str) -> None:
        """A line that stays."""

    def update(self, nodes: dict[str, Node], running: dict[str, float], failed: dict[str, str]) -> None:
        """How all stages stand now: ``running`` since when (``time.time()``), ``failed`` why."""

    def close(self) -> None:
        """The run is over."""


class Lines:
    """The plainest view: lines, as they come.

    Args:
        tell: Receives each.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell

    def line(self, text: str) -> None:
        """Hand it on."""
        self._tell(text)

    def update(self, nodes: dict[str, Node], running: dict[str, float], failed: dict[str, str]) -> None:
        """Lines say it all."""

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class _Worker:
    """The process of a stage.

    Attributes:
        name: Of the stage.
        process: Runs ``depthup run RECIPE --only STAGE``.
        slots: Devices that it holds.
        leash: Our end of its pipe.
        since: When it began, ``time.time()``.
        lines: The last that it wrote.
        reader: The thread that reads them.
    """

    name: str
    process: subprocess.Popen[str]
    slots: tuple[str, ...]
    leash: int
    since: float
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_NUM_LINES_KEPT))
    reader: threading.Thread | None = None


def run_jobs(
    recipe: Recipe,
    store: Store,
    *,
    jobs: int = 2,
    retries: int = 0,
    devices: str = "auto",
    only: str | None = None,
    view: View | None = None,
) -> dict[str, Node]:
    """Make every stage that is not cached, several at a time; the results are those of :func:`depthup.pipeline.run`.

    Args:
        recipe: What to make.
        store: Where results are found and put.
        jobs: Most stages at a time.
        retries: How often a stage is tried again after a failure that may pass: a worker that was killed or crashed, a
            network that did not answer. Never after bad input.
        devices: ``auto`` (each GPU, or the CPU) or names parted by commas; each takes one computing stage at a time.
        only: Make no more than this stage.
        view: Shows what happens; lines on standard output if not said.

    Returns:
        All stages as they stand now.

    Raises:
        DepthupError: Stages failed; all others that could be made are.
        Stopped: SIGTERM, SIGUSR1 or a stop file ended it; KeyboardInterrupt for SIGINT. Every stage has stopped, with
            its state saved where it has one.
    """
    if os.name != "posix":
        raise RecipeError("several jobs need a POSIX system", next_step="leave --jobs and --retries out")
    if "WORLD_SIZE" in os.environ:
        raise RecipeError("a launcher started this run already", next_step="say `launch:` in the stages, or no --jobs")
    shown: View = view or Lines(print)
    try:
        with store.in_use(), catch_signals() as asked:
            nodes = survey(recipe, store, download=True)
            return _Run(recipe, store, nodes, jobs, retries, devices, only, shown, asked).go()
    finally:
        shown.close()


class _Run:
    """The state of a run; its loop alone starts, hears and stops workers."""

    def __init__(
        self, recipe: Recipe, store: Store, nodes: dict[str, Node], jobs: int, retries: int, devices: str,
        only: str | None, view: View, asked: list[int],
    ) -> None:  # fmt: skip
        self.recipe, self.store, self.nodes, self.view, self.asked = recipe, store, nodes, view, asked
        self.jobs, self.retries, self.device = jobs, retries, devices.partition(",")[0]
        self.wanted = [name for name, node in nodes.items() if node.record is None and only in (None, name)]
        computing = any(KINDS[nodes[name].stage.kind].computes for name in self.wanted)
        self.free = list(_devices(devices)) if computing else []
        self.all_slots = tuple(self.free)
        self.running: dict[str, _Worker] = {}
        self.failed: dict[str, str] = {}
        self.tries: dict[str, int] = {}
        self.not_before: dict[str, float] = {}
        self.heard: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.num_passed_on = 0

    def go(self) -> dict[str, Node]:
        for name, node in self.nodes.items():
            if node.record is not None:
                self.view.line(f"{heading(self.nodes, name)} cached: {self.store.place(name, node.fingerprint)}")
                settle(self.store, node)
        if not self.wanted:
            return self.nodes
        recipe = snapshot(self.recipe, self.store)
        try:
            while self.wanted or self.running:
                self._hear()
                for worker in [each for each in self.running.values() if each.process.poll() is not None]:
                    self._settle(worker)
                self._pass_on()
                if not self.asked:
                    for name in list(self.wanted):
                        self._start_if_ready(name, recipe)
                if not self.running and (self.asked or not any(map(self._may_start, self.wanted))):
                    break
                self.view.update(self.nodes, {name: each.since for name, each in self.running.items()}, self.failed)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self._kill()
            raise
        self._hear()
        return self._outcome()

    def _may_start(self, name: str) -> bool:
        inputs = [self.nodes[source] for source in self.nodes[name].stage.inputs() if source in self.nodes]
        return name not in self.running and all(node.record is not None for node in inputs)

    def _start_if_ready(self, name: str, recipe: Path) -> None:
        if len(self.running) >= self.jobs or not self._may_start(name) or time.time() < self.not_before.get(name, 0):
            return
        node = self.nodes[name]
        slots: tuple[str, ...] = ()
        launch = getattr(node.stage, "launch", None)
        if KINDS[node.stage.kind].computes and not (launch and launch.by == "srun"):  # whose devices are elsewhere
            if not self.free or (launch and len(self.free) < len(self.all_slots)):
                return
            slots = tuple(self.free) if launch else (self.free[0],)
        self.wanted.remove(name)
        self.free = [device for device in self.free if device not in slots]
        self.view.line(f"{heading(self.nodes, name)} {started(node)}")
        self.running[name] = self._started(name, slots, recipe)

    def _started(self, name: str, slots: tuple[str, ...], recipe: Path) -> _Worker:
        device = slots[0].partition("#")[0] if slots else self.device
        command = worker_command(recipe, self.store.root, name, device)
        end, ours = os.pipe()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=(end,), process_group=0, text=True, errors="backslashreplace",
            stdout=subprocess.PIPE if self.jobs > 1 else None, stderr=subprocess.STDOUT if self.jobs > 1 else None,
            env={**os.environ, LEASH: str(end), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        os.close(end)
        worker = _Worker(name, process, slots, ours, time.time())
        if process.stdout is not None:
            worker.reader = threading.Thread(target=self._read, args=(worker,), daemon=True)
            worker.reader.start()
        return worker

    def _read(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed under us
            for line in worker.process.stdout:
                worker.lines.append(line.rstrip("\n"))
                self.heard.put((worker.name, line.rstrip("\n")))

    def _hear(self) -> None:
        while not self.heard.empty():
            name, line = self.heard.get()
            self.view.line(f"[{name}] {line}")

    def _settle(self, worker: _Worker) -> None:
        """Take note of how a worker ended; whatever it started and left behind ends, too."""
        with contextlib.suppress(OSError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        if worker.reader is not None:
            worker.reader.join(5)
        if worker.process.stdout is not None:
            worker.process.stdout.close()
        self._hear()
        os.close(worker.leash)
        name, status = worker.name, worker.process.returncode
        del self.running[name]
        self.free += worker.slots
        node = self.nodes[name]
        record = self.store.find(name, node.fingerprint)
        if record is not None:
            self.nodes[name] = replace(node, state="cached", reason="", record=record)
            self.view.line(f"{heading(self.nodes, name)} {ended(self.nodes[name])}")
            return
        if self.asked:
            return
        reason, tried = _reason(status), self.tries.get(name, 0)
        if status != BAD_INPUT and tried < self.retries:
            pause = min(_FIRST_PAUSE_SECONDS * 2**tried, _LONGEST_PAUSE_SECONDS)
            self.tries[name], self.not_before[name] = tried + 1, time.time() + pause
            self.wanted.append(name)
            again = f"retry {tried + 1} of {self.retries} in {pause:g} s"
            self.view.line(f"{heading(self.nodes, name)} {reason}; {again}{_last_word(worker)}")
            return
        self.failed[name] = reason
        self.view.line(f"{heading(self.nodes, name)} failed: {reason}")

    def _pass_on(self) -> None:
        """Hand signals on to the workers: the first two as they are, then the end."""
        file = os.environ.get("DEPTHUP_STOP_FILE")
        if file and not self.asked and os.path.exists(file):
            self.asked.append(int(signal.SIGUSR1))
        while self.num_passed_on < len(self.asked):
            self.num_passed_on += 1
            wanted = signal.SIGINT if self.asked[self.num_passed_on - 1] == signal.SIGINT else signal.SIGTERM
            if self.num_passed_on == 1 and self.running:
                self.view.line(f"stopping {', '.join(self.running)}; states will be saved (again to stop at once)")
            for worker in self.running.values():
                worker.process.send_signal(wanted if self.num_passed_on < 3 else signal.SIGKILL)

    def _kill(self) -> None:
        for worker in self.running.values():
            with contextlib.suppress(OSError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            os.close(worker.leash)

    def _outcome(self) -> dict[str, Node]:
        if self.asked:
            if self.asked[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise Stopped(signal.Signals(self.asked[0]).name)
        if self.failed:
            failed = ", ".join(f"{name} ({reason})" for name, reason in self.failed.items())
            waiting = f"; not made for want of them: {', '.join(self.wanted)}" if self.wanted else ""
            raise DepthupError(f"failed: {failed}{waiting}", next_step="see above; what was made is kept, run it again")
        if self.wanted:  # `only`
            name = self.wanted[0]
            missing = [source for source in self.nodes[name].stage.inputs()
                       if source in self.nodes and self.nodes[source].record is None]  # fmt: skip
            raise RecipeError(f"stage '{name}' needs '{missing[0]}', which is {self.nodes[missing[0]].state}",
                              next_step="run the whole recipe with `depthup run`")  # fmt: skip
        return self.nodes


def worker_command(recipe: Path, store: Path, name: str, device: str) -> list[str]:
    """The command that makes one stage."""
    return [sys.executable, "-m", "depthup", "run", str(recipe), "--store", str(store), "--only", name,
            "--device", device]  # fmt: skip


def _reason(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}"
        return f"its process was ended by signal {-status}"
    known = {0: "it ended without a result", 1: "it crashed (status 1)", BAD_INPUT: "bad input (status 2)",
             UNAVAILABLE: "a failure that may pass (status 69)"}  # fmt: skip
    return known.get(status, f"its process ended with status {status}")


def _last_word(worker: _Worker) -> str:
    said = [line for line in worker.lines if line.strip()]
    return f": {said[-1].strip()[:200]}" if said else ""


def _devices(named: str) -> Sequence[str]:
    """A slot for each device; ``cpu,cpu`` gives two on the CPU, kept apart by a mark behind the name."""
    if named in ("auto", "cuda"):
        from .models import count_gpus

        num_gpus = count_gpus()
        return [f"cuda:{index}" for index in range(num_gpus)] if num_gpus else [named.replace("auto", "cpu")]
    return [f"{name.strip()}#{index}" for index, name in enumerate(named.split(","))]


def hold_leash() -> bool:
    """In a worker: stop as after SIGTERM when the parent is gone. Returns whether there is a parent."""
    if LEASH not in os.environ:
        return False
    descriptor = int(os.environ.pop(LEASH))
    os.environ[WORKER] = "1"
    os.set_inheritable(descriptor, False)

    def watch() -> None:
        os.read(descriptor, 1)  # nobody writes: it ends when the other end is closed
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # nobody reads what is said now
            os.dup2(silence, stream)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    return True
