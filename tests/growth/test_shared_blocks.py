"""On a file system that shares blocks (btrfs, XFS) a target takes hardly any disk: proved where the tests run on one.

To run it: `pytest tests/growth/test_shared_blocks.py --basetemp=FOLDER`, with FOLDER on such a file system.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pico
import pytest

from depthup.checkpoint.reader import SINGLE_NAME
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

_FICLONE = 0x40049409  # linux/fs.h: share all blocks of another file


def test_a_target_shares_the_blocks_of_its_base(tmp_path: Path) -> None:
    require_shared_blocks(tmp_path)
    layer_bytes, num_layers = 4 << 20, 8
    (tmp_path / "base").mkdir()
    names = ["embed", *(f"model.layers.{i}.w" for i in range(num_layers)), "lm_head"]
    tensors = {name: pico.Raw("U8", (layer_bytes,), os.urandom(layer_bytes)) for name in names}
    pico.write_tensors(tmp_path / "base" / SINGLE_NAME, tensors)
    (tmp_path / "base" / "config.json").write_text(f'{{"num_hidden_layers": {num_layers}}}')
    used = used_bytes(tmp_path)
    surgery = upscale(tmp_path / "base", tmp_path / "out", LayerPlan.upscale(num_layers, 2))
    assert surgery.num_output_bytes > 14 * layer_bytes
    assert used_bytes(tmp_path) - used < layer_bytes
    raw = pico.raw(tmp_path / "out")
    for target, source in enumerate([0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]):
        assert raw[f"model.layers.{target}.w"] == tensors[f"model.layers.{source}.w"]
    with open(tmp_path / "out" / SINGLE_NAME, "r+b") as file:  # shared, not linked: an edit here is none there
        file.seek(-1, os.SEEK_END)
        file.write(bytes([tensors["lm_head"].data[-1] ^ 1]))
    assert pico.raw(tmp_path / "base") == tensors


def require_shared_blocks(folder: Path) -> None:
    (folder / "one").write_bytes(bytes(8192))
    with open(folder / "one", "rb") as one, open(folder / "other", "wb") as other:
        try:
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
        except OSError:
            pytest.skip("this file system does not share blocks")


def used_bytes(folder: Path) -> int:
    os.sync()
    return shutil.disk_usage(folder).used
