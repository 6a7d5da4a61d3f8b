"""Copies whose residual outputs are weaker or stronger: attenuated, norm-matched."""

from __future__ import annotations

from functools import partial
from math import sqrt

from ..errors import CheckpointError, PlanError
from .arrays import FLOATS, Array, computed
from .inits import Bench, Maker


def attenuated(bench: Bench, target: int) -> dict[str, Maker]:
    """Residual outputs times 1 / sqrt(k) for a base layer that stands k times in the plan, or times the given factor.

    This is where users of mergekit arrived (its issue 198): what k copies of a layer write adds up to k times as much
    if the copies agree, and to sqrt(k) times if they are independent; 1/k and 1/sqrt(k) undo that. They also scaled
    queries and keys by k^-1/4 to k^-1/2; that changes what a layer attends to, not how much it writes, and is not done.
    """
    source = bench.plan.sources[target]
    given = bench.plan.init(target).numbers
    return _scaled(bench, target, given[0] if given else 1 / sqrt(len(bench.plan.targets_of(source))))


def norm_matched(bench: Bench, target: int) -> dict[str, Maker]:
    """Residual outputs times the given factor: the RMS of the stream at the layer's new place over that at its old one.

    In a pre-norm model the stream grows with depth (arXiv:2502.05795), so a layer that moves up writes too little for
    its new place. The factor is measured first, by :func:`~depthup.growth.norms.measure_norms`.

    Raises:
        PlanError: No factor is given.
    """
    given = bench.plan.init(target).numbers
    if not given:
        raise PlanError(
            f"the factor of '{bench.plan.sources[target]}:norm-matched' is not measured yet",
            next_step="name a text to measure it on with --calibration FILE, or give it, as in norm-matched(1.4)",
        )
    return _scaled(bench, target, given[0])


def _scaled(bench: Bench, target: int, factor: float) -> dict[str, Maker]:
    held, makers = bench.source(target), dict[str, Maker]()
    for suffix, silent in bench.residual(target).outputs.items():
        tensor = held[suffix]
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{tensor.name} is stored as {tensor.dtype} and cannot be scaled",
                allowed=", ".join(FLOATS),
                next_step="start the layer as a copy or as identity",
            )
        makers[suffix] = computed(bench.base.folder, (tensor,), partial(_scale, factor, silent), tensor.dtype)
    return makers


def _scale(factor: float, silent: float, values: Array) -> Array:
    return factor * (values - silent) + silent if silent else factor * values
