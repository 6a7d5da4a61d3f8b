"""Adapters: a PEFT folder grows by the plan of its base model, so that the two fit again.

The tensors under a layer's name move with it, as a checkpoint's do; what ``adapter_config.json`` says of layers follows
the plan, or is refused with the reason. Names and methods: peft 0.21. The code of peft is not needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.carry import carried_files, carry
from ..checkpoint.names import Stack
from ..checkpoint.plain_json import read_object
from ..checkpoint.reader import Checkpoint, Tensor, read_header
from ..checkpoint.writer import Buffer, Move, Progress, Shard, plan_shards, write_shards
from ..errors import CheckpointError, PlanError, shown
from ..files import publishing, refuse_existing, require_space, write_json
from ..layers import COPY, LayerPlan
from .adapter_config import CACHES, LAYERED, PROMPTS, REFUSED, grow_adapter_config, require_forms
from .adapter_depth import adapter_stack, depth_of_base
from .history import Step, extend_history
from .surgery import ADAPTER_CONFIG_NAME, MANIFEST_NAME

__all__ = ["AdapterSurgery", "adapter_stack", "grow_adapter", "is_adapter", "open_adapter", "plan_adapter",
           "publish_adapter"]  # fmt: skip
WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterSurgery:
    """Everything that will be written of a grown adapter.

    Attributes:
        adapter: The adapter.
        stack: The layers of its base model, by the names in the adapter.
        plan: The base layer of each target layer.
        shard: The file of its weights.
        config: The grown ``adapter_config.json``.
        config_changes: What differs from the adapter's, one line each.
        history: The surgeries that made the adapter, and this one.
    """

    adapter: Checkpoint
    stack: Stack
    plan: LayerPlan
    shard: Shard
    config: Mapping[str, Any]
    config_changes: tuple[str, ...]
    history: tuple[Step, ...]

    @property
    def num_parameters(self) -> int:
        return sum(move.num_elements for move in self.shard.moves)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, the header not counted."""
        return self.shard.num_data_bytes

    def describe(self) -> str:
        """The plan and what it costs, as text."""
        return "\n".join([
            self.plan.render(),
            f"parameters  {self.adapter.num_parameters:,} -> {self.num_parameters:,}",
            f"bytes       {self.adapter.num_bytes:,} -> {self.num_bytes:,}",
            *(f"config      {change}" for change in self.config_changes),
        ])  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / "config.json").is_file()


def open_adapter(folder: str | os.PathLike[str]) -> Checkpoint:
    """Open an adapter folder; its config is the raw ``adapter_config.json``.

    Raises:
        CheckpointError: The folder has no such config or no safetensors weights, or its method is not known.
    """
    folder = Path(folder)
    config = read_object(folder / ADAPTER_CONFIG_NAME)
    require_forms(config, folder / ADAPTER_CONFIG_NAME)
    method = config.get("peft_type")
    if method in REFUSED:
        raise CheckpointError(
            f"{folder} is an adapter of type {method}: {REFUSED[method]}",
            next_step="merge it into its base model, where its method can, and up-scale that",
        )
    if method not in LAYERED and method not in PROMPTS | CACHES:
        raise CheckpointError(
            f"{folder} is an adapter of type {shown(method)}, which depthup does not know",
            allowed=", ".join(sorted({*LAYERED, *PROMPTS, *CACHES})),
            next_step="merge it into its base model, where its method can, and up-scale that",
        )
    if not (folder / WEIGHTS_NAME).is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        raise CheckpointError(
            f"{folder} has no {WEIGHTS_NAME}" + (", only adapter_model.bin, which can run code when read" * pickle),
            next_step="load it with peft and save it again with save_pretrained, which writes safetensors",
        )
    tensors, metadata = read_header(folder, WEIGHTS_NAME)
    return Checkpoint(folder, config, tensors, metadata)


