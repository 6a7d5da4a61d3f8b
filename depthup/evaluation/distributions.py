"""The few distributions that tests and intervals need, so that nobody has to install scipy for them."""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL = NormalDist()


def normal_quantile(share: float) -> float:
    """The standard normal value that ``share`` of the distribution lies below."""
    return _NORMAL.inv_cdf(share)


def normal_share(value: float) -> float:
    """The share of the standard normal distribution below ``value``."""
    return _NORMAL.cdf(value)


def t_two_sided(value: float, degrees: float) -> float:
    """The chance that Student's t with ``degrees`` of freedom is at least ``|value|`` from 0.

    It is the regularised incomplete beta function at ``degrees / (degrees + value**2)`` (Abramowitz and Stegun,
    26.5.27).
    """
    if math.isinf(value):
        return 0.0
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + value * value))


def t_quantile(share: float, degrees: float) -> float:
    """The value that ``share``, from 0.5 on, of Student's t with ``degrees`` of freedom lies below."""
    low, high = 0.0, 2 * normal_quantile(share) + 1
    while t_two_sided(high, degrees) > 2 * (1 - share):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_two_sided(middle, degrees) > 2 * (1 - share) else (low, middle)
    return high


def chi_square_above(value: float, degrees: int) -> float:
    """The chance that chi-square with a whole number of degrees of freedom is above ``value``.

    Known for one and two degrees; two more add one term (Abramowitz and Stegun, 26.4.8).
    """
    half = max(value, 0.0) / 2
    share = math.erfc(math.sqrt(half)) if degrees % 2 else math.exp(-half)
    for two in range(2 - degrees % 2, degrees, 2):
        share += math.exp(two / 2 * math.log(half) - half - math.lgamma(two / 2 + 1)) if half else 0.0
    return share


def fair_coin_two_sided(heads: int, tails: int) -> float:
    """The chance that a fair coin falls at least as unevenly as this (exact; 1 where it was never thrown)."""
    number, term, below = heads + tails, 1, 0
    for i in range(min(heads, tails) + 1):
        below += term
        term = term * (number - i) // (i + 1)
    return min(1.0, 2 * below / 2**number)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a
