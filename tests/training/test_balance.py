"""Routers are balanced by transformers' own loss, row by row, however rows are split and packed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pico
import pytest
import torch
from short_runs import SETTINGS, optimizer_of

from depthup.data.packing import Batch, pack
from depthup.data.tokens import TokenizedDocuments
from depthup.errors import TrainingError
from depthup.training.balance import choose_balance
from depthup.training.heads import FULL, Head
from depthup.training.objectives import CausalLM, choose_attention
from depthup.training.step import train_step

FAMILIES = ["mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss"]


def batch_of(num_rows: int = 3) -> Batch:
    """Rows of several documents, the last ones with padding behind them."""
    lengths = [20, 9, 17, 6, 11, 8]
    tokens = np.random.default_rng(0).integers(1, pico.VOCAB_SIZE, sum(lengths)).astype(np.int32)
    rows = pack(TokenizedDocuments(tokens, np.cumsum([0, *lengths])), 32)
    return next(iter(rows.in_order(num_rows)))


def oracle(model: Any, batch: Batch) -> torch.Tensor:
    """By transformers, each row by itself up to its last target: mean loss and weighted auxiliary loss."""
    total = torch.zeros(())
    for row in range(batch.num_rows):
        one = batch.rows(row, row + 1).needed()
        ids, positions, labels = (torch.from_numpy(a) for a in (one.input_ids, one.position_ids, one.labels))
        found = model(input_ids=ids, position_ids=positions, use_cache=False, output_router_logits=True)
        losses = torch.nn.functional.cross_entropy(found.logits[0], labels[0], reduction="sum")
        total = total + losses + 0.5 * one.num_targets * found.aux_loss
    return total / batch.num_units


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_transformers_own(family: str) -> None:
    model, batch = pico.model(family, num_layers=4), batch_of()
    balance = choose_balance(model, 0.5)
    assert balance is not None and balance.top_k == 2
    results = []
    for head in (FULL, Head("chunked"), None):
        model.zero_grad()
        loss = oracle(model, batch) if head is None else CausalLM(head, balance)(model, batch).loss / batch.num_units
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((loss.detach(), torch.cat(gradients)))
    for found in results[:2]:
        torch.testing.assert_close(found, results[2], rtol=1e-4, atol=1e-5)


def test_micro_batches_change_nothing() -> None:
    found = []
    for micro_batch_rows in (1, 2, 3):
        model = pico.model("qwen3_moe", num_layers=2)
        choose_attention(model)
        objective = CausalLM(Head("chunked"), choose_balance(model, 0.5))
        settings = replace(SETTINGS, micro_batch_rows=micro_batch_rows)
        values = train_step(model, optimizer_of(model), objective, batch_of(), settings, 0)
        found.append([values[name].item() for name in ("loss", "router_loss", "grad_norm")])
    assert found[1:] == [pytest.approx(found[0], rel=1e-5)] * 2


def test_the_config_is_asked_where_no_weight_is_given() -> None:
    assert choose_balance(pico.model("mixtral", num_layers=2)) is None
    asking = pico.model("mixtral", num_layers=2, output_router_logits=True, router_aux_loss_coef=0.02)
    balance = choose_balance(asking)
    assert balance is not None and balance.weight == 0.02 and choose_balance(asking, 0.0) is None
    with pytest.raises(TrainingError, match="no load-balancing loss"):
        choose_balance(pico.model("llama", num_layers=2), 0.1)
