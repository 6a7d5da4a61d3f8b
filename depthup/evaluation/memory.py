"""Batches that fit into memory, and models that do not: what a forward pass takes, counted from the config."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..models import DTYPES, Model, stored_parameters

_SHARE = 0.6  # of free memory that batches may take; the rest is for the allocator and what is not counted
_PROCESSOR_TOKENS = 4096  # a processor gains nothing from larger batches
_MOST_TOKENS = 65536
_LEAST_TOKENS = 256
_LIVE_WIDTHS = 8  # hidden states, queries, keys, values, their rows by tree, results, alive at once
_LIVE_MLP = 3  # gate, up, product
_KEY_COPIES = 2  # gathered, then repeated for each head of a group
_LOGIT_COPIES = 3  # as they come, in float32, their exponentials


@dataclass(frozen=True)
class Budget:
    """What a batch may hold.

    Attributes:
        tokens: In one pass.
        logits: Rows of the vocabulary in one pass.
        keys: Tokens whose keys and values lie side by side in a layer's attention: a stem's once for each tree.
    """

    tokens: int
    logits: int
    keys: int

    def halved(self) -> Budget:
        """Half of it, after a device ran out of memory."""
        return Budget(max(self.tokens // 2, 1), max(self.logits // 2, 1), max(self.keys // 2, 1))


def fit_budget(model: Model, batch_tokens: int | None = None) -> Budget:
    """The budget of a model on its device, from the memory that is free now; ``batch_tokens`` overrides it."""
    config = model.config.get_text_config()
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * width  # GPT-2 leaves it open, some families have one a layer
    free = free_bytes(str(model.device)) * _SHARE
    size = model.dtype.itemsize
    per_logit = config.vocab_size * (size + 4 * (_LOGIT_COPIES - 1))
    logits = max(int(free / 4 / per_logit), 16)
    num_heads = getattr(config, "num_attention_heads", None) or 1  # recurrent models have none
    head_size = getattr(config, "head_dim", None) or width // num_heads
    key_bytes = 2 * size * _KEY_COPIES * num_heads * head_size
    token_bytes = size * (_LIVE_WIDTHS * width + _LIVE_MLP * inner)
    most = _PROCESSOR_TOKENS if model.device.type == "cpu" else _MOST_TOKENS
    tokens = min(max(int(free / 2 / token_bytes), _LEAST_TOKENS), most)
    return Budget(batch_tokens or tokens, logits, max(int(free / 4 / key_bytes), _LEAST_TOKENS))


def free_bytes(device: str) -> int:
    """Memory that a device can still give, in bytes."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return int(torch.cuda.mem_get_info(kind)[0]) + torch.cuda.memory_reserved(kind) - (
            torch.cuda.memory_allocated(kind)
        )  # fmt: skip
    return _available_memory()


def require_room(folder: str | os.PathLike[str], device: str, dtype: str, num_copies: int = 1) -> None:
    """Refuse a model that cannot fit, before any weight is read.

    Args:
        folder: Checkpoint.
        device: Where it shall be loaded.
        dtype: Of the weights there.
        num_copies: Models in the same memory.

    Raises:
        CheckpointError: The weights alone need more than is free; the message says what would fit.
    """
    num_parameters = stored_parameters(folder)
    needed, free = num_parameters * DTYPES[dtype].itemsize * num_copies, free_bytes(device)
    if needed <= free:
        return
    ways = []
    if DTYPES[dtype].itemsize > 2 and num_parameters * 2 * num_copies <= free:
        ways.append("load it in bfloat16, which fits")
    if num_copies > 1:
        ways.append("use fewer devices at once")
    if torch.device(device).type == "cuda" and _available_memory() > needed:
        ways.append("use the device cpu, which has room")
    raise CheckpointError(
        f"{Path(folder)} in {dtype} needs {_gib(needed)} on {device}, where {_gib(free)} are free:"
        f" {_gib(needed - free)} ({needed - free:,} bytes) are missing",
        next_step=", or ".join(ways) or "use a device with more memory",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _available_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        names: Any = os.sysconf_names
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"
