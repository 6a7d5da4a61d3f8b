"""Direct preference optimisation: the summed loss of pairs of answers, and what to watch while it is trained.

A pair's score is how much more likely than the reference the policy holds an answer, in nats: summed over its tokens,
or averaged where the variant says so. A reward is beta times a score. All of it is computed in float64 from float32
log-probabilities; it is a few numbers a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.packing import IGNORED, Batch, PairBatch
from ..errors import TrainingError, nearest
from . import attention
from .heads import FULL, Head
from .objectives import Measured, Objective


@dataclass(frozen=True)
class Preference:
    """What a preference loss is made of.

    beta is comparable within one normalisation only: 0.01 - 0.5 where scores are sums, 2 - 10 where they are averages
    over tokens.

    Attributes:
        variant: A name of :data:`VARIANTS`.
        beta: Strength of the tie to the reference; in ``ipo`` the tau of the paper.
        label_smoothing: Share of pairs taken to be labelled the wrong way round, in ``[0, 0.5)``.
        nll_weight: Weight of the chosen answer's mean negative log-likelihood, added to the loss (arXiv:2404.19733).
        gamma: Margin that ``simpo`` asks of the rewards; the paper takes 0.3 to 0.5 of beta.

    Raises:
        TrainingError: A value that the variant has no use for, or that leaves nothing to learn.
    """

    variant: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise TrainingError(
                f"preference loss '{self.variant}' is unknown{nearest(self.variant, VARIANTS)}",
                allowed=", ".join(VARIANTS),
            )
        smooths = [name for name, variant in VARIANTS.items() if variant.smooths]
        checks = (
            ("beta", 0 < self.beta < math.inf, "a number above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 0.5, "at least 0 and below 0.5, where labels say nothing"),
            ("label_smoothing", not self.label_smoothing or self.variant in smooths, f"0, or {', '.join(smooths)}"),
            ("nll_weight", 0 <= self.nll_weight < math.inf, "at least 0"),
            ("gamma", 0 <= self.gamma < math.inf, "at least 0"),
            ("gamma", not self.gamma or self.variant == "simpo", "0, or the variant simpo"),
        )
        for name, holds, allowed in checks:
            if not holds:
                raise TrainingError(f"{name} is {getattr(self, name)} for variant {self.variant}", allowed=allowed)

    @property
    def needs_reference(self) -> bool:
        return VARIANTS[self.variant].uses_reference

    def pair_losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Loss of each pair from its two scores, without the NLL term; any shape."""
        return VARIANTS[self.variant].loss(chosen, rejected, self)

    @property
    def start_loss(self) -> float:
        """Loss of a pair whose policy is its reference, without the NLL term: ln 2 for ``sigmoid``."""
        return float(self.pair_losses(*torch.zeros(2, dtype=torch.float64)))


@dataclass(frozen=True)
class Variant:
    """A row of :data:`VARIANTS`.

    Attributes:
        loss: From the scores of chosen and rejected answers, and the settings, to the loss of each pair.
        averages: Whether scores are averages over tokens instead of sums.
        uses_reference: Whether scores are relative to a reference.
        smooths: Whether ``label_smoothing`` means something to it.
    """

    loss: Callable[[Tensor, Tensor, Preference], Tensor]
    averages: bool = False
    uses_reference: bool = True
    smooths: bool = False


def _sigmoid(chosen: Tensor, rejected: Tensor, settings: Preference) -> Tensor:
    """Rafailov et al. 2023 (arXiv:2305.18290, eq. 7); with label smoothing their conservative form."""
    margin, flipped = settings.beta * (chosen - rejected), settings.label_smoothing
    loss = -(1 - flipped) * F.logsigmoid(margin)
    return loss - flipped * F.logsigmoid(-margin) if flipped else loss


def _ipo(chosen: Tensor, rejected: Tensor, settings: Preference) -> Tensor:
    """Azar et al. 2023 (arXiv:2310.12036, eq. 17), averaged over tokens as its authors confirmed to TRL."""
    return (chosen - rejected - 1 / (2 * settings.beta)) ** 2


def _robust(chosen: Tensor, rejected: Tensor, settings: Preference) -> Tensor:
    """Chowdhury et al. 2024 (arXiv:2403.00409): unbiased if a share ``label_smoothing`` of labels is flipped."""
    margin, flipped = settings.beta * (chosen - rejected), settings.label_smoothing
    return (flipped * F.logsigmoid(-margin) - (1 - flipped) * F.logsigmoid(margin)) / (1 - 2 * flipped)


