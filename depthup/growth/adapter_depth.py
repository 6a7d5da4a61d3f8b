"""How deep the model is that an adapter was made for, and under which names its layers stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..checkpoint.indices import indexed_prefixes
from ..checkpoint.names import Stack, depths, find_stacks
from ..checkpoint.reader import Checkpoint, read_config
from ..errors import CheckpointError, shown
from .adapter_config import CACHES, PROMPTS

_MOST_LAYERS = 10_000


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
        base, held = depth_of_base(config.get("base_model_name_or_path"), where.prefix), _depth_held(adapter, where)
        if num_base_layers is None and base and held and base != held:
            raise CheckpointError(
                f"the adapter is in each of {min(held)} layers, {config['base_model_name_or_path']} has {min(base)}",
                next_step="say the depth of the model that it was made for with --base-layers",
            )
        stated = held if num_base_layers in held else base or held
    if num_base_layers is None and len(stated) != 1:
        raise CheckpointError(
            f"the depth of the model that {adapter.folder} is for cannot be told: its config names"
            f" '{shown(config.get('base_model_name_or_path'))}', which is no folder here, and the adapter need not be"
            " in every layer",
            next_step="say it with --base-layers",
        )
    num_layers = next(iter(stated)) if num_base_layers is None else num_base_layers
    last = max((place[0] for name in adapter.tensors if (place := where.split(name))), default=-1)
    if last >= num_layers or (len(stated) == 1 and num_layers not in stated):
        known = f"a base of {next(iter(stated))} layers" if len(stated) == 1 else f"a base with a layer {last}"
        raise CheckpointError(f"the adapter is for {known}, not for one of {num_layers} layers",
                              next_step="check --base-layers, or leave it out")  # fmt: skip
    return Stack(where.prefix, num_layers, where.scope, where.depth_keys)


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


def depth_of_base(name: Any, prefix: str) -> set[int]:
    """The depths that the config of a base model in a folder states for a prefix; empty if there is no such folder."""
    if not isinstance(name, str) or not name or not (Path(name) / "config.json").is_file():
        return set()
    config = read_config(Path(name))
    prefix = prefix or "model.layers"
    stated = {depth for _, _, depth in depths(config) if depth < _MOST_LAYERS}
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
