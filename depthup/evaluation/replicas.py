"""The same requests over several devices: a process a device, each with the whole model, fed as they finish.

Requests are cut into parts of sequences that share their beginnings, so that what is shared is still computed once;
the parts are many more than the devices, the largest first, so that no device waits long for another. Workers are
started anew (spawned): CUDA does not outlive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from tqdm import tqdm

from ..errors import CheckpointError, DepthupError
from ..models import load_tokenizer, model_config, resolve_device
from .encoding import Encoder, Path
from .memory import require_room
from .prefixes import plan, sort_sequences
from .requests import Answer, Request
from .scorer import Desk, LocalScorer, context_length, load_local

_PARTS_PER_DEVICE = 8
_PATIENCE = 5.0  # seconds between looks at whether the workers live


class ReplicaScorer:
    """Scores with a copy of the model on each device; see :func:`~depthup.evaluation.scorer.load_scorer`.

    Use it in ``with``, or call :meth:`close`: the processes stay until then, so that the model is loaded once.

    Args:
        source: Checkpoint folder.
        devices: Two or more; a device may stand there twice.
        dtype: Of the weights.
        max_length: As in :class:`~depthup.evaluation.scorer.LocalScorer`,
        batch_tokens: and so is this,
        progress: and this.

    Raises:
        CheckpointError: The folder is not whole, or the copies do not fit.
    """

    def __init__(
        self, source: str | os.PathLike[str], devices: Sequence[str], *, dtype: str = "float32",
        max_length: int | None = None, batch_tokens: int | None = None, progress: bool = False,
    ) -> None:  # fmt: skip
        self._devices = [resolve_device(device) for device in devices]
        for device in set(self._devices):
            require_room(source, device, dtype, self._devices.count(device))
        config, tokenizer = model_config(source), load_tokenizer(source)
        if config.is_encoder_decoder:
            raise CheckpointError(f"{source} is an encoder-decoder", allowed="a causal language model")
        self._encoder = Encoder(tokenizer, max_length or context_length(config, tokenizer))
        self._options = {"max_length": max_length, "batch_tokens": batch_tokens}
        self._source, self._dtype, self._progress = os.fspath(source), dtype, progress
        self._workers: list[BaseProcess] = []
        self._work: Any = None
        self._found: Any = None

    def __enter__(self) -> ReplicaScorer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """One answer a request, in their order; see :class:`~depthup.evaluation.requests.Scorer`.

        Raises:
            DepthupError: A worker died; the message gives its reason.
        """
        desk = Desk(requests, done)
        paths = desk.encode(self._encoder)
        jobs: list[tuple[str, Any, list[int]]] = [
            ("score", [paths[index] for index in part], part) for part in split_paths(paths, self._num_parts)
        ]
        size = max(len(desk.completions) // self._num_parts, 1)
        for begin in range(0, len(desk.completions), size):
            part = desk.completions[begin : begin + size]
            jobs.append(("complete", [requests[index] for index in part], part))
        if jobs:
            try:
                self._run(jobs, desk)
            except BaseException:
                self.close()
                raise
        return desk.answers

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.terminate()
            worker.join()
        self._workers = []

    @property
    def _num_parts(self) -> int:
        return _PARTS_PER_DEVICE * len(self._devices)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._work, self._found = context.Queue(), context.Queue()
        common = (len(self._devices), self._source, self._dtype, self._options, self._work, self._found)
        self._workers = [
            context.Process(target=_serve, args=(device, *common), daemon=True) for device in self._devices
        ]
        for worker in self._workers:
            worker.start()

    def _run(self, jobs: Sequence[tuple[str, Any, list[int]]], desk: Desk) -> None:
        """Hand out all jobs and take in their results as they come."""
        if not self._workers:
            self._start()
        for number, (kind, asked, _) in enumerate(jobs):
            self._work.put((number, kind, asked))
        left = sum(len(part) for _, _, part in jobs)
        with tqdm(total=left, desc="score", unit="req", disable=not self._progress, leave=False) as bar:
            while left:
                number, at, answer = self._next()
                if number is None:
                    raise DepthupError(f"the worker on {at} failed: {answer}")
                kind, _, part = jobs[number]
                if kind == "score":
                    desk.scored(part[at], *answer)
                else:
                    desk.tell(part[at], answer)
                left -= 1
                bar.update(1)

    def _next(self) -> Any:
        while True:
            try:
                return self._found.get(timeout=_PATIENCE)
            except queue.Empty:
                for worker, device in zip(self._workers, self._devices, strict=True):
                    if worker.exitcode is not None:
                        raise DepthupError(
                            f"the worker on {device} ended with status {worker.exitcode} and gave no reason",
                            next_step="a negative status is a signal; -9 mostly means that memory ran out",
                        ) from None


def split_paths(paths: Sequence[Path], num_parts: int) -> list[list[int]]:
    """Indices of paths in parts, the largest first; paths that share a stem or a tree stay together where they can.

    A stem with more than its share of all tokens is cut between its trees, and computed once for each part.
    """
    if not paths:  # a task of texts alone
        return []
    sequences = sort_sequences(paths)
    root = plan(sequences)
    most = max(root.num_tokens // max(num_parts, 1), 1)
    parts: list[tuple[int, list[int]]] = []
    for stem in root.walk():
        tokens, part = 0, list[int]()
        for tree in stem.trees:
            part += [index for members in sequences.members[tree.first : tree.last] for index in members]
            tokens += tree.num_tokens
            if tokens >= most:
                parts.append((tokens, part))
                tokens, part = 0, []
        if part:
            parts.append((tokens, part))
        ended = sequences.members[stem.first] if stem.fork == len(sequences.tokens[stem.first]) and stem.fork else ()
        if ended:  # a path that ends where the stem does
            parts.append((stem.fork, list(ended)))
    return [part for _, part in sorted(parts, key=lambda pair: -pair[0])]


def _serve(
    device: str, num_processes: int, source: str, dtype: str, options: dict[str, Any], work: Any, found: Any
) -> None:
    """What a worker does: load the model, then answer jobs until it is ended."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    try:
        if torch.device(device).type == "cpu":
            torch.set_num_threads(max((os.cpu_count() or 1) // num_processes, 1))
        scorer: LocalScorer = load_local(source, device, dtype, **options)
        while True:
            number, kind, asked = work.get()
            if kind == "score":
                scorer.score(asked, lambda at, score, likeliest: found.put((number, at, (score, likeliest))))  # noqa: B023
            else:
                scorer.complete(asked, lambda at, text: found.put((number, at, text)))  # noqa: B023
    except DepthupError as error:
        found.put((None, device, str(error)))
    except Exception as error:  # whatever ends a worker is told to the parent, which raises it
        found.put((None, device, f"{type(error).__name__}: {error}"))
