"""Prove a target from its base: the surgery is derived again, and every byte is compared with what it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

from ..checkpoint.carry import files_in
from ..checkpoint.check import Finding
from ..checkpoint.copy import Progress, first_difference, read_range
from ..checkpoint.names import find_stack
from ..checkpoint.parallel import run_all
from ..checkpoint.plain_json import read_object
from ..checkpoint.reader import Checkpoint, Tensor, open_checkpoint
from ..checkpoint.writer import Move
from ..errors import CheckpointError
from ..layers import LayerPlan
from .manifest import MANIFEST_NAME, read_manifest
from .surgery import Surgery, plan_surgery
from .upcycle import Upcycle, plan_upcycle, stated_upcycling

Derived: TypeAlias = Surgery | Upcycle  # what a target should be
_AGAIN = "make the target again, or name the base and the plan that it was made from"
_JOB_BYTES = 256 << 20
_STAMPS = frozenset({"_name_or_path", "transformers_version"})  # say who wrote a config, nothing of the model
_ABSENT = object()


@dataclass(frozen=True)
class Proof:
    """What came of a comparison: proved if there is no finding.

    Attributes:
        findings: What differs, up to a limit.
        num_further: Findings beyond it.
        notes: What the target has and the base has nothing to compare with.
        num_tensors: Tensors whose bytes were compared.
        num_bytes: Their bytes.
        num_made: Those of them that are no copies: they were made again.
    """

    findings: tuple[Finding, ...]
    num_further: int
    notes: tuple[str, ...]
    num_tensors: int
    num_bytes: int
    num_made: int

    def describe(self) -> str:
        """What came of it, and what to do, as text."""
        lines = [f"not compared: {note}" for note in self.notes]
        if not self.findings:
            made = f", {self.num_made} of them made again" * bool(self.num_made)
            lines.append(f"proved: {self.num_tensors} tensors ({self.num_bytes:,} bytes) are what the plan makes of the"
                         f" base{made}; config.json and the files beside follow")  # fmt: skip
            return "\n".join(lines)
        shown = f", {len(self.findings)} of them shown" * bool(self.num_further)
        lines.append(f"not proved: {len(self.findings) + self.num_further} differences{shown}")
        lines += [f"  next: {remedy}" for remedy in dict.fromkeys(finding.remedy for finding in self.findings)]
        return "\n".join(lines)


def derive_surgery(
    target: Path,
    base: Path,
    make_plan: Callable[[int], LayerPlan] | None = None,
    stack: str | None = None,
    config_lists: Mapping[str, str] | None = None,
) -> Derived:
    """What should have made a target: surgery by a plan for the base's depth, or what the target's manifest states.

    Raises:
        CheckpointError: There is neither a plan nor a manifest, or the base is not whole.
        PlanError: The plan does not fit the base.
    """
    checkpoint = open_checkpoint(base)
    if make_plan is None and (upcycling := stated_upcycling(target)) is not None:
        return plan_upcycle(checkpoint, upcycling)
    if make_plan is None:
        plan, stack, config_lists = _stated_plan(target)
        layers = find_stack(checkpoint.tensors, checkpoint.config, stack)
    else:
        layers = find_stack(checkpoint.tensors, checkpoint.config, stack)
        plan = make_plan(layers.num_layers)
    return plan_surgery(checkpoint, plan, stack=layers, config_lists=config_lists)


def _stated_plan(target: Path) -> tuple[LayerPlan, str, dict[str, str]]:
    manifest = read_manifest(target)
    if manifest is None:
        raise CheckpointError(
            f"{target} has no {MANIFEST_NAME} that states its plan",
            next_step="name the plan as for `depthup upscale`, as in --layers 0-23,8-31 or --remove 8",
        )
    if "visits" in manifest:
        raise CheckpointError(
            f"{target} is a looped model, whose config is not that of a family",
            next_step="`depthup unroll` it, and check what comes of that",
        )
    match manifest:
        case {"plan": plan, "stack": str(stack), **rest} if isinstance(lists := rest.get("config_lists", {}), dict):
            return LayerPlan.from_json(plan), stack, lists
    raise CheckpointError(f"{target / MANIFEST_NAME} states no plan and stack", next_step="make the target again")


def prove(
    surgery: Derived,
    target: Path,
    *,
    tell: Callable[[Finding], object] = lambda finding: None,
    limit: int = 20,
    progress: Progress | None = None,
) -> Proof:
    """Compare a target, whoever made it, with what a surgery would write.

    Compared: the names, types, shapes and bytes of all tensors (those that are no copies are made again), every field
    of ``config.json``, and every file that goes along. Memory does not grow with the model.

    Args:
        surgery: From :func:`derive_surgery`, for the base.
        target: The folder to prove.
        tell: Called with each finding as soon as there is one, by one thread at a time.
        limit: Findings to tell of; the others are only counted.
        progress: Called with the number of bytes compared since the last call, in the same way.

    Raises:
        CheckpointError: The target is not whole (see :func:`~depthup.checkpoint.check.check_checkpoint`).
    """
    found = open_checkpoint(target)
    findings = _Findings(tell, limit)
    made_here = (target / MANIFEST_NAME).is_file()
    notes = [*_compare_configs(surgery.config, found.config, findings, made_here),
             *_compare_files(surgery, target, findings, made_here)]  # fmt: skip
    pairs = list(_comparable(surgery, found, findings))
    making = Lock()
    run_all([partial(_compare_tensors, surgery, found, job, findings, making) for job in _in_jobs(pairs)], progress)
    return Proof(
        tuple(findings.told),
        findings.num_further,
        tuple(notes),
        num_tensors=len(pairs),
        num_bytes=sum(tensor.num_bytes for _, tensor in pairs),
        num_made=sum(move.make is not None for move, _ in pairs),
    )


class _Findings:
    """Findings, told as they come; threads may add to them together."""

    def __init__(self, tell: Callable[[Finding], object], limit: int) -> None:
        self._tell, self._limit, self._lock = tell, limit, Lock()
        self.told: list[Finding] = []
        self.num_further = 0

    def add(self, problem: str, remedy: str = _AGAIN) -> None:
        with self._lock:
            if len(self.told) == self._limit:
                self.num_further += 1
                return
            self.told.append(Finding(problem, remedy))
            self._tell(self.told[-1])


# -- tensors ----------------------------------------------------------------------------------------------------------


def _comparable(surgery: Derived, found: Checkpoint, findings: _Findings) -> Iterator[tuple[Move, Tensor]]:
    """Target tensors that are what they should be but for their bytes."""
    expected = {move.name: move for move in surgery.moves}
    for name in sorted(expected.keys() - found.tensors.keys()):
        findings.add(f"{name} is missing: it should be {_origin(surgery, expected[name])}")
    for name in sorted(found.tensors.keys() - expected.keys()):
        findings.add(f"{name} is in the target, and not in the plan")
    for name, tensor in found.tensors.items():
        if (move := expected.get(name)) is None:
            continue
        wanted, held = (move.source.dtype, move.shape), (tensor.dtype, tensor.shape)
        if wanted == held:
            yield move, tensor
        else:
            findings.add(f"{name} is {held[0]} {list(held[1])}, its source {wanted[0]} {list(wanted[1])}")


def _in_jobs(pairs: Sequence[tuple[Move, Tensor]]) -> list[list[tuple[Move, Tensor]]]:
    """Runs of tensors that threads take in turn, in the order of the target's files."""
    jobs: list[list[tuple[Move, Tensor]]] = []
    filled = _JOB_BYTES
    for move, tensor in pairs:
        if filled >= _JOB_BYTES:
            jobs.append([])
            filled = 0
        jobs[-1].append((move, tensor))
        filled += tensor.num_bytes
    return jobs


