"""One training run of a stage: the model is loaded and checked, trained, and written as a checkpoint."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, RecipeError
from .files import require_space
from .stage_data import Job
from .stage_settings import PreferenceStage, PretrainStage, SftStage, TrainingStage

if TYPE_CHECKING:  # torch is loaded when a stage runs
    from .models import Model, Tokenizer
    from .training.objectives import Objective
    from .training.settings import TrainResult, TrainSettings

Evaluate = Any  # a function from a model to figures


@dataclass(frozen=True)
class Start:
    """A model about to be trained.

    Attributes:
        model: On its device, in float32, with adapters if the stage asks for them.
        tokenizer: The model's.
        source: The checkpoint that it came from.
        groups: Names of its parameters by group; None where the folder does not tell.
    """

    model: Model
    tokenizer: Tokenizer
    source: Path
    groups: Mapping[str, Sequence[str]] | None


def load(job: Job, source: Path, *, document_mask: bool) -> Start:
    """The model of a checkpoint, checked and made ready: nothing of its weights is changed."""
    from .models import load_model, load_tokenizer
    from .training.lora import add_lora
    from .training.objectives import choose_attention, require_document_mask

    stage: TrainingStage = job.stage
    _refuse_quantised(source)
    if stage.lora and job.world is not None:
        raise RecipeError(f"stage {job.name}: lora runs on one device", next_step="leave it out, or run one rank")
    if stage.sample_prompts and job.world is not None:
        raise RecipeError(f"stage {job.name}: sample_prompts need one device", next_step="leave them out")
    # Sixteen bytes a parameter: the saved state in float32 (weights, two moments) and the exported weights.
    require_space(job.store.root, 16 * shape_of(source)["num_parameters"] * getattr(stage, "chunks", 1))
    model = load_model(source, str(job.world.device) if job.world else job.device)
    if document_mask:
        require_document_mask(model)
        choose_attention(model)
    groups = groups_of(source, model, stage)
    if stage.lora:
        model = add_lora(model, stage.lora.rank, stage.lora.alpha, stage.lora.targets, job.recipe.seed)
    return Start(model, load_tokenizer(source), source, groups)


def groups_of(source: Path, model: Any, stage: TrainingStage) -> Mapping[str, Sequence[str]] | None:
    from .growth.freeze import FREEZE_MAP_NAME, read_freeze_map

    if not stage.rates or not (source / FREEZE_MAP_NAME).exists():
        return None
    names = [name for name, _ in model.named_parameters()]
    return read_freeze_map(source).groups(names, within=stage.seam_width if "seam" in stage.rates else 0)


def train_stage(
    job: Job, folder: Path, start: Start, rows: Any, objective: Objective, num_steps: int, rows_per_step: int,
    evaluate: Evaluate, watch: Any = None, label: str = "",
) -> TrainResult:  # fmt: skip
    from .training.loop import train
    from .training.metrics import LOGGERS

    stage: TrainingStage = job.stage
    settings = settings_of(job, num_steps, rows_per_step)

    def measure(model: Any) -> dict[str, Any]:
        figures = evaluate(model)
        if stage.sample_prompts:
            figures["samples"] = _samples(job, model, start.tokenizer, stage.sample_prompts)
        return dict(figures)

    return train(
        start.model, rows, objective, settings, folder, world=job.world, groups=start.groups, evaluate=measure,
        watch=watch, label=label or job.name, progress=job.progress, **_moments(job, folder, start),
        loggers=[LOGGERS[name](folder, f"{job.recipe.name}-{job.name}") for name in stage.loggers],
    )  # fmt: skip


def settings_of(job: Job, num_steps: int, rows_per_step: int) -> TrainSettings:
    from .training.optimizers import GroupRate
    from .training.schedule import Schedule
    from .training.settings import TrainSettings

    stage: TrainingStage = job.stage
    on_gpu = job.device.startswith("cuda")
    return TrainSettings(
        Schedule(stage.schedule, num_steps, stage.warmup_steps, stage.decay_share, stage.final_factor),
        learning_rate=stage.learning_rate,
        rows_per_step=rows_per_step,
        weight_decay=stage.weight_decay,
        betas=stage.betas,
        clip_norm=stage.clip_norm,
        seed=job.recipe.seed,
        rates={group: GroupRate(rate.factor, rate.from_step) for group, rate in stage.rates.items()},
        precision=("mixed" if on_gpu else "float32") if stage.precision == "auto" else stage.precision,
        guard_sigmas=stage.guard_sigmas,
        eval_every=stage.eval_every,
        micro_batch_rows=stage.micro_batch_rows,
        checkpoint_every=stage.checkpoint_every,
        num_states=stage.num_states,
        recompute=stage.recompute,
        compile=stage.compile,
        **(_yardstick(job) if on_gpu else {}),
    )


def _moments(job: Job, folder: Path, start: Start) -> dict[str, Any]:
    """What a pretraining run does with the optimizer's moments before its first step and after its last."""
    stage = job.stage
    if not isinstance(stage, PretrainStage) or not (stage.keep_optimizer or stage.optimizer_from):
        return {}
    if job.world is not None or stage.lora:
        raise RecipeError(
            f"stage {job.name}: moments are kept and taken over on one device, without lora",
            next_step="leave keep_optimizer and optimizer_from out",
        )
    from .training.moments import load_moments, save_moments

    hooks: dict[str, Any] = {}
    if stage.keep_optimizer:
        hooks["end"] = lambda model, optimizer: save_moments(model, optimizer, folder)
    if stage.optimizer_from:
        origin, source = job.folders[stage.optimizer_from], start.source

        def begin(model: Any, optimizer: Any) -> None:
            load_moments(model, optimizer, origin, _sources(source, origin, model))

        hooks["begin"] = begin
    return hooks


