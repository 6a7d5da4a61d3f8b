"""Find the layers of a checkpoint from the names on disk.

A stack is an indexed prefix, such as ``model.layers``, whose indices run from 0 to n - 1, where n is a depth that the
config states. Everything under ``model.layers.7.`` belongs to layer 7 and moves with it: weights, biases, scales of
quantised weights, buffers. No family has a template.

Where a model has several stacks, the words of a prefix (vision, decoder ...) and the words around a depth in the config
tell which speaks of which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .fields import COMPANIONS, INDEX_DEPENDENT, PLACES, TWINS
from .indices import indexed_prefixes, is_index, layer_containers

# Config fields that state a depth (transformers' attribute maps).
DEPTH_KEYS = frozenset({
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_blocks", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "encoder_num_hidden_layers", "decoder_num_hidden_layers",
    "num_transformer_layers", "num_layers_per_stack",
})  # fmt: skip
# Fields that state the depth of a part, and the word that the part's prefix holds.
PART_DEPTH_KEYS = {
    "conf_num_hidden_layers": "conformer", "layers": "text_model",
    "resampler_depth": "perceiver", "speech_encoder_layers": "speech_encoder", "t2u_encoder_layers": "t2u_model",
    "t2u_decoder_layers": "t2u_model", "pred_num_hidden_layers": "predictor", "mit_num_hidden_layers": "mit.",
    "prompt_layers": "prompts_generator", "num_spatial_layers": "spatial", "num_temporal_layers": "temporal",
    "l_layers": "encoder.layer.", "r_layers": "encoder.r_layers", "x_layers": "encoder.x_layers",
    "num_auxiliary_layers": "auxiliary", "memory_attention_num_layers": "memory_attention",
}  # fmt: skip
ENCODER_KEYS = ("encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "num_layers")
DECODER_KEYS = ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers")
# Words for what a part of a model works on; what says none of these works on text.
_SENSES = {
    "vision": re.compile(r"visi|visual|image|video|pixel|(?:^|\.)vit\b"),
    "audio": re.compile(r"audio|speech|acoustic"),
    "qformer": re.compile(r"qformer"),
    "connector": re.compile(r"perceiver|resampler|connector"),
}
_TEXT = re.compile(r"text|language|llm")
ROLES = ("text", "vision", "audio", "encoder", "decoder", "qformer", "connector")
_MAX_PAIRS = 300_000  # lists of modules in the weights times fields of the config: a small file must not take minutes
_MIN_TENSORS = 4  # what has fewer beside a stack that has more is some other list of modules: a head, a prompt


class Depth(NamedTuple):
    """A number in the config that may be a depth."""

    scope: tuple[str, ...]
    key: str
    value: int


@dataclass(frozen=True)
class Stack:
    """The layers of one transformer stack.

    Attributes:
        prefix: What stands before the layer index, ``model.layers``; names are ``{prefix}.{layer}.{suffix}``.
        num_layers: Number of layers n.
        scope: Path of the config object that describes the stack, ``()`` or ``("text_config",)``.
        depth_keys: Keys in that object that state n, or would if they were written.
        num_extra: Blocks with the indices n, n + 1 ... that are no layers: multi-token prediction.
        role: What the stack is in its model, one of :data:`ROLES`.
        companions: Prefixes of other lists with a member for each layer, which go along with it.
    """

    prefix: str
    num_layers: int
    scope: tuple[str, ...]
    depth_keys: tuple[str, ...]
    num_extra: int = 0
    role: str = "text"
    companions: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[int, str] | None:
        """``model.layers.7.mlp.up_proj.weight`` -> ``(7, "mlp.up_proj.weight")``; None for other tensors.

        In the suffix of a companion's tensor, which begins with its prefix, ``*`` stands for the layer.
        """
        for prefix in (self.prefix, *self.companions):
            head, separator, rest = name.partition(f"{prefix}.")
            index, _, suffix = rest.partition(".")
            if not head and separator and is_index(index):
                return int(index), suffix if prefix == self.prefix else f"{prefix}.*.{suffix}"
        return None

    def name(self, layer: int, suffix: str) -> str:
        """The name on disk of a layer's tensor."""
        if "*" in suffix:
            return suffix.replace("*", str(layer), 1)
        return f"{self.prefix}.{layer}.{suffix}" if suffix else f"{self.prefix}.{layer}"

    def fields(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config object that describes the stack."""
        for key in self.scope:
            config = config[key]
        return config


def find_stack(names: Iterable[str], config: Mapping[str, Any], wanted: str | None = None) -> Stack:
    """The stack to work on: the only one, or the one with the prefix or the role ``wanted``.

    Raises:
        CheckpointError: No stack agrees with the config, several do and ``wanted`` names none of them.
    """
    names = list(names)
    stacks = list(find_stacks(names, config))
    listed = ", ".join(f"{stack.prefix} ({stack.role}, {stack.num_layers} layers)" for stack in stacks)
    if wanted is not None and stacks:
        chosen = [stack for stack in stacks if stack.prefix == wanted]
        chosen = chosen or [stack for stack in stacks if stack.role == wanted]
        if not chosen and wanted in ("text", "encoder", "decoder"):  # the same part by its other name
            chosen = stacks if len(stacks) == 1 else [stack for stack in stacks if wanted in stack.prefix]
        if len(chosen) != 1:
            raise CheckpointError(
                f"{len(chosen) or 'no'} stack{'s' * (len(chosen) > 1)} of layers {'are' if chosen else 'is'} called"
                f" '{wanted}'",
                allowed=listed,
                next_step="name one by its prefix, with --stack PREFIX",
            )
        return _with_twins(chosen[0], stacks, config)
    if len(stacks) == 1:
        return stacks[0]
    if stacks:
        raise CheckpointError(
            f"the model has several stacks of layers: {listed}",
            next_step=f"choose one with --stack, by its role or its prefix, as in --stack {stacks[0].role}",
        )
    family = str(config.get("model_type"))
    if family in INDEX_DEPENDENT:
        raise CheckpointError(
            f"the model is a {family}: {INDEX_DEPENDENT[family]}", next_step="it cannot be up-scaled layer by layer"
        )
    if any(isinstance(config.get(key), list) for key in ("depths", "hidden_sizes", "embed_dim", "stage_out_channels")):
        raise CheckpointError(
            f"the model ({family}) is built of stages of unlike width, not of a stack of like layers",
            next_step="it cannot be up-scaled layer by layer",
        )
    containers = {prefix: sorted(indices) for prefix, indices in indexed_prefixes(names).items()}
    held = ", ".join(f"{prefix} (0-{indices[-1]}, {len(indices)} of them)" for prefix, indices in containers.items())
    stated = ", ".join(f"{'.'.join((*scope, key))} = {depth}" for scope, key, depth in depths(config))
    raise CheckpointError(
        f"no layers were found that agree with the config: the weights hold {held[:300] or 'no indexed names'};"
        f" the config states {stated or 'no depth'}",
        next_step="run `depthup check` on the checkpoint",
    )


def _with_twins(stack: Stack, stacks: Sequence[Stack], config: Mapping[str, Any]) -> Stack:
    """The stack with those whose depth the same number states: in some families they can only grow together."""
    if str(config.get("model_type")) not in TWINS:
        return stack
    twins = [
        other.prefix
        for other in stacks
        if other.prefix != stack.prefix
        and (other.scope, other.num_layers) == (stack.scope, stack.num_layers)
        and (shared := set(other.depth_keys) & set(stack.depth_keys))
        and "num_layers" not in shared
    ]  # fmt: skip  (T5 has a second number to say it)
    return replace(stack, companions=(*stack.companions, *twins)) if twins else stack


def find_stacks(names: Iterable[str], config: Mapping[str, Any]) -> Iterator[Stack]:
    """All stacks: outermost indexed prefixes that run without a gap to a depth which the config states."""
    names = list(names)
    found = list(_stacks(layer_containers(names, _MIN_TENSORS), config))
    # A model of one small kind of layer, or an adapter of one module a layer.
    found = found or list(_stacks(layer_containers(names, 1), config))
    yield from _with_companions(found, names, config)


def _stacks(containers: Mapping[str, int], config: Mapping[str, Any]) -> Iterator[Stack]:
    stated = [depth for depth in depths(config) if not isinstance(_at(config, depth.scope).get("depths"), list)]
    if len(containers) * (len(stated) + len(config)) > _MAX_PAIRS:
        raise CheckpointError(
            f"the weights hold {len(containers)} lists of modules, the config {len(config)} fields and"
            f" {len(stated)} depths: too many to find the layers among them",
            next_step="check that this is the config of a language model",
        )
    whole = _whole(containers, config)
    for prefix, num_indices in containers.items():
        best: tuple[int, int, Depth, int] | None = None
        for depth in stated:
            extra = num_indices - depth.value
            if extra and extra != _num_extra(_at(config, depth.scope), depth.key):
                continue
            rank = _rank(prefix, depth, config, whole)
            if rank is not None and (best is None or (rank, len(depth.scope)) > best[:2]):
                best = (rank, len(depth.scope), depth, extra)
        if best is not None:
            _, _, depth, extra = best
            keys = tuple(
                other.key for other in stated
                if (other.scope, other.value) == (depth.scope, depth.value)
                and (other.key != "depth" or "num_hidden_layers" not in _at(config, depth.scope))
                and _rank(prefix, other, config, whole) is not None
            )  # fmt: skip
            yield Stack(prefix, depth.value, depth.scope, keys, extra, _role(prefix, depth, whole))
        elif _length(config.get("layers_block_type")) == num_indices:  # Nemotron-H counts its list
            yield Stack(prefix, num_indices, (), ())
        elif (scope := _silent_scope(prefix, config)) is not None:
            key = Depth(scope, "num_hidden_layers", num_indices)
            yield Stack(prefix, num_indices, scope, (key.key,), 0, _role(prefix, key, whole))


def depths_apart(
    names: Iterable[str], config: Mapping[str, Any], stacks: Sequence[Stack]
) -> Iterator[tuple[str, str, int, int]]:
    """(prefix, field, its value, number of layers) where a list of layers and the depth stated for it differ."""
    containers = layer_containers(list(names), _MIN_TENSORS)
    spoken = {(stack.scope, key) for stack in stacks for key in stack.depth_keys}
    known = {prefix for stack in stacks for prefix in (stack.prefix, *stack.companions)}
    for prefix, num_layers in containers.items():
        if prefix in known or any(prefix.startswith(f"{other}.") for other in known):
            continue
        unspoken = (
            depth for depth in depths(config)
            if depth.scope and (depth.scope, depth.key) not in spoken and depth.key not in PART_DEPTH_KEYS
            and _senses(prefix) == _senses(".".join(depth.scope)) and _side(prefix) in ("", _side(depth.key))
        )  # fmt: skip
        for depth in unspoken:
            yield prefix, ".".join((*depth.scope, depth.key)), depth.value, num_layers
            break


def _senses(text: str) -> set[str]:
    return {sense for sense, words in _SENSES.items() if words.search(text)}


def _with_companions(stacks: list[Stack], names: list[str], config: Mapping[str, Any]) -> Iterator[Stack]:
    """Put lists that stand side by side, as a family is known to have them, together as one stack."""
    lists = indexed_prefixes(names)
    for stack in stacks:
        main, others = COMPANIONS.get(str(stack.fields(config).get("model_type")), ("", ()))
        parent, _, last = stack.prefix.rpartition(".")
        if any(stack.prefix.endswith(other) for other in others):
            continue
        beside = (f"{parent}.{other}" if parent else other for other in others if last == main)
        yield replace(stack, companions=tuple(prefix for prefix in beside if prefix in lists))


def depths(config: Mapping[str, Any], scope: tuple[str, ...] = ()) -> Iterator[Depth]:
    """Every number of a config, nested ones included, that states a depth."""
    for key, value in config.items():
        if (key in DEPTH_KEYS or key in PART_DEPTH_KEYS) and type(value) is int and value > 0:
            yield Depth(scope, key, value)
        elif _is_part(key, value) and len(scope) < 8:
            yield from depths(value, (*scope, key))


def _is_part(key: str, value: Any) -> bool:
    """Whether a config's value is the config of a part of the model."""
    if not isinstance(value, Mapping) or key == "quantization_config":
        return False
    return key.endswith("_config") or key in ("encoder", "decoder") or isinstance(value.get("model_type"), str)


class _Whole(NamedTuple):
    """What holds whichever prefix is looked at.

    Attributes:
        seen: The senses that some prefix of the weights is of.
        said: The senses that some part of the config speaks of.
        sides: ``encoder`` and ``decoder``, where some prefix is of it.
    """

    seen: frozenset[str]
    said: frozenset[str]
    sides: frozenset[str]


def _whole(containers: Iterable[str], config: Mapping[str, Any]) -> _Whole:
    return _Whole(
        frozenset(sense for sense, words in _SENSES.items() if any(map(words.search, containers))),
        frozenset(sense for sense in _SENSES if _speaks_of(config, sense)),
        frozenset(map(_side, containers)),
    )


def _rank(prefix: str, depth: Depth, config: Mapping[str, Any], whole: _Whole) -> int | None:
    """How well a number in the config fits as the depth of a prefix; None if it cannot speak of it."""
    scope = ".".join(depth.scope)
    known = PLACES.get(str(config.get("model_type")), {})
    if prefix in known and depth.scope[:1] != (known[prefix],):
        return None
    if depth.key in PART_DEPTH_KEYS:
        return 8 if PART_DEPTH_KEYS[depth.key] in f"{prefix}." else None
    rank = 0
    for sense, words in _SENSES.items():
        here, there = bool(words.search(prefix)), bool(words.search(scope))
        if here and there:
            rank += 4
        elif there and sense in whole.seen:
            return None  # it speaks of another part
        elif here and sense in whole.said:
            return None  # another part of the config speaks of it
        elif there:  # a part that these weights leave out, or, where an encoder feeds a decoder, the encoder
            rank += 1 if _side(prefix) == "encoder" and len(whole.sides - {""}) == 2 else -1
    rank += 2 * bool(_TEXT.search(prefix) and _TEXT.search(scope))
    rank += 3 * bool(depth.scope and depth.scope[-1].removesuffix("_config") in prefix)  # the part's own name
    side = _side(prefix)
    stated = _side(depth.key) or _side(depth.scope[-1] if depth.scope else "")
    if side and stated and side != stated:
        return None
    if side and not stated:
        return rank if side in _sides_of(depth.key, _at(config, depth.scope)) else None
    return rank + 2 * bool(side and stated) - bool(stated and not side and not _side(depth.key))


def _sides_of(key: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of encoder and decoder a key without such a word speaks of, in a config that may tell the two apart."""
    encoder = [name for name in ENCODER_KEYS if type(fields.get(name)) is int]
    decoder = [name for name in DECODER_KEYS if type(fields.get(name)) is int]
    if key == "num_hidden_layers" and encoder and decoder:
        # transformers' classes know it as another name for one of the two.
        return ("decoder",) if "decoder_num_hidden_layers" in decoder else ("encoder",)
    if key in ("num_layers", "num_hidden_layers") and decoder:
        return ("encoder",)
    return ("encoder", "decoder")


def _side(text: str) -> str:
    """``encoder`` or ``decoder``, the first of a dotted name (``decoder.model.encoder`` is of the decoder), or ''."""
    match = re.search(r"encoder|decoder", text.replace("encoder_decoder", ""))
    return match[0] if match else ""


def _role(prefix: str, depth: Depth, whole: _Whole) -> str:
    scope = ".".join(depth.scope)
    for sense, words in _SENSES.items():
        if words.search(prefix) or words.search(scope):
            return sense
    side = _side(prefix)
    other = {"encoder": "decoder", "decoder": "encoder"}.get(side)
    return side if other in whole.sides else "text"


def _speaks_of(config: Mapping[str, Any], sense: str) -> bool:
    return any(_is_part(key, value) and (_SENSES[sense].search(key) or _speaks_of(value, sense))
               for key, value in config.items())  # fmt: skip


def _silent_scope(prefix: str, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """A part of the config that speaks of the prefix and leaves its depth to the default of its class."""
    for key, value in config.items():
        if not _is_part(key, value) or "model_type" not in value or any(depths(value)):
            continue
        senses = [words for words in _SENSES.values() if words.search(key)]
        text = bool(_TEXT.search(key)) and not any(words.search(prefix) for words in _SENSES.values())
        if all(words.search(prefix) for words in senses) if senses else text:
            return (key,)
    return None


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else -1


def _num_extra(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get("num_nextn_predict_layers")
    return value if type(value) is int and value > 0 and key in ("num_hidden_layers", "n_layer") else 0


def _at(config: Mapping[str, Any], scope: tuple[str, ...]) -> Mapping[str, Any]:
    for key in scope:
        config = config[key]
    return config
