"""Carry a raw ``config.json`` over to a layer plan: no config class is needed, no field is lost.

What depends on a layer's index is re-indexed, written out as an explicit list, or refused with the reason and the
nearest plans that keep it. Which fields those are stands in :mod:`depthup.checkpoint.fields`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError, PlanError, nearest, shown
from ..layers import LayerPlan
from .fields import (
    ENCODER_LISTS,
    ENCODER_REFUSED,
    IMPLIED,
    INDEX_DEPENDENT,
    INDEX_LISTS,
    LAYER_LISTS,
    LAYER_TABLES,
    MLP_ONLY,
    NOT_CARRIED,
    OTHER_LISTS,
    OUTER_TAPS,
    PERIODS,
    REFUSED,
    SELF_LISTS,
    TAPS,
    THRESHOLDS,
    UNSTATED,
    speaks_of_a_backbone,
)  # fmt: skip
from .filled import filled_in
from .names import DECODER_KEYS, ENCODER_KEYS, Stack
from .quantization import carry_quantization
from .rules import Rule, keeps, number_rules, require


@dataclass(frozen=True)
class ConfigEdit:
    """A target's config, and what was changed, one line each."""

    config: dict[str, Any]
    changes: tuple[str, ...]


def grow_config(
    config: Mapping[str, Any],
    stack: Stack,
    plan: LayerPlan,
    lists: Mapping[str, str] | None = None,
    rules: Sequence[Rule] = (),
    names: Iterable[str] = (),
) -> ConfigEdit:
    """The config of the target.

    Args:
        config: The base's raw ``config.json``.
        stack: The stack that the plan is for.
        plan: One source for each target layer.
        lists: For lists of n values that depthup does not know: ``"layers"`` (re-index) or ``"keep"``, by key.
        rules: What else the plan must keep, found from the names of the tensors.
        names: Names on disk of the base's tensors, for what the config says of single modules.

    Raises:
        CheckpointError: A field cannot be carried over.
        PlanError: The plan breaks one of the rules, or what this config can only state as a number.
    """
    edit = _Edit(copy.deepcopy(dict(config)), stack, plan)
    edit.result.pop("_name_or_path", None)
    scope = edit.scope
    refuse_family(scope, ENCODER_REFUSED if stack.role == "encoder" else {})
    _refuse_misspelt(scope, lists or {})
    spelt = dict(scope)
    implied = _write_implied(scope, stack.num_layers)
    edit.note_spelling(spelt, implied)
    _write_broken_steps(edit)
    require(plan, (*rules, *number_rules(scope, stack)))
    for key in list(scope):
        value = scope[key]
        if isinstance(value, dict) and key in LAYER_TABLES:
            edit.put(key, _table(value, plan))
        elif not isinstance(value, list):
            continue
        elif key in INDEX_LISTS:
            special = _indices(value)
            edit.put(key, [target for target, source in enumerate(plan.sources) if source in special])
        elif key in TAPS:
            edit.put(key, [_tapped(index, TAPS[key], plan, key) for index in value])
        elif key in SELF_LISTS and value == list(range(stack.num_layers)):
            edit.put(key, list(range(plan.num_target_layers)))
        elif key in ("out_features", "stage_names"):
            edit.put(key, _stages(key, value, plan))
        elif _is_per_layer(key, value, stack, lists or {}):
            edit.put(key, plan.reindex(value))
    for key in [key for key in (*PERIODS, *THRESHOLDS) if type(scope.get(key)) is int]:
        _carry_number(key, edit)
    _leave_unsaid(edit, implied)
    _carry_outer_taps(edit)
    _carry_depth(edit)
    result, changes = carry_quantization(edit.result, stack, plan, names)
    return ConfigEdit(result, (*edit.changes, *changes))


class _Edit:
    """A config under way: what it has become, and what was changed."""

    def __init__(self, result: dict[str, Any], stack: Stack, plan: LayerPlan) -> None:
        self.result, self.stack, self.plan = result, stack, plan
        self.scope: dict[str, Any] = result
        for key in stack.scope:
            self.scope = self.scope[key]
        self.changes: list[str] = []

    def note_spelling(self, before: Mapping[str, Any], implied: Mapping[str, list[Any]]) -> None:
        """Say which keys the family's class wrote for which."""
        gone = [key for key in before if key not in self.scope]
        new = [key for key in self.scope if key not in before and key not in implied]
        if gone or new:
            self.changes.append(f"{', '.join(gone) or 'nothing'} -> {', '.join(new)}, as transformers' class spells it")

    def put(self, key: str, value: Any, where: dict[str, Any] | None = None) -> None:
        fields = self.scope if where is None else where
        before = fields.get(key)
        if before != value:
            fields[key] = value
            self.changes.append(f"{key}: {_short(before)} -> {_short(value)}")


