"""The thirteen failures that mergekit writes without a word, as `depthup check` meets them in others' folders.

Eleven families: the weights of twelve layers under the base's config of eight; the first eight load, the rest is
dropped. DeepSeek-V3 loses experts and routers besides. OLMo 2 loses the norms of queries and keys, ViT every layer;
transformers makes them up at random. The bases are the sweep's own, written by transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import zoo
from safetensors.torch import load_file, save_file

from depthup.cli import main
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.models import prove_loading

ROWS = {specimen.family: specimen for specimen in zoo.specimens()}
DEPTH_OF_THE_BASE = [
    "gpt_oss", "olmo3", "opt", "qwen3_next", "smollm3", "llama4_text", "deepseek_v3", "bloom", "exaone4", "nemotron",
    "modernbert",
]  # fmt: skip
LOST = {"olmo2": ("q_norm", "k_norm"), "vit": ("encoder.layer.",), "deepseek_v3": ("mlp.experts.", "mlp.gate.")}


def grown(family: str, tmp_path: Path) -> tuple[Path, Path]:
    """A base that transformers wrote, and what depthup makes of it; the check has nothing to say of either."""
    specimen, base, target = ROWS[family], tmp_path / "base", tmp_path / "target"
    specimen.build().save_pretrained(base)
    if specimen.edit is not None:
        specimen.edit(base)
    num_layers = depth(base)
    plan = LayerPlan.upscale(num_layers, 2 if num_layers % 4 == 0 else 1)
    upscale(base, target, plan, stack=specimen.stack)
    assert main(["check", str(base)]) == main(["check", str(target)]) == 0
    return base, target


def depth(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    return config.get("num_hidden_layers") or config["n_layer"]


def lose(folder: Path, parts: tuple[str, ...]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}
    assert len(kept) < len(tensors)
    save_file(kept, path, {"format": "pt"})


@pytest.mark.parametrize("family", DEPTH_OF_THE_BASE)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_the_target_under_the_config_of_the_base(family: str, tmp_path: Path, capsys) -> None:
    base, target = grown(family, tmp_path)
    shutil.copyfile(base / "config.json", target / "config.json")
    if family in LOST:
        lose(target, LOST[family])
    capsys.readouterr()
    assert main(["check", str(target)]) == 1
    said = capsys.readouterr().out
    assert f"{depth(base)}, " in said and "loads silently" in said
    assert not prove_loading(target).whole


@pytest.mark.parametrize("family", LOST)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_were_lost_from_every_layer(family: str, tmp_path: Path, capsys) -> None:
    _, target = grown(family, tmp_path)
    lose(target, LOST[family])
    capsys.readouterr()
    assert main(["check", str(target)]) == 1
    said = capsys.readouterr().out
    assert "missing on loading" in said or "the weights: no layers" in said
