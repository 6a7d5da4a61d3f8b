"""Attention within documents without a mask of tokens x tokens: the borders of documents go along with the batch.

transformers keeps packed documents apart by a dense mask, which rules out flash attention. Here its attention
interface gets a function of ours under the name :data:`NAME`. On CUDA in half precision it is torch's variable-length
flash attention, on CPU one causal call for each document, elsewhere the dense mask again; the results are equal.

Under :data:`NAME` the model is handed a note in place of a mask. So transformers builds none, and does not look into
the position ids whether it should, for which the host would wait for the device. Under :data:`PROVING` it is handed
nothing and our mask function writes the note, with the layer's window on it; the two are compared.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from ..errors import TrainingError
from ..models import attention_interfaces

NAME = "depthup_varlen"
PROVING = "depthup_varlen_proving"
_MIN_DOCUMENTS = 64
_flash: Callable[..., Any] = varlen_attn
_PARAMETERS = frozenset(inspect.signature(varlen_attn).parameters)  # 2.11: no enable_gqa; 2.10: no window either


def document_borders(position_ids: NDArray[np.int64]) -> tuple[NDArray[np.int32], int]:
    """Where documents begin in a batch of rows laid end to end.

    Both shapes and length come in powers of two, so that a compiled layer sees few of them.

    Args:
        position_ids: [num_rows, row_tokens]; a document begins where they do not go on by 1.

    Returns:
        Borders, int32 [num_documents + 1] from 0 to the number of tokens, then the last one again and again (empty
        documents); and a bound on the tokens of the longest document, at most ``row_tokens``.
    """
    num_rows, row_tokens = position_ids.shape
    begins = np.ones((num_rows, row_tokens), bool)
    begins[:, 1:] = np.diff(position_ids, axis=1) != 1
    borders = np.append(np.flatnonzero(begins), num_rows * row_tokens)
    longest = int(np.diff(borders).max())
    room = max(_MIN_DOCUMENTS, _power_of_two(len(borders)))
    padded = np.full(room, num_rows * row_tokens, np.int32)
    padded[: len(borders)] = borders
    return padded, min(_power_of_two(longest), row_tokens)


def _power_of_two(number: int) -> int:
    """The least one that is not below ``number``."""
    return 1 << (number - 1).bit_length()


def put(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on a device; to a GPU from pinned memory, so that the host need not wait for what it computes."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def register() -> None:
    """Make the function known to transformers, as ``attn_implementation`` :data:`NAME` and :data:`PROVING`."""
    functions, masks = attention_interfaces()
    for name in (NAME, PROVING):
        functions.register(name, attend)
        masks.register(name, _mask)


def implementation(model: nn.Module) -> str | None:
    """The ``attn_implementation`` of a model of transformers, or of peft around one; None for any other."""
    name: str | None = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return name


def borders_of(model: nn.Module, position_ids: NDArray[np.int64], device: torch.device) -> dict[str, Any]:
    """What a model that computes its attention here is called with besides; nothing for other models."""
    name = implementation(model)
    if name not in (NAME, PROVING):
        return {}
    borders, longest = document_borders(position_ids)
    ends = put(borders, device)
    found = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    note = torch.empty((0, 1, 1, 1), dtype=torch.bool, device=device)
    return found | ({"attention_mask": note} if name == NAME else {})


def _mask(**options: Any) -> Tensor | None:
    """What transformers hands to each layer as its mask where it is handed none, made once a forward pass.

    For rows of whole documents it is a note of no element, of shape [0, window] (window 0: none), which says that the
    borders of documents do the work. Whatever else is asked for (padding, a cache, a mask of the model's own) gets the
    mask of torch's attention.
    """
    whole = (
        options.get("attention_mask") is None
        and not options.get("use_vmap")
        and options["q_length"] == options["kv_length"] > 1
    )
    if whole and (options.get("local_size") or not options.get("allow_is_causal_skip", True)):
        return torch.empty((0, options.get("local_size") or 0), dtype=torch.bool, device=options["device"])
    mask: Tensor | None = attention_interfaces()[1]["sdpa"](**options)
    return mask


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers.

    Args:
        module: The attention layer.
        query: [num_rows, num_heads, row_tokens, head_dim].
        key: [num_rows, num_key_value_heads, row_tokens, head_dim].
        value: As ``key``.
        attention_mask: A note of no element, or a mask for torch's attention.
        dropout: Of attention weights.
        scaling: Of the products; ``head_dim ** -0.5`` if None.
        sliding_window: Tokens that a token sees, itself included; None for all.
        cu_seq_lens_q: Borders of documents: :func:`document_borders`.
        max_length_q: Bound on the longest document.
        options: What the family adds; a cap of logits or attention sinks are refused.

    Returns:
        [num_rows, row_tokens, num_heads, head_dim], and None for the weights.

    Raises:
        TrainingError: Rows hold several documents and their borders are not given, or the family's attention has
            something that this function does not compute.
    """
    noted = attention_mask is not None and attention_mask.numel() == 0
    _require_known(attention_mask if noted else None, sliding_window, dropout, options)
    if not noted:
        found: tuple[Tensor, None] = attention_interfaces()[0]["sdpa"](
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found
    if cu_seq_lens_q is None or max_length_q is None:
        raise TrainingError(
            "a row holds several documents, or a layer has a window, and the model was not told where documents begin",
            next_step="call it with the arrays of depthup.training.heads.model_inputs",
        )
    if torch.is_autocast_enabled(query.device.type):  # rotated queries and keys may still be float32 there
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    body = _body(query)
    return body(query, key, value, cu_seq_lens_q, max_length_q, sliding_window, scale, groups).contiguous(), None


def _require_known(note: Tensor | None, window: int | None, dropout: float, options: dict[str, Any]) -> None:
    """Raise :class:`TrainingError` if a layer wants more than :func:`attend` computes, or its mask and it differ."""
    wanted = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if note is not None and note.dim() == 2 and (note.shape[1] or None) != window:
        wanted.append(f"a window of {note.shape[1]}, {window} in the layer")
    if note is not None and dropout:
        wanted.append(f"dropout {dropout}")
    if wanted:
        raise TrainingError(
            f"{NAME} does not compute {', '.join(wanted)}", next_step="load the model with attn_implementation 'sdpa'"
        )


def _body(query: Tensor) -> Callable[..., Tensor]:
    if query.device.type == "cpu":
        return by_document
    narrow = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    if query.device.type == "cuda" and narrow:
        return by_flash
    return by_mask


def by_mask(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, window: int | None, scale: float,
    groups: int,
) -> Tensor:  # fmt: skip
    """The definition: a mask of [num_rows, 1, row_tokens, row_tokens]. Arguments as in :func:`attend`."""
    num_rows, _, row_tokens, _ = query.shape
    places = torch.arange(num_rows * row_tokens, device=query.device, dtype=borders.dtype)
    documents = torch.searchsorted(borders, places, right=True).view(num_rows, row_tokens)
    ages = torch.arange(row_tokens, device=query.device)
    ages = ages[:, None] - ages
    near = ages >= 0 if window is None else (ages >= 0) & (ages < window)
    mask = (documents[:, :, None] == documents[:, None, :]) & near
    found = F.scaled_dot_product_attention(
        query, _repeat(key, groups), _repeat(value, groups), attn_mask=mask[:, None], scale=scale
    )
    return found.transpose(1, 2)


def by_document(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, window: int | None, scale: float,
    groups: int,
) -> Tensor:  # fmt: skip
    """One causal call for each document. For processors, where the borders may be read."""
    row_tokens = query.shape[2]
    key, value = _repeat(key, groups), _repeat(value, groups)
    ends = sorted(set(borders.tolist()))
    pieces: list[list[Tensor]] = [[] for _ in range(len(query))]
    for begin, end in itertools.pairwise(ends):
        row, start = divmod(begin, row_tokens)
        part = (slice(row, row + 1), slice(None), slice(start, start + end - begin))
        mask = _near(end - begin, window) if window is not None and end - begin > window else None
        found = F.scaled_dot_product_attention(
            query[part], key[part], value[part], attn_mask=mask, is_causal=mask is None, scale=scale
        )
        pieces[row].append(found.transpose(1, 2))
    return torch.cat([torch.cat(row, dim=1) for row in pieces])


def by_flash(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, window: int | None, scale: float,
    groups: int,
) -> Tensor:  # fmt: skip
    """torch's variable-length flash attention, over all rows laid end to end."""
    num_rows, _, row_tokens, _ = query.shape
    known = _PARAMETERS
    if groups > 1 and "enable_gqa" not in known:
        key, value = _repeat(key, groups), _repeat(value, groups)
    if "scale" not in known:
        query = query * (scale * query.shape[-1] ** 0.5)
    options: dict[str, Any] = {
        "scale": scale,
        "enable_gqa": groups > 1,
        "window_size": (-1 if window is None else window - 1, 0),
        "is_causal": True,
    }
    if window is not None and "window_size" not in known:
        raise TrainingError(
            f"torch {torch.__version__} has no flash attention with a window for documents",
            next_step="update torch, or load the model with attn_implementation 'sdpa'",
        )
    flat = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    found: Tensor = _flash(
        *flat, borders, borders, longest, longest, **{name: options[name] for name in options if name in known}
    )
    return found.view(num_rows, row_tokens, *found.shape[1:])


def _near(num_tokens: int, window: int) -> Tensor:
    ages = torch.arange(num_tokens)
    ages = ages[:, None] - ages
    return (ages >= 0) & (ages < window)


def _repeat(heads: Tensor, groups: int) -> Tensor:
    """Each key-value head for each query head of its group."""
    return heads if groups == 1 else heads.repeat_interleave(groups, dim=1)
