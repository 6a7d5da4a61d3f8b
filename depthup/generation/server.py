"""Generation by any server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, paid services.

Many requests at once, inside limits of requests and tokens a minute; what fails in passing is asked again, what fails
for good is told at the end, and nothing that came is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import DepthupError, nearest, shown
from .backend import Done, Failure, Generated, Prompt, Sampling, Unanswered, each_sampling
from .limits import Budget, Limits, Spent, Window, retry_after, waiting_time
from .requests import identity
from .wire import API_KEY, Passing, Refused, message_of, parsed

if TYPE_CHECKING:
    import httpx

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})  # states that pass
_ALL_FAIL = frozenset({401, 402, 403, 404, 405})  # states that every further request will meet
_MAX_UNCONNECTED = 3  # attempts at a server that never answered, before it counts as not there


class ServerBackend:
    """Continues prompts by asking a server; may be called from several threads, one after the other.

    Args:
        url: Its address with version: ``http://host:8000/v1``.
        model: Name of the model there; may be left out where the server has a single one.
        chat: Ask plain prompts as the user's message. Chats always go to ``/chat/completions``.
        limits: How fast, how long, how often.
        budget: Prices, and where to stop.
        key_variable: Environment variable that holds the API key; nothing is sent where it is not set.
        body: Further fields of each request, as ``{"top_k": 20}``; None as value takes a field out.

    Attributes:
        spent: Used so far, over all calls.

    Raises:
        DepthupError: The address is none; the package httpx is missing; the server cannot be reached, refuses the key,
            or has no such model.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        chat: bool = False,
        limits: Limits | None = None,
        budget: Budget | None = None,
        key_variable: str = API_KEY,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise DepthupError(
                "asking a server needs the package httpx", next_step="pip install 'depthup[server]'"
            ) from error
        self.httpx = httpx
        self.url, self.limits, self.budget = _checked(httpx, url), limits or Limits(), budget or Budget()
        self._chat, self._body, self._key_variable = chat, dict(body or {}), key_variable
        rates = (self.limits.requests_per_minute, self.limits.tokens_per_minute)
        self.requests, self.tokens = (Window(rate) if rate else None for rate in rates)
        self._one_call = threading.Lock()
        self.spent, self.reached = Spent(), False
        self.model = model or self._only_model()
        extra = json.dumps(self._body, sort_keys=True) if self._body else ""
        self.identity = f"server:{self.model}{':chat' if chat else ''}{extra}"

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling], done: Done | None = None
    ) -> list[str]:
        """See :class:`.backend.Backend`.

        Raises:
            DepthupError: No request can succeed: key, model, address.
            Unanswered: Some have no answer: refused, given up after ``limits.max_attempts``, or beyond the budget.
        """
        with self._one_call:
            call = _Call(self, prompts, each_sampling(sampling, len(prompts)), done)
            _run(call.all)
        if call.failures:
            raise Unanswered(call.failures, len(prompts), "run again: with a journal only these are asked")
        return call.texts

    def headers(self) -> dict[str, str]:
        """The key, if there is one."""
        key = os.environ.get(self._key_variable)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def without_key(self, text: str) -> str:
        """A text from outside that may be shown: some servers send back the key that they refuse."""
        key = os.environ.get(self._key_variable)
        return text.replace(key, "***") if key else text

    def request(self, prompt: Prompt, how: Sampling) -> tuple[str, dict[str, Any]]:
        """Path and body of a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "seed": how.stream,
            **({"stop": list(how.stop)} if how.stop else {}),
        }
        if isinstance(prompt, str) and not self._chat:
            path, body = "/completions", {**body, "prompt": prompt}
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
            path, body = "/chat/completions", {**body, "messages": messages}
        return path, {name: value for name, value in {**body, **self._body}.items() if value is not None}

    def models(self) -> list[str]:
        """Names of the models that the server has.

        Raises:
            DepthupError: It cannot be reached, or refuses the key.
        """
        try:
            patience = min(30.0, self.limits.timeout_s)
            answer = self.httpx.get(f"{self.url}/models", headers=self.headers(), timeout=patience)
        except self.httpx.HTTPError as error:
            raise self.unreachable(error) from error
        self.reached = True
        if answer.status_code in (401, 403):
            raise self.refusal(answer.status_code, answer.text)
        try:
            return [str(model["id"]) for model in answer.json()["data"]] if answer.is_success else []
        except (ValueError, KeyError, TypeError):
            return []

    def refusal(self, status: int, text: str) -> DepthupError:
        """The error for a state that every request will meet."""
        said = shown(self.without_key(message_of(text)), 200)
        if status in (401, 403):
            known = f"the key in {self._key_variable}" if self.headers() else "a request without a key"
            return DepthupError(
                f"{self.url} refuses {known} ({status}): {said}",
                next_step=f"put the key into the environment variable {self._key_variable}",
            )
        if status == 404:
            with contextlib.suppress(DepthupError):
                if (names := self.models()) and self.model not in names:
                    return DepthupError(
                        f"{self.url} has no model '{self.model}'{nearest(self.model, names)}",
                        allowed=", ".join(names[:20]),
                    )
        return DepthupError(
            f"{self.url} answers {status}: {said}", next_step="check the address: it ends in /v1 mostly"
        )

    def unreachable(self, error: Exception) -> DepthupError:
        """The error for a server that is not there."""
        said = shown(self.without_key(f"{type(error).__name__} {error}"), 200)
        return DepthupError(
            f"no server answers at {self.url}: {said}",
            next_step="start it, or check host and port; docs/generation.md has commands",
        )

    def _only_model(self) -> str:
        names = self.models()
        if len(names) != 1:
            raise DepthupError(
                f"{self.url} names {len(names)} models, so which one is meant has to be said",
                allowed=", ".join(names[:20]) or None,
                next_step=f"{self.url}#MODEL",
            )
        return names[0]


class _Call:
    """One call of generate."""

    def __init__(
        self, backend: ServerBackend, prompts: Sequence[Prompt], each: list[Sampling], done: Done | None
    ) -> None:
        self.backend, self.prompts, self.each, self.done = backend, prompts, each, done
        self.num_unconnected = 0
        self.texts, self.failures = [""] * len(prompts), list[Failure]()
        self.left = iter(range(len(prompts)))
        self.reserved = Spent()  # what the requests on their way may come to
        self.not_before = 0.0  # the server asked all to wait until then
        self.draw = random.Random()  # of waiting times alone

    async def all(self) -> None:
        """Ask for everything, with as many workers as there may be requests at once."""
        limits, httpx = self.backend.limits, self.backend.httpx
        self.queue, self.returned = asyncio.Lock(), asyncio.Condition()
        places = httpx.Limits(max_connections=limits.concurrency, max_keepalive_connections=limits.concurrency)
        async with httpx.AsyncClient(headers=self.backend.headers(), limits=places, timeout=limits.timeout_s) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(limits.concurrency, len(self.prompts))):
                        group.create_task(self._work(client))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _work(self, client: httpx.AsyncClient) -> None:
        for index in self.left:
            try:
                answer = await self._answer(client, index)
            except Refused as refused:
                reason, attempts = refused.args
                self.failures.append(Failure(index, reason, attempts))
                continue
            self.texts[index] = answer.text
            if self.done is not None:
                self.done(index, answer)

    async def _answer(self, client: httpx.AsyncClient, index: int) -> Generated:
        """Ask for one prompt until it is answered."""
        backend, prompt, how = self.backend, self.prompts[index], self.each[index]
        path, body = backend.request(prompt, how)
        key = identity(backend.identity, prompt, how)
        size = max(1, len(json.dumps(body.get("prompt", body.get("messages")), ensure_ascii=False).encode()) // 3)
        mine = Spent(1, size, how.max_new_tokens, backend.budget.cost(size, how.max_new_tokens))
        await self._reserve(mine)
        reason = ""
        try:
            for attempt in range(1, backend.limits.max_attempts + 1):
                entry = await self._turn(size + how.max_new_tokens)
                try:
                    answer = await self._ask(client, path, body, key, how)
                except Passing as passing:
                    reason = passing.reason
                    if attempt < backend.limits.max_attempts:
                        await self._wait(attempt, passing.wait_s, reason)
                    continue
                except Refused as refused:
                    raise Refused(refused.args[0], attempt) from None
                if entry is not None and answer.prompt_tokens is not None and answer.completion_tokens is not None:
                    entry[1] = answer.prompt_tokens + answer.completion_tokens
                self._count(answer, size)
                return answer
        finally:
            await self._release(mine)
        raise Refused(reason, backend.limits.max_attempts)

    async def _ask(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any], key: str, how: Sampling
    ) -> Generated:
        """One attempt."""
        backend, httpx, started = self.backend, self.backend.httpx, time.monotonic()
        try:
            async with asyncio.timeout(backend.limits.timeout_s):  # of the whole: a body may trickle for ever
                response = await client.post(backend.url + path, json=body, headers={"Idempotency-Key": key})
        except (TimeoutError, httpx.TimeoutException):
            raise Passing(f"no whole answer in {backend.limits.timeout_s:g} s") from None
        except httpx.ConnectError as error:
            self.num_unconnected += 1
            if not backend.reached and self.num_unconnected >= _MAX_UNCONNECTED:
                raise backend.unreachable(error) from error
            raise Passing(f"no connection: {error}") from None
        except httpx.HTTPError as error:
            raise Passing(f"the connection broke: {type(error).__name__} {error}") from None
        backend.reached = True
        status, text = response.status_code, response.text
        if response.is_success:
            return parsed(text, how, time.monotonic() - started)
        said = f"{status} {shown(backend.without_key(message_of(text)), 200)}"
        if status == 429 and "insufficient_quota" in text:
            raise DepthupError(f"{backend.url}: the quota is used up: {said}", next_step="raise it, then run again")
        if status in _ALL_FAIL:
            raise await asyncio.to_thread(backend.refusal, status, text)
        if status in _AGAIN or status >= 500:
            raise Passing(said, retry_after(response.headers.get("Retry-After")))
        raise Refused(said, 1)

    async def _turn(self, num_tokens: int) -> list[float] | None:
        """Wait until one more request is inside the limits; its entry in the window of tokens, to be corrected."""
        entry: float | list[float] | None = None
        async with self.queue:  # first come, first served
            while (pause := self.not_before - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            for window, amount in ((self.backend.requests, 1), (self.backend.tokens, num_tokens)):
                while window is not None and not isinstance(entry := window.take(amount), list):
                    await asyncio.sleep(entry)
        return entry if isinstance(entry, list) and self.backend.tokens is not None else None

    async def _wait(self, attempt: int, asked_s: float | None, reason: str) -> None:
        """Between two attempts: what the server asks for, or our own waiting time."""
        limits = self.backend.limits
        if asked_s is not None and asked_s > limits.max_retry_after_s:
            raise Refused(f"{reason}; the server asks to wait {asked_s:.0f} s", attempt)
        if asked_s is not None:
            self.not_before = max(self.not_before, time.monotonic() + asked_s)  # it means all of us
        await asyncio.sleep((asked_s or 0.0) + waiting_time(attempt, limits, self.draw))

    async def _reserve(self, mine: Spent) -> None:
        """Put aside what a request may cost; wait for others to return theirs where it would be too much."""
        budget = self.backend.budget
        async with self.returned:
            while True:
                spent, reserved = self.backend.spent, self.reserved
                cost = spent.cost + reserved.cost + mine.cost
                tokens = spent.tokens + reserved.tokens + mine.tokens
                if (budget.max_cost is None or cost <= budget.max_cost) and (
                    budget.max_tokens is None or tokens <= budget.max_tokens
                ):
                    break
                if not reserved.num_requests:
                    raise Refused(f"not asked: beyond the budget ({spent.tokens} tokens, {spent.cost:.4g} spent)", 0)
                await self.returned.wait()
            self.reserved = _plus(self.reserved, mine)

    async def _release(self, mine: Spent) -> None:
        async with self.returned:
            self.reserved = _plus(self.reserved, mine, -1)
            self.returned.notify_all()

    def _count(self, answer: Generated, size: int) -> None:
        """Add an answer to what is spent; by its bytes where the server does not count."""
        estimated = answer.prompt_tokens is None or answer.completion_tokens is None
        read = size * 3 // 4 if answer.prompt_tokens is None else answer.prompt_tokens
        made = len(answer.text.encode()) // 4 + 1 if answer.completion_tokens is None else answer.completion_tokens
        used = Spent(1, read, made, self.backend.budget.cost(read, made), int(estimated))
        self.backend.spent = _plus(self.backend.spent, used)


def _plus(one: Spent, other: Spent, sign: int = 1) -> Spent:
    return replace(one, **{name: value + sign * vars(other)[name] for name, value in vars(one).items()})


def _checked(httpx: Any, url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise DepthupError(f"'{shown(url)}' is no address of a server", allowed="http://host:8000/v1")
    if parts.userinfo or parts.query:
        raise DepthupError(
            f"the address of {parts.host} holds a name, a password or a query",
            allowed="http://host:8000/v1",
            next_step=f"put the key into the environment variable {API_KEY}",
        )
    return url.rstrip("/")


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; in a thread of its own where this one has a loop already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    errors: list[BaseException] = []

    def inside() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
