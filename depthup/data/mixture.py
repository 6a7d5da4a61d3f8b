"""Mixtures: several sources of rows in fixed shares, in an order that is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .packing import Batch, Rows, concatenate

_MAX_PERIOD = 2**14  # places; shares that need more are rounded to so many


@dataclass(frozen=True)
class Mixture:
    """Rows of several sources, interleaved evenly; itself a source of rows.

    Which source fills a place is read off a schedule of one period, turned by the seed. In each period every source
    has exactly its share of the places, and in any window of any length it is less than two rows off it. Each source
    walks through its own epochs.

    Attributes:
        sources: Name -> rows of one length.
        weights: Share of each source in the rows, in the order of ``sources``; any positive numbers.
    """

    sources: dict[str, Rows]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sources or len(self.weights) != len(self.sources):
            raise DataError(f"{len(self.weights)} weights for {len(self.sources)} sources", allowed="one for each")
        for name, weight in zip(self.sources, self.weights, strict=True):
            if not 0 < weight < float("inf"):
                raise DataError(f"the weight of '{name}' is {weight}", allowed="a positive number",
                                next_step="take a source without weight out")  # fmt: skip
        for name, num_places in zip(self.sources, _places(self.weights), strict=True):
            if num_places == 0:
                raise DataError(f"the weight of '{name}' is less than one row in {_MAX_PERIOD}",
                                allowed=f"at least 1/{_MAX_PERIOD} of the sum")  # fmt: skip

    @property
    def num_rows(self) -> int:
        """Rows of all sources together; how often a source is gone through, :meth:`num_epochs` tells."""
        return sum(rows.num_rows for rows in self.sources.values())

    def batch_of_step(self, step: int, num_rows: int, seed: int) -> Batch:
        """The global batch of optimiser step ``step``, from 0; the same for any number of ranks."""
        first = step * num_rows
        places = self.sources_of_step(step, num_rows, seed)
        walked = self._num_seen(first, seed)
        rows = list(self.sources.values())
        batches, names, found = [], list(self.sources), []
        for source in places:
            batches.append(rows[source].batch_of_step(int(walked[source]), 1, _seed_of(seed, int(source))))
            found += [names[source]] * batches[-1].num_rows
            walked[source] += 1
        return replace(concatenate(batches), row_sources=tuple(found))

    def sources_of_step(self, step: int, num_rows: int, seed: int) -> NDArray[np.int64]:
        """The number of the source that each row of a step comes from, int64 [num_rows]."""
        schedule = _schedule(self.weights)
        first = step * num_rows + _turn(seed, len(schedule))
        return schedule[np.arange(first, first + num_rows) % len(schedule)]

    def in_order(self, num_rows: int) -> Iterator[Batch]:
        """All rows of all sources once, source after source, in batches of at most ``num_rows``."""
        for rows in self.sources.values():
            yield from rows.in_order(num_rows)

    def num_epochs(self, num_rows: int, seed: int) -> dict[str, float]:
        """How often each source is gone through in the first ``num_rows`` rows of a run."""
        seen = self._num_seen(num_rows, seed)
        return {name: int(n) / rows.num_rows for (name, rows), n in zip(self.sources.items(), seen, strict=True)}

    def _num_seen(self, num_rows: int, seed: int) -> NDArray[np.int64]:
        """Rows of each source among the first ``num_rows`` of a run, int64 [num_sources]."""
        schedule = _schedule(self.weights)
        turn = _turn(seed, len(schedule))
        periods, rest = divmod(turn + num_rows, len(schedule))
        counts = [np.bincount(part, minlength=len(self.weights)) for part in (schedule[:rest], schedule[:turn])]
        return periods * np.asarray(_places(self.weights), np.int64) + counts[0] - counts[1]


def with_replay(new: Rows, old: Rows, share: float) -> Mixture:
    """New data with a share of rows like those that the model was trained on before.

    Re-warming a trained model on new data makes it forget; a replay of 1 to 5 % counters most of it, strong shifts
    take up to 50 % (Ibrahim et al. 2024, arXiv:2403.08763).

    Args:
        new: Rows of the new data.
        old: Rows of the old.
        share: Of the old in all rows, between 0 and 1.

    Raises:
        DataError: The share leaves nothing of one of them.
    """
    if not 0 < share < 1:
        raise DataError(f"the replay ratio is {share}", allowed="between 0 and 1; leave it out for no replay")
    old_share = Fraction(str(share))
    return Mixture({"new": new, "replay": old}, (float(1 - old_share), float(old_share)))


@lru_cache(maxsize=8)
def _places(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Places of each source in one period: exact where the shares allow it, else by the largest remainder."""
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = lcm(*(share.denominator for share in shares))
    if period <= _MAX_PERIOD:
        return tuple(int(share * period) for share in shares)
    places = [int(share * _MAX_PERIOD) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda i: places[i] - shares[i] * _MAX_PERIOD)
    for source in remainders[: _MAX_PERIOD - sum(places)]:
        places[source] += 1
    return tuple(places)


@lru_cache(maxsize=8)
def _schedule(weights: tuple[float, ...]) -> NDArray[np.int64]:
    """The source of each place of one period, int64 [period].

    Tijdeman's rule (The chairman assignment problem, Discrete Mathematics 32, 1980): of the sources that are far
    enough behind their share, the one whose turn would be overdue first. In every prefix each source is less than one
    place off its share. ``behind`` is share less places so far, times the period.
    """
    places = _places(weights)
    sources = range(len(places))
    period, slack = sum(places), max(2 * len(places) - 2, 1)
    behind = [0] * len(places)
    schedule = np.empty(period, np.int64)
    for place in range(period):
        behind = [behind[source] + places[source] for source in sources]
        ready = [source for source in sources if slack * behind[source] >= period]
        chosen = min(ready, key=lambda source: (slack * (period - behind[source]) - period) / places[source])
        behind[chosen] -= period
        schedule[place] = chosen
    assert (np.bincount(schedule, minlength=len(places)) == places).all()
    schedule.flags.writeable = False
    return schedule


def _turn(seed: int, period: int) -> int:
    """Where in the period a run begins."""
    return int(np.random.default_rng([seed, period]).integers(period))


def _seed_of(seed: int, source: int) -> int:
    """A seed of its own for each source, so that sources of one size are not shuffled alike."""
    return int(np.random.SeedSequence([seed, source]).generate_state(1)[0])
