"""The numbers in the names of tensors: which lists of modules there are, and how long each is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence


def layer_containers(names: Sequence[str], min_tensors: int) -> dict[str, int]:
    """Prefixes whose members look like layers, with their number: no gap, enough tensors each, no lists of stages."""
    members: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if (place := outermost(name)) is not None:
            members[place[0]][place[1]].add(place[2])
    found = {}
    for prefix, layers in members.items():
        alike = layers.keys() == set(range(len(layers))) and min(map(len, layers.values())) >= min_tensors
        if alike and not _are_stages(layers.values()):
            found[prefix] = len(layers)
    return found


def indexed_prefixes(names: Iterable[str]) -> dict[str, set[int]]:
    """Outermost prefixes that are followed by an integer, with the integers seen."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if (place := outermost(name)) is not None:
            found[place[0]].add(place[1])
    return found


def _are_stages(layers: Iterable[set[str]]) -> bool:
    """Whether the members are stages of several blocks: ``encoder.layers.0.blocks.3`` is no layer of a stack."""
    inner = [
        {match[1] for suffix in suffixes if (match := re.match(r"(?:blocks|layers|layer|block)\.(\d+)\.", suffix))}
        for suffixes in layers
    ]
    return all(inner) and len({len(indices) for indices in inner}) > 1


def outermost(name: str) -> tuple[str, int, str] | None:
    """``a.b.7.c.d`` -> ``("a.b", 7, "c.d")``."""
    parts = name.split(".")
    position = next((i for i, part in enumerate(parts) if i and is_index(part)), None)
    if position is None:
        return None
    return ".".join(parts[:position]), int(parts[position]), ".".join(parts[position + 1 :])


def is_index(text: str) -> bool:
    """Whether it is a layer's number as it is written in names: ``7``, not ``007``, which would come back as ``7``."""
    return text.isascii() and text.isdigit() and len(text) < 7 and (text == "0" or text[0] != "0")
