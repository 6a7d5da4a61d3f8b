"""Batched generation: the texts of transformers' own generate, one prompt at a time, and of lm-eval's HF backend."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pico
import pytest
import torch

from depthup.errors import DepthupError
from depthup.generation import greedy
from depthup.generation.backend import Sampling
from depthup.generation.cache import allowed
from depthup.generation.greedy import complete, context_length, forward

# Attention of every kind, positions of every kind, experts, windows shorter than the prompts, and a recurrent state.
FAMILIES = ("llama", "gpt2", "gpt_neox", "mistral", "gemma3_text", "mamba", "mixtral", "bloom", "opt", "gpt_neo")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pico.tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def prompts_of(num: int, shared: int = 0, seed: int = 0, longest: int = 30) -> list[list[int]]:
    draw = random.Random(seed)
    start = [draw.randrange(1, pico.VOCAB_SIZE) for _ in range(shared)]
    return [start + [draw.randrange(1, pico.VOCAB_SIZE) for _ in range(draw.randrange(1, longest))] for _ in range(num)]


def by_hand(model: Any, tokenizer: Any, prompt: list[int], limit: int, **options: Any) -> str:
    ids = torch.tensor([prompt])
    options = {"do_sample": False, **options}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, pad_token_id=0, **options)
    return tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)


def answer(model: Any, tokenizer: Any, prompts: list[list[int]], limits: list[int], **options: Any) -> list[str]:
    stop = options.pop("stop", ())
    return complete(model, tokenizer, prompts, stop=[stop] * len(prompts), max_new_tokens=limits, **options)


@pytest.mark.parametrize(
    ("family", "shared"),
    [(family, 33) for family in FAMILIES]
    + [pytest.param(name, 0, marks=[] if name in ("llama", "mamba") else pytest.mark.slow) for name in FAMILIES],
)
def test_texts_are_those_of_one_prompt_at_a_time(tokenizer: Any, family: str, shared: int) -> None:
    model = pico.model(family, num_layers=7 if family == "gpt_neo" else 2)
    prompts = prompts_of(4, shared)
    prompts += prompts[:1]  # equal prompts are read once
    limits = [7, 3, 1, 9, 5]
    heard: dict[int, str] = {}
    texts = answer(model, tokenizer, prompts, limits, done=heard.__setitem__)
    assert texts == [by_hand(model, tokenizer, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    assert heard == dict(enumerate(texts))
    assert texts == answer(model, tokenizer, prompts, limits, batch_tokens=1)  # alone
    assert texts == answer(model, tokenizer, prompts, limits, batch_tokens=130)  # some leave, others enter
    assert allowed(model, forward).padding == (family != "mamba")


def test_looking_rarely_changes_nothing(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: rows run on past their end, and what is beyond it is not theirs."""
    model, prompts, limits = pico.model(num_layers=2), prompts_of(9, 40), [11, 2, 17, 8, 1, 3, 9, 16, 5]
    expected = answer(model, tokenizer, prompts, limits, stop=("a", "T"))
    monkeypatch.setitem(greedy._SETTINGS, "cpu", greedy._Setting(max_rows=4, prefill_tokens=64, read_every=8))
    assert answer(model, tokenizer, prompts, limits, stop=("a", "T")) == expected


def test_a_model_in_training_is_sampled_all_the_same(tokenizer: Any) -> None:
    model, prompts = pico.model(num_layers=2), prompts_of(3)
    expected = answer(model, tokenizer, prompts, [5] * 3)
    model.activation_checkpointing_enable()
    model.train()
    assert answer(model, tokenizer, prompts, [5] * 3) == expected
    assert model.training


def test_out_of_memory_starts_the_rows_again_in_smaller_batches(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts, limits = pico.model(num_layers=2), prompts_of(6), [9] * 6
    expected = answer(model, tokenizer, prompts, limits)
    real = greedy.forward

    def small(model: Any, ids: Any, rows: Any) -> Any:
        if rows.mask.shape[0] > 2:
            raise torch.OutOfMemoryError("no more")
        return real(model, ids, rows)

    monkeypatch.setattr(greedy, "forward", small)
    heard: list[int] = []
    assert answer(model, tokenizer, prompts, limits, done=lambda index, _: heard.append(index)) == expected
    assert sorted(heard) == list(range(6))


def hflm_texts(model: Any, tokenizer: Any, prompts: list[str], stop: list[str], limit: int, batch: int) -> list[str]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        arguments = {"until": stop, "max_gen_toks": limit, "do_sample": False, "temperature": 0.0}
        requests = [Instance("generate_until", {}, (prompt, dict(arguments)), 0) for prompt in prompts]
        return harness.generate_until(requests, disable_tqdm=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_texts_are_those_of_the_harness(tokenizer: Any, family: str) -> None:
    """Stop strings, the end of text, the limit, and long prompts that lose their beginning."""
    pytest.importorskip("lm_eval")
    model = pico.model(family, num_layers=2)
    words = ["user", "asks", "the", "assistant", "a", "question", "what", "is", "sum", "of", "first"]
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(words, k=draw.choice([2, 9, 40, 120]))) for _ in range(5)]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    assert max(map(len, ids)) > context_length(model, tokenizer) - 24
    free = answer(model, tokenizer, ids, [24] * 5)
    stops = [text[len(text) // 3 :][:2] for text in free[:3] if text] + ["never said"]
    theirs = hflm_texts(model, tokenizer, prompts, stops, 24, batch=1)
    assert answer(model, tokenizer, ids, [24] * 5, stop=tuple(stops)) == theirs
    assert any(len(text) < len(whole) for text, whole in zip(theirs, free, strict=True))


def test_the_end_of_text_ends_a_row(tokenizer: Any) -> None:
    model = pico.model(num_layers=2)
    model.get_output_embeddings().weight.data[0] = model.get_output_embeddings().weight.data[7] * 1.05
    model.generation_config.eos_token_id = 0
    prompts = prompts_of(8)
    texts = answer(model, tokenizer, prompts, [16] * 8)
    assert texts == [by_hand(model, tokenizer, prompt, 16) for prompt in prompts]
    lengths = {len(tokenizer(text)["input_ids"]) for text in texts}
    assert len(lengths) > 2  # some ended early


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_sampled_texts_are_transformers_own_and_do_not_depend_on_the_batch(tokenizer: Any, family: str) -> None:
    model, prompts = pico.model(family, num_layers=2), prompts_of(3)
    sampling = Sampling(temperature=0.8, top_p=0.7, seed=5)
    texts = answer(model, tokenizer, prompts, [8] * 3, sampling=sampling)
    for prompt, text in zip(prompts, texts, strict=True):
        torch.manual_seed(5)
        assert text == by_hand(model, tokenizer, prompt, 8, do_sample=True, temperature=0.8, top_p=0.7, top_k=0)
    assert texts == answer(model, tokenizer, prompts, [8] * 3, sampling=sampling, batch_tokens=1)
    others = [answer(model, tokenizer, prompts, [8] * 3, sampling=Sampling(temperature=1.0, sample=i)) for i in (0, 1)]
    assert others[0] != others[1]


def test_prompts_without_a_token_or_without_room_are_refused(tokenizer: Any) -> None:
    model = pico.model()
    with pytest.raises(DepthupError, match="no token to go on from"):
        answer(model, tokenizer, [[5], []], [4, 4])
    with pytest.raises(DepthupError, match="leave no room"):
        answer(model, tokenizer, [[5]], [128])
    assert answer(model, tokenizer, [], []) == []
