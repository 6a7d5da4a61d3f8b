"""Where a run computes: one device, or many that torchrun or Slurm started; and how a model is laid over them.

Nothing distributed is written by hand: torch's FSDP2 shards each decoder layer and the rest (``fully_shard``), a mesh
of two dimensions makes it HSDP (shards within a group, replicas across), gloo carries it on CPU, NCCL on GPUs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from ..errors import TrainingError

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: This process, 0 to size - 1; rank 0 writes metrics and speaks.
        size: Number of processes, one a device.
        device: Where this process computes.
        mesh: The devices of a distributed run; None for a run alone.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up over all ranks, in place; every rank gets the result."""
        if self.mesh is not None:
            dist.all_reduce(values)
        return values

    def grouped(self, shard_ranks: int | None) -> World:
        """The same ranks, of which so many share one copy of the model, and the others hold further copies (HSDP).

        Raises:
            TrainingError: The ranks cannot be divided into groups of ``shard_ranks``.
        """
        if shard_ranks is not None and (shard_ranks < 1 or self.size % shard_ranks):
            raise TrainingError(
                f"shard_ranks is {shard_ranks}, and there are {self.size} ranks", allowed=f"a divisor of {self.size}"
            )
        if self.mesh is None or shard_ranks in (None, self.size):
            return self
        groups = (self.size // (shard_ranks or 1), shard_ranks or 1)
        mesh = init_device_mesh(self.device.type, groups, mesh_dim_names=("replicate", "shard"))
        return World(self.rank, self.size, self.device, mesh)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.mesh is not None:
            dist.barrier()


def alone(device: torch.device | str = "cpu") -> World:
    """A run of one process."""
    return World(0, 1, torch.device(device))


@contextlib.contextmanager
def open_world(device: str, *, timeout_seconds: float = 1800) -> Iterator[World]:
    """The world that the launcher's environment describes (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``), or one process.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1``; under a launcher, ``cuda`` becomes this process's own GPU.
        timeout_seconds: A collective that hangs so long ends the run instead of waiting for ever.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and "RANK" not in os.environ:
        yield alone(device)
        return
    kind = torch.device(device).type
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    try:
        yield World(dist.get_rank(), size, place, init_device_mesh(kind, (size,), mesh_dim_names=("shard",)))
    finally:
        dist.destroy_process_group()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers, in order: members of the longest list of modules of the kinds that the model says not to split.

    Raises:
        TrainingError: The model names no such kind.
    """
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    layers = max((list(m) for m in lists if type(m[0]).__name__ in kinds), key=len, default=[])
    if not layers:
        raise TrainingError(
            f"{type(model).__name__} does not say which of its modules are layers (_no_split_modules)",
            next_step="train it on one device, with recompute: none and compile: false",
        )
    return layers


def lay_out(
    model: nn.Module, world: World, *, mixed: bool = False, recompute: Recompute = "none", compile: bool = False
) -> None:
    """Prepare a model in place: recomputation of activations, per-layer compilation, sharding.

    Each layer is compiled by itself: tracing a whole transformers model makes it build a dense mask and lose flash
    attention (docs/log.md). Parameters keep their names.

    Args:
        model: On its device; with more than one rank, whole and alike on all of them.
        world: Where it runs.
        mixed: Compute in bfloat16 from float32 shards (with several ranks). Gradients are reduced in float32 always.
        recompute: Activations that the backward pass makes again: none, those that are cheap (all but matrix products
            and attention), or all inside each layer.
        compile: Compile each layer.

    Raises:
        TrainingError: The model does not say which of its modules are layers.
    """
    if recompute != "none":
        options: dict[str, Any] = {"use_reentrant": False}
        if recompute == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise TrainingError(f"{type(model).__name__} cannot recompute activations", next_step="set recompute: none")
        # transformers renamed the method in 5.2x and will drop the old name in 6
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable(options)  # type: ignore[operator]
    if compile:
        for layer in decoder_layers(model):
            layer.compile()
    if world.mesh is None:
        return
    policy = MixedPrecisionPolicy(torch.bfloat16 if mixed else None, torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=world.mesh, mp_policy=policy)
    fully_shard(model, mesh=world.mesh, mp_policy=policy)


_PRODUCTS = frozenset({
    "mm", "addmm", "bmm", "linear", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu", "_flash_attention_forward",
    "_varlen_attn",
})  # fmt: skip


def _keep_products(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    name = str(operation).split(".")[1] if "." in str(operation) else str(operation)
    return CheckpointPolicy.MUST_SAVE if name in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def full_weights(model: nn.Module, world: World) -> dict[str, Tensor]:
    """All weights of a model, gathered on the CPU of rank 0; empty on the others. Every rank must call it."""
    if world.mesh is None:
        return dict(model.state_dict())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered: dict[str, Any] = get_model_state_dict(model, options=options)
    return gathered
