"""Threads: results in order, one progress report at a time, and after an error nothing runs on."""

from __future__ import annotations

import threading
import time

import pytest

from depthup.checkpoint.parallel import default_threads, run_all


@pytest.mark.parametrize("num_threads", [1, 2, 4, None])
def test_results_come_in_order_and_reports_one_at_a_time(num_threads: int | None) -> None:
    inside, most, reported = 0, 0, []

    def report(num_bytes: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.0005)
        reported.append(num_bytes)
        inside -= 1

    def job(number: int):
        def run(tell) -> int:
            for _ in range(10):
                tell(number)
            return number

        return run

    assert run_all([job(i) for i in range(20)], report, num_threads) == list(range(20))
    assert most == 1 and sorted(reported) == sorted(list(range(20)) * 10)


def test_no_jobs_are_no_work() -> None:
    assert run_all([]) == []


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt(), ValueError("x")])
@pytest.mark.parametrize("where", ["job", "report"])
def test_one_error_stops_all_and_is_raised_when_none_runs(error: BaseException, where: str) -> None:
    before, calls, ended = threading.active_count(), [], []

    def report(num_bytes: int) -> None:
        calls.append(num_bytes)
        if where == "report" and len(calls) == 20:
            raise error

    def endless(tell) -> None:
        try:
            while True:
                tell(1)
                time.sleep(0.001)
        finally:
            ended.append("endless")

    def fails(tell) -> None:
        while where == "report" or len(calls) < 20:
            tell(1)
            time.sleep(0.001)
        raise error

    with pytest.raises(type(error)) as caught:
        run_all([endless, fails, endless, *[endless] * 20], report, 3)
    assert caught.value is error
    assert threading.active_count() == before and ended == ["endless"] * len(ended)
    at_the_end = len(calls)
    time.sleep(0.02)
    assert len(calls) == at_the_end
    if where == "report":
        assert at_the_end == 20  # none after the one that raised


def test_there_are_one_to_four_threads() -> None:
    assert 1 <= default_threads() <= 4