def _compare_tensors(
    surgery: Derived,
    found: Checkpoint,
    pairs: Sequence[tuple[Move, Tensor]],
    findings: _Findings,
    making: Lock,
    report: Progress,
) -> None:
    with ExitStack() as files:

        def opened(folder: Path, name: str, held: dict[str, FileIO]) -> FileIO:
            if name not in held:
                held[name] = files.enter_context(open(folder / name, "rb", buffering=0))
            return held[name]

        ours: dict[str, FileIO] = {}
        theirs: dict[str, FileIO] = {}
        for move, tensor in pairs:
            file, source = opened(found.folder, tensor.shard, theirs), move.source
            if move.make is not None:
                with making:
                    place = first_difference(move.make(), file, tensor.begin, report)
            else:
                base = opened(surgery.base.folder, source.shard, ours)
                place = first_difference(read_range(base, source.begin, source.end), file, tensor.begin, report)
            if place is not None:
                findings.add(f"{tensor.name} differs from {_origin(surgery, move)}, first at its byte {place}")


def _origin(surgery: Derived, move: Move) -> str:
    place = surgery.stack.split(move.name)
    made_by = "upcycling" if isinstance(surgery, Upcycle) or place is None else f"'{surgery.plan.init(place[0])}'"
    how = "" if move.make is None or place is None else f"what {made_by} makes of "
    return f"{how}{move.source.name} of the base"


