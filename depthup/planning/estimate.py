"""Time, memory and cost of a workload on a cluster, and what to change where it does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import PlanError
from .compute import forward_flops, recomputed_flops, trained_parameters, training_flops
from .hardware import Cluster, Device
from .memory import Item, Layout, memory, widths
from .shapes import ModelShape
from .workload import UNIT_TOKENS, Workload

# Measured on one H100, rows of 2,048 tokens, float32 masters (docs/plan.md): parameters in matrices -> MFU, where each
# layer is compiled, and where nothing is (TRL; at the larger size with recomputation, which is counted here).
_MEASURED = {
    True: ((184.0e6, 0.309), (1474.8e6, 0.465)),
    False: ((184.0e6, 0.128), (1474.8e6, 0.307)),
}
_MEASURED_LAYER_FLOPS = 1e12  # of one layer and micro-batch, forward and backward, in these runs; less hides no launch
_LEAST_MFU = 0.05
# Rows of several documents are masked, which costs attention; nobody has measured these kinds yet: an assumption.
_KIND_FACTORS = {"sft": 0.9, "dpo": 0.9, "sdpo": 0.9}
_PROCESSOR_MFU = 0.6  # measured: the quickstart on two cores (docs/results/quickstart.json)
_USABLE = 0.95  # of a device's memory; the rest is lost between blocks of the allocator
_MOST_DEVICES = 4096
_LORA_RANK = 16  # that advice tries


@dataclass(frozen=True)
class Estimate:
    """What a workload takes on a cluster.

    Attributes:
        work: The workload.
        num_devices: Devices that have work.
        shards: Devices that share the states.
        items: Memory of one device.
        capacity: Bytes of it that can be used.
        flops: Model FLOPs of the whole stage.
        mfu: Model FLOPs utilisation while the network keeps up.
        tokens_per_second: Trained tokens, of all devices together; 0 where nothing is trained.
        seconds: Of the whole stage.
        dollars: The whole cluster, for that time.
        notes: What holds it up, and what was put for a number that is not known.
    """

    work: Workload
    num_devices: int
    shards: int
    items: tuple[Item, ...]
    capacity: float
    flops: float
    mfu: float
    tokens_per_second: float
    seconds: float
    dollars: float
    notes: tuple[str, ...]

    @property
    def memory_bytes(self) -> float:
        return sum(item.num_bytes for item in self.items)

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.capacity


def default_mfu(shape: ModelShape, kind: str, device: Device, compiled: bool = True) -> float:
    """Utilisation where none is stated: measured at two sizes, linear in the logarithm of the size between and below.

    Above the larger size its figure is taken (published runs of 7 B and more reach 0.39 to 0.50), and of other GPUs
    that of the H100: both are assumptions.
    """
    if device.is_processor:
        return _PROCESSOR_MFU
    (low, at_low), (high, at_high) = _MEASURED[compiled]
    place = math.log(max(shape.num_matrix_parameters, 1) / low) / math.log(high / low)
    return max(_LEAST_MFU, at_low + (at_high - at_low) * min(place, 1.0)) * _KIND_FACTORS.get(kind, 1.0)


def estimate(work: Workload, cluster: Cluster, mfu: float | None = None) -> Estimate:
    """What a workload takes.

    Args:
        work: The workload.
        cluster: Where it runs.
        mfu: Utilisation; None for :func:`default_mfu`.

    Raises:
        PlanError: The devices cannot be divided into groups of ``shard_ranks``.
    """
    shape, device = work.shape, cluster.device
    trains = work.trainable is not None
    num_devices = min(cluster.num_devices, work.rows_per_step) if trains else 1
    shards = _shards(work, cluster) if trains else 1
    each = -(-work.rows_per_step // num_devices) if trains else work.micro_batch_rows
    work = replace(work, micro_batch_rows=min(work.micro_batch_rows, each))
    items = tuple(memory(work, layout_of(device, shards)))
    used = mfu or (default_mfu(shape, work.kind, device, work.compiled) if shape and items else 0.0)
    notes: list[str] = []
    flops = seconds = rate = 0.0
    if shape is not None and items:
        flops = work.num_forward_tokens * forward_flops(shape, work.row_tokens)
        seconds = flops / (device.peak * used * num_devices)
        seconds += work.generated_tokens * 4 * shape.num_active_parameters / device.bandwidth
    if shape is not None and work.trainable is not None:
        step = _step_seconds(work, shape, cluster, num_devices, shards, used, notes)
        rate = work.step_tokens / step
        seconds += work.num_tokens / rate
        flops += work.num_tokens * training_flops(shape, work.row_tokens, work.trainable)
        notes += [*_idle(work, cluster, num_devices), *_guessed(work, shape, device, mfu)]
    seconds += work.copied_bytes / cluster.disk
    dollars = seconds / 3600 * cluster.price
    capacity = _USABLE * device.memory
    return Estimate(work, num_devices, shards, items, capacity, flops, used, rate, seconds, dollars, tuple(notes))


def layout_of(device: Device, shards: int) -> Layout:
    """Where one device of a kind stands, if so many share the states."""
    return Layout(shards, device.is_processor)


def _shards(work: Workload, cluster: Cluster) -> int:
    wanted = work.shard_ranks or cluster.num_devices
    if cluster.num_devices % wanted:
        raise PlanError(
            f"{work.stage}: shard_ranks is {wanted}, and there are {cluster.num_devices} devices",
            allowed=f"a divisor of {cluster.num_devices}",
        )
    return wanted


def _step_seconds(
    work: Workload, shape: ModelShape, cluster: Cluster, num_devices: int, shards: int, mfu: float, notes: list[str]
) -> float:
    """Seconds of an optimizer step: computing or the network, whichever is longer (the one is hidden behind the other).

    For each micro-batch the weights are gathered twice and gradients summed once over the shards; for each step
    gradients are summed over the groups that hold the same shards.
    """
    assert work.trainable is not None
    size = widths(work, layout_of(cluster.device, shards))
    rows = -(-work.rows_per_step // num_devices)
    num_passes = -(-rows // work.micro_batch_rows)
    flops = training_flops(shape, work.row_tokens, work.trainable)
    flops += recomputed_flops(shape, work.row_tokens, work.recompute)
    computing = rows * work.row_tokens * flops / (cluster.device.peak * mfu)
    trained = trained_parameters(shape, work.trainable)
    moved = (2 * size.activation * shape.num_parameters + 4 * trained) * (1 - 1 / shards)
    network = num_passes * moved / cluster.link(shards)
    groups = cluster.num_devices / shards
    network += 2 * 4 * trained / shards * (1 - 1 / groups) / cluster.link(cluster.num_devices) if groups > 1 else 0.0
    if network > computing:
        help_ = f", or shard_ranks: {cluster.per_node} (HSDP)" if shards > cluster.per_node else ""
        notes.append(
            f"the network holds it up: {network:.3g} s of each step, computing {computing:.3g} s; a larger"
            f" micro_batch_rows{help_} would help"
        )
    return max(computing, network)


def _idle(work: Workload, cluster: Cluster, num_devices: int) -> Iterator[str]:
    rows, all_devices = work.rows_per_step, cluster.num_devices
    if num_devices < all_devices:
        yield f"rows_per_step = {rows} gives work to {num_devices} of {all_devices} devices"
    elif rows % num_devices:
        share = rows / (num_devices * -(-rows // num_devices))
        yield f"rows_per_step = {rows} is no multiple of {num_devices} devices: they work {share:.0%} of the time"


def _guessed(work: Workload, shape: ModelShape, device: Device, mfu: float | None) -> Iterator[str]:
    tokens = work.micro_batch_rows * work.row_tokens
    enough = _MEASURED_LAYER_FLOPS / (6 * max(layer.matrices for layer in shape.layers))
    if mfu is None and not device.is_processor and tokens < enough:
        yield (
            f"a micro-batch of {tokens:,} tokens will not reach the MFU, which was measured with as much work as"
            f" {enough:,.0f} tokens are for this model; state your own with --mfu"
        )
    if shape.num_active_parameters < shape.num_parameters:
        active, every = shape.num_active_parameters / 1e9, shape.num_parameters / 1e9
        yield f"a token meets {active:.2f} of {every:.2f} billion parameters; the MFU of mixtures was not measured"
    if work.num_steps is None:
        yield f"its data are not counted: time and cost are of {UNIT_TOKENS:,} tokens"
    if work.at_most:
        yield "pairs do not fill their rows: tokens, time and cost are at most these"


# -- advice -----------------------------------------------------------------------------------------------------------


def smallest_number(work: Workload, device: Device) -> int | None:
    """The smallest number of devices (above 8 in nodes of 8) on which a workload fits with its settings, or None."""
    numbers = [1] if device.is_processor else [*range(1, 9), *range(16, _MOST_DEVICES + 1, 8)]
    for number in numbers:
        if _held(work, device, number) <= _USABLE * device.memory:
            return number
    return None


def most_rows(work: Workload, device: Device, shards: int) -> int:
    """Rows of the largest micro-batch that fits; 0 if not even one row does."""
    limit = _USABLE * device.memory
    low, high = 0, max(work.rows_per_step, 1)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _held(replace(work, micro_batch_rows=middle), device, shards) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _held(work: Workload, device: Device, shards: int) -> float:
    return sum(item.num_bytes for item in memory(work, layout_of(device, shards)))


def advice(found: Estimate, device: Device) -> list[str]:
    """What to change where a stage does not fit, each with the memory that it leads to; empty where it fits."""
    if found.fits or found.work.shape is None:
        return []
    work, lines = found.work, [
        f"{found.work.stage} does not fit: {_gb(found.memory_bytes)} of {_gb(found.capacity)} that a device can use"
    ]  # fmt: skip

    def tell(what: str, changed: Workload, shards: int = found.shards) -> None:
        held = _held(changed, device, shards)
        verdict = "fits" if held <= found.capacity else "not enough alone"
        lines.append(f"  {what}: {_gb(held)}, {verdict}")

    if work.trainable is not None:
        rows = most_rows(work, device, found.shards) or 1
        if rows < work.micro_batch_rows:
            tell(f"micro_batch_rows: {rows} (now {work.micro_batch_rows})", replace(work, micro_batch_rows=rows))
        if work.recompute == "none":
            tell("recompute: selective", replace(work, recompute="selective"))
        if work.recompute != "full":
            tell("recompute: full (a third more computing)", replace(work, recompute="full"))
        if not (work.compiled or device.is_processor):
            tell("compile: true", replace(work, compiled=True))
        if work.precision != "bfloat16" and not device.is_processor:
            tell("precision: bfloat16", replace(work, precision="bfloat16"))
        if not work.trainable.lora_rank:
            lora = replace(work, trainable=replace(work.trainable, lora_rank=_LORA_RANK))
            tell(f"lora: {{rank: {_LORA_RANK}}}, which trains other things", lora)
    elif work.micro_batch_rows > 1:
        tell(f"micro_batch_rows: 1 (now {work.micro_batch_rows})", replace(work, micro_batch_rows=1))
    if work.trainable is not None and not any(line.endswith(", fits") for line in lines):
        tell("micro_batch_rows: 1, recompute: full and precision: bfloat16 together",
             replace(work, micro_batch_rows=1, recompute="full", precision="bfloat16"))  # fmt: skip
    least = replace(work, micro_batch_rows=1, recompute="full")
    for said, changed in (("as it is", work), ("with micro_batch_rows: 1 and recompute: full", least)):
        number = smallest_number(changed, device) if work.trainable is not None else None
        if number is not None:
            lines.append(f"  smallest number of {device.title}, {said}: {number}")
    return lines


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
