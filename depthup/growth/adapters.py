"""Adapters: a PEFT folder grows by the plan of its base model, so that the two fit again.

The tensors under a layer's name move with it, as a checkpoint's do; what ``adapter_config.json`` says of layers follows
the plan, or is refused with the reason. Names and methods: peft 0.21. The code of peft is not needed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.names import Stack, depths, find_stacks, indexed_prefixes
from ..checkpoint.reader import Checkpoint, Tensor, read_config, read_header
from ..checkpoint.shards import align
from ..checkpoint.writer import Buffer, Move, Progress, Shard
from ..errors import CheckpointError, PlanError
from ..layers import COPY, LayerPlan
from .adapter_config import grow_adapter_config, require_forms
from .history import extend_history
from .surgery import ADAPTER_CONFIG_NAME, Surgery, publish_surgery

WEIGHTS_NAME = "adapter_model.safetensors"

# Methods whose tensors lie under the layer that they change, and the word that their names begin with.
LAYERED = {
    "LORA": "lora_", "ADALORA": "lora_", "IA3": "ia3_", "LOHA": "hada_", "LOKR": "lokr_", "OFT": "oft_",
    "BOFT": "boft_", "HRA": "hra_", "VERA": "vera_lambda_", "PVERA": "pvera_lambda_", "VBLORA": "vblora_",
    "RANDLORA": "randlora_", "FOURIERFT": "fourierft_", "WAVEFT": "waveft_", "C3A": "c3a_", "ROAD": "road_",
    "SHIRA": "shira_", "SUPERTUNING": "supertuning_", "MISS": "miss_", "DELORA": "delora_", "GLORA": "glora_",
    "GRALORA": "gralora_", "HIRA": "hira_", "DEFT": "deft_", "PEANUT": "peanut_", "PSOFT": "psoft_", "OSF": "osf_",
    "BEFT": "beft_", "POLY": "poly_", "LN_TUNING": "ln_tuning_", "ADAPTION_PROMPT": "adaption_",
    "TRAINABLE_TOKENS": "trainable_tokens_",
}  # fmt: skip
# Methods that put tokens before the text: one tensor, which says nothing of layers.
PROMPTS = frozenset({"PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"})
# Methods that put keys and values before those of the text: one tensor with a part for each layer.
CACHES = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
# Methods that hang on the number or the order of layers in a way that no field can say.
REFUSED = {
    "XLORA": "its classifier puts out scales for each adapted layer",
    "FROD": "its shared basis is computed from the weights of all layers together",
    "LILY": "layers next to each other share its tensors",
    "UNILORA": "all layers share one vector, in places drawn by their order",
    "TINYLORA": "layers share its vectors in groups formed by their order",
    "SHADOW": "a second, smaller model runs beside the layers",
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / "config.json").is_file()


def open_adapter(folder: str | os.PathLike[str]) -> Checkpoint:
    """Open an adapter folder; its config is the raw ``adapter_config.json``.

    Raises:
        CheckpointError: The folder has no such config or no safetensors weights, or its method is not known.
    """
    folder = Path(folder)
    config = _read_adapter_config(folder)
    method = config.get("peft_type")
    if method in REFUSED:
        raise CheckpointError(
            f"{folder} is an adapter of type {method}: {REFUSED[method]}",
            next_step="merge it into its base model, where its method can, and up-scale that",
        )
    if method not in LAYERED and method not in PROMPTS | CACHES:
        raise CheckpointError(
            f"{folder} is an adapter of type {method}, which depthup does not know",
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


def adapter_stack(adapter: Checkpoint, num_base_layers: int | None = None, prefix: str | None = None) -> Stack:
    """The stack of the base model's layers that an adapter speaks of.

    The depth is the one given, else that of the base model if ``base_model_name_or_path`` is a folder here, else the
    number of layers in the adapter if it has the same modules in each of them, with nothing that leaves layers out.

    Args:
        adapter: An opened adapter.
        num_base_layers: Depth of the base model.
        prefix: Which stack, as in ``model.layers``, where an adapter changes several.

    Raises:
        CheckpointError: The depth cannot be told, or contradicts the adapter.
    """
    config = adapter.config
    if config["peft_type"] in PROMPTS | CACHES:
        found, where = config.get("num_layers"), Stack("", 0, (), ("num_layers",))
        stated = {found} if type(found) is int and found > 0 else set()
    else:
        where = Stack(_container(adapter, prefix), 0, (), ())
        stated = _depth_of_base(config.get("base_model_name_or_path"), where.prefix) or _depth_held(adapter, where)
    if num_base_layers is None and len(stated) != 1:
        raise CheckpointError(
            f"the depth of the model that {adapter.folder} is for cannot be told: its config names"
            f" '{config.get('base_model_name_or_path')}', which is no folder here, and the adapter need not be in"
            " every layer",
            next_step="say it with --base-layers",
        )
    num_layers = num_base_layers or next(iter(stated))
    last = max((place[0] for name in adapter.tensors if (place := where.split(name))), default=-1)
    if last >= num_layers or (len(stated) == 1 and num_layers not in stated):
        known = f"a base of {next(iter(stated))} layers" if len(stated) == 1 else f"a base with a layer {last}"
        raise CheckpointError(f"the adapter is for {known}, not for one of {num_layers} layers",
                              next_step="check --base-layers, or leave it out")  # fmt: skip
    return Stack(where.prefix, num_layers, where.scope, where.depth_keys)


def plan_adapter(adapter: Checkpoint, stack: Stack, plan: LayerPlan, base_model: str | None = None) -> Surgery:
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
    depth = _depth_of_base(base_model, stack.prefix) if base_model is not None else ()
    if base_model is not None and depth and plan.num_target_layers not in depth:
        raise PlanError(
            f"{base_model} has {min(depth)} layers, the plan leads to {plan.num_target_layers}",
            next_step="name the up-scaled model as --base-model",
        )
    method = adapter.config["peft_type"]
    moves = _grown_caches(adapter, plan) if method in CACHES else _grown_layers(adapter, stack, plan)
    config, changes = grow_adapter_config(adapter.config, adapter.tensors, LAYERED.get(method), stack, plan, base_model)
    shards = (Shard(WEIGHTS_NAME, tuple(align(moves))),)
    history = extend_history(adapter.folder, stack.prefix, plan)
    return Surgery(adapter, stack, plan, shards, config, changes, history, config_name=ADAPTER_CONFIG_NAME)


def grow_adapter(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: LayerPlan,
    *,
    stack: str | None = None,
    base_model: str | None = None,
    progress: Progress | None = None,
) -> Surgery:
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
    publish_surgery(surgery, Path(out), progress)
    return surgery


# -- depth ------------------------------------------------------------------------------------------------------------


def _container(adapter: Checkpoint, wanted: str | None) -> str:
    """The indexed prefix of the adapter's names that is meant; empty if it has none."""
    found = list(indexed_prefixes(adapter.tensors))
    chosen = [name for name in found if wanted is None or name == wanted or name.endswith(f".{wanted}")]
    if len(chosen) > 1 or (wanted is not None and not chosen):
        raise CheckpointError(
            f"the adapter has modules in {', '.join(found) or 'no layers'}",
            next_step="choose the stack with --stack PREFIX" + (f", not {wanted}" if wanted else ""),
        )
    return chosen[0] if chosen else ""


