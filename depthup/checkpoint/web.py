"""Bytes over HTTP that arrive whole or not at all: ranges, retries that go on where a connection ended, redirects.

Standard library only: with it a core takes in several times the bytes that it does through httpx, and depthup works
with every version of huggingface_hub, whichever client that brings. Proxies (``HTTPS_PROXY``, ``NO_PROXY``) and
certificates (``SSL_CERT_FILE``) are those of the environment.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from typing import IO, TypeVar

from .. import __version__
from ..errors import CheckpointError
from .answers import (
    Again,
    Missing,
    RemoteFile,
    no_ranges,
    origin_of,
    reason_of,
    refused,
    require_asked,
    unreachable,
    version_of,
    wrong,
)
from .parallel import Stopped

_PIECE_BYTES = 1 << 18  # asked of a connection at a time; with more, memory grows by fragments
_MAX_DOCUMENT_BYTES = 100_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to go on with a server that fails.

    Attributes:
        num_attempts: In a row, each of which brought less than ``progress_bytes``.
        num_first_attempts: The same as long as no server has answered at all.
        first_wait_seconds: Pause after the first failure; doubled after each further one.
        longest_wait_seconds: Where the doubling ends.
        longest_asked_seconds: The longest pause that a server may ask for.
        stall_seconds: A connection that brings less than ``progress_bytes`` in this time is given up.
        progress_bytes: See above.
    """

    num_attempts: int = 8
    num_first_attempts: int = 3
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    longest_asked_seconds: float = 600.0
    stall_seconds: float = 30.0
    progress_bytes: int = 1 << 16


PATIENCE = Patience()


