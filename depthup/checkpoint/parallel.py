"""Run jobs on a few threads: one stops all, and nothing runs on when the call has ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TypeVar

from .copy import Progress

T = TypeVar("T")
MAX_THREADS = 4


class Stopped(Exception):
    """Ends a job because another one, which has the story to tell, has failed."""


def default_threads() -> int:
    """One for each core that this process may use, at most four: copying is bound by processors, then by the disk."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return min(MAX_THREADS, cores)


def run_all(
    jobs: Sequence[Callable[[Progress], T]],
    report: Progress | None = None,
    num_threads: int | None = None,
    wake: Callable[[], object] | None = None,
) -> list[T]:
    """The results of all jobs, in their order.

    Each job is given a function to report the number of bytes it has done, and reports often: that is where it stops
    when another job, ``report`` or Ctrl-C has raised. One such exception is raised here, once no job runs.

    Args:
        jobs: What to run.
        report: Called from the threads, by one at a time.
        num_threads: See :func:`default_threads`.
        wake: Called when no more is to be done: ends what jobs wait for, so that they end, with :class:`Stopped`.
    """
    stop, one_at_a_time = Event(), Lock()

    def reported(num_bytes: int) -> None:
        with one_at_a_time:
            if stop.is_set():
                raise Stopped
            if report is not None:
                try:
                    report(num_bytes)
                except BaseException:
                    stop.set()
                    raise

    def run(job: Callable[[Progress], T]) -> T:
        try:
            return job(reported)
        except BaseException:
            stop.set()
            raise

    pool = ThreadPoolExecutor(num_threads or default_threads())
    futures: list[Future[T]] = []
    try:
        futures += [pool.submit(run, job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        stop.set()
        if wake is not None:
            wake()
        _join(pool)
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error
    return [future.result() for future in futures]


def _join(pool: ThreadPoolExecutor) -> None:
    """Wait for the running jobs, whatever the user presses meanwhile."""
    interrupted = None
    while True:
        try:
            pool.shutdown(cancel_futures=True)
            break
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted:
        raise interrupted
