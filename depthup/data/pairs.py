"""Preference pairs in rows: padding-free, both answers of a pair in one row as two documents, a step in whole pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .packing import IGNORED, PairBatch, _best_fit, _permutation
from .pair_tokens import TokenizedPairs


@dataclass(frozen=True)
class PairRows:
    """Preference pairs as a run reads them. What a step sees is a pure function of (seed, step).

    The batch size of preference training is counted in pairs, as in the papers: a step has exactly so many pairs,
    packed into as few rows as best fit finds. For this class alone ``num_rows`` therefore counts pairs.

    Attributes:
        pairs: The token ids.
        row_tokens: Tokens in a row; the longest pair, which is two documents, must fit.
        reference: float64 [num_pairs, 2], the reference's log-probabilities of chosen and rejected, or None.
        rows_multiple: Empty rows (no targets) fill a batch up to a multiple of this, for fixed shapes and equal ranks.

    Raises:
        DataError: A pair is longer than a row, or ``reference`` is not of these pairs.
    """

    pairs: TokenizedPairs
    row_tokens: int
    reference: NDArray[np.float64] | None = None
    rows_multiple: int = 1

    def __post_init__(self) -> None:
        longest = int(self.pairs.lengths.max(initial=0))
        if longest == 0:
            raise DataError("there is no preference pair", next_step="add pairs")
        if longest > self.row_tokens:
            raise DataError(
                f"row_tokens is {self.row_tokens}, and the longest pair has {longest} tokens as two documents",
                allowed=f"at least {longest}; twice max_tokens is always enough",
                next_step="raise row_tokens, or lower max_tokens",
            )
        if self.reference is not None and self.reference.shape != (self.pairs.num_pairs, 2):
            raise DataError(
                f"the reference log-probabilities have the shape {list(self.reference.shape)}",
                allowed=f"[{self.pairs.num_pairs}, 2]: two for each pair",
                next_step="compute them for these pairs",
            )

    @property
    def num_rows(self) -> int:
        """Number of pairs (see above)."""
        return self.pairs.num_pairs

    @property
    def num_targets(self) -> int:
        """Targets of all pairs: the tokens of their answers."""
        return int(self.pairs.answer_lengths.sum())

    def batch_of_step(self, step: int, num_rows: int, seed: int) -> PairBatch:
        """The ``num_rows`` pairs of optimiser step ``step`` (from 0): each epoch is a new permutation of all pairs."""
        return self.batch(self.pairs_of_step(step, num_rows, seed))

    def pairs_of_step(self, step: int, num_pairs: int, seed: int) -> NDArray[np.int64]:
        """Indices of the step's pairs, int64 [num_pairs]; a step across the border of two epochs may hold one twice."""
        epochs, places = np.divmod(np.arange(step * num_pairs, (step + 1) * num_pairs), self.num_rows)
        orders = {int(epoch): _permutation(seed, int(epoch), self.num_rows) for epoch in np.unique(epochs)}
        return np.asarray([orders[epoch][place] for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)])

    def pairs_of_run(self, num_steps: int, num_pairs: int, seed: int) -> NDArray[np.int64]:
        """Indices of all pairs that the first ``num_steps`` steps see, ascending."""
        if num_steps * num_pairs >= self.num_rows:  # a whole epoch
            return np.arange(self.num_rows)
        return np.sort(self.pairs_of_step(0, num_steps * num_pairs, seed))

    def batch(self, indices: NDArray[np.int64]) -> PairBatch:
        """The pairs with these indices, packed by best fit; their order in the batch is that of the rows."""
        order, row_offsets = self._packed(indices)
        num_empty = -(len(row_offsets) - 1) % self.rows_multiple
        return self._filled(order, np.pad(row_offsets, (0, num_empty), mode="edge"))

    def in_order(self, num_rows: int) -> Iterator[PairBatch]:
        """All pairs once, packed together, in batches of at most ``num_rows`` rows (rows here, not pairs)."""
        for _, batch in self.in_order_with_indices(np.arange(self.num_rows), num_rows):
            yield batch

    def in_order_with_indices(
        self, indices: NDArray[np.int64], num_rows: int
    ) -> Iterator[tuple[NDArray[np.int64], PairBatch]]:
        """These pairs once, packed together: (index of each pair of the batch, in its order; at most num_rows rows)."""
        order, row_offsets = self._packed(indices)
        for start in range(0, len(row_offsets) - 1, num_rows):
            offsets = row_offsets[start : start + num_rows + 1]
            inside = order[offsets[0] : offsets[-1]]
            yield inside, self._filled(inside, offsets - offsets[0])

    def _packed(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(indices ordered by row, row_offsets): row r holds ``order[row_offsets[r]:row_offsets[r + 1]]``."""
        lengths = self.pairs.lengths[indices]
        longest_first = np.argsort(-lengths, kind="stable")
        rows = _best_fit(lengths[longest_first].tolist(), self.row_tokens)
        by_row = np.argsort(rows, kind="stable")
        return indices[longest_first][by_row], np.concatenate([[0], np.cumsum(np.bincount(rows))])

    def _filled(self, order: NDArray[np.int64], row_offsets: NDArray[np.int64]) -> PairBatch:
        shape = (len(row_offsets) - 1, self.row_tokens)
        input_ids = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        sequences = np.full(shape, -1, np.int64)
        position_ids = np.empty(shape, np.int64)
        positions = np.arange(self.row_tokens)
        for row in range(shape[0]):
            filled = 0
            for number in range(row_offsets[row], row_offsets[row + 1]):
                prompt, *answers = self.pairs.pair(int(order[number]))
                for side, answer in enumerate(answers):
                    begin = filled + len(prompt)
                    end = begin + len(answer)
                    input_ids[row, filled:begin], input_ids[row, begin:end] = prompt, answer
                    labels[row, begin - 1 : end - 1] = answer
                    sequences[row, begin - 1 : end - 1] = 2 * number + side
                    position_ids[row, filled:end] = positions[: end - filled]
                    filled = end
            position_ids[row, filled:] = positions[: self.row_tokens - filled]
        reference = None if self.reference is None else self.reference[order]
        return PairBatch(input_ids, labels, position_ids, sequences, reference)
