"""Layers that a small network predicts from their neighbours: LESA, arXiv:2502.13794, from the paper's description.

For each kind of weight the matrices of all layers are put side by side and decomposed, [W_1 ... W_n] = U S [V_1 ... V_n]',
which gives all layers one basis U S and each its coefficients V_i. A network of three linear maps learns to give V_i
from V_(i-1) and V_(i+1), row by row; asked with V_i and V_(i+1), it gives the coefficients of a layer between the two.
Vectors (norms, biases) are averaged.

From the paper or its notes: width 256, AdamW at 1e-3, 10 epochs, batches of 64, squared error plus 5e-4 times the
squared error of the rows' norms. Ours, where we found nothing said: the matrices are laid with their short side along
U, coefficients are scaled to a mean square of 1 for the network, and the maps have ReLU between them.

What is learned is the step over two layers, and it is used over one. On layers that lie on a smooth curve the network
therefore corrects the mean of two neighbours by more than their distance warrants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from ..checkpoint.reader import Tensor
from ..errors import CheckpointError
from .arrays import Array, computed, encode, read_array
from .inits import Bench, Maker
from .mixing import neighbours

HIDDEN_SIZE = 256
NUM_EPOCHS = 10
NUM_ROWS_PER_STEP = 64
LEARNING_RATE = 1e-3
NORM_WEIGHT = 5e-4


def learned(bench: Bench, target: int) -> dict[str, Maker]:
    """The layer predicted between a layer and the next one.

    A network is fitted when the first tensor of its kind of weight is made, and kept. Memory: while one is fitted, that
    kind of weight of all layers as float32; the bases and networks of all kinds.

    Raises:
        CheckpointError: Fewer than three layers hold such a weight, or the layer has experts or convolutions, which
            the paper does not treat.
    """
    source = bench.plan.sources[target]
    makers: dict[str, Maker] = {}
    for suffix, pair in neighbours(bench, target).items():
        tensor = pair[0]
        if len(tensor.shape) == 1:
            makers[suffix] = computed(bench.base.folder, pair, lambda one, other: 0.5 * (one + other), tensor.dtype)
            continue
        alike = [i for i, held in sorted(bench.layers.items()) if suffix in held and held[suffix].shape == tensor.shape]
        runs = [layer for layer in alike if layer + 1 in alike and layer + 2 in alike]
        if len(tensor.shape) > 2 or "experts." in suffix or not runs:
            raise CheckpointError(
                f"{tensor.name} ({list(tensor.shape)}) cannot be predicted: the method is described for matrices that"
                " at least three layers in a row have",
                next_step=f"start the layer as average, as in {source}:average",
            )
        makers[suffix] = partial(_predicted, bench, suffix, pair, alike)
    return makers


@dataclass(frozen=True)
class Pattern:
    """What was learned of one kind of weight; matrices are laid with their short side first, [short, long].

    Attributes:
        directions: Orthonormal directions that all layers share, U, [short, rank].
        sizes: Root mean square of the layers along each, [rank].
        network: From the coefficients of the layers below and above, [rows, 2 rank], to those between, [rows, rank].
    """

    directions: torch.Tensor
    sizes: torch.Tensor
    network: nn.Module

    def coefficients(self, matrix: Array) -> torch.Tensor:
        """[short, long] -> [long, rank]."""
        return torch.from_numpy(matrix).float().T @ self.directions / self.sizes

    def between(self, below: Array, above: Array) -> Array:
        """The matrix predicted between two, [short, long]."""
        with torch.inference_mode():
            neighbours = torch.cat([self.coefficients(below), self.coefficients(above)], 1)
            made: Array = (self.directions @ (self.sizes * self.network(neighbours)).T).numpy()
        return made


def fit(read: Callable[[int], Array], layers: Sequence[int], key: str, num_epochs: int = NUM_EPOCHS) -> Pattern:
    """Learn one kind of weight.

    Args:
        read: The matrix of a layer, [short, long]; called twice for each.
        layers: The layers that hold it, rising; at least three of them in a row.
        key: Seeds the network and the order of the rows.
        num_epochs: Times each row of each inner layer is seen.
    """
    gram = sum(matrix @ matrix.T for layer in layers for matrix in (torch.from_numpy(read(layer)).double(),))
    assert isinstance(gram, torch.Tensor)
    squares, directions = torch.linalg.eigh(gram)
    kept = squares > 1e-10 * squares[-1]  # directions that no layer uses have no coefficients
    num_rows = read(layers[0]).shape[1]
    sizes = (squares[kept] / (len(layers) * num_rows)).sqrt().float()
    pattern = Pattern(directions[:, kept].float(), sizes, nn.Identity())
    coefficients = torch.stack([pattern.coefficients(read(layer)) for layer in layers])
    middles = [i for i in range(1, len(layers) - 1) if layers[i + 1] - layers[i - 1] == 2]
    return replace(pattern, network=_train(coefficients, middles, key, num_epochs))


def _train(coefficients: torch.Tensor, middles: Sequence[int], key: str, num_epochs: int) -> nn.Module:
    """Fit the network on coefficients of shape [layers, rows, rank], to give those of each middle layer."""
    _, num_rows, rank = coefficients.shape
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(2 * rank, HIDDEN_SIZE), nn.ReLU(), nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE), nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, rank),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
        for _ in range(num_epochs):
            for rows in torch.randperm(len(middles) * num_rows).split(NUM_ROWS_PER_STEP):
                layer, row = torch.tensor(middles)[rows // num_rows], rows % num_rows
                given = torch.cat([coefficients[layer - 1, row], coefficients[layer + 1, row]], 1)
                wanted, made = coefficients[layer, row], network(given)
                loss = (made - wanted).square().mean()
                loss = loss + NORM_WEIGHT * (made.norm(dim=1) - wanted.norm(dim=1)).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return network.requires_grad_(False)


def _predicted(bench: Bench, suffix: str, pair: tuple[Tensor, Tensor], layers: Sequence[int]) -> Iterator[bytes]:
    def read(tensor: Tensor) -> Array:
        matrix = read_array(bench.base.folder, tensor)
        return matrix.T if turned else matrix

    turned = pair[0].shape[0] > pair[0].shape[1]
    if suffix not in bench.kept:
        bench.kept[suffix] = fit(lambda layer: read(bench.layers[layer][suffix]), layers, suffix)
    made = bench.kept[suffix].between(read(pair[0]), read(pair[1]))
    yield encode(made.T if turned else made, pair[0].dtype)
