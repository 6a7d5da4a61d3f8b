"""Run a plan without writing it: the layers of a loaded model, called in the plan's order, weights shared.

The model runs by its own code: its list of layers is replaced by twins of them (the same tensors, an index of their
own), and its config says what surgery would write. So masks, positions, caches and kinds of layer are those of the
target. Where many plans are tried, what they begin with is run once: plans are walked in the order of their layers,
and the stream is kept where one leaves the other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoint import reader
from ..checkpoint.config import grow_config
from ..checkpoint.names import Stack, find_stack
from ..errors import DepthupError, PlanError
from ..growth.norms import find_layers, starting_factor
from ..growth.residual import find_residual
from ..layers import LayerPlan
from ..models import Model

TRIED = ("copy", "identity", "attenuated", "norm-matched")  # inits that need no other layer's weights
_INDICES = ("layer_idx", "layer_id", "layer_index", "block_idx")  # attributes that hold a layer's place
_LOGITS_PER_PASS = 1 << 26  # 256 MB of float32 logits at once
_NEXT_STEP = "write it with `depthup upscale`, and load that"
Entry: TypeAlias = tuple[int, float]  # base layer, what its residual outputs are multiplied with


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


@dataclass(frozen=True)
class Tower:
    """The layers of a loaded model.

    Attributes:
        model: The model.
        stack: Where its layers stand, and what states their number.
        config: The model's config as plain values.
        holder: The module that holds the list of layers.
        name: The attribute that the list is.
        twins: Layers made so far, by target layer and entry.
    """

    model: Model
    stack: Stack
    config: Mapping[str, Any]
    holder: nn.Module
    name: str
    twins: dict[tuple[int, Entry], nn.Module] = field(default_factory=dict)

    @property
    def layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = getattr(self.holder, self.name)
        return layers

    @property
    def base_plan(self) -> LayerPlan:
        """Every layer once."""
        return LayerPlan(self.stack.num_layers, tuple(range(self.stack.num_layers)))


def find_tower(model: Model, stack: str | None = None) -> Tower:
    """The layers of a loaded model, by the names of its tensors and its config; no family has a template.

    Args:
        model: From :func:`depthup.models.load_model`, or any model of transformers.
        stack: Prefix or role of the layers, where the model has several stacks.

    Raises:
        CheckpointError: No list of modules agrees with the config, or several do.
    """
    config = model.config.to_dict()
    found = find_stack(model.state_dict(), config, stack)
    return Tower(model, found, config, *find_layers(model, found, next_step=_NEXT_STEP))


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
    with _swapped(tower, plan, _twins(tower, plan)):
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
    entries = [_entries(tower, plan) for plan in plans]
    vocabulary = max(int(tower.model.get_output_embeddings().weight.shape[0]), 1)
    chunks = rows.to(tower.model.device).split(max(1, _LOGITS_PER_PASS // (rows.shape[1] * vocabulary)))
    kept: dict[int, list[Any]] = {}
    for place, start, keep in _walk(entries):
        kept = {depth: states for depth, states in kept.items() if depth <= start}
        kept |= {depth: [None] * len(chunks) for depth in keep}
        losses = []
        for number, chunk in enumerate(chunks):
            with _swapped(tower, plans[place], _resumed(tower, plans[place], start, keep, kept, number)):
                losses.append(_row_losses(tower.model, chunk))
        if progress is not None:
            progress(len(entries[place]) - start)
        yield place, torch.cat(losses)


def count_layers(tower: Tower, plans: Sequence[LayerPlan]) -> int:
    """How many layers :func:`iterate_losses` runs for these plans, all of the rows counted as one."""
    entries = [_entries(tower, plan) for plan in plans]
    return sum(len(entries[place]) - start for place, start, _ in _walk(entries))


def _walk(entries: Sequence[Sequence[Entry]]) -> Iterator[tuple[int, int, list[int]]]:
    """An order in which what plans begin with is run once.

    Yields:
        The place of a plan, the depth from which it is run, and the depths at which its stream is needed again.
    """
    order = sorted(range(len(entries)), key=lambda place: tuple(entries[place]))
    shared = [_num_common(entries[a], entries[b]) for a, b in pairwise(order)]
    start = 0
    for step, place in enumerate(order):
        keep, lowest = set(), len(entries[place])
        for depth in shared[step:]:
            lowest = min(lowest, depth)
            if lowest <= start:
                break
            keep.add(lowest)
        yield place, start, sorted(keep)
        start = shared[step] if step < len(shared) else 0


def _num_common(a: Sequence[Entry], b: Sequence[Entry]) -> int:
    pairs = zip(a, b, strict=False)
    return next((depth for depth, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _resumed(
    tower: Tower, plan: LayerPlan, start: int, keep: Sequence[int], kept: dict[int, list[Any]], number: int
) -> list[nn.Module]:
    """The layers of a plan, the first ``start`` of which hand on what is kept; those that end at ``keep`` keep it."""
    layers = _twins(tower, plan)
    if start:
        given = kept[start][number]
        layers[:start] = [_replaced(layer, lambda *_, **__: _copied(given)) for layer in layers[:start]]
    for depth in keep:
        layers[depth - 1] = _replaced(layers[depth - 1], _keeping(layers[depth - 1].forward, kept[depth], number))
    return layers


def _keeping(forward: Callable[..., Any], states: list[Any], number: int) -> Callable[..., Any]:
    def kept(*arguments: Any, **named: Any) -> Any:
        output = forward(*arguments, **named)
        states[number] = _copied(output)
        return output

    return kept


def _copied(output: Any) -> Any:
    """A layer's output, safe from a layer that writes into its input."""
    if isinstance(output, tuple):
        return tuple(map(_copied, output))
    return output.clone() if isinstance(output, Tensor) else output


