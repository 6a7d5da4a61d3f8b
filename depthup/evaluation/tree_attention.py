"""Attention over trees of sequences: one pass computes a shared beginning once, and all that follows it.

All tokens of a batch of trees stand in one row without padding, so that every linear layer computes just what is
needed. Only here they are laid out: the trunks of all trees as padded rows under a causal mask (which torch's kernels
skip), then their branches, where a token sees the stem, its trunk, and its own ancestors among the branches. In
depth-first order a token's descendants are those up to the end of its subtree, so two numbers a token tell the mask.

transformers' attention interface gets :func:`attend` under :data:`NAME`; what a family does besides (grouped heads,
sinks, a cap) is left to the function that the model had before.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DepthupError
from ..models import Model, attention_interfaces

NAME = "depthup_trees"
Keys = tuple[Tensor, Tensor]  # keys and values of one layer, each [1, num_key_value_heads, num_tokens, head_dim]


class NotShared(DepthupError):
    """The model's attention cannot be computed over trees; its sequences are scored one by one."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch of trees stand. Indices count in the flat row of N tokens.

    Attributes:
        trunks: [R, Tt] of each trunk's tokens, padded with 0; R rows of trees.
        branches: [R, Tb] of each tree's other tokens, padded with 0.
        num_trunk: [R] tokens of each trunk.
        ends: [R, Tb] index behind the subtree of each branch token; 0 for padding.
        depths: [R, Tb] position of each branch token in its sequence.
        back: [N] where each token's result stands among R * Tt results of trunks and R * Tb of branches.
        num_stem: Tokens of the stem below all trees.
    """

    trunks: Tensor
    branches: Tensor
    num_trunk: Tensor
    ends: Tensor
    depths: Tensor
    back: Tensor
    num_stem: int

    def trunk_mask(self, window: int | None) -> Tensor | None:
        """bool [1, 1, Tt, stem + Tt]; None where plain causal attention is the same."""
        size = self.trunks.shape[1]
        if not self.num_stem and (window is None or size <= window):
            return None
        queries = torch.arange(size, device=self.trunks.device)[:, None] + self.num_stem
        ages = queries - torch.arange(self.num_stem + size, device=self.trunks.device)
        return _near(ages, window)[None, None]

    def branch_mask(self, window: int | None) -> Tensor:
        """bool [R, 1, Tb, stem + Tt + Tb]."""
        device, size = self.trunks.device, self.trunks.shape[1]
        places = torch.arange(self.num_stem + size, device=device)
        trunk = (places < self.num_stem + self.num_trunk[:, None])[:, None, :]
        trunk = trunk & _near(self.depths[:, :, None] - places, window)
        own = (self.branches[:, :, None] >= self.branches[:, None, :]) & (
            self.branches[:, :, None] < self.ends[:, None, :]
        )
        own = own & _near(self.depths[:, :, None] - self.depths[:, None, :], window)
        return torch.cat([trunk, own], dim=2)[:, None]


@dataclass
class Pass:
    """One forward pass: its layout, the stem's keys and values by layer, and those that it leaves.

    Attributes:
        layout: Of its tokens.
        base: The attention that the model had before: ``sdpa`` or ``eager``.
        stem: Keys and values of the stem, in the order of the layers' calls.
        keeps: Whether to keep those of its single trunk, after the stem's.
        kept: These.
    """

    layout: Layout
    base: str
    stem: Sequence[Keys] = ()
    keeps: bool = False
    kept: list[Keys] = field(default_factory=list)
    num_calls: int = 0
    masks: dict[tuple[str, int | None], Tensor | None] = field(default_factory=dict)

    def mask(self, kind: str, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """The mask of ``trunk`` or ``branch``, made once for all layers with the same window."""
        if (kind, window) not in self.masks:
            layout = self.layout
            made = layout.trunk_mask(window) if kind == "trunk" else layout.branch_mask(window)
            if self.base == "eager":  # adds its mask, and takes none for no mask
                if made is None:
                    size = layout.trunks.shape[1]
                    made = torch.ones((1, 1, size, size), dtype=torch.bool, device=layout.trunks.device).tril()
                made = torch.zeros_like(made, dtype=dtype).masked_fill(~made, torch.finfo(dtype).min)
            self.masks[kind, window] = made
        return self.masks[kind, window]


def make_layout(
    trees: Sequence[tuple[int, int]], ends: NDArray[np.int64], depths: NDArray[np.int64], num_stem: int,
    put: Callable[[NDArray[Any]], Tensor],
) -> Layout:  # fmt: skip
    """Lay out trees that stand one after another in a flat row.

    Args:
        trees: Tokens of the trunk, and of all branches, of each.
        ends: [N] index behind the subtree of each token.
        depths: [N] position of each token in its sequence.
        num_stem: Tokens of the stem.
        put: Moves an array to the model's device.
    """
    num_rows, wide = len(trees), max(trunk for trunk, _ in trees)
    broad = max(branch for _, branch in trees)
    trunks = np.zeros((num_rows, wide), np.int64)
    branches = np.zeros((num_rows, broad), np.int64)
    branch_ends, branch_depths = branches.copy(), branches.copy()
    back = np.empty(len(ends), np.int64)
    begin = 0
    for row, (trunk, branch) in enumerate(trees):
        fork, end = begin + trunk, begin + trunk + branch
        trunks[row, :trunk] = np.arange(begin, fork)
        branches[row, :branch] = np.arange(fork, end)
        branch_ends[row, :branch], branch_depths[row, :branch] = ends[fork:end], depths[fork:end]
        back[begin:fork] = row * wide + np.arange(trunk)
        back[fork:end] = num_rows * wide + row * broad + np.arange(branch)
        begin = end
    num_trunk = np.array([trunk for trunk, _ in trees], np.int64)
    return Layout(put(trunks), put(branches), put(num_trunk), put(branch_ends), put(branch_depths), put(back), num_stem)


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    *, trees: Pass | None = None, sliding_window: int | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """An attention function for transformers.

    Args:
        module: The attention layer.
        query: [1, num_heads, N, head_dim].
        key: [1, num_key_value_heads, N, head_dim].
        value: As ``key``.
        attention_mask: Not looked at.
        trees: The pass.
        sliding_window: Tokens that a token sees, itself included; None for all.
        options: For the attention that the model had before.

    Returns:
        [1, N, num_heads, head_dim], and None for the weights.

    Raises:
        NotShared: The layer does not say what it attends to, or adds a bias by place.
    """
    if trees is None or options.get("position_bias") is not None or query.shape[0] != 1:
        raise NotShared(f"{type(module).__name__} does not take trees of sequences")
    layout, base = trees.layout, _base(trees.base, module)
    stem = trees.stem[trees.num_calls] if trees.stem else None
    trees.num_calls += 1
    num_rows, wide = layout.trunks.shape
    found, trunk_keys = [], [_rows(heads, layout.trunks) for heads in (key, value)]
    if stem is not None:
        kept = [heads.expand(num_rows, -1, -1, -1) for heads in stem]
        trunk_keys = [torch.cat(pair, dim=2) for pair in zip(kept, trunk_keys, strict=True)]
    if trees.keeps:
        trees.kept.append((trunk_keys[0], trunk_keys[1]))
    if wide:
        mask = trees.mask("trunk", sliding_window, query.dtype)
        found.append(base(module, _rows(query, layout.trunks), *trunk_keys, mask, **options)[0])
    if layout.branches.shape[1]:
        mask = trees.mask("branch", sliding_window, query.dtype)
        keys = (
            torch.cat([above, _rows(heads, layout.branches)], dim=2)
            for above, heads in zip(trunk_keys, (key, value), strict=True)
        )
        found.append(base(module, _rows(query, layout.branches), *keys, mask, **options)[0])
    return torch.cat([part.flatten(0, 1) for part in found]).index_select(0, layout.back)[None], None


def _rows(heads: Tensor, places: Tensor) -> Tensor:
    """[1, num_heads, N, head_dim] at places [R, T], as [R, num_heads, T, head_dim]."""
    rows, size = places.shape
    picked = heads[0].index_select(1, places.flatten())
    return picked.view(heads.shape[1], rows, size, heads.shape[3]).transpose(0, 1)


def _near(ages: Tensor, window: int | None) -> Tensor:
    return ages >= 0 if window is None else (ages >= 0) & (ages < window)


def _base(name: str, module: torch.nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The attention function that the model had before; the plain one stands in each family's own file."""
    if name != "eager":
        function: Callable[..., tuple[Tensor, Any]] = attention_interfaces()[0][name]
        return function
    plain: Callable[..., tuple[Tensor, Any]] | None
    plain = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    if plain is None:
        raise NotShared(f"{type(module).__name__} has an attention of its own")
    return plain


@contextlib.contextmanager
def tree_attention(model: Model) -> Iterator[str]:
    """Let a model attend over trees; gives the name of the attention that it had.

    Raises:
        NotShared: Its attention is neither torch's nor the plain one.
    """
    functions, masks = attention_interfaces()
    functions.register(NAME, attend)
    masks.register(NAME, lambda **options: None)
    base = model.config._attn_implementation
    if base not in ("sdpa", "eager"):
        raise NotShared(f"attention '{base}' does not take trees of sequences")
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise NotShared(f"{type(model).__name__} has an attention of its own")
    try:
        yield base
    finally:
        model.set_attn_implementation(base)
