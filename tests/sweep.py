"""Every specimen of the zoo, up-scaled and proved: right, refused with the reason, or wrong. Nothing is silent.

    python tests/sweep.py [--only REGEX] [--json FILE]

The oracles are transformers' own classes, the safetensors library and :mod:`zoo.oracle`; depthup is asked for one
thing only, the target.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import pico
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from zoo import Specimen, specimens
from zoo.oracle import OracleError, grown_lists, rearranged, record_layers, renumber, tensors

from depthup.checkpoint.check import check_checkpoint
from depthup.errors import DepthupError
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

NUM_NEW_TOKENS = 8
TOLERANCE = 1e-4  # of the largest value; most targets agree to the bit
HINTS = {"vision": ("vis", "image"), "text": ("text", "language", "decoder", "model.layers"), "audio": ("audio",)}


@dataclass(frozen=True)
class Verdict:
    """What became of one specimen.

    Attributes:
        row: The specimen's family.
        outcome: ``"right"``, ``"refused"`` (by depthup, with a message) or ``"wrong"`` (anything else).
        num_removed: m of the plan that was used; None where there was no target.
        reason: The refusal, or what failed.
        notes: What is worth knowing of a right target.
        seconds: Processor time that it took.
    """

    row: str
    outcome: str
    num_removed: int | None
    reason: str
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class Wrong(Exception):
    """A target that is not what it should be."""


def prove(specimen: Specimen, folder: Path) -> Verdict:
    """Up-scale a specimen in ``folder`` (emptied afterwards) and prove the target. Never raises."""
    start, notes = time.process_time(), list[str]()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            outcome, m, reason = _prove(specimen, folder, notes)
        except Wrong as error:
            outcome, m, reason = "wrong", None, str(error)
        except Exception as error:  # one family's crash is its verdict
            outcome, m, reason = "wrong", None, f"crash: {_brief(error)}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Verdict(specimen.family, outcome, m, reason, tuple(notes), time.process_time() - start)


def _prove(specimen: Specimen, folder: Path, notes: list[str]) -> tuple[str, int | None, str]:
    built = specimen.build()
    built.save_pretrained(folder / "base")
    if specimen.edit is not None:
        specimen.edit(folder / "base")
    outcome = _prove_folder(specimen, type(built), folder / "base", folder / "target", notes)
    if outcome[0] == "right" and (left_out := _leave_lists_out(folder / "base")):
        without = f"with no {', '.join(left_out)} in config.json"
        try:
            implied, m, reason = _prove_folder(
                specimen, type(built), folder / "base", folder / "implied", notes, proved=folder / "target"
            )
        except Wrong as error:
            raise Wrong(f"{without}: {error}") from error
        notes.append(f"{without} {implied}" + (f", m = {m}" if m else f": {reason}"))
    return outcome


def _prove_folder(specimen: Specimen, kind: type[PreTrainedModel], folder: Path, out: Path, notes: list[str],
                  proved: Path | None = None) -> tuple[str, int | None, str]:  # fmt: skip
    """The outcome, m, and the reason, for a base on disk. A target that equals one ``proved`` before is right."""
    base, faults = _load(kind, folder)
    if faults:
        notes.append(f"transformers does not load all of the base: {'; '.join(faults)[:200]}")
    raw = pico.raw(folder)
    prefix = _prefix(specimen, raw)
    try:
        m, surgery = _upscale(folder, out, prefix, _num_layers(base, raw, prefix))
    except DepthupError as error:
        return "refused", None, str(error)
    n = surgery.stack.num_layers
    sources = [*range(n - m), *range(m, n)]  # spelt out: not read off the code under test
    if proved is not None and _equal_folders(proved, out):
        return "right", m, ""
    try:
        absent = _same_bytes(raw, pico.raw(out), n, sources)
        target, new_faults = _load(kind, out)
        if new := [fault for fault in new_faults if _masked(fault) not in map(_masked, faults)]:
            raise Wrong(f"loading: {'; '.join(new)[:300]}")
        _compare(specimen, base, target, n, sources, notes)
        _follows_plan(base.config.to_dict(), target.config.to_dict(), n, sources)
        if specimen.generates:
            _generation(specimen, base, target, notes)
    except Exception as error:
        text = str(error) if isinstance(error, Wrong) else _brief(error)
        raise Wrong(f"{text} (m = {m})") from error
    if absent:
        notes.append(f"not on disk, tied on loading: {absent[0]} and {len(absent) - 1} more")
    for where in (folder, out):
        if found := check_checkpoint(where):
            notes.append(f"`depthup check` faults the {'base' if where == folder else 'target'}: {found[0]}")
    return "right", m, ""


def _equal_folders(one: Path, other: Path) -> bool:
    """Whether transformers reads one config out of two folders, and safetensors the same tensors."""
    try:
        configs = [transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in (one, other)]
    except Exception:  # what does not load is not equal; the proof says why
        return False
    return configs[0] == configs[1] and pico.raw(one) == pico.raw(other)


def _leave_lists_out(folder: Path) -> list[str]:
    """Remove from config.json what the class would fill in itself, as older checkpoints leave it out; the keys."""
    path, left_out = folder / "config.json", []
    whole = json.loads(path.read_text())
    wanted = transformers.AutoConfig.from_pretrained(folder).to_dict()

    def scopes(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield config
        for value in config.values():
            if isinstance(value, dict):
                yield from scopes(value)

    for scope in scopes(whole):
        for key in [key for key, value in scope.items() if isinstance(value, list) and key != "architectures"]:
            value = scope.pop(key)
            path.write_text(json.dumps(whole))
            try:
                same = transformers.AutoConfig.from_pretrained(folder).to_dict() == wanted
            except Exception:  # the class needs it
                same = False
            if same:
                left_out.append(key)
            else:
                scope[key] = value
    path.write_text(json.dumps(whole))
    return left_out


# -- the target --------------------------------------------------------------------------------------------------------


def _prefix(specimen: Specimen, raw: dict[str, Any]) -> str | None:
    """The prefix on disk of the stack that a row names by a word."""
    if specimen.stack is None or "." in specimen.stack:
        return specimen.stack
    words = HINTS.get(specimen.stack, (specimen.stack,))
    lists = [prefix for prefix, indices in _indexed(raw).items() if len(indices) > 1]
    found = [prefix for prefix in lists if any(word in prefix for word in words)]
    if specimen.stack == "text":
        found = [prefix for prefix in found if not any(w in prefix for w in (*HINTS["vision"], *HINTS["audio"]))]
    # The stack proper is the outermost list, and of those the one with most layers.
    found = [prefix for prefix in found if not any(prefix.startswith(f"{other}.") for other in found)]
    return max(found, key=lambda prefix: len(_indexed(raw)[prefix]), default=specimen.stack)


def _indexed(raw: dict[str, Any]) -> dict[str, set[int]]:
    """Every prefix that is followed by an integer, at whatever place, with the integers seen."""
    found: dict[str, set[int]] = {}
    for name in raw:
        for match in re.finditer(r"\.(\d+)\.", name):
            found.setdefault(name[: match.start()], set()).add(int(match[1]))
    return found


def _num_layers(base: PreTrainedModel, raw: dict[str, Any], prefix: str | None) -> int:
    """How many layers the stack has: the outermost list that holds most tensors, where a row names none.

    The last of them may be no layers, but blocks that predict several tokens.
    """
    indexed = _indexed(raw)
    if prefix is None:
        outer = [p for p in indexed if not any(p.startswith(f"{other}.") for other in indexed if other != p)]
        prefix = max(outer, key=lambda p: sum(name.startswith(f"{p}.") for name in raw))
    stored, stated = len(indexed.get(prefix, ())), base.config.get_text_config(decoder=True).num_hidden_layers
    return stated if not stored or stored - 2 <= stated < stored else stored


def _upscale(base: Path, out: Path, prefix: str | None, n: int) -> tuple[int, Any]:
    """m = n // 4, or the nearest m that depthup names when it refuses that."""
    m = n // 4
    try:
        return m, upscale(base, out, LayerPlan.upscale(n, m), stack=prefix)
    except DepthupError as error:
        fitting = [int(i) for i in re.findall(r"\d+", (re.search(r"\bm in \[([\d, ]+)\]", str(error)) or [""] * 2)[1])]
        if not fitting:
            raise
        m = min(fitting, key=lambda other: abs(other - m))
        return m, upscale(base, out, LayerPlan.upscale(n, m), stack=prefix)


