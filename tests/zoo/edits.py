"""What checkpoints hold that transformers' own ``save_pretrained`` does not write: older spellings, more tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pico
import torch
from safetensors.torch import load_file, save_file


def hub(**fields: Any) -> Callable[[Path], object]:
    """Change fields of ``config.json`` after saving; ``...`` removes one."""
    return partial(pico.edit_config, **fields)


def _add(folder: Path, more: dict[str, torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **{name: tensor.contiguous().clone() for name, tensor in more.items()}}, path,
              {"format": "pt"})  # fmt: skip


def block_behind(folder: Path, prefix: str = "model.layers") -> None:
    """A block that predicts several tokens, stored as one layer more, as DeepSeek V3 and GLM 4.5 do."""
    tensors = load_file(folder / "model.safetensors")
    n = pico.read_json(folder / "config.json")["num_hidden_layers"]
    last = {name: tensor + 0.5 for name, tensor in tensors.items() if name.startswith(f"{prefix}.{n - 1}.")}
    hidden = tensors["model.norm.weight"].shape[0]
    more = {name.replace(f"{prefix}.{n - 1}.", f"{prefix}.{n}."): tensor for name, tensor in last.items()}
    more |= {f"{prefix}.{n}.{name}.weight": torch.ones(hidden) for name in ("enorm", "hnorm", "shared_head.norm")}
    _add(folder, {**more, f"{prefix}.{n}.eh_proj.weight": torch.ones(hidden, 2 * hidden)})


def block_apart(folder: Path) -> None:
    """The same under a name of its own, ``mtp.layers.0``, as Qwen3-Next does."""
    _add(folder, {"mtp.fc.weight": torch.ones(4, 8), "mtp.layers.0.mlp.up_proj.weight": torch.ones(4, 8)})


def frequencies(folder: Path) -> None:
    """The rotary frequencies that older checkpoints store for each layer."""
    n = pico.read_json(folder / "config.json")["num_hidden_layers"]
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(n)]
    _add(folder, {name: torch.arange(4.0) + layer for layer, name in enumerate(names)})
