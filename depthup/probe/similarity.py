"""How alike a model's layers are, from the residual stream between them on real text. Pure functions of that stream.

A stream is a tensor [layers + 1, tokens, hidden]: state i is what reaches layer i, the last one is what leaves the top
layer (before the final norm). Angles and cosines are taken token by token, so the few tokens that carry a stream
hundreds of times stronger than the rest count as one each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..layers import LayerPlan
from .tower import Tower, chunked, logits_of, record

_CKA_TOKENS = 768  # a Gram matrix has tokens x tokens numbers, and there is one for each state


@dataclass(frozen=True)
class Lens:
    """What the model would say if it ended after so many layers; one value for each of the layers + 1 states.

    Attributes:
        loss: Mean next-token loss, in nats.
        divergence: KL divergence of the last state's distribution from this one's, in nats: 0 at the last.
        agreement: Share of tokens whose likeliest next token is the last state's.
    """

    loss: tuple[float, ...]
    divergence: tuple[float, ...]
    agreement: tuple[float, ...]


def residual_stream(tower: Tower, rows: Tensor, plan: LayerPlan | None = None) -> Tensor:
    """The stream [layers + 1, tokens, hidden] of all rows, in float32 on the CPU.

    Args:
        tower: The model.
        rows: Token ids [rows, tokens].
        plan: Run this target of the model instead of the model.
    """
    chunks = [[state.cpu() for state in record(tower, chunk, plan).states] for chunk in chunked(tower, rows)]
    return torch.stack([torch.cat(states).flatten(0, -2).float() for states in zip(*chunks, strict=True)])


def cosines(stream: Tensor) -> Tensor:
    """Mean over tokens of the cosine between each two states, [layers + 1, layers + 1]."""
    units = functional.normalize(stream, dim=-1)
    return torch.stack([(state * units).sum(-1).mean(-1) for state in units])


def angular_distances(stream: Tensor) -> Tensor:
    """Mean over tokens of arccos(cosine) / pi between each two states, [layers + 1, layers + 1].

    Entry (i, i + k) is the distance of Gromov et al. (arXiv:2403.17887, section 3.2) across the k layers from i on:
    where it is small, these layers change the direction of the stream least. (They take the last token; here all are.)
    """
    units = functional.normalize(stream.double(), dim=-1)
    rows = [angle((state * units).sum(-1)).mean(-1) for state in units]
    return torch.stack(rows).fill_diagonal_(0.0)


def angle(cosine: Tensor) -> Tensor:
    """arccos of a cosine as a share of half a turn."""
    return cosine.clamp(-1, 1).arccos() / math.pi


def block_influence(stream: Tensor) -> Tensor:
    """1 less the mean cosine between what reaches each layer and what leaves it, [layers].

    ShortGPT (arXiv:2403.03853, section 3.1): layers of little influence are removed first.
    """
    return 1 - functional.cosine_similarity(stream[:-1].double(), stream[1:].double(), dim=-1).mean(-1)


def linear_cka(stream: Tensor) -> Tensor:
    """Centred kernel alignment between each two states with a linear kernel, [layers + 1, layers + 1].

    Kornblith et al. (arXiv:1905.00414, section 3). 1 where one state is the other turned and scaled; it does not see
    the direction of a change that all tokens share. At most 768 tokens are taken, evenly spaced.
    """
    step = -(-stream.shape[1] // _CKA_TOKENS)
    grams = torch.stack([_centred_gram(state).flatten() for state in stream[:, ::step]])
    return (grams @ grams.T).clamp(0, 1).fill_diagonal_(1.0)


def _centred_gram(state: Tensor) -> Tensor:
    """X X^T of the centred state, of norm 1; zero for a state that is the same for all tokens."""
    centred = state - state.mean(0)
    gram = centred @ centred.T
    return gram / gram.norm().clamp_min(torch.finfo(gram.dtype).tiny)


def stream_rms(stream: Tensor) -> Tensor:
    """Median over tokens of the root mean square of each state, [layers + 1]."""
    return stream.double().square().mean(-1).sqrt().median(-1).values


def logit_lens(tower: Tower, rows: Tensor, progress: Callable[[float], object] | None = None) -> Lens:
    """Final norm and head on the stream after each layer (nostalgebraist's logit lens, 2020), by the model's own code.

    Args:
        tower: The model.
        rows: Token ids [rows, tokens].
        progress: Called with the states done since the last call, all of the rows counted as one.
    """
    totals = torch.zeros(3, tower.stack.num_layers + 1, dtype=torch.float64)
    for chunk in chunked(tower, rows):
        passage = record(tower, chunk)
        last = logits_of(tower, chunk, passage.states[-1], passage)[:, :-1].float().log_softmax(-1)
        best, targets = last.argmax(-1), chunk[:, 1:, None]
        for depth, state in enumerate(passage.states):
            here = logits_of(tower, chunk, state, passage)[:, :-1].float().log_softmax(-1)
            loss = -here.gather(-1, targets).sum()
            divergence = (last.exp() * (last - here)).sum()
            agreement = (here.argmax(-1) == best).sum()
            totals[:, depth] += torch.stack([loss, divergence, agreement]).double().cpu()
            if progress is not None:
                progress(len(chunk) / len(rows))
    totals /= rows.shape[0] * (rows.shape[1] - 1)
    return Lens(*(tuple(values) for values in totals.tolist()))


def as_json(stream: Tensor) -> dict[str, Any]:
    """All measures of a stream that is all there is to it."""
    found = {
        "influence": block_influence(stream),
        "rms": stream_rms(stream),
        "angular_distance": angular_distances(stream),
        "cosine": cosines(stream),
        "cka": linear_cka(stream),
    }
    return {name: rounded(values.tolist()) for name, values in found.items()}


def rounded(value: Any) -> Any:
    """Numbers of lists and lists of lists to six digits."""
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
