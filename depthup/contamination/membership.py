"""Whether a model was trained on given items: the rank test that SOLAR quotes, beside Min-K% and Min-K%++.

The rank test ("result < 0.1" in SOLAR's Table 9, arXiv:2312.15166; its tool is detect-pretrain-code-contamination,
which draws without a seed and gives one figure without an interval). A reference model continues the first 40 % of
each item's words many times. An item's *score* is the share of these neighbours that the model under test finds more
probable (lower mean loss) than the item itself; the *result* is the share of items with a score below 0.1. A model
that knows the items prefers them to nearly every neighbour. What a result means depends on the reference and on the
items, so it is read only beside that of a planted leak, a copy trained on them.

Min-K% (Shi et al. 2024, arXiv:2310.16789) and Min-K%++ (Zhang et al. 2025, arXiv:2404.02936) need no reference, but
items of the same kind that the model surely did not see.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import DepthupError
from ..models import Model, Tokenizer, quiet_transformers

Progress = Callable[[int], object]
SCORE_BELOW = 0.1  # of an item that counts; the figure in the name of SOLAR's column
ALARM = 0.85  # of a result, in the README of the tool; SOLAR reads 0.9
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Settings:
    """How neighbours are drawn and texts are read.

    Attributes:
        num_neighbours: Of each item. With fewer than 11 a score below 0.1 means that no neighbour is more probable.
        prefix_share: Share of an item's words that the reference is given.
        max_tokens: Of a text; what follows is not read.
        min_k_share: Share of tokens that Min-K% looks at.
        batch_tokens: Tokens of one forward pass, at the least one text.
        seed: Of all drawing.
    """

    num_neighbours: int = 100
    prefix_share: float = 0.4
    max_tokens: int = 512
    min_k_share: float = 0.2
    batch_tokens: int = 2048
    seed: int = 0


class Estimate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class TokenStatistics(NamedTuple):
    """Of each predicted token of a text, float64 [num_tokens - 1].

    Attributes:
        log_probs: Its log-probability in nats.
        means: Mean log-probability of all tokens there, weighted by their probability.
        deviations: Standard deviation of the same.
    """

    log_probs: NDArray[np.float64]
    means: NDArray[np.float64]
    deviations: NDArray[np.float64]


def draw_neighbours(
    reference: Model, tokenizer: Tokenizer, texts: Sequence[str], settings: Settings, progress: Progress | None = None
) -> list[list[str]]:
    """For each text ``num_neighbours`` others: its first words, and what the reference goes on to write (T = 1).

    A neighbour has at most as many new tokens as the text has there. The draw of an item is a function of the seed and
    of its place alone.

    Raises:
        DepthupError: A text has too few words to be divided, or too many tokens to be read.
    """
    found = []
    for number, text in enumerate(texts):
        prefix = prefix_of(text, settings.prefix_share)
        rest = len(tokenizer(text[len(prefix) :], add_special_tokens=False)["input_ids"])
        given = tokenizer(prefix, return_tensors="pt")["input_ids"]
        if given.shape[1] >= settings.max_tokens:  # all neighbours would be alike in what is read of them
            raise DepthupError(
                f"an item has {given.shape[1]} tokens before its neighbours begin: {text[:60]!r}",
                allowed=f"fewer than {settings.max_tokens}",
                next_step="raise --max-tokens, or take long items out",
            )
        new = max(1, min(rest, settings.max_tokens - given.shape[1]))
        with torch.random.fork_rng(), torch.inference_mode(), quiet_transformers():
            torch.manual_seed(settings.seed * 1_000_003 + number)
            made = reference.generate(
                input_ids=given.to(reference.device), attention_mask=torch.ones_like(given).to(reference.device),
                max_new_tokens=new, num_return_sequences=settings.num_neighbours, do_sample=True, temperature=1.0,
                top_p=1.0, top_k=0, repetition_penalty=1.0, no_repeat_ngram_size=0,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )  # fmt: skip
        found.append([prefix + tokenizer.decode(row, skip_special_tokens=True) for row in made[:, given.shape[1] :]])
        if progress:
            progress(1)
    return found


def prefix_of(text: str, share: float) -> str:
    """The first ``share`` of a text's words, at least one, as they stand there.

    Raises:
        DepthupError: Nothing would be left to continue.
    """
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    count = max(1, int(len(ends) * share))
    if count >= len(ends):
        raise DepthupError(
            f"an item has {len(ends)} words, too few to continue: {text[:60]!r}", next_step="take such items out"
        )
    return text[: ends[count - 1]]


def token_statistics(
    model: Model, tokenizer: Tokenizer, texts: Sequence[str], settings: Settings, progress: Progress | None = None
) -> list[TokenStatistics]:
    """Log-probabilities of each text's tokens, and what the model expected there.

    Raises:
        DepthupError: A text has fewer than two tokens.
    """
    ids = [tokenizer(text)["input_ids"][: settings.max_tokens] for text in texts]
    short = next((text for text, each in zip(texts, ids, strict=True) if len(each) < 2), None)
    if short is not None:
        raise DepthupError(f"a text of fewer than two tokens has no loss: {short[:60]!r}")
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # like lengths share a batch: little padding
    found: dict[int, TokenStatistics] = {}
    while order:
        size = max(1, settings.batch_tokens // len(ids[order[0]]))
        while size > 1 and len(ids[order[min(size, len(order)) - 1]]) * size > settings.batch_tokens:
            size -= 1
        batch, order = order[:size], order[size:]
        found.update(zip(batch, _statistics(model, [ids[index] for index in batch]), strict=True))
        if progress:
            progress(len(batch))
    return [found[index] for index in range(len(ids))]


def _statistics(model: Model, ids: Sequence[Sequence[int]]) -> list[TokenStatistics]:
    width = max(map(len, ids))
    inputs = torch.zeros((len(ids), width), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, each in enumerate(ids):
        inputs[row, : len(each)] = torch.tensor(each)
        mask[row, : len(each)] = 1
    inputs, mask = inputs.to(model.device), mask.to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=inputs, attention_mask=mask).logits  # right padding is behind all that is read
        made = []
        for row, each in enumerate(ids):
            log_probs = torch.log_softmax(logits[row, : len(each) - 1].float(), dim=-1)
            probs = log_probs.exp()
            means = (probs * log_probs).sum(-1)
            squares = (probs * log_probs.square()).sum(-1)
            taken = log_probs.gather(-1, inputs[row, 1 : len(each), None])[:, 0]
            parts = (taken, means, (squares - means.square()).clamp_min(0).sqrt())
            made.append(TokenStatistics(*(part.double().cpu().numpy() for part in parts)))
    return made


def mean_loss(statistics: TokenStatistics) -> float:
    """Mean loss of a text in nats per token."""
    return -float(statistics.log_probs.mean())


def min_k(statistics: TokenStatistics, share: float = 0.2) -> float:
    """Min-K%: mean log-probability of the least probable ``share`` of tokens; higher for texts that were seen."""
    return _lowest(statistics.log_probs, share)


def min_k_plus_plus(statistics: TokenStatistics, share: float = 0.2) -> float:
    """Min-K%++: the same of log-probabilities in units of what the model expected at each place."""
    deviations = np.maximum(statistics.deviations, 1e-8)  # 0 where the model is certain
    return _lowest((statistics.log_probs - statistics.means) / deviations, share)


def _lowest(values: NDArray[np.float64], share: float) -> float:
    count = max(1, int(len(values) * share))
    return float(np.sort(values)[:count].mean())


def rank_scores(items: ArrayLike, neighbours: ArrayLike) -> NDArray[np.bool_]:
    """bool [num_items, num_neighbours]: whether a neighbour has a lower loss than its item.

    Args:
        items: Loss of each item under the model.
        neighbours: Losses of its neighbours under the same model.
    """
    return np.asarray(neighbours, np.float64) < np.asarray(items, np.float64)[:, None]


def rank_result(lower: NDArray[np.bool_], seed: int = 0) -> Estimate:
    """The share of items with a score below 0.1.

    The interval is from resampling items, and neighbours within each; where every item says the same, resampling knows
    no doubt, and the exact interval of a share of 0 or 1 (Clopper & Pearson 1934) stands instead.

    Args:
        lower: Of :func:`rank_scores`.
        seed: Of the resampling.
    """
    value = _result(lower)
    low, high = np.percentile(_resampled(lower, seed), [2.5, 97.5]).tolist()
    doubt = 0.025 ** (1 / len(lower))
    return Estimate(value, min(low, doubt) if value == 1 else low, max(high, 1 - doubt) if value == 0 else high)


def rank_difference(first: NDArray[np.bool_], second: NDArray[np.bool_], seed: int = 0) -> Estimate:
    """Result of one model less that of another on the same items and neighbours, which are resampled together."""
    gaps = _resampled(first, seed) - _resampled(second, seed)
    low, high = np.percentile(gaps, [2.5, 97.5]).tolist()
    return Estimate(_result(first) - _result(second), low, high)


def _result(lower: NDArray[np.bool_]) -> float:
    return float((lower.mean(axis=1) < SCORE_BELOW).mean())


def _resampled(lower: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    numbers = np.random.default_rng(seed)
    num_items, num_neighbours = lower.shape
    results = np.empty(NUM_RESAMPLES)
    for index in range(NUM_RESAMPLES):
        rows = numbers.integers(num_items, size=(num_items, 1))
        columns = numbers.integers(num_neighbours, size=(num_items, num_neighbours))
        results[index] = _result(lower[rows, columns])
    return results


def auc(members: Sequence[float], others: Sequence[float], seed: int = 0) -> Estimate:
    """Probability that a random member has a higher value than a random other text, both sides resampled."""
    one, two = np.asarray(members, np.float64), np.asarray(others, np.float64)
    numbers = np.random.default_rng(seed)
    drawn = [
        _auc(one[numbers.integers(len(one), size=len(one))], two[numbers.integers(len(two), size=len(two))])
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return Estimate(_auc(one, two), low, high)


def _auc(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    ordered = np.sort(two)
    below, not_above = np.searchsorted(ordered, one, "left"), np.searchsorted(ordered, one, "right")
    return float((below + not_above).sum() / (2 * len(one) * len(two)))


def reading(result: Estimate, alarm: float = ALARM) -> str:
    """``leaked`` or ``clean`` where the whole interval lies on one side of the alarm, else ``undecided``."""
    if math.isclose(alarm, result.low) or result.low > alarm:
        return "leaked"
    return "clean" if result.high < alarm else "undecided"
