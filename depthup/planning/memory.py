"""Memory of one device, item by item, in bytes.

States are divided among the devices of a shard group (FSDP2; ZeRO stage 3, arXiv:1910.02054): weights, gradients and
moments. Activations are those of one micro-batch (arXiv:2205.05198 counts them for another layer; the coefficients
here are measured, see ``docs/plan.md``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .compute import trained_parameters
from .shapes import LayerShape, ModelShape
from .workload import Workload

Kernels = Literal["eager", "compiled"]
LOSS_CHUNK_TOKENS = 8192  # on a GPU the loss is computed in chunks, the logits of each again in the backward pass
_CONTEXT = 1.5e9  # CUDA context, kernels and workspaces of one process: an assumption
_COLLECTIVES = 1.0e9  # buffers of NCCL: an assumption
_PROCESS = 0.4e9  # interpreter, torch and transformers on a processor: measured


class Item(NamedTuple):
    """One line of the account: what, bytes, and how they were counted."""

    name: str
    num_bytes: float
    how: str


@dataclass(frozen=True)
class Layout:
    """How one device computes.

    Attributes:
        shards: Devices that share the states.
        kernels: ``compiled`` layer by layer (GPU), or ``eager``.
        is_processor: Whether it is a CPU.
    """

    shards: int = 1
    kernels: Kernels = "compiled"
    is_processor: bool = False


class _Widths(NamedTuple):
    """Bytes of a trained weight, of its copy for computing, of its gradient; and of an activation."""

    weight: int
    copy: int
    gradient: int
    activation: int


PRECISIONS = {
    "float32": _Widths(4, 0, 4, 4),
    "mixed": _Widths(4, 2, 4, 2),
    "bfloat16": _Widths(2, 0, 2, 2),
}
MOMENTS = {"adamw": 8, "adamw-bf16": 4, "adamw-8bit": 2}  # bytes a trained parameter, both moments


def widths(work: Workload, layout: Layout) -> _Widths:
    """The workload's precision on a device."""
    chosen = work.precision
    return PRECISIONS[("float32" if layout.is_processor else "mixed") if chosen == "auto" else chosen]


def memory(work: Workload, layout: Layout) -> list[Item]:
    """What one device holds at the fullest moment of a step; empty for stages without a model in memory."""
    if work.shape is None or not (work.trainable or work.forward_tokens):
        return []
    items = [*_states(work, work.shape, layout), *_passing(work, work.shape, layout)]
    if layout.is_processor:
        items.append(Item("interpreter and libraries", _PROCESS, "measured"))
    else:
        several = layout.shards > 1
        items.append(Item("context and buffers", _CONTEXT + _COLLECTIVES * several, "assumed"))
    return [item for item in items if item.num_bytes]


def _states(work: Workload, shape: ModelShape, layout: Layout) -> Iterator[Item]:
    size, n = widths(work, layout), layout.shards
    over = f" / {n}" if n > 1 else ""
    if work.trainable is None:
        yield Item("weights", shape.num_parameters * 4, f"4 B x {_count(shape.num_parameters)}")
        return
    trained = trained_parameters(shape, work.trainable)
    frozen = shape.num_parameters - (0 if work.trainable.lora_rank else trained)
    name = "float32 master weights" if size.copy else "weights"
    yield Item(name, size.weight * trained / n, f"{size.weight} B x {_count(trained)}{over}")
    yield Item("frozen weights", size.activation * frozen / n, f"{size.activation} B x {_count(frozen)}{over}")
    yield Item("gradients", size.gradient * trained / n, f"{size.gradient} B x {_count(trained)}{over}")
    moments = MOMENTS[work.optimizer]
    yield Item("optimizer moments", moments * trained / n, f"{moments} B x {_count(trained)}{over}")
    if n == 1:
        yield Item("bfloat16 copy for computing", size.copy * trained, f"{size.copy} B x {_count(trained)}")
        return
    # One layer is computed with while the next is gathered; embeddings, norm and head stay gathered. Gradients are
    # whole in the computing type, and once more in float32 while they are summed over the devices.
    widest = max(layer.parameters for layer in shape.layers)
    sums = size.activation + 4 if not work.trainable.lora_rank else 0
    gathered = size.activation * (2 * widest + shape.outside) + sums * (widest + shape.outside)
    yield Item("gathered layers", gathered, f"2 layers of {_count(widest)} and {_count(shape.outside)} outside them")


