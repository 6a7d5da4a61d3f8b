"""No architecture of the zoo comes out wrong: each is up-scaled right, with proof, or refused with the reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
import sweep
import zoo
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROWS = zoo.specimens()
STATED = architectures.stated()
# Every row takes minutes: one in EVERY is proved by default, all with DEPTHUP_SWEEP=1.
EVERY = int(os.environ.get("DEPTHUP_SWEEP", "8"))
PROVED = [specimen for specimen in ROWS if specimen.family in STATED][::EVERY]


@pytest.mark.parametrize("specimen", PROVED, ids=[specimen.family for specimen in PROVED])
def test_the_verdict_is_the_one_that_the_page_states(specimen: zoo.Specimen, tmp_path: Path) -> None:
    verdict = sweep.prove(specimen, tmp_path / "specimen")
    assert verdict.outcome == STATED[specimen.family], verdict.reason
    assert verdict.outcome == "right" or verdict.reason, "a refusal without a reason"


def test_the_page_states_no_row_that_is_not_in_the_zoo() -> None:
    assert STATED.keys() <= {specimen.family for specimen in ROWS}
    assert list(STATED.values()).count("right") >= 0.9 * len(STATED)


# What cannot be built here, and why.
UNBUILT = {
    "gemma3n": "its vision tower is timm's; the row gemma3n_text is its language model",
    "gemma4_assistant": "transformers 5.23 raises for every config: all layers share, and none stores",
    "gemma4_unified_assistant": "the same",
}


def test_every_causal_language_model_of_transformers_has_a_row() -> None:
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - UNBUILT.keys() <= {specimen.model_type for specimen in ROWS}


# -- the sweep sees what it should ------------------------------------------------------------------------------------


def _swap_kinds(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    kinds = config["layer_types"]
    last = len(kinds) - 1 - kinds[::-1].index("full_attention")
    kinds[last], kinds[last - 1] = kinds[last - 1], kinds[last]
    (folder / "config.json").write_text(json.dumps(config))


def _swap_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    one, other = (f"model.layers.{layer}.input_layernorm.weight" for layer in (8, 9))
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.11.input_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _widen_the_window(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 9}))


@pytest.mark.parametrize("harm", [_swap_kinds, _swap_tensors, _lose_a_tensor, _widen_the_window])
def test_the_sweep_sees_a_harmed_target(harm: Callable[[Path], None], tmp_path: Path, monkeypatch) -> None:
    whole = sweep.upscale

    def harmful(base: Path, out: Path, *arguments: Any, **options: Any) -> Any:
        surgery = whole(base, out, *arguments, **options)
        harm(out)
        return surgery

    monkeypatch.setattr(sweep, "upscale", harmful)
    (specimen,) = zoo.specimens("^gpt_oss$")
    assert sweep.prove(specimen, tmp_path / "specimen").outcome == "wrong"
