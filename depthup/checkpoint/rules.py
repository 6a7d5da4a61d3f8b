"""What an architecture asks of a plan: periods, thresholds and tails that its config can only state as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PlanError
from ..layers import LayerPlan
from .fields import CACHE_BY_ENCODER, INSERTIONS, PERIODS, SWITCHED_PERIODS, THRESHOLDS
from .names import Stack

_OTHER_SIDE = {"encoder": "decoder_", "decoder": "encoder_"}


@dataclass(frozen=True)
class Rule:
    """What an architecture asks of a plan: the reason, as the beginning of a sentence, and the test."""

    reason: str
    holds: Callable[[LayerPlan], bool]


def require(plan: LayerPlan, rules: Sequence[Rule]) -> None:
    """Raise :class:`PlanError` for the first rule that the plan breaks, naming each m or layer that keeps all."""
    for rule in rules:
        if not rule.holds(plan):
            n = plan.num_base_layers
            if plan.num_target_layers < n:
                kept = [i for i in range(n) if all(r.holds(LayerPlan.drop(n, (i,))) for r in rules)]
                allowed = f"of single layers, {kept} can be dropped" if kept else "no layer can be dropped"
            else:
                kept = [m for m in range((n + 1) // 2) if all(r.holds(LayerPlan.upscale(n, m)) for r in rules)]
                allowed = f"for depth up-scaling m in {kept}" if kept else "no m keeps it"
            raise PlanError(f"{rule.reason}, and the plan {plan.text} breaks that", allowed=allowed)


def number_rules(scope: Mapping[str, Any], stack: Stack) -> Iterator[Rule]:
    """What the numbers of a config ask of a plan."""
    for key in (*PERIODS, *THRESHOLDS):
        value = scope.get(key)
        other_side = stack.role in ("encoder", "decoder") and key.startswith(_OTHER_SIDE[stack.role])
        if type(value) is int and value > 0 and not other_side and not _is_idle(key, value, scope, stack.num_layers):
            yield Rule(f"the config says {key} = {value} of all layers", keeps(key, value))
    for key in INSERTIONS:
        last = scope.get(key)
        if type(last) is int and last >= 0:
            yield Rule(f"something is put in behind layer {last} ({key}): those up to it stay", _starts(last))
    for key, period in SWITCHED_PERIODS.items():
        if scope.get(key) is True and stack.role != "decoder":
            yield Rule(
                f"the config says {key}, by which layers differ with a period of {period}", _keeps_period(period)
            )
    if str(scope.get("model_type")) in CACHE_BY_ENCODER and stack.role == "decoder":
        most = scope.get("num_layers")
        most = most if type(most) is int else 0
        yield Rule(
            f"transformers gives this decoder's cache as many places as the encoder has layers, {most}",
            lambda plan: plan.num_target_layers <= most,
        )
    shared = scope.get("num_kv_shared_layers")
    if type(shared) is int and shared > 0:
        first = stack.num_layers - shared
        yield Rule(
            f"the last {shared} layers use the keys and values of earlier ones (num_kv_shared_layers), so they can"
            " only stand at the end",
            lambda plan: (
                _num_trailing(plan, first) == sum(source >= first for source in plan.sources) < len(plan.sources)
            ),
        )


def _is_idle(key: str, value: int, scope: Mapping[str, Any], num_layers: int) -> bool:
    """Whether a number says the same of all layers, or nothing, because a list says it."""
    if isinstance(scope.get((PERIODS | THRESHOLDS)[key] or ""), list):
        return True
    if key in PERIODS:
        return value == 1
    if key == "max_window_layers" and not scope.get("use_sliding_window"):
        return True
    return value >= num_layers - (key == "moe_layer_end_index")  # an inclusive end


def _starts(last: int) -> Callable[[LayerPlan], bool]:
    return lambda plan: plan.sources[: last + 1] == tuple(range(last + 1))


def _keeps_period(period: int) -> Callable[[LayerPlan], bool]:
    return lambda plan: all(target % period == source % period for target, source in enumerate(plan.sources))


def keeps(key: str, value: int) -> Callable[[LayerPlan], bool]:
    """The test that a plan keeps a period or a threshold: each copy falls into the same class as its source."""
    if key in PERIODS:
        return _keeps_period(value)
    return lambda plan: all((target < value) == (source < value) for target, source in enumerate(plan.sources))


def _num_trailing(plan: LayerPlan, first: int) -> int:
    """How many layers at the end of the target come from base layer ``first`` or later."""
    position = len(plan.sources)
    while position and plan.sources[position - 1] >= first:
        position -= 1
    return len(plan.sources) - position
