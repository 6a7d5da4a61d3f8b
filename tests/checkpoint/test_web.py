"""The HTTP client: against servers that drop, stall and lie, it ends with the right bytes or with one clear error."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from io import BytesIO
from pathlib import Path
from urllib.request import Request

import pytest
import servers
from servers import Fault, Server, chunked, drop, garble, lie, redirect, reset, serving, stall, status, trickle, whole

from depthup.checkpoint import web
from depthup.checkpoint.answers import Checksum, Missing, RemoteFile
from depthup.checkpoint.web import Stopped, Web
from depthup.errors import CheckpointError

DATA = random.Random(0).randbytes(200_000)


@pytest.fixture
def one(server: Server) -> Server:
    """A server of one file."""
    (server.root / "file").write_bytes(DATA)
    return server


def looked(server: Server) -> RemoteFile:
    file = Web().look("file", f"{server.url}/file")
    assert file is not None
    return file


# -- what works --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, len(DATA)), (7, 8), (100, 150_001), (5, 5)])
def test_a_range_arrives_as_it_is(one: Server, begin: int, end: int) -> None:
    file = looked(one)
    assert (file.num_bytes, file.name) == (len(DATA), "file") and file.version
    assert Web().read(file, begin, end) == DATA[begin:end]


PASSING: dict[str, list[Fault | None]] = {
    "dropped": [drop(50_000), drop(30_000), None],
    "dropped at once": [drop(0), drop(0), drop(0)],
    "dropped again and again, but with progress": [drop(15_000)] * 13,
    "reset": [reset(70_000), reset(1)],
    "stalled": [stall(50_000, 1.0)],
    "stalled at once": [stall(0, 1.0)],
    "a byte at a time": [trickle(2.0)],
    "busy": [status(429, Retry_After="0"), status(503), status(500), drop(100_000)],
    "busy by the hub's header": [status(429, RateLimit='"api";r=0;t=0')],
    "shorter than promised": [drop(199_999)],
    "in chunks": [chunked],
    "chunks that end early": [lambda handler, answer: (drop(40_000)(handler, servers.Answer(
        206, {**answer.headers, "Content-Length": str(10**9)}, answer.body)))],
    "the whole file for all of it": [whole],
}  # fmt: skip


@pytest.mark.parametrize("kind", PASSING)
def test_troubles_that_pass_are_invisible(one: Server, kind: str) -> None:
    file = looked(one)
    one.faults["/file"] = list(PASSING[kind])
    assert Web().read(file, 0, len(DATA)) == DATA
    assert one.faults["/file"] == [] or one.faults["/file"] == [None]


def test_a_dropped_connection_goes_on_at_the_byte_where_it_ended(one: Server) -> None:
    file = looked(one)
    one.faults["/file"] = [drop(50_000), drop(30_000)]
    assert Web().read(file, 10, 150_000) == DATA[10:150_000]
    assert one.asked("/file") == [(10, 150_000), (50_010, 150_000), (80_010, 150_000)]
    assert one.num_bytes <= 150_000 + 1  # nothing twice; the byte is the look


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_the_bytes_are_right_or_there_is_an_error(one: Server, seed: int) -> None:
    """Random sequences of all faults but changed bytes (which only a checksum can tell)."""
    draw, file = random.Random(seed), looked(one)
    kinds: list[Callable[[], Fault | None]] = [
        lambda: None, lambda: drop(draw.randrange(200_000)), lambda: reset(draw.randrange(200_000)),
        lambda: status(draw.choice([408, 429, 500, 502, 503, 504]), Retry_After="0"), lambda: chunked, lambda: whole,
        lambda: lie(Content_Range="bytes 0-9/10"), lambda: lie(Content_Length=str(draw.randrange(1, 300_000))),
        lambda: lie(ETag='"2"'), lambda: redirect("/file"),
    ]  # fmt: skip
    one.faults["/file"] = [draw.choice(kinds)() for _ in range(6)]
    begin, end = sorted(draw.sample(range(len(DATA)), 2))
    try:
        assert Web().read(file, begin, end) == DATA[begin:end]
    except CheckpointError as error:
        assert error.next_step


@pytest.mark.parametrize("asked", ["1", "a date"])
def test_the_server_says_how_long_to_wait(one: Server, asked: str) -> None:
    file = looked(one)
    if asked == "a date":
        asked = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    one.faults["/file"] = [status(503, Retry_After=asked)]
    begin = time.monotonic()
    assert Web().read(file, 0, 1000) == DATA[:1000]
    assert time.monotonic() - begin > 0.9


def test_redirects_are_followed_and_the_token_stays_at_home(one: Server, tmp_path: Path) -> None:
    """On its own origin the token goes along, relative redirects included; to another port it does not."""
    (one.root / "moved").write_bytes(b"")
    with serving(Server(one.root)) as other:
        one.every["/moved"] = redirect("/again")
        one.every["/again"] = redirect(f"{other.url}/file", 307)
        file = RemoteFile("file", f"{one.url}/moved", len(DATA))
        assert Web("secret", one.url).read(file, 3, 9000) == DATA[3:9000]
        assert [request.headers.get("authorization") for request in one.requests] == ["Bearer secret"] * 2
        assert [request.headers.get("authorization") for request in other.requests] == [None]
        assert other.requests[0].range == (3, 9000)
        other.every["/back"] = redirect(f"{one.url}/file")
        Web("secret", one.url).read(RemoteFile("file", f"{other.url}/back", len(DATA)), 0, 9)
        assert one.requests[-1].path == "/file" and "authorization" not in one.requests[-1].headers


def test_a_link_that_expired_is_had_again_from_its_source(one: Server) -> None:
    """A signed address of a CDN answers 403 when its time is over; the next attempt begins at the first address."""
    with serving(Server(one.root)) as cdn:
        one.every["/link"] = redirect(f"{cdn.url}/file")
        cdn.faults["/file"] = [drop(90_000), status(403)]
        assert Web().read(RemoteFile("file", f"{one.url}/link", len(DATA)), 0, len(DATA)) == DATA
        assert len(one.requests) == 3


# -- what does not -----------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[Fault | None], str]] = {
    "takes no notice of ranges": ([whole], "does not serve byte ranges"),
    "another range": ([lie(Content_Range=f"bytes 99-199998/{len(DATA)}")], "answers with the range 'bytes 99-"),
    "a shorter range": ([lie(Content_Range=f"bytes 100-150/{len(DATA)}")], "asked for bytes 100-199999"),
    "no range": ([lie(Content_Range="")], "answers with the range ''"),
    "another size": ([lie(Content_Range="bytes 100-199999/200001")], "has 200001 bytes, expected 200000"),
    "another version": ([lie(ETag='"other"')], "changed while it was read"),
    "another version after a drop": ([drop(500), lie(ETag='"other"')], "changed while it was read"),
    "packed": ([lie(Content_Encoding="gzip")], "the encoding gzip"),
    "a loop": ([redirect("/file")] * 20, "redirects in a loop"),
    "nowhere": ([status(302)], "redirects in a loop, or to nowhere"),
    "another protocol": ([redirect("file:///etc/passwd")], "redirects in a loop, or to nowhere"),
    "no address": ([redirect("http://[half/file")], "redirects to what is no address"),
    "no port": ([redirect("http://127.0.0.1:x/file")], "no address"),
    "401": ([status(401)], "refused: 401.*"),
    "403": ([status(403, X_Error_Message="Access is restricted")], "refused: 403 .Access is restricted"),
    "404": ([status(404)], "there is no http"),
    "416": ([status(416)], "shorter than expected"),
    "418": ([status(418)], "cannot be read: 418"),
    "500 for ever": ([status(500)] * 9, "the server answers 500 .*, after 4 attempts"),
    "dropped for ever": ([drop(0)] * 9, "ended 199900 bytes early, after 4 attempts"),
    "a byte before each drop": ([drop(1)] * 9, "early, after 4 attempts"),
    "stalled for ever": ([stall(0, 0.6)] * 9, "no byte in 0.3 s, after 4 attempts"),
    "a long pause": ([status(429, Retry_After="4000")], "asks for a pause of 4000 s"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_troubles_that_last_are_one_clear_error(one: Server, kind: str) -> None:
    file = looked(one)
    one.faults["/file"], message = list(WRONG[kind][0]), WRONG[kind][1]
    with pytest.raises(CheckpointError, match=message) as caught:
        Web().read(file, 100, len(DATA))
    assert caught.value.next_step and len(caught.value.problem.splitlines()) == 1


def test_a_redirect_to_a_weaker_protocol_is_refused() -> None:
    with pytest.raises(CheckpointError, match="redirects from https to http:"):
        web._Redirects().redirect_request(Request("https://a/b"), BytesIO(), 302, "", Message(), "http://a/b")


def test_a_certificate_that_does_not_hold_is_told_at_once(online: None, monkeypatch) -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_message = "self-signed certificate"

    def connect(*args: object, **options: object) -> None:
        raise refused

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(CheckpointError, match=r"of example\.org does not hold: self-signed[\s\S]*SSL_CERT_FILE"):
        Web().document("https://example.org/x")


def test_a_server_that_is_not_there_is_told_soon(online: None) -> None:
    with pytest.raises(CheckpointError, match=r"no connection \(.*refused\), after 3 attempts"):
        Web().look("file", "http://127.0.0.1:9/file")


@pytest.mark.parametrize(
    "fault",
    [status(404), status(410), status(403), lie(Content_Type="text/html"), status(200, Content_Type="text/html")],
)
def test_a_look_finds_nothing_where_there_is_no_file(one: Server, fault: Fault) -> None:
    """A page for people is no file; a store that does not list answers 403 for what is not there."""
    one.every["/file"] = fault
    assert Web().look("file", f"{one.url}/file") is None


@pytest.mark.parametrize("fault", [whole, lie(Content_Range="bytes 0-0/*"), status(200)])
def test_a_look_tells_that_a_server_has_no_ranges(one: Server, fault: Fault) -> None:
    one.every["/file"] = fault
    with pytest.raises(CheckpointError, match=r"does not serve byte ranges[\s\S]*next: download the whole model"):
        Web().look("file", f"{one.url}/file")


@pytest.mark.parametrize("tag", ['"strong"', 'W/"weak"', ""])
def test_a_weak_mark_of_a_version_is_not_believed(one: Server, tag: str) -> None:
    one.every["/file"] = lie(ETag=tag, Last_Modified="Mon, 23 Nov 2026 00:00:00 GMT")
    expected = tag if tag.startswith('"') else "Mon, 23 Nov 2026 00:00:00 GMT"
    assert looked(one).version == expected


def test_a_document_is_whole_or_had_again(one: Server) -> None:
    one.faults["/file"] = [drop(100), stall(100, 0.5), status(502)]
    data, headers = Web().document(f"{one.url}/file")
    assert data == DATA and headers["ETag"]
    one.faults["/file"] = [status(404)]
    with pytest.raises(Missing):
        Web().document(f"{one.url}/file")


@pytest.mark.parametrize("fault", [stall(50_000, 20.0), status(503, Retry_After="15")])
def test_a_thread_that_waits_is_stopped_at_once(one: Server, fault: Fault, monkeypatch) -> None:
    file, ended = looked(one), []
    one.faults["/file"] = [fault] * 9
    monkeypatch.setattr(web, "PATIENCE", web.Patience(stall_seconds=20.0))
    client = Web()

    def read() -> None:
        try:
            client.read(file, 0, len(DATA))
        except Stopped:
            ended.append(time.monotonic())

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.3)
    begin = time.monotonic()
    client.stop()
    thread.join(10)
    assert ended and ended[0] - begin < 5
    with pytest.raises(Stopped):
        client.read(file, 0, 1)
    client.start()
    one.faults.clear()
    assert client.read(file, 0, 1) == DATA[:1]


# -- checksums ---------------------------------------------------------------------------------------------------------


SUMS: list[dict[str, str]] = [
    {}, {"sha256": hashlib.sha256(DATA).hexdigest()}, {"git_sha1": servers.git_sha1(DATA)}
]  # fmt: skip


@pytest.mark.parametrize("declared", SUMS)
def test_a_checksum_holds_for_the_right_bytes_only(one: Server, declared: dict[str, str]) -> None:
    file = RemoteFile("file", f"{one.url}/file", len(DATA), **declared)
    for fault in (None, garble(77_777)):
        one.faults["/file"] = [fault]
        checksum = Checksum(file)
        for piece in Web().pieces(file, 0, len(DATA)):
            checksum.update(piece)
        if fault is None or not declared:
            checksum.require_declared()
        else:
            with pytest.raises(CheckpointError, match="arrived with the checksum"):
                checksum.require_declared()
        assert (checksum.sha256 == hashlib.sha256(DATA).hexdigest()) == (fault is None)
