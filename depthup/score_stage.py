"""The part of an evaluate stage that scores benchmarks: which items, on which answers, into which files."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from .artifacts.fingerprint import Digests
from .errors import DataError
from .recipe import Recipe
from .stage_data import DATA_VARIABLE, Job
from .stage_settings import EvaluateStage


def benchmark_folder(stage: EvaluateStage) -> Path | None:
    """The folder that benchmarks are read from; None for the hub."""
    named = stage.benchmarks or os.environ.get(DATA_VARIABLE)
    return Path(named) if named else None


def benchmark_identity(stage: EvaluateStage, recipe: Recipe, digests: Digests) -> dict[str, Any]:
    """What the items of a stage depend on."""
    folder = benchmark_folder(stage)
    drawn = {"seed": recipe.seed} if stage.suite == "quick" or stage.sample is not None else {}
    if folder is None:
        return {"benchmarks": "hub", **drawn}
    from .evaluation.sources import LocalItems
    from .evaluation.suites import TASKS, find_suite

    names = find_suite(stage.suite).tasks if stage.suite else stage.tasks
    files = LocalItems(folder).files([name for name in names if name in TASKS])
    return {"benchmarks": {str(path.relative_to(folder)): digests.of(path) for path in files}, **drawn}


def score_benchmarks(job: Job, folder: Path) -> dict[str, Any]:
    """Score the stage's model, and write results and samples into ``folder/scores``.

    Answers are kept in the store by model and prompt, so that a stopped stage goes on, and another sample of the same
    benchmarks asks only what is new.
    """
    from .evaluation.results import write_results
    from .evaluation.run import Place, Questions, Reader

    stage: EvaluateStage = job.stage
    questions = Questions(
        stage.asked, stage.profile, benchmark_folder(stage), stage.limit, stage.sample, job.recipe.seed,
        stage.chat_template,
    )  # fmt: skip
    dtype = ("float32" if job.device == "cpu" else "bfloat16") if stage.dtype == "auto" else stage.dtype
    place = Place(job.device, dtype, batch_tokens=stage.batch_tokens, progress=job.progress)
    reader = Reader(questions, place, job.store.root / "answers")
    source = job.folders[stage.model]
    if stage.optional and questions.data_dir is None and _hub_is_out_of_reach():
        return {"scores_left_out": "there is no folder of benchmarks (DEPTHUP_DATA), and the hub is out of reach"}
    try:
        scores, samples = reader.read(stage.model, source, job.store.digests.of_checkpoint(source))
    except DataError as error:
        if not stage.optional:
            raise
        return {"scores_left_out": error.problem}
    path = write_results(folder / "scores", scores, samples)
    from .evaluation.statistics import estimate

    return {
        "scores": path.relative_to(folder).as_posix(),
        "means": {task.task: estimate(task).mean for task in scores.tasks},
    }


def _hub_is_out_of_reach() -> bool:
    """Whether the hub's name is not even found, which takes no time; through a proxy only an attempt would tell."""
    if any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ):
        return False
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").partition("//")[2].partition("/")[0]
    try:
        socket.getaddrinfo(host.partition(":")[0], 443)
    except OSError:
        return True
    return False
