"""Packing: every token but a document's first is a target once, and no document sees another."""

from __future__ import annotations

import numpy as np
import pico
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.data.packing import IGNORED, Batch, pack
from depthup.data.sources import Document
from depthup.data.tokens import TokenizedDocuments, sample, write_tokens
from depthup.errors import DataError, TrainingError
from depthup.training.objectives import causal_lm, require_document_mask


def documents(lengths: list[int], seed: int = 0) -> TokenizedDocuments:
    tokens = np.random.default_rng(seed).integers(1, pico.VOCAB_SIZE, sum(lengths)).astype(np.int32)
    return TokenizedDocuments(tokens, np.cumsum([0, *lengths]))


@given(st.lists(st.integers(1, 70), min_size=1, max_size=40), st.integers(2, 33))
@settings(max_examples=60, deadline=None)
def test_every_token_but_the_first_of_a_document_is_a_target_once(lengths: list[int], row_tokens: int) -> None:
    docs = documents(lengths)
    if max(lengths) < 2:
        with pytest.raises(DataError):
            pack(docs, row_tokens)
        return
    rows = pack(docs, row_tokens)
    expected = sorted(
        token for begin, end in zip(docs.offsets, docs.offsets[1:], strict=False)
        for token in docs.tokens[begin + 1 : end].tolist()
    )  # fmt: skip
    labels = np.concatenate([batch.labels.ravel() for batch in rows.in_order(3)])
    assert sorted(labels[labels != IGNORED].tolist()) == expected
    assert rows.num_targets == len(expected) == sum(length - 1 for length in lengths)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_positions_restart_where_a_piece_begins_and_labels_are_the_next_token(lengths: list[int]) -> None:
    for batch in pack(documents(lengths), 40).in_order(4):
        inside = batch.labels[:, :-1] != IGNORED
        assert (batch.labels[:, :-1][inside] == batch.input_ids[:, 1:][inside]).all()
        assert (batch.position_ids[:, 1:][inside] == batch.position_ids[:, :-1][inside] + 1).all()
        ends = (batch.labels[:, :-1] == IGNORED) & (batch.labels[:, 1:] != IGNORED)
        assert (batch.position_ids[:, 1:][ends] == 0).all()


def test_best_fit_fills_rows_as_well_as_an_optimal_packing_of_these_lengths() -> None:
    rows = pack(documents([6, 4, 7, 3, 5, 5, 8, 2]), 10)
    assert rows.num_rows == 4  # 40 tokens, 4 rows of 10: 8+2, 7+3, 6+4, 5+5


def test_families_whose_documents_would_see_one_another_are_refused() -> None:
    """The guard agrees with the measured loss for every family, and refuses no family of the Llama line."""
    refused = set()
    for family in pico.FAMILIES:
        try:
            require_document_mask(pico.model(family))
        except TrainingError:
            refused.add(family)
    assert {"bloom", "falcon", "mamba", "opt"} <= refused
    assert not refused & {"llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi3"}


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_packed_loss_is_the_loss_of_the_documents_alone_or_the_family_is_refused(family: str) -> None:
    model = pico.model(family)
    try:
        require_document_mask(model)
    except TrainingError:
        return
    docs = documents([9, 5, 14, 3, 7, 2, 11])
    packed = sum(causal_lm(model, batch).loss.item() for batch in pack(docs, 16).in_order(2))
    alone = 0.0
    for begin, end in zip(docs.offsets, docs.offsets[1:], strict=False):
        ids = torch.tensor(docs.tokens[None, begin:end].astype(np.int64))
        # transformers' own loss, a mean over the document's targets
        alone += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert packed == pytest.approx(alone, rel=1e-5)


def masked_documents(lengths: list[int], seed: int = 0, share: float = 0.5) -> TokenizedDocuments:
    docs = documents(lengths, seed)
    targets = np.random.default_rng(seed + 1).random(docs.num_tokens) < share
    return TokenizedDocuments(docs.tokens, docs.offsets, targets)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=40), st.integers(2, 33), st.booleans())
@settings(max_examples=60, deadline=None)
def test_only_targets_are_labels_and_each_is_one_once(lengths: list[int], row_tokens: int, whole: bool) -> None:
    """Whole documents keep their first tokens; those that are left without a target are dropped and counted."""
    docs = masked_documents(lengths, seed=len(lengths))
    parts = [(begin, min(end, begin + row_tokens) if whole else end)
             for begin, end in zip(docs.offsets[:-1], docs.offsets[1:], strict=True)]  # fmt: skip
    kept = [part for part in parts if docs.targets[part[0] + 1 : part[1]].any()]
    if not kept:
        with pytest.raises(DataError, match="truncated to nothing" if whole else "no document has a target"):
            pack(docs, row_tokens, whole=whole, max_dropped=0.99)
        return
    rows = pack(docs, row_tokens, whole=whole, max_dropped=1)
    expected = sorted(
        token for begin, end in kept for token in docs.tokens[begin + 1 : end][docs.targets[begin + 1 : end]].tolist()
    )
    labels = np.concatenate([batch.labels.ravel() for batch in rows.in_order(3)])
    assert sorted(labels[labels != IGNORED].tolist()) == expected
    assert rows.num_targets == len(expected)
    if whole:
        assert len(rows.pieces) == len(kept) == len(lengths) - rows.num_dropped
        assert rows.num_truncated == sum(
            docs.offsets[1:][list(docs.offsets[:-1]).index(begin)] > end for begin, end in kept
        )