def _sources(folder: Path, origin: Path, model: Any) -> dict[str, str | None]:
    """For a model that a surgery made: the base's parameter whose moments each takes, None where it is no copy.

    Empty where the moments are of a model that the same surgery made: then each takes its own.
    """
    from .growth.freeze import FREEZE_MAP_NAME, read_freeze_map

    ours, theirs = folder / FREEZE_MAP_NAME, origin / FREEZE_MAP_NAME
    if not ours.exists() or (theirs.exists() and theirs.read_bytes() == ours.read_bytes()):
        return {}
    return read_freeze_map(folder).sources(name for name, _ in model.named_parameters())


def _yardstick(job: Job) -> dict[str, Any]:
    """FLOPs of a token and the devices' peak, for the MFU of a run on GPUs; of LoRA's runs, as if all were trained."""
    import torch

    from .checkpoint.reader import open_checkpoint
    from .planning.compute import training_flops
    from .planning.hardware import peak_of
    from .planning.shapes import shape_of as sizes_of

    stage: TrainingStage = job.stage
    row_tokens = getattr(stage, "row_tokens", None) or 2 * getattr(stage, "max_tokens", 1024)
    shape = sizes_of(open_checkpoint(job.folders[stage.model]))
    peak = peak_of(torch.cuda.get_device_name(torch.device(job.device)))
    size = job.world.size if job.world else 1
    return {"flops_per_token": training_flops(shape, row_tokens), "peak_flops": peak * size if peak else None}


def _samples(job: Job, model: Any, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[dict[str, str]]:
    import torch
    from tqdm import tqdm

    from .generation.backend import Sampling
    from .generation.local import LocalBackend

    with torch.compiler.set_stance("force_eager"):  # compiled layers would be compiled for each length of the cache
        texts = LocalBackend(model, tokenizer).generate(prompts, Sampling(48))
    for prompt, text in zip(prompts, texts, strict=True):
        if job.progress:
            tqdm.write(f"{job.name}: {prompt!r} -> {text!r}")
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def export(job: Job, folder: Path, start: Start) -> None:
    """Write the trained weights as a checkpoint, adapters merged, with the freeze map of its surgery, and remove the
    saved state, which comes last: a failure before it goes on from there."""
    from .checkpoint.carry import carry
    from .growth.freeze import FREEZE_MAP_NAME
    from .models import export_model, load_model
    from .training.lora import merge_lora
    from .training.parallel import full_weights

    model = start.model
    if job.world is not None:
        weights = full_weights(model, job.world)
        if not job.world.is_first:
            job.world.wait()
            return
        model = load_model(start.source)
        model.load_state_dict(weights)
    if job.stage.lora:
        model = merge_lora(model)
    export_model(model, start.source, folder)
    carry(start.source, folder)
    if (start.source / FREEZE_MAP_NAME).exists():
        shutil.copyfile(start.source / FREEZE_MAP_NAME, folder / FREEZE_MAP_NAME)
    if not isinstance(job.stage, PretrainStage):
        _speak(folder, start, job.stage.template)
    shutil.rmtree(folder / "state", ignore_errors=True)
    if job.world is not None:
        job.world.wait()


def _speak(folder: Path, start: Start, template: str) -> None:
    """Let whoever loads the checkpoint speak to it as it was trained: its chat template, and where a turn ends."""
    from .data.chat import chat_encoder
    from .models import save_chat_template, stop_at

    encoder = chat_encoder(start.tokenizer, template)
    if encoder.template is not None:
        save_chat_template(folder, encoder.template.jinja(start.tokenizer.decode(list(encoder.prefix))))
    stop_at(folder, encoder.end_of_turn)


def num_steps_of(stage: SftStage | PreferenceStage, num_rows: int, rows_per_step: int) -> int:
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    num_steps = math.ceil(stage.epochs * num_rows / rows_per_step)
    if stage.warmup_steps >= num_steps:
        raise RecipeError(
            f"warmup_steps = {stage.warmup_steps} leaves none of the {num_steps} steps that {stage.epochs:g} epochs of"
            f" {num_rows:,} are",
            next_step="lower warmup_steps",
        )
    return num_steps


def totals(result: TrainResult) -> dict[str, Any]:
    return {
        "num_steps": result.num_steps,
        "num_tokens_seen": result.num_tokens_seen,
        "num_skipped": result.num_skipped,
        "held_out_loss": result.held_out_loss,
    }


def shape_of(folder: Path) -> dict[str, Any]:
    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint

    checkpoint = open_checkpoint(folder)
    stack = find_stack(checkpoint.tensors, checkpoint.config)
    return {"num_layers": stack.num_layers, "num_parameters": checkpoint.num_parameters}


def _refuse_quantised(folder: Path) -> None:
    from .checkpoint.reader import read_config

    if read_config(folder).get("quantization_config"):
        raise CheckpointError(
            f"{folder} holds quantised weights, which cannot be trained",
            next_step="train the model they were made from",
        )
