"""What is asked of a target: its bytes, what it computes, its config, and generation with a cache."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import Specimen
from .oracle import OracleError, grown_lists, rearranged, record_layers, renumber, slices, tensors

NUM_NEW_TOKENS = 8
TOLERANCE = 1e-4  # of the largest value; most targets agree to the bit


class Wrong(Exception):
    """A target that is not what it should be."""


def indexed_prefixes(raw: dict[str, Any]) -> dict[str, set[int]]:
    """Every prefix that is followed by an integer, at whatever place, with the integers seen."""
    found: dict[str, set[int]] = {}
    for name in raw:
        for match in re.finditer(r"\.(\d+)\.", name):
            found.setdefault(name[: match.start()], set()).add(int(match[1]))
    return found


def same_bytes(base: dict[str, Any], target: dict[str, Any], n: int, sources: Sequence[int]) -> list[str]:
    """Each target tensor is its source's bytes, by name; a tensor with a part for each layer, part by part.

    Returns the names that the plan asks for and the target leaves out; loading must then fill them in by ties. What
    stands behind the last layer (blocks that predict several tokens) stays behind it, or is left out.
    """
    s, before, after = len(sources), indexed_prefixes(base), indexed_prefixes(target)
    grown = [
        prefix
        for prefix, found in before.items()
        if {*range(n)} <= found
        and {*range(s)} <= after.get(prefix, set())
        and len(after[prefix]) - s in (0, len(found) - n)
    ]
    if not grown:
        raise Wrong("bytes: no indexed prefix grew from n to s")
    expected: dict[str, Any] = {}
    for name, tensor in base.items():
        prefix = next((p for p in grown if re.match(rf"{re.escape(p)}\.\d+\.", name)), None)
        if prefix is None:
            expected[name] = tensor
            continue
        index, _, suffix = name[len(prefix) + 1 :].partition(".")
        places = [i for i, source in enumerate(sources) if source == int(index)]
        behind = [int(index) - n + s] if int(index) >= n else []
        expected |= {f"{prefix}.{i}.{suffix}": tensor for i in (*places, *behind)}
    if odd := sorted(target.keys() - expected.keys()):
        raise Wrong(f"bytes: {odd[0]} is there, against the plan ({len(odd)} such names)")
    for name, tensor in target.items():
        if tensor != expected[name] and not _same_slices(expected[name], tensor, n, sources):
            raise Wrong(f"bytes: {name} differs from its source")
    return sorted(expected.keys() - target.keys())


def _same_slices(base: Any, target: Any, n: int, sources: Sequence[int]) -> bool:
    axes = [axis for axis, (a, b) in enumerate(zip(base.shape, target.shape, strict=True)) if a != b]
    if base.dtype != target.dtype or len(axes) != 1:
        return False
    (axis,) = axes
    dtype = {4: torch.int32, 2: torch.int16, 1: torch.int8, 8: torch.int64}
    one, other = (
        torch.frombuffer(
            bytearray(raw.data), dtype=dtype[len(raw.data) // max(1, torch.Size(raw.shape).numel())]
        ).reshape(raw.shape)
        for raw in (base, target)
    )
    places = slices(base.shape[axis], target.shape[axis], n, sources)
    return bool(places) and torch.equal(torch.cat([one.narrow(axis, *place) for place in places], dim=axis), other)


def compare(specimen: Specimen, base: PreTrainedModel, target: PreTrainedModel, n: int, sources: Sequence[int],
             notes: list[str]) -> None:  # fmt: skip
    """The target runs, its lower copy computes what the base does, and all of it what the rearranged base does."""
    lists = grown_lists(base, target, n, len(sources))
    if not lists:
        raise Wrong(f"the loaded target has no list of {len(sources)} modules where the base has {n}")
    try:
        expected = rearranged(base, target, lists, sources, n)
    except OracleError as error:
        raise Wrong(f"oracle: {error}") from error
    mine, its = expected.state_dict(), target.state_dict()
    odd = [*(mine.keys() ^ its.keys()), *(k for k in mine.keys() & its.keys() if not torch.equal(mine[k], its[k]))]
    if odd:
        raise Wrong(f"loaded: {min(odd)} is not what the plan puts there ({len(odd)} such tensors)")
    inputs = specimen.inputs(base)
    (base_layers, base_hooks), (target_layers, target_hooks) = (record_layers(m, lists) for m in (base, target))
    before, after = (_forward(model, inputs) for model in (base, target))
    for handle in (*base_hooks, *target_hooks):
        handle.remove()
    if not all(tensor.isfinite().all() for tensor in after if tensor is not None):
        finite = all(tensor.isfinite().all() for tensor in before)
        raise Wrong("forward: not finite" + ("" if finite else ", as with the base"))
    num_lower = next((i for i, source in enumerate(sources) if i != source), len(sources))
    for (name, i), output in base_layers.items():
        if i < num_lower and not _equal(output, target_layers.get((name, i)), notes, "lower copy"):
            raise Wrong(f"the lower copy: {name}.{i} puts out something else than in the base")
    try:
        wanted = _forward(expected, inputs)
    except Exception as error:
        try:
            renumber(expected, base, lists, sources)
            wanted = _forward(expected, inputs)
        except Exception:
            raise Wrong(f"oracle: the rearranged base does not run: {brief(error)}") from error
    if len(wanted) != len(after) or not all(_equal(a, b, notes, "logits") for a, b in zip(wanted, after, strict=True)):
        gap = max(((a - b).abs().max().item() for a, b in zip(wanted, after) if a.shape == b.shape), default=-1)  # noqa: B905
        raise Wrong(f"logits differ from those of the rearranged base by up to {gap:.2g}")
    if all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after)):  # noqa: B905
        raise Wrong("the target's outputs are the base's: the new layers do nothing")


def _forward(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """All floating-point outputs of one call without a cache."""
    torch.manual_seed(0)
    parameters = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if {"use_cache", "kwargs"} & parameters.keys() else {}
    try:
        return list(tensors(dict(model(**inputs, **options))))
    except TypeError as error:
        if "use_cache" not in str(error):
            raise
        return list(tensors(dict(model(**inputs))))


def _equal(one: Tensor, other: Tensor | None, notes: list[str], what: str) -> bool:
    if other is None or one.shape != other.shape:
        return False
    if torch.equal(one, other):
        return True
    gap, size = (one - other).abs().max().item(), max(one.abs().max().item(), 1e-6)
    if gap <= TOLERANCE * size:
        notes.append(f"{what}: equal to {gap / size:.0e} of the largest value, not to the bit")
        return True
    return False


def follows_plan(base: Any, target: Any, n: int, sources: Sequence[int], path: str = "config") -> None:
    """Lists with a value for each layer are re-indexed; a depth is said once, or the same everywhere in its object."""
    for key, value in base.items():
        after, place = target.get(key), f"{path}.{key}"
        if isinstance(value, dict) and isinstance(after, dict):
            follows_plan(value, after, n, sources, place)
        elif isinstance(value, (list, tuple)) and isinstance(after, (list, tuple)) and len(value) == n != len(after):
            by_index = [i for i, source in enumerate(sources) if source in value]  # a list of all layers' indices
            if list(after) not in ([value[source] for source in sources], by_index):
                raise Wrong(f"{place} is not the base's list by the plan: {list(after)}"[:300])


def generation(specimen: Specimen, base: PreTrainedModel, target: PreTrainedModel, notes: list[str]) -> None:
    """Generation with the cache gives what it gives without; a family in which the base fails that is not blamed."""
    if (fault := _cache_fault(specimen, target)) is None:
        return
    own = next(filter(None, (_cache_fault(specimen, base, shift) for shift in range(6))), None)
    if own is None:
        raise Wrong(f"generation: {fault}")
    notes.append(f"generation: transformers' own, base and target alike: {own}")


def _cache_fault(specimen: Specimen, model: PreTrainedModel, shift: int = 0) -> str | None:
    """What generation with a cache gets wrong for the specimen's prompt, its tokens moved on by ``shift``."""
    inputs = {key: value[:1] for key, value in specimen.inputs(model).items()}
    if shift:
        inputs["input_ids"] = inputs["input_ids"].roll(shift, -1)
    options = {"max_new_tokens": NUM_NEW_TOKENS, "min_new_tokens": NUM_NEW_TOKENS, "do_sample": False,
               "return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}  # fmt: skip
    try:
        torch.manual_seed(0)
        with_cache = model.generate(**inputs, **options, use_cache=True)
        one = torch.stack(with_cache.logits, dim=1)
        if inputs.keys() == {"input_ids"} and not model.config.is_encoder_decoder:
            # A causal model says all at once what it would say step by step.
            other = _forward(model, {"input_ids": with_cache.sequences})[0][:, -NUM_NEW_TOKENS - 1 : -1]
            if one.shape == other.shape and _close(one, other):
                return None
        torch.manual_seed(0)
        without = model.generate(**inputs, **options, use_cache=False)
    except Exception as error:
        return brief(error)
    other = torch.stack(without.logits, dim=1)
    if not torch.equal(with_cache.sequences, without.sequences):
        return "the tokens with the cache differ from those without"
    if not _close(one, other):
        return f"the logits with the cache differ by {(one - other).abs().max():.2g} from those without"
    return None


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-3 * float(one.abs().max()))


def masked(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def brief(error: BaseException) -> str:
    """The error in one line, with the place where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:240]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"
