"""The stage kinds that train: continued pretraining, SFT, DPO and stepwise DPO. One engine, an objective each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RecipeError
from .stage_data import Job, held_out_pairs, held_out_rows, training_pairs, training_rows
from .stage_settings import PreferenceStage, PretrainStage, SdpoStage, SftStage, TrainingStage
from .training_run import Start, export, load, num_steps_of, settings_of, shape_of, totals, train_stage

if TYPE_CHECKING:  # torch is loaded when a stage runs
    from .data.packing import Rows
    from .data.pair_tokens import TokenizedPairs
    from .models import Tokenizer
    from .training.objectives import Objective
    from .training.rates import RangeTest


def run_pretrain(job: Job, folder: Path) -> dict[str, Any]:
    """Continued pretraining; resumes from its own partial folder."""
    stage: PretrainStage = job.stage
    start = load(job, job.folders[stage.model], document_mask=stage.document_mask)
    rows = training_rows(job, start.source, start.tokenizer)
    return _language(job, folder, start, rows, stage.steps, stage.rows_per_step, stage.eval_tokens)


def run_sft(job: Job, folder: Path) -> dict[str, Any]:
    """Supervised fine-tuning on conversations."""
    stage: SftStage = job.stage
    start = load(job, job.folders[stage.model], document_mask=True)
    rows = training_rows(job, start.source, start.tokenizer)
    num_steps = num_steps_of(stage, rows.num_rows, stage.rows_per_step)
    return _language(job, folder, start, rows, num_steps, stage.rows_per_step, stage.eval_tokens)


def _language(
    job: Job, folder: Path, start: Start, rows: Rows, num_steps: int, rows_per_step: int, eval_tokens: int
) -> dict[str, Any]:
    """Train on the next token: what pretrain and sft have in common."""
    from .data.mixture import Mixture
    from .evaluation.heldout import held_out_loss
    from .training.balance import choose_balance
    from .training.heads import choose_head
    from .training.objectives import CausalLM

    stage = job.stage
    held_out = held_out_rows(job, start.source, start.tokenizer, eval_tokens)
    head = choose_head(start.model)
    objective = CausalLM(head, choose_balance(start.model, stage.router_loss))

    def evaluate(model: Any) -> dict[str, Any]:
        found = {
            part: held_out_loss(model, its, head.summed_loss, rows_per_batch=stage.micro_batch_rows)
            for part, its in held_out.items()
        }
        num_tokens = sum(each.num_tokens for each in found.values())
        mean = sum(each.loss * each.num_tokens for each in found.values()) / num_tokens
        parts = {f"held_out_loss/{part}": each.loss for part, each in found.items()} if len(found) > 1 else {}
        return {"held_out_loss": mean, **parts}

    result = train_stage(job, folder, start, rows, objective, num_steps, rows_per_step, evaluate)
    export(job, folder, start)
    seen = num_steps * rows_per_step
    epochs = rows.num_epochs(seen, job.recipe.seed) if isinstance(rows, Mixture) else round(seen / rows.num_rows, 4)
    counts = {
        name: getattr(rows, name)
        for name in ("num_truncated", "num_dropped")
        if isinstance(stage, SftStage) and not isinstance(rows, Mixture)
    }
    return {**totals(result), "num_epochs": epochs, **counts, **shape_of(start.source)}


def run_dpo(job: Job, folder: Path) -> dict[str, Any]:
    """Preference training; the model before its first update is the reference."""
    stage: PreferenceStage = job.stage
    start = load(job, job.folders[stage.model], document_mask=True)
    pairs = training_pairs(job, start.source, start.tokenizer)
    found = _prefer(job, folder, start, pairs)
    export(job, folder, start)
    return {**found, "num_pairs": pairs.num_pairs, "dropped": dict(pairs.dropped), **shape_of(start.source)}


def run_sdpo(job: Job, folder: Path) -> dict[str, Any]:
    """DPO in steps: each chunk of pairs starts from the model of the one before, which is its reference.

    Every step's model stays in ``chunk-K``: they are candidates for merging.
    """
    import numpy as np

    from .training.heads import choose_head
    from .training.reference import order_chunks, reward_accuracy, split_into_chunks

    stage: SdpoStage = job.stage
    source = job.folders[stage.model]
    start = load(job, source, document_mask=True)
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
                start = load(job, source, document_mask=True)
            found = _prefer(job, where, start, pairs.subset(chunks[number]), f"{job.name} {place}/{len(chunks)}")
            export(job, where, start)
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
    return {"chunks": steps, "num_pairs": pairs.num_pairs, **shape_of(job.folders[stage.model])}


# -- to look at before a run ------------------------------------------------------------------------------------------


def rows_to_look_at(job: Job) -> tuple[Rows, Tokenizer, int]:
    """The rows of a training stage, the tokenizer, and how many rows (or pairs) a step has; no model is loaded.

    Raises:
        RecipeError: The stage does not train.
    """
    from .data.pairs import PairRows
    from .models import load_tokenizer

    stage = job.stage
    if not isinstance(stage, TrainingStage):
        raise RecipeError(
            f"stage '{job.name}' is of kind {stage.kind}, which trains on nothing", allowed="pretrain, sft, dpo, sdpo"
        )
    source = job.folders[stage.model]
    tokenizer = load_tokenizer(source)
    if isinstance(stage, PreferenceStage):
        pairs = training_pairs(job, source, tokenizer)
        return PairRows(pairs, stage.row_tokens or 2 * stage.max_tokens), tokenizer, stage.pairs_per_step
    return training_rows(job, source, tokenizer), tokenizer, stage.rows_per_step


def range_test(job: Job, low: float, high: float, num_steps: int, tell: Callable[..., object]) -> RangeTest:
    """Rising learning rates on the stage's own model and rows."""
    from .training.dpo import dpo
    from .training.heads import choose_head
    from .training.objectives import CausalLM
    from .training.rates import find_rates

    stage: TrainingStage = job.stage
    rows, _, rows_per_step = rows_to_look_at(job)
    start = load(job, job.folders[stage.model], document_mask=getattr(stage, "document_mask", True))
    objective: Objective = CausalLM(choose_head(start.model))
    if isinstance(stage, PreferenceStage):
        head = choose_head(start.model)
        pairs = training_pairs(job, start.source, start.tokenizer)
        rows = _reference(job, start, pairs, head, num_steps)(start.model)
        objective = dpo(stage.variant, stage.beta, stage.label_smoothing, stage.nll_weight, stage.gamma, head=head)
    settings = settings_of(job, num_steps, rows_per_step)
    return find_rates(start.model, rows, objective, settings, low=low, high=high, num_steps=num_steps, tell=tell)


