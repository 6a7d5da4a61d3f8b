"""A whole probe of a model: what ``probe.json`` holds. docs/probe.md says how to read it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..errors import DepthupError, PlanError
from ..layers import LayerPlan
from ..models import Model
from . import similarity
from .maps import Kind, Ledger, can_run, ledger_key, map_json, map_plans, map_positions
from .seams import joined_one_by_one, seam_report, upscaling_seam, weight_change
from .similarity import residual_stream, rounded
from .virtual import Loss, Tower, find_tower, iterate_losses, summarise

FORM = 1  # of probe.json; raised when a reader must know
KINDS: tuple[Kind, ...] = ("drop", "duplicate")


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        tried: Plans by name, beside depth up-scaling with every m.
        maps: Whether to make the heat maps.
        map_rows: The first so many rows are used for them, at least 2.
        stride: Of their positions; see :func:`~depthup.probe.maps.map_positions`.
        stack: Prefix of the layers, where the model has several stacks.
    """

    tried: Mapping[str, LayerPlan] = field(default_factory=dict)
    maps: bool = True
    map_rows: int = 4
    stride: int | None = None
    stack: str | None = None


def probe_model(
    model: Model,
    rows: Tensor,
    wanted: Wanted | None = None,
    *,
    trained: tuple[Model, LayerPlan] | None = None,
    ledger: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Everything that ``probe.json`` holds, but where model and text came from.

    Args:
        model: The base, loaded.
        rows: Token ids [rows, tokens], best each from a document of its own.
        wanted: What to measure.
        trained: A target of this base after training, and the plan that made it.
        ledger: A file that keeps losses as they are found; a stopped probe goes on from it.
        progress: Whether to show a bar with the time that is left.

    Raises:
        DepthupError: There are fewer than two rows.
        PlanError, CheckpointError: See :func:`~depthup.probe.virtual.virtual_stack`.
    """
    wanted = wanted or Wanted()
    clock = _Clock()
    tower = find_tower(model, wanted.stack)
    n, map_rows = tower.stack.num_layers, rows[: wanted.map_rows]
    if min(rows.shape[0], map_rows.shape[0], rows.shape[1]) < 2:
        raise DepthupError(f"{map_rows.shape[0]} rows of {rows.shape[1]} tokens", allowed="at least 2 of each")
    sweep = {LayerPlan.upscale(n, m): m for m in range((n + 1) // 2)}
    singles = [LayerPlan.drop(n, [layer]) for layer in range(n)] if n > 1 else []
    positions = map_positions(n, wanted.stride)
    maps = {kind: map_plans(kind, n, positions) for kind in KINDS} if wanted.maps else {}
    book = Ledger(ledger, ledger_key(tower, rows))
    stream = residual_stream(tower, rows)
    with _bar(progress, "similarity", n + 1):
        found: dict[str, Any] = {
            "form": FORM,
            "depthup": __version__,
            "num_layers": n,
            "hidden_size": stream.shape[-1],
            "rows": list(rows.shape),
            "similarity": similarity.as_json(stream),
            "lens": _lens(tower, rows),
        }
    clock.stop("similarity")
    tried = [one for plan in wanted.tried.values() for one in [plan, *joined_one_by_one(plan)]]
    losses = _losses(book, tower, [*sweep, *tried], rows, progress, "plans")
    base = losses[tower.base_plan]
    found["base"] = {"loss": rounded(base.mean), "standard_error": rounded(base.standard_error)}
    found["upscale"] = [
        {"num_removed": m, **_plan_json(losses[plan]), "seams": _with_jumps(plan, upscaling_seam(plan, stream), losses)}
        for plan, m in sweep.items()
        if plan in losses
    ]
    found["tried"] = [
        {"name": name, **_plan_json(losses[plan]), "seams": _tried_seams(tower, plan, rows, stream, losses)}
        for name, plan in _runnable(tower, wanted.tried).items()
    ]
    clock.stop("plans")
    if trained is not None:
        found["trained"] = _trained(tower, *trained, rows, map_rows, stream, base, progress)
        clock.stop("trained")
    cells = _losses(book, tower, [*singles, *(one for plans in maps.values() for one in plans.values())], map_rows,
                    progress, "maps")  # fmt: skip
    found["without_layer"] = [_difference(cells.get(plan)) for plan in singles]
    found["maps"] = {
        kind: map_json(positions, {run: cells[plan] for run, plan in plans.items() if plan in cells})
        for kind, plans in maps.items()
    }
    found["map_rows"] = map_rows.shape[0]
    clock.stop("maps")
    found["seconds"] = clock.spent
    return found


class _Clock:
    """Seconds that each part takes, of wall clock and of processor."""

    def __init__(self) -> None:
        self.spent: dict[str, dict[str, float]] = {}
        self.now = time.perf_counter(), time.process_time()

    def stop(self, part: str) -> None:
        """End a part; the next one begins."""
        now = time.perf_counter(), time.process_time()
        wall, processor = (round(after - before, 1) for after, before in zip(now, self.now, strict=True))
        self.spent[part], self.now = {"wall": wall, "processor": processor}, now


def _bar(progress: bool, label: str, total: int) -> Any:
    return tqdm(total=total, desc=label, unit="layer", disable=not progress, dynamic_ncols=True, leave=False)


def _losses(
    book: Ledger, tower: Tower, plans: Sequence[LayerPlan], rows: Tensor, progress: bool, label: str
) -> dict[LayerPlan, Loss]:
    with _bar(progress, label, book.count(tower, plans, len(rows))) as bar:
        return book.losses(tower, plans, rows, bar.update)


def _lens(tower: Tower, rows: Tensor) -> dict[str, Any]:
    lens = similarity.logit_lens(tower, rows)
    return {
        "loss": rounded(lens.loss),
        "divergence": rounded(lens.divergence),
        "agreement": rounded(lens.agreement),
    }


def _plan_json(loss: Loss) -> dict[str, Any]:
    plan = loss.plan
    return {"layers": plan.text, "num_target_layers": plan.num_target_layers, **_loss_json(loss)}


def _loss_json(loss: Loss) -> dict[str, Any]:
    keys = ("mean", "standard_error", "difference", "difference_error")
    return {key.replace("mean", "loss"): rounded(getattr(loss, key)) for key in keys}


def _difference(loss: Loss | None) -> list[float] | None:
    """What a layer is worth: the loss that it saves, and the standard error of that; None where it cannot be told."""
    return None if loss is None else [rounded(loss.difference), rounded(loss.difference_error)]


def _runnable(tower: Tower, plans: Mapping[str, LayerPlan]) -> Mapping[str, LayerPlan]:
    for name, plan in plans.items():
        if not can_run(tower, plan):
            raise PlanError(
                f"the model's config cannot say the plan '{name}'", next_step="see `depthup layers` for what it breaks"
            )
    return plans


def _tried_seams(
    tower: Tower, plan: LayerPlan, rows: Tensor, home: Tensor, losses: Mapping[LayerPlan, Loss]
) -> list[dict[str, Any]]:
    return _with_jumps(plan, seam_report(plan, residual_stream(tower, rows, plan), home), losses)


def _with_jumps(
    plan: LayerPlan, seams: Sequence[dict[str, Any]], losses: Mapping[LayerPlan, Loss]
) -> list[dict[str, Any]]:
    """The seams with what each adds to the loss; None where a plan with the first of them alone cannot be run."""
    totals = [0.0, *(losses[part].difference if part in losses else None for part in joined_one_by_one(plan))]
    jumps = [None if a is None or b is None else rounded(b - a) for a, b in pairwise(totals)]
    return [{**seam, "loss_jump": jump} for seam, jump in zip(seams, jumps, strict=True)]


def _trained(
    tower: Tower, model: Model, plan: LayerPlan, rows: Tensor, map_rows: Tensor, home: Tensor, base: Loss,
    progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """The target of a plan before and after training: loss, seams, lens, what each layer and each copy is worth."""
    after, s = find_tower(model, tower.stack.prefix), plan.num_target_layers
    change = weight_change(tower, after, plan)
    without = {str(target): LayerPlan.drop(s, [target]) for target in range(s)}
    again = [target for target in plan.new if plan.sources[target] in plan.duplicated]
    first = [plan.targets_of(source)[0] for source in plan.duplicated]
    if again:
        without |= {"second copies": LayerPlan.drop(s, again), "first copies": LayerPlan.drop(s, first)}
    sides: dict[str, Any] = {"layers": plan.text, "change": change}
    whole = LayerPlan(s, tuple(range(s)))
    for side, where, plans in (
        ("before", tower, {name: plan.then(one) for name, one in without.items()}),
        ("after", after, without),
    ):
        here = plan if side == "before" else whole
        [(_, loss)] = iterate_losses(where, [here], rows)
        told = [here, *plans.values()]
        with _bar(progress, f"{side} training", sum(one.num_target_layers for one in told) // 2) as bar:
            found = dict(iterate_losses(where, told, map_rows, bar.update))
        stream = residual_stream(where, rows, here)
        worth = {name: _difference(summarise(one, found[place], found[0]))
                 for place, (name, one) in enumerate(plans.items(), 1)}  # fmt: skip
        sides[side] = {
            **_loss_json(summarise(here, loss, _tensor(base))),
            "seams": seam_report(plan, stream, home),
            "influence": rounded(similarity.block_influence(stream).tolist()),
            "rms": rounded(similarity.stream_rms(stream).tolist()),
            "without_layer": [worth[str(target)] for target in range(s)],
            "without_second_copies": worth.get("second copies"),
            "without_first_copies": worth.get("first copies"),
        }
    sides["after"]["lens"] = _lens(after, rows)
    return sides


def _tensor(loss: Loss) -> Any:
    import torch

    return torch.tensor(loss.rows).double()
