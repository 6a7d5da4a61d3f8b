"""What a server's answer means: the bytes that were asked for, a failure that may pass, or one that will not.

The facts are from RFC 9110, sections 10.2.3 (Retry-After), 14 (ranges) and 15 (statuses).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl
import urllib.error
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, InvalidURL

from ..errors import CheckpointError

_LATER = frozenset({408, 425, 429})  # these, and server errors, pass
_NEVER = frozenset({501, 505})


@dataclass(frozen=True)
class RemoteFile:
    """One file on a server.

    Attributes:
        name: Its name in the checkpoint's folder.
        url: Where it is.
        num_bytes: Its size.
        sha256: Hex digest of its bytes, where the server declares one.
        git_sha1: Hex digest of its bytes as a git blob, where the server declares one.
        version: The server's mark of this version of the file (a strong ETag, or the time of the last change).
    """

    name: str
    url: str
    num_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None
    version: str | None = None


class Checksum:
    """SHA-256 of a file as its bytes pass by, and what its server declares of it."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        blob = f"blob {file.num_bytes}\0".encode()  # how git names a file
        self._git_sha1 = hashlib.sha1(blob, usedforsecurity=False) if file.git_sha1 else None

    def update(self, data: bytes | bytearray) -> None:
        self._sha256.update(data)
        if self._git_sha1:
            self._git_sha1.update(data)

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes so far."""
        return self._sha256.hexdigest()

    def require_declared(self) -> None:
        """Raise :class:`CheckpointError` unless the bytes are those that the server declares."""
        found = self._git_sha1.hexdigest() if self._git_sha1 else self.sha256
        declared = self._file.git_sha1 or self._file.sha256 or found
        if found != declared:
            raise CheckpointError(
                f"{self._file.url} arrived with the checksum {found[:16]}…, the server declares {declared[:16]}…:"
                " bytes were changed on the way, or at their source",
                next_step="run the same command again; this file is fetched anew, whole ones are kept",
            )


class Missing(CheckpointError):
    """The server has no such file, or does not tell that it has."""


class Again(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def origin_of(url: str) -> tuple[str, str, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or ""), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def version_of(headers: Message) -> str | None:
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")  # W/"..." marks versions that may differ


def require_asked(file: RemoteFile, begin: int, end: int, response: HTTPResponse) -> None:
    """The answer must be bytes ``[begin, end)`` of this version of this file."""
    size, length = file.num_bytes, response.headers.get("Content-Length")
    if response.status == 206:
        range_of = response.headers.get("Content-Range", "none")
        if not (match := re.fullmatch(rf"bytes {begin}-{end - 1}/([0-9]+|\*)", range_of)):
            raise wrong(file.url, f"answers with the range '{range_of}', asked for bytes {begin}-{end - 1}")
        total = match[1]
    else:
        total = length or "*"
        if (begin, end) != (0, size):
            raise no_ranges(file.url, response)
    if total not in (str(size), "*"):
        raise CheckpointError(
            f"{file.url} has {total} bytes, expected {size}: it changed, or an older file is in the way",
            next_step="run the same command again; it starts anew with the files as they are now",
        )
    version = version_of(response.headers)
    if file.version and version and version != file.version:
        raise CheckpointError(
            f"{file.url} changed while it was read ({file.version} before, {version} now)",
            next_step="run the same command again; it starts anew with the files as they are now",
        )


def refused(url: str, error: urllib.error.HTTPError, has_token: bool) -> Exception:
    code = error.code
    said = error.headers.get("X-Error-Message") or error.reason
    moved = origin_of(error.geturl() or url) != origin_of(url)
    if code in _LATER or (code >= 500 and code not in _NEVER):
        return Again(f"the server answers {code} ({said})", _asked_wait(error.headers))
    if code in (401, 403) and moved:
        return Again(f"the link to {origin_of(error.geturl())[1]} is refused with {code}")  # such links expire
    if code in (401, 403):
        what = Missing if code == 403 else CheckpointError  # object stores answer 403 for what is not there
        return what(
            f"{url} is refused: {code} ({said})",
            next_step="check the name"
            if has_token
            else "check the name; for a gated or private model of the hub,"
            " accept its terms there, then `hf auth login` or set HF_TOKEN",
        )
    if code in (404, 410):
        return Missing(f"there is no {url} ({said})", next_step="check the name and the revision")
    if code == 416:
        return Missing(
            f"{url} is shorter than expected: the server has no such range",
            next_step="run the same command again; it starts anew with the files as they are now",
        )
    if 300 <= code < 400:
        return wrong(url, f"redirects in a loop, or to nowhere ({code})")
    return CheckpointError(f"{url} cannot be read: {code} ({said})", next_step="check the address")


def _asked_wait(headers: Message) -> float | None:
    """Seconds that the server asks to wait: ``Retry-After`` in seconds or as a date, or the hub's ``RateLimit``."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    with contextlib.suppress(ValueError):
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    match = re.search(r";\s*r=0\s*;\s*t=([0-9]+)", headers.get("RateLimit", ""))
    return float(match[1]) if match else None


def unreachable(url: str, error: OSError | HTTPException) -> Exception:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return CheckpointError(
            f"the certificate of {origin_of(url)[1]} does not hold: {reason.verify_message}",
            next_step="set SSL_CERT_FILE to the file of certificates that your network needs (`python -m certifi`"
            " names a common one)",
        )
    if isinstance(error, InvalidURL):
        return wrong(url, f"is no address ({error})")
    return Again(f"no connection ({reason_of(error)})")


def reason_of(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason) or type(reason).__name__


def no_ranges(url: str, response: HTTPResponse) -> CheckpointError:
    return CheckpointError(
        f"{url}: the server does not serve byte ranges (it answers {response.status})",
        allowed="a server that answers a request for a range with 206",
        next_step="download the whole model and name its folder",
    )


def wrong(url: str, what: str) -> CheckpointError:
    return CheckpointError(f"the server of {url} {what}", next_step="tell who runs it; nothing was published")
