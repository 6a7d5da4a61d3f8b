"""Generation: what transformers' own generate says, without the prompt."""

from __future__ import annotations

from pathlib import Path

import pico
import pytest
import torch

from depthup.errors import CheckpointError
from depthup.generation.backend import Sampling
from depthup.generation.local import LocalBackend
from depthup.models import load_model, load_tokenizer


@pytest.fixture
def loaded(tmp_path: Path):
    folder = pico.checkpoint(tmp_path / "model", num_layers=2, tokenizer=True)
    return load_model(folder), load_tokenizer(folder)


def test_the_likeliest_continuation_is_transformers_own(loaded) -> None:
    model, tokenizer = loaded
    prompts = ["The user asks", "What is the sum"]
    ours = LocalBackend(model, tokenizer).generate(prompts, Sampling(max_new_tokens=8))
    for prompt, text in zip(prompts, ours, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(8):  # greedy by hand, without a cache
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
        whole = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert prompt + text == whole


def test_sampling_follows_its_seed(loaded) -> None:
    backend = LocalBackend(*loaded)
    texts = [backend.generate(["The"], Sampling(12, temperature=1.0, seed=seed))[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_chat_puts_the_prompt_into_the_template(loaded) -> None:
    model, tokenizer = loaded
    plain = LocalBackend(model, tokenizer)
    by_hand = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    chat = LocalBackend(model, tokenizer, chat=True)
    assert chat.generate(["Hello"], Sampling(6)) == plain.generate([by_hand], Sampling(6))
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="no chat template"):
        LocalBackend(model, tokenizer, chat=True)