@pytest.mark.parametrize("whole", [False, True])
def test_packed_loss_is_the_loss_of_the_conversations_alone(whole: bool) -> None:
    model = pico.model("llama")
    docs = masked_documents([9, 5, 14, 3, 7, 2, 11, 16])
    rows = pack(docs, 16, whole=whole, max_dropped=0.5)
    packed = sum(causal_lm(model, batch).loss.item() for batch in rows.in_order(2))
    alone = 0.0
    for begin, end in zip(docs.offsets, docs.offsets[1:], strict=False):
        ids = torch.tensor(docs.tokens[None, begin:end].astype(np.int64))
        labels = torch.where(torch.tensor(docs.targets[None, begin:end]), ids, IGNORED)
        if num_targets := int((labels[:, 1:] != IGNORED).sum()):
            alone += model(input_ids=ids, labels=labels).loss.item() * num_targets  # transformers' own
    assert packed == pytest.approx(alone, rel=1e-5)


def test_conversations_that_are_truncated_to_nothing_are_dropped_or_refused() -> None:
    """Ten contexts of 6 and answers of 3 tokens; two contexts are longer than a row."""
    targets = ([False] * 6 + [True] * 3) * 8 + ([False] * 12 + [True] * 3) * 2
    docs = documents([9] * 8 + [15] * 2)
    docs = TokenizedDocuments(docs.tokens, docs.offsets, np.asarray(targets))
    rows = pack(docs, 10, whole=True, max_dropped=0.2)
    assert (rows.num_dropped, rows.num_truncated, rows.num_targets) == (2, 0, 24)
    assert (pack(docs, 14, whole=True).num_dropped, pack(docs, 14, whole=True).num_truncated) == (0, 2)
    with pytest.raises(DataError, match=r"2 of 10 documents are truncated to nothing: their first 10 tokens"):
        pack(docs, 10, whole=True)
    with pytest.raises(DataError, match="10 of 10 documents"):
        pack(docs, 6, whole=True, max_dropped=0.9)


def test_without_document_mask_documents_see_one_another() -> None:
    model = pico.model("llama")
    docs = documents([9, 7])
    masked, open_rows = (next(pack(docs, 16, mask).in_order(1)) for mask in (True, False))
    assert (masked.input_ids == open_rows.input_ids).all()
    assert abs(causal_lm(model, masked).loss.item() - causal_lm(model, open_rows).loss.item()) > 1e-3


def test_each_epoch_is_a_permutation_and_steps_are_a_function_of_seed_and_step() -> None:
    rows = pack(documents([8] * 10), 8)

    def seen(seed: int) -> list[Batch]:
        return [rows.batch_of_step(step, 4, seed) for step in range(5)]  # 20 rows: two epochs

    ids = np.concatenate([batch.input_ids for batch in seen(3)])
    every_row = {tuple(row) for row in next(rows.in_order(10)).input_ids.tolist()}
    for epoch in (ids[:10], ids[10:]):
        assert {tuple(row) for row in epoch.tolist()} == every_row
    assert (ids == np.concatenate([batch.input_ids for batch in seen(3)])).all()
    assert (ids != np.concatenate([batch.input_ids for batch in seen(4)])).any()


def test_tokenized_documents_end_with_the_end_of_text_and_decode_to_their_text(tmp_path) -> None:
    tokenizer = pico.tiny_tokenizer(tmp_path)
    texts = ["Hello, world.", "Größe — naïve 你好 🙂", "  spaces  \n\ttabs"]
    made = write_tokens(
        [Document(str(i), text) for i, text in enumerate(texts)], tokenizer, tokenizer.eos_token_id, tmp_path
    )
    for index, text in enumerate(texts):
        ids = made.tokens[made.offsets[index] : made.offsets[index + 1]].tolist()
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]) == text


def test_a_sample_has_the_size_asked_for_and_is_always_the_same() -> None:
    docs = documents([30] * 20)
    first, again = sample(docs, 100), sample(docs, 100)
    assert first.num_tokens == 100
    assert (first.tokens == again.tokens).all()
    assert sample(docs, 10_000) is docs


def test_no_documents_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="no document on this side"):
        write_tokens([], pico.tiny_tokenizer(tmp_path), 0, tmp_path)