def _apo_zero(chosen: Tensor, rejected: Tensor, settings: Preference) -> Tensor:
    """D'Oosterlinck et al. 2024 (arXiv:2408.06266, eq. 7): chosen answers up, rejected ones down."""
    return torch.sigmoid(-settings.beta * chosen) + torch.sigmoid(settings.beta * rejected)


def _simpo(chosen: Tensor, rejected: Tensor, settings: Preference) -> Tensor:
    """Meng et al. 2024 (arXiv:2405.14734, eq. 6)."""
    return -F.logsigmoid(settings.beta * (chosen - rejected) - settings.gamma)


VARIANTS: dict[str, Variant] = {
    "sigmoid": Variant(_sigmoid, smooths=True),
    "sigmoid_norm": Variant(_sigmoid, averages=True, smooths=True),  # of Tulu 3, arXiv:2411.15124
    "ipo": Variant(_ipo, averages=True),
    "robust": Variant(_robust, smooths=True),
    "apo_zero": Variant(_apo_zero),
    "simpo": Variant(_simpo, averages=True, uses_reference=False),
}


def dpo(
    variant: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    nll_weight: float = 0.0,
    gamma: float = 0.0,
    *,
    head: Head = FULL,
) -> Objective:
    """The objective of :class:`Preference` over batches of pairs; its unit is the pair.

    Its sums, per pair: ``rewards/{chosen,rejected,margins,accuracies}``, ``rewards/margins_squared`` (for the spread),
    ``logps/{chosen,rejected}`` in nats an answer and ``logps/{chosen,rejected}_per_token``,
    ``lengths/{chosen,rejected}`` in tokens, and ``nll/chosen`` in nats a token. Where there is a reference, also how
    far the policy has gone from it on these answers, in nats a token: ``kl_k1/{chosen,rejected}`` and
    ``kl_k3/{chosen,rejected}``, see :func:`_divergence`.

    Raises:
        TrainingError: See :class:`Preference`; and from the objective, a batch without pairs or reference.
    """
    settings = Preference(variant, beta, label_smoothing, nll_weight, gamma)
    return PreferenceObjective(settings, head)


@dataclass(frozen=True)
class PreferenceObjective:
    """What :func:`dpo` makes: a function of model and batch with its settings in sight."""

    settings: Preference
    head: Head = FULL

    def __call__(self, model: nn.Module, batch: Batch) -> Measured:
        """Summed loss of the batch's pairs; ``batch`` is a :class:`~depthup.data.packing.PairBatch`."""
        if not isinstance(batch, PairBatch):
            raise TrainingError("a preference loss was given a batch without pairs", allowed="rows of preference pairs")
        settings, variant = self.settings, VARIANTS[self.settings.variant]
        sums = answer_logps(self.head, model, batch)
        lengths = attention.put(answer_lengths(batch), sums.device)
        scores, figures = sums, {}
        if variant.uses_reference:
            if batch.reference is None:
                raise TrainingError(
                    f"variant {settings.variant} needs the reference's log-probabilities, and the batch has none",
                    next_step="compute them before training, or take simpo, which has no reference",
                )
            scores = sums - attention.put(batch.reference, sums.device)
            figures = _divergence(scores.detach() / lengths)
        if variant.averages:
            scores = scores / lengths
        chosen, rejected = scores.unbind(1)
        nll = -sums[:, 0] / lengths[:, 0]
        losses = settings.pair_losses(chosen, rejected) + settings.nll_weight * nll
        figures |= _figures(scores.detach(), sums.detach(), lengths, settings.beta)
        return Measured(losses.sum().float(), figures)


def answer_logps(head: Head, model: nn.Module, batch: PairBatch) -> Tensor:
    """Log-probability of each answer in nats, with gradient: float64 [num_pairs, 2], chosen and rejected.

    Without gradient and before the first update, these are the reference's: one model in memory is enough.
    """
    logps = head.token_logps(model, batch)
    answers = attention.put(batch.sequences[batch.labels != IGNORED], logps.device)
    sums = torch.zeros(2 * batch.num_units, dtype=torch.float64, device=logps.device)
    return sums.index_add(0, answers, logps.double()).view(-1, 2)


