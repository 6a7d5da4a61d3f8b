"""Memory of one device, item by item, in bytes.

States are divided among the devices of a shard group (FSDP2; ZeRO stage 3, arXiv:1910.02054): weights, gradients and
moments. Activations are those of one micro-batch (arXiv:2205.05198 counts them for another layer; the coefficients
here are measured, see ``docs/plan.md``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from .compute import trained_parameters
from .shapes import ModelShape
from .workload import Workload

Kernels = Literal["eager", "compiled"]
LOSS_CHUNK_TOKENS = {"processor": 512, "gpu": 4096}  # of which logits are alive at a time (training/kernels.py)
_CONTEXT = 1.5e9  # CUDA context, kernels and workspaces of one process: an assumption
_COLLECTIVES = 1.0e9  # buffers of NCCL: an assumption
UPDATE_PORTION = 1 << 25  # parameters that the optimizer updates together
_PROCESS = 0.4e9  # interpreter, torch and transformers on a processor: measured


class Item(NamedTuple):
    """One line of the account: what, bytes, and how they were counted."""

    name: str
    num_bytes: float
    how: str


@dataclass(frozen=True)
class Layout:
    """Where one device stands.

    Attributes:
        shards: Devices that share the states.
        is_processor: Whether it is a CPU.
    """

    shards: int = 1
    is_processor: bool = False


class _Widths(NamedTuple):
    """Bytes of a trained weight and of its copy to compute with; of a gradient; of an activation; and of copies in
    float32 that the update makes of weights and gradients."""

    weight: int
    copy: int
    gradient: int
    activation: int
    update: int


# What training/optimizers.py holds; sharded, FSDP2 makes the copies of mixed precision layer by layer.
_ALONE = {
    "float32": _Widths(4, 0, 4, 4, 0),
    "mixed": _Widths(4, 2, 2, 2, 4),
    "bfloat16": _Widths(2, 0, 2, 2, 8),
}
_SHARDED = {**_ALONE, "mixed": _Widths(4, 0, 4, 2, 0)}


def widths(work: Workload, layout: Layout) -> _Widths:
    """The workload's precision on a device."""
    table = _SHARDED if layout.shards > 1 else _ALONE
    return table[("float32" if layout.is_processor else "mixed") if work.precision == "auto" else work.precision]


def memory(work: Workload, layout: Layout) -> list[Item]:
    """What one device holds at the fullest moment of a step; empty for stages without a model in memory."""
    shape = work.shape
    if shape is None or not (work.trainable or work.forward_tokens):
        return []
    if work.trainable is None:
        items = [*_looking(work, shape, layout)]
    else:
        passing = list(_passing(work, shape, layout))
        update = _update(work, shape, layout)
        is_larger = update.num_bytes > sum(item.num_bytes for item in passing)
        items = [*_states(work, shape, layout), *([update] if is_larger else passing)]
    if layout.is_processor:
        items.append(Item("interpreter and libraries", _PROCESS, "measured"))
    else:
        items.append(Item("context and buffers", _CONTEXT + _COLLECTIVES * (layout.shards > 1), "assumed"))
    return [item for item in items if item.num_bytes]


def _states(work: Workload, shape: ModelShape, layout: Layout) -> Iterator[Item]:
    assert work.trainable is not None
    size, n = widths(work, layout), layout.shards
    over = f" / {n}" if n > 1 else ""
    trained = trained_parameters(shape, work.trainable)
    frozen = shape.num_parameters - (0 if work.trainable.lora_rank else trained)

    def item(name: str, num_bytes: int, number: int) -> Item:
        return Item(name, num_bytes * number / n, f"{num_bytes} B x {_count(number)}{over}")

    yield item("float32 master weights" if size.weight > size.activation else "weights", size.weight, trained)
    yield item("copy of them to compute with", size.copy, trained)
    yield item("frozen weights", size.copy or size.weight, frozen)
    yield item("gradients", size.gradient, trained)
    yield item("optimizer moments", work.moment_bytes, trained)
    if n > 1:
        # One layer is computed with while the next is gathered; embeddings, norm and head stay gathered. Gradients are
        # whole in the computing type, and once more in the type in which they are summed over the devices.
        widest = max(layer.parameters for layer in shape.layers)
        sums = 0 if work.trainable.lora_rank else size.activation + size.gradient
        gathered = size.activation * (2 * widest + shape.outside) + sums * (widest + shape.outside)
        yield Item(
            "gathered layers", gathered, f"2 layers of {_count(widest)} and {_count(shape.outside)} outside them"
        )


