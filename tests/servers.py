"""Servers for tests: byte ranges as they should be, and every way to get them wrong; a hub with its CDN."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    """One request: its path, its range (half-open, None for all), and its headers in lower case."""

    path: str
    range: tuple[int, int] | None
    headers: dict[str, str]


@dataclass
class Answer:
    """What is about to be sent; a fault returns another one, or sends something itself and returns None."""

    status: int
    headers: dict[str, str]
    body: bytes | tuple[Path, int, int] = b""  # or a part of a file


Fault = Callable[["Handler", Answer], Answer | None]


@dataclass
class Server:
    """A folder over HTTP. ``faults[path]`` are taken one by one by requests for data of that file.

    A request for the first byte alone is a look at the file, no request for data.
    """

    root: Path
    faults: dict[str, list[Fault | None]] = field(default_factory=dict)
    every: dict[str, Fault] = field(default_factory=dict)  # for each request of that path, looks too
    requests: list[Request] = field(default_factory=list)
    num_bytes: int = 0  # of files, sent
    pause: float = 0.0  # seconds for each 64 KiB
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Request) -> Answer:
        path = self.root / request.path.lstrip("/")
        if not path.is_file():
            return Answer(404, {"X-Error-Message": "Entry not found"})
        return self.part_of(path, request)

    def part_of(self, path: Path, request: Request) -> Answer:
        size = path.stat().st_size
        tag = f'"{path.stat().st_mtime_ns:x}-{size:x}"'
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if request.range is None:
            return Answer(200, headers | {"Content-Length": str(size)}, (path, 0, size))
        begin, end = request.range[0], min(request.range[1], size)
        if begin >= size:
            return Answer(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
        headers |= {"Content-Length": str(end - begin), "Content-Range": f"bytes {begin}-{end - 1}/{size}"}
        return Answer(206, headers, (path, begin, end))

    def fault_for(self, request: Request) -> Fault | None:
        if request.path in self.every:
            return self.every[request.path]
        left = self.faults.get(request.path)
        return left.pop(0) if left and request.range != (0, 1) else None

    def asked(self, path: str) -> list[tuple[int, int] | None]:
        """The ranges asked for of a file, looks left out."""
        return [request.range for request in self.requests if request.path == path and request.range != (0, 1)]


@dataclass
class Hub(Server):
    """Answers as huggingface.co does: tree and resolve; large files redirect to ``cdn``, small ones to a cache."""

    cdn: Server | None = None
    name: str = "owner/model"
    large: tuple[str, ...] = (".safetensors", "tokenizer.json")
    token: str | None = None
    commit: str = COMMIT

    def answer(self, request: Request) -> Answer:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return Answer(401, {"X-Error-Message": "Invalid username or password."})
        api = f"/api/models/{self.name}"
        if match := re.fullmatch(re.escape(api) + "/revision/(.+)", request.path):
            if unquote(match[1]) not in ("main", self.commit):
                return Answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return self.document({"id": self.name, "sha": self.commit})
        if request.path == f"{api}/tree/{self.commit}":
            entries = self.tree()
            page = self.document(entries[1:])
            if "cursor" not in request.headers[":query"]:  # the first page has one entry, to prove that the rest is had
                page = self.document(entries[:1])
                page.headers["Link"] = f'<{self.url}{request.path}?cursor=1>; rel="next"'
            return page
        if match := re.fullmatch(f"/{self.name}/resolve/{self.commit}/(.+)", request.path):
            path = self.root / unquote(match[1])
            if not path.is_file():
                return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            headers = {"X-Repo-Commit": self.commit, "Content-Length": "0"}
            if path.name.endswith(self.large):
                tag = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
                headers |= {"X-Linked-ETag": tag, "X-Linked-Size": str(path.stat().st_size)}
                return Answer(302, headers | {"Location": f"{self.cdn.url}/{path.name}"})
            return Answer(307, headers | {"Location": f"/api/resolve-cache/models/{self.commit}/{path.name}"})
        if match := re.fullmatch(f"/api/resolve-cache/models/{self.commit}/(.+)", request.path):
            part = self.part_of(self.root / unquote(match[1]), request)
            part.headers["X-Repo-Commit"] = self.commit
            return part
        return Answer(404, {"X-Error-Message": "Repository not found"})

    def document(self, value: object) -> Answer:
        body = json.dumps(value).encode()
        return Answer(200, {"Content-Length": str(len(body)), "Content-Type": "application/json"}, body)

    def tree(self) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "original"}]
        for path in sorted(self.root.iterdir()):
            data = path.read_bytes()
            entry = {"type": "file", "path": path.name, "size": len(data), "oid": git_sha1(data)}
            if path.name.endswith(self.large):
                digest = hashlib.sha256(data).hexdigest()
                entry |= {"lfs": {"oid": digest, "size": len(data), "pointerSize": 134}}
            entries.append(entry)
        return entries


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Server

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        asked = (int(match[1]), int(match[2]) + 1) if match else None
        headers = {key.lower(): value for key, value in self.headers.items()} | {":query": query}
        request = Request(path, asked, headers)
        with self.served.lock:
            self.served.requests.append(request)
            fault = self.served.fault_for(request)
        answer: Answer | None = self.served.answer(request)
        if fault is not None:
            answer = fault(self, answer)
        if answer is not None:
            self.send(answer)

    def do_HEAD(self) -> None:
        """What huggingface_hub asks before it downloads."""
        answer = self.served.answer(Request(self.path.partition("?")[0], None, {":query": ""}))
        self.send(answer, 0)

    def send(self, answer: Answer, count: int | None = None) -> None:
        """Send an answer, or its head and the first ``count`` bytes of its body."""
        self.send_response(answer.status)
        headers = answer.headers
        if isinstance(answer.body, bytes):
            headers = {"Content-Length": str(len(answer.body))} | headers
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        sent = 0
        for piece in body_of(answer):
            piece = piece if count is None else piece[: count - sent]
            if not piece:
                break
            try:
                self.wfile.write(piece)
            except OSError:  # the client has heard enough
                self.close_connection = True
                break
            sent += len(piece)
            if not isinstance(answer.body, bytes):
                with self.served.lock:
                    self.served.num_bytes += len(piece)
            if self.served.pause:
                time.sleep(self.served.pause)

    def log_message(self, *args: object) -> None:
        pass


def body_of(answer: Answer) -> Iterator[bytes]:
    if isinstance(answer.body, bytes):
        yield answer.body
        return
    path, begin, end = answer.body
    with open(path, "rb") as file:
        file.seek(begin)
        while begin < end and (piece := file.read(min(end - begin, 1 << 16))):
            begin += len(piece)
            yield piece


class Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args: object) -> None:
        pass  # clients that go away are no news


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve on a free port of this machine; ``server.url`` tells where."""
    handler = type("Handler", (Handler,), {"served": server})
    with Threads(("127.0.0.1", 0), handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


# -- faults ------------------------------------------------------------------------------------------------------------


def drop(after: int) -> Fault:
    """Close the connection after so many bytes of the body."""

    def fault(handler: Handler, answer: Answer) -> None:
        handler.send(answer, after)
        handler.close_connection = True

    return fault


def reset(after: int) -> Fault:
    """Reset the connection after so many bytes of the body."""

    def fault(handler: Handler, answer: Answer) -> None:
        handler.send(answer, after)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return fault


def stall(after: int, seconds: float) -> Fault:
    """Say nothing for a while after so many bytes of the body."""

    def fault(handler: Handler, answer: Answer) -> None:
        handler.send(answer, after)
        handler.wfile.flush()
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def trickle(seconds: float) -> Fault:
    """Send a byte at a time, so slowly that no single wait is long."""

    def fault(handler: Handler, answer: Answer) -> None:
        handler.send(answer, 0)
        end = time.monotonic() + seconds
        for piece in body_of(answer):
            for byte in piece:
                if time.monotonic() > end or handler.close_connection:
                    return
                try:
                    handler.wfile.write(bytes([byte]))
                except OSError:
                    handler.close_connection = True
                time.sleep(0.02)

    return fault


def status(code: int, **headers: str) -> Fault:
    """Answer with another status; ``Retry_After="1"`` is a header."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, answer: Answer(code, named)


def redirect(to: str, code: int = 302) -> Fault:
    """Redirect."""
    return status(code, Location=to)


def whole(handler: Handler, answer: Answer) -> Answer:
    """Take no notice of the range."""
    if not isinstance(answer.body, tuple):
        return answer
    path = answer.body[0]
    size = path.stat().st_size
    headers = {key: value for key, value in answer.headers.items() if key != "Content-Range"}
    return Answer(200, headers | {"Content-Length": str(size)}, (path, 0, size))


def lie(**headers: str) -> Fault:
    """Change headers and nothing else."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, answer: Answer(answer.status, answer.headers | named, answer.body)


def garble(at: int) -> Fault:
    """Flip one bit of the body."""

    def fault(handler: Handler, answer: Answer) -> Answer:
        body = bytearray(b"".join(body_of(answer)))
        body[at] ^= 1
        return Answer(answer.status, answer.headers, bytes(body))

    return fault


def chunked(handler: Handler, answer: Answer) -> None:
    """The same bytes without a length, in chunks."""
    handler.send_response(answer.status)
    for key, value in answer.headers.items():
        if key != "Content-Length":
            handler.send_header(key, value)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for piece in body_of(answer):
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")
