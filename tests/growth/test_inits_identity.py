"""For every family of the zoo: layers whose residual outputs are silent hand their input on, or the family is refused.

Nothing in between can pass. A rule of :mod:`depthup.growth.residual` that misses a branch leaves a layer that changes
its input; a family that is in no list is refused; one that is in the list and has no specimen fails the last test.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from depthup.checkpoint.names import Stack, find_stack
from depthup.checkpoint.reader import Checkpoint, open_checkpoint
from depthup.errors import CheckpointError, DepthupError
from depthup.growth.parts import shared_tensors, sorted_tensors
from depthup.growth.residual import PROVEN, find_residual
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

zoo = pytest.importorskip("zoo")
ROWS = zoo.specimens()
# By default one row of each architecture and stack is run, and those that show a family in the form that is proven.
FIRST = {(row.model_type, row.stack): row.family for row in reversed(ROWS)}
DEFAULT = {*FIRST.values(), "hubert-stable", "wav2vec2-stable"}
SORTED = [row if row.family in DEFAULT else pytest.param(row, marks=pytest.mark.slow) for row in ROWS]
# Rows of families that are proven, in a form that normalises the stream or hands on more than the stream.
REFUSED: frozenset[str] = frozenset({
    "opt-post-norm", "glm_moe_dsa-shared", "hubert", "wav2vec2", "wav2vec2-weighted", "wav2vec2-adapter",
    "speech-encoder-decoder/encoder", "cosmos3_omni/text", "seamless_m4t/speech",
})  # fmt: skip

SEEN: set[str] = set()
HELD: set[str] = set()


def saved(specimen: Any, folder: Path) -> tuple[Any, Checkpoint, Stack | None]:
    """The specimen's class, its base on disk, and the stack that grows, if depthup finds it."""
    built = specimen.build()
    built.save_pretrained(folder)
    if specimen.edit is not None:
        specimen.edit(folder)
    base = open_checkpoint(folder)
    try:
        return type(built), base, find_stack(base.tensors, base.config, specimen.stack)
    except CheckpointError:
        return type(built), base, None  # the sweep tells whether that is right


def values(base: Checkpoint, stack: Stack) -> dict[str, float]:
    """What each tensor is filled with so that all layers are silent."""
    layers, _ = sorted_tensors(base, stack)
    shared_tensors(stack, layers)
    found: dict[str, float] = {}
    for layer, held in layers.items():
        residual = find_residual(base.config, stack, held)
        for suffix, value in {**residual.outputs, **residual.gains}.items():
            found[stack.name(layer, suffix)] = value
    return found


def fill(folder: Path, found: dict[str, float]) -> None:
    for path in folder.glob("*.safetensors"):
        held = load_file(path)
        made = {name: torch.full_like(old, found[name]) if name in found else old for name, old in held.items()}
        save_file(made, path, {"format": "pt"})


def lists_that_hand_on(specimen: Any, model: Any, num_layers: int) -> list[str]:
    """Lists of so many modules, each of which put out exactly what came in."""
    handed: dict[str, list[bool]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            stream = (
                inputs[0]
                if inputs
                else next(named[key] for key in ("hidden_states", "hidden_state", "x") if key in named)
            )
            output = output[0] if isinstance(output, (tuple, list)) else output
            handed.setdefault(name, []).append(stream.shape == output.shape and torch.equal(stream, output))

        return hook

    for name, modules in model.named_modules():
        if isinstance(modules, (nn.ModuleList, nn.Sequential)) and len(modules) == num_layers:
            for module in modules:
                module.register_forward_hook(watch(name), with_kwargs=True)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(**specimen.inputs(model))
    return [name for name, each in handed.items() if len(each) >= num_layers and all(each)]


@pytest.mark.parametrize("specimen", SORTED, ids=[row.family for row in ROWS])
@pytest.mark.filterwarnings("ignore")
def test_silent_layers_hand_their_input_on_or_the_family_is_refused(specimen: Any, tmp_path: Path) -> None:
    SEEN.add(specimen.family)
    kind, base, stack = saved(specimen, tmp_path / "base")
    if stack is None:
        return
    family = str(stack.fields(base.config).get("model_type"))
    try:
        found = values(base, stack)
    except CheckpointError:
        assert family not in PROVEN or specimen.family in REFUSED
        return
    assert specimen.family not in REFUSED
    fill(tmp_path / "base", found)
    model = kind.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    assert lists_that_hand_on(specimen, model, stack.num_layers), f"a {family} layer is not silent"
    HELD.add(family)


def test_every_proven_family_was_proved() -> None:
    if not DEFAULT <= SEEN:
        pytest.skip("not all rows were run")
    assert HELD == PROVEN


def plans(num_layers: int) -> list[str]:
    """Plans with identity layers: as many as can be, then fewer, for models whose layers cannot stand anywhere."""
    n = num_layers
    return [
        ",".join(f"{i},{i}:identity" for i in range(n)), f"0-{n - 1},{n - 1}:identity", f"0,0:identity,1-{n - 1}",
        f"0-{n - 2},{n - 2}:identity,{n - 1}", f"0-{n - 1},0-{n - 1}:identity",
        *(f"0-{n - 1},{n - back}-{n - 1}:identity" for back in (4, 3, 2)),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("specimen", ROWS, ids=[row.family for row in ROWS])
@pytest.mark.filterwarnings("ignore")
def test_the_targets_logits_are_the_bases(specimen: Any, tmp_path: Path) -> None:
    """The same through surgery. Exact to the bit; MiniCPM 3 scales by the depth, and rounds once more."""
    kind, base, stack = saved(specimen, tmp_path / "base")
    if stack is None or specimen.family in REFUSED or stack.fields(base.config).get("model_type") not in PROVEN:
        pytest.skip("refused")
    for text in plans(stack.num_layers):
        shutil.rmtree(tmp_path / "target", ignore_errors=True)
        try:
            upscale(tmp_path / "base", tmp_path / "target", LayerPlan.parse(text, stack.num_layers), stack=stack.prefix)
            break
        except DepthupError as error:
            refusal = str(error)
    else:
        pytest.skip(f"no plan with identity layers: {refusal}")
    outputs = []
    for folder in (tmp_path / "base", tmp_path / "target"):
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        torch.manual_seed(0)  # ViLT draws the patches that it keeps
        with torch.inference_mode():
            outputs.append(next(zoo_tensors(model(**specimen.inputs(model)))))
    if specimen.model_type == "minicpm3":
        assert torch.allclose(*outputs, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(*outputs)


def zoo_tensors(value: Any) -> Any:
    from zoo.oracle import tensors

    return tensors(value)
