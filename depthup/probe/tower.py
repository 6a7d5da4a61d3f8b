"""The layers of a loaded model as a stack of their own: twins that share its tensors, run by the model's own code.

The model's list of layers is replaced by twins of them (the same tensors, an index of their own), and its config says
what surgery would write. So masks, positions, caches and kinds of layer are those of the target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..checkpoint import reader
from ..checkpoint.config import grow_config
from ..checkpoint.names import Stack, find_stack
from ..errors import PlanError
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
class Tower:
    """The layers of a loaded model.

    Attributes:
        model: The model.
        stack: Where its layers stand, and what states their number.
        config: The model's config as plain values.
        holder: The module that holds the list of layers.
        name: The attribute that the list is.
        twins: Layers made so far, by target layer and entry.
        facts: What was found out about the model so far.
    """

    model: Model
    stack: Stack
    config: Mapping[str, Any]
    holder: nn.Module
    name: str
    twins: dict[tuple[int, Entry], nn.Module] = field(default_factory=dict)
    facts: dict[str, bool] = field(default_factory=dict)

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


# -- one plan ---------------------------------------------------------------------------------------------------------


def entries_of(tower: Tower, plan: LayerPlan) -> list[Entry]:
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
def swapped(tower: Tower, plan: LayerPlan, layers: Sequence[nn.Module]) -> Iterator[None]:
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


def twins_of(tower: Tower, plan: LayerPlan) -> list[nn.Module]:
    """A layer for each target layer: the tensors of its base layer, its own index."""
    layers = []
    for target, entry in enumerate(entries_of(tower, plan)):
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


# -- one pass ---------------------------------------------------------------------------------------------------------


def chunked(tower: Tower, rows: Tensor) -> Sequence[Tensor]:
    """Rows [rows, tokens] on the model's device, as many at a time as keep the logits small."""
    vocabulary = int(tower.model.get_output_embeddings().weight.shape[0])
    return rows.to(tower.model.device).split(max(1, _LOGITS_PER_PASS // (rows.shape[1] * vocabulary)))


@dataclass(frozen=True)
class Passage:
    """What stood between the layers while some rows went through.

    Attributes:
        states: What reaches each layer, and what leaves the last one: layers + 1 times [rows, tokens, hidden].
        output: What the last layer returns: the stream, or a tuple with the stream first.
    """

    states: list[Tensor]
    output: Any


@torch.no_grad()
def record(tower: Tower, rows: Tensor, plan: LayerPlan | None = None) -> Passage:
    """Run rows [rows, tokens] through the model, or through its target by ``plan``, and keep what is between layers."""
    plan = plan or tower.base_plan
    states: list[Tensor] = []
    outputs: list[Any] = [None]

    def recording(forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any, **named: Any) -> Any:
            states.append((arguments[0] if arguments else named["hidden_states"]).clone())
            output = forward(*arguments, **named)
            outputs[0] = copied(output)
            return output

        return recorded

    layers = [replaced(layer, recording(layer.forward)) for layer in twins_of(tower, plan)]
    with swapped(tower, plan, layers):
        tower.model(input_ids=rows, use_cache=False)
    last = outputs[0]
    return Passage([*states, last[0] if isinstance(last, tuple) else last], last)


@torch.no_grad()
def logits_of(tower: Tower, rows: Tensor, state: Tensor, passage: Passage) -> Tensor:
    """Logits [rows, tokens, vocabulary] as if ``state`` [rows, tokens, hidden] left the last layer.

    Args:
        tower: The model.
        rows: Token ids [rows, tokens].
        state: The stream.
        passage: Of the same rows: what a layer's output looks like.
    """
    output = (state, *passage.output[1:]) if isinstance(passage.output, tuple) else state
    layers = [replaced(layer, lambda *_, **__: copied(output)) for layer in tower.layers]
    with swapped(tower, tower.base_plan, layers):
        logits: Tensor = tower.model(input_ids=rows, use_cache=False).logits
    return logits


def copied(output: Any) -> Any:
    """A layer's output, safe from a layer that writes into its input."""
    if isinstance(output, tuple):
        return tuple(map(copied, output))
    return output.clone() if isinstance(output, Tensor) else output


def replaced(layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """The layer with all that it says of itself, and another function in place of its own."""
    stand_in = copy.copy(layer)
    object.__setattr__(stand_in, "forward", forward)
    return stand_in
