"""The stage kinds that train: continued pretraining, SFT, DPO and stepwise DPO. One engine, an objective each."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, RecipeError
from .files import require_space
from .stage_data import Job, held_out_pairs, held_out_rows, training_pairs, training_rows
from .stage_settings import PreferenceStage, PretrainStage, SdpoStage, SftStage, TrainingStage

if TYPE_CHECKING:  # torch is loaded when a stage runs
    from .data.packing import Rows
    from .data.pair_tokens import TokenizedPairs
    from .models import Model, Tokenizer
    from .training.objectives import Objective
    from .training.settings import TrainResult

Evaluate = Any  # a function from a model to figures


@dataclass(frozen=True)
class _Start:
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


def run_pretrain(job: Job, folder: Path) -> dict[str, Any]:
    """Continued pretraining; resumes from its own partial folder."""
    stage: PretrainStage = job.stage
    start = _load(job, job.folders[stage.model], document_mask=stage.document_mask)
    rows = training_rows(job, start.source, start.tokenizer)
    return _language(job, folder, start, rows, stage.steps, stage.rows_per_step, stage.eval_tokens)


def run_sft(job: Job, folder: Path) -> dict[str, Any]:
    """Supervised fine-tuning on conversations."""
    stage: SftStage = job.stage
    start = _load(job, job.folders[stage.model], document_mask=True)
    rows = training_rows(job, start.source, start.tokenizer)
    num_steps = _num_steps(stage, rows.num_rows, stage.rows_per_step)
    return _language(job, folder, start, rows, num_steps, stage.rows_per_step, stage.eval_tokens)


def _language(
    job: Job, folder: Path, start: _Start, rows: Rows, num_steps: int, rows_per_step: int, eval_tokens: int
) -> dict[str, Any]:
    """Train on the next token: what pretrain and sft have in common."""
    from .data.mixture import Mixture
    from .evaluation.heldout import held_out_loss
    from .training.heads import choose_head
    from .training.objectives import CausalLM

    stage = job.stage
    held_out = held_out_rows(job, start.source, start.tokenizer, eval_tokens)
    objective = CausalLM(choose_head(start.model))

    def evaluate(model: Any) -> dict[str, Any]:
        found = {
            part: held_out_loss(model, its, lambda m, b: objective(m, b).loss, rows_per_batch=stage.micro_batch_rows)
            for part, its in held_out.items()
        }
        num_tokens = sum(each.num_tokens for each in found.values())
        mean = sum(each.loss * each.num_tokens for each in found.values()) / num_tokens
        parts = {f"held_out_loss/{part}": each.loss for part, each in found.items()} if len(found) > 1 else {}
        return {"held_out_loss": mean, **parts}

    result = _train(job, folder, start, rows, objective, num_steps, rows_per_step, evaluate)
    _export(job, folder, start)
    seen = num_steps * rows_per_step
    epochs = rows.num_epochs(seen, job.recipe.seed) if isinstance(rows, Mixture) else round(seen / rows.num_rows, 4)
    counts = {
        name: getattr(rows, name)
        for name in ("num_truncated", "num_dropped")
        if isinstance(stage, SftStage) and not isinstance(rows, Mixture)
    }
    return {**_totals(result), "num_epochs": epochs, **counts, **_shape(start.source)}


def run_dpo(job: Job, folder: Path) -> dict[str, Any]:
    """Preference training; the model before its first update is the reference."""
    stage: PreferenceStage = job.stage
    start = _load(job, job.folders[stage.model], document_mask=True)
    pairs = training_pairs(job, start.source, start.tokenizer)
    found = _prefer(job, folder, start, pairs)
    _export(job, folder, start)
    return {**found, "num_pairs": pairs.num_pairs, "dropped": dict(pairs.dropped), **_shape(start.source)}


def run_sdpo(job: Job, folder: Path) -> dict[str, Any]:
    """DPO in steps: each chunk of pairs starts from the model of the one before, which is its reference.

    Every step's model stays in ``chunk-K``: they are candidates for merging.
    """
    import numpy as np

    from .training.heads import choose_head
    from .training.reference import order_chunks, reward_accuracy, split_into_chunks

    stage: SdpoStage = job.stage
    source = job.folders[stage.model]
    start = _load(job, source, document_mask=True)
    pairs = training_pairs(job, source, start.tokenizer)
    first = _reference(job, start, pairs, choose_head(start.model))(start.model).reference
    assert first is not None
    chunks = split_into_chunks(
        pairs.num_pairs, stage.chunks, job.recipe.seed, stage.chunk_by, sources=pairs.sources, log_probs=first
    )
    accuracies = [reward_accuracy(first[chunk]) for chunk in chunks]
    order = order_chunks([np.asarray([number]) for number in range(len(chunks))], accuracies)
    steps: list[dict[str, Any]] = []
    for place, (number,) in enumerate(order, 1):
        where = folder / f"chunk-{place}"
        told = {"num_pairs": len(chunks[number]), "reference_accuracy": round(accuracies[number], 4)}
        if not (where / "done.json").exists():
            where.mkdir(exist_ok=True)
            if steps:
                start = _load(job, source, document_mask=True)
            found = _prefer(job, where, start, pairs.subset(chunks[number]), f"{job.name} {place}/{len(chunks)}")
            _export(job, where, start)
            if job.world is None or job.world.is_first:
                _write_json(where / "done.json", {**told, **found})
            if job.world is not None:
                job.world.wait()
        steps.append(_read_json(where / "done.json"))
        source = where
    if job.world is None or job.world.is_first:
        for path in source.iterdir():
            if path.is_file() and path.name != "done.json":
                shutil.copyfile(path, folder / path.name)
    return {"chunks": steps, "num_pairs": pairs.num_pairs, **_shape(job.folders[stage.model])}


# -- preferences ------------------------------------------------------------------------------------------------------


def _prefer(job: Job, folder: Path, start: _Start, pairs: TokenizedPairs, label: str = "") -> dict[str, Any]:
    """One run of preference training on some pairs."""
    from .training.dpo import alarms, dpo
    from .training.heads import choose_head

    stage: PreferenceStage = job.stage
    head = choose_head(start.model)
    objective = dpo(stage.variant, stage.beta, stage.label_smoothing, stage.nll_weight, stage.gamma, head=head)
    num_steps = _num_steps(stage, pairs.num_pairs, stage.pairs_per_step)
    unseen = held_out_pairs(job, start.source, start.tokenizer, stage.eval_pairs)
    held_out: list[Any] = []
    history: list[dict[str, float]] = []

    def rows(model: Any) -> Rows:
        """Both sides with the reference's log-probabilities, from the model as it is before its first update."""
        held_out.append(_reference(job, start, unseen, head)(model))
        return _reference(job, start, pairs, head, check=True)(model)

    def evaluate(model: Any) -> dict[str, Any]:
        return _measure_pairs(model, held_out[0], objective, stage.micro_batch_rows)

    def watch(line: dict[str, Any]) -> Sequence[str]:
        if line.get("loss") is None:
            return ()
        history.append(line)
        return alarms(history)

    result = _train(
        job, folder, start, rows, objective, num_steps, stage.pairs_per_step, evaluate, watch, label or job.name
    )
    return {**_totals(result), "num_epochs": round(num_steps * stage.pairs_per_step / pairs.num_pairs, 4)}