class Web:
    """A client for one run; its methods may be called from several threads.

    Args:
        token: Sent to the origin (scheme, host, port) of ``home``, and nowhere else, redirects included.
        home: A URL of the server that the token is for.
    """

    def __init__(self, token: str | None = None, home: str = "") -> None:
        self._token, self._home = token, origin_of(home)
        self._patience = PATIENCE
        self._answered = False
        self._stopped = threading.Event()
        self._responses: set[HTTPResponse] = set()
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), _Redirects(), urllib.request.UnknownHandler(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()), urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
        ):  # fmt: skip
            self._opener.add_handler(handler)

    def look(self, name: str, url: str) -> RemoteFile | None:
        """Size and version of a file, or None where the server has none (a page for people is none).

        Raises:
            CheckpointError: The server cannot be reached, refuses, or does not serve byte ranges.
        """

        def ask() -> RemoteFile | None:
            with self._response(url, {"Range": "bytes=0-0"}) as response:
                if response.headers.get_content_type() == "text/html":
                    return None
                match = re.fullmatch(r"bytes 0-0/([0-9]+)", response.headers.get("Content-Range", ""))
                if response.status != 206 or not match:
                    raise no_ranges(url, response)
                return RemoteFile(name, url, int(match[1]), version=version_of(response.headers))

        try:
            return self._again_and_again(url, ask)
        except Missing:
            return None

    def document(self, url: str) -> tuple[bytes, Message]:
        """A small document, and the headers that it came with.

        Raises:
            CheckpointError: It cannot be had.
        """

        def ask() -> tuple[bytes, Message]:
            with self._response(url, {}) as response:
                length, data = response.length, b""
                while piece := self._piece(response, url, _PIECE_BYTES):
                    data += piece
                    if len(data) > _MAX_DOCUMENT_BYTES:
                        raise CheckpointError(f"{url} is larger than any listing", next_step="check the address")
                if length not in (None, len(data)):
                    raise Again(f"the connection ended after {len(data)} of {length} bytes")
                return data, response.headers

        return self._again_and_again(url, ask)

    def read(self, file: RemoteFile, begin: int, end: int) -> bytes:
        """Bytes ``[begin, end)`` of a file; see :meth:`pieces`."""
        return b"".join(self.pieces(file, begin, end))

    def pieces(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        """Yield bytes ``[begin, end)`` of a file, of at most 256 KiB at a time, in order, without a gap.

        A connection that ends or stalls is followed by another, which asks for what is missing.

        Raises:
            CheckpointError: The file cannot be had, is another than it was, or the server answers what was not asked.
            Stopped: :meth:`stop` was called.
        """
        position, failures = begin, 0
        while position < end:
            start = position
            try:
                for piece in self._range(file, position, end):
                    position += len(piece)
                    yield piece
            except Again as failure:
                failures = 1 if position - start >= self._patience.progress_bytes else failures + 1
                self._wait(file.url, failure, failures)

    def start(self) -> None:
        """Take up work again after :meth:`stop`."""
        self._stopped.clear()

    def stop(self) -> None:
        """End all waiting, now and until :meth:`start`, with :class:`Stopped`; may be called from any thread."""
        self._stopped.set()
        for response in tuple(self._responses):
            # A thread that waits for bytes wakes when its connection is shut.
            with (
                contextlib.suppress(OSError, ValueError, AttributeError),
                socket.fromfd(response.fileno(), socket.AF_INET, socket.SOCK_STREAM) as connection,
            ):
                connection.shutdown(socket.SHUT_RDWR)

    # -- one attempt --------------------------------------------------------------------------------------------------

    def _range(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        with self._response(file.url, {"Range": f"bytes={begin}-{end - 1}"}) as response:
            require_asked(file, begin, end, response)
            patience, seen, since = self._patience, 0, time.monotonic()
            while begin < end:
                piece = self._piece(response, file.url, min(end - begin, _PIECE_BYTES))
                if not piece:
                    raise Again(f"the connection ended {end - begin} bytes early")
                begin += len(piece)
                seen += len(piece)
                yield piece
                if time.monotonic() - since > patience.stall_seconds:
                    if seen < patience.progress_bytes:
                        raise Again(f"{seen} bytes in {patience.stall_seconds:g} s")
                    seen, since = 0, time.monotonic()

    def _piece(self, response: HTTPResponse, url: str, num_bytes: int) -> bytes:
        try:
            return response.read1(num_bytes)
        except TimeoutError:
            raise Again(f"no byte in {self._patience.stall_seconds:g} s") from None
        except (OSError, HTTPException) as error:
            raise Again(f"the connection broke ({reason_of(error)})") from error

    @contextlib.contextmanager
    def _response(self, url: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        """The server's answer, after redirects; any other status than success is raised."""
        if self._stopped.is_set():
            raise Stopped
        request = urllib.request.Request(url, headers={
            "Accept-Encoding": "identity", "User-Agent": f"depthup/{__version__}", **headers
        })  # fmt: skip
        if self._token and origin_of(url) == self._home:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            response = self._opener.open(request, timeout=self._patience.stall_seconds)
        except urllib.error.HTTPError as error:
            self._answered = True
            with contextlib.closing(error):
                raise refused(url, error, self._token is not None) from error
        except (OSError, HTTPException) as error:
            raise unreachable(url, error) from error
        except ValueError as error:
            raise wrong(url, f"redirects to what is no address ({error})") from error
        self._answered = True
        self._responses.add(response)
        try:
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise wrong(url, f"answers with the encoding {encoding}, which was not asked for")
            yield response
        finally:
            self._responses.discard(response)
            response.close()

    # -- many attempts ------------------------------------------------------------------------------------------------

    def _again_and_again(self, url: str, ask: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return ask()
            except Again as failure:
                failures += 1
                self._wait(url, failure, failures)

    def _wait(self, url: str, failure: Again, failures: int) -> None:
        """Pause before the next attempt, or give up."""
        patience = self._patience
        if self._stopped.is_set():
            raise Stopped
        if failures >= (patience.num_attempts if self._answered else patience.num_first_attempts):
            raise CheckpointError(
                f"{url} could not be read: {failure}, after {failures} attempts",
                next_step="check the network; what has been fetched is kept, and the same command goes on from there",
            ) from failure
        wait = min(patience.first_wait_seconds * 2 ** (failures - 1), patience.longest_wait_seconds)
        wait *= random.uniform(0.5, 1)  # so that many clients do not come back at once
        if failure.wait_seconds is not None:
            if failure.wait_seconds > patience.longest_asked_seconds:
                raise CheckpointError(
                    f"{url}: {failure}, and the server asks for a pause of {failure.wait_seconds:.0f} s",
                    next_step="run the same command after that; what has been fetched is kept",
                ) from failure
            wait = max(wait, failure.wait_seconds)
        if self._stopped.wait(wait):
            raise Stopped


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a few redirects; only those that stay on the same origin carry the token on."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message
    ) -> HTTPResponse | None:
        fp.close()  # its text is not read, however long it is
        return super().http_error_302(req, fp, code, msg, headers)  # type: ignore[arg-type]

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise wrong(req.full_url, f"redirects from https to {newurl}")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if request is not None:
            request.remove_header("Proxy-authorization")  # set again where the new host is behind the proxy
            token = req.unredirected_hdrs.get("Authorization")
            if token and origin_of(newurl) == origin_of(req.full_url):
                request.add_unredirected_header("Authorization", token)
        return request