def answer_lengths(batch: PairBatch) -> np.ndarray:
    """Targets of each answer, int64 [num_pairs, 2]; 1 where an answer has none, for dividing."""
    answers = batch.sequences[batch.labels != IGNORED]
    return np.maximum(np.bincount(answers, minlength=2 * batch.num_units), 1).reshape(-1, 2)


def _figures(scores: Tensor, sums: Tensor, lengths: Tensor, beta: float) -> dict[str, Tensor]:
    """Sums over pairs of what :func:`dpo` lists; ``scores``, ``sums``, ``lengths`` are [num_pairs, 2]."""
    rewards, per_token = beta * scores, sums / lengths
    margins = rewards[:, 0] - rewards[:, 1]
    columns = {"rewards": rewards, "logps": sums, "lengths": lengths.double()}
    found = {f"{name}/{side}": values[:, i].sum() for name, values in columns.items() for i, side in enumerate(_SIDES)}
    return found | {
        "rewards/margins": margins.sum(),
        "rewards/margins_squared": (margins**2).sum(),
        "rewards/accuracies": (margins > 0).double().sum(),
        "logps/chosen_per_token": per_token[:, 0].sum(),
        "logps/rejected_per_token": per_token[:, 1].sum(),
        "nll/chosen": -per_token[:, 0].sum(),
    }


def _divergence(ratios: Tensor) -> dict[str, Tensor]:
    """Estimates of KL(policy || reference) in nats a token, each summed over pairs: k1 and k3 of Schulman 2020
    (Approximating KL Divergence, joschu.net/blog/kl-approx.html).

    Both are exact on average for texts that the policy writes; chosen and rejected answers are not, so they tell a
    drift on these texts. k1 is the mean log-ratio and may be negative; k3, exp(-k1) - 1 + k1, is never below 0. Of each
    answer only the sum of its tokens' log-ratios is known, and k3 of their mean is at most the mean of their k3.

    Args:
        ratios: log(policy / reference) of each answer, mean over its tokens, [num_pairs, 2].
    """
    found: dict[str, Tensor] = {}
    for number, side in enumerate(_SIDES):
        k1 = ratios[:, number]
        found |= {f"kl_k1/{side}": k1.sum(), f"kl_k3/{side}": (torch.expm1(-k1) + k1).sum()}
    return found


_SIDES = ("chosen", "rejected")


def alarms(history: Sequence[Mapping[str, float]]) -> list[str]:
    """What is wrong with a preference run, from the means of its steps so far (oldest first); often nothing.

    Looked for are a loss that vanishes early, both answers growing unlikely (likelihood displacement, arXiv:2402.13228
    and 2410.08847), pairs of equal answers, and margins that explode.

    Args:
        history: For each step ``loss`` and the sums of :func:`dpo` as means over pairs.
    """
    if len(history) < 2:
        return []
    first, last = history[0], history[-1]
    recent = history[-min(10, len(history)) :]
    found = []
    if _mean(recent, "rewards/accuracies") > 0.95 and last["loss"] < 0.1 * first["loss"]:
        found.append(
            f"the loss fell from {first['loss']:.3f} to {last['loss']:.3f} with {len(history)} steps done: answers"
            " differ by something trivial (length, template), or the learning rate is too high"
        )
    falls = [first[f"logps/{side}_per_token"] - _mean(recent, f"logps/{side}_per_token") for side in _SIDES]
    if min(falls) > 0.5:
        found.append(
            f"chosen and rejected answers both grow unlikely, by {falls[0]:.2f} and {falls[1]:.2f} nats a token: add an"
            " NLL term, lower the learning rate or raise beta"
        )
    if all(step["logps/chosen"] == step["logps/rejected"] for step in recent):
        found.append("chosen and rejected answers are the same text: look at the data with `depthup preview`")
    spreads = [_spread(step) for step in history]
    early = max(spreads[: max(2, len(spreads) // 4)])
    if len(history) >= 8 and spreads[-1] > max(10.0, 10 * early):
        found.append(f"margins spread over {spreads[-1]:.1f}, {early:.1f} at first: lower the learning rate")
    return found


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)


def _spread(step: Mapping[str, float]) -> float:
    """Standard deviation of margins over a step's pairs."""
    return math.sqrt(max(0.0, step["rewards/margins_squared"] - step["rewards/margins"] ** 2))
