"""How the weights of several models become one: pure functions of float32 arrays, in one table.

Every method gives a model back if it is merged with itself: models enter as their offsets from one of them. Sums and
products are NumPy's, each rounded by itself, so that a merge is the same to the bit on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..checkpoint.floats import Array

# Above this cosine the arc is taken as straight: the constant of the common implementations (mergekit 0.1.5 too).
STRAIGHT = 0.9995
_ROW = 1024  # numbers whose products are added up one after another


@dataclass(frozen=True)
class Call:
    """What a method is told of one tensor.

    Attributes:
        weights: One a model, not normalised.
        options: The method's numbers, defaults filled in.
        coefficients: What :attr:`Method.survey` found in the whole tensor.
        name: The tensor's name, start of its random numbers.
    """

    weights: tuple[float, ...]
    options: Mapping[str, float]
    coefficients: tuple[float, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Method:
    """A way to merge.

    Attributes:
        combine: ``(tensors, base, call)`` to one; all flat, of one length, float32 or float64. They are not written to.
        about: One line for help.
        needs_base: Whether the models are taken as offsets from a base.
        survey: Reads the whole tensor, a piece at a time, before :attr:`combine` sees it: ``(pieces, call)`` to
            coefficients, each piece the tensors of all models and the base.
        whole: Whether ``combine`` must see a tensor in one piece.
        num_models: How many models it takes; None for two or more.
        options: Its numbers and their defaults.
        normalises: Whether it divides the weights by their sum, which then must not be zero.
        weighted: Whether weights change anything.
    """

    combine: Callable[[Sequence[Array], Array | None, Call], Array]
    about: str
    needs_base: bool = False
    survey: Callable[[Sums, Call], tuple[float, ...]] | None = None
    whole: bool = False
    num_models: int | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    normalises: bool = False
    weighted: bool = True


class Sums:
    """All inner products of the models, as they are or as offsets from the base; pieces are added up in float64."""

    def __init__(self, num_models: int) -> None:
        self.products = [[0.0] * num_models for _ in range(num_models)]

    def add(self, tensors: Sequence[Array], base: Array | None) -> None:
        """Take in one flat piece of each model."""
        rows = tensors if base is None else [tensor - base for tensor in tensors]
        for i, one in enumerate(rows):
            for j in range(i, len(rows)):
                self.products[i][j] += _dot(one, rows[j])
                self.products[j][i] = self.products[i][j]

    def cosine(self, i: int, j: int) -> float:
        """Of the angle between two models; 1 where one of them is zero."""
        norms = math.sqrt(self.products[i][i]) * math.sqrt(self.products[j][j])
        return max(-1.0, min(1.0, self.products[i][j] / norms)) if norms else 1.0


def _dot(one: Array, other: Array) -> float:
    """An inner product: of short rows by BLAS, whose sums NumPy then adds in pairs; so it is quick and loses little."""
    even = len(one) - len(one) % _ROW
    in_rows = np.vecdot(one[:even].reshape(-1, _ROW), other[:even].reshape(-1, _ROW))
    return float(np.add.reduce(in_rows)) + float(np.add.reduce(one[even:] * other[even:]))


def linear(tensors: Sequence[Array], base: Array | None, call: Call) -> Array:
    """Weighted average; weights are normalised (model soups, arXiv:2203.05482)."""
    shares = _normalised(call.weights)
    return _between(tensors[0], tensors[1], shares[1]) if len(tensors) == 2 else _from(tensors[0], tensors, shares)


def arc(sums: Sums, call: Call) -> tuple[float, ...]:
    """The weights of both ends of the arc; those of the straight line where the angle is small."""
    share = _normalised(call.weights)[1]
    cosine = sums.cosine(0, 1)
    if abs(cosine) > STRAIGHT:
        return 1 - share, share
    angle = math.acos(cosine)
    return math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)


def slerp(tensors: Sequence[Array], base: Array | None, call: Call) -> Array:
    """Spherical linear interpolation (Shoemake 1985), each tensor one flat vector; the weights say how far."""
    one, other = call.coefficients
    if abs(one + other - 1) < 1e-12:
        return _between(tensors[0], tensors[1], other)
    merged = tensors[0] * one
    merged += tensors[1] * other
    return merged


def task_arithmetic(tensors: Sequence[Array], base: Array | None, call: Call) -> Array:
    """The base plus the weighted sum of offsets (arXiv:2212.04089)."""
    assert base is not None
    return _from(base, tensors, [weight * call.options["scale"] for weight in call.weights])


def ties(tensors: Sequence[Array], base: Array | None, call: Call) -> Array:
    """Trim each offset to its largest entries, elect a sign, average what agrees with it (arXiv:2306.01708)."""
    assert base is not None
    offsets = [_largest(tensor - base, call.options["density"]) for tensor in tensors]
    return base + call.options["scale"] * _agreeing(offsets, call, mean=True)


def dare_linear(tensors: Sequence[Array], base: Array | None, call: Call) -> Array:
    """Drop entries of the offsets at random, rescale the rest, sum them (arXiv:2311.03099)."""
    assert base is not None
    result = base.copy()
    for offset, weight in zip(_dropped(tensors, base, call), call.weights, strict=True):
        result += call.options["scale"] * weight * offset
    return result


def dare_ties(tensors: Sequence[Array], base: Array | None, call: Call) -> Array:
    """DARE's random dropping, then the sign election of TIES (arXiv:2311.03099, section 4)."""
    assert base is not None
    offsets = _dropped(tensors, base, call)
    return base + call.options["scale"] * _agreeing(offsets, call, mean=False)


