"""A head without logits gives what the model's own logits give, for every family, with adapters and when sharded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from torch import nn

from depthup.data.packing import IGNORED, Batch, pack
from depthup.data.tokens import TokenizedDocuments
from depthup.errors import TrainingError
from depthup.evaluation.heldout import held_out_loss
from depthup.training.heads import FULL, Head, choose_head

COHERE = {**pico._LLAMA, "logit_scale": 0.25}
SCALES = {"cohere": 0.25, "cohere2": 0.0625, "granite": 1 / 6}


def build(family: str) -> Any:
    if family == "cohere":
        pico.FAMILIES.setdefault("cohere", ("cohere", COHERE))
    fields = {"logits_scaling": 6.0} if family == "granite" else {}
    return pico.model(family, num_layers=2 if family != "gpt_neo" else pico.NUM_LAYERS, **fields)


def make_batch() -> Batch:
    ids = pico.tokens(num_tokens=12, num_rows=2).numpy()
    labels = np.roll(ids, -1, axis=1)
    labels[:, -1] = labels[0, :5] = IGNORED
    return Batch(ids, labels, np.tile(np.arange(12), (2, 1)))


def losses(model: nn.Module, head: Head, batch: Batch) -> list[torch.Tensor]:
    """Summed loss, log-probabilities of targets, and the gradient of each."""
    found = []
    for compute in (head.summed_loss, head.token_logps):
        model.zero_grad()
        value = compute(model, batch)
        (value * torch.arange(1, value.numel() + 1).view_as(value)).sum().backward()
        found += [value.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])]
    return found


@pytest.mark.parametrize("family", [*pico.FAMILIES, "cohere"])
def test_loss_log_probabilities_and_gradients_are_those_of_the_model_s_logits(family: str) -> None:
    model, batch = build(family), make_batch()
    head = choose_head(model)
    assert head.backend == "chunked", head.reason
    assert head.cap == (30.0 if family == "gemma2" else None)
    assert head.scale == pytest.approx(SCALES.get(family, 1.0), rel=1e-7)
    torch.testing.assert_close(losses(model, head, batch), losses(model, FULL, batch), rtol=1e-4, atol=1e-4)


def test_held_out_loss_may_go_without_logits() -> None:
    model = build("llama")
    docs = TokenizedDocuments(pico.tokens(96, 1).numpy()[0].astype(np.int32), np.arange(0, 97, 12))
    losses = [held_out_loss(model, pack(docs, 24), head.summed_loss).loss for head in (FULL, choose_head(model))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_head_s_own_forward_comes_back_and_the_mode_stays() -> None:
    model, ids = build("llama").train(), pico.tokens()
    before = model(ids).logits
    head = choose_head(model)
    head.summed_loss(model, make_batch())
    assert model.training
    assert "forward" not in vars(model.lm_head)
    assert (model(ids).logits == before).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_factor_is_exact_in_narrow_types_and_under_autocast(dtype: torch.dtype) -> None:
    model = build("granite").to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        head = choose_head(model)
        assert head.scale == pytest.approx(1 / 6, rel=1e-7)
        full, found = FULL.summed_loss(model, make_batch()), head.summed_loss(model, make_batch())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(full.item(), rel=1e-2)


class TwoHeads(nn.Module):
    """A model that computes logits twice, as those with multi-token prediction do."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        self.model(**inputs)
        return self.model(**inputs)


def test_heads_that_are_not_understood_keep_their_logits() -> None:
    model, batch = build("llama"), make_batch()
    assert "called 2 times" in choose_head(TwoHeads(model)).reason
    hidden = model.model.norm.register_forward_hook(lambda module, inputs, output: output * 0.5)
    assert choose_head(model) == Head("chunked")  # before the head: seen by both
    hidden.remove()
    after = model.lm_head.register_forward_hook(lambda module, inputs, output: output.sin())
    assert choose_head(model).backend == "full"
    after.remove()

    class Halved(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) / 2

    model.lm_head.__class__ = Halved
    head = choose_head(model)
    assert "no plain linear layer" in head.reason
    assert torch.isfinite(head.summed_loss(model, batch))


