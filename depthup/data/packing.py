"""Packing: rows of a fixed length, each filled with several documents that do not see one another.

Best-fit decreasing, as in "Fewer Truncations Improve Language Modeling" (Ding et al. 2024, arXiv:2404.10830): a
document is cut only where it is longer than a row. Pieces of a cut document overlap by one token, so every token but
each document's first is a target exactly once, however the rows are filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .tokens import TokenizedDocuments

IGNORED = -100  # label of a position that has no target


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass, each array int64 [num_rows, row_tokens].

    Attributes:
        input_ids: Token ids; the end of a row may be padding.
        labels: The token that follows, or ``IGNORED`` at the end of a piece and in padding.
        position_ids: Position within the document's piece, so that it starts from 0 at each seam between documents
            (models read the document mask from this); ``0 ... row_tokens - 1`` without document mask.
        row_sources: Name of each row's source in a mixture; empty where there is one source.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    row_sources: tuple[str, ...] = field(default=(), kw_only=True)
    _COLUMNS: ClassVar[tuple[str, ...]] = ("input_ids", "labels", "position_ids")  # the arrays of [rows, row_tokens]

    @property
    def num_rows(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        return int((self.labels != IGNORED).sum())

    @property
    def num_units(self) -> int:
        """What the loss is averaged over: targets; in a batch of preferences, pairs."""
        return self.num_targets

    def rows(self, start: int, stop: int) -> Batch:
        """The rows ``[start, stop)``."""
        part = slice(start, stop)
        arrays = (self.input_ids[part], self.labels[part], self.position_ids[part])
        return Batch(*arrays, row_sources=self.row_sources[part])

    def targets_by_source(self) -> dict[str, int]:
        """Name of a source -> targets of its rows here, for sources that have any; empty where there is one source."""
        counts = (self.labels != IGNORED).sum(axis=1).tolist()
        found: dict[str, int] = {}
        for name, count in zip(self.row_sources, counts, strict=False):
            found[name] = found.get(name, 0) + count
        return {name: count for name, count in found.items() if count}

    def needed(self) -> Self:
        """The batch without the columns behind its last target (but two at the least): under causal attention no loss
        depends on them."""
        columns = np.flatnonzero((self.labels != IGNORED).any(axis=0))
        stop = max(2, int(columns[-1]) + 1) if len(columns) else 2
        return replace(self, **{name: getattr(self, name)[:, :stop] for name in self._COLUMNS})


@dataclass(frozen=True)
class PairBatch(Batch):
    """Rows that hold whole preference pairs, padding-free: chosen and rejected of a pair stand in one row.

    Attributes:
        sequences: int64 [num_rows, row_tokens]; at each target 2 p for the chosen and 2 p + 1 for the rejected answer
            of pair p (pairs are counted through the batch, row by row); -1 elsewhere.
        reference: float64 [num_pairs, 2], the reference's log-probability of each answer in nats, summed over its
            targets; None where the objective needs none.
    """

    sequences: NDArray[np.int64]
    reference: NDArray[np.float64] | None
    _COLUMNS: ClassVar[tuple[str, ...]] = (*Batch._COLUMNS, "sequences")

    @property
    def num_units(self) -> int:
        return int(self.sequences.max(initial=-1) + 1) // 2

    def rows(self, start: int, stop: int) -> PairBatch:
        """The rows ``[start, stop)``, with their pairs counted from 0 again."""
        before, here = self.sequences[:start], self.sequences[start:stop]
        first = int(before.max(initial=-1) + 1)
        last = max(first, int(here.max(initial=-1) + 1))
        return PairBatch(
            self.input_ids[start:stop],
            self.labels[start:stop],
            self.position_ids[start:stop],
            np.where(here < 0, -1, here - first),
            None if self.reference is None else self.reference[first // 2 : last // 2],
            row_sources=self.row_sources[start:stop],
        )


@runtime_checkable
class Rows(Protocol):
    """What a run reads. A step's rows are a pure function of (seed, step): a run resumes from its step alone."""

    @property
    def num_rows(self) -> int: ...

    def batch_of_step(self, step: int, num_rows: int, seed: int) -> Batch:
        """The global batch of optimiser step ``step``, from 0."""
        ...

    def in_order(self, num_rows: int) -> Iterator[Batch]:
        """All rows once, in order, in batches of at most ``num_rows``."""
        ...


