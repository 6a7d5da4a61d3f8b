"""The stage that makes a mixture of experts of a dense checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import require_space
from .growth_stage_settings import UpcycleStage
from .stage_data import Job
from .training_run import shape_of


def run_upcycle(job: Job, folder: Path) -> dict[str, Any]:
    """Dense base -> mixture of experts."""
    from tqdm import tqdm

    from .checkpoint.reader import open_checkpoint
    from .growth.upcycle import Upcycling, plan_upcycle, write_upcycle

    stage: UpcycleStage = job.stage
    how = Upcycling(
        stage.experts,
        stage.experts_per_token,
        granularity=stage.granularity,
        every=stage.every,
        router_std=stage.router_std,
        expert_noise=stage.expert_noise,
        seed=job.recipe.seed,
    )
    upcycle = plan_upcycle(open_checkpoint(job.folders[stage.base]), how)
    require_space(folder, upcycle.num_output_bytes)
    with tqdm(
        total=upcycle.num_bytes, desc=job.name, unit="B", unit_scale=True, disable=not job.progress, dynamic_ncols=True
    ) as bar:
        write_upcycle(upcycle, folder, bar.update)
    return {"num_active_parameters": upcycle.num_active_parameters, **shape_of(folder)}
