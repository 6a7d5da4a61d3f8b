"""No item is lost before it is looked at: whoever has enough weight in a chunk, or a seed there, is a candidate."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.contamination.benchmarks import Item
from depthup.contamination.candidates import CHUNK, STRANGER, Chunk, find_candidates, make_chunk, number_in
from depthup.contamination.index import MIN_SHARE, NEED, SEED, Reference, make_reference
from depthup.contamination.text import look_up, words_of


@cache
def reference() -> tuple[Reference, Chunk]:
    """200 items of words whose frequencies fall as in a language, math among them."""
    draw = random.Random(0)
    words = [f"w{k}" if k % 7 else str(k) for k in range(400)]
    frequencies = [1 / (k + 1) for k in range(400)]
    texts = [" ".join(draw.choices(words, frequencies, k=draw.randint(5, 60))) for _ in range(200)]
    items = [Item("gsm8k" if k % 3 == 0 else "arc", str(k), text, "") for k, text in enumerate(texts)]
    made = make_reference(items)
    return made, make_chunk(made.index)


def text_of(seed: int) -> str:
    """Pieces of items, strangers and common words in a row."""
    draw, parts = random.Random(seed), list[str]()
    while len(parts) < draw.randint(1, 300):
        words = draw.choice(reference()[0].items).question.split()
        kind = draw.randrange(4)
        parts += words[draw.randrange(len(words)) :] if kind == 0 else draw.sample(words, len(words) // 2 + 1)
        parts += [draw.choice(["stranger", "w1", "14", "9999"])] if kind > 1 else []
    return " ".join(parts)


@given(st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_candidates_are_all_items_with_enough_weight_or_a_seed(seed: int) -> None:
    made, chunk = reference()
    index = made.index
    words, count, _ = words_of(text_of(seed))
    plain, masked = np.empty(count, np.int32), np.empty(count, np.int32)
    look_up(words, count, made.vocabulary, plain, masked)
    high = min(count, CHUNK)
    by_seeds, number = find_candidates(plain, masked, 0, high, index, chunk)
    found = chunk.candidates[:number].tolist()
    assert len(set(found)) == number
    there = set(plain[:high].tolist()) | set(masked[:high].tolist())
    grams = {tuple(ids[k : k + SEED].tolist()) for ids in (plain[:high], masked[:high]) for k in range(high - SEED + 1)}
    seeds = {
        int(item) for k, at in enumerate(index.seed_at) if tuple(index.words[at : at + SEED].tolist()) in grams
        for item in index.seed_items[index.seed_start[k] : index.seed_start[k + 1]]
    }  # fmt: skip
    assert set(found[:by_seeds]) == seeds
    for item in range(len(index.total)):
        own = set(index.words[index.start[item] : index.start[item + 1]].tolist()) & there
        held = sum(index.weight[word] for word in own)
        rare = sum(index.weight[word] for word in own if index.is_rare[word])
        if held >= MIN_SHARE * index.total[item] and rare >= NEED * index.total[item]:
            assert item in found


@given(st.integers(0, 10**9))
@settings(max_examples=30, deadline=None)
def test_words_of_a_chunk_are_numbered_as_they_come(seed: int) -> None:
    made, chunk = reference()
    words, count, _ = words_of(text_of(seed))
    plain, masked = np.empty(count, np.int32), np.empty(count, np.int32)
    look_up(words, count, made.vocabulary, plain, masked)
    high = min(count, CHUNK)
    find_candidates(plain, masked, 0, high, made.index, chunk)
    for j in range(high):
        assert chunk.masked[j] == (0 if masked[j] != plain[j] else chunk.plain[j])
        if plain[j] < 0:
            assert chunk.plain[j] == STRANGER
        else:
            assert chunk.distinct[chunk.plain[j]] == plain[j] and number_in(chunk, int(plain[j])) == chunk.plain[j]
    absent = set(range(1, len(made.index.weight))) - set(plain[:high].tolist())
    assert all(number_in(chunk, word) == -1 for word in list(absent)[:50])
