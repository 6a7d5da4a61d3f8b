"""Every specimen of the zoo, up-scaled and proved: right, refused with the reason, or wrong. Nothing is silent.

    python tests/sweep.py [--only REGEX] [--removed M] [--json FILE]

The oracles are transformers' own classes, the safetensors library and :mod:`zoo.oracle`; depthup is asked for one
thing only, the target.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
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
from transformers import PreTrainedModel
from zoo import Specimen, specimens
from zoo.proof import Wrong, brief, compare, follows_plan, generation, indexed_prefixes, masked, same_bytes

from depthup.checkpoint.check import check_checkpoint
from depthup.errors import DepthupError
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

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


def prove(specimen: Specimen, folder: Path, num_removed: int | None = None) -> Verdict:
    """Up-scale a specimen in ``folder`` (emptied afterwards) and prove the target. Never raises.

    Args:
        specimen: A row of the zoo.
        folder: Where base and target are written; it must not exist.
        num_removed: m of the plan; by default a quarter of the layers, or the nearest m that depthup then names.
    """
    start, notes = time.process_time(), list[str]()
    with _quiet(), torch.no_grad():
        try:
            outcome, m, reason = _prove(specimen, folder, num_removed, notes)
        except Wrong as error:
            outcome, m, reason = "wrong", None, str(error)
        except Exception as error:  # one family's crash is its verdict
            outcome, m, reason = "wrong", None, f"crash: {brief(error)}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Verdict(specimen.family, outcome, m, reason, tuple(notes), time.process_time() - start)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warning, note or bar of transformers: what it has to say of a target is asked for, and judged."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _prove(specimen: Specimen, folder: Path, wanted: int | None, notes: list[str]) -> tuple[str, int | None, str]:
    built = specimen.build()
    built.save_pretrained(folder / "base")
    if specimen.edit is not None:
        specimen.edit(folder / "base")
    outcome = _prove_folder(specimen, type(built), folder / "base", folder / "target", wanted, notes)
    if outcome[0] == "right" and (left_out := _leave_lists_out(folder / "base")):
        without = f"with no {', '.join(left_out)} in config.json"
        try:
            implied, m, reason = _prove_folder(
                specimen, type(built), folder / "base", folder / "implied", wanted, notes, proved=folder / "target"
            )
        except Wrong as error:
            raise Wrong(f"{without}: {error}") from error
        notes.append(f"{without} {implied}" + (f": {reason}" if m is None else f", m = {m}"))
    return outcome


def _prove_folder(specimen: Specimen, kind: type[PreTrainedModel], folder: Path, out: Path, wanted: int | None,
                  notes: list[str], proved: Path | None = None) -> tuple[str, int | None, str]:  # fmt: skip
    """The outcome, m, and the reason, for a base on disk. A target that equals one ``proved`` before is right."""
    base, faults = _load(kind, folder)
    if faults:
        notes.append(f"transformers does not load all of the base: {'; '.join(faults)[:200]}")
    raw = pico.raw(folder)
    prefix = _prefix(specimen, raw)
    try:
        m, surgery = _upscale(folder, out, prefix, _num_layers(base, raw, prefix, specimen.stack is not None), wanted)
    except DepthupError as error:
        return "refused", None, str(error)
    n = surgery.stack.num_layers
    sources = [*range(n - m), *range(m, n)]  # spelt out: not read off the code under test
    if proved is not None and _equal_folders(proved, out):
        return "right", m, ""
    try:
        absent = same_bytes(raw, pico.raw(out), n, sources)
        target, new_faults = _load(kind, out)
        if new := [fault for fault in new_faults if masked(fault) not in map(masked, faults)]:
            raise Wrong(f"loading: {'; '.join(new)[:300]}")
        compare(specimen, base, target, n, sources, notes)
        follows_plan(base.config.to_dict(), target.config.to_dict(), n, sources)
        target.config.save_pretrained(out.with_name(f"{out.name}-again"))  # which checks it once more
        if specimen.generates:
            generation(specimen, base, target, notes)
    except Exception as error:
        text = str(error) if isinstance(error, Wrong) else brief(error)
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
    if specimen.stack is None or "." in specimen.stack or specimen.stack in indexed_prefixes(raw):
        return specimen.stack
    words = HINTS.get(specimen.stack, (specimen.stack,))
    lists = [prefix for prefix, indices in indexed_prefixes(raw).items() if len(indices) > 1]
    found = [prefix for prefix in lists if any(word in prefix for word in words)]
    if specimen.stack == "text":
        found = [prefix for prefix in found if not any(w in prefix for w in (*HINTS["vision"], *HINTS["audio"]))]
    # The stack proper is the outermost list, and of those the one with most layers.
    found = [prefix for prefix in found if not any(prefix.startswith(f"{other}.") for other in found)]
    return max(found, key=lambda prefix: len(indexed_prefixes(raw)[prefix]), default=specimen.stack)


def _num_layers(base: PreTrainedModel, raw: dict[str, Any], prefix: str | None, named: bool) -> int:
    """How many layers the stack has: the outermost list that holds most tensors, where a row names none.

    In that case the last of them may be no layers, but blocks that predict several tokens.
    """
    indexed = indexed_prefixes(raw)
    if prefix is None:
        outer = [p for p in indexed if not any(p.startswith(f"{other}.") for other in indexed if other != p)]
        prefix = max(outer, key=lambda p: sum(name.startswith(f"{p}.") for name in raw))
    stored = len(indexed.get(prefix, ()))
    stated = getattr(base.config.get_text_config(decoder=True), "num_hidden_layers", stored)
    return stated if not stored or (not named and stored - 2 <= stated < stored) else stored


def _upscale(base: Path, out: Path, prefix: str | None, n: int, wanted: int | None) -> tuple[int, Any]:
    """m as wanted; else n // 4, or the nearest m that depthup names when it refuses that."""
    m = n // 4 if wanted is None else wanted
    try:
        return m, upscale(base, out, LayerPlan.upscale(n, m), stack=prefix)
    except DepthupError as error:
        fitting = [int(i) for i in re.findall(r"\d+", (re.search(r"\bm in \[([\d, ]+)\]", str(error)) or [""] * 2)[1])]
        if wanted is not None or not fitting:
            raise
        m = min(fitting, key=lambda other: abs(other - m))
        return m, upscale(base, out, LayerPlan.upscale(n, m), stack=prefix)


def _load(kind: type[PreTrainedModel], folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """The model in evaluation mode, and what transformers says of keys that it misses, or that it has no place for."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    faults = [f"{what.removesuffix('_keys')} {key}" for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
              for key in sorted(map(str, info[what]))]  # fmt: skip
    return model.eval(), faults


# -- the table ---------------------------------------------------------------------------------------------------------


def sweep(
    chosen: Sequence[Specimen], show: Callable[[Verdict], None], num_removed: int | None = None
) -> Iterator[Verdict]:
    """The verdict of each specimen, shown as it comes."""
    with tempfile.TemporaryDirectory() as scratch:
        for specimen in chosen:
            verdict = prove(specimen, Path(scratch) / "specimen", num_removed)
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
    parser.add_argument("--removed", type=int, metavar="M", help="remove M layers from each copy, and no other number")
    options = parser.parse_args()
    verdicts = list(sweep(specimens(options.only), _show, options.removed))
    counts = Counter(verdict.outcome for verdict in verdicts)
    print(f"{len(verdicts)} rows: " + ", ".join(f"{counts[what]} {what}" for what in ("right", "refused", "wrong"))
          + f", {sum(verdict.seconds for verdict in verdicts):.0f} s")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
