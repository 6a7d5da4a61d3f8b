"""Forward passes that score paths: over trees of shared beginnings, or over padded rows where a model cannot share.

Both ask the model for logits only where a token is scored. What comes back is one log-probability for each scored
token, on the device; nothing is read there until the next batch has been launched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models import Model
from .encoding import Path
from .memory import Budget
from .prefixes import Sequences, Stem, Tree
from .tree_attention import Keys, Pass, make_layout

_FULL_TOKENS = 256  # of a pass from which on a processor's linear layers go no faster
_SOFTMAX_ELEMENTS = 1 << 26  # of logits that are normalised at once


@dataclass(frozen=True)
class Launched:
    """What a pass finds, on its way to the host.

    Attributes:
        paths: int64 [M], the path of each scored token.
        found: Its log-probability, float32 [M], on the host.
        likeliest: Whether it was the likeliest, bool [M], on the host.
        arrived: Tells that both are there; None where they are from the start.
    """

    paths: NDArray[np.int64]
    found: Tensor
    likeliest: Tensor
    arrived: torch.cuda.Event | None = None

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Wait for the numbers, and for nothing that was launched after them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.found.numpy(), self.likeliest.numpy()


@dataclass(frozen=True)
class Picks:
    """Which logits of a pass are looked at.

    Attributes:
        rows: Flat places whose logits are wanted, ascending.
        row_of: [M] index into ``rows`` of each scored token,
        targets: the token,
        paths: and its path.
    """

    rows: NDArray[np.int64]
    row_of: NDArray[np.int64]
    targets: NDArray[np.int64]
    paths: NDArray[np.int64]


class Runner:
    """Computes batches of one model.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: Model) -> None:
        self._model, self.device = model, model.device
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def put(self, array: NDArray[Any]) -> Tensor:
        """An array on the model's device, copied while the host goes on."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def trees(
        self, sequences: Sequences, paths: Sequence[Path], batch: Sequence[Tree], base: str, stem: Sequence[Keys]
    ) -> Launched:
        """Score what stands beyond the stem in a batch of trees."""
        num_stem = batch[0].depth
        tokens, ends, depths, picks = _flatten(sequences, paths, batch)
        shapes = [(tree.num_trunk, tree.num_tokens - tree.num_trunk) for tree in batch]
        one = Pass(make_layout(shapes, ends, depths, num_stem, self.put), base, stem)
        return self._launch(tokens, depths, picks, one)

    def stem(
        self, sequences: Sequences, paths: Sequence[Path], stem: Stem, base: str, below: Sequence[Keys]
    ) -> tuple[list[Keys], Launched]:
        """Keys and values of a stem after those below it, and scores of what is scored within it."""
        size = stem.fork - stem.depth
        tokens = sequences.tokens[stem.first][stem.depth : stem.fork].astype(np.int64)
        depths = np.arange(stem.depth, stem.fork)
        picks = _Picker()
        for index in range(stem.first, stem.last):
            picks.add(sequences, paths, index, np.arange(size), stem.depth, stem.fork)
        layout = make_layout([(size, 0)], np.full(size, size), depths, stem.depth, self.put)
        one = Pass(layout, base, below, keeps=True)
        launched = self._launch(tokens, depths, picks.made(), one)
        return one.kept, launched

    def rows(self, paths: Sequence[Path], groups: Sequence[Sequence[int]]) -> Launched:
        """Score rows padded on the right; the paths of a group have the same input."""
        inputs = [paths[group[0]].tokens[:-1] for group in groups]
        width = max(len(tokens) for tokens in inputs)
        padded = np.zeros((len(inputs), width), np.int64)
        row_of, columns, targets, owners = [], [], [], []
        for row, (tokens, group) in enumerate(zip(inputs, groups, strict=True)):
            padded[row, : len(tokens)] = tokens
            for index in group:
                path = paths[index]
                row_of.append(np.full(path.num_scored, row))
                columns.append(np.arange(len(tokens) - path.num_scored, len(tokens)))
                targets.append(path.tokens[-path.num_scored :].astype(np.int64))
                owners.append(np.full(path.num_scored, index))
        column = np.concatenate(columns)
        kept = np.unique(column)
        places = np.concatenate(row_of) * len(kept) + np.searchsorted(kept, column)
        rows, inverse = np.unique(places, return_inverse=True)
        keep = {"logits_to_keep": self.put(kept)} if self._keeps else {}
        logits = self._model(input_ids=self.put(padded), use_cache=False, **keep).logits
        logits = logits if self._keeps else logits[:, self.put(kept)]
        picks = Picks(rows, inverse.ravel(), np.concatenate(targets), np.concatenate(owners))
        return self._score(logits.flatten(0, 1), picks, select=True)

    def _launch(self, tokens: NDArray[Any], depths: NDArray[Any], picks: Picks, one: Pass) -> Launched:
        rows = self.put(picks.rows if len(picks.rows) else np.zeros(1, np.int64))
        keep = {"logits_to_keep": rows} if self._keeps else {}
        note = torch.empty((0, 1, 1, 1), dtype=torch.bool, device=self.device)  # no mask is made of it
        logits = self._model(
            input_ids=self.put(tokens[None]), position_ids=self.put(depths[None]), attention_mask=note,
            use_cache=False, trees=one, **keep,
        ).logits[0]  # fmt: skip
        return self._score(logits, picks, select=not self._keeps)

    def _score(self, logits: Tensor, picks: Picks, select: bool) -> Launched:
        """What is told of the scored tokens; logits are [rows, vocabulary]."""
        if not len(picks.paths):
            nothing = torch.empty(0)
            return Launched(picks.paths, nothing, nothing.bool())
        order = np.argsort(picks.row_of, kind="stable")
        row_of, targets = picks.row_of[order], picks.targets[order]
        rows = picks.rows if select else np.arange(len(picks.rows))
        size = max(_SOFTMAX_ELEMENTS // logits.shape[-1], 1)
        found, likeliest = [], []
        for begin in range(0, len(rows), size):
            wide = logits.index_select(0, self.put(rows[begin : begin + size])).float()
            first, last = np.searchsorted(row_of, [begin, begin + size])
            wanted, token = self.put(row_of[first:last] - begin), self.put(targets[first:last])
            found.append(wide.log_softmax(dim=-1)[wanted, token])
            likeliest.append(wide.argmax(dim=-1)[wanted] == token)
        return self._sent(picks.paths[order], torch.cat(found), torch.cat(likeliest))

    def _sent(self, paths: NDArray[np.int64], *parts: Tensor) -> Launched:
        """Copied now, and not when they are read: then they would come behind the whole next pass."""
        if self.device.type != "cuda":
            found, likeliest = (part.cpu() for part in parts)
            return Launched(paths, found, likeliest)
        found, likeliest = (
            torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True) for part in parts
        )
        return Launched(paths, found, likeliest, torch.cuda.current_stream(self.device).record_event())


def num_scored(sequences: Sequences, paths: Sequence[Path], tree: Tree) -> int:
    """Rows of logits that a tree asks for, at most."""
    longest = (
        max(paths[index].num_scored for index in members) for members in sequences.members[tree.first : tree.last]
    )
    return sum(longest)


def batches(
    trees: Sequence[Tree], budget: Callable[[], Budget], rows_of: Callable[[Tree], int], like: float = 0.0
) -> Iterator[list[Tree]]:
    """Trees of like length in batches that keep the budget, the longest first; a tree beyond it comes alone.

    Args:
        trees: In any order.
        budget: Of the next batch.
        rows_of: Rows of logits that a tree asks for.
        like: Share of the longest tree's tokens that the others of a batch have at least, once the batch has
            :data:`_FULL_TOKENS`: attention pads to the longest.
    """
    batch: list[Tree] = []
    tokens = logits = 0
    for tree in sorted(trees, key=lambda tree: (-tree.num_tokens, tree.first)):
        limit = budget()
        tokens, logits = tokens + tree.num_tokens, logits + rows_of(tree)
        keys = tokens + (len(batch) + 1) * tree.depth
        unlike = tokens - tree.num_tokens >= _FULL_TOKENS and tree.num_tokens < like * batch[0].num_tokens
        if batch and (unlike or tokens > limit.tokens or logits > limit.logits or keys > limit.keys):
            yield batch
            batch, tokens, logits = [], tree.num_tokens, rows_of(tree)
        batch.append(tree)
    if batch:
        yield batch


class _Picker:
    """Collects which logits are looked at."""

    def __init__(self) -> None:
        self._places: list[NDArray[np.int64]] = []
        self._targets: list[NDArray[np.int64]] = []
        self._paths: list[NDArray[np.int64]] = []

    def add(
        self, sequences: Sequences, paths: Sequence[Path], index: int, places: NDArray[np.int64], begin: int, end: int
    ) -> None:
        """The scored tokens of sequence ``index`` that are predicted at depths ``begin`` to ``end``."""
        size = len(sequences.tokens[index])
        for member in sequences.members[index]:
            path = paths[member]
            first, last = max(size - path.num_scored, begin), min(end, size)
            if first < last:
                self._places.append(places[first - begin : last - begin])
                self._targets.append(path.tokens[first + 1 : last + 1].astype(np.int64))
                self._paths.append(np.full(last - first, member))

    def made(self) -> Picks:
        if not self._places:
            nothing = np.zeros(0, np.int64)
            return Picks(nothing, nothing, nothing, nothing)
        rows, row_of = np.unique(np.concatenate(self._places), return_inverse=True)
        return Picks(rows, row_of.ravel(), np.concatenate(self._targets), np.concatenate(self._paths))


def _flatten(
    sequences: Sequences, paths: Sequence[Path], batch: Sequence[Tree]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Picks]:
    """Tokens, ends of subtrees and depths, each [N], of trees in depth-first order, and what is scored."""
    num_tokens = sum(tree.num_tokens for tree in batch)
    tokens, ends, depths = (np.empty(num_tokens, np.int64) for _ in range(3))
    picks, now = _Picker(), 0
    for tree in batch:
        on_path = np.empty(0, np.int64)  # place of the current sequence's token at each depth, from the stem on
        for index in range(tree.first, tree.last):
            sequence = sequences.tokens[index]
            shared = tree.depth if index == tree.first else int(sequences.shared[index])
            new = len(sequence) - shared
            ends[on_path[shared - tree.depth :]] = now  # their subtrees end here
            tokens[now : now + new] = sequence[shared:]
            depths[now : now + new] = np.arange(shared, len(sequence))
            on_path = np.append(on_path[: shared - tree.depth], np.arange(now, now + new))
            now += new
            picks.add(sequences, paths, index, on_path, tree.depth, len(sequence))
        ends[on_path] = now
    return tokens, ends, depths, picks.made()