def _load(kind: type[PreTrainedModel], folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """The model in evaluation mode, and what transformers says of keys that it misses, or that it has no place for."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    faults = [f"{what.removesuffix('_keys')} {key}" for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
              for key in sorted(map(str, info[what]))]  # fmt: skip
    return model.eval(), faults


# -- the oracles -------------------------------------------------------------------------------------------------------


def _same_bytes(base: dict[str, Any], target: dict[str, Any], n: int, sources: Sequence[int]) -> list[str]:
    """Each target tensor is its source's bytes, by name; a tensor with a part for each layer, part by part.

    Returns the names that the plan asks for and the target leaves out; loading must then fill them in by ties. What
    stands behind the last layer (blocks that predict several tokens) stays behind it, or is left out.
    """
    s, before, after = len(sources), _indexed(base), _indexed(target)
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
    if base.dtype != target.dtype or len(axes) != 1 or base.shape[axes[0]] % n:
        return False
    (axis,) = axes
    dtype = {4: torch.int32, 2: torch.int16, 1: torch.int8, 8: torch.int64}
    one, other = (
        torch.frombuffer(
            bytearray(raw.data), dtype=dtype[len(raw.data) // max(1, torch.Size(raw.shape).numel())]
        ).reshape(raw.shape)
        for raw in (base, target)
    )
    parts = one.split(base.shape[axis] // n, dim=axis)
    return torch.equal(torch.cat([parts[source] for source in sources], dim=axis), other)


def _compare(specimen: Specimen, base: PreTrainedModel, target: PreTrainedModel, n: int, sources: Sequence[int],
             notes: list[str]) -> None:  # fmt: skip
    """The target runs, its lower copy computes what the base does, and all of it what the rearranged base does."""
    lists = grown_lists(base, target, n, len(sources))
    if not lists:
        raise Wrong(f"the loaded target has no list of {len(sources)} modules where the base has {n}")
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
        expected = rearranged(base, target, lists, sources, n)
    except OracleError as error:
        raise Wrong(f"oracle: {error}") from error
    mine, its = expected.state_dict(), target.state_dict()
    odd = [*(mine.keys() ^ its.keys()), *(k for k in mine.keys() & its.keys() if not torch.equal(mine[k], its[k]))]
    if odd:
        raise Wrong(f"loaded: {min(odd)} is not what the plan puts there ({len(odd)} such tensors)")
    try:
        wanted = _forward(expected, inputs)
    except Exception as error:
        try:
            renumber(expected, base, lists, sources)
            wanted = _forward(expected, inputs)
        except Exception:
            raise Wrong(f"oracle: the rearranged base does not run: {_brief(error)}") from error
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


def _follows_plan(base: Any, target: Any, n: int, sources: Sequence[int], path: str = "config") -> None:
    """Lists with a value for each layer are re-indexed; a depth is said once, or the same everywhere in its object."""
    for key, value in base.items():
        after, place = target.get(key), f"{path}.{key}"
        if isinstance(value, dict) and isinstance(after, dict):
            _follows_plan(value, after, n, sources, place)
        elif isinstance(value, (list, tuple)) and isinstance(after, (list, tuple)) and len(value) == n != len(after):
            by_index = [i for i, source in enumerate(sources) if source in value]  # a list of all layers' indices
            if list(after) not in ([value[source] for source in sources], by_index):
                raise Wrong(f"{place} is not the base's list by the plan: {list(after)}"[:300])


def _generation(specimen: Specimen, base: PreTrainedModel, target: PreTrainedModel, notes: list[str]) -> None:
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
        return _brief(error)
    other = torch.stack(without.logits, dim=1)
    if not torch.equal(with_cache.sequences, without.sequences):
        return "the tokens with the cache differ from those without"
    if not _close(one, other):
        return f"the logits with the cache differ by {(one - other).abs().max():.2g} from those without"
    return None


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-3 * float(one.abs().max()))


def _masked(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _brief(error: BaseException) -> str:
    """The error in one line, with the place where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:240]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"


# -- the table ---------------------------------------------------------------------------------------------------------


def sweep(chosen: Sequence[Specimen], show: Callable[[Verdict], None]) -> Iterator[Verdict]:
    """The verdict of each specimen, shown as it comes."""
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        for specimen in chosen:
            verdict = prove(specimen, Path(scratch) / "specimen")
            show(verdict)
            yield verdict


def _show(verdict: Verdict) -> None:
    m = "-" if verdict.num_removed is None else verdict.num_removed
    reason = " ".join([verdict.reason, *(f"[{note}]" for note in dict.fromkeys(verdict.notes))]).replace("\n", " ")
    print(f"{verdict.row:<28} {verdict.outcome:<8} m={m:<2} {verdict.seconds:5.2f} s  {reason}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="families to prove")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there")
    options = parser.parse_args()
    verdicts = list(sweep(specimens(options.only), _show))
    counts = Counter(verdict.outcome for verdict in verdicts)
    print(f"{len(verdicts)} rows: " + ", ".join(f"{counts[what]} {what}" for what in ("right", "refused", "wrong"))
          + f", {sum(verdict.seconds for verdict in verdicts):.0f} s")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
