"""A server that errs in every way: nothing is lost, nothing is asked twice without need, the limits are kept."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator

import pytest
from generation.faulty import FAULTS, KEY, Faulty, serving

from depthup.errors import DepthupError
from depthup.generation.backend import Generated, Sampling, Unanswered
from depthup.generation.limits import Budget, Limits, Window, retry_after, waiting_time
from depthup.generation.server import API_KEY, ServerBackend

QUICK = Limits(first_wait_s=0.01, max_wait_s=0.05, timeout_s=0.5)
TRANSIENT = sorted(set(FAULTS) - {"400", "429 an hour", "no usage"})


@pytest.fixture
def server() -> Iterator[Faulty]:
    with serving() as faulty:
        yield faulty


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def expected(prompts: list[str], seed: int = 0) -> list[str]:
    return [f"<{prompt}/{seed}>" for prompt in prompts]


def test_whatever_passes_is_asked_again_and_each_answer_comes_once(server: Faulty) -> None:
    prompts = [f"{fault}, {number}" for fault in TRANSIENT for number in (1, 2)] + [f"well {i}" for i in range(20)]
    for fault in TRANSIENT:
        server.faults[f"{fault}, 1"] = [fault]
        server.faults[f"{fault}, 2"] = [fault, "500", fault]
    heard: list[tuple[int, Generated]] = []
    texts = ServerBackend(server.url, "tiny", limits=QUICK).generate(
        prompts, Sampling(), lambda index, answer: heard.append((index, answer))
    )
    assert texts == expected(prompts)
    assert sorted(index for index, _ in heard) == list(range(len(prompts)))
    assert all(answer.text == texts[index] and answer.finish_reason == "stop" for index, answer in heard)
    assert all(count == 1 for count in server.answered.values()) and server.answered.total() == len(prompts)
    tries = {prompt: server.asked[prompt] for prompt in prompts}
    assert {tries[f"{fault}, 1"] for fault in TRANSIENT} == {2}
    assert {tries[f"{fault}, 2"] for fault in TRANSIENT} == {4}
    assert {tries[f"well {i}"] for i in range(20)} == {1}
    keys = {header["Idempotency-Key"] for header in server.headers}
    assert len(keys) == len(prompts)  # another attempt at the same request has the same key


def test_answers_in_another_order_find_their_prompts(server: Faulty) -> None:
    prompts = [str(i) for i in range(12)]
    server.delay = lambda prompt: (12 - int(prompt)) * 0.01
    order: list[int] = []
    texts = ServerBackend(server.url, limits=QUICK).generate(prompts, Sampling(), lambda index, _: order.append(index))
    assert texts == expected(prompts) and order != sorted(order)


def test_what_fails_for_good_is_told_and_the_rest_is_not_lost(server: Faulty) -> None:
    server.faults["bad"] = ["400"]
    server.faults["worse"] = ["500"] * 9
    server.faults["later"] = ["429 an hour"]
    heard: dict[int, str] = {}
    limits = Limits(first_wait_s=0.01, max_wait_s=0.05, max_attempts=3)
    with pytest.raises(Unanswered, match="3 of 6 prompts") as caught:
        ServerBackend(server.url, limits=limits).generate(
            ["a", "bad", "b", "worse", "c", "later"],
            Sampling(),
            lambda index, answer: heard.update({index: answer.text}),
        )
    failures = {failure.index: failure for failure in caught.value.failures}
    assert heard == {0: "<a/0>", 2: "<b/0>", 4: "<c/0>"} and failures.keys() == {1, 3, 5}
    assert "too long" in failures[1].reason and failures[1].attempts == 1
    assert "500" in failures[3].reason and failures[3].attempts == 3 == server.asked["worse"]
    assert "3600 s" in failures[5].reason


def test_retry_after_holds_all_workers(server: Faulty) -> None:
    server.faults["0"] = ["429 after"]
    ServerBackend(server.url, limits=Limits(concurrency=1, first_wait_s=0.001)).generate(["0", "1"], Sampling())
    times = [when for when, _ in server.times]
    assert times[1] - times[0] >= 0.29
    assert retry_after("7") == 7 and retry_after("soon") is None and retry_after(None) is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2099 07:28:00 GMT") > 1e9  # type: ignore[operator]


def test_waiting_times_are_full_jitter() -> None:
    import random

    limits, draw = Limits(first_wait_s=1, max_wait_s=10), random.Random(0)
    for attempt, bound in ((1, 1), (3, 4), (9, 10)):
        waits = [waiting_time(attempt, limits, draw) for _ in range(2000)]
        assert 0 <= min(waits) < 0.02 * bound and 0.98 * bound < max(waits) <= bound
        assert abs(sum(waits) / 2000 - bound / 2) < 0.03 * bound


def test_concurrency_and_rates_are_kept(server: Faulty) -> None:
    """Counted where it matters: at the server; a minute is made to last half a second."""
    prompts = [f"{i:02}" for i in range(40)]
    server.delay = lambda _: 0.02
    backend = ServerBackend(server.url, limits=Limits(concurrency=4))
    backend.requests, backend.tokens = (
        Window(10, 0.5),
        Window(56, 0.5),
    )  # a request: 7 tokens as counted, up to 1 + 8 before
    assert backend.generate(prompts, Sampling(max_new_tokens=8)) == expected(prompts)
    assert server.most_at_once <= 4
    for start, _ in server.times:
        inside = [tokens for when, tokens in server.times if start <= when < start + 0.45]  # 0.05 s for the way
        assert len(inside) <= 10 and sum(inside) <= 56
    span = server.times[-1][0] - server.times[0][0]
    assert 40 * 7 / 56 * 0.5 - 0.6 <= span <= 4  # not slower than the limit asks for, either


def test_windows_let_no_more_through_in_any_period() -> None:
    window, taken = Window(10, 0.1), []
    started = time.monotonic()
    while time.monotonic() - started < 0.5:
        got = window.take(3)
        if isinstance(got, list):
            taken.append(got[0])
        else:
            time.sleep(min(got, 0.01))
    assert all(later - first >= 0.1 for first, later in zip(taken, taken[3:], strict=False))
    assert isinstance(Window(10).take(99), list)  # beyond any period: alone


def test_a_budget_is_never_passed(server: Faulty) -> None:
    prompts = [f"{i:03}" for i in range(60)]  # 3 tokens read, 5 made each; at most 1 + 8 are put aside
    backend = ServerBackend(server.url, budget=Budget(2.0, 10.0, max_tokens=100), limits=Limits(concurrency=8))
    with pytest.raises(Unanswered, match="beyond the budget") as caught:
        backend.generate(prompts, Sampling(max_new_tokens=8))
    assert 85 <= backend.spent.tokens <= 100 and len(caught.value.failures) == 60 - backend.spent.num_requests
    assert backend.spent.cost == pytest.approx(
        (backend.spent.prompt_tokens * 2 + backend.spent.completion_tokens * 10) / 1e6
    )
    assert server.asked.total() == backend.spent.num_requests
    dear = ServerBackend(server.url, budget=Budget(1.0, 1.0, max_cost=50e-6))
    with pytest.raises(Unanswered):
        dear.generate(prompts, Sampling(max_new_tokens=8))
    assert 35e-6 <= dear.spent.cost <= 50e-6
    with pytest.raises(DepthupError, match="no price is given"):
        Budget(max_cost=1.0)


def test_missing_usage_is_estimated_and_said(server: Faulty) -> None:
    server.faults["count me"] = ["no usage"]
    backend, heard = ServerBackend(server.url), list[Generated]()
    backend.generate(["count me"], Sampling(), lambda _, answer: heard.append(answer))
    assert heard[0].completion_tokens is None and backend.spent.num_estimated == 1 and backend.spent.tokens > 0


def test_each_request_has_its_seed_stop_and_path(server: Faulty) -> None:
    backend = ServerBackend(server.url, body={"top_k": 20, "top_p": None})
    samplings = [Sampling(9, 0.5, seed=3, sample=i, stop=(">", "\n")) for i in range(3)]
    texts = backend.generate(["same"] * 3, samplings)
    assert len(set(texts)) == 3 and all(text.startswith("<same/") and ">" not in text for text in texts)
    assert {body["seed"] for body in server.bodies} == {how.stream for how in samplings}
    body = server.bodies[0]
    assert body["max_tokens"] == 9 and body["stop"] == [">", "\n"] and body["top_k"] == 20 and "top_p" not in body
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert backend.generate([chat], Sampling()) == ["<hello/0>"] and server.bodies[-1]["messages"] == chat
    assert ServerBackend(server.url, chat=True).generate(["hi"], Sampling()) == ["<hi/0>"]
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "hi"}]


def test_the_key_comes_from_the_environment_and_is_never_shown(
    server: Faulty, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = KEY
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DepthupError, match="without a key") as caught:
        ServerBackend(server.url, "tiny").generate(["a"], Sampling())
    assert API_KEY in str(caught.value)
    monkeypatch.setenv(API_KEY, "sk-a-wrong-one")
    for call in (
        lambda: ServerBackend(server.url),
        lambda: ServerBackend(server.url, "tiny").generate(["a"], Sampling()),
    ):
        with pytest.raises(DepthupError, match="refuses the key") as caught:
            call()
        assert "sk-a-wrong-one" not in str(caught.value)
    monkeypatch.setenv(API_KEY, KEY)
    backend = ServerBackend(server.url)
    assert backend.generate(["a"], Sampling()) == ["<a/0>"]
    assert KEY not in caplog.text and KEY not in backend.identity
    with pytest.raises(DepthupError, match="holds a name, a password") as caught:
        ServerBackend("http://me:secret@host/v1")
    assert "secret" not in str(caught.value)


def test_wrong_models_and_addresses_say_what_there_is(server: Faulty) -> None:
    server.models = ["tiny-a", "tiny-b"]
    with pytest.raises(DepthupError, match=r"no model 'tiny-c' \(did you mean 'tiny-[ab]'\?\)(.|\n)*tiny-a, tiny-b"):
        ServerBackend(server.url, "tiny-c").generate(["a", "b"], Sampling())
    with pytest.raises(DepthupError, match=r"names 2 models(.|\n)*tiny-a, tiny-b"):
        ServerBackend(server.url)
    for wrong in ("", "localhost:8000", "ftp://host/v1", "http://"):
        with pytest.raises(DepthupError, match="no address"):
            ServerBackend(wrong, "tiny")


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with serving() as faulty:
        gone = faulty.url
    started = time.monotonic()
    with pytest.raises(DepthupError, match="no server answers"):
        ServerBackend(gone)
    with pytest.raises(DepthupError, match="no server answers"):
        ServerBackend(gone, "tiny", limits=QUICK).generate(["a"] * 50, Sampling())
    assert time.monotonic() - started < 20  # it does not wait and try again as for a busy server


def test_it_works_inside_a_loop_and_stops_with_its_caller(server: Faulty) -> None:
    async def notebook() -> list[str]:
        return ServerBackend(server.url).generate(["a"], Sampling())

    assert asyncio.run(notebook()) == ["<a/0>"]
    counter = itertools.count()

    def full(index: int, answer: Generated) -> None:
        if next(counter) == 3:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        ServerBackend(server.url, limits=Limits(concurrency=2)).generate([str(i) for i in range(50)], Sampling(), full)
    assert server.asked.total() < 12
