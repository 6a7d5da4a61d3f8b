"""FLOPs and parameters: torch's own FLOP counter, transformers' counts, published models, measured throughput."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pico
import pytest
from torch.utils.flop_counter import FlopCounterMode

from depthup.checkpoint.reader import open_checkpoint
from depthup.costs import FAMILIES
from depthup.errors import DepthupError, PlanError
from depthup.layers import LayerPlan
from depthup.planning.compute import (
    Trainable,
    attended,
    forward_flops,
    recomputed_flops,
    trained_parameters,
    training_flops,
)
from depthup.planning.shapes import ModelShape, published_shape, shape_from_config, shape_of

ROW = 24
COUNTED = [
    "llama", "llama_tied", "llama_bias", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text",
    "gpt2", "mixtral", "granite", "olmo2", "phi3", "starcoder2", "gpt_oss", "gpt_neox", "falcon", "cohere2",
    "deepseek_v2", "ernie4_5_moe",
]  # fmt: skip
FROM_CONFIG = [
    name for name in COUNTED
    if pico.FAMILIES.get(name, ("",))[0] in {*FAMILIES, "mixtral", "qwen2_moe", "qwen3_moe"}
]  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
    "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_30B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8, "tie_word_embeddings": False,
}  # fmt: skip
# The second model of the measured table: hidden 2048, 32 layers, 1.4 B parameters in the shape of TinyLlama.
B1_32 = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip


def smol44() -> ModelShape:
    return published_shape("smollm2-135m").grown(LayerPlan.upscale(30, 8))


def full_attention(shape: ModelShape) -> float:
    """FLOPs a token of attention to the whole row, as a kernel that ignores the causal mask computes it."""
    return sum(12 * layer.queries * ROW for layer in shape.layers)


def counted_flops(folder: Path) -> tuple[float, int]:
    model = pico.load(folder, attn_implementation="eager", experts_implementation="eager").train()
    ids = pico.tokens(ROW, 2)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    return counter.get_total_flops() / ids.numel(), model.num_parameters()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", COUNTED)
def test_matrices_cost_what_the_counter_of_torch_counts(base, family: str) -> None:
    folder = base(family)
    flops, num_parameters = counted_flops(folder)
    shapes = [shape_of(open_checkpoint(folder))]
    if family in FROM_CONFIG:
        shapes.append(shape_from_config(pico.read_json(folder / "config.json")))
    for shape in shapes:
        assert shape.num_parameters == num_parameters
        assert 6 * shape.num_matrix_parameters + full_attention(shape) == pytest.approx(flops, rel=0.02)


@pytest.mark.parametrize("family", FROM_CONFIG)
def test_config_and_headers_give_the_same_shape(base, family: str) -> None:
    folder = base(family)
    from_config = shape_from_config(pico.read_json(folder / "config.json"))
    from_weights = shape_of(open_checkpoint(folder))
    assert from_config.layers == from_weights.layers
    assert from_config.outside == from_weights.outside


@pytest.mark.parametrize(("config", "total", "active"), [(MIXTRAL, 46.7e9, 12.9e9), (QWEN3_30B, 30.5e9, 3.3e9)])
def test_mixtures_have_their_published_sizes(config: dict, total: float, active: float) -> None:
    shape = shape_from_config(config)
    assert shape.num_parameters == pytest.approx(total, rel=0.005)
    assert shape.num_active_parameters == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize(
    ("tokens_per_second", "mfu", "model"),
    [
        (66_622, 9.5, "smol44"), (166_222, 23.8, "smol44"), (215_722, 30.9, "smol44"), (233_802, 33.5, "smol44"),
        (23_537, 23.0, "b1_32"), (39_511, 38.6, "b1_32"), (46_571, 45.5, "b1_32"), (47_587, 46.5, "b1_32"),
        (51_944, 50.7, "b1_32"),
    ],
)  # fmt: skip
def test_measured_throughput_has_the_utilisation_of_the_measured_table(
    tokens_per_second: int, mfu: float, model: str
) -> None:
    shape = smol44() if model == "smol44" else shape_from_config(B1_32)
    assert 100 * tokens_per_second * training_flops(shape, 2048) / 989e12 == pytest.approx(mfu, abs=0.06)


def test_a_row_sees_half_of_itself_and_a_window_sees_less() -> None:
    for row, window in ((8, None), (8, 8), (8, 100), (8, 3), (1000, 64)):
        pairs = sum(min(token + 0.5, window or row) for token in range(row))  # each sees itself by half on average
        assert attended(window, row) * row == pytest.approx(pairs, rel=0.05)
    assert attended(None, 2048) == 1024


def test_frozen_parts_cost_less_and_a_stopped_backward_pass_least() -> None:
    shape = smol44()
    whole = training_flops(shape, 2048)
    assert whole == pytest.approx(3 * forward_flops(shape, 2048))
    matrices = shape.layers[0].matrices
    upper = training_flops(shape, 2048, Trainable(frozenset({43}), outside=False))
    attention = forward_flops(shape, 2048) - 2 * shape.num_matrix_parameters
    by_hand = 4 * shape.head + 43 * 2 * matrices + 6 * matrices + attention * (43 + 3) / 44
    assert upper == pytest.approx(by_hand)
    lower = training_flops(shape, 2048, Trainable(frozenset({0}), outside=False))
    assert forward_flops(shape, 2048) < upper < lower < whole


@pytest.mark.filterwarnings("ignore")  # peft asks transformers for an old name
def test_lora_saves_a_third_of_the_matrices_and_trains_what_peft_trains(base) -> None:
    from peft import LoraConfig, get_peft_model

    folder = base("llama")
    shape = shape_of(open_checkpoint(folder))
    model = get_peft_model(pico.load(folder), LoraConfig(r=4, target_modules="all-linear"))
    adapters = trained_parameters(shape, Trainable(lora_rank=4))
    assert adapters == model.get_nb_trainable_parameters()[0]
    attention = 3 * (forward_flops(shape, ROW) - 2 * shape.num_matrix_parameters)
    assert training_flops(shape, ROW, Trainable(lora_rank=4)) == pytest.approx(
        4 * shape.num_matrix_parameters + attention + 6 * adapters
    )


def test_recomputing_everything_adds_a_forward_pass_of_the_layers() -> None:
    shape = smol44()
    assert recomputed_flops(shape, 2048, "none") == 0
    full = recomputed_flops(shape, 2048, "full")
    assert full == forward_flops(shape, 2048) - 2 * shape.head
    assert recomputed_flops(shape, 2048, "selective") == 0  # of what is no product


@pytest.mark.parametrize("value", ["x", -1, 0, 1.5, None, [], {}, True, 1 << 70])
@pytest.mark.parametrize("config", [MIXTRAL, QWEN3_30B, {**B1_32, "sliding_window": 5, "layer_types": []}])
def test_whatever_a_config_says_it_is_read_or_refused(config: dict, value: object) -> None:
    for key in config:
        with contextlib.suppress(DepthupError):
            shape_from_config({**config, key: value})


def test_an_unknown_family_without_headers_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match="'unheard_of' cannot be told from a config alone"):
        shape_from_config({"model_type": "unheard_of", "num_hidden_layers": 12})
    with pytest.raises(PlanError, match="leaves sizes to the defaults"):
        shape_from_config({"model_type": "llama", "num_hidden_layers": 12})