def plan_adapter(adapter: Checkpoint, stack: Stack, plan: LayerPlan, base_model: str | None = None) -> AdapterSurgery:
    """Decide on every tensor and config field of the grown adapter. Reads headers only, writes nothing.

    Args:
        adapter: An opened adapter.
        stack: The stack that it speaks of.
        plan: The plan by which its base model grew.
        base_model: What ``base_model_name_or_path`` is to say: the target model, a folder or a name.

    Raises:
        CheckpointError: A field or a method cannot be carried over.
        PlanError: The plan is for another depth, or starts layers in ways that an adapter cannot follow.
    """
    if plan.num_base_layers != stack.num_layers:
        raise PlanError(
            f"the plan is for a base of {plan.num_base_layers} layers, the adapter for one of {stack.num_layers}",
            next_step=f"make the plan for {stack.num_layers} layers",
        )
    depth = depth_of_base(base_model, stack.prefix)
    if depth and plan.num_target_layers not in depth:
        raise PlanError(
            f"{base_model} has {min(depth)} layers, the plan leads to {plan.num_target_layers}",
            next_step="name the up-scaled model as --base-model",
        )
    method = adapter.config["peft_type"]
    moves = _grown_caches(adapter, plan) if method in CACHES else _grown_layers(adapter, stack, plan)
    config, changes = grow_adapter_config(adapter.config, adapter.tensors, LAYERED.get(method), stack, plan, base_model)
    others = sorted(path.parent.name for path in adapter.folder.glob(f"*/{ADAPTER_CONFIG_NAME}"))
    changes += tuple(f"{name}: another adapter, to be grown by itself" for name in others)
    (shard,) = plan_shards(moves, sum(move.num_bytes for move in moves) + 1)
    history = extend_history(adapter.folder, stack.prefix, plan)
    return AdapterSurgery(adapter, stack, plan, replace(shard, file=WEIGHTS_NAME), config, changes, history)


def publish_adapter(surgery: AdapterSurgery, out: Path, progress: Progress | None = None) -> None:
    """Write a grown adapter to the new folder ``out``, which appears when it is whole.

    Raises:
        CheckpointError: The adapter changed while it was read.
        OutputError: ``out`` exists or the disk is too small.
    """
    adapter = surgery.adapter.folder
    refuse_existing(out)
    carried = sum(path.stat().st_size for path in carried_files(adapter))
    require_space(out.parent, surgery.shard.num_written_bytes + carried)
    with publishing(out) as partial_out:
        carry(adapter, partial_out)
        write_json(partial_out / ADAPTER_CONFIG_NAME, surgery.config)
        write_shards(adapter, [surgery.shard], partial_out, progress)
        write_json(partial_out / MANIFEST_NAME, {
            "depthup": __version__,
            "made_by": "surgery on an adapter",
            "plan": surgery.plan.to_json(),
            "stack": surgery.stack.prefix,
            "config_changes": list(surgery.config_changes),
            "num_parameters": surgery.num_parameters,
            "history": [step.to_json() for step in surgery.history[:-1]],
            "base": {"name": adapter.resolve().name},
        })  # fmt: skip


def grow_adapter(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: LayerPlan,
    *,
    stack: str | None = None,
    base_model: str | None = None,
    progress: Progress | None = None,
) -> AdapterSurgery:
    """Write the adapter that fits the target of ``plan`` as a new folder ``out``.

    Args:
        adapter: The adapter's folder.
        out: The folder to make; it must not exist.
        plan: The plan by which its base model grew.
        stack: Prefix of the layers, where the adapter changes several stacks.
        base_model: See :func:`plan_adapter`.
        progress: Called with the number of bytes written since the last call.

    Raises:
        CheckpointError: The adapter cannot be carried over.
        PlanError: The plan does not fit it.
        OutputError: ``out`` exists or the disk is too small.
    """
    opened = open_adapter(adapter)
    surgery = plan_adapter(opened, adapter_stack(opened, plan.num_base_layers, stack), plan, base_model)
    publish_adapter(surgery, Path(out), progress)
    return surgery


# -- tensors ----------------------------------------------------------------------------------------------------------


