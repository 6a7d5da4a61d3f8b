"""What a base's tensors say of its parts: layers, what stands outside of them, what cannot change places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checkpoint.config import layer_kinds
from ..checkpoint.fields import PLACES, SPECIAL_ENDS, STORED_FIRST
from ..checkpoint.indices import indexed_prefixes
from ..checkpoint.names import Stack, find_stacks
from ..checkpoint.quantization import layer_forms
from ..checkpoint.reader import Checkpoint, Tensor
from ..checkpoint.rules import Rule
from ..errors import CheckpointError, shown


def sorted_tensors(
    base: Checkpoint, stack: Stack
) -> tuple[dict[int, dict[str, Tensor]], tuple[list[Tensor], list[Tensor]]]:
    """The tensors of each layer by suffix, and those outside the layers: before the first one, and after it.

    Embeddings first, norm and head last: in the order of the base when it is one file, and of use.
    """
    layers: dict[int, dict[str, Tensor]] = {layer: {} for layer in range(stack.num_layers)}
    outside: tuple[list[Tensor], list[Tensor]] = ([], [])
    for tensor in base.tensors.values():
        place = stack.split(tensor.name)
        if place is not None and stack.name(*place) != tensor.name:
            raise CheckpointError(
                f"the name of tensor '{shown(tensor.name)}' cannot be told from '{shown(stack.name(*place))}'",
                next_step="give it another name",
            )
        if place is None or place[0] >= stack.num_layers:
            outside[any(layers.values())].append(tensor)
        else:
            layers[place[0]][place[1]] = tensor
    return layers, outside


def shared_tensors(stack: Stack, layers: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Take out of the first layer what it stores for all layers (the position bias of T5)."""
    counts = Counter(suffix for held in layers.values() for suffix in held)
    names = [suffix for suffix in layers[0] if counts[suffix] == 1 and STORED_FIRST.search(suffix)]
    return {suffix: layers[0].pop(suffix) for suffix in names}


def require_alone(base: Checkpoint, stack: Stack) -> None:
    """The layers must be all that is as many: a list beside them, or a second stack of the same number, would grow too.

    Raises:
        CheckpointError: There is such a list, and depthup does not know what it is.
    """
    parent = stack.prefix.rpartition(".")[0]
    stacks = list(find_stacks(base.tensors, base.config))
    for other in stacks:
        both = other.scope == stack.scope and set(other.depth_keys) & set(stack.depth_keys)
        known = {stack.prefix, *stack.companions}
        if both and other.prefix not in known and "num_layers" not in both:  # T5 has a second number to say it
            raise CheckpointError(
                f"{min(both)} is the depth of {stack.prefix} and of {other.prefix}: one of them cannot grow alone",
                next_step="this architecture is not supported yet",
            )
    elsewhere = PLACES.get(str(base.config.get("model_type")), {})
    others = {*(other.prefix for other in stacks), *stack.companions, *elsewhere}
    for prefix, indices in indexed_prefixes(base.tensors).items():
        beside = prefix.startswith(f"{parent}.") if parent else "." not in prefix
        if beside and len(indices) == stack.num_layers > 1 and prefix not in others:
            raise CheckpointError(
                f"beside {stack.prefix} stands {prefix}, a list of {len(indices)} as well, and depthup does not know"
                " whether it has one member for each layer",
                next_step="this architecture is not supported yet",
            )


def unlike_rules(base: Checkpoint, stack: Stack, layers: Mapping[int, Mapping[str, Tensor]]) -> Iterator[Rule]:
    """Layers with unlike tensors may only change places if the config says for each layer of which kind it is.

    Where a family is known for special first or last layers, these may stay where they are.

    Raises:
        CheckpointError: Layers are unlike, and neither the config nor the family says why.
    """
    n = stack.num_layers
    num_first, num_last = SPECIAL_ENDS.get(str(stack.fields(base.config).get("model_type")), (0, 0))
    special = {*range(num_first), *range(n - num_last, n)}
    forms = layer_forms(layers, base.config, stack)
    first_of: dict[tuple[str, ...], int] = {}
    forms = layer_forms(layers, base.config, stack)
    for layer, kind in enumerate(layer_kinds(base.config, stack)):
        if layer in special:
            continue
        first = first_of.setdefault(kind, layer)
        one, other = ({*forms[i].items()} for i in (first, layer))
        if one != other:
            raise CheckpointError(
                f"layers {first} and {layer} of {stack.prefix} hold unlike tensors ({min(one ^ other)[0]}), and nothing"
                " in the config says that they are of unlike kinds, so with these layers in other places a target would"
                " not load",
                next_step="run `depthup check` on the base; if it is whole, this architecture is not supported yet",
            )
    if num_first:
        yield Rule(
            f"the first of {stack.prefix} is unlike the others, so it can only stand first",
            lambda plan: [t for t, source in enumerate(plan.sources) if source < num_first] == list(range(num_first)),
        )
    if num_last:
        yield Rule(
            f"the last of {stack.prefix} is unlike the others, so it can only stand last",
            lambda plan: (
                [len(plan.sources) - t for t, source in enumerate(plan.sources) if source >= n - num_last]
                == list(range(num_last, 0, -1))
            ),
        )


def entry_rules(base: Checkpoint, stack: Stack) -> Iterator[Rule]:
    """Where images enter behind the first text layers, one set of features each (deepstack), these layers stay."""
    entries = max((len(indices) for indices in _deepstack(base.config)), default=0)
    if stack.role == "text" and entries:
        yield Rule(
            f"features of images enter behind the first {entries} layers (deepstack_visual_indexes)",
            lambda plan: plan.sources[:entries] == tuple(range(entries)),
        )


def _deepstack(config: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for key, value in config.items():
        if key == "deepstack_visual_indexes" and isinstance(value, list):
            yield value
        elif isinstance(value, Mapping):
            yield from _deepstack(value)
