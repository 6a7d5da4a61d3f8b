"""Plans that are run without being written: against the checkpoint that surgery writes and transformers loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
import zoo
from torch.nn.functional import cross_entropy

from depthup.errors import CheckpointError, DepthupError, PlanError
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.probe.virtual import can_resume, count_layers, find_tower, virtual_stack, zero_step_losses

Base = Callable[..., Path]
FAMILIES = ("llama", "qwen2_sliding", "qwen3", "gemma2", "gemma3_text", "olmo2", "olmo3", "mixtral", "gpt_oss", "gpt2",
            "gpt_neo", "smollm3", "falcon", "mamba")  # fmt: skip
PLANS = ("0-4,2-6", "0-2,2:identity,3-6,0", "1-3,5:attenuated(0.5),6")


def plan_of(text: str) -> LayerPlan:
    return LayerPlan.parse(text, pico.NUM_LAYERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_that_is_run_is_the_checkpoint_that_surgery_writes(base: Base, tmp_path: Path, family: str) -> None:
    model, rows = pico.load(base(family)), pico.tokens()
    with torch.inference_mode():
        before = model(rows).logits
        for number, text in enumerate(PLANS):
            upscale(base(family), tmp_path / str(number), plan_of(text))
            written = pico.load(tmp_path / str(number))
            with virtual_stack(model, plan_of(text)):
                assert torch.equal(model(rows).logits, written(rows).logits)
                assert model.config.num_hidden_layers == written.config.num_hidden_layers
        assert torch.equal(model(rows).logits, before)


@pytest.mark.parametrize("family", ["bamba", "lfm2"])
def test_hybrids_keep_their_kinds_of_layer(tmp_path: Path, family: str) -> None:
    """State space or convolution among attention: masks and kinds are those of the target."""
    [specimen] = zoo.specimens(f"^{family}$")
    model, rows = specimen.build(), pico.tokens(20, 2) % 60
    model.save_pretrained(tmp_path / "base")
    plan = LayerPlan.upscale(7, 2)
    upscale(tmp_path / "base", tmp_path / "out", plan)
    written = pico.load(tmp_path / "out")
    with torch.inference_mode(), virtual_stack(model, plan):
        assert torch.equal(model(rows, use_cache=False).logits, written(rows, use_cache=False).logits)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_sliding", "mamba"])
def test_each_target_layer_has_its_own_place_in_the_cache(base: Base, tmp_path: Path, family: str) -> None:
    upscale(base(family), tmp_path / "out", plan_of("0-4,2-6"))
    model, rows, how = pico.load(base(family)), pico.tokens(24, 1), {"max_new_tokens": 6, "min_new_tokens": 6}
    wanted = pico.load(tmp_path / "out").generate(rows, do_sample=False, **how)
    with virtual_stack(model, plan_of("0-4,2-6")):
        assert torch.equal(model.generate(rows, do_sample=False, **how), wanted)


def test_weights_are_shared_and_trained_through_every_copy(base: Base) -> None:
    model, rows = pico.load(base()), pico.tokens()
    weights = {id(weight) for weight in model.parameters()}
    with virtual_stack(model, plan_of("0-2,2,2-6")):
        assert {id(weight) for weight in model.parameters()} == weights
        model(rows).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


# -- losses -----------------------------------------------------------------------------------------------------------


def loss(model: torch.nn.Module, rows: torch.Tensor) -> float:
    with torch.inference_mode():
        logits = model(rows).logits
    return cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1)).item()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
def test_losses_with_shared_beginnings_are_those_of_each_plan_alone(base: Base, family: str) -> None:
    """Plans that begin alike, one that another begins with, the same one twice, and inits that part them."""
    texts = ["0-4,2-6", "0-5,1-6", "0-6", "0-6,0-6", "0-3", "0-3,3-6", "0-3,3:identity,4-6", "2-6", "0-3", "0-3,1,4-6"]
    model, rows, plans = pico.load(base(family)), pico.tokens(20, 3), [plan_of(text) for text in texts]
    found = zero_step_losses(model, plans, rows)
    assert [one.plan for one in found] == plans
    for one in found:
        with virtual_stack(model, one.plan):
            assert one.mean == pytest.approx(loss(model, rows), abs=2e-6)
    assert found[2].difference == found[2].difference_error == 0
    assert found[4] == found[8]


def test_errors_are_those_of_a_paired_sample(base: Base) -> None:
    model, rows, plan = pico.load(base()), pico.tokens(20, 5), plan_of("0-4,2-6")
    [one] = zero_step_losses(model, [plan], rows)
    alone = torch.tensor([loss(model, row[None]) for row in rows]).double()
    with virtual_stack(model, plan):
        grown = torch.tensor([loss(model, row[None]) for row in rows]).double()
    assert one.rows == pytest.approx(grown.tolist(), abs=2e-6)
    assert one.standard_error == pytest.approx(float(grown.std() / 5**0.5), rel=1e-4)
    assert one.difference == pytest.approx(float((grown - alone).mean()), abs=2e-6)
    assert one.difference_error == pytest.approx(float((grown - alone).std() / 5**0.5), rel=1e-4)


def test_what_plans_begin_with_is_run_once(base: Base) -> None:
    model = pico.load(base())
    tower, runs = find_tower(model), []
    plans = [LayerPlan.upscale(7, removed) for removed in range(4)]
    for layer in tower.layers:
        layer.mlp.register_forward_hook(lambda *_: runs.append(1))
    told: list[int] = []
    zero_step_losses(model, plans, pico.tokens(), progress=told.append)
    tried = 7 + 4  # whether a stack can go on from a kept stream
    wanted = 7 + sum(7 - m for m in range(4))
    assert len(runs) - tried == sum(told) == wanted == count_layers(tower, [tower.base_plan, *plans])


def test_nothing_is_shared_where_layers_hand_on_more_than_the_stream(base: Base) -> None:
    """A layer that adds what one far below it left: skipped layers would have left something else."""
    model, rows, plans = pico.load(base()), pico.tokens(20, 3), [LayerPlan.upscale(7, m) for m in range(3)]
    left: list[torch.Tensor] = []
    model.model.layers[1].register_forward_hook(lambda module, inputs, output: left.append(output))
    model.model.layers[5].register_forward_hook(lambda module, inputs, output: output + 0.1 * left[-1])
    tower = find_tower(model)
    assert not can_resume(tower) and count_layers(tower, plans) == 14 + 12 + 10
    for one in zero_step_losses(model, plans, rows):
        with virtual_stack(model, one.plan):
            assert one.mean == pytest.approx(loss(model, rows), abs=2e-6)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_tried_is_refused_with_what_to_do(base: Base) -> None:
    model = pico.load(base())
    for plan, why in [
        (plan_of("0-3,3:average,4-6"), "start as average exist only once they are written"),
        (plan_of("0-3,3:norm-matched,4-6"), "no factor yet"),
        (LayerPlan.upscale(8, 2), "for a base of 8 layers, model.layers has 7"),
    ]:
        with pytest.raises(PlanError, match=why), virtual_stack(model, plan):
            pass
    for rows in (pico.tokens(20, 1), pico.tokens(1, 4)):
        with pytest.raises(DepthupError, match="rows of tokens of the shape"):
            zero_step_losses(model, [], rows)
    with pytest.raises(CheckpointError, match="no stack of layers is called"):
        find_tower(model, "vision")


def test_a_plan_that_breaks_what_the_config_says_is_refused_as_in_surgery() -> None:
    model = pico.model("deepseek_v2")
    with pytest.raises(PlanError, match="first_k_dense_replace"), virtual_stack(model, plan_of("0-6,0-6")):
        pass
