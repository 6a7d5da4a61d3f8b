"""What a run of synthesis makes: which kinds, how many of each, and how strict its filters are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import DataError, nearest
from .metamath import KINDS, Kind


@dataclass(frozen=True)
class Quota:
    """How many rows of a kind are made.

    Attributes:
        asked: Rewritten questions asked for a seed; of answer augmentation the solutions.
        kept: Rows kept for a seed.
        total: Rows kept in all; None for no limit.
    """

    asked: int
    kept: int
    total: int | None = None


def _default_quotas() -> dict[Kind, Quota]:
    """In the proportions of MetaMath's MATH part, 75K, 50K, 15K, 15K of 7.5K seeds, at a fifth of the size."""
    return {
        "answer": Quota(4, 2), "rephrase": Quota(2, 2), "self-verification": Quota(1, 1), "fobar": Quota(1, 1),
    }  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All that decides which rows come out, given seeds and replies.

    Attributes:
        quotas: Kind -> its quota; a kind that is not there is not made.
        num_samples: Solutions drawn for each rewritten question, which vote.
        min_agreement: Least share of them that must reach the gold answer, from 0 to 1.
        temperature: MetaMath drew at 0.7.
        top_p: Share of probability to draw from.
        max_new_tokens: Longest reply.
        near_duplicate: Least Jaccard similarity of two questions' word runs at which the later one goes.
        seed: Start of all random numbers.
        seeds_per_group: Seeds that are worked on at once; after each group the files are whole.
        rows_per_file: Rows of a shard at which the next begins.

    Raises:
        DataError: A value is out of its range.
    """

    quotas: Mapping[Kind, Quota] = field(default_factory=_default_quotas)
    num_samples: int = 2
    min_agreement: float = 0.5
    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    near_duplicate: float = 0.8
    seed: int = 0
    seeds_per_group: int = 64
    rows_per_file: int = 50_000

    def __post_init__(self) -> None:
        for kind, quota in self.quotas.items():
            if kind not in KINDS:
                raise DataError(f"no augmentation is called '{kind}'{nearest(kind, KINDS)}", allowed=", ".join(KINDS))
            if (
                not 0 < quota.kept <= 1000
                or not 0 < quota.asked <= 1000
                or (quota.total is not None and quota.total < 1)
            ):
                raise DataError(
                    f"of {kind}, {quota.asked} would be asked and {quota.kept} kept for a seed,"
                    f" {'any number' if quota.total is None else quota.total} in all",
                    allowed="1 to 1000 asked and kept, 1 or more in all",
                )
        counts = (self.num_samples, self.max_new_tokens, self.seeds_per_group, self.rows_per_file)
        if not self.quotas or min(counts) < 1:
            raise DataError("nothing would be made", allowed="a kind or more, and counts from 1 up")
        if not 0 <= self.min_agreement <= 1 or not 0 < self.near_duplicate <= 1:
            raise DataError(
                f"a share of {self.min_agreement} that agrees, a similarity of {self.near_duplicate}",
                allowed="shares from 0 to 1",
            )

    def to_json(self) -> dict[str, Any]:
        """All of it, for identities."""
        return {**asdict(self), "quotas": {kind: asdict(self.quotas[kind]) for kind in KINDS if kind in self.quotas}}