def _passing(work: Workload, shape: ModelShape, layout: Layout) -> Iterator[Item]:
    tokens = min(work.micro_batch_rows, work.rows_per_step) * work.row_tokens
    size = widths(work, layout).activation
    in_float32 = work.trainable is None
    what = f"{work.micro_batch_rows} x {work.row_tokens:,} tokens"
    if in_float32:  # of a layer at a time
        widest = max(_layer_elements(shape, layer, layout.kernels) for layer in shape.layers)
        yield Item("activations", 4 * tokens * widest, f"one layer, {what}")
        logits = 8 * tokens * shape.vocab
        yield Item("logits", logits, f"{what} x {shape.vocab:,}, twice in float32")
        return
    elements = activation_elements(shape, layout.kernels, work.recompute)
    again = "" if work.recompute == "none" else f", {work.recompute} recomputation"
    how = f"{what} x {size * elements / 1e3:,.0f} kB{again}"
    yield Item("activations", size * tokens * elements, how)
    # Either the logits of a chunk and their gradients (8 B each), or the gradients of one layer's activations.
    chunk = tokens if layout.kernels == "eager" else min(tokens, LOSS_CHUNK_TOKENS)
    logits = 8 * chunk * shape.vocab
    inside = size * tokens * max(2 * shape.hidden + 3 * layer.inner for layer in shape.layers)
    name, how = ("logits and their gradients", f"{chunk:,} tokens x {shape.vocab:,} x 8 B")
    yield Item(name, logits, how) if logits > inside else Item("gradients of activations", inside, "one layer")


def activation_elements(shape: ModelShape, kernels: Kernels = "compiled", recompute: str = "none") -> int:
    """Numbers that autograd keeps for each token between forward and backward pass.

    With ``full`` recomputation the input of each layer is kept, with ``selective`` all but the wide MLP; of one layer
    at a time everything is there again.
    """
    last = 3 * shape.hidden  # the final norm and what follows
    each = [_layer_elements(shape, layer, kernels) for layer in shape.layers]
    if recompute == "full":
        return last + len(each) * shape.hidden + max(each)
    if recompute == "selective":
        wide = [_wide(shape, layer, kernels) for layer in shape.layers]
        return last + sum(each) - sum(wide) + max(wide)
    return last + sum(each)


def _wide(shape: ModelShape, layer: LayerShape, kernels: Kernels) -> int:
    """What the MLP keeps at its inner width: gate, its activation, up, product; compiled without the activation."""
    num_kept = {("eager", True): 4, ("compiled", True): 3, ("eager", False): 5, ("compiled", False): 2}
    return num_kept[kernels, shape.gated] * layer.inner


def _layer_elements(shape: ModelShape, layer: LayerShape, kernels: Kernels) -> int:
    """Queries, keys, values and attention's output; the stream before, inside and after each norm; the MLP."""
    attention = 2 * (layer.queries + layer.keys)
    if shape.head_norms:
        attention += layer.queries + layer.keys
    if kernels == "compiled":
        stream = (2 + shape.norms) * shape.hidden  # before and after each of the two parts, and each norm's
    else:
        # An RMSNorm keeps its input, the normed input, and its product with the weight where a matrix reads that.
        stream = (3 * 2 + 2 * (shape.norms - 2) if shape.gated else 2 * shape.norms) * shape.hidden
    routed = 3 * layer.routes * shape.hidden  # each expert's rows, gathered, and what comes back
    return attention + stream + routed + _wide(shape, layer, kernels)


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
