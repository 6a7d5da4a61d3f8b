"""Attention within documents: every way of computing it is the dense mask, and models give what they gave before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
import torch.nn.functional as F
import transformers
from short_runs import SETTINGS, make_rows

from depthup.data.packing import Batch, pack
from depthup.data.tokens import TokenizedDocuments
from depthup.errors import TrainingError
from depthup.training import attention
from depthup.training.attention import NAME, by_document, by_flash, by_mask, document_borders
from depthup.training.heads import FULL, model_inputs
from depthup.training.loop import train
from depthup.training.objectives import causal_lm, choose_attention, require_document_mask
from depthup.training.schedule import Schedule

ROWS = [[5, 1, 7, 3], [16], [2, 2, 12]]  # lengths of documents
SLIDING = {"mistral", "qwen2_sliding", "gemma3_text", "olmo3", "cohere2"}
REPLACED = {"llama", "qwen2", "qwen3", "mixtral", "phi", "phi3", "granite", "olmo2", "starcoder2", "smollm3", "gpt2",
            "gpt_neox", *SLIDING}  # fmt: skip
KEPT = {"gemma2", "gpt_oss", "bloom", "mamba", "gptj"}  # a cap, sinks, or no attention interface


def positions() -> np.ndarray:
    return np.stack([np.concatenate([np.arange(n) for n in lengths]) for lengths in ROWS])


def heads(num_heads: int = 4, num_key_value_heads: int = 2) -> list[torch.Tensor]:
    """Query, key and value [3, heads, 16, 8]."""
    draw = torch.Generator().manual_seed(0)
    sizes = (num_heads, num_key_value_heads, num_key_value_heads)
    return [torch.randn(3, size, 16, 8, generator=draw).requires_grad_() for size in sizes]


def fake_flash(*left_out: str) -> tuple[Callable[..., torch.Tensor], frozenset[str]]:
    """What torch's variable-length attention means, without the arguments left out: no processor has it."""

    def flash(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
        max_q: int, max_k: int, **options: Any,
    ) -> torch.Tensor:  # fmt: skip
        assert not set(options) & set(left_out)
        assert query.shape[1] == key.shape[1] or options.get("enable_gqa")
        left, right = options.get("window_size", (-1, 0))
        assert right == 0
        assert options.get("is_causal", True)
        assert torch.compiler.is_compiling() or cu_seq_q.diff().max() <= max_q
        places = torch.arange(len(query))
        ages = places[:, None] - places
        documents = torch.searchsorted(cu_seq_q, places, right=True)
        seen = (documents[:, None] == documents) & (ages >= 0) & ((ages <= left) if left >= 0 else True)
        groups = query.shape[1] // key.shape[1]
        query, key, value = (t.transpose(0, 1)[None] for t in (query, key, value))
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=options.get("scale"))
        return found[0].transpose(0, 1)

    known = {"query", "key", "value", "scale", "window_size", "enable_gqa", "is_causal"}
    return flash, frozenset(known - set(left_out))


def test_borders_have_few_shapes() -> None:
    borders, longest = document_borders(positions())
    starts = [0, 5, 6, 13, 16, 32, 34, 36, 48]
    assert borders.tolist() == starts + [48] * (64 - len(starts))
    assert longest == 16
    many = np.zeros((2, 100), np.int64)
    assert document_borders(many)[0].shape == (256,)
    assert document_borders(np.arange(100)[None])[1] == 100


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("num_key_value_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("body", "left_out"),
    [
        (by_document, ()),
        (by_flash, ("is_causal",)),
        (by_flash, ("is_causal", "enable_gqa")),
        (by_flash, ("window_size", "enable_gqa", "scale")),
    ],
    ids=["by_document", "by_flash", "by_flash 2.11", "by_flash 2.10"],
)
def test_every_way_is_the_dense_mask(
    body: Any, left_out: tuple[str, ...], num_key_value_heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    flash, parameters = fake_flash(*left_out)
    monkeypatch.setattr(attention, "_flash", flash)
    monkeypatch.setattr(attention, "_PARAMETERS", parameters)
    inputs = heads(num_key_value_heads=num_key_value_heads)
    borders, longest = document_borders(positions())
    rest = (torch.from_numpy(borders), longest, window, 0.3, 4 // num_key_value_heads)
    if window is not None and "window_size" in left_out:
        with pytest.raises(TrainingError, match="with a window"):
            body(*inputs, *rest)
        return
    found, dense = body(*inputs, *rest), by_mask(*inputs, *rest)
    torch.testing.assert_close(found, dense)
    weights = torch.randn(dense.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((values * weights).sum(), inputs) for values in (found, dense)]
    torch.testing.assert_close(*gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
def test_flash_attention_is_the_dense_mask(window: int | None) -> None:
    inputs = [tensor.detach().to("cuda", torch.bfloat16).requires_grad_() for tensor in heads()]
    borders, longest = document_borders(positions())
    rest = (torch.from_numpy(borders).cuda(), longest, window, 0.3, 2)
    found, dense = by_flash(*inputs, *rest), by_mask(*inputs, *rest)
    torch.testing.assert_close(found, dense, rtol=2e-2, atol=2e-2)
    gradients = [torch.autograd.grad(values.float().square().sum(), inputs) for values in (found, dense)]
    torch.testing.assert_close(*gradients, rtol=5e-2, atol=5e-2)


def test_torch_s_own_function_is_called_by_names_that_it_has() -> None:
    """On a machine without flash attention no more can be asked: its arguments are what we pass."""
    assert {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"} <= attention._PARAMETERS
    assert attention._PARAMETERS & {"window_size", "is_causal"}


def batch_of_documents(row_tokens: int = 48) -> Batch:
    lengths = np.random.default_rng(0).integers(3, 40, 20)
    tokens = np.random.default_rng(0).integers(1, pico.VOCAB_SIZE, lengths.sum()).astype(np.int32)
    return next(pack(TokenizedDocuments(tokens, np.concatenate([[0], np.cumsum(lengths)])), row_tokens).in_order(4))


def loss_and_gradient(model: Any, batch: Batch) -> list[torch.Tensor]:
    model.zero_grad()
    loss = causal_lm(model, batch).loss
    loss.backward()
    return [loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])]


@pytest.mark.parametrize("family", sorted(REPLACED | KEPT))
def test_a_model_gives_what_it_gave_with_a_dense_mask(family: str) -> None:
    """Windows of 16 in rows of 48: documents longer than a window among them."""
    model, batch = pico.model(family, num_layers=3), batch_of_documents()
    before = model.config._attn_implementation
    if family in KEPT:
        assert choose_attention(model) == before == model.config._attn_implementation
        return
    expected = loss_and_gradient(model, batch)
    assert choose_attention(model) == NAME
    torch.testing.assert_close(loss_and_gradient(model, batch), expected, rtol=1e-4, atol=1e-4)
    require_document_mask(model)
    whole = Batch(batch.input_ids, batch.labels, np.tile(np.arange(48), (4, 1)))
    found = causal_lm(model, whole).loss.item()
    model.set_attn_implementation(before)
    assert found == pytest.approx(causal_lm(model, whole).loss.item(), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_generation_and_padding_stay_as_they_were(family: str) -> None:
    """The model may be asked for samples while it is trained."""
    model = pico.model(family, num_layers=2)
    ids = pico.tokens(num_tokens=20)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **options), model(ids, attention_mask=mask).logits[:, 4:]
    assert choose_attention(model) == NAME
    assert (model.generate(ids, **options) == before[0]).all()
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:, 4:], before[1])