def _reference(job: Job, start: _Start, pairs: TokenizedPairs, head: Any, check: bool = False) -> Callable[[Any], Any]:
    """From the model before its first update to rows of pairs, with its log-probabilities if they are needed."""
    from .data.pairs import PairRows
    from .training.dpo import answer_logps
    from .training.reference import reference_log_probs, require_reference

    stage: PreferenceStage = job.stage
    rows = PairRows(pairs, stage.row_tokens or 2 * stage.max_tokens)

    def log_probs(model: Any, batch: Any) -> Any:
        return answer_logps(head, model, batch)

    def make(model: Any) -> Any:
        if stage.variant == "simpo" and not isinstance(stage, SdpoStage):
            return rows
        key = {"weights": job.store.digests.of_checkpoint(start.source), "stage": "reference"}
        found = reference_log_probs(
            model, rows, job.store.root / "reference", key, rows_per_batch=stage.micro_batch_rows, log_probs=log_probs,
            label=f"{job.name}: reference", progress=job.progress,
        )  # fmt: skip
        with_reference = PairRows(pairs, rows.row_tokens, found)
        if check:
            require_reference(model, with_reference, log_probs=log_probs)
        return with_reference

    return make


def _measure_pairs(model: Any, rows: Any, objective: Objective, rows_per_batch: int) -> dict[str, float]:
    """Mean loss and figures of held-out pairs."""
    import torch

    training = model.training
    model.eval()
    sums: dict[str, float] = {}
    with torch.no_grad():
        for batch in rows.in_order(rows_per_batch):
            measured = objective(model, batch)
            for name, value in {"held_out_loss": measured.loss, **measured.sums}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
    model.train(training)
    wanted = ("held_out_loss", "rewards/accuracies", "rewards/margins")
    names = {"rewards/accuracies": "held_out_accuracy", "rewards/margins": "held_out_margin"}
    return {names.get(name, name): sums[name] / rows.num_rows for name in wanted}


