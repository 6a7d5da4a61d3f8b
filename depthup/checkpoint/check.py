"""Is this checkpoint whole and consistent? Reads headers and config, never a tensor, and knows no model class."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, readable
from .config import layer_kinds
from .fields import ENCODER_LISTS, INDEX_LISTS, LAYER_LISTS, SPECIAL_ENDS, STORED_FIRST, speaks_of_a_backbone
from .indices import indexed_prefixes
from .names import Stack, depths, depths_apart, find_stacks
from .quantization import layer_forms
from .reader import INDEX_NAME, Tensor, list_shards, read_config, read_header


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a checkpoint, and what to do about it.

    ``guessed``: from what the other layers hold or from a name, so that the model's class may know better.
    """

    problem: str
    remedy: str
    guessed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem", readable(self.problem.replace("\n", "\\n")))

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


def check_checkpoint(folder: str | os.PathLike[str]) -> list[Finding]:
    """Every fault that headers, index and config show. An empty list means whole and consistent.

    Checked: the index against the shards and the shards against it; each header against its file's size; left-over
    shards; every layer present and alike; the config's depth and per-layer lists against the tensors; the head.
    Never raises for a faulty checkpoint: what cannot be read is a finding.
    """
    folder = Path(folder)
    try:
        config = read_config(folder)
        shards, weight_map = list_shards(folder)
    except CheckpointError as error:
        return [_finding(error)]
    findings: list[Finding] = []
    places: dict[str, list[Tensor]] = defaultdict(list)
    for shard in shards:
        try:
            for name, tensor in read_header(folder, shard)[0].items():
                places[name].append(tensor)
        except CheckpointError as error:
            findings.append(_finding(error))
    if findings:
        return findings  # the rest would only repeat what a broken file means
    if weight_map is not None:
        findings += _index_against_shards(folder, weight_map, places)
    tensors = {name: found[0] for name, found in places.items()}
    try:
        findings += _layers_against_config(tensors, config)
    except CheckpointError as error:
        findings.append(_finding(error))
    findings += _head_against_config(tensors, config)
    return findings


def _finding(error: CheckpointError) -> Finding:
    return Finding(error.problem, error.next_step or error.allowed or "get the file again")


def _index_against_shards(
    folder: Path, weight_map: Mapping[str, str], places: Mapping[str, list[Tensor]]
) -> Iterator[Finding]:
    again = "get the index and all shards again, from one revision"
    for name, file in weight_map.items():
        if all(tensor.shard != file for tensor in places.get(name, [])):
            yield Finding(f"the index puts '{name}' into {file}, which does not hold it", again)
    for name, found in places.items():
        if len(found) > 1:
            yield Finding(f"'{name}' stands in {' and '.join(tensor.shard for tensor in found)}", again)
        elif name not in weight_map:
            yield Finding(f"'{name}' stands in {found[0].shard}, not in the index: it will not be loaded", again)
    stray = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in set(weight_map.values()))
    if stray:
        yield Finding(f"{', '.join(stray)} is not named by {INDEX_NAME}", "remove it if an older save left it")


def _layers_against_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[Finding]:
    stacks = list(find_stacks(tensors, config))
    silent = (
        "a depth that differs from the weights loads silently, with layers missing or random: set it to the number of"
        " layers, or make the checkpoint again"
    )
    if not stacks:
        held = [f"{prefix} has layers {_ranges(found)}" for prefix, found in indexed_prefixes(tensors).items()]
        stated = [f"{'.'.join((*scope, key))} = {depth}" for scope, key, depth in depths(config)]
        yield Finding(
            f"the config states {', '.join(stated) or 'no depth'}, the weights: {', '.join(held)[:300] or 'no layers'}",
            silent,
            guessed=True,
        )
    for prefix, key, stated_depth, held_layers in depths_apart(tensors, config, stacks) if stacks else ():
        yield Finding(f"the config states {key} = {stated_depth}, and {prefix} has {held_layers} layers", silent, True)
    for stack in stacks:
        yield from _layers_alike(tensors, config, stack)
        yield from _lists_against_depth(config, stack)


