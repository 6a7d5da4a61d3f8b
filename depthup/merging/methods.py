"""How the weights of several models become one: pure functions of float32 tensors, in one table.

Every method gives a model back if it is merged with itself: models enter as their offsets from one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Above this cosine the arc is taken as straight: the constant of the common implementations (mergekit 0.1.5 too).
STRAIGHT = 0.9995


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
        combine: ``(tensors, base, call)`` to one tensor; all of one shape, float32. Tensors are not written to.
        about: One line for help.
        needs_base: Whether the models are taken as offsets from a base.
        survey: Reads the whole tensor, a piece at a time, before :attr:`combine` sees it: ``(pieces, call)`` to
            coefficients, each piece the tensors of all models and the base.
        whole: Whether ``combine`` must see a tensor in one piece.
        num_models: How many models it takes; None for two or more.
        options: Its numbers and their defaults.
        normalises: Whether it divides the weights by their sum, which then must not be zero.
        weighted: Whether weights change anything.
        narrow: Whether ``combine`` may be given tensors as they are stored: it computes in float32 and rounds once.
    """

    combine: Callable[[Sequence[Tensor], Tensor | None, Call], Tensor]
    about: str
    needs_base: bool = False
    survey: Callable[[Sums, Call], tuple[float, ...]] | None = None
    whole: bool = False
    num_models: int | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    normalises: bool = False
    weighted: bool = True
    narrow: Callable[[int], bool] = lambda num_models: False


class Sums:
    """All inner products of the models, as they are or as offsets from the base; pieces are added up in float64."""

    def __init__(self, num_models: int) -> None:
        self.products = [[0.0] * num_models for _ in range(num_models)]

    def add(self, tensors: Sequence[Tensor], base: Tensor | None) -> None:
        """Take in one flat piece of each model, short enough to be summed in its own type."""
        rows = tensors if base is None else [tensor - base for tensor in tensors]
        for i, one in enumerate(rows):
            for j in range(i, len(rows)):
                product = float(torch.dot(one, rows[j]))
                self.products[i][j] += product
                self.products[j][i] = self.products[i][j]

    def cosine(self, i: int, j: int) -> float:
        """Of the angle between two models; 1 where one of them is zero."""
        norms = (self.products[i][i] * self.products[j][j]) ** 0.5
        return max(-1.0, min(1.0, self.products[i][j] / norms)) if norms else 1.0


def linear(tensors: Sequence[Tensor], base: Tensor | None, call: Call) -> Tensor:
    """Weighted average; weights are normalised (model soups, arXiv:2203.05482)."""
    if len(tensors) == 2:
        return torch.lerp(tensors[0], tensors[1], _normalised(call.weights)[1])
    return _from(tensors[0], tensors, _normalised(call.weights))


def arc(sums: Sums, call: Call) -> tuple[float, ...]:
    """The weights of both ends of the arc; those of the straight line where the angle is small."""
    share = _normalised(call.weights)[1]
    cosine = sums.cosine(0, 1)
    if abs(cosine) > STRAIGHT:
        return 1 - share, share
    angle = torch.tensor(cosine, dtype=torch.float64).acos()
    ends = torch.stack([(1 - share) * angle, share * angle]).sin() / angle.sin()
    return float(ends[0]), float(ends[1])


def slerp(tensors: Sequence[Tensor], base: Tensor | None, call: Call) -> Tensor:
    """Spherical linear interpolation (Shoemake 1985), each tensor one flat vector; the weights say how far."""
    one, other = call.coefficients
    if abs(one + other - 1) < 1e-12:
        return torch.lerp(tensors[0], tensors[1], other)
    return (tensors[0] * one).add_(tensors[1], alpha=other)


def task_arithmetic(tensors: Sequence[Tensor], base: Tensor | None, call: Call) -> Tensor:
    """The base plus the weighted sum of offsets (arXiv:2212.04089)."""
    assert base is not None
    return _from(base, tensors, [weight * call.options["scale"] for weight in call.weights])


def ties(tensors: Sequence[Tensor], base: Tensor | None, call: Call) -> Tensor:
    """Trim each offset to its largest entries, elect a sign, average what agrees with it (arXiv:2306.01708)."""
    assert base is not None
    offsets = [_largest(tensor - base, call.options["density"]) for tensor in tensors]
    return base + call.options["scale"] * _agreeing(offsets, call, mean=True)


def dare_linear(tensors: Sequence[Tensor], base: Tensor | None, call: Call) -> Tensor:
    """Drop entries of the offsets at random, rescale the rest, sum them (arXiv:2311.03099)."""
    assert base is not None
    result = base.clone()
    for offset, weight in zip(_dropped(tensors, base, call), call.weights, strict=True):
        result += call.options["scale"] * weight * offset
    return result


def dare_ties(tensors: Sequence[Tensor], base: Tensor | None, call: Call) -> Tensor:
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


def model_stock(tensors: Sequence[Tensor], base: Tensor | None, call: Call) -> Tensor:
    """Between base and average, nearer to the average the more the models agree (arXiv:2403.19522)."""
    assert base is not None
    share = call.coefficients[0] / len(tensors)
    return _from(base, tensors, [share] * len(tensors))


METHODS: dict[str, Method] = {
    "linear": Method(linear, "weighted average of any number of models", normalises=True,
                     narrow=lambda num_models: num_models == 2),
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


def _from(start: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``start`` plus the weighted offsets from it: exactly ``start`` where the others equal it."""
    result = start.clone()
    for tensor, weight in zip(tensors, weights, strict=True):
        if tensor is not start:
            result.add_(tensor - start, alpha=weight)
    return result


def _largest(offset: Tensor, density: float) -> Tensor:
    """The offset with all but its largest ``density`` of entries (by magnitude) set to zero."""
    num_kept = max(1, int(density * offset.numel()))
    if num_kept >= offset.numel():
        return offset
    flat = offset.flatten()
    kept = flat.abs().topk(num_kept, sorted=False).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view_as(offset)


def _dropped(tensors: Sequence[Tensor], base: Tensor, call: Call) -> list[Tensor]:
    """Offsets with each entry kept with the chance ``density`` and divided by it; seeded by name and model."""
    density, offsets = call.options["density"], []
    for index, tensor in enumerate(tensors):
        text = f"{int(call.options['seed'])}/{index}/{call.name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
        kept = torch.rand(base.shape, generator=torch.Generator().manual_seed(seed)) < density
        offsets.append((tensor - base) * kept / density)
    return offsets


def _agreeing(offsets: Sequence[Tensor], call: Call, *, mean: bool) -> Tensor:
    """The weighted sum, or mean, of the entries whose sign is that of the weighted sum of all."""
    weighted = [offset * weight for offset, weight in zip(offsets, call.weights, strict=True)]
    elected = torch.stack(weighted).sum(0).sign()
    elected[elected == 0] = 1
    total, shares = torch.zeros_like(elected), torch.zeros_like(elected)
    for offset, weight in zip(weighted, call.weights, strict=True):
        agrees = offset.sign() == elected
        total += offset * agrees
        shares += weight * agrees
    shares[shares.abs() < 1e-8] = 1
    return total / shares if mean else total
