"""Find the layers of a checkpoint from the names on disk.

A stack is an indexed prefix, such as ``model.layers``, whose indices run from 0 to n - 1, where n is a depth that the
config states. Everything under ``model.layers.7.`` belongs to layer 7 and moves with it: weights, biases, scales of
quantised weights, buffers. No family has a template.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError

# Config fields that state a depth (growth of the list: transformers' attribute maps).
DEPTH_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
    "num_decoder_layers", "depth", "num_blocks",
)  # fmt: skip
_SCOPE_HINTS = {"vision_config": ("vis", "image"), "audio_config": ("audio",)}


@dataclass(frozen=True)
class Stack:
    """The layers of one transformer stack.

    Attributes:
        prefix: What stands before the layer index, ``model.layers``; names are ``{prefix}.{layer}.{suffix}``.
        num_layers: Number of layers n.
        scope: Path of the config object that describes the stack, ``()`` or ``("text_config",)``.
        depth_keys: Keys in that object whose value is n.
    """

    prefix: str
    num_layers: int
    scope: tuple[str, ...]
    depth_keys: tuple[str, ...]

    def split(self, name: str) -> tuple[int, str] | None:
        """``model.layers.7.mlp.up_proj.weight`` -> ``(7, "mlp.up_proj.weight")``; None for other tensors."""
        head, separator, rest = name.partition(f"{self.prefix}.")
        if head or not separator:
            return None
        index, _, suffix = rest.partition(".")
        return (int(index), suffix) if _is_index(index) else None

    def name(self, layer: int, suffix: str) -> str:
        """The name on disk of a layer's tensor."""
        return f"{self.prefix}.{layer}.{suffix}"


def find_stack(names: Iterable[str], config: Mapping[str, Any], prefix: str | None = None) -> Stack:
    """The stack to work on: the only one, or the one with ``prefix``.

    Raises:
        CheckpointError: No stack agrees with the config, several do and ``prefix`` names none of them.
    """
    names = list(names)
    stacks = list(find_stacks(names, config))
    if prefix is not None:
        chosen = [stack for stack in stacks if stack.prefix == prefix]
        if not chosen:
            raise CheckpointError(
                f"no stack of layers is called '{prefix}'",
                allowed=", ".join(stack.prefix for stack in stacks) or "none was found",
            )
        return chosen[0]
    if len(stacks) == 1:
        return stacks[0]
    if stacks:
        raise CheckpointError(
            "the model has several stacks of layers: "
            + ", ".join(f"{stack.prefix} ({stack.num_layers} layers)" for stack in stacks),
            next_step="choose one with --stack PREFIX",
        )
    containers = {prefix: sorted(indices) for prefix, indices in indexed_prefixes(names).items()}
    held = ", ".join(f"{prefix} (0-{indices[-1]}, {len(indices)} of them)" for prefix, indices in containers.items())
    stated = ", ".join(f"{'.'.join((*scope, key))} = {depth}" for scope, key, depth in depths(config))
    raise CheckpointError(
        f"no layers were found that agree with the config: the weights hold {held[:300] or 'no indexed names'};"
        f" the config states {stated or 'no depth'}",
        next_step="run `depthup check` on the checkpoint",
    )


def find_stacks(names: Iterable[str], config: Mapping[str, Any]) -> Iterator[Stack]:
    """All stacks: outermost indexed prefixes that run without a gap to a depth which the config states."""
    for prefix, indices in indexed_prefixes(names).items():
        if indices != set(range(len(indices))):
            continue
        scopes: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for scope, key, depth in depths(config):
            if depth == len(indices) and _fits(prefix, scope, key):
                scopes[scope].append(key)
        if scopes:
            # The deepest scope that speaks of this stack; a VLM may repeat the text depth at the top.
            scope = max(scopes, key=len)
            yield Stack(prefix, len(indices), scope, tuple(scopes[scope]))


def indexed_prefixes(names: Iterable[str]) -> dict[str, set[int]]:
    """Outermost prefixes that are followed by an integer, with the integers seen."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        position = next((i for i, part in enumerate(parts) if i and _is_index(part)), None)
        if position is not None:
            found[".".join(parts[:position])].add(int(parts[position]))
    return found


def depths(config: Mapping[str, Any], scope: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, int]]:
    """Every (scope, key, value) of a config, nested ones included, that states a depth."""
    for key, value in config.items():
        if key in DEPTH_KEYS and type(value) is int and value > 0:
            yield scope, key, value
        elif isinstance(value, Mapping) and key.endswith("_config"):
            yield from depths(value, (*scope, key))


def _fits(prefix: str, scope: tuple[str, ...], key: str) -> bool:
    """Whether a depth can speak of a prefix: vision depths of vision towers, decoder depths of decoders."""
    for name, hints in _SCOPE_HINTS.items():
        if (name in scope) != any(hint in prefix for hint in hints):
            return False
    if "encoder" in key or "decoder" in key:
        return ("decoder" if "decoder" in key else "encoder") in prefix
    return True


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 7