def _layers_alike(tensors: Mapping[str, Tensor], config: Mapping[str, Any], stack: Stack) -> Iterator[Finding]:
    layers: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if place := stack.split(name):
            layers[place[0]][place[1]] = tensor
    n = stack.num_layers
    for suffix in [suffix for suffix in layers[0] if STORED_FIRST.search(suffix)]:
        if sum(suffix in held for held in layers.values()) == 1:
            del layers[0][suffix]  # it stands there for all layers
    num_first, num_last = SPECIAL_ENDS.get(str(stack.fields(config).get("model_type")), (0, 0))
    try:
        kinds = layer_kinds(config, stack)
    except CheckpointError:
        return  # the config leaves out which layer is of which kind
    for kind in dict.fromkeys(kinds):
        alike = {i: layers[i] for i in range(num_first, n - num_last) if kinds[i] == kind}
        yield from _same_kind_alike(stack, layer_forms(alike, config, stack))


def _same_kind_alike(stack: Stack, layers: Mapping[int, dict[str, tuple[int, ...]]]) -> Iterator[Finding]:
    # What most layers of a kind hold is what each should hold.
    usual = Counter(suffix for held in layers.values() for suffix in held)
    expected = {suffix for suffix, count in usual.items() if 2 * count > len(layers)}
    shapes = {suffix: Counter(h[suffix] for h in layers.values() if suffix in h).most_common(1)[0][0]
              for suffix in expected}  # fmt: skip
    for layer, held in sorted(layers.items()):
        for suffix in sorted(expected - held.keys()):
            yield Finding(f"{stack.name(layer, suffix)} is missing, other layers have it",
                          "it would be random after loading: make the checkpoint again", True)  # fmt: skip
        for suffix in sorted(held.keys() - expected):
            yield Finding(f"{stack.name(layer, suffix)} exists, most other layers have no such tensor",
                          "compare it with the base, with --against; a layer may be special", True)  # fmt: skip
        for suffix in sorted(expected & held.keys()):
            if held[suffix] != shapes[suffix]:
                yield Finding(f"{stack.name(layer, suffix)} has the shape {held[suffix]}, most other layers"
                              f" {shapes[suffix]}", "make the checkpoint again", True)  # fmt: skip


def _lists_against_depth(config: Mapping[str, Any], stack: Stack) -> Iterator[Finding]:
    n = stack.num_layers
    for key, value in stack.fields(config).items():
        if key == "block_types" or (key == "no_rope_layers" and not value):
            continue  # RecurrentGemma repeats its list; Llama 4 writes an empty one for "not said"
        if key in ENCODER_LISTS and stack.role == "decoder":
            continue
        if key in LAYER_LISTS and isinstance(value, list) and len(value) != n and not speaks_of_a_backbone(key, value):
            yield Finding(f"config.json lists {len(value)} {key} for {n} layers",
                          "give it one value for each layer; `depthup upscale` re-indexes it by its plan")  # fmt: skip
        if key in INDEX_LISTS and isinstance(value, list) and any(type(i) is int and i >= n for i in value):
            beyond = max(i for i in value if type(i) is int)
            yield Finding(f"config.json names layer {beyond} in {key}, the last layer is {n - 1}",
                          "re-index the list by the plan that made the checkpoint")  # fmt: skip


def _head_against_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[Finding]:
    known = ("lm_head.", "embed_out.", "output.", "head.")
    heads = [name for name in tensors if name.startswith(known) or ".lm_head." in name]
    if "ForCausalLM" in str(config.get("architectures")) and config.get("tie_word_embeddings") is False and not heads:
        yield Finding("tie_word_embeddings is false and there is no head (lm_head.weight)",
                      "the head would be random after loading: set it to true if the base was tied", True)  # fmt: skip


def _ranges(indices: set[int]) -> str:
    ordered = sorted(indices)
    complete = len(ordered) == ordered[-1] + 1
    return f"0-{ordered[-1]}" if complete else f"0-{ordered[-1]} with {ordered[-1] + 1 - len(ordered)} missing"