@dataclass(frozen=True)
class PackedRows:
    """Documents packed into rows. Which rows a step sees is a pure function of (seed, step).

    Attributes:
        documents: The token ids.
        pieces: int64 [num_pieces, 2], begin and end in ``documents.tokens``, ordered by row.
        row_offsets: int64 [num_rows + 1]; row r holds ``pieces[row_offsets[r]:row_offsets[r + 1]]``.
        row_tokens: Tokens in a row.
        document_mask: Whether documents in a row are kept apart.
        num_truncated: Documents of which only the first ``row_tokens`` tokens are in a row.
        num_dropped: Documents left out, because no target was left of them.
    """

    documents: TokenizedDocuments
    pieces: NDArray[np.int64]
    row_offsets: NDArray[np.int64]
    row_tokens: int
    document_mask: bool = True
    num_truncated: int = 0
    num_dropped: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def num_targets(self) -> int:
        """Targets in all rows: without a mask, the tokens less one for each piece."""
        return int(_count_targets(self.documents, self.pieces).sum())

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The rows with these indices."""
        shape = (len(rows), self.row_tokens)
        input_ids = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        position_ids = np.tile(np.arange(self.row_tokens), (len(rows), 1))
        for place, row in enumerate(rows):
            filled = 0
            for begin, end in self.pieces[self.row_offsets[row] : self.row_offsets[row + 1]]:
                stop = filled + int(end - begin)
                ids = self.documents.tokens[begin:end]
                input_ids[place, filled:stop] = ids
                labels[place, filled : stop - 1] = ids[1:]
                if self.documents.targets is not None:
                    labels[place, filled : stop - 1][~self.documents.targets[begin + 1 : end]] = IGNORED
                if self.document_mask:
                    position_ids[place, filled:] = np.arange(self.row_tokens - filled)
                filled = stop
            if self.document_mask:
                position_ids[place, filled:] = np.arange(self.row_tokens - filled)
        return Batch(input_ids, labels, position_ids)

    def batch_of_step(self, step: int, num_rows: int, seed: int) -> Batch:
        """The rows of optimiser step ``step`` (from 0): each epoch is a new permutation of all rows."""
        first = step * num_rows
        indices = [self._row_at(position, seed) for position in range(first, first + num_rows)]
        return self.batch(np.asarray(indices))

    def in_order(self, num_rows: int) -> Iterator[Batch]:
        """All rows once, in order, in batches of at most ``num_rows``: for evaluation."""
        for start in range(0, self.num_rows, num_rows):
            yield self.batch(np.arange(start, min(start + num_rows, self.num_rows)))

    def _row_at(self, position: int, seed: int) -> int:
        epoch, place = divmod(position, self.num_rows)
        return int(_permutation(seed, epoch, self.num_rows)[place])


@lru_cache(maxsize=16)  # a step lies in one epoch, or on the border of two, of each source of a mixture
def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(size)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Batches of rows of one length below one another; of preferences, with their pairs counted through.

    Raises:
        DataError: The rows are of different lengths, or only some batches hold preferences.
    """
    if len({(type(batch), batch.input_ids.shape[1]) for batch in batches}) != 1:
        found = ", ".join(f"{type(batch).__name__} of {batch.input_ids.shape[1]} tokens" for batch in batches)
        raise DataError(f"rows that do not fit together: {found}", allowed="rows of one kind and one row_tokens")
    input_ids, labels, position_ids = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("input_ids", "labels", "position_ids")
    )
    pairs = [batch for batch in batches if isinstance(batch, PairBatch)]
    if not pairs:
        return Batch(input_ids, labels, position_ids)
    before = np.cumsum([0, *(2 * batch.num_units for batch in pairs)])
    moved = [np.where(b.sequences < 0, -1, b.sequences + shift) for b, shift in zip(pairs, before, strict=False)]
    references = [batch.reference for batch in pairs if batch.reference is not None]
    if len(references) not in (0, len(pairs)):
        raise DataError("only some of the batches know the reference's log-probabilities", allowed="all, or none")
    return PairBatch(
        input_ids, labels, position_ids, np.concatenate(moved), np.concatenate(references) if references else None
    )