def test_a_batch_without_targets_costs_nothing_and_still_has_a_gradient() -> None:
    model, batch = build("llama"), make_batch()
    empty = Batch(batch.input_ids, np.full_like(batch.labels, IGNORED), batch.position_ids)
    for head in (Head("chunked"), FULL):
        assert head.token_logps(model, empty).shape == (0,)
        loss = head.summed_loss(model, empty)
        loss.backward()
        assert loss.item() == 0


def test_a_back_end_that_is_not_there_is_refused() -> None:
    with pytest.raises(TrainingError, match="liger"):
        choose_head(build("llama"), "liger")
    assert choose_head(build("llama"), "full") == FULL


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's imports
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_adapters_of_peft(targets: list[str]) -> None:
    """An adapter on the head itself is no part of its weight: such a head keeps its logits."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model, batch = peft.get_peft_model(build("llama"), config), make_batch()
    head = choose_head(model)
    assert head.backend == ("full" if "lm_head" in targets else "chunked")
    found = losses(model, head, batch)
    torch.testing.assert_close(found, losses(model, FULL, batch), rtol=1e-4, atol=1e-4)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert len(found[1]) == trained


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[Any]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield torch.distributed.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of torch's collectives on CPU
@pytest.mark.parametrize("family", ["llama", "llama_tied", "granite", "gemma2"])
@pytest.mark.parametrize("own_group", [False, True], ids=["head with the root", "head sharded alone"])
def test_sharded_by_fsdp(one_rank: Any, family: str, own_group: bool) -> None:
    """The head's weight is gathered when the loss needs it, wherever FSDP2 keeps it, and gets its gradient."""
    from torch.distributed.fsdp import fully_shard

    batch, model = make_batch(), build(family)
    if own_group and model.config.tie_word_embeddings:
        pytest.skip("tied weights live in one group")
    expected = losses(build(family), FULL, batch)
    for layer in model.model.layers:
        fully_shard(layer, mesh=one_rank)
    if own_group:
        fully_shard(model.lm_head, mesh=one_rank, reshard_after_forward=True)
    fully_shard(model, mesh=one_rank)
    head = choose_head(model)
    assert head.backend == "chunked"
    for index, compute in enumerate((head.summed_loss, head.token_logps)):
        model.zero_grad()
        value = compute(model, batch)
        (value * torch.arange(1, value.numel() + 1).view_as(value)).sum().backward()
        gradient = torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()])
        torch.testing.assert_close(
            [value.detach(), gradient], expected[2 * index : 2 * index + 2], rtol=1e-4, atol=1e-4
        )


@pytest.mark.filterwarnings("ignore")
def test_sharded_with_mixed_precision(one_rank: Any) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    batch, policies = make_batch(), ({}, {"output_dtype": torch.bfloat16})
    expected = FULL.summed_loss(build("llama"), batch).item()
    for policy in policies:
        model = build("llama")
        fully_shard(model, mesh=one_rank, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, **policy))
        head = choose_head(model)
        loss = head.summed_loss(model, batch)
        loss.backward()
        assert head.backend == "chunked"
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-2)
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_columns_behind_the_last_target_are_not_computed_and_change_nothing() -> None:
    model, batch = build("llama"), make_batch()
    widths: list[int] = []
    model.register_forward_pre_hook(lambda module, args, named: widths.append(named["input_ids"].shape[1]),
                                    with_kwargs=True)  # fmt: skip
    filled = Batch(*(np.pad(values, ((0, 0), (0, 30)), constant_values=fill) for values, fill in (
        (batch.input_ids, 7), (batch.labels, IGNORED), (batch.position_ids, 0))))  # fmt: skip
    for head in (Head("chunked"), FULL):
        torch.testing.assert_close(losses(model, head, filled), losses(model, head, batch))
    assert set(widths) == {11}