def layer_kinds(config: Mapping[str, Any], stack: Stack) -> list[tuple[str, ...]]:
    """What the config says of each layer by its index; layers of one kind should hold tensors of one form."""
    scope = dict(stack.fields(config))
    _write_implied(scope, stack.num_layers)
    layers = range(stack.num_layers)
    facts: list[list[Any]] = []
    for key, value in scope.items():
        if isinstance(value, list) and key in LAYER_LISTS and len(value) == stack.num_layers:
            facts.append(value)
        elif isinstance(value, list) and key in INDEX_LISTS:
            special = _indices(value)
            facts.append([layer in special for layer in layers])
        elif isinstance(value, dict) and key in LAYER_TABLES:
            by_layer = _by_layer(value)
            facts.append([by_layer.get(layer) for layer in layers])
        elif type(value) is int and value > 0 and isinstance(scope.get((PERIODS | THRESHOLDS).get(key) or ""), list):
            continue  # the list on its right says it
        elif type(value) is int and value > 0 and key in PERIODS:
            facts.append([layer % value for layer in layers])
        elif type(value) is int and value > 0 and key in THRESHOLDS:
            facts.append([layer < value for layer in layers])
        elif type(value) is int and value > 0 and key == "num_kv_shared_layers":
            facts.append([layer >= stack.num_layers - value for layer in layers])
    return [tuple(str(fact[layer]) for fact in facts) for layer in layers]


# -- what cannot be carried ------------------------------------------------------------------------------------------


def _refuse_misspelt(scope: Mapping[str, Any], lists: Mapping[str, str]) -> None:
    for key, what in lists.items():
        if not isinstance(scope.get(key), list):
            raise CheckpointError(f"the config has no list '{key}'{nearest(key, scope)}", next_step="see --config-list")
        if what not in ("layers", "keep"):
            raise CheckpointError(f"'{what}' says nothing of the list '{key}'", allowed="layers, keep")


