"""FLOPs of a model for each token, counted as model FLOPs utilisation counts them.

A parameter of a matrix costs 2 FLOPs forward, 2 for the gradient of its input and 2 for its own (Kaplan et al.,
arXiv:2001.08361; PaLM, arXiv:2204.02311, appendix B). Causal attention costs 4 x width forward for each earlier token
that a token sees, on average half the row, and twice that backward: 6 x width x row a layer. Norms, rotations,
softmax and the look-up of embeddings are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import LayerShape, ModelShape


@dataclass(frozen=True)
class Trainable:
    """What a stage trains.

    Attributes:
        layers: Indices of trained layers; None for all.
        outside: Whether embeddings, final norm and head are trained.
        lora_rank: If above 0 all weights are frozen, and each matrix of each layer has an adapter of this rank.
    """

    layers: frozenset[int] | None = None
    outside: bool = True
    lora_rank: int = 0

    def has(self, layer: int) -> bool:
        """Whether the weights of a layer are trained."""
        return not self.lora_rank and (self.layers is None or layer in self.layers)

    def lowest(self, num_layers: int) -> int:
        """The layer at which the backward pass stops: it goes through that one and all above."""
        if self.lora_rank or self.outside or self.layers is None:
            return 0
        return min(self.layers, default=num_layers)


ALL = Trainable()


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Parameters of LoRA adapters (arXiv:2106.09685) of all matrices in the layers: rank x (rows + columns) of each.

    Of a mixture of experts only attention and the experts of one token are counted.
    """
    return sum(_adapter(shape, layer, rank) for layer in shape.layers)


def _adapter(shape: ModelShape, layer: LayerShape, rank: int) -> int:
    sides = 2 * (shape.hidden + layer.queries) + 2 * (shape.hidden + layer.keys)
    num_mlps = max(layer.routes, 1)
    sides += (3 if shape.gated else 2) * (num_mlps * shape.hidden + layer.inner)
    return rank * sides


def trained_parameters(shape: ModelShape, trainable: Trainable = ALL) -> int:
    """Number of parameters that have gradients and optimizer states."""
    if trainable.lora_rank:
        return adapter_parameters(shape, trainable.lora_rank)
    layers = sum(layer.parameters for index, layer in enumerate(shape.layers) if trainable.has(index))
    return layers + (shape.outside if trainable.outside else 0)


def attended(window: int | None, row_tokens: int) -> float:
    """Mean number of tokens that a token of a row sees: half the row, or less with a window."""
    seen = min(window or row_tokens, row_tokens)
    return seen * (1 - seen / (2 * row_tokens))


def forward_flops(shape: ModelShape, row_tokens: int) -> float:
    """FLOPs of the forward pass for each token of a row."""
    return 2 * shape.num_matrix_parameters + sum(_attention(layer, row_tokens) for layer in shape.layers)


def _attention(layer: LayerShape, row_tokens: int) -> float:
    return 4 * layer.queries * attended(layer.window, row_tokens)


def training_flops(shape: ModelShape, row_tokens: int, trainable: Trainable = ALL) -> float:
    """FLOPs of forward and backward pass for each token of a row. Recomputed activations are not counted.

    Frozen matrices cost 4 FLOPs a parameter, those below the lowest trained layer 2; so does attention there.
    """
    lowest = trainable.lowest(len(shape.layers))
    trains_head = trainable.outside and not trainable.lora_rank
    flops = float((6 if trains_head else 4) * shape.head)
    for index, layer in enumerate(shape.layers):
        backward = index >= lowest
        flops += (6 if trainable.has(index) else 4 if backward else 2) * layer.matrices
        flops += (3 if backward else 1) * _attention(layer, row_tokens)
        if trainable.lora_rank:
            flops += 6 * _adapter(shape, layer, trainable.lora_rank)
    return flops


def recomputed_flops(shape: ModelShape, row_tokens: int, recompute: str) -> float:
    """FLOPs for each token that recomputing activations adds: with ``full`` the layers once more.

    ``selective`` keeps what matrix products and attention make; the rest is no FLOPs that are counted.
    """
    return forward_flops(shape, row_tokens) - 2 * shape.head if recompute == "full" else 0.0