# -- shared -----------------------------------------------------------------------------------------------------------


def _load(job: Job, source: Path, *, document_mask: bool) -> _Start:
    """The model of a checkpoint, checked and made ready: nothing of its weights is changed."""
    from .models import add_lora, load_model, load_tokenizer
    from .training.objectives import choose_attention, require_document_mask

    stage: TrainingStage = job.stage
    _refuse_quantised(source)
    if stage.lora and job.world is not None:
        raise RecipeError(f"stage {job.name}: lora runs on one device", next_step="leave it out, or run one rank")
    if stage.sample_prompts and job.world is not None:
        raise RecipeError(f"stage {job.name}: sample_prompts need one device", next_step="leave them out")
    # Sixteen bytes a parameter: the saved state in float32 (weights, two moments) and the exported weights.
    require_space(job.store.root, 16 * _shape(source)["num_parameters"] * getattr(stage, "chunks", 1))
    model = load_model(source, str(job.world.device) if job.world else job.device)
    if document_mask:
        require_document_mask(model)
        choose_attention(model)
    groups = _groups(source, model, stage)
    if stage.lora:
        model = add_lora(model, stage.lora.rank, stage.lora.alpha, stage.lora.targets, job.recipe.seed)
    return _Start(model, load_tokenizer(source), source, groups)


def _groups(source: Path, model: Any, stage: TrainingStage) -> Mapping[str, Sequence[str]] | None:
    from .growth.freeze import FREEZE_MAP_NAME, read_freeze_map

    if not stage.rates or not (source / FREEZE_MAP_NAME).exists():
        return None
    names = [name for name, _ in model.named_parameters()]
    return read_freeze_map(source).groups(names, within=stage.seam_width if "seam" in stage.rates else 0)


def _train(
    job: Job, folder: Path, start: _Start, rows: Any, objective: Objective, num_steps: int, rows_per_step: int,
    evaluate: Evaluate, watch: Any = None, label: str = "",
) -> TrainResult:  # fmt: skip
    from .training.loop import train
    from .training.metrics import LOGGERS
    from .training.schedule import Schedule
    from .training.settings import GroupRate, TrainSettings

    stage: TrainingStage = job.stage
    on_gpu = job.device.startswith("cuda")
    settings = TrainSettings(
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
    )

    def measure(model: Any) -> dict[str, Any]:
        figures = evaluate(model)
        if stage.sample_prompts:
            figures["samples"] = _samples(job, model, start.tokenizer, stage.sample_prompts)
        return dict(figures)

    return train(
        start.model, rows, objective, settings, folder, world=job.world, groups=start.groups, evaluate=measure,
        watch=watch, loggers=[LOGGERS[name](folder, f"{job.recipe.name}-{job.name}") for name in stage.loggers],
        label=label or job.name, progress=job.progress,
    )  # fmt: skip


def _samples(job: Job, model: Any, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[dict[str, str]]:
    from tqdm import tqdm

    from .generation.backend import Sampling
    from .generation.local import LocalBackend

    texts = LocalBackend(model, tokenizer).generate(prompts, Sampling(48))
    for prompt, text in zip(prompts, texts, strict=True):
        if job.progress:
            tqdm.write(f"{job.name}: {prompt!r} -> {text!r}")
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def _export(job: Job, folder: Path, start: _Start) -> None:
    """Write the trained weights as a checkpoint, adapters merged, and remove the saved state, which comes last: a
    failure before it goes on from there."""
    from .checkpoint.carry import carry
    from .models import export_model, load_model, merge_lora
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
    shutil.rmtree(folder / "state", ignore_errors=True)
    if job.world is not None:
        job.world.wait()


def _num_steps(stage: SftStage | PreferenceStage, num_rows: int, rows_per_step: int) -> int:
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


def _totals(result: TrainResult) -> dict[str, Any]:
    return {
        "num_steps": result.num_steps,
        "num_tokens_seen": result.num_tokens_seen,
        "num_skipped": result.num_skipped,
        "held_out_loss": result.held_out_loss,
    }


def _shape(folder: Path) -> dict[str, Any]:
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


def _write_json(path: Path, value: Any) -> None:
    from .files import write_json

    write_json(path, value)


def _read_json(path: Path) -> Any:
    import json

    return json.loads(path.read_text(encoding="utf-8"))
