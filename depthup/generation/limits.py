"""What a server may be asked: how fast, how often again, and for how much money."""

from __future__ import annotations

import email.utils
import random
import time
from collections import deque
from dataclasses import dataclass

from ..errors import DepthupError


@dataclass(frozen=True)
class Limits:
    """How a server is asked.

    Attributes:
        concurrency: Requests on their way at once.
        requests_per_minute: Most in any 60 seconds; None for no limit.
        tokens_per_minute: Most in any 60 seconds, prompts and answers together; an answer counts as
            ``max_new_tokens`` until its true length is known.
        timeout_s: A request that has no whole answer after this time is given up, and asked again.
        max_attempts: How often one prompt is asked.
        first_wait_s: Longest wait before the second attempt; it doubles with each.
        max_wait_s: No wait of our own is longer.
        max_retry_after_s: A server that asks for a longer wait than this is not waited for.

    Raises:
        DepthupError: A value is out of its range.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 300.0
    max_attempts: int = 8
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0
    max_retry_after_s: float = 600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise DepthupError(f"the limit {name} is {value}", allowed="a number above 0")


@dataclass(frozen=True)
class Budget:
    """Prices, in any currency, and where to stop. Nothing is asked that may pass a limit.

    Attributes:
        prompt_price: Of a million tokens read.
        completion_price: Of a million tokens made.
        max_cost: Stop before this much is spent; None for no limit.
        max_tokens: Stop before so many tokens, read and made.

    Raises:
        DepthupError: A price is negative, or a cost is limited without a price.
    """

    prompt_price: float = 0.0
    completion_price: float = 0.0
    max_cost: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.prompt_price < 0 or self.completion_price < 0:
            raise DepthupError(f"prices of {self.prompt_price} and {self.completion_price}", allowed="0 or more")
        if self.max_cost is not None and not self.prompt_price + self.completion_price:
            raise DepthupError(
                f"a cost of at most {self.max_cost} cannot be kept: no price is given",
                next_step="give the price of a million tokens, read and made, or limit tokens instead",
            )

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


@dataclass(frozen=True)
class Spent:
    """What has been used.

    Attributes:
        num_requests: Answers that came; attempts that failed are not among them, though a server may bill for them.
        prompt_tokens: Read.
        completion_tokens: Made.
        cost: By the prices of the budget.
        num_estimated: Answers whose tokens the server did not count: their bytes / 4 were taken.
    """

    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    num_estimated: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Window:
    """At most ``limit`` in any ``period_s`` seconds: exact, by the times of all that is inside.

    Args:
        limit: Most in one period; an amount beyond it is let through alone.
        period_s: Length of the period.
    """

    def __init__(self, limit: float, period_s: float = 60.0) -> None:
        self._limit, self._period = limit, period_s
        self._taken: deque[list[float]] = deque()  # (when, how much), oldest first

    def take(self, amount: float) -> float | list[float]:
        """Take an amount: its entry, to be corrected; or the seconds to wait before trying again."""
        now = time.monotonic()
        while self._taken and self._taken[0][0] <= now - self._period:
            self._taken.popleft()
        if self._taken and sum(entry[1] for entry in self._taken) + amount > self._limit:
            return max(0.001, self._taken[0][0] + self._period - now)
        self._taken.append(entry := [now, amount])
        return entry


def waiting_time(attempt: int, limits: Limits, draw: random.Random) -> float:
    """Seconds to wait after a failed attempt (from 1): full jitter, so that many clients do not come back at once.

    Anywhere between 0 and a bound that doubles (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015).
    """
    return draw.uniform(0, min(limits.max_wait_s, limits.first_wait_s * 2 ** (attempt - 1)))


def retry_after(header: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, by number or date (RFC 9110, 10.2.3); None if it says nothing."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
