"""What comes over the wire: the answer in a body, and the ways in which there is none."""

from __future__ import annotations

import json

from ..errors import shown
from .backend import Generated, Sampling

API_KEY = "DEPTHUP_API_KEY"  # environment variable that holds the key


class Passing(Exception):
    """An attempt that failed in a way that may pass: the reason, and the wait in seconds that the server asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait_s = reason, wait_s


class Refused(Exception):
    """A prompt that will never be answered: the reason, and how often it was asked."""


def parsed(text: str, how: Sampling, seconds: float) -> Generated:
    """The answer in a body.

    Raises:
        Passing: There is none in it.
    """
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content = choice["text"] if "text" in choice else choice["message"]["content"]
        usage = body.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        reason, model = str(choice.get("finish_reason") or ""), str(body.get("model") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Passing(f"no answer in the body: {shown(text, 120)}") from None
    if not isinstance(content, str):
        raise Passing(f"the answer has no text: {shown(text, 120)}")
    for stop in how.stop:  # most servers cut there themselves
        content = content.split(stop)[0]
    read, made = (count if isinstance(count, int) and not isinstance(count, bool) else None for count in counts)
    return Generated(content, reason, read, made, model, seconds)


def message_of(text: str) -> str:
    """What an error's body says."""
    try:
        error = json.loads(text)
        error = error.get("error", error)
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        return text
