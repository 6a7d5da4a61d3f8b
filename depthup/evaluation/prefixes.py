"""What many token sequences share, found once: a plan in which no shared beginning is computed again without need.

Sorted by their tokens, sequences that share a beginning stand side by side, and the beginnings form a radix tree. The
plan cuts it into *trees*, each small enough for one pass: a trunk that all its sequences share (the context of an item)
and branches (its choices). A beginning that many trees share (the worked examples of an MMLU subject) is a *stem*: its
keys and values are computed once and kept while the trees on it are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .encoding import Path, Tokens

MAX_BRANCH_TOKENS = 512  # of a tree; attention among branches costs their square
_MIN_SAVED = 0.1  # share of a subtree's tokens that a stem must save


@dataclass(frozen=True)
class Sequences:
    """Distinct model inputs in the order of their tokens.

    Attributes:
        tokens: Each input.
        shared: Tokens that each shares with the one before it; 0 for the first.
        members: Indices of the paths with that input.
    """

    tokens: tuple[Tokens, ...]
    shared: NDArray[np.int64]
    members: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Tree:
    """Sequences ``first`` to ``last`` (half-open) from token ``depth`` on: a trunk to token ``fork``, and branches."""

    first: int
    last: int
    depth: int
    fork: int
    num_tokens: int

    @property
    def num_trunk(self) -> int:
        return self.fork - self.depth


@dataclass
class Stem:
    """Tokens ``depth`` to ``fork`` of sequences ``first`` to ``last``, kept for what stands on them. The root is empty.

    Attributes:
        first: Of its sequences,
        last: half-open.
        depth: Tokens of the stems below it.
        fork: Its end.
        trees: What stands on it,
        stems: and further stems.
    """

    first: int
    last: int
    depth: int
    fork: int
    trees: list[Tree] = field(default_factory=list)
    stems: list[Stem] = field(default_factory=list)

    def walk(self) -> Iterator[Stem]:
        """This stem and all above it."""
        yield self
        for stem in self.stems:
            yield from stem.walk()

    @property
    def num_tokens(self) -> int:
        """Of all passes: its own tokens and those of all that stands on it."""
        return sum(stem.fork - stem.depth + sum(tree.num_tokens for tree in stem.trees) for stem in self.walk())


def sort_sequences(paths: Sequence[Path]) -> Sequences:
    """The distinct inputs of some paths."""
    members: dict[bytes, list[int]] = {}
    for index, path in enumerate(paths):
        members.setdefault(path.tokens[:-1].astype(">u4").tobytes(), []).append(index)  # bytes sort as numbers do
    keys = sorted(members)
    tokens = tuple(paths[members[key][0]].tokens[:-1] for key in keys)
    shared = np.zeros(len(tokens), np.int64)
    for index in range(1, len(tokens)):
        shared[index] = num_shared(tokens[index - 1], tokens[index])
    return Sequences(tokens, shared, tuple(tuple(members[key]) for key in keys))


def num_shared(first: Tokens, second: Tokens) -> int:
    """Tokens at the beginning that two sequences share."""
    size = min(len(first), len(second))
    different = first[:size] != second[:size]
    return int(different.argmax()) if different.any() else size


def plan(sequences: Sequences, max_branch_tokens: int = MAX_BRANCH_TOKENS) -> Stem:
    """How to compute all sequences: the root, a stem without tokens, and what stands on it."""
    lengths = np.array([len(tokens) for tokens in sequences.tokens], np.int64)
    new = np.append(0, np.cumsum(lengths - sequences.shared))  # tokens that no sequence before them has
    root = Stem(0, len(lengths), 0, 0)
    waiting = [(0, len(lengths), root)] if len(lengths) else []
    while waiting:
        first, last, stem = waiting.pop()
        fork = int(sequences.shared[first + 1 : last].min()) if last - first > 1 else int(lengths[first])
        num_tokens = int(new[last] - new[first] + sequences.shared[first]) - stem.fork
        if num_tokens - (fork - stem.fork) <= max_branch_tokens:
            stem.trees.append(Tree(first, last, stem.fork, fork, num_tokens))
            continue
        cuts = np.flatnonzero(sequences.shared[first + 1 : last] == fork) + first + 1
        borders = [first, *cuts.tolist(), last]
        saved = (fork - stem.fork) * (len(borders) - 2)
        if saved >= _MIN_SAVED * (num_tokens + saved) and saved > 0:
            stem.stems.append(Stem(first, last, stem.fork, fork))
            stem = stem.stems[-1]
        parts = list(itertools.pairwise(borders))
        if lengths[first] == fork == stem.fork:
            parts = parts[1:]  # it ends where the stem ends: nothing is left to compute
        waiting += [(begin, end, stem) for begin, end in parts]
    return root
