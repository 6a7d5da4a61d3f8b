"""The recommendation as a recipe that `depthup run` takes: the grown model and, always, its control."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .verdict import Verdict

_ROWS, _ROW_TOKENS = 16, 2048  # 32,768 tokens a step, the batch of the measured runs
_EVAL_TOKENS = 65_536


def recipe_text(
    verdict: Verdict, *, model: str, data: Mapping[str, Any], budget_tokens: int, learning_rate: float, row_tokens: int,
    rows_per_step: int, seed: int,
) -> str:  # fmt: skip
    """A recipe: base, control and target, trained on the same tokens in the same way, measured and shown.

    Args:
        verdict: What was decided; its best candidate is grown.
        model: Folder or hub name of the base.
        data: The entry under ``data:``.
        budget_tokens: Tokens that control and target are trained on, each; 0: surgery and losses only.
        learning_rate: Peak.
        row_tokens: Of the short runs; kept where the budget is smaller than a hundred full steps.
        rows_per_step: The same.
        seed: Of the recipe.
    """
    best = verdict.best
    assert best is not None
    if budget_tokens >= 100 * _ROWS * _ROW_TOKENS:
        rows_per_step, row_tokens = _ROWS, _ROW_TOKENS
    steps = max(budget_tokens // (rows_per_step * row_tokens), 1)
    warmup = min(steps // 20, steps - 1)
    stages = [
        f"  target:\n    kind: upscale\n    base: {json.dumps(model)}\n    layers: {json.dumps(best.plan.text)}\n"
    ]
    evaluated = {"base": model, "target": "target"}
    if budget_tokens:
        common = (
            f"    data: text\n    steps: {steps}\n    rows_per_step: {rows_per_step}\n    row_tokens: {row_tokens}\n"
            f"    learning_rate: {learning_rate:g}\n    warmup_steps: {warmup}\n    eval_every: {max(steps // 10, 1)}\n"
            f"    eval_tokens: {_EVAL_TOKENS}\n    micro_batch_rows: {min(rows_per_step, 4)}\n"
        )
        new_only = "    rates: {original: {factor: 0}, outside: {factor: 0}}\n" if best.trains_new_only else ""
        stages.append(f"  control:               # the base on the same tokens: what growth is measured against\n"
                      f"    kind: pretrain\n    model: {json.dumps(model)}\n{common}")  # fmt: skip
        stages.append(f"  trained:\n    kind: pretrain\n    model: target\n{common}{new_only}")
        evaluated |= {"control": "control", "trained": "trained"}
    for name, place in evaluated.items():
        stages.append(
            f"  {name}-loss:\n    kind: evaluate\n    model: {json.dumps(place) if place == model else place}\n"
            f"    data: text\n    tokens: {_EVAL_TOKENS}\n    row_tokens: {row_tokens}\n"
        )
    losses = ", ".join(f"{name}-loss" for name in evaluated)
    title = f"{best.name}, {best.plan.num_base_layers} to {best.plan.num_target_layers} layers"
    stages.append(f"  page:\n    kind: report\n    title: {json.dumps(title)}\n    evaluations: [{losses}]\n")
    note = f"# Made by `depthup choose`, whose verdict was: {verdict.decision}. See choose.json beside this file.\n"
    return f"{note}name: chosen\nseed: {seed}\n\ndata:\n  text: {json.dumps(dict(data))}\n\nstages:\n" + "".join(stages)
