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
from .tower import Tower, entries_of, find_tower
from .virtual import Loss, count_layers, iterate_losses, summarise

FORM = 1  # of probe.json; raised when a reader must know
KINDS: tuple[Kind, ...] = ("drop", "duplicate")


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        tried: Plans by name, beside depth up-scaling with every m.
        maps: Whether to make the heat maps.
        map_rows: The first so many rows are used for them and for the logit lens, at least 2.
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
    tower, map_rows = find_tower(model, wanted.stack), rows[: wanted.map_rows]
    if min(rows.shape[0], map_rows.shape[0], rows.shape[1]) < 2:
        raise DepthupError(f"{map_rows.shape[0]} rows of {rows.shape[1]} tokens", allowed="at least 2 of each")
    _require_runnable(tower, wanted.tried)
    book = Ledger(ledger, ledger_key(tower, rows))
    look = _Look(tower, rows, map_rows, residual_stream(tower, rows), book, progress)
    found: dict[str, Any] = {
        "form": FORM,
        "depthup": __version__,
        "num_layers": tower.stack.num_layers,
        "hidden_size": look.stream.shape[-1],
        "rows": list(rows.shape),
        "map_rows": len(map_rows),
        "similarity": similarity.as_json(look.stream),
        "lens": _lens(tower, map_rows, progress),
    }
    clock.stop("similarity")
    found |= _plans(look, wanted.tried)
    clock.stop("plans")
    if trained is not None:
        found["trained"] = _trained(look, *trained)
        clock.stop("trained")
    found |= _maps(look, wanted)
    clock.stop("maps")
    return {**found, "seconds": clock.spent}


@dataclass(frozen=True)
class _Look:
    """A model under the glass: its layers, all rows and those for the maps, its stream on all, what is known of losses.

    ``stream`` is [layers + 1, tokens, hidden].
    """

    tower: Tower
    rows: Tensor
    map_rows: Tensor
    stream: Tensor
    book: Ledger
    progress: bool

    def losses(self, plans: Sequence[LayerPlan], rows: Tensor, label: str) -> dict[LayerPlan, Loss]:
        with _bar(self.progress, label, self.book.count(self.tower, plans, len(rows))) as bar:
            return self.book.losses(self.tower, plans, rows, bar.update)


