"""Stored floats by their bits: every pattern of 16 bits there and back, and torch's rounding as the oracle."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from depthup.checkpoint.floats import STORED_AS, narrow, widen

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
PATTERNS = np.arange(1 << 16, dtype=np.uint16)
# Ties, the ends of the range, what has no leading bit, zeros.
EDGES = [0.0, -0.0, 65504, 65519.99, 65520, 1e5, 2**-24, 2**-25, 3 * 2**-26, 2**-14, 2**-14 - 2**-25, 1 + 2**-8,
         1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 3.3895e38, 3.4e38, 1e-45]  # fmt: skip


def _numbers(kind: str) -> np.ndarray:
    draw = np.random.default_rng(0)
    if kind == "bits":
        return draw.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = (draw.standard_normal(1 << 18) * 10.0 ** draw.uniform(-9, 4, 1 << 18)).astype(np.float32)
    values = values[np.abs(values) < 65000]
    return values if kind == "weights" else np.concatenate([values, np.float32(EDGES), -np.float32(EDGES)])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_every_pattern_is_widened_exactly_and_comes_back(dtype: str, wide: type) -> None:
    values = torch.from_numpy(PATTERNS.view(np.int16)).view(TYPES[dtype]).to(torch.float64).numpy()
    finite = np.isfinite(values)
    for chosen in (finite, np.ones_like(finite)):
        stored = PATTERNS[chosen].view(STORED_AS[dtype])
        with np.errstate(all="ignore"):
            found = widen(stored, dtype, np.empty(len(stored), wide))
            back = narrow(found, dtype, np.empty(len(stored), STORED_AS[dtype]))
        assert found.dtype == wide and np.array_equal(found, values[chosen], equal_nan=True)
        assert np.array_equal(np.signbit(found), np.signbit(values[chosen]))
        same = back.view(np.uint16) == PATTERNS[chosen]
        assert (same | np.isnan(found)).all()
        assert np.isnan(widen(back, dtype, np.empty(len(stored), wide))[np.isnan(found)]).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["bits", "weights", "edges"])
def test_float32_is_rounded_as_torch_rounds_it(dtype: str, kind: str) -> None:
    values = _numbers(kind)
    kept = values.copy()
    with np.errstate(all="ignore"):
        found = narrow(values, dtype, np.empty(len(values), STORED_AS[dtype])).view(np.int16)
    wanted = torch.from_numpy(values).to(TYPES[dtype]).view(torch.int16).numpy()
    assert (found == wanted)[~np.isnan(values)].all()
    assert np.array_equal(values.view(np.uint32), kept.view(np.uint32))  # not written to


@pytest.mark.parametrize("dtype", TYPES)
def test_float64_is_rounded_once(dtype: str) -> None:
    """Just above the middle of two neighbours: over float32 it would become the middle, and then the even one."""
    half = {"F16": 2.0**-11, "BF16": 2.0**-8}[dtype]
    values = np.array([1 + half, 1 + half + 2**-40, 1 + 3 * half, 1 + 3 * half - 2**-40, 1e300, -1e300, 0.0])
    with np.errstate(all="ignore"):
        stored = narrow(values, dtype, np.empty(len(values), STORED_AS[dtype]))
        found = widen(stored, dtype, np.empty(len(values), np.float32)).tolist()
    assert found == [1, 1 + 2 * half, 1 + 4 * half, 1 + 2 * half, float("inf"), float("-inf"), 0]
    drawn = np.random.default_rng(1).uniform(0.5, 2, 2000)
    stored = narrow(drawn, dtype, np.empty(len(drawn), STORED_AS[dtype])).view(np.uint16)
    for value, bits in zip(drawn.tolist(), stored, strict=True):
        near = np.array([bits - 1, bits, bits + 1], np.uint16).view(STORED_AS[dtype])
        below, here, above = widen(near, dtype, np.empty(3, np.float64)).tolist()
        assert abs(Fraction(value) - Fraction(here)) <= min(abs(Fraction(value) - Fraction(n)) for n in (below, above))


@pytest.mark.parametrize("dtype", STORED_AS)
def test_nothing_is_a_tensor_too(dtype: str) -> None:
    nothing = np.empty(0, STORED_AS[dtype])
    assert len(widen(nothing, dtype, np.empty(0, np.float32))) == 0
    assert len(narrow(np.empty(0, np.float32), dtype, nothing)) == 0
