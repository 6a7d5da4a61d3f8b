"""The probe stage, and what it shares with the verb: a probe of a checkpoint folder, written with its figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data_settings import PlainData, parts_of
from .data_stage_settings import ProbeStage
from .errors import CheckpointError, PlanError
from .files import write_text

if TYPE_CHECKING:
    from .layers import LayerPlan
    from .stage_data import Job

PROBE_NAME = "probe.json"
LEDGER_NAME = "losses.jsonl"
_FLAT = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")  # a list that holds no other


def run_probe(job: Job, folder: Path) -> dict[str, Any]:
    """Checkpoint + held-out text -> ``probe.json`` and its figures."""
    from .data.sources import select
    from .stage_data import source_of

    stage: ProbeStage = job.stage
    sources = []
    for part in parts_of(job.recipe.data, stage.data):
        data = job.recipe.data[part]
        assert isinstance(data, PlainData)
        held_out = select(source_of(job, part), "held_out", data.held_out, data.max_documents)
        sources.append(one.text for one in held_out)
    found = probe_folder(
        job.folders[stage.model],
        sources,
        folder,
        rows=(stage.tokens // stage.row_tokens, stage.row_tokens),
        wanted={
            "maps": stage.maps,
            "map_rows": stage.map_tokens // stage.row_tokens,
            "stride": stage.stride,
        },
        tried=stage.plans,
        trained=None if stage.trained is None else job.folders[stage.trained],
        trained_plan=stage.trained_plan or _recorded_plan(job, stage.trained),
        device=job.device,
        dtype=stage.dtype,
        progress=job.progress,
    )
    found = {**found, "model": stage.model}
    write_probe(folder, found)
    (folder / LEDGER_NAME).unlink()
    best = min(found["upscale"], key=lambda one: one["loss"])
    return {"model": stage.model, "probe": PROBE_NAME, "base_loss": found["base"]["loss"],
            "best_removed": best["num_removed"], "best_loss": best["loss"]}  # fmt: skip


def _recorded_plan(job: Job, name: str | None) -> str | None:
    """The plan of the surgery that a trained stage comes from, as its record tells; None where none does."""
    waiting = [name]
    while waiting:
        record = job.records.get(waiting.pop() or "")
        if record is not None and "plan" in record.results:
            return str(record.results["plan"]["layers"])
        waiting += list(record.inputs) if record is not None else []
    return None


def write_probe(folder: Path, found: Mapping[str, Any]) -> list[str]:
    """Write ``probe.json`` and its figures into an existing folder; returns the figures' names."""
    from .report.probe_figures import probe_figures

    text = json.dumps(found, indent=1, ensure_ascii=False)
    write_text(folder / PROBE_NAME, _FLAT.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n")
    figures = probe_figures(found, standalone=True)
    for name, figure in figures.items():
        write_text(folder / f"{name}.svg", figure + "\n")
    return [f"{name}.svg" for name in figures]


def probe_folder(
    model: Path,
    sources: Sequence[Iterable[str]],
    folder: Path,
    *,
    rows: tuple[int, int],
    wanted: Mapping[str, Any],
    tried: Sequence[str] = (),
    trained: Path | None = None,
    trained_plan: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    progress: bool = False,
) -> dict[str, Any]:
    """Probe a checkpoint on text; what is found so far is kept in ``folder``.

    Args:
        model: The base's folder.
        sources: Documents, one iterable for each file.
        folder: An existing folder.
        rows: Number of rows, and tokens in each.
        wanted: Further arguments of :class:`~depthup.probe.run.Wanted`.
        tried: Plans beside depth up-scaling, as presets or in the one-line grammar.
        trained: A trained target of this base.
        trained_plan: Its plan, where no file beside it tells.
        device: Where to compute.
        dtype: Type of the weights.
        progress: Whether to show bars.

    Raises:
        DepthupError: Plans, text or checkpoints do not fit.
    """
    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint
    from .models import load_model, load_tokenizer
    from .probe.rows import cut_rows
    from .probe.run import Wanted, probe_model

    checkpoint = open_checkpoint(model)
    depth = find_stack(checkpoint.tensors, checkpoint.config, wanted.get("stack")).num_layers
    plans = {name: read_plan(name, depth) for name in tried}
    plan = None if trained is None else plan_of(trained, trained_plan, depth)
    text = cut_rows(load_tokenizer(model), sources, *rows)
    after = None if trained is None or plan is None else (load_model(trained, device, dtype), plan)
    found = probe_model(
        load_model(model, device, dtype),
        text,
        Wanted(tried=plans, **wanted),
        trained=after,
        ledger=folder / LEDGER_NAME,
        progress=progress,
    )
    return {"model": model.resolve().name, **found}


def plan_of(target: Path, text: str | None, num_layers: int) -> LayerPlan:
    """The plan that made a target: given, or told by ``depthup.json`` or ``freeze_map.json`` beside it.

    Args:
        target: The target's folder, trained or not.
        text: The plan, as :func:`read_plan` reads it.
        num_layers: Depth of the base.

    Raises:
        CheckpointError: No file tells.
        PlanError: It was made from a base of another depth.
    """
    from .growth.freeze import FREEZE_MAP_NAME, read_freeze_map
    from .growth.history import original_layers, read_history

    if text is not None:
        return read_plan(text, num_layers)
    if history := read_history(target):
        found = [history[-1].plan, original_layers(history)]
    elif (target / FREEZE_MAP_NAME).exists():
        found = [read_freeze_map(target).plan]
    else:
        raise CheckpointError(
            f"{target} does not say how it was made: it has neither depthup.json nor {FREEZE_MAP_NAME}",
            next_step="give its plan, as in --trained-plan 0-23,8-31",
        )
    fitting = [plan for plan in found if plan.num_base_layers == num_layers]
    if not fitting:
        raise PlanError(
            f"{target} was made from a base of {found[-1].num_base_layers} layers, and this one has {num_layers}",
            next_step="name the base that it was made from",
        )
    return fitting[0]


def read_plan(text: str, num_layers: int) -> LayerPlan:
    """A plan by its preset, or in the one-line grammar.

    Raises:
        PlanError: It is neither.
    """
    from .layers import LayerPlan
    from .presets import preset_plan

    return (LayerPlan.parse if text[:1].isdigit() else preset_plan)(text, num_layers)
