"""Pairs in rows: every pair once an epoch, whole in one row, its reference beside it; nothing lost without a count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.data.chat import chat_encoder
from depthup.data.conversations import Message
from depthup.data.packing import IGNORED, PairBatch
from depthup.data.pair_tokens import Prompt, TokenizedPairs, chat_encode, describe, open_pairs, write_pairs
from depthup.data.pairs import PairRows
from depthup.data.preferences import Dropped, PreferencePair, read_pairs
from depthup.data.sources import Files
from depthup.errors import DataError

END = 300


def encode_one(prompt: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """One token a byte: 1 before a turn of the user, 2 before one of the assistant, END after each."""
    ids = [0]
    for message in prompt:
        ids += [1 if message.role == "user" else 2, *message.content.encode(), END]
    return [*ids, 2], [*answer.encode(), END]


def encode(batch: Sequence[tuple[Prompt, str]]) -> list[tuple[list[int], list[int]]]:
    return [encode_one(prompt, answer) for prompt, answer in batch]


def pair(prompt: str, chosen: str, rejected: str, source: str = "a") -> PreferencePair:
    return PreferencePair((Message("user", prompt),), chosen, rejected, "row:1", source)


def tokenized(lengths: list[tuple[int, int, int]], seed: int = 0) -> TokenizedPairs:
    """Pairs of random ids with so many tokens of prompt, chosen and rejected."""
    spans = np.concatenate([[0], np.cumsum(np.asarray(lengths).ravel())])
    tokens = np.random.default_rng(seed).integers(1, pico.VOCAB_SIZE, spans[-1]).astype(np.int32)
    spans = np.stack([spans[:-1:3], spans[1::3], spans[2::3], spans[3::3]], axis=1)
    plain = np.zeros(len(lengths), np.int32)
    return TokenizedPairs(tokens, spans, plain, plain.astype(bool), ("a",), {})


def in_batch(batch: PairBatch) -> list[tuple[int, list[tuple[tuple[int, ...], tuple[int, ...]]]]]:
    """For each pair of a batch (its row, [(document, answer) of chosen, of rejected]), read off the arrays alone."""
    found = []
    for number in range(batch.num_units):
        documents = []
        for side in (0, 1):
            rows, columns = np.nonzero(batch.sequences == 2 * number + side)
            assert len(set(rows)) == 1 and (np.diff(columns) == 1).all()
            row, first, last = rows[0], columns[0], columns[-1]
            begin = first - batch.position_ids[row, first]  # where positions started from 0
            assert (batch.position_ids[row, begin : last + 2] == np.arange(last + 2 - begin)).all()
            answer = batch.labels[row, first : last + 1]
            assert (answer == batch.input_ids[row, first + 1 : last + 2]).all()
            documents.append((tuple(batch.input_ids[row, begin : last + 2].tolist()), tuple(answer.tolist())))
        found.append((int(row), documents))
    return found


def expected(pairs: TokenizedPairs, index: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    prompt, *answers = (part.tolist() for part in pairs.pair(index))
    return [((*prompt, *answer), tuple(answer)) for answer in answers]


LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=24)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(1, 4), st.integers(0, 30))
@settings(max_examples=80, deadline=None)
def test_every_pair_is_whole_in_one_row_exactly_once_an_epoch(
    lengths: list[tuple[int, int, int]], pairs_per_step: int, seed: int, rows_multiple: int, extra: int
) -> None:
    pairs = tokenized(lengths)
    rows = PairRows(pairs, int(pairs.lengths.max()) + extra, rows_multiple=rows_multiple)
    seen: Counter[object] = Counter()
    num_steps = pairs.num_pairs  # pairs_per_step whole epochs
    for step in range(num_steps):
        batch = rows.batch_of_step(step, pairs_per_step, seed)
        assert batch.num_units == pairs_per_step and batch.num_rows % rows_multiple == 0
        assert batch.input_ids.shape[1] == rows.row_tokens
        for index, (_, documents) in zip(order_of(rows, step, pairs_per_step, seed), in_batch(batch), strict=True):
            assert documents == expected(pairs, index)
            seen[tuple(documents)] += 1
    once = Counter(tuple(expected(pairs, index)) for index in range(pairs.num_pairs))
    assert seen == Counter({each: count * pairs_per_step for each, count in once.items()})


def order_of(rows: PairRows, step: int, pairs_per_step: int, seed: int) -> list[int]:
    """The pairs of a step in the batch's order, by a reference that is their number."""
    numbers = np.arange(rows.num_rows, dtype=np.float64)
    marked = PairRows(rows.pairs, rows.row_tokens, np.stack([numbers, numbers], axis=1))
    batch = marked.batch_of_step(step, pairs_per_step, seed)
    assert batch.reference is not None
    return [int(number) for number in batch.reference[:, 0]]


