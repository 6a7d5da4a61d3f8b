"""Names of devices as drivers give them."""

from __future__ import annotations

import pytest

from depthup.planning.hardware import DEVICES, peak_of


@pytest.mark.parametrize(
    ("name", "key"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"), ("NVIDIA GeForce RTX 4090", "rtx4090"),
     ("AMD Instinct MI300X", "mi300x")],
)  # fmt: skip
def test_a_driver_s_name_gives_the_peak(name: str, key: str) -> None:
    assert peak_of(name) == DEVICES[key].peak


def test_an_unknown_device_has_none() -> None:
    assert peak_of("Tesla T4") is None
