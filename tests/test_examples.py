"""The examples run as they stand, on a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pico
import transformers

REPOSITORY = Path(__file__).parents[1]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(REPOSITORY / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_examples_run_and_are_short(tmp_path: Path) -> None:
    base = pico.checkpoint(tmp_path / "base", tokenizer=True)
    said = run("upscale.py", base, tmp_path / "target", 2)
    assert "target layer 5 is base layer 2; below it stands base layer 4" in said
    (tmp_path / "text.jsonl").write_text('{"text": "The user asks the assistant a question."}\n')
    said = run("held_out_loss.py", tmp_path / "text.jsonl", base, tmp_path / "target")
    assert said.count("perplexity") == 2
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=8, patch_size=4,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    np.savez(tmp_path / "images.npz", images=np.zeros((40, 1, 8, 8)), labels=np.arange(40) % 10)
    said = run("vision.py", tmp_path / "vit", tmp_path / "deeper", 2, tmp_path / "images.npz")
    assert "6 -> 8 layers" in said
    for script in (REPOSITORY / "examples").glob("*.py"):
        assert len(script.read_text().splitlines()) <= 40
