"""Grow a tiny checkpoint by a plan, and read what came of it, for the tests of how layers start."""

from __future__ import annotations

from pathlib import Path

import pico
import torch

from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
UP, DOWN, NORM = "mlp.up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"


def grow(base: Path, out: Path, plan: str) -> dict[str, torch.Tensor]:
    """The target's tensors as the safetensors library reads them."""
    upscale(base, out, LayerPlan.parse(plan, pico.NUM_LAYERS))
    return tensors(out)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).view(shape)
        for name, (dtype, shape, data) in pico.raw(folder).items()
    }


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return pico.load(folder)(pico.tokens()).logits


def layer(number: int, suffix: str) -> str:
    return f"model.layers.{number}.{suffix}"
