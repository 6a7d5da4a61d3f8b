"""Layers between two base layers: their average, and the point between them on an arc (SLERP)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from ..checkpoint.reader import Tensor, same_bytes
from ..errors import CheckpointError
from .arrays import FLOATS, Array, computed, read_chunks
from .inits import Bench, Maker

# Above this cosine the arc is taken as straight: the constant of the common implementations (mergekit 0.1.5 too).
_STRAIGHT = 0.9995


def average(bench: Bench, target: int) -> dict[str, Maker]:
    """(1 - share) times the layer plus share times its partner, tensor by tensor."""
    return _mixed(bench, target, lambda folder, pair, share: (1 - share, share))


def slerp(bench: Bench, target: int) -> dict[str, Maker]:
    """Spherical linear interpolation (Shoemake 1985), each tensor taken as one flat vector."""
    return _mixed(bench, target, _arc)


def neighbours(bench: Bench, target: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The tensors of the layer and of its partner by suffix: the layer named first in the init, else the next one.

    Constant whole-number tensors (masks that old checkpoints carry) that are the same in both are left out: a copy is
    right for them.

    Raises:
        CheckpointError: The two layers hold unlike tensors, or such as are no plain numbers.
    """
    source, numbers = bench.plan.sources[target], bench.plan.init(target).numbers
    partner = int(numbers[0]) if numbers else source + 1
    one, other = bench.layers[source], bench.layers[partner]
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for suffix in sorted(one.keys() | other.keys()):
        a, b = one.get(suffix), other.get(suffix)
        if a is None or b is None or a.shape != b.shape:
            raise CheckpointError(
                f"layers {source} and {partner} cannot be mixed: they are unlike in {suffix}"
                f" ({' and '.join('none' if tensor is None else str(list(tensor.shape)) for tensor in (a, b))})",
                next_step="mix layers of one kind; the config says which are (layer_types and the like)",
            )
        if a.dtype in FLOATS and b.dtype in FLOATS:
            pairs[suffix] = a, b
        elif not same_bytes((bench.base.folder, a), (bench.base.folder, b)):
            raise CheckpointError(
                f"layers {source} and {partner} cannot be mixed: {suffix} is stored as {a.dtype}, in which numbers"
                " cannot be averaged (quantised weights)",
                allowed=", ".join(FLOATS),
                next_step="mix the layers of the unquantised model",
            )
    return pairs


def _mixed(
    bench: Bench, target: int, weights: Callable[[Path, tuple[Tensor, Tensor], float], tuple[float, float]]
) -> dict[str, Maker]:
    numbers = bench.plan.init(target).numbers
    share = numbers[1] if len(numbers) > 1 else 0.5
    folder = bench.base.folder

    def make(pair: tuple[Tensor, Tensor]) -> Iterable[bytes]:
        return computed(folder, pair, partial(_sum, *weights(folder, pair, share)), pair[0].dtype)()

    return {suffix: partial(make, pair) for suffix, pair in neighbours(bench, target).items()}


def _sum(weight: float, other_weight: float, values: Array, others: Array) -> Array:
    return weight * values + other_weight * others


def _arc(folder: Path, pair: tuple[Tensor, Tensor], share: float) -> tuple[float, float]:
    """The weights of both ends; those of the average where the vectors are nearly on one line, or one is zero."""
    dot = norm = other_norm = 0.0
    for values, others in zip(*(read_chunks(folder, tensor) for tensor in pair), strict=True):
        a, b = values.astype(np.float64), others.astype(np.float64)
        dot, norm, other_norm = dot + (a * b).sum(), norm + (a * a).sum(), other_norm + (b * b).sum()
    cosine = dot / np.sqrt(norm * other_norm) if norm and other_norm else 1.0
    if abs(cosine) > _STRAIGHT:
        return 1 - share, share
    angle = np.arccos(cosine)
    return float(np.sin((1 - share) * angle) / np.sin(angle)), float(np.sin(share * angle) / np.sin(angle))
