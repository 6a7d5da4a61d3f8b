"""Mixtures: exact shares, each source's own epochs, and an order that depends on seed and step alone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.data.mixture import Mixture, with_replay
from depthup.data.packing import Batch, PackedRows, PairBatch, concatenate, pack
from depthup.data.tokens import TokenizedDocuments
from depthup.errors import DataError

WEIGHTS = st.lists(st.integers(1, 60).map(float) | st.floats(0.05, 5), min_size=1, max_size=6)


def source(number: int, num_rows: int, row_tokens: int = 4) -> PackedRows:
    """Rows of which the first token tells the source, the second the row."""
    tokens = np.asarray([[number, row, 1, 2][:row_tokens] for row in range(num_rows)], np.int32)
    return pack(TokenizedDocuments(tokens.ravel(), np.arange(0, tokens.size + 1, row_tokens)), row_tokens)


def mixture_of(weights: list[float], sizes: list[int]) -> Mixture:
    rows = {f"source {number}": source(number, size) for number, size in enumerate(sizes)}
    return Mixture(dict(list(rows.items())[: len(weights)]), tuple(weights))


def drawn(mixture: Mixture, num_steps: int, num_rows: int, seed: int) -> list[tuple[int, int]]:
    """(source, row) of every place of the first steps."""
    ids = [mixture.batch_of_step(step, num_rows, seed).input_ids[:, :2] for step in range(num_steps)]
    return [tuple(pair) for pair in np.concatenate(ids).tolist()]


@given(WEIGHTS, st.integers(0, 9), st.integers(0, 500), st.integers(1, 400))
@settings(max_examples=80, deadline=None)
def test_in_every_window_each_source_is_less_than_two_rows_off_its_share(
    weights: list[float], seed: int, first: int, length: int
) -> None:
    mixture = mixture_of(weights, [3] * len(weights))
    order = np.concatenate([mixture.sources_of_step(step, 100, seed) for step in range(9)])
    window = order[first : first + length]
    for number, weight in enumerate(weights):
        exact = Fraction(str(weight)) / sum(Fraction(str(each)) for each in weights) * len(window)
        assert abs(int((window == number).sum()) - exact) < 2.1  # shares are kept to one place in 2**14


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_shares_are_exact_in_every_period(weights: list[int], seed: int) -> None:
    mixture = mixture_of([float(weight) for weight in weights], [3] * len(weights))
    period = sum(weights)
    for step in range(4):
        counts = np.bincount(mixture.sources_of_step(step, period, seed), minlength=len(weights))
        assert counts.tolist() == weights


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_the_order_does_not_depend_on_how_steps_are_cut(one: int, other: int, seed: int) -> None:
    """A step's rows are a function of (seed, step): later steps alone are those of a run from the start."""
    mixture = mixture_of([0.5, 0.3, 0.2], [5, 7, 3])
    both = [drawn(mixture, 42 // size + 1, size, seed)[:42] for size in (one, other)]
    assert both[0] == both[1]
    again = mixture_of([0.5, 0.3, 0.2], [5, 7, 3]).batch_of_step(5, one, seed)
    assert [tuple(pair) for pair in again.input_ids[:, :2].tolist()] == drawn(mixture, 6, one, seed)[-one:]


def test_each_source_walks_through_its_own_epochs() -> None:
    sizes = [5, 11]
    mixture = mixture_of([3, 1], sizes)
    places = drawn(mixture, 30, 8, seed=4)  # 180 and 60 rows: 36 and 5.45 epochs
    for number, size in enumerate(sizes):
        rows = [row for which, row in places if which == number]
        epochs = [rows[begin : begin + size] for begin in range(0, len(rows) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert mixture.num_epochs(240, seed=4) == {"source 0": 36, "source 1": pytest.approx(60 / 11)}
    assert drawn(mixture, 30, 8, seed=5) != places


def test_ranks_take_parts_of_the_same_batch() -> None:
    mixture = mixture_of([2, 1], [4, 4])
    batch = mixture.batch_of_step(3, 6, 0)
    parts = [batch.rows(start, start + 2) for start in (0, 2, 4)]
    assert (np.concatenate([part.input_ids for part in parts]) == batch.input_ids).all()


def test_a_mixture_is_a_source_of_rows_itself() -> None:
    inner = mixture_of([1, 1], [4, 6])
    outer = Mixture({"both": inner, "third": source(2, 5)}, (4.0, 1.0))
    assert outer.num_rows == 15
    sources, counts = np.unique([which for which, _ in drawn(outer, 10, 10, 0)], return_counts=True)
    assert sources.tolist() == [0, 1, 2] and counts.tolist() == [40, 40, 20]
    in_order = np.concatenate([batch.input_ids[:, :2] for batch in outer.in_order(4)]).tolist()
    assert sorted(map(tuple, in_order)) == [(n, row) for n, size in enumerate((4, 6, 5)) for row in range(size)]


def test_replay_is_a_mixture_of_two() -> None:
    mixture = with_replay(source(0, 50), source(1, 9), 0.05)
    assert [which for which, _ in drawn(mixture, 5, 40, 0)].count(1) == 10
    assert mixture.num_epochs(200, 0) == {"new": 3.8, "replay": pytest.approx(10 / 9)}
    for share in (0.0, 1.0, 1.5):
        with pytest.raises(DataError, match=f"the replay ratio is {share}"):
            with_replay(source(0, 2), source(1, 2), share)


@pytest.mark.parametrize(
    ("weights", "said"),
    [((1.0,), "1 weights for 2 sources"), ((1.0, 0.0), "weight of 'b' is 0.0"), ((float("nan"), 1.0), "'a' is nan"),
     ((1.0, 1e-9), "less than one row in 16384"), ((-1.0, 2.0), "'a' is -1.0")],
)  # fmt: skip
def test_weights_that_mean_nothing_are_refused(weights: tuple[float, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Mixture({"a": source(0, 2), "b": source(1, 2)}, weights)


def test_rows_of_unlike_lengths_do_not_mix() -> None:
    mixture = Mixture({"a": source(0, 3), "b": source(1, 3, row_tokens=3)}, (1.0, 1.0))
    with pytest.raises(DataError, match="rows that do not fit together: Batch of"):
        mixture.batch_of_step(0, 2, 0)


def test_preferences_keep_their_pairs_when_batches_are_joined() -> None:
    def pairs(sequences: list[int], seed: int) -> PairBatch:
        ids = np.full((1, 4), seed)
        reference = np.full((len({s // 2 for s in sequences if s >= 0}), 2), float(seed))
        return PairBatch(ids, ids, ids, np.asarray([sequences]), reference)

    parts = [pairs([0, 0, 1, -1], 7), pairs([0, 1, 2, 3], 8), pairs([0, -1, 1, 1], 9)]
    joined = concatenate(parts)
    assert isinstance(joined, PairBatch) and joined.num_units == 4
    assert joined.sequences.tolist() == [[0, 0, 1, -1], [2, 3, 4, 5], [6, -1, 7, 7]]
    for number, part in enumerate(parts):
        back = joined.rows(number, number + 1)
        assert (back.sequences == part.sequences).all() and (back.reference == part.reference).all()
    with pytest.raises(DataError, match="do not fit together"):
        concatenate([parts[0], Batch(*(np.zeros((1, 4), np.int64),) * 3)])
