"""Stored floats as numbers and back, by their bits: a few passes of NumPy over a piece that stays in the cache.

Widening is exact. Narrowing rounds once, to nearest even, as IEEE 754 says; what is no number stays none.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
# How the bytes of a type are looked at; NumPy knows no bfloat16, which is the upper half of a float32.
STORED_AS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_NAN = 0x7FC0  # in bfloat16


def widen(stored: Array, dtype: str, out: Array) -> Array:
    """Numbers as float32 or float64.

    Args:
        stored: ``(n,)``, of the type ``STORED_AS[dtype]``.
        dtype: F64, F32, F16 or BF16.
        out: ``(n,)``, float32 or float64; room for the result.

    Returns:
        ``out``, or ``stored`` itself where it is of that type.
    """
    if stored.dtype == out.dtype:
        return stored
    if dtype == "BF16":
        bits: Array = out.view(np.uint32) if out.dtype == np.float32 else np.empty(stored.shape, np.uint32)
        bits[...] = stored
        bits <<= 16
        if out.dtype == np.float32:
            return out
        stored = bits.view(np.float32)
    elif dtype == "F16" and out.dtype == np.float32 and _widen_float16(stored, out):
        return out
    out[...] = stored
    return out


def narrow(values: Array, dtype: str, out: Array) -> Array:
    """Numbers as they are stored.

    Args:
        values: ``(n,)``, float32 or float64.
        dtype: F64, F32, F16 or BF16.
        out: ``(n,)``, of the type ``STORED_AS[dtype]``; room for the result.

    Returns:
        ``out``, or ``values`` itself where it is of that type.
    """
    if values.dtype == out.dtype:
        return values
    if dtype == "BF16":
        bits = (values if values.dtype == np.float32 else _toward_odd(values)).view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        out[...] = rounded
        if values.size and np.isnan(values.max()):
            out[np.isnan(values)] = _NAN
    elif not (dtype == "F16" and values.dtype == np.float32 and _narrow_float16(values, out)):
        out[...] = values
    return out


def _toward_odd(values: Array) -> Array:
    """float64 as float32 such that a second rounding rounds as a single one would have: what is lost makes it odd."""
    near = values.astype(np.float32)
    bits = near.view(np.uint32)
    bits -= np.abs(near) > np.abs(values)
    bits |= near != values
    return near


def _widen_float16(stored: Array, out: Array) -> bool:
    """Four passes in place of NumPy's loop; False where a number is infinite or none."""
    bits = out.view(np.int32)
    bits[...] = stored.view(np.int16)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # the sign in its place, exponent and fraction 13 places up
    out *= np.float32(2.0**112)  # from float16's bias to float32's; what has no leading bit gets one
    return not out.size or (out.max() < 65536 and out.min() > -65536)


def _narrow_float16(values: Array, out: Array) -> bool:
    """A dozen passes in place of NumPy's loop; False where a number is infinite or none in float16."""
    if not values.size:
        return True
    if not (values.max() < 65520 and values.min() > -65520):
        return False
    size = np.abs(values)
    bits = size.view(np.uint32)
    small = size < np.float32(2.0**-14)
    whole = bits >> 13
    whole &= 1
    whole += bits
    whole += np.uint32((0x0FFF - (112 << 23)) & 0xFFFFFFFF)  # rounds, and goes from float32's bias to float16's
    whole >>= 13
    if small.any():  # no leading bit: the sum rounds to whole steps of 2^-24
        steps = (size + np.float32(0.5)).view(np.uint32)
        steps -= np.uint32(0x3F000000)
        np.copyto(whole, steps, where=small)
    sign = values.view(np.uint32) >> 16
    sign &= 0x8000
    whole |= sign
    out.view(np.uint16)[...] = whole
    return True