# -- config, files that go along --------------------------------------------------------------------------------------


def _compare_configs(
    expected: Mapping[str, Any], found: Mapping[str, Any], findings: _Findings, made_here: bool
) -> list[str]:
    added: list[str] = []
    for path, wanted, held in _unlike_fields(expected, found):
        if held is _ABSENT:
            findings.add(f"config.json does not state {path}, it should be {_short(wanted)}")
        elif wanted is _ABSENT and not made_here:
            added.append(path)
        else:
            should = "should not be there" if wanted is _ABSENT else f"should be {_short(wanted)}"
            findings.add(f"config.json states {path} = {_short(held)}, which {should}")
    return [f"config.json also states what the base does not: {', '.join(added)}"] if added else []


def _unlike_fields(
    expected: Mapping[str, Any], found: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in (*expected, *(key for key in found if key not in expected)):
        wanted, held = (_value(config, key) for config in (expected, found))
        if isinstance(wanted, Mapping) and isinstance(held, Mapping):
            yield from _unlike_fields(wanted, held, f"{path}{key}.")
        elif key not in _STAMPS and not _same(wanted, held):
            yield f"{path}{key}", wanted, held


def _value(config: Mapping[str, Any], key: str) -> Any:
    """A field's value; "dtype" was "torch_dtype" in older versions of transformers."""
    others = {"dtype": "torch_dtype", "torch_dtype": "dtype"}
    return config.get(key, config.get(others[key], _ABSENT) if key in others else _ABSENT)


def _same(wanted: Any, held: Any) -> bool:
    equal = wanted == held or repr(wanted) == repr(held)  # NaN does not equal itself
    return equal and isinstance(wanted, bool) == isinstance(held, bool)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _compare_files(surgery: Derived, target: Path, findings: _Findings, made_here: bool) -> list[str]:
    """Tokenizer, chat template, code, licence: what the base has, the target has, byte for byte.

    Files that name layers hold the value that the plan makes of the base's.
    """
    base = surgery.base.folder
    expected, found = files_in(base), files_in(target)
    for name in expected:
        if name not in found:
            findings.add(f"{name} is missing: the base has it", "copy it from the base")
            continue
        if name in surgery.files:
            if read_object(target / name) != surgery.files[name]:
                findings.add(f"{name} does not name the layers as the plan does")
            continue
        size = (base / name).stat().st_size
        with open(base / name, "rb", buffering=0) as one, open(target / name, "rb", buffering=0) as other:
            place = first_difference(read_range(one, 0, size), other, 0, lambda num_bytes: None)
        if place is not None or (target / name).stat().st_size != size:
            findings.add(f"{name} differs from the base's, first at byte {size if place is None else place}",
                       "copy it from the base, if it was not changed on purpose")  # fmt: skip
    added = ", ".join(name for name in found if name not in expected)
    if added and made_here:
        findings.add(f"the base does not have {added}", "remove them, if they were not added on purpose")
    return [f"the target has files that the base does not: {added}"] if added and not made_here else []
