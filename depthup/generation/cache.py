"""Keys and values of many rows that end in the same column: what lets rows leave a batch and others enter.

Each row is padded on its left, so the distance between two of its tokens is the distance of their columns, which is
what sliding windows are measured by. Layers keep every column, windows too: the mask says what a window sees.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import CacheLayer, Model, cache_of, num_cache_layers

_ROOM = 64  # columns that a buffer grows by at least


class RowLayer(CacheLayer):
    """Keys and values of one layer: columns ``begin`` to ``end`` of buffers [rows, heads, columns, head size]."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = self.end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add columns; all that there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self.end, self.end + key_states.shape[-2]
        if end > self.keys.shape[-2]:  # always so for a repeated layer, whose rows share their memory
            if begin == self.begin:  # the first columns: a prefill's own tensors will do
                self.keys, self.values, begin, end, self.begin = key_states, value_states, 0, end - begin, 0
            else:
                self.keys, self.values = self._grown(self.keys, end), self._grown(self.values, end)
                begin, end, self.begin = begin - self.begin, end - self.begin, 0
        if self.keys is not key_states:
            self.keys[:, :, begin:end] = key_states
            self.values[:, :, begin:end] = value_states
        self.end = end
        return self.keys[:, :, self.begin : end], self.values[:, :, self.begin : end]

    def get_seq_length(self) -> int:
        return self.end - self.begin

    def repeated(self, num_rows: int) -> RowLayer:
        """The layer of a batch of one row, for a batch of that row many times."""
        layer = RowLayer()
        layer.lazy_initialization(self.keys, self.values)
        layer.keys, layer.values = (buffer.expand(num_rows, -1, -1, -1) for buffer in (self.keys, self.values))
        layer.begin, layer.end = self.begin, self.end
        return layer

    def _grown(self, buffer: Tensor, end: int) -> Tensor:
        rows, heads, _, size = buffer.shape
        width = end - self.begin
        grown = buffer.new_empty(rows, heads, width + max(_ROOM, width // 8), size)
        grown[:, :, : self.end - self.begin] = buffer[:, :, self.begin : self.end]
        return grown


@dataclass
class Rows:
    """A batch in the middle of its work: a cache and the mask of its columns.

    Attributes:
        cache: Of :class:`RowLayer`.
        mask: 1 where a row has a token: [rows, columns], int64.
        padded: Whether any place of the mask is 0; known without asking the device.
    """

    cache: Any
    mask: Tensor
    padded: bool


def fresh_cache(model: Model) -> Any:
    """An empty cache for a model whose cache is keys and values alone."""
    return cache_of([RowLayer() for _ in range(num_cache_layers(model) or 0)])


def repeated(rows: Rows, num_rows: int) -> Rows:
    """A batch of one row without padding, for a batch of that row many times; it may be used again."""
    return Rows(
        cache_of([layer.repeated(num_rows) for layer in rows.cache.layers]), rows.mask.expand(num_rows, -1), False
    )


def joined(parts: Sequence[tuple[Rows, list[int], int]]) -> Rows:
    """One batch of some rows of several; the parts are used up.

    Args:
        parts: A batch, which of its rows to take (one may be taken several times), and how many of its last columns
            those rows need.
    """
    width, num_rows = max(columns for _, _, columns in parts), sum(len(rows) for _, rows, _ in parts)
    mask = parts[0][0].mask.new_zeros(num_rows, width)
    places, start = [], 0
    for part, taken, columns in parts:
        index, rows = torch.tensor(taken, device=mask.device), slice(start, start := start + len(taken))
        places.append((index, rows, columns))
        mask[rows, width - columns :] = part.mask[index, part.mask.shape[1] - columns :]
    layers = []
    for sources in zip(*(part.cache.layers for part, _, _ in parts), strict=True):
        layer, first = RowLayer(), sources[0]
        layer.lazy_initialization(first.keys, first.values)
        layer.keys, layer.values = (
            buffer.new_zeros(num_rows, buffer.shape[1], width + _ROOM, buffer.shape[3])
            for buffer in (first.keys, first.values)
        )
        layer.end = width
        for source, (index, rows, columns) in zip(sources, places, strict=True):
            span = slice(source.end - columns, source.end)
            layer.keys[rows, :, width - columns : width] = source.keys[:, :, span][index]
            layer.values[rows, :, width - columns : width] = source.values[:, :, span][index]
            source.keys = source.values = None  # so that one layer at a time stands twice in memory
        layers.append(layer)
    return Rows(cache_of(layers), mask, not bool(mask.all()))


@dataclass(frozen=True)
class Allowed:
    """What a model's answers do not depend on, as tried out.

    Attributes:
        padding: Rows may be padded on the left, hence be of unlike lengths in one batch.
        gaps: There may be padding between a row's own tokens.
        bytes_per_token: Of the cache.
    """

    padding: bool
    gaps: bool
    bytes_per_token: int


_tried: weakref.WeakKeyDictionary[Any, Allowed] = weakref.WeakKeyDictionary()


def allowed(model: Model, pass_through: Any) -> Allowed:
    """Find out by trying whether the model bears padding, once a model.

    Args:
        model: Any causal language model.
        pass_through: ``forward(model, ids, rows)``, see :func:`.greedy.forward`.
    """
    if model not in _tried:
        _tried[model] = _try(model, pass_through)
    return _tried[model]


def _try(model: Model, forward: Any) -> Allowed:
    nothing = Allowed(False, False, 0)
    if num_cache_layers(model) is None or _depends_on_length(model.config):
        return nothing
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 12, device=model.device) * 7 % size  # eleven unlike tokens
    one = torch.ones(1, 11, dtype=torch.long, device=model.device)
    try:
        whole = Rows(fresh_cache(model), one, False)
        expected = forward(model, ids[None], whole)
        layers = whole.cache.layers
        num_bytes = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values)) // 11
        outcomes = [
            _alike(_with_padding(model, forward, ids, head, num_pads), expected) for head, num_pads in ((0, 5), (4, 3))
        ]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # code of hundreds of model families: whatever it raises, it cannot be done this way
        return nothing
    return Allowed(outcomes[0], all(outcomes), num_bytes)


def _with_padding(model: Model, forward: Any, ids: Tensor, head: int, num_pads: int) -> Tensor:
    """Logits after all of ``ids``, with padding after the first ``head`` tokens and the last token on its own."""
    mask = torch.ones(1, len(ids) + num_pads, dtype=torch.long, device=ids.device)
    mask[:, head : head + num_pads] = 0
    rows = Rows(fresh_cache(model), mask[:, :head], False)
    if head:
        forward(model, ids[None, :head], rows)
    rows.mask, rows.padded = mask[:, :-1], True
    forward(model, torch.cat([ids.new_zeros(num_pads), ids[head:-1]])[None], rows)
    rows.mask = mask
    logits: Tensor = forward(model, ids[None, -1:], rows)
    return logits


def _alike(logits: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
    return bool((logits - expected).abs().max() <= tolerance * expected.abs().max())


def _depends_on_length(config: Any) -> bool:
    """Whether a row's own numbers change with the longest of its batch, or with the column that it starts in."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    stretched = any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)
    return stretched or getattr(text, "attention_chunk_size", None) is not None


def window(config: Any) -> float:
    """Columns that the narrowest layer sees; infinite where all see all."""
    text = config.get_text_config()
    widths = [getattr(text, name, None) for name in ("sliding_window", "window_size")]
    return min((width for width in widths if isinstance(width, int)), default=math.inf)