def _plans(look: _Look, tried: Mapping[str, LayerPlan]) -> dict[str, Any]:
    """Depth up-scaling with every m, and the plans that are to be tried."""
    n = look.tower.stack.num_layers
    sweep = {LayerPlan.upscale(n, m): m for m in range((n + 1) // 2)}
    parts = [one for plan in tried.values() for one in [plan, *joined_one_by_one(plan)]]
    losses = look.losses([*sweep, *parts], look.rows, "plans")
    base = losses[look.tower.base_plan]
    return {
        "base": {"loss": rounded(base.mean), "standard_error": rounded(base.standard_error)},
        "upscale": [
            {
                "num_removed": m,
                **_plan_json(losses[plan]),
                "seams": _with_jumps(plan, upscaling_seam(plan, look.stream), losses),
            }
            for plan, m in sweep.items()
            if plan in losses
        ],
        "tried": [
            {"name": name, **_plan_json(losses[plan]), "seams": _tried_seams(look, plan, losses)}
            for name, plan in tried.items()
        ],
    }


def _maps(look: _Look, wanted: Wanted) -> dict[str, Any]:
    """What each layer is worth alone, and the maps of runs."""
    n = look.tower.stack.num_layers
    singles = [LayerPlan.drop(n, [layer]) for layer in range(n)] if n > 1 else []
    positions = map_positions(n, wanted.stride)
    maps = {kind: map_plans(kind, n, positions) for kind in KINDS} if wanted.maps else {}
    runs = [plan for plans in maps.values() for plan in plans.values()]
    losses = look.losses([*singles, *runs], look.map_rows, "maps")
    return {
        "without_layer": [_difference(losses.get(plan)) for plan in singles],
        "maps": {
            kind: map_json(positions, {run: losses[plan] for run, plan in plans.items() if plan in losses})
            for kind, plans in maps.items()
        },
    }


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


def _lens(tower: Tower, rows: Tensor, progress: bool) -> dict[str, Any]:
    with _bar(progress, "logit lens", tower.stack.num_layers + 1) as bar:
        lens = similarity.logit_lens(tower, rows, bar.update)
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


def _require_runnable(tower: Tower, plans: Mapping[str, LayerPlan]) -> None:
    for name, plan in plans.items():
        entries_of(tower, plan)
        if not can_run(tower, plan):
            raise PlanError(
                f"the model's config cannot say the plan '{name}'",
                next_step="`depthup upscale --dry-run` tells which of its rules the plan breaks",
            )


def _tried_seams(look: _Look, plan: LayerPlan, losses: Mapping[LayerPlan, Loss]) -> list[dict[str, Any]]:
    arriving = residual_stream(look.tower, look.rows, plan)
    return _with_jumps(plan, seam_report(plan, arriving, look.stream), losses)


def _with_jumps(
    plan: LayerPlan, seams: Sequence[dict[str, Any]], losses: Mapping[LayerPlan, Loss]
) -> list[dict[str, Any]]:
    """The seams with what each adds to the loss; None where a plan with the first of them alone cannot be run."""
    totals = [0.0, *(losses[part].difference if part in losses else None for part in joined_one_by_one(plan))]
    jumps = [None if a is None or b is None else rounded(b - a) for a, b in pairwise(totals)]
    return [{**seam, "loss_jump": jump} for seam, jump in zip(seams, jumps, strict=True)]


def _trained(look: _Look, model: Model, plan: LayerPlan) -> dict[str, Any]:
    """The target of a plan before and after training: loss, seams, lens, what each layer and each copy is worth."""
    after, s = find_tower(model, look.tower.stack.prefix), plan.num_target_layers
    change = weight_change(look.tower, after, plan)
    without = {str(target): LayerPlan.drop(s, [target]) for target in range(s)}
    again = [target for target in plan.new if plan.sources[target] in plan.duplicated]
    if again:
        without["second"] = LayerPlan.drop(s, again)
        without["first"] = LayerPlan.drop(s, [plan.targets_of(source)[0] for source in plan.duplicated])
    composed = {name: plan.then(one) for name, one in without.items()}
    return {
        "layers": plan.text,
        "change": change,
        "before": _side(look, look.tower, plan, plan, composed),
        "after": {
            **_side(look, after, plan, after.base_plan, without),
            "lens": _lens(after, look.map_rows, look.progress),
        },
    }


def _side(
    look: _Look, tower: Tower, plan: LayerPlan, here: LayerPlan, without: Mapping[str, LayerPlan]
) -> dict[str, Any]:
    """A target as it is run by one model.

    Args:
        look: The base.
        tower: The model: the base, or the trained target.
        plan: From the base to the target.
        here: From the model to the target.
        without: From the model to the target without a layer (by number), or without ``first`` or ``second`` copies.
    """
    [(_, base)] = iterate_losses(look.tower, [look.tower.base_plan], look.rows)
    [(_, loss)] = iterate_losses(tower, [here], look.rows)
    told = [here, *without.values()]
    with _bar(look.progress, "trained" if tower is not look.tower else "untrained", count_layers(tower, told)) as bar:
        found = dict(iterate_losses(tower, told, look.map_rows, bar.update))
    worth = {
        name: _difference(summarise(one, found[place], found[0]))
        for place, (name, one) in enumerate(without.items(), 1)
    }
    stream = residual_stream(tower, look.rows, here)
    return {
        **_loss_json(summarise(here, loss, base)),
        "seams": seam_report(plan, stream, look.stream),
        "influence": rounded(similarity.block_influence(stream).tolist()),
        "rms": rounded(similarity.stream_rms(stream).tolist()),
        "without_layer": [worth[str(target)] for target in range(plan.num_target_layers)],
        "without_second_copies": worth.get("second"),
        "without_first_copies": worth.get("first"),
    }