def _replaced(layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """The layer with all that it says of itself, and another function in place of its own."""
    stand_in = copy.copy(layer)
    object.__setattr__(stand_in, "forward", forward)
    return stand_in


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


# -- one plan ---------------------------------------------------------------------------------------------------------


def _entries(tower: Tower, plan: LayerPlan) -> list[Entry]:
    """The base layer of each target layer, and what its residual outputs are multiplied with.

    Raises:
        PlanError: The plan is for another depth, or has layers that exist only once they are written.
    """
    if plan.num_base_layers != tower.stack.num_layers:
        raise PlanError(
            f"the plan is for a base of {plan.num_base_layers} layers, {tower.stack.prefix} has"
            f" {tower.stack.num_layers}",
            next_step=f"make the plan for {tower.stack.num_layers} layers",
        )
    others = sorted({init.kind for init in plan.inits} - set(TRIED))
    if others:
        raise PlanError(
            f"layers that start as {', '.join(others)} exist only once they are written",
            allowed=", ".join(TRIED),
            next_step=_NEXT_STEP,
        )
    if any(init.kind == "norm-matched" and not init.numbers for init in plan.inits):
        raise PlanError(
            "a norm-matched layer has no factor yet",
            allowed="norm-matched(1.37)",
            next_step="measure the factors first, as `depthup upscale --calibration FILE` does",
        )
    return [(source, starting_factor(plan, target)) for target, source in enumerate(plan.sources)]


@contextmanager
def _swapped(tower: Tower, plan: LayerPlan, layers: Sequence[nn.Module]) -> Iterator[None]:
    """The model with other layers, and with the config that surgery would write for the plan."""
    config: Any = tower.model.config
    for key in tower.stack.scope:
        config = getattr(config, key)
    fields = tower.stack.fields(tower.config)
    with ExitStack() as cleanup:
        cleanup.callback(setattr, tower.holder, tower.name, tower.layers)
        setattr(tower.holder, tower.name, nn.ModuleList(layers))
        for key, value in tower.stack.fields(grow_config(tower.config, tower.stack, plan).config).items():
            if value != fields.get(key):
                cleanup.callback(setattr, config, key, getattr(config, key))
                setattr(config, key, value)
        yield


def _twins(tower: Tower, plan: LayerPlan) -> list[nn.Module]:
    """A layer for each target layer: the tensors of its base layer, its own index."""
    layers = []
    for target, entry in enumerate(_entries(tower, plan)):
        if (target, entry) not in tower.twins:
            tower.twins[target, entry] = _twin_of(tower, target, entry)
        layers.append(tower.twins[target, entry])
    return layers


def _twin_of(tower: Tower, target: int, entry: Entry) -> nn.Module:
    source, factor = entry
    twin = _twin(tower.layers[source])
    for module in twin.modules():
        for name in _INDICES:
            if vars(module).get(name) == source:
                setattr(module, name, target)
    if factor != 1:
        _scale(tower, twin, factor)
    return twin


def _twin(module: nn.Module) -> nn.Module:
    """The same tensors in modules of their own."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):  # tensors, members and hooks are entered here: a table each, not the same one
            vars(twin)[name] = copy.copy(value)
    for name, child in module.named_children():
        twin._modules[name] = _twin(child)
    return twin


def _scale(tower: Tower, twin: nn.Module, factor: float) -> None:
    """Give a twin residual outputs of its own, times ``factor``."""
    values = twin.state_dict()
    held = {name: reader.Tensor(name, "F32", tuple(value.shape), "", 0, 0) for name, value in values.items()}
    residual = find_residual(tower.config, tower.stack, held)
    changed = {name: silent + factor * (values[name] - silent) for name, silent in residual.outputs.items()}
    if factor == 0:
        changed |= {name: torch.full_like(values[name], value) for name, value in residual.gains.items()}
    for name, value in changed.items():
        holder, _, leaf = name.rpartition(".")
        module = twin.get_submodule(holder)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[leaf] = value