def _depth_of_base(name: Any, prefix: str) -> set[int]:
    """The depths that the config of a base model in a folder states for a prefix; empty if there is no such folder."""
    if not isinstance(name, str) or not name or not (Path(name) / "config.json").is_file():
        return set()
    config = read_config(Path(name))
    prefix = prefix or "model.layers"
    stated = {depth for _, _, depth in depths(config)}
    layers = ([f"{prefix}.{layer}.x" for layer in range(depth)] for depth in stated)
    return {stack.num_layers for names in layers for stack in find_stacks(names, config)}


def _depth_held(adapter: Checkpoint, stack: Stack) -> set[int]:
    """The number of layers, if each holds the same tensors and the config leaves none out."""
    layers: dict[int, set[str]] = {}
    for name in adapter.tensors:
        if place := stack.split(name):
            layers.setdefault(place[0], set()).add(place[1])
    config = adapter.config
    if config["peft_type"] == "ADAPTION_PROMPT" and layers:
        return {max(layers) + 1}  # it is in the last layers
    narrowed = config.get("layers_to_transform") not in (None, []) or config.get("exclude_modules")
    listed = isinstance(config.get("target_modules") or [], list)
    numbered = any(re.search(r"\d\.", item) for item in (config.get("target_modules") or []) if listed)
    if narrowed or not listed or numbered or layers.keys() != set(range(len(layers))):
        return set()
    return {len(layers)} if len({frozenset(held) for held in layers.values()}) == 1 else set()


# -- tensors ----------------------------------------------------------------------------------------------------------


def _grown_layers(adapter: Checkpoint, stack: Stack, plan: LayerPlan) -> list[Move]:
    layers: dict[int, dict[str, Tensor]] = {}
    moves: list[Move] = []
    for tensor in adapter.tensors.values():
        if place := stack.split(tensor.name):
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
    row = tensor.num_bytes // tensor.shape[0]
    part = row // plan.num_base_layers
    with open(adapter.folder / tensor.shard, "rb") as file:
        file.seek(tensor.begin)
        for _ in range(tensor.shape[0]):
            held = file.read(row)
            yield b"".join(held[source * part : (source + 1) * part] for source in plan.sources)


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG_NAME
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", next_step="name an adapter folder") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}", next_step="get this file again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no JSON object", next_step="get this file again")
    require_forms(config, path)
    return config
