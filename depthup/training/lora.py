"""Low-rank adapters in place of a model's weights, through peft."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import DepthupError
from ..models import Model


def add_lora(model: Model, rank: int, alpha: float, targets: Sequence[str], seed: int = 0) -> Any:
    """The model with low-rank adapters that are trained instead of its weights (peft; arXiv:2106.09685).

    The adapters' products start at zero, so the model computes what it did.

    Args:
        model: Any causal language model; it is changed in place, too.
        rank: Of the two factors.
        alpha: The product is multiplied by alpha / rank.
        targets: Ends of module names, or ``all-linear`` alone for every linear layer but the head.
        seed: Of the first factors.

    Raises:
        DepthupError: peft is missing, or no module has such a name.
    """
    try:
        import peft
    except ImportError as error:
        raise DepthupError("lora needs the package peft", next_step="pip install 'depthup[lora]'") from error
    wanted: Any = "all-linear" if list(targets) == ["all-linear"] else list(targets)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # any number will do
        target_modules=wanted,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that it will drop in v6
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise DepthupError(
            f"lora: {str(error).strip().splitlines()[0]}", next_step="name its modules, or all-linear"
        ) from error


def merge_lora(model: Any) -> Model:
    """The model with its adapters added to its weights."""
    merged: Model = model.merge_and_unload()
    return merged
