"""The errors that a user can meet. Each message gives the value, what is allowed, and the next step."""

from __future__ import annotations

import difflib
import errno
import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr()  # of lists and objects the first members: they may hold each other, or one thing many times
_SHORT.maxlong = _SHORT.maxother = 100
_MAX_LINE = 1000  # characters; a path may be long


class DepthupError(Exception):
    """Base of every error that depthup raises on purpose; the command line prints it and exits with 2.

    Args:
        problem: What is wrong, with the value that is wrong.
        allowed: What would have been accepted.
        next_step: What the user can do now.
    """

    def __init__(self, problem: str, *, allowed: str | None = None, next_step: str | None = None) -> None:
        self.problem = readable(problem)
        self.allowed = readable(allowed) if allowed else None
        self.next_step = readable(next_step) if next_step else None
        lines = [self.problem]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        super().__init__("\n".join(lines))


class PlanError(DepthupError):
    """A layer plan that cannot be: depth would not grow, or a layer that is not there."""


class CheckpointError(DepthupError):
    """A checkpoint that is not whole, not consistent, or not of a form that depthup reads."""


class OutputError(DepthupError):
    """An output that cannot be written: it exists, the disk is too small, another process writes it."""


class BusyError(OutputError):
    """An output that another process is writing now."""


class RecipeError(DepthupError):
    """A recipe that does not parse: unknown key, wrong type, missing stage."""


class DataError(DepthupError):
    """A data source that cannot be read, or holds too little text."""


class TrainingError(DepthupError):
    """A training run that cannot start or go on."""


class Stopped(Exception):
    """A run that a signal of its launcher stopped, with its state saved: run again, it goes on."""


_NETWORK = frozenset({"TransportError", "NewConnectionError", "IncompleteRead", "URLError"})  # of httpx, urllib3, http
_NUMBERS = frozenset({
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT,
    errno.EPIPE, errno.ESTALE, errno.EIO,
})  # fmt: skip


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later with nothing changed: a network or a file server that did not
    answer, processes that died.

    The error or one that it came from decides; being offline by choice (``HF_HUB_OFFLINE``) does not pass.
    """
    seen: BaseException | None = error
    while seen is not None:
        names = {kind.__name__ for kind in type(seen).__mro__}
        if "OfflineModeIsEnabled" in names:
            return False
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if status is not None:
            return status in (408, 429) or status >= 500
        if isinstance(seen, BusyError | ConnectionError | TimeoutError | ChildProcessError) or names & _NETWORK:
            return True
        if isinstance(seen, OSError) and seen.errno in _NUMBERS:
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


def readable(text: str) -> str:
    """The text as a terminal may show it: what does not print is escaped, the middle of a very long line left out.

    Names and values of a file that nobody vouches for stand in messages; they must not steer the terminal.
    """
    lines = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in text.split("\n"))
    return "\n".join(line if len(line) <= _MAX_LINE else f"{line[:600]} ... {line[-200:]}" for line in lines)


def shown(value: object, max_chars: int = 80) -> str:
    """A value from outside as one short line of a message, whatever it is."""
    try:
        text = value if isinstance(value, str) else _SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists nested in lists
        text = f"a {type(value).__name__} too large to show"
    text = readable(text[: max_chars + 1]).replace("\n", "\\n")
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def nearest(word: str, options: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the option most like ``word``, or an empty string."""
    match = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""
