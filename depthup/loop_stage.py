"""The stage kind that makes a looped model: layers stored once and run in the order of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import require_space
from .growth_stage_settings import LoopStage
from .stage_data import Job
from .training_run import shape_of


def run_loop(job: Job, folder: Path) -> dict[str, Any]:
    """Base + plan -> looped model."""
    from tqdm import tqdm

    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint
    from .growth.looped import plan_loop, write_loop
    from .presets import make_plan

    stage: LoopStage = job.stage
    base = open_checkpoint(job.folders[stage.base])
    plan = make_plan(
        find_stack(base.tensors, base.config).num_layers,
        remove=stage.remove,
        target_layers=stage.target_layers,
        layers=stage.layers,
        preset=stage.preset,
    )
    looping = plan_loop(base, plan, adapter=stage.adapter, rank=stage.rank, seed=job.recipe.seed)
    require_space(folder, looping.surgery.num_output_bytes)
    with tqdm(
        total=looping.surgery.num_bytes, desc=job.name, unit="B", unit_scale=True, disable=not job.progress,
        dynamic_ncols=True,
    ) as bar:  # fmt: skip
        write_loop(looping, folder, bar.update)
    return {"visits": plan.to_json(), "num_adapter_parameters": looping.num_adapter, **shape_of(folder)}
