"""Layers between two neighbours with their neurons matched by optimal transport: OpT-DeUS, arXiv:2508.08011.

Of each linear map the rows (output neurons) of the layer are matched with those of its partner by entropic optimal
transport: cost, the Euclidean distance of the rows; both sides weighted evenly; strength of the entropy 0.06. The
matched rows are averaged with the partner's, norms are averaged as they are, and the residual outputs are silenced, so
that the model computes what its base computes. Each map is matched by itself, heads are not kept together, as there.

Two points differ. The stream is one and the same for both layers, so what reads it needs no matching on its input side
(the paper hands the map found for ``o_proj`` on to the MLP). And matched rows are weighted means, as optimal-transport
fusion has it (Singh and Jaggi, arXiv:1910.05653): the plan is divided by its marginal, without which a matched map of n
neurons would be n times too small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..checkpoint.reader import Tensor
from ..errors import CheckpointError
from .arrays import Array, computed, encode, read_array
from .inits import Bench, Maker, filled
from .mixing import neighbours

ENTROPY = 0.06
_MAPS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1"})
_MOST_STEPS = 1000
_TOLERANCE = 1e-3  # of what a row gives, relative; what a row gets is exact
_ABSORB = 1e10  # scalings above this go into the potentials


def transport(bench: Bench, target: int) -> dict[str, Maker]:
    """The aligned mean of the layer and the next one, residual outputs silent.

    Memory: three square matrices over the neurons of the widest map.

    Raises:
        CheckpointError: The layer has maps for which the method is not described (fused projections, experts,
            state-space mixers, norms behind the branches).
    """
    residual, folder = bench.residual(target), bench.base.folder
    pairs, held = neighbours(bench, target), bench.source(target)
    makers = {suffix: filled(held[suffix], value) for suffix, value in {**residual.outputs, **residual.gains}.items()}
    for suffix, pair in pairs.items():
        module, _, leaf = suffix.rpartition(".")
        if suffix in makers:
            continue
        if module.rpartition(".")[2] in _MAPS and ".experts" not in module and f"{module}.weight" in pairs:
            makers[suffix] = _matched(bench, pairs, module, leaf)
        elif len(pair[0].shape) == 1:
            makers[suffix] = computed(folder, pair, lambda one, other: 0.5 * (one + other), pair[0].dtype)
        else:
            raise CheckpointError(
                f"the neurons of {pair[0].name} cannot be matched: the method is described for layers of separate"
                f" {', '.join(sorted(_MAPS))}",
                next_step="start the layer as average, or as identity",
            )
    return makers


def _matched(bench: Bench, pairs: Mapping[str, tuple[Tensor, Tensor]], module: str, leaf: str) -> Maker:
    folder, weight, own = bench.base.folder, pairs[f"{module}.weight"], pairs[f"{module}.{leaf}"]

    def make() -> Iterator[bytes]:
        if bench.kept.get("matched") != weight:  # a map's weight and bias are made one after the other
            below, above = (read_array(folder, tensor) for tensor in weight)
            bench.kept.update(matched=weight, plan=match(below, above))
        one, other = (read_array(folder, tensor) for tensor in own)
        yield encode(0.5 * (bench.kept["plan"].T @ one + other), own[0].dtype)

    return make


def match(one: Array, other: Array, entropy: float = ENTROPY) -> Array:
    """Which rows of ``one`` go into each row of ``other``: [rows of one, rows of other], each column sums to 1.

    Sinkhorn's algorithm (Cuturi, arXiv:1306.0895) with potentials kept as logarithms and scalings absorbed into them
    (Schmitzer, arXiv:1610.06519), so that no entropy is too small for float32.
    """
    cost = _distances(one, other)
    f = cost.min(1)
    g = (cost - f[:, None]).min(0)
    rows, columns = cost.shape
    u, v = np.ones(rows, np.float32), np.ones(columns, np.float32)
    kernel = _kernel(cost, f, g, entropy)
    for step in range(_MOST_STEPS):
        u = 1 / rows / (kernel @ v)
        v = 1 / columns / (kernel.T @ u)
        if max(u.max(), v.max(), 1 / u.min(), 1 / v.min()) > _ABSORB:
            f, g = f + entropy * np.log(u), g + entropy * np.log(v)
            u, v = np.ones_like(u), np.ones_like(v)
            kernel = _kernel(cost, f, g, entropy)
        if step % 10 == 9 and abs(rows * u * (kernel @ v) - 1).max() < _TOLERANCE:
            break
    plan = u[:, None] * kernel * v
    return plan / plan.sum(0)


def _kernel(cost: Array, f: Array, g: Array, entropy: float) -> Array:
    return np.exp((f[:, None] + g - cost) / np.float32(entropy))


def _distances(one: Array, other: Array) -> Array:
    squares = (one * one).sum(1)[:, None] + (other * other).sum(1) - 2 * (one @ other.T)
    return np.sqrt(np.maximum(squares, 0))
