"""The optimizer's moments as a file: to go on with in another run, or to grow with the model by its plan.

A layer that a surgery copied starts with the moments of its source; layers that start otherwise begin without. Whether
that helps is an open question: the control is the same run without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import TrainingError

MOMENTS_NAME = "optimizer/moments.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_moments(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write AdamW's moments into ``folder/optimizer``, float32, under ``NAME.exp_avg`` and ``NAME.exp_avg_sq``.

    Args:
        model: On one device.
        optimizer: Of that model.
        folder: The checkpoint's.
    """
    found: dict[str, Tensor] = {}
    step = 0.0
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for moment in _MOMENTS:
            if moment in state:
                found[f"{name}.{moment}"] = state[moment].detach().float().cpu().contiguous()
                step = float(state["step"])
    path = folder / MOMENTS_NAME
    path.parent.mkdir(exist_ok=True)
    save_file(found, path, {"step": str(step)})


def load_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, sources: Mapping[str, str | None]
) -> int:
    """Start an optimizer with moments that :func:`save_moments` wrote; returns for how many parameters there were some.

    Args:
        model: On one device, before its first update.
        optimizer: Of that model, without state.
        folder: Where the moments lie.
        sources: Name of a parameter -> the name whose moments it takes; None where it begins without. Names that are
            left out take their own.

    Raises:
        TrainingError: There is no such file, or moments are of another shape than their parameter.
    """
    path = folder / MOMENTS_NAME
    if not path.is_file():
        raise TrainingError(f"{folder} holds no {MOMENTS_NAME}", next_step="train it with keep_optimizer: true")
    count = 0
    with safe_open(path, "pt") as file:
        held, step = set(file.keys()), float((file.metadata() or {}).get("step", 0))
        for name, parameter in model.named_parameters():
            source = sources.get(name, name)
            if source is None or f"{source}.{_MOMENTS[0]}" not in held or not parameter.requires_grad:
                continue
            moments = {moment: file.get_tensor(f"{source}.{moment}") for moment in _MOMENTS}
            if any(moment.shape != parameter.shape for moment in moments.values()):
                raise TrainingError(
                    f"the moments of {source} have the shape {list(moments[_MOMENTS[0]].shape)}, the parameter {name}"
                    f" {list(parameter.shape)}",
                    next_step="name the run that trained this model, or the base that it was grown from",
                )
            state = optimizer.state[parameter]
            state["step"] = torch.tensor(step, dtype=torch.float32, device=parameter.device)
            for key, moment in moments.items():
                state[key] = moment.to(parameter.device, copy=True)  # two copies of a layer must not share them
            count += 1
    return count
