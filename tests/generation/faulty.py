"""A server of OpenAI's protocol on the loopback that errs as it is told to: real sockets, no stubs of the client."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-not-a-real-key"


class Faulty:
    """What the server does, and what it saw.

    Attributes:
        faults: By prompt, the faults of its first attempts, each a name of ``FAULTS``; afterwards it answers.
        asked: How often each prompt came; answered: how often it got an answer.
        bodies, headers: Of each request, in order.
        times: When each request came, and how many tokens it was answered with.
        most_at_once: Requests inside at the same time.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.asked, self.answered = Counter[str](), Counter[str]()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[tuple[float, int]] = []
        self.models, self.key = ["tiny"], ""
        self.delay: Callable[[str], float] = lambda prompt: 0.0
        self.inside = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def respond(self, handler: Handler, path: str, body: dict[str, Any]) -> None:
        prompt = body["prompt"] if path.endswith("/v1/completions") else body["messages"][-1]["content"]
        with self.lock:
            self.asked[prompt] += 1
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            self.times.append((time.monotonic(), len(prompt) + 5))
            self.inside += 1
            self.most_at_once = max(self.most_at_once, self.inside)
            fault = self.faults[prompt].pop(0) if self.faults[prompt] else ""
        try:
            time.sleep(self.delay(prompt))
            if fault:
                FAULTS[fault](handler, self.answer(path, prompt, body))
            else:
                with self.lock:
                    self.answered[prompt] += 1
                handler.send(200, self.answer(path, prompt, body))
        finally:
            with self.lock:
                self.inside -= 1

    def answer(self, path: str, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        text = f"<{prompt}/{body['seed']}>"
        choice = {"text": text} if path.endswith("/v1/completions") else {"message": {"content": text}}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 5}
        return {"model": body["model"], "choices": [{**choice, "finish_reason": "stop"}], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    faulty: Faulty

    def do_GET(self) -> None:
        if self.refused():
            return
        self.send(200, {"data": [{"id": name} for name in self.faulty.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        if body["model"] not in self.faulty.models:
            self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            return
        self.faulty.respond(self, self.path, body)

    def refused(self) -> bool:
        given = self.headers.get("Authorization", "")
        wrong = bool(self.faulty.key) and given != f"Bearer {self.faulty.key}"
        if wrong:
            self.send(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        return wrong

    def send(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _cut(handler: Handler, answer: dict[str, Any]) -> None:
    """The connection ends in the middle of the body."""
    data = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.close_connection = True


def _trickle(handler: Handler, answer: dict[str, Any]) -> None:
    """A byte now and then: no single read ever takes long."""
    data = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    for byte in data[:40]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)
    handler.close_connection = True


def _reset(handler: Handler, _: object) -> None:
    """No answer at all."""
    handler.close_connection = True


FAULTS: dict[str, Callable[[Handler, dict[str, Any]], None]] = {
    "429": lambda handler, _: handler.send(429, {"error": {"message": "slow down"}}),
    "429 after": lambda handler, _: handler.send(429, {"error": "slow down"}, Retry_After="0.3"),
    "429 an hour": lambda handler, _: handler.send(429, {"error": "tomorrow"}, Retry_After="3600"),
    "500": lambda handler, _: handler.send(500, b"<html>oops"),
    "400": lambda handler, _: handler.send(400, {"error": {"message": "this prompt is too long"}}),
    "hang": lambda handler, answer: time.sleep(1.2),
    "cut": _cut,
    "reset": _reset,
    "trickle": _trickle,
    "no json": lambda handler, _: handler.send(200, b'{"choices": [{"te'),
    "no choices": lambda handler, answer: handler.send(200, {**answer, "choices": []}),
    "no text": lambda handler, answer: handler.send(200, {**answer, "choices": [{"message": {"content": None}}]}),
    "no usage": lambda handler, answer: handler.send(200, {**answer, "usage": None}),
}


@contextmanager
def serving() -> Iterator[Faulty]:
    """A server in a thread, on a free port of the loopback."""
    faulty = Faulty()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHandler", (Handler,), {"faulty": faulty}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients that hang up are part of the test
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    faulty.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield faulty
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
