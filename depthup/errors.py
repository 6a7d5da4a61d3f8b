"""The errors that a user can meet. Each message gives the value, what is allowed, and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DepthupError(Exception):
    """Base of every error that depthup raises on purpose; the command line prints it and exits with 2.

    Args:
        problem: What is wrong, with the value that is wrong.
        allowed: What would have been accepted.
        next_step: What the user can do now.
    """

    def __init__(self, problem: str, *, allowed: str | None = None, next_step: str | None = None) -> None:
        self.problem, self.allowed, self.next_step = problem, allowed, next_step
        lines = [problem]
        if allowed:
            lines.append(f"  allowed: {allowed}")
        if next_step:
            lines.append(f"  next: {next_step}")
        super().__init__("\n".join(lines))


class PlanError(DepthupError):
    """A layer plan that cannot be: depth would not grow, or a layer that is not there."""


class CheckpointError(DepthupError):
    """A checkpoint that is not whole, not consistent, or not of a form that depthup reads."""


class OutputError(DepthupError):
    """An output that cannot be written: it exists, the disk is too small, another process writes it."""


class RecipeError(DepthupError):
    """A recipe that does not parse: unknown key, wrong type, missing stage."""


class DataError(DepthupError):
    """A data source that cannot be read, or holds too little text."""


class TrainingError(DepthupError):
    """A training run that cannot start or go on."""


def nearest(word: str, options: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the option most like ``word``, or an empty string."""
    match = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""