def refuse_family(scope: Mapping[str, Any], more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raise :class:`CheckpointError` where what a layer computes hangs on its index and no field can say it."""
    family = scope.get("model_type")
    if isinstance(family, str) and family in INDEX_DEPENDENT:
        raise CheckpointError(
            f"the model is a {family}: {INDEX_DEPENDENT[family]}",
            next_step="this model cannot be up-scaled layer by layer",
        )
    if isinstance(family, str) and family in NOT_CARRIED:
        raise CheckpointError(
            f"the model is a {family}: {NOT_CARRIED[family]}", next_step="this architecture is not supported yet"
        )
    for key, reason in (REFUSED | dict(more)).items():
        if scope.get(key):
            raise CheckpointError(
                f"the config has {key} = {_short(scope[key])}: {reason}",
                next_step="this model cannot be up-scaled layer by layer",
            )


# -- lists -----------------------------------------------------------------------------------------------------------


def _write_implied(scope: dict[str, Any], num_layers: int) -> dict[str, list[Any]]:
    """Write out the lists that the family's class would fill in; returns those that were not there."""
    family = str(scope.get("model_type"))
    written = {}
    for key, kind in IMPLIED.get(family, {}).items():
        if not scope.get(key):
            written[key] = [kind(scope, layer, num_layers) for layer in range(num_layers)]
    if isinstance(cycle := scope.get("block_types"), list) and 0 < len(cycle) < num_layers:
        written["block_types"] = [cycle[layer % len(cycle)] for layer in range(num_layers)]  # RecurrentGemma repeats it
    scope.update(written)
    unstated = UNSTATED.get(family, ())
    if not all(scope.get(key) for key in unstated):
        filled = filled_in(scope, unstated)
        scope.clear()
        scope.update(filled)
    return written


def _leave_unsaid(edit: _Edit, implied: Mapping[str, list[Any]]) -> None:
    """Take out again a list that was written down for a base of one kind, if the class will fill in the same."""
    s = edit.plan.num_target_layers
    for key in implied:
        rule = IMPLIED.get(str(edit.scope.get("model_type")), {}).get(key)
        same = rule is not None and [rule(edit.scope, layer, s) for layer in range(s)] == edit.scope[key]
        if same and len(set(map(str, edit.scope[key]))) == 1:
            del edit.scope[key]
            edit.changes = [change for change in edit.changes if not change.startswith(f"{key}: ")]
        else:
            edit.changes = [re.sub(rf"^{key}: list of \d+ ->", f"{key}: None ->", change) for change in edit.changes]


def _table(value: Mapping[str, Any], plan: LayerPlan) -> dict[str, Any]:
    by_layer = _by_layer(value)
    width = len(str(plan.num_target_layers - 1)) if any(key.startswith("0") and len(key) > 1 for key in value) else 1
    return {
        str(target).zfill(width): copy.deepcopy(by_layer[source])
        for target, source in enumerate(plan.sources)
        if source in by_layer
    }


def _indices(value: Any) -> frozenset[int]:
    return frozenset(index for index in value if type(index) is int) if isinstance(value, list) else frozenset()


def _by_layer(value: Mapping[str, Any]) -> dict[int, Any]:
    return {int(key): entry for key, entry in value.items() if key.isascii() and key.isdigit() and len(key) < 7}


def _tapped(index: Any, offset: int, plan: LayerPlan, key: str) -> Any:
    """The place of a tapped layer in the target: its last copy. Counted from the end it stays where it is."""
    if type(index) is int and index - offset >= plan.num_base_layers:
        return index  # a default that this base is too shallow for: nothing is tapped
    if type(index) is not int or index < offset:
        if type(index) is int and index < 0 and plan.sources[index:] != tuple(range(plan.num_base_layers))[index:]:
            raise PlanError(f"{key} counts {-index} layers from the end, and the plan {plan.text} changes those")
        return index
    targets = plan.targets_of(index - offset)
    if not targets:
        raise PlanError(f"{key} names base layer {index - offset}, which the plan {plan.text} leaves out")
    return targets[-1] + offset


def _stages(key: str, value: list[Any], plan: LayerPlan) -> list[Any]:
    """Backbones call hidden state k ``stagek``, and list all names beside the tapped ones."""
    n, s = plan.num_base_layers, plan.num_target_layers
    if key == "stage_names":
        return ["stem", *(f"stage{k + 1}" for k in range(s))] if len(value) == n + 1 else value
    numbers = [int(name[5:]) if re.fullmatch(r"stage\d{1,6}", str(name)) else None for name in value]
    return [
        name if number is None else f"stage{_tapped(number, 1, plan, key)}"
        for name, number in zip(value, numbers, strict=True)
    ]


def _is_per_layer(key: str, value: list[Any], stack: Stack, lists: Mapping[str, str]) -> bool:
    if key in lists:
        return lists[key] == "layers"
    if key == "no_rope_layers" and not value:
        return False  # Llama 4 writes an empty list for "not said"
    if key in ENCODER_LISTS and stack.role == "decoder":
        return False
    if speaks_of_a_backbone(key, value):
        return False
    if key in LAYER_LISTS and key not in ("block_types", "intermediate_size"):
        if len(value) != stack.num_layers:
            raise CheckpointError(
                f"config.json lists {len(value)} {key} for {stack.num_layers} layers",
                next_step="run `depthup check` on the base; another tool may have left it inconsistent",
            )
        return True
    if key in LAYER_LISTS:
        return len(value) == stack.num_layers
    indices = (
        re.search(r"layer|block|indices|indexes|_idx", key)
        and value
        and all(type(i) is int and 0 <= i <= stack.num_layers for i in value)
    )
    if (len(value) == stack.num_layers or indices) and key not in OTHER_LISTS:
        why = "as many as there are layers" if len(value) == stack.num_layers else "which may be indices of layers"
        raise CheckpointError(
            f"config.json has a list '{key}' of {len(value)} values, {why}, and depthup does not know what it says",
            allowed=f"--config-list {key}=layers: one value for each layer; {key}=keep: leave it as it is",
            next_step="look it up in the model's code",
        )
    return False


# -- numbers ---------------------------------------------------------------------------------------------------------


def _write_broken_steps(edit: _Edit) -> None:
    """Write a period that the plan breaks as a list, where the family reads one beside it."""
    scope, step = edit.scope, edit.scope.get("decoder_sparse_step")
    if str(scope.get("model_type")) not in MLP_ONLY or type(step) is not int or step < 2:
        return
    if not keeps("decoder_sparse_step", step)(edit.plan):
        dense = {layer for layer in range(edit.stack.num_layers) if (layer + 1) % step}
        scope["mlp_only_layers"] = sorted(dense | _indices(scope.get("mlp_only_layers")))
        edit.put("decoder_sparse_step", 1)


def _carry_number(key: str, edit: _Edit) -> None:
    """Move a threshold behind which nothing stands; drop what the plan breaks and a list says."""
    scope, plan = edit.scope, edit.plan
    value = scope[key]
    if value < 1 or (key in PERIODS and value == 1):
        return
    n, s = plan.num_base_layers, plan.num_target_layers
    if key in THRESHOLDS and value >= n - (key == "moe_layer_end_index"):  # "all layers are below it" stays so
        edit.put(key, value + s - n)
    elif key == "max_window_layers" and not scope.get("use_sliding_window"):
        return  # no layer slides, the threshold says nothing
    elif not keeps(key, value)(plan):
        del scope[key]
        edit.changes.append(f"{key}: {value} -> removed, {(PERIODS | THRESHOLDS)[key]} says it for each layer")


def _carry_outer_taps(edit: _Edit) -> None:
    """Vision layers that the config around the tower taps, as LLaVA's ``vision_feature_layer``."""
    if edit.stack.role != "vision" or not edit.stack.scope:
        return
    for key, offset in OUTER_TAPS.items():
        value = edit.result.get(key)
        if isinstance(value, list):
            edit.put(key, [_tapped(index, offset, edit.plan, key) for index in value], edit.result)
        elif type(value) is int:
            edit.put(key, _tapped(value, offset, edit.plan, key), edit.result)


def _carry_depth(edit: _Edit) -> None:
    """The numbers that state the depth, also where another key has this one as its default, or repeats it."""
    scope, stack, plan = edit.scope, edit.stack, edit.plan
    n, s = plan.num_base_layers, plan.num_target_layers
    if "num_layers" in stack.depth_keys and stack.role == "encoder" and scope.get("num_decoder_layers") is None:
        edit.put("num_decoder_layers", n)  # T5: as many as the encoder has, where it is not said
    unsaid = not stack.scope and scope.get("num_decoder_layers") is None
    if "num_layers" in stack.depth_keys and stack.role == "decoder" and unsaid:
        edit.put("num_decoder_layers", s)
    else:
        for key in stack.depth_keys:
            edit.put(key, s)
    part = scope.get(f"{stack.role}_config")
    if isinstance(part, dict) and part.get("layers") == n:  # FastSpeech 2 says it twice
        edit.put("layers", s, part)
    _carry_sparse_step(edit)
    decoder_alone = stack.role == "text" and any(key in DECODER_KEYS for key in stack.depth_keys)
    if decoder_alone:  # the cache has as many places as the class's num_hidden_layers says, which is the encoder's
        for key in [key for key in (*ENCODER_KEYS, "num_hidden_layers") if type(scope.get(key)) is int]:
            edit.put(key, max(s, scope[key]))
    for key in stack.depth_keys:  # a model of several parts may repeat the text depth at the top
        if stack.scope and stack.role == "text" and edit.result.get(key) == n:
            edit.result[key] = s
            edit.changes.append(f"{key} (top level): {n} -> {s}")
    if "attention_layers" in scope and "attention_types" in scope:  # GPT-Neo says it twice
        edit.put("attention_types", [[scope["attention_layers"], 1]])
    scale = scope.get("scale_depth")
    if isinstance(scale, float | int) and not isinstance(scale, bool):
        # MiniCPM: each residual output is multiplied by scale_depth / sqrt(depth).
        edit.put("scale_depth", scale * sqrt(s / n))


def _carry_sparse_step(edit: _Edit) -> None:
    """Switch Transformers: a stack's sparse step is its depth divided by a number of sparse layers, rounded down."""
    role, s = edit.stack.role, edit.plan.num_target_layers
    step, num_sparse = (edit.scope.get(key) for key in (f"{role}_sparse_step", f"num_sparse_{role}_layers"))
    if type(step) is not int or type(num_sparse) is not int or step < 1 or num_sparse < 1:
        return
    fitting = [number for number in range(1, s + 1) if s // number == step]
    if not fitting:
        raise PlanError(f"no number of sparse layers among {s} gives the step {step} that the {role} has")
    edit.put(f"num_sparse_{role}_layers", fitting[0])


def _short(value: Any) -> str:
    return (
        f"{'list' if isinstance(value, list) else 'table'} of {len(value)}"
        if isinstance(value, list | dict)
        else shown(value)
    )
