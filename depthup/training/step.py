"""One optimiser update on a global batch, over micro-batches and ranks. On one device nothing waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..data.packing import Batch
from ..errors import TrainingError
from .guard import Guard
from .objectives import Objective
from .optimizers import set_rates
from .parallel import World, alone
from .settings import TrainSettings

_OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    settings: TrainSettings,
    step: int,
    *,
    world: World | None = None,
    guard: Guard | None = None,
) -> dict[str, Tensor]:
    """One update on a global batch; each target (or pair) has the same weight, however rows are split.

    Args:
        model: On its device.
        optimizer: Of :func:`~depthup.training.optimizers.make_optimizer`.
        objective: Summed loss of a batch.
        batch: The global batch, the same on every rank; each takes its share of the rows.
        settings: See :class:`TrainSettings`.
        step: From 0.
        world: The ranks that share the batch.
        guard: Decides whether the update is left out; without it every update is made.

    Returns:
        Scalars on the device, the same on every rank: ``loss`` (nats per target, or per pair), ``grad_norm`` (before
        clipping), ``skipped`` (0 or 1), and the means of the objective's other figures: ``loss/SOURCE`` over the
        targets of that source in the batch, all others over its units.

    Raises:
        TrainingError: The device's memory is full.
    """
    world = world or alone(next(model.parameters()).device)
    model.train()
    set_rates(optimizer, settings.learning_rate * settings.schedule.factor(step), step)
    torch.manual_seed(hash((settings.seed, step, world.rank)))
    of_source = {f"loss/{name}": count for name, count in batch.targets_by_source().items()}
    sums: dict[str, Tensor] = {"loss": torch.zeros((), device=world.device)}
    num_units = batch.num_units
    for micro_batch, weight in _share(batch, world, settings.micro_batch_rows):
        with _explained(settings, batch):
            measured = objective(model, micro_batch)
            loss = measured.loss * (weight / num_units)
            (loss * world.size).backward()  # FSDP takes the mean over ranks
        for name, value in {"loss": loss.detach(), **measured.sums}.items():
            factor = 1.0 if name == "loss" else weight / of_source.get(name, num_units)
            sums[name] = sums.get(name, 0.0) + value.detach() * factor
    if not of_source.keys().isdisjoint(sums):  # as many figures on every rank, whichever sources its rows have
        sums = {name: torch.zeros((), device=world.device) for name in of_source} | sums
    names = sorted(sums)
    values = dict(zip(names, world.sum(torch.stack([sums[name].float() for name in names])), strict=True))
    with _explained(settings, batch):
        norm: Any = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    values["grad_norm"] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    skip = guard.judge(values["loss"], values["grad_norm"]) if guard else torch.zeros((), device=world.device)
    with _explained(settings, batch):  # the first update makes the moments
        _update(optimizer, skip, world, (settings.seed, step))
    optimizer.zero_grad()
    return {**values, "skipped": skip}


def _update(optimizer: torch.optim.Optimizer, skip: Tensor, world: World, seed: tuple[int, int]) -> None:
    """Step unless ``skip`` is 1. On one device the fused kernel reads it; sharded, ranks agree on it by the host.

    Copies of one shard draw the same random numbers for its rounding, or they would drift apart.
    """
    if world.mesh is not None:
        torch.manual_seed(hash((*seed, world.mesh.get_local_rank("shard"))))
        if not skip.item():
            optimizer.step()
        return
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def _share(batch: Batch, world: World, micro_batch_rows: int) -> Iterator[tuple[Batch, float]]:
    """This rank's micro-batches, with a weight: as many on every rank, since each takes part in every collective.

    Where a rank has no row left, or rows without a target, it computes the first row again and weighs it 0.
    """
    each = -(-batch.num_rows // world.size)
    end = min((world.rank + 1) * each, batch.num_rows)
    for offset in range(0, each, micro_batch_rows):
        start = world.rank * each + offset
        rows = batch.rows(min(start, end), min(start + micro_batch_rows, end))
        if rows.num_rows and rows.num_units:
            yield rows, 1.0
        elif world.size > 1:
            first = next(row for row in range(batch.num_rows) if batch.rows(row, row + 1).num_units)
            yield batch.rows(first, first + 1), 0.0


@contextlib.contextmanager
def _explained(settings: TrainSettings, batch: Batch) -> Iterator[None]:
    """Turn a device's message that its memory is full into what to change."""
    try:
        yield
    except RuntimeError as error:
        if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise out_of_memory(settings, batch) from error
        raise


def out_of_memory(settings: TrainSettings, batch: Batch) -> TrainingError:
    """What to change, by how much, when memory does not hold a step."""
    rows, advice = settings.micro_batch_rows, []
    if rows > 1:
        advice.append(f"micro_batch_rows: {max(1, rows // 2)} (now {rows}; the result stays the same)")
    if settings.recompute != "full":
        advice.append(f"recompute: {'selective' if settings.recompute == 'none' else 'full'}")
    if settings.precision == "float32":
        advice.append("precision: mixed (half the activations), or bfloat16 (also 4 bytes a parameter less)")
    advice.append("more ranks, or lora")
    return TrainingError(
        f"the memory of the device does not hold {rows} rows of {batch.input_ids.shape[1]} tokens in one pass",
        next_step="in this order: " + "; ".join(advice) + "; `depthup plan` tells what fits",
    )
