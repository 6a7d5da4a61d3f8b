"""Memory: what autograd keeps in real models, what the optimizer really holds, the case of SOLAR by hand."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pico
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from depthup.layers import LayerPlan
from depthup.planning.compute import ALL, Trainable, trained_parameters
from depthup.planning.memory import Layout, activation_elements, memory
from depthup.planning.shapes import ModelShape, published_shape, shape_from_config
from depthup.planning.workload import Workload
from depthup.training.parallel import alone, lay_out

SHAPE = {
    "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "num_hidden_layers": 4, "vocab_size": 320, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma3_text"), SHAPE),
    "gpt2": {
        "n_embd": 96, "n_head": 6, "n_layer": 4, "vocab_size": 320, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
        "embd_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
    },
    "mixtral": {**SHAPE, "num_local_experts": 4},
    "qwen3_moe": {**SHAPE, "moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2},
}  # fmt: skip
ROWS, ROW_TOKENS = 2, 64
ALONE = Layout(1, is_processor=True)
ON_GPU = Layout(1)


def build(family: str, dtype: torch.dtype = torch.float32, num_layers: int = 4) -> tuple[Any, ModelShape]:
    config = AutoConfig.for_model(family, **{**FAMILIES[family], "num_hidden_layers": num_layers})
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).train(), shape_from_config(config.to_dict())


def kept_elements(model: Any) -> float:
    """Numbers that autograd keeps for each token: unique storages, those of parameters left out."""
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # holds the tensors, so that no storage is used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in ours:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = pico.tokens(ROW_TOKENS, ROWS)
    places = torch.arange(ROW_TOKENS).repeat(ROWS, 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state.sum()
    return sum(t.untyped_storage().nbytes() for t in kept.values()) / ids.numel() / model.dtype.itemsize


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_keeps(family: str, dtype: torch.dtype) -> None:
    model, shape = build(family, dtype)
    planned = activation_elements(shape, "eager", num_bytes=dtype.itemsize)
    assert planned == pytest.approx(kept_elements(model), rel=0.15)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_activations_of_compiled_layers_are_what_the_partitioner_keeps(family: str) -> None:
    """The same partitioner as on a GPU (it chooses what is computed again), without making kernels."""
    model, shape = build(family, torch.bfloat16)
    torch._dynamo.reset()
    for layer in model.base_model.h if family == "gpt2" else model.base_model.layers:
        layer.compile(backend="aot_eager_decomp_partition")
    assert activation_elements(shape, "compiled") == pytest.approx(kept_elements(model), rel=0.15)


def alive_elements(family: str, recompute: Any, num_layers: int) -> tuple[float, int]:
    """Numbers for each token in all tensors that Python knows after a forward pass, those of parameters left out; and
    the plan's, without the one layer that the backward pass has again."""
    model, shape = build(family, num_layers=num_layers)
    lay_out(model, alone(), recompute=recompute)
    before = {id(found) for found in gc.get_objects() if type(found) is torch.Tensor}
    ids = pico.tokens(ROW_TOKENS, ROWS)
    places = torch.arange(ROW_TOKENS).repeat(ROWS, 1)
    out = model.base_model(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state
    found = [found for found in gc.get_objects() if type(found) is torch.Tensor and id(found) not in before]
    alive = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    assert out.requires_grad
    again = activation_elements(shape, "eager", "none", 4) - 3 * shape.hidden
    planned = activation_elements(shape, "eager", recompute, 4) - again // num_layers
    return sum(alive.values()) / ids.numel() / 4, planned


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_each_layer_more_keeps_what_recomputation_leaves(family: str, recompute: str) -> None:
    few, many = (alive_elements(family, recompute, num_layers) for num_layers in (2, 6))
    assert many[1] - few[1] == pytest.approx(many[0] - few[0], rel=0.15)


def items(work: Workload, layout: Layout) -> dict[str, float]:
    return {item.name: item.num_bytes for item in memory(work, layout)}


@pytest.mark.filterwarnings("ignore")  # peft asks transformers for an old name
@pytest.mark.parametrize("rank", [0, 4])
def test_states_are_what_a_step_of_adamw_holds(rank: int) -> None:
    model, shape = build("llama")
    work = Workload("stage", "sft", shape, Trainable(lora_rank=rank), ROW_TOKENS, rows_per_step=2, micro_batch_rows=2)
    if rank:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    model(input_ids=pico.tokens(8, 2)).logits.sum().backward()
    optimizer.step()
    said = items(work, ALONE)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert said["weights"] == sum(parameter.nbytes for parameter in trained)
    assert said["gradients"] == sum(parameter.grad.nbytes for parameter in trained)
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert said["optimizer moments"] == sum(moment.nbytes for moment in moments)
    assert said["weights"] + said.get("frozen weights", 0) == sum(p.nbytes for p in model.parameters())


def solar(**settings: Any) -> Workload:
    shape = published_shape("mistral-7b").grown(LayerPlan.upscale(32, 8))
    return replace(Workload("t", "pretrain", shape, ALL, 4096, rows_per_step=8, num_steps=1, compiled=True), **settings)


def states(work: Workload, layout: Layout) -> float:
    named = ("float32 master weights", "copy of them to compute with", "weights", "gradients", "optimizer moments")
    return sum(size for name, size in items(work, layout).items() if name in named)


def test_solar_by_hand() -> None:
    """10.73 B x 16 B = 171.7 GB, whole or shared; in bfloat16 with 8-bit moments 6 B, 64.4 GB (training.md 4)."""
    assert states(solar(), ON_GPU) == pytest.approx(171.7e9, rel=1e-3)
    assert states(solar(), Layout(32)) == pytest.approx(171.7e9 / 32, rel=1e-3)
    assert states(solar(precision="float32"), ON_GPU) == pytest.approx(171.7e9, rel=1e-3)
    assert states(solar(precision="bfloat16", moment_bytes=2), ON_GPU) == pytest.approx(64.4e9, rel=1e-3)


def test_what_is_shared_shrinks_and_what_is_not_stays() -> None:
    work = solar(micro_batch_rows=8)
    few, many = items(work, Layout(2)), items(work, Layout(16))
    for name in ("float32 master weights", "gradients", "optimizer moments"):
        assert few[name] == 8 * many[name]
    assert few["activations"] == many["activations"]
    assert few["gathered layers"] == many["gathered layers"]


def test_each_recomputation_keeps_less_than_the_one_before() -> None:
    ways = ("none", "selective", "full")
    none, selective, full = (items(solar(recompute=way), Layout(8))["activations"] for way in ways)
    assert full < selective / 4 < none / 4
    assert full >= 48 * 4096 * 4096 * 2  # the input of each layer, at least


def test_lora_leaves_the_frozen_weights_in_the_type_of_computing() -> None:
    work = solar(trainable=Trainable(lora_rank=16))
    said = items(work, ON_GPU)
    assert said["frozen weights"] == 2 * work.shape.num_parameters
    assert said["optimizer moments"] == 8 * trained_parameters(work.shape, work.trainable) < 1e9


def test_runs_that_were_measured_on_an_h100_fit_there() -> None:
    """Reference: measured.md 2; the largest batches of its table ran, so a plan may not call them too large."""
    smol = published_shape("smollm2-135m").grown(LayerPlan.upscale(30, 8))
    large = shape_from_config({
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    })  # fmt: skip
    ran = ((smol, 32, "mixed"), (smol, 48, "bfloat16"), (large, 10, "mixed"), (large, 16, "bfloat16"))
    for shape, rows, precision in ran:
        work = Workload(
            "t", "pretrain", shape, ALL, 2048, rows_per_step=rows, micro_batch_rows=rows, num_steps=1, compiled=True,
            precision=precision, moment_bytes=4 if precision == "bfloat16" else 8,
        )  # fmt: skip
        held = sum(items(work, ON_GPU).values())
        assert 40e9 < held < 79 * 2**30, (rows, held)


@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_states_are_what_the_optimizer_of_each_precision_holds(precision: Any) -> None:
    from depthup.training.optimizers import make_optimizer

    model, shape = build("llama")
    optimizer = make_optimizer(model, weight_decay=0.1, betas=(0.9, 0.95), precision=precision)
    model(input_ids=pico.tokens(8, 2)).logits.sum().backward()
    optimizer.step()
    held = sum(parameter.nbytes + parameter.grad.nbytes for parameter in model.parameters())
    held += sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
    work = Workload("t", "pretrain", shape, ALL, ROW_TOKENS, rows_per_step=2, num_steps=1, precision=precision)
    assert states(work, ON_GPU) == held