def pack(
    documents: TokenizedDocuments,
    row_tokens: int,
    document_mask: bool = True,
    *,
    whole: bool = False,
    max_dropped: float = 0.1,
) -> PackedRows:
    """Pack documents into rows of ``row_tokens`` by best fit, longest pieces first.

    Args:
        documents: With or without a mask of targets.
        row_tokens: Tokens in a row.
        document_mask: Whether documents in a row are kept apart.
        whole: For conversations: a document longer than a row is truncated, not cut into pieces that would begin in
            the middle of a turn; one of which no target is left is dropped.
        max_dropped: Share of documents, from 0 to 1, that may be dropped before the data are refused.

    Raises:
        DataError: A row is too short to hold a target, no document has a target, or too many are truncated to nothing.
    """
    if row_tokens < 2:
        raise DataError(f"row_tokens is {row_tokens}", allowed="at least 2: one token and the one that follows")
    num_truncated = num_dropped = 0
    if whole:
        pieces, num_truncated, num_dropped = _truncated(documents, row_tokens, max_dropped)
    else:
        pieces = _cut(documents.offsets, row_tokens)
    if _count_targets(documents, pieces).sum() == 0:
        raise DataError("no document has two tokens, so there is nothing to predict" if documents.targets is None
                        else "no document has a target, so there is nothing to learn",
                        next_step="add longer text")  # fmt: skip
    lengths = pieces[:, 1] - pieces[:, 0]
    order = np.argsort(-lengths, kind="stable")
    rows = _best_fit(lengths[order].tolist(), row_tokens)
    by_row = np.argsort(rows, kind="stable")
    row_offsets = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    return PackedRows(
        documents, pieces[order][by_row], row_offsets, row_tokens, document_mask, num_truncated, num_dropped
    )


def _count_targets(documents: TokenizedDocuments, pieces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Targets of each piece, whose first token never is one."""
    if documents.targets is None:
        return np.maximum(pieces[:, 1] - pieces[:, 0] - 1, 0)
    targets = documents.targets
    return np.asarray([np.count_nonzero(targets[begin + 1 : end]) for begin, end in pieces.tolist()], np.int64)


def _truncated(
    documents: TokenizedDocuments, row_tokens: int, max_dropped: float
) -> tuple[NDArray[np.int64], int, int]:
    """The first ``row_tokens`` tokens of each document that has a target there; how many are truncated, and dropped."""
    begins, ends = documents.offsets[:-1], documents.offsets[1:]
    pieces = np.stack([begins, np.minimum(ends, begins + row_tokens)], axis=1)
    kept = _count_targets(documents, pieces) > 0
    num_dropped = int((~kept).sum())
    if num_dropped > max_dropped * len(pieces):
        raise DataError(
            f"{num_dropped:,} of {len(pieces):,} documents are truncated to nothing: their first {row_tokens} tokens"
            " hold no target",
            allowed=f"at most {max_dropped:.0%} of them",
            next_step="raise row_tokens, or take documents with long contexts out",
        )
    return pieces[kept], int((kept & (pieces[:, 1] < ends)).sum()), num_dropped


def _cut(offsets: NDArray[np.int64], row_tokens: int) -> NDArray[np.int64]:
    """Pieces of at most ``row_tokens`` tokens; neighbours of one document share one token; at least two tokens each."""
    pieces: list[tuple[int, int]] = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        while end - begin >= 2:
            stop = min(begin + row_tokens, end)
            pieces.append((begin, stop))
            begin = stop - 1 if stop < end else end
    return np.asarray(pieces, dtype=np.int64).reshape(-1, 2)


def _best_fit(lengths: list[int], row_tokens: int) -> NDArray[np.int64]:
    """The row of each piece: the open row with the least room that still holds it, else a new row."""
    open_rows: list[list[int]] = [[] for _ in range(row_tokens + 1)]  # by room left
    rooms = 0  # bit r is set when a row with room r is open
    result = np.empty(len(lengths), np.int64)
    num_rows = 0
    for index, length in enumerate(lengths):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms &= ~(1 << room)
        else:
            room, row = row_tokens, num_rows
            num_rows += 1
        result[index] = row
        left = room - length
        if left >= 2:
            open_rows[left].append(row)
            rooms |= 1 << left
    return result
