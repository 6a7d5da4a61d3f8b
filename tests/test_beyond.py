"""The experiments beyond language models, through the script that makes the figures, on models of a few weights."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def beyond(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds the repository
    import beyond

    return beyond


def short(task: Any, **changes: Any) -> Any:
    return dataclasses.replace(task, base_steps=1, steps=4, batch_size=4, **changes)


def arms_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {arm["arm"]: arm for arm in result["seeds"][0]["arms"]}


def split_of(beyond: ModuleType, examples: Any) -> Any:
    rows = torch.arange(len(examples.labels))
    return lambda seed: (examples.rows(rows[6:]), examples.rows(rows[:6]))


def test_vision_on_the_digits(beyond: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    import beyond_figure

    task = short(beyond.vision_task())
    train, held_out = task.split(0)
    assert len(train.labels) + len(held_out.labels) == 1797
    shifted = task.augment(train.rows(torch.arange(9)).inputs, torch.Generator().manual_seed(0))["pixel_values"]
    assert shifted.shape == (9, 1, 8, 8) and shifted.min() == -1
    task = short(task, split=lambda seed: (train, held_out.rows(torch.arange(8))))
    file = tmp_path / "figures.json"
    result = beyond.experiment(task, 1, file, "command")
    arms = arms_of(result)
    assert arms["identity"]["largest_logit_gap_at_start"] < 1e-5
    assert arms["identity"]["same_answer_at_start"] == 1
    assert arms[task.main]["largest_logit_gap_at_start"] > 1e-3
    assert arms[beyond.SAME_STEPS]["curve"][0]["loss"] == pytest.approx(result["seeds"][0]["base"]["loss"])
    assert arms[beyond.SAME_FLOPS]["num_steps"] == 5  # 8 layers cost a third more than 6, less what stands once
    assert arms[beyond.ALL_ANEW]["num_steps"] == 5
    assert beyond.experiment(task, 1, file, "command")["seeds"] == json.loads(json.dumps(result["seeds"]))
    beyond.show(result["summary"])
    figure = beyond_figure.figure([json.loads(file.read_text())])
    assert figure.startswith("<svg") and "ViT, digits, 1 seed" in figure


def test_the_summary_is_scipys_paired_test(beyond: ModuleType) -> None:
    stats = pytest.importorskip("scipy.stats")
    losses = {"grown": [0.5, 0.7, 0.4, 0.9], "base": [0.6, 0.75, 0.6, 0.95], "random": [1.5, 1.2, 1.9, 1.4]}
    seeds = [
        {"arms": [{"arm": arm, "curve": [{"loss": 2.0, "accuracy": 0}, {"loss": ends[i], "accuracy": 0.5}]}
                  for arm, ends in losses.items()]}
        for i in range(4)
    ]  # fmt: skip
    rows = {row["arm"]: row for row in beyond.summary("grown", seeds)}
    assert rows["grown"]["main_minus_this"] is None
    expected = {arm: stats.ttest_rel(losses["grown"], losses[arm]) for arm in ("base", "random")}
    for arm, test in expected.items():
        found, reach = rows[arm]["main_minus_this"], test.confidence_interval()
        assert (found["p"], found["low"], found["high"]) == pytest.approx((test.pvalue, reach.low, reach.high))
    assert rows["random"]["main_minus_this"]["p_holm"] == pytest.approx(2 * expected["random"].pvalue)
    assert rows["base"]["main_minus_this"]["num_comparisons"] == 2


@pytest.mark.slow
def test_an_encoder_with_post_norm_layers_cannot_be_silent(beyond: ModuleType) -> None:
    import beyond_tasks

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, vocab_size=40, num_labels=3,
        initializer_range=0.5,
    )  # fmt: skip
    examples = beyond_tasks.Examples({"input_ids": torch.randint(0, 40, (20, 5))}, torch.randint(0, 3, (20,)))
    plans = beyond_tasks._plans(6, (1, 2), 2)
    plans["silenced outputs"] = plans.pop("identity")
    task = short(beyond_tasks.Task(
        "encoder", "", "", transformers.BertForSequenceClassification, r"encoder\.layer\.\d+\.",
        lambda folder, seed: transformers.BertForSequenceClassification(config).save_pretrained(folder),
        split_of(beyond, examples), plans, "depth up-scaling, m = 2", 0, 0, 0, 1e-3, frozen=("bert.embeddings.",),
    ))  # fmt: skip
    arms = arms_of(beyond.experiment(task, 1, None, ""))
    assert "post-norm" in arms["silenced outputs"]["refused"]
    assert arms["silenced outputs"]["largest_logit_gap_at_start"] > 1e-3
    assert not any(arm["refused"] for name, arm in arms.items() if name != "silenced outputs")


def as_package(model: Any, file: Path) -> None:
    """The weights of a Whisper as CTranslate2 stores them: 16 bits, projections that read the same input fused."""
    state = {name.removeprefix("model."): weight.half().numpy() for name, weight in model.state_dict().items()}
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def fuse(target: str, *sources: str) -> None:
        zeros = np.zeros(len(state[f"{sources[0]}.weight"]), np.float16)
        arrays[f"{target}/weight"] = np.concatenate([state[f"{source}.weight"] for source in sources])
        arrays[f"{target}/bias"] = np.concatenate([state.get(f"{source}.bias", zeros) for source in sources])

    def norm(target: str, source: str) -> None:
        arrays[f"{target}/gamma"], arrays[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    arrays["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    for conv in ("conv1", "conv2"):
        fuse(f"encoder/{conv}", f"encoder.{conv}")
    for side in ("encoder", "decoder"):
        arrays[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for i in range(4):
            new, old = f"{side}/layer_{i}", f"{side}.layers.{i}"
            for kind, source in (("self_attention", "self_attn"), ("attention", "encoder_attn"))[
                : 1 + (side[0] == "d")
            ]:
                parts = [f"{old}.{source}.{part}_proj" for part in "qkv"]
                fused = [parts] if source == "self_attn" else [parts[:1], parts[1:]]
                for number, each in enumerate([*fused, [f"{old}.{source}.out_proj"]]):
                    fuse(f"{new}/{kind}/linear_{number}", *each)
                norm(f"{new}/{kind}/layer_norm", f"{old}.{source}_layer_norm")
            fuse(f"{new}/ffn/linear_0", f"{old}.fc1")
            fuse(f"{new}/ffn/linear_1", f"{old}.fc2")
            norm(f"{new}/ffn/layer_norm", f"{old}.final_layer_norm")

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    raw = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        raw.append(text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape))
        raw.append(struct.pack("<BI", 4, array.nbytes) + array.tobytes())
    file.write_bytes(b"".join(raw))


@pytest.mark.slow
def test_a_speech_encoder_out_of_a_package(beyond: ModuleType, tmp_path: Path) -> None:
    import beyond_tasks
    from whisper_package import write_whisper

    settings = {
        "vocab_size": 50, "d_model": 16, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8,
        "decoder_start_token_id": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    original = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**settings, max_source_positions=10)
    )
    original.half().float()
    as_package(original, tmp_path / "model.bin")
    examples = beyond_tasks.transcribed(torch.randn(20, 8, 20), [[5, 6, 7][: 1 + i % 3] for i in range(20)])
    ids = examples.inputs["decoder_input_ids"]
    assert examples.labels[0].tolist() == [-100, 5, beyond_tasks.END, -100, -100]
    ids.remainder_(50)
    examples.labels[examples.labels >= 0] %= 50
    write_whisper(tmp_path / "model.bin", tmp_path / "whole", 10, settings)
    loaded = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**examples.inputs).logits, original.eval()(**examples.inputs).logits)
    task = short(beyond_tasks.Task(
        "speech", "", "", transformers.WhisperForConditionalGeneration, r"model\.encoder\.layers\.\d+\.",
        lambda folder, seed: write_whisper(tmp_path / "model.bin", folder, 10, settings),
        split_of(beyond, examples), beyond_tasks._plans(4, (0, 1), 2), "depth up-scaling, m = 1", 0, 0, 0, 1e-3,
        stack="model.encoder.layers", frozen=("model.decoder.", "proj_out", "model.encoder.embed_positions"),
    ))  # fmt: skip
    arms = arms_of(beyond.experiment(task, 1, None, ""))
    assert arms["identity"]["largest_logit_gap_at_start"] < 1e-5
    assert arms["depth up-scaling, m = 0"]["plan"] == "0-3,0-3"
    assert arms[beyond.LAYERS_ANEW]["num_parameters"] == arms[task.main]["num_parameters"]