def test_packed_rows_without_their_borders_are_refused() -> None:
    model, batch = pico.model("llama", num_layers=2), batch_of_documents()
    choose_attention(model)
    inputs = {name: value for name, value in model_inputs(model, batch).items() if "length" not in name}
    del inputs["cu_seq_lens_q"]
    with pytest.raises(TrainingError, match="not told where documents begin"):
        model(**inputs)
    del inputs["attention_mask"]
    with pytest.raises(TrainingError, match="not told where documents begin"):
        model(**inputs)


def test_no_mask_is_made_and_no_position_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each look at the position ids would be a wait for the device."""
    model, batch = pico.model("mistral", num_layers=2), batch_of_documents()
    choose_attention(model)

    def looked_at(*arguments: Any) -> None:
        raise AssertionError("transformers looked at the position ids")

    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", looked_at)
    assert torch.isfinite(causal_lm(model, batch).loss)
    model.set_attn_implementation("sdpa")
    with pytest.raises(AssertionError, match="looked at"):
        causal_lm(model, batch)


@pytest.mark.parametrize(("precision", "chosen"), [("mixed", "sdpa"), ("float32", NAME)])
def test_attention_is_tried_again_in_the_type_that_is_trained(
    precision: str, chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel that is wrong in bfloat16 alone, as one of a GPU may be, is found out after the weights are cast."""
    right = attention.by_document

    def wrong_when_narrow(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
        return right(query, *arguments) * (1.0 if query.dtype == torch.float32 else 50.0)

    monkeypatch.setattr(attention, "by_document", wrong_when_narrow)
    model = pico.model(num_layers=2)
    assert choose_attention(model) == NAME
    settings = replace(SETTINGS, schedule=Schedule("constant", 1), precision=precision)
    train(model, make_rows(), causal_lm, settings, tmp_path, progress=False)
    assert attention.implementation(model) == chosen
    assert ("dense masks are used" in capsys.readouterr().out) == (chosen == "sdpa")


def test_dropout_of_attention_is_refused() -> None:
    model = pico.model("llama", num_layers=2, attention_dropout=0.1)
    choose_attention(model)
    with pytest.raises(TrainingError, match=r"dropout 0\.1"):
        FULL.summed_loss(model.train(), batch_of_documents())


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_layer_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled by layer, the kernel's call breaks no graph, and two batches of unlike documents share it."""
    flash, parameters = fake_flash("is_causal")
    monkeypatch.setattr(attention, "_flash", flash)
    monkeypatch.setattr(attention, "_PARAMETERS", parameters)
    monkeypatch.setattr(attention, "_body", lambda query: by_flash)
    model, batch = pico.model("llama", num_layers=2), batch_of_documents()
    expected = FULL.summed_loss(model, batch).item()
    choose_attention(model)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for layer in model.model.layers:
            layer.compile(backend="eager", fullgraph=True)
        assert FULL.summed_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)
        lengths = (41, 7)
        other = Batch(batch.input_ids, batch.labels, np.tile(np.concatenate([*map(np.arange, lengths)]), (4, 1)))
        assert torch.isfinite(FULL.summed_loss(model, other))
    torch._dynamo.reset()