# -- preferences ------------------------------------------------------------------------------------------------------


def _prefer(job: Job, folder: Path, start: Start, pairs: TokenizedPairs, label: str = "") -> dict[str, Any]:
    """One run of preference training on some pairs."""
    from .training.dpo import alarms, dpo
    from .training.heads import choose_head

    stage: PreferenceStage = job.stage
    head = choose_head(start.model)
    objective = dpo(stage.variant, stage.beta, stage.label_smoothing, stage.nll_weight, stage.gamma, head=head)
    num_steps = num_steps_of(stage, pairs.num_pairs, stage.pairs_per_step)
    unseen = held_out_pairs(job, start.source, start.tokenizer, stage.eval_pairs)
    held_out: list[Any] = []
    history: list[dict[str, float]] = []

    def rows(model: Any) -> Rows:
        """Both sides with the reference's log-probabilities, from the model as it is before its first update."""
        held_out.append(_reference(job, start, unseen, head)(model))
        return _reference(job, start, pairs, head, num_steps, check=True)(model)

    def evaluate(model: Any) -> dict[str, Any]:
        return _measure_pairs(model, held_out[0], objective, stage.micro_batch_rows)

    def watch(line: dict[str, Any]) -> Sequence[str]:
        if line.get("loss") is None:
            return ()
        history.append(line)
        return alarms(history)

    result = train_stage(
        job, folder, start, rows, objective, num_steps, stage.pairs_per_step, evaluate, watch, label or job.name
    )
    return {**totals(result), "num_epochs": round(num_steps * stage.pairs_per_step / pairs.num_pairs, 4)}


def _reference(
    job: Job, start: Start, pairs: TokenizedPairs, head: Any, num_steps: int | None = None, check: bool = False
) -> Callable[[Any], Any]:
    """From the model before its first update to rows of pairs, with its log-probabilities if they are needed.

    With ``num_steps``, of those pairs alone that so many steps see; the others' are not numbers.
    """
    import numpy as np

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
        seen = np.arange(pairs.num_pairs)
        if num_steps is not None:
            seen = rows.pairs_of_run(num_steps, stage.pairs_per_step, job.recipe.seed)
        part = rows if len(seen) == pairs.num_pairs else replace(rows, pairs=pairs.subset(seen))
        found = reference_log_probs(
            model, part, job.store.root / "reference", key, rows_per_batch=stage.micro_batch_rows, log_probs=log_probs,
            label=f"{job.name}: reference", progress=job.progress,
        )  # fmt: skip
        if check:
            require_reference(model, replace(part, reference=found), log_probs=log_probs)
        if part is not rows:
            all_pairs = np.full((pairs.num_pairs, 2), np.nan)
            all_pairs[seen] = found
            found = all_pairs
        return replace(rows, reference=found)

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


def _write_json(path: Path, value: Any) -> None:
    from .files import write_json

    write_json(path, value)


def _read_json(path: Path) -> Any:
    import json

    return json.loads(path.read_text(encoding="utf-8"))
