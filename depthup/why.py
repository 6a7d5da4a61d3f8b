"""Why a stage is in the state that it is in: what changed since its last result, walked down to the first cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .artifacts.fingerprint import differences
from .artifacts.record import Record
from .artifacts.store import Store
from .pipeline import Node, identity_of


@dataclass(frozen=True)
class Cause:
    """One line of an explanation.

    Attributes:
        depth: How many stages lie between it and the stage that was asked about.
        stage: The stage that it speaks of.
        text: What it says.
        is_first: Whether nothing further down explains it.
    """

    depth: int
    stage: str
    text: str
    is_first: bool


def causes(nodes: Mapping[str, Node], store: Store, name: str) -> list[Cause]:
    """What keeps a stage from being cached, each cause above the causes that it has itself; empty when it is cached.

    Args:
        nodes: Every stage as :func:`depthup.pipeline.survey` found it.
        store: Where results lie.
        name: The stage.
    """
    return list(_walk(nodes, store, name, store.newest(name), 0, set()))


def explain(nodes: Mapping[str, Node], store: Store, name: str) -> str:
    """The state of a stage and its causes, as text for people."""
    node = nodes[name]
    found = causes(nodes, store, name)
    lines = [_headline(node), *(f"{'  ' * (cause.depth + 1)}{cause.text}" for cause in found)]
    first = [cause for cause in found if cause.is_first]
    if any(cause.depth for cause in first):
        lines.append("first cause" + ("s:" if len(first) > 1 else ":"))
        lines += [f"  {cause.stage}: {cause.text}" for cause in first]
    return "\n".join(lines)


def _headline(node: Node) -> str:
    match node.state:
        case "cached":
            assert node.record is not None
            origin = node.record.circumstance.get("adopted_from")
            how = f"adopted from {origin}" if origin else f"made in {node.record.circumstance['seconds']:g} s"
            return f"{node.name} is cached: settings, data and inputs are those of its result\n  {how}: {node.folder}"
        case "partial":
            return f"{node.name} is partial: a stopped run saved its state, the next one goes on from it"
        case "stale":
            return f"{node.name} is stale: no result has the settings and inputs that it has now; since its newest one"
    return f"{node.name} is missing: it was never made"


def _walk(
    nodes: Mapping[str, Node], store: Store, name: str, before: Record | None, depth: int, seen: set[str]
) -> Iterator[Cause]:
    """Causes of one stage, against the record of the result that it had."""
    node = nodes[name]
    if node.record is not None and depth == 0:
        return
    if name in seen:
        yield Cause(depth, name, "as told above", False)
        return
    seen.add(name)
    if node.record is not None and "adopted" in node.identity:
        yield Cause(depth, name, f"adopted from {node.record.circumstance['adopted_from']}", True)
        return
    if node.record is not None and (before is None or before.fingerprint == node.fingerprint):
        yield Cause(depth, name, "another result than before, which is no longer in the store", True)
        return
    if before is None:
        yield from _not_made(nodes, store, node, depth, seen)
        return
    inputs = dict.fromkeys(node.stage.INPUTS)
    own = [{key: value for key, value in identity.items() if key not in inputs}
           for identity in (identity_of(before), node.identity)]  # fmt: skip
    told = False
    for text in differences(*own):
        what = "depthup makes this kind of stage otherwise than it did: " if text.startswith("version: ") else ""
        yield Cause(depth, name, f"{what}{text}", True)
        told = True
    for key in inputs:
        for cause in _inputs(nodes, store, node, key, before, depth, seen):
            yield cause
            told = True
    if not told and node.state != "partial":  # the same identity, and the result is gone
        yield Cause(depth, name, "its result is no longer in the store", True)


def _not_made(nodes: Mapping[str, Node], store: Store, node: Node, depth: int, seen: set[str]) -> Iterator[Cause]:
    waiting = [source for source in node.stage.inputs() if source in nodes and nodes[source].record is None]
    for source in dict.fromkeys(waiting):
        yield Cause(depth, node.name, f"its input {source} is {nodes[source].state}", False)
        yield from _walk(nodes, store, source, store.newest(source), depth + 1, seen)
    if not waiting:
        yield Cause(depth, node.name, "nothing in the store was made for it, and all that it needs is there", True)


def _inputs(
    nodes: Mapping[str, Node], store: Store, node: Node, key: str, before: Record, depth: int, seen: set[str]
) -> Iterator[Cause]:
    """What differs in one setting that names stages or folders."""
    value, old = getattr(node.stage, key), identity_of(before).get(key)
    sources = [value] if isinstance(value, str) else list(value or ())
    had: list[str] = [old] if isinstance(old, str) else list(old or ())
    have: list[str] = [node.identity[key]] if isinstance(value, str) else list(node.identity[key] or ())
    names = {digest: name for name, digest in before.inputs.items()}
    for place, source in enumerate(sources):
        if have[place] in had and len(have) == len(had):
            continue
        previous = before.inputs.get(source) if len(sources) > 1 else had[0] if had else None
        if previous is None:
            yield Cause(depth, node.name, f"{key}: {source} is new", True)
        elif names.get(previous, source) != source:
            yield Cause(depth, node.name, f"{key}: {names[previous]} -> {source}", True)
        elif source not in nodes:
            yield Cause(depth, node.name, f"{key}: the checkpoint {source} holds other files than before", True)
        else:
            yield Cause(depth, node.name, f"its input {source} changed", False)
            yield from _walk(
                nodes, store, source, store.find(source, previous) or store.newest(source), depth + 1, seen
            )
    for digest in had:
        if digest not in have and names.get(digest) not in (None, *sources) and len(have) < len(had):
            yield Cause(depth, node.name, f"{key}: {names[digest]} is left out", True)
