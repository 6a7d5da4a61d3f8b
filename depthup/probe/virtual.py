"""Run plans without writing them: the layers of a loaded model, called in each plan's order, weights shared.

Where many plans are tried, what they begin with is run once: plans are walked in the order of their layers, and the
stream is kept where one leaves the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DepthupError
from ..layers import LayerPlan
from ..models import Model
from .tower import Entry, Tower, chunked, copied, entries_of, find_tower, replaced, swapped, twins_of

__all__ = ["Loss", "Tower", "can_resume", "count_layers", "find_tower", "iterate_losses", "summarise", "virtual_stack",
           "zero_step_losses"]  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """Next-token loss of a plan, before any training.

    Attributes:
        plan: The plan.
        mean: Mean over all predicted tokens, in nats.
        standard_error: Of that mean, over rows.
        difference: This mean less that of the base on the same rows.
        difference_error: Its standard error, row by row.
        rows: Mean loss of each row.
    """

    plan: LayerPlan
    mean: float
    standard_error: float
    difference: float
    difference_error: float
    rows: tuple[float, ...]


@contextmanager
def virtual_stack(model: Model, plan: LayerPlan, *, stack: str | None = None) -> Iterator[Model]:
    """While the block runs, the model is the target of ``plan``; afterwards it is as before.

    Weights are shared: training one copy of a layer trains all. Generation with a cache works, each target layer has a
    slot of its own.

    Args:
        model: The base, loaded.
        plan: Layers that start as copies, identity, attenuated or norm-matched (with a factor).
        stack: Prefix of the layers, where the model has several stacks.

    Raises:
        PlanError: The plan is for another depth, or has layers that exist only once they are written.
        CheckpointError: The layers or the config cannot be carried over by index, as in surgery.
    """
    tower = find_tower(model, stack)
    with swapped(tower, plan, twins_of(tower, plan)):
        yield model


def zero_step_losses(
    model: Model,
    plans: Sequence[LayerPlan],
    rows: Tensor,
    *,
    stack: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Loss, ...]:
    """Mean next-token loss of each plan, before any training, and how far it is from the base's.

    Args:
        model: The base, loaded.
        plans: See :func:`virtual_stack`.
        rows: Token ids [rows, tokens], best each from a document of its own: errors are told from row to row.
        stack: Prefix of the layers, where the model has several stacks.
        progress: Called with the number of layers run since the last call; see :func:`count_layers`.

    Returns:
        One for each plan, in their order.

    Raises:
        DepthupError: There are fewer than two rows, or rows of one token.
        PlanError, CheckpointError: See :func:`virtual_stack`.
    """
    _require_rows(rows)
    tower = find_tower(model, stack)
    found = dict(iterate_losses(tower, [tower.base_plan, *plans], rows, progress))
    return tuple(summarise(plan, found[1 + place], found[0]) for place, plan in enumerate(plans))


def summarise(plan: LayerPlan, losses: Tensor, base: Tensor) -> Loss:
    """The loss of a plan, from the mean loss of each row, [rows], of it and of the base."""
    difference = losses - base

    def error(values: Tensor) -> float:
        return float(values.std()) / math.sqrt(len(values))

    means = float(losses.mean()), float(difference.mean())
    return Loss(plan, means[0], error(losses), means[1], error(difference), tuple(losses.tolist()))


# -- many plans -------------------------------------------------------------------------------------------------------


def iterate_losses(
    tower: Tower, plans: Sequence[LayerPlan], rows: Tensor, progress: Callable[[int], object] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """The place of each plan in ``plans`` and the mean loss of each row under it, [rows], in the order of the walk."""
    entries, chunks = [entries_of(tower, plan) for plan in plans], chunked(tower, rows)
    kept: dict[int, list[Any]] = {}
    for place, start, keep in _walk(entries, can_resume(tower)):
        kept = {depth: states for depth, states in kept.items() if depth <= start}
        kept |= {depth: [None] * len(chunks) for depth in keep}
        losses = []
        for number, chunk in enumerate(chunks):
            with swapped(tower, plans[place], _resumed(tower, plans[place], start, keep, kept, number)):
                losses.append(_row_losses(tower.model, chunk))
        if progress is not None:
            progress(len(entries[place]) - start)
        yield place, torch.cat(losses)


def count_layers(tower: Tower, plans: Sequence[LayerPlan]) -> int:
    """How many layers :func:`iterate_losses` runs for these plans, all of the rows counted as one."""
    entries = [entries_of(tower, plan) for plan in plans]
    return sum(len(entries[place]) - start for place, start, _ in _walk(entries, can_resume(tower)))


def can_resume(tower: Tower) -> bool:
    """Whether a stack goes on from a kept stream as if it had been run: tried once, on a few tokens.

    Not so where layers hand one another more than the stream, as those that share keys and values do.
    """
    if "resumes" not in tower.facts:
        tower.facts["resumes"] = _resumes(tower)
    return tower.facts["resumes"]


@torch.no_grad()
def _resumes(tower: Tower) -> bool:
    depth = tower.stack.num_layers // 2
    rows = torch.arange(1, 9, device=tower.model.device)[None]
    kept: dict[int, list[Any]] = {depth: [None]}
    logits = []
    for start, keep in ((0, [depth] if depth else []), (depth, [])):
        layers = _resumed(tower, tower.base_plan, start, keep, kept, 0)
        with swapped(tower, tower.base_plan, layers):
            try:
                logits.append(tower.model(input_ids=rows, use_cache=False).logits)
            except Exception:  # whatever a layer raises that misses what the skipped ones would have left
                if not start:
                    raise
                return False
    return torch.allclose(*logits, rtol=1e-4, atol=1e-5)


def _walk(entries: Sequence[Sequence[Entry]], shared: bool) -> Iterator[tuple[int, int, list[int]]]:
    """An order in which what plans begin with is run once, if it may be ``shared``.

    Yields:
        The place of a plan, the depth from which it is run, and the depths at which its stream is needed again.
    """
    order = sorted(range(len(entries)), key=lambda place: tuple(entries[place]))
    common = [_num_common(entries[a], entries[b]) if shared else 0 for a, b in pairwise(order)]
    start = 0
    for step, place in enumerate(order):
        keep, lowest = set(), len(entries[place])
        for depth in common[step:]:
            lowest = min(lowest, depth)
            if lowest <= start:
                break
            keep.add(lowest)
        yield place, start, sorted(keep)
        start = common[step] if step < len(common) else 0


def _num_common(a: Sequence[Entry], b: Sequence[Entry]) -> int:
    pairs = zip(a, b, strict=False)
    return next((depth for depth, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _resumed(
    tower: Tower, plan: LayerPlan, start: int, keep: Sequence[int], kept: dict[int, list[Any]], number: int
) -> list[nn.Module]:
    """The layers of a plan, the first ``start`` of which hand on what is kept; those that end at ``keep`` keep it."""
    layers = twins_of(tower, plan)
    if start:
        given = kept[start][number]
        layers[:start] = [replaced(layer, lambda *_, **__: copied(given)) for layer in layers[:start]]
    for depth in keep:
        layers[depth - 1] = replaced(layers[depth - 1], _keeping(layers[depth - 1].forward, kept[depth], number))
    return layers


def _keeping(forward: Callable[..., Any], states: list[Any], number: int) -> Callable[..., Any]:
    def kept(*arguments: Any, **named: Any) -> Any:
        output = forward(*arguments, **named)
        states[number] = copied(output)
        return output

    return kept


@torch.no_grad()
def _row_losses(model: Model, rows: Tensor) -> Tensor:
    """Mean next-token loss of each row, [rows], float64 on the CPU."""
    logits = model(input_ids=rows, use_cache=False).logits
    losses = [
        functional.cross_entropy(row[:-1].float(), tokens[1:]) for row, tokens in zip(logits, rows, strict=True)
    ]  # fmt: skip
    return torch.stack(losses).double().cpu()


def _require_rows(rows: Tensor) -> None:
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 2:
        raise DepthupError(
            f"rows of tokens of the shape {list(rows.shape)}",
            allowed="[rows, tokens] with at least 2 of each: errors are told from row to row",
            next_step="give more text, or shorter rows",
        )