def _grown_layers(adapter: Checkpoint, stack: Stack, plan: LayerPlan) -> list[Move]:
    layers: dict[int, dict[str, Tensor]] = {}
    moves: list[Move] = []
    for tensor in adapter.tensors.values():
        place = stack.split(tensor.name)
        if place is not None and stack.name(*place) != tensor.name:
            raise CheckpointError(f"the adapter has the tensor '{shown(tensor.name)}'",
                                  next_step="give it another name")  # fmt: skip
        if place is not None:
            layers.setdefault(place[0], {})[place[1]] = tensor
        else:
            moves.append(Move(tensor.name, tensor))
    if layers and not layers.keys() & set(plan.sources):
        raise PlanError(f"the plan {plan.text} leaves out every layer that the adapter changes",
                        allowed=f"plans with one of the layers {', '.join(map(str, sorted(layers)))}")  # fmt: skip
    if adapter.config["peft_type"] == "ADAPTION_PROMPT":
        _require_last(plan, layers)
    for target, source in enumerate(plan.sources):
        held = layers.get(source, {})
        silent = _silenced(adapter, plan, target, held)
        moves += [Move(stack.name(target, suffix), tensor, _zeros(tensor.num_bytes) if suffix in silent else None)
                  for suffix, tensor in held.items()]  # fmt: skip
    return moves


def _silenced(adapter: Checkpoint, plan: LayerPlan, target: int, held: Mapping[str, Tensor]) -> frozenset[str]:
    """The tensors of a target layer to fill with zeros: an identity layer's adapter starts as a fresh one does."""
    init = plan.init(target)
    if init == COPY or not held:
        return frozenset()
    second = frozenset(suffix for suffix in held if re.search(r"(?:^|\.)lora_B\.", suffix))
    others = [suffix for suffix in held if not re.search(r"(?:^|\.)lora_[AB]\.", suffix)]
    if init.kind == "identity" and adapter.config["peft_type"] == "LORA" and not others:
        return second
    what = f"'{others[0]}'" if init.kind == "identity" and others else f"a {adapter.config['peft_type']} adapter"
    raise PlanError(
        f"target layer {target} starts as {init}, and depthup cannot start {what} so that it does",
        allowed="copies; identity for plain LoRA",
        next_step="merge the adapter into its base model and up-scale that",
    )


def _zeros(num_bytes: int) -> Any:
    return lambda: (bytes(num_bytes),)


def _require_last(plan: LayerPlan, layers: Mapping[int, object]) -> None:
    """Adaption prompts are in the last layers, and their config gives only the number of these."""
    held = [source in layers for source in plan.sources]
    if held != sorted(held):
        raise PlanError(
            f"an adaption prompt is in the last layers of a model, and the plan {plan.text} puts copies of its layers"
            f" {min(layers)} to {max(layers)} before others",
            next_step="choose a plan that ends with these layers and has them nowhere else",
        )


def _grown_caches(adapter: Checkpoint, plan: LayerPlan) -> list[Move]:
    """Prefix tuning: each row is a key and a value for each layer, in the order of the layers."""
    config, n = adapter.config, plan.num_base_layers
    submodules, width = config.get("num_transformer_submodules") or 1, config.get("token_dim")
    moves = []
    for tensor in adapter.tensors.values():
        if tensor.name != "prompt_embeddings":
            moves.append(Move(tensor.name, tensor))
        elif submodules != 1 or not isinstance(width, int) or tensor.shape[1:] != (n * 2 * width,):
            raise CheckpointError(
                f"the prefix has the shape {list(tensor.shape)}, and its config {submodules} stack(s) of {n} layers of"
                f" keys and values of {width} numbers",
                allowed=f"one stack, and a row of num_layers x 2 x token_dim = {n * 2 * (width or 0)} numbers",
            )
        else:
            shape = (tensor.shape[0], plan.num_target_layers * 2 * width)
            moves.append(Move(tensor.name, tensor, partial(_rows, adapter, tensor, plan), shape))
    return moves


def _rows(adapter: Checkpoint, tensor: Tensor, plan: LayerPlan) -> Iterator[Buffer]:
    row = tensor.num_bytes // max(tensor.shape[0], 1)
    part = row // plan.num_base_layers
    with open(adapter.folder / tensor.shard, "rb") as file:
        file.seek(tensor.begin)
        for _ in range(tensor.shape[0]):
            held = file.read(row)
            yield b"".join(held[source * part : (source + 1) * part] for source in plan.sources)