def stock_share(sums: Sums, call: Call) -> tuple[float, ...]:
    """Model stock's share of the average against the base, from the mean cosine between offsets.

    Offsets at an obtuse angle agree in nothing: the base stays, where the formula would go behind it, or have a pole.
    """
    num = len(call.weights)
    pairs = [(i, j) for i in range(num) for j in range(i + 1, num)]
    cosine = max(0.0, sum(sums.cosine(i, j) for i, j in pairs) / len(pairs))
    return (num * cosine / ((num - 1) * cosine + 1),)


def model_stock(tensors: Sequence[Array], base: Array | None, call: Call) -> Array:
    """Between base and average, nearer to the average the more the models agree (arXiv:2403.19522)."""
    assert base is not None
    share = call.coefficients[0] / len(tensors)
    return _from(base, tensors, [share] * len(tensors))


METHODS: dict[str, Method] = {
    "linear": Method(linear, "weighted average of any number of models", normalises=True),
    "slerp": Method(slerp, "a point on the arc between two models", survey=arc, num_models=2, normalises=True),
    "task-arithmetic": Method(task_arithmetic, "base plus the weighted offsets of the models", needs_base=True,
                              options={"scale": 1.0}),
    "ties": Method(ties, "largest offsets that agree in sign", needs_base=True, whole=True,
                   options={"density": 0.2, "scale": 1.0}),
    "dare-linear": Method(dare_linear, "offsets dropped at random and rescaled", needs_base=True, whole=True,
                          options={"density": 0.5, "scale": 1.0, "seed": 0}),
    "dare-ties": Method(dare_ties, "dropped at random, rescaled, agreeing in sign", needs_base=True, whole=True,
                        options={"density": 0.5, "scale": 1.0, "seed": 0}),
    "model-stock": Method(model_stock, "between base and average, by the angle of the offsets", needs_base=True,
                          survey=stock_share, weighted=False),
}  # fmt: skip


def _normalised(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _between(one: Array, other: Array, share: float) -> Array:
    """A share of the way from one to the other, counted from the nearer: exactly ``one`` where both are equal."""
    merged = other - one
    merged *= share if abs(share) < 0.5 else share - 1
    merged += one if abs(share) < 0.5 else other
    return merged


def _from(start: Array, tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """``start`` plus the weighted offsets from it: exactly ``start`` where the others equal it."""
    merged = start.copy()
    for tensor, weight in zip(tensors, weights, strict=True):
        if tensor is not start:
            offset = tensor - start
            offset *= weight
            merged += offset
    return merged


def _largest(offset: Array, density: float) -> Array:
    """The offset with all but its largest ``density`` of entries (by size; of equal ones the first) set to zero."""
    num_kept = max(1, int(density * len(offset)))
    if num_kept >= len(offset):
        return offset
    sizes = np.abs(offset)
    least = np.partition(sizes, len(offset) - num_kept)[len(offset) - num_kept]
    kept = sizes > least
    kept[np.flatnonzero(sizes == least)[: num_kept - np.count_nonzero(kept)]] = True
    return offset * kept


def _dropped(tensors: Sequence[Array], base: Array, call: Call) -> list[Array]:
    """Offsets with each entry kept with the chance ``density`` and divided by it; seeded by name and model."""
    density, offsets = call.options["density"], []
    for index, tensor in enumerate(tensors):
        text = f"{int(call.options['seed'])}/{index}/{call.name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
        offsets.append((tensor - base) * (_uniform(seed, len(base)) < np.float32(density)) / density)
    return offsets


def _uniform(seed: int, count: int) -> Array:
    """Float32 from [0, 1) by Matsumoto and Nishimura's generator (1998): those of ``torch.rand`` after this seed."""
    generator = np.random.RandomState(seed & 0xFFFFFFFF)
    return (generator.randint(0, 1 << 32, count, np.uint32) & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)


def _agreeing(offsets: Sequence[Array], call: Call, *, mean: bool) -> Array:
    """The weighted sum, or mean, of the entries whose sign is that of the weighted sum of all."""
    weighted = [offset * weight for offset, weight in zip(offsets, call.weights, strict=True)]
    elected = np.where(sum(weighted) < 0, np.int8(-1), np.int8(1))
    total, shares = np.zeros_like(offsets[0]), np.zeros_like(offsets[0])
    for offset, weight in zip(weighted, call.weights, strict=True):
        agrees = np.sign(offset) == elected
        total += offset * agrees
        shares += weight * agrees
    shares[np.abs(shares) < 1e-8] = 1
    return total / shares if mean else total
