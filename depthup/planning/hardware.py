"""What a run may run on: peaks from the makers' data sheets, prices that are assumptions.

Peaks are of dense bfloat16 products accumulated in float32. The sheets' larger figures are with 2:4 sparsity, and an
MFU against those is half of what it should be (reference: nanoGPT #464, fms-fsdp #89).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from ..errors import PlanError, nearest

_GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """One accelerator, or one machine's processor.

    Attributes:
        title: Its name for people.
        peak: FLOP/s, dense bfloat16 (float32 for the processor).
        memory: Bytes that programs can have.
        bandwidth: Bytes/s of that memory.
        link: Bytes/s in one direction to the others of its node.
        network: Bytes/s in one direction to other nodes. An assumption: it is the cluster's, not the device's.
        price: Dollars an hour. An assumption.
        source: Of the peak.
    """

    title: str
    peak: float
    memory: float
    bandwidth: float
    link: float
    network: float
    price: float
    source: str

    @property
    def is_processor(self) -> bool:
        return self.title.startswith("CPU")


DEVICES = {
    "h100": Device("H100 SXM 80 GB", 989e12, 79 * _GIB, 3.35e12, 450e9, 50e9, 2.50, "NVIDIA H100 data sheet: 989"),
    "h200": Device("H200 SXM 141 GB", 989e12, 139 * _GIB, 4.8e12, 450e9, 50e9, 3.20, "NVIDIA H200 data sheet: 989"),
    "b200": Device("B200 SXM 180 GB", 2250e12, 178 * _GIB, 7.7e12, 900e9, 50e9, 4.50, "NVIDIA HGX B200: 2,250"),
    "a100-80gb": Device("A100 SXM 80 GB", 312e12, 79 * _GIB, 2.04e12, 300e9, 25e9, 1.60, "NVIDIA A100 data sheet: 312"),
    "a100-40gb": Device("A100 SXM 40 GB", 312e12, 39 * _GIB, 1.56e12, 300e9, 25e9, 1.20, "NVIDIA A100 data sheet: 312"),
    "l40s": Device("L40S 48 GB", 362e12, 44 * _GIB, 0.86e12, 32e9, 12.5e9, 0.90, "NVIDIA L40S data sheet: 362"),
    "rtx4090": Device("RTX 4090 24 GB", 165e12, 23.5 * _GIB, 1.01e12, 32e9, 1.25e9, 0.40,
                      "NVIDIA Ada whitepaper: 165.2, accumulated in float32"),
    "rtx3090": Device("RTX 3090 24 GB", 71e12, 23.5 * _GIB, 0.94e12, 32e9, 1.25e9, 0.25,
                      "NVIDIA GA102 whitepaper: 71, accumulated in float32"),
    "mi300x": Device("MI300X 192 GB", 1307e12, 191 * _GIB, 5.3e12, 448e9, 50e9, 2.50, "AMD MI300X data sheet: 1,307"),
    # One core, at no price.
    "cpu": Device("CPU", 86e9, 4 * _GIB, 10e9, 10e9, 1.25e9, 0.0, "each core 32 float32 FLOPs a cycle at 2.7 GHz"),
}  # fmt: skip
DISK_BYTES_PER_SECOND = 1e9  # an assumption; one NVMe disk writes 1 to 5 GB/s, a network volume 0.1 to 1


@dataclass(frozen=True)
class Cluster:
    """Devices of one kind: ``per_node`` in each of ``num_nodes`` nodes.

    Attributes:
        device: The kind.
        per_node: Devices in a node.
        num_nodes: Nodes.
        disk: Bytes/s to and from the store.
    """

    device: Device
    per_node: int = 1
    num_nodes: int = 1
    disk: float = DISK_BYTES_PER_SECOND

    @property
    def num_devices(self) -> int:
        return self.per_node * self.num_nodes

    @property
    def price(self) -> float:
        """Dollars an hour, of all devices."""
        return self.device.price * self.num_devices

    def link(self, num_devices: int) -> float:
        """Bytes/s in one direction that each of a group of so many devices, node by node, has to the others."""
        return self.device.link if num_devices <= self.per_node else self.device.network

    def describe(self) -> str:
        """As in ``4 nodes of 8 x H100 SXM 80 GB``."""
        devices = self.device.title if self.per_node == 1 else f"{self.per_node} x {self.device.title}"
        return f"{self.num_nodes} nodes of {devices}" if self.num_nodes > 1 else devices


def parse_hardware(text: str, num_nodes: int = 1, price: float | None = None) -> Cluster:
    """Read ``h100``, ``8xh100`` or ``cpu`` (this machine: its cores, its memory).

    Raises:
        PlanError: No such device, or a number that is not above 0.
    """
    match = re.fullmatch(r"(?:(\d{1,4})x)?([a-z0-9-]+)", text.strip().lower())
    name = match[2] if match else text
    if match is None or name not in DEVICES:
        raise PlanError(
            f"--hardware {text}{nearest(name, DEVICES)}",
            allowed=f"{', '.join(DEVICES)}; with a number in front for several in a node, as in 8xh100",
        )
    count = int(match[1] or 1)
    if not 1 <= count <= 4096 or not 1 <= num_nodes <= 100_000:
        raise PlanError(f"--hardware {text} --nodes {num_nodes}", allowed="at least one device and one node")
    device = DEVICES[name]
    if device.is_processor:
        if count > 1 or num_nodes > 1:
            raise PlanError(f"--hardware {text} --nodes {num_nodes}: training runs on the cores of one machine",
                            allowed="cpu")  # fmt: skip
        device = this_machine(os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if price is not None:
        device = replace(device, price=price)
    return Cluster(device, count, num_nodes)


def this_machine(num_cores: int, memory: float) -> Device:
    """The processor of a machine with so many cores and bytes of memory."""
    core = DEVICES["cpu"]
    return replace(core, title=f"CPU, {num_cores} cores", peak=core.peak * num_cores, memory=memory)


def peak_of(name: str) -> float | None:
    """Peak of a device in bfloat16, FLOP/s, by the name that its driver gives (``NVIDIA H100 80GB HBM3``), if known."""
    words = name.lower().replace("-", " ").replace("geforce ", "").replace("rtx ", "rtx").split()
    found = [device.peak for key, device in DEVICES.items() if key.partition("-")[0] in words]
    return found[0] if found else None
