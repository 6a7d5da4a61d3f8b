"""Measure what `norm-matched` needs: how much stronger the stream is at a layer's new place than at its old one.

The target is run without being written: the layers of the loaded base, called in the order of the plan. From below,
each layer to be matched gets its factor when the stream first reaches it, and works with it from then on, so that the
layers above are measured on the stream that they will meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.config import grow_config
from ..checkpoint.names import Stack, find_stack
from ..checkpoint.reader import Checkpoint, Tensor, open_checkpoint
from ..errors import CheckpointError, DepthupError, PlanError
from ..layers import Init, LayerPlan
from ..models import Model, Tokenizer, load_model, load_tokenizer
from .residual import find_residual

NUM_ROWS = 8
NUM_TOKENS_PER_ROW = 512
_MIN_TOKENS = 32
_UNMEASURED = Init("norm-matched")


def measure_norms(
    base: Path, plan: LayerPlan, texts: Iterable[str], *, stack: str | None = None, device: str = "cpu"
) -> LayerPlan:
    """The plan with a factor in each ``norm-matched`` that has none: ``norm-matched(1.37)``.

    A factor is the median over the tokens of the ratio of the stream's root mean square at the layer's new place to
    that at its old one. (The median, because a few tokens, the first above all, carry a stream hundreds of times
    stronger than the rest, and would decide any mean.)

    Args:
        base: The base checkpoint's folder.
        plan: Its layers start as copies, identity, attenuated or norm-matched.
        texts: Calibration text; the first 4,096 tokens are used.
        stack: Prefix of the layers, where the model has several stacks.
        device: Where the base is run, in float32.

    Raises:
        CheckpointError: The base does not load, or its layers are not found in memory.
        DepthupError: The text is shorter than 32 tokens.
        PlanError: The plan holds layers that exist only once they are written (averages and the like).
    """
    if _UNMEASURED not in plan.inits:
        return plan
    others = {init.kind for init in plan.inits} - {"copy", "identity", "attenuated", "norm-matched"}
    if others:
        raise PlanError(
            f"norms cannot be measured in a plan with {', '.join(sorted(others))} layers, which are made in writing",
            allowed="copy, identity, attenuated and norm-matched",
            next_step="give the factors yourself, as in norm-matched(1.4)",
        )
    checkpoint = open_checkpoint(base)
    found = find_stack(checkpoint.tensors, checkpoint.config, stack)
    model, rows = load_model(base, device), _rows(load_tokenizer(base), texts).to(device)
    at_home: list[torch.Tensor] = []
    factors: dict[int, float] = {}

    def keep(layer: int, stream: torch.Tensor) -> float:
        at_home.append(_rms(stream))
        return 1.0

    def factor(target: int, stream: torch.Tensor) -> float:
        if plan.init(target) != _UNMEASURED:
            return starting_factor(plan, target)
        ratio = (_rms(stream) / at_home[plan.sources[target]]).median()
        factors[target] = float(f"{ratio:.4g}")
        return factors[target]

    run_plan(model, checkpoint, found, LayerPlan(found.num_layers, tuple(range(found.num_layers))), rows, keep)
    run_plan(model, checkpoint, found, plan, rows, factor)
    inits = [Init("norm-matched", (factors[t],)) if t in factors else plan.init(t) for t in range(len(plan.sources))]
    return replace(plan, inits=tuple(inits))


def starting_factor(plan: LayerPlan, target: int) -> float:
    """What the residual outputs of a target layer are multiplied with: 1 for a copy, 0 for an identity."""
    init = plan.init(target)
    if init.kind == "attenuated" and not init.numbers:
        return 1 / sqrt(len(plan.targets_of(plan.sources[target])))
    return init.numbers[0] if init.numbers else float(init.kind == "copy")


def run_plan(
    model: Model,
    base: Checkpoint,
    stack: Stack,
    plan: LayerPlan,
    rows: torch.Tensor,
    factor: Callable[[int, torch.Tensor], float],
) -> torch.Tensor:
    """Logits [rows, tokens, vocabulary] of the target of ``plan``, computed with the layers of the loaded base.

    Args:
        model: The base, loaded; afterwards it is as before.
        base: The base's folder, opened.
        stack: Its layers.
        plan: The plan.
        rows: Token ids [rows, tokens].
        factor: From a target layer and the stream that reaches it, [rows, tokens, hidden], to what the layer's
            residual outputs are multiplied with.

    Raises:
        CheckpointError: The layers are not found in memory, or one is scaled and its residual outputs are not known.
    """
    holder, name = find_layers(model, stack, next_step="give the factors yourself, as in norm-matched(1.4)")
    layers: nn.ModuleList = getattr(holder, name)
    calls = count()
    undo: list[Callable[[], object]] = []

    def before(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        stream = inputs[0] if inputs else named["hidden_states"]
        undo.append(_scale(layer, base, stack, factor(next(calls), stream)))

    def after(layer: nn.Module, inputs: Any, output: Any) -> None:
        undo.pop()()

    with ExitStack() as cleanup, torch.inference_mode():
        for layer in layers:
            cleanup.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            cleanup.callback(layer.register_forward_hook(after).remove)
        cleanup.callback(setattr, holder, name, layers)
        setattr(holder, name, nn.ModuleList([layers[source] for source in plan.sources]))
        config: Any = model.config
        for key in stack.scope:
            config = getattr(config, key)
        fields = stack.fields(base.config)
        for key, value in stack.fields(grow_config(base.config, stack, plan).config).items():
            if value != fields.get(key):
                cleanup.callback(setattr, config, key, getattr(config, key))
                setattr(config, key, value)
        logits: torch.Tensor = model(input_ids=rows, use_cache=False).logits
    return logits


def find_layers(model: nn.Module, stack: Stack, *, next_step: str) -> tuple[nn.Module, str]:
    """The module that holds the stack's layers, and the attribute that they are.

    Raises:
        CheckpointError: There is no such list of modules, or several.
    """
    found = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == stack.num_layers
    ]  # fmt: skip
    found = [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]
    if len(found) > 1:
        found = [name for name in found if name.endswith(stack.prefix) or stack.prefix.endswith(name)]
    if len(found) != 1:
        raise CheckpointError(f"the layers {stack.prefix} are not found in the loaded model", next_step=next_step)
    holder, _, name = found[0].rpartition(".")
    return model.get_submodule(holder), name


def _scale(layer: nn.Module, base: Checkpoint, stack: Stack, factor: float) -> Callable[[], object]:
    """Multiply a layer's residual outputs in place; returns what takes it back."""
    if factor == 1:
        return lambda: None
    values = layer.state_dict()
    held = {name: Tensor(name, "F32", tuple(value.shape), "", 0, 0) for name, value in values.items()}
    residual = find_residual(base.config, stack, held)
    old = {name: values[name].clone() for name in (*residual.outputs, *(residual.gains if factor == 0 else ()))}
    for name, silent in residual.outputs.items():
        values[name].sub_(silent).mul_(factor).add_(silent)
    for name, value in residual.gains.items() if factor == 0 else ():
        values[name].fill_(value)
    return lambda: [values[name].copy_(value) for name, value in old.items()]


def _rms(stream: torch.Tensor) -> torch.Tensor:
    """[rows, tokens, hidden] -> [rows, tokens]."""
    return stream.float().square().mean(-1).sqrt()


def _rows(tokenizer: Tokenizer, texts: Iterable[str]) -> torch.Tensor:
    """The first tokens of the texts as rows of one length, [rows, tokens]."""
    tokens: list[int] = []
    for text in texts:
        tokens += tokenizer(text, verbose=False)["input_ids"]
        if len(tokens) >= NUM_ROWS * NUM_TOKENS_PER_ROW:
            break
    if len(tokens) < _MIN_TOKENS:
        raise DepthupError(f"the calibration text has {len(tokens)} tokens", allowed=f"at least {_MIN_TOKENS}")
    length = min(NUM_TOKENS_PER_ROW, len(tokens))
    num_rows = min(NUM_ROWS, len(tokens) // length)
    return torch.tensor(tokens[: num_rows * length]).view(num_rows, length)