def _update(work: Workload, shape: ModelShape, layout: Layout) -> Item:
    """Copies that the optimizer makes; activations are gone by then."""
    assert work.trainable is not None
    size, trained = widths(work, layout).update, trained_parameters(shape, work.trainable)
    at_once = min(trained / layout.shards, UPDATE_PORTION + shape.vocab * shape.hidden)
    return Item("float32 copies in the update", size * at_once, f"{size} B x {_count(round(at_once))} at a time")


def _looking(work: Workload, shape: ModelShape, layout: Layout) -> Iterator[Item]:
    """Held-out losses: float32, one layer at a time, all logits."""
    tokens, kernels = work.micro_batch_rows * work.row_tokens, _kernels(work, layout)
    what = f"{work.micro_batch_rows} x {work.row_tokens:,} tokens"
    yield Item("weights", 4 * shape.num_parameters, f"4 B x {_count(shape.num_parameters)}")
    yield Item("activations", 4 * tokens * max(_of_layers(shape, kernels, 4)), f"one layer, {what}")
    yield Item("logits", 8 * tokens * shape.vocab, f"{what} x {shape.vocab:,}, twice in float32")


def _passing(work: Workload, shape: ModelShape, layout: Layout) -> Iterator[Item]:
    """What stands between forward and backward pass."""
    assert work.trainable is not None
    tokens = min(work.micro_batch_rows, work.rows_per_step) * work.row_tokens
    size = widths(work, layout).activation
    elements = activation_elements(shape, _kernels(work, layout), work.recompute, size)
    again = "" if work.recompute == "none" else f", {work.recompute} recomputation"
    what = f"{work.micro_batch_rows} x {work.row_tokens:,} tokens x {size * elements / 1e3:,.0f} kB{again}"
    yield Item("activations", size * tokens * elements, what)
    # At the turn the logits of a chunk with their gradients (8 B), and the head's gradient summed in float32; later
    # the gradients of one layer's activations.
    chunk = min(tokens, LOSS_CHUNK_TOKENS["processor" if layout.is_processor else "gpu"])
    has_gradient = work.trainable.outside and not work.trainable.lora_rank
    head = 8 * chunk * shape.vocab + (4 * shape.head if has_gradient else 0)
    inside = size * tokens * max(2 * shape.hidden + 3 * layer.inner for layer in shape.layers)
    if head > inside:
        yield Item("logits of a chunk, gradient of the head", head, f"{chunk:,} tokens x {shape.vocab:,} x 8 B")
    else:
        yield Item("gradients of activations", inside, "one layer")


# -- activations ------------------------------------------------------------------------------------------------------


def activation_elements(
    shape: ModelShape, kernels: Kernels = "compiled", recompute: str = "none", num_bytes: int = 2
) -> int:
    """Numbers of ``num_bytes`` that autograd keeps for each token between forward and backward pass.

    With ``full`` recomputation the input of each layer is kept, with ``selective`` what matrix products and attention
    make; of one layer at a time everything is there again.
    """
    last = 3 * shape.hidden  # the final norm and what follows
    each = _of_layers(shape, kernels, num_bytes)
    if recompute == "full":
        return last + len(each) * shape.hidden + max(each)
    if recompute == "selective":
        wide = 2 if shape.gated else 1
        kept = (3 * shape.hidden + 2 * (layer.queries + layer.keys) + wide * layer.inner for layer in shape.layers)
        return last + sum(kept) + max(each)
    return last + sum(each)


def _kernels(work: Workload, layout: Layout) -> Kernels:
    return "compiled" if work.compiled and not layout.is_processor else "eager"


def _of_layers(shape: ModelShape, kernels: Kernels, num_bytes: int) -> list[int]:
    """Of each layer: the stream around the norms; queries, keys, values and attention's output; the MLP."""
    stream, head_norms, gated, plain = _KEPT["compiled" if kernels == "compiled" else ("eager", num_bytes)]
    norms = "layer" if not shape.gated else "gemma" if shape.norms == 4 else "rms"
    return [
        stream[norms] * shape.hidden
        + (2 + (head_norms if shape.head_norms else 0)) * (layer.queries + layer.keys)
        + (gated if shape.gated else plain) * layer.inner
        + 3 * layer.routes * shape.hidden  # each expert's rows, gathered, and what comes back
        for layer in shape.layers
    ]


# Multiples of: the hidden width, for all norms of a layer; queries and keys, where they have norms; the MLP's inner
# width, with a gate and without. An eager RMSNorm computes in float32: its input and result are kept in that type, too.
_Kept: TypeAlias = tuple[dict[str, int], int, int, int]
_KEPT: dict[object, _Kept] = {
    "compiled": ({"rms": 4, "gemma": 6, "layer": 4}, 1, 3, 2),
    ("eager", 4): ({"rms": 6, "gemma": 10, "layer": 4}, 2, 4, 5),
    ("eager", 2): ({"rms": 8, "gemma": 18, "layer": 4}, 3, 4, 5),
}


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