@given(LENGTHS, st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_slices_of_rows_keep_each_pair_beside_its_reference(
    lengths: list[tuple[int, int, int]], size: int, rows_multiple: int
) -> None:
    pairs = tokenized(lengths)
    reference = np.random.default_rng(1).normal(size=(pairs.num_pairs, 2))
    rows = PairRows(pairs, int(pairs.lengths.max()) + 9, reference, rows_multiple)
    of_pair = {tuple(expected(pairs, index)): tuple(reference[index]) for index in range(pairs.num_pairs)}
    batch = rows.batch(np.arange(pairs.num_pairs))
    parts = [batch.rows(start, start + size) for start in range(0, batch.num_rows, size)]
    assert sum(part.num_units for part in parts) == pairs.num_pairs
    for part in parts:
        assert part.reference is not None and len(part.reference) == part.num_units
        for (_, documents), values in zip(in_batch(part), part.reference, strict=True):
            if list(of_pair).count(tuple(documents)) == 1 and len(of_pair) == pairs.num_pairs:
                assert of_pair[tuple(documents)] == tuple(values)


@given(LENGTHS, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_in_order_holds_all_pairs_once_and_all_else_is_no_target(
    lengths: list[tuple[int, int, int]], num_rows: int
) -> None:
    pairs = tokenized(lengths)
    rows = PairRows(pairs, 80)
    batches = list(rows.in_order(num_rows))
    found = Counter(tuple(documents) for batch in batches for _, documents in in_batch(batch))
    assert found == Counter(tuple(expected(pairs, index)) for index in range(pairs.num_pairs))
    assert all(batch.num_rows <= num_rows for batch in batches)
    assert sum(batch.num_targets for batch in batches) == rows.num_targets == pairs.answer_lengths.sum()
    assert all(((batch.labels == IGNORED) == (batch.sequences == -1)).all() for batch in batches)


def test_a_step_is_a_function_of_seed_and_step() -> None:
    rows = PairRows(tokenized([(4, 3, 2)] * 30), 40)
    first = [rows.batch_of_step(step, 8, seed=3).input_ids for step in (2, 0)]
    again = [PairRows(tokenized([(4, 3, 2)] * 30), 40).batch_of_step(step, 8, seed=3).input_ids for step in (2, 0)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[1] != rows.batch_of_step(0, 8, seed=4).input_ids).any()
    sizes = [rows.batch_of_step(0, size, seed=0).num_units for size in (1, 7, 64)]
    assert sizes == [1, 7, 64]


def test_rows_too_short_and_a_reference_of_other_pairs_are_refused() -> None:
    pairs = tokenized([(4, 3, 2), (6, 6, 6)])
    with pytest.raises(DataError, match="has 24 tokens as two documents"):
        PairRows(pairs, 23)
    with pytest.raises(DataError, match=r"shape \[3, 2\]"):
        PairRows(pairs, 24, np.zeros((3, 2)))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_truncated_pairs_fit_and_every_row_is_kept_or_counted(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    texts = st.text("ab", min_size=1, max_size=9)
    given_pairs = [pair(*data.draw(st.tuples(texts, texts, texts))) for _ in range(data.draw(st.integers(1, 5)))]
    max_tokens, how = data.draw(st.integers(2, 24)), data.draw(st.sampled_from(["prompt", "end", "drop"]))
    folder = tmp_path_factory.mktemp("pairs")
    whole = [[*encode_one(p.prompt, p.chosen), encode_one(p.prompt, p.rejected)[1]] for p in given_pairs]
    try:
        made = write_pairs(
            given_pairs, encode, folder, max_tokens=max_tokens, end_of_turn=[END], begin_of_text=0, truncate=how
        )
    except DataError as error:
        assert "no preference pair that could be trained on" in str(error)
        return
    assert made.num_pairs + sum(made.dropped.values()) == len(given_pairs)
    assert (made.prompt_lengths[:, None] + made.answer_lengths <= max_tokens).all()
    assert (made.answer_lengths > 0).all() and (made.prompt_lengths > 0).all()
    for index in range(made.num_pairs):
        prompt, chosen, rejected = (part.tolist() for part in made.pair(index))
        assert chosen != rejected
        origins = [ids for ids in whole if ids[1][: len(chosen)] == chosen and ids[2][: len(rejected)] == rejected
                   and ids[0][len(ids[0]) - len(prompt) + 1 :] == prompt[1:]]  # fmt: skip
        assert origins
        if not made.truncated[index]:
            assert [prompt, chosen, rejected] in whole
        if how == "prompt" and len(prompt) > 1:
            assert prompt[0] == 0  # the begin-of-text stays


def test_the_prompt_loses_its_beginning_first(tmp_path: Path) -> None:
    long = pair("x" * 50, "yes", "never")
    made = write_pairs([long], encode, tmp_path, max_tokens=20, end_of_turn=[END], begin_of_text=0)
    prompt, chosen, rejected = (part.tolist() for part in made.pair(0))
    assert (chosen, rejected) == (encode_one(long.prompt, "yes")[1], encode_one(long.prompt, "never")[1])
    assert prompt == [0, *b"x" * 11, END, 2] and made.truncated.all()
    opened = open_pairs(tmp_path)
    assert opened.digest() == made.digest() and opened.source_names == ("a",)


def test_losses_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        pair("p", "yes", "no"),
        pair("p", "x" * 30 + "a", "x" * 30 + "b"),
        Dropped("row:3", "empty answer"),
        pair("q" * 40, "yes", "no", "b"),
    ]
    made = write_pairs(rows, encode, tmp_path, max_tokens=16, end_of_turn=[END], truncate="end")
    assert made.dropped == {"difference truncated": 1, "empty answer": 1, "truncated to nothing": 1}
    dropped = write_pairs(rows, encode, tmp_path, max_tokens=16, end_of_turn=[END], truncate="drop").dropped
    assert dropped == {"empty answer": 1, "longer than max_tokens": 2}
    with pytest.raises(DataError, match=r"no preference pair that could be trained on \(longer than max_tokens: 1\)"):
        write_pairs(rows[1:2], encode, tmp_path, max_tokens=16, end_of_turn=[END], truncate="drop")


def test_an_answer_without_its_end_of_turn_is_refused(tmp_path: Path) -> None:
    def without_end(batch: Sequence[tuple[Prompt, str]]) -> list[tuple[list[int], list[int]]]:
        return [(ids, answer[:-1]) for ids, answer in encode(batch)]

    def unlike(batch: Sequence[tuple[Prompt, str]]) -> list[tuple[list[int], list[int]]]:
        return [([*ids, len(answer)], answer) for ids, answer in encode(batch)]

    for wrong, message in ((without_end, "would not learn to stop"), (unlike, "other ids before the chosen")):
        with pytest.raises(DataError, match=message):
            write_pairs([pair("p", "yes", "never")], wrong, tmp_path, max_tokens=16, end_of_turn=[END])


@pytest.mark.parametrize("template", ["solar", "tokenizer"])
def test_through_a_chat_template_pairs_are_what_transformers_renders(template: str, tmp_path: Path) -> None:
    tokenizer = pico.tiny_tokenizer(tmp_path)
    chat = chat_encoder(tokenizer, template, turns="last")
    turns = (Message("user", "Why?"), Message("assistant", "Who knows."), Message("user", "You."))
    rows = [
        PreferencePair(turns, "Because.", "No.", "row:1"),
        PreferencePair(turns, f"a{pico.END}b", "No.", "row:2"),
        *[pair("Why?", "Because.", f"No {number}.") for number in range(300)],  # more than one batch
    ]
    made = write_pairs(rows, chat_encode(chat), tmp_path, max_tokens=200, end_of_turn=[chat.end_of_turn])
    assert made.num_pairs == 301 and sum(made.dropped.values()) == 1
    prompt, *answers = (part.tolist() for part in made.pair(0))
    assert prompt == chat.prompt_ids(turns)
    if template == "tokenizer":
        dicts = [{"role": message.role, "content": message.content} for message in turns]
        oracle = tokenizer.apply_chat_template(dicts, add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode(prompt) == oracle
    for ids, text in zip(answers, ("Because.", "No."), strict=True):
        assert tokenizer.decode(ids).strip() == text + pico.END
    with pytest.raises(DataError, match="the last answer alone"):
        write_pairs(rows, chat_encode(replace(chat, turns="all")), tmp_path, max_tokens=200, end_of_turn=[0])


def test_statistics_of_known_pairs(tmp_path: Path) -> None:
    rows = [pair("p", "abcd", "abxy"), pair("p", "c", "d", "b"), pair("p", "x" * 9, "y"), Dropped("r", "repeated")]
    made = write_pairs(rows, encode, tmp_path, max_tokens=12, end_of_turn=[END])
    found = describe(made)
    assert found.num_pairs == 3 and found.sources == {"a": 2, "b": 1} and found.dropped == {"repeated": 1}
    assert (found.chosen.mean, found.chosen.median, found.chosen.largest) == (14 / 3, 5, 7)
    assert found.chosen_longer == pytest.approx(1 / 3) and found.truncated == pytest.approx(1 / 3)
    assert found.shared_start == pytest.approx((2 / 5 + 0 + 0) / 3)
    assert found.overlap == pytest.approx((3 / 5 + 1 / 2 + 0) / 3)
    assert describe(made.subset(np.asarray([1]))).sources == {"b": 1}
    assert found.num_tokens == made.lengths.sum()


def test_real_pairs_fill_their_rows(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    files = Files((str(shared_data("preference/orca_dpo_pairs_sample.jsonl")),))
    made = write_pairs(read_pairs(files), encode, tmp_path, max_tokens=1024, end_of_turn=[END])
    batches = list(PairRows(made, 4096).in_order(4))
    assert made.num_pairs == 284 == sum(batch.num_units for batch in batches)
    assert made.lengths.sum() / sum(batch.input_ids.size for batch in batches) > 0.85


# -- processes and interruptions --------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    """What was written; the archive of arrays without the dates in it."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"}
    with np.load(folder / "pairs.npz") as arrays:
        return found | {name: arrays[name].tobytes() for name in arrays}


def test_pairs_are_the_same_after_interruptions_and_from_two_processes(tmp_path: Path) -> None:
    """Sources are numbered by their first pairs that are kept, though one comes before that is left out."""
    talks: list[PreferencePair | Dropped] = [pair("same", "x", "x", "none")]
    talks += [pair(f"Question {i}?", f"yes {i}", "no" * (i % 40), "ab"[i % 300 > 200]) for i in range(900)]
    talks.insert(500, Dropped("row:500", "empty answer"))
    chat = chat_encode(chat_encoder(pico.tiny_tokenizer(tmp_path), "solar", turns="last"))

    def until(stop: int) -> Iterator[PreferencePair | Dropped]:
        yield from talks[:stop]
        raise KeyboardInterrupt

    found = []
    for stops, num_workers in (((), 1), ((300, 120, 800), 1), ((600,), 2)):
        folder = tmp_path / f"{len(stops)}-{num_workers}"
        folder.mkdir()
        options: dict[str, Any] = {"max_tokens": 48, "end_of_turn": [0], "shard_pairs": 256}
        for stop in stops:
            with pytest.raises(KeyboardInterrupt):
                write_pairs(until(stop), chat, folder, **options)
        done: list[int] = []
        made = write_pairs(talks, chat, folder, num_workers=num_workers, progress=done.append, **options)
        assert sum(done) == len(talks) and (not stops or done[0] >= 256)
        found.append(files(folder))
    assert found[1:] == found[:1] * 2
    assert made.source_names == ("a", "b") and made.dropped["empty answer"] == 1
    with pytest.raises(DataError, match="are not those that"):
        folder = tmp_path / "other"
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt):
            write_pairs(until(600), chat, folder, **options)
        write_pairs(talks[1:], chat, folder, **options)
