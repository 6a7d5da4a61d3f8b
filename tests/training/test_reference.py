"""Reference log-probabilities: transformers' and TRL's own, computed once, also when killed; sDPO's order of chunks."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard

from depthup.data.conversations import Message
from depthup.data.packing import PairBatch
from depthup.data.pair_tokens import Prompt, TokenizedPairs, write_pairs
from depthup.data.pairs import PairRows
from depthup.data.preferences import PreferencePair
from depthup.errors import DataError, TrainingError
from depthup.training.objectives import causal_lm
from depthup.training.reference import (
    order_chunks,
    pair_log_probs,
    reference_log_probs,
    require_reference,
    reward_accuracy,
    split_into_chunks,
)

KEY = {"weights": "0" * 64, "max_tokens": 64}


def make_pairs(num_pairs: int = 24, seed: int = 0, longest: int = 20) -> TokenizedPairs:
    random = np.random.default_rng(seed)
    spans = np.concatenate([[0], np.cumsum(random.integers(1, longest, 3 * num_pairs))])
    tokens = random.integers(1, pico.VOCAB_SIZE, spans[-1]).astype(np.int32)
    spans = np.stack([spans[:-1:3], spans[1::3], spans[2::3], spans[3::3]], axis=1)
    sources = np.arange(num_pairs, dtype=np.int32) % 3
    return TokenizedPairs(tokens, spans, sources, np.zeros(num_pairs, bool), ("a", "b", "c"), {})


def alone(model: torch.nn.Module, pairs: TokenizedPairs) -> np.ndarray:
    """The log-probability of each answer by the model on that one text, and torch's cross-entropy."""
    values = np.empty((pairs.num_pairs, 2))
    for index in range(pairs.num_pairs):
        prompt, *answers = pairs.pair(index)
        for side, answer in enumerate(answers):
            ids = torch.tensor(np.concatenate([prompt, answer])[None].astype(np.int64))
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            values[index, side] = -F.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").item()
    return values


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_packed_pairs_have_the_log_probabilities_of_each_text_alone(family: str, tmp_path: Path) -> None:
    model, pairs = pico.model(family), make_pairs()
    oracle = alone(model, pairs)
    for row_tokens, rows_per_batch in ((int(pairs.lengths.max()), 1), (120, 3)):
        rows = PairRows(pairs, row_tokens)
        found = reference_log_probs(model, rows, tmp_path / str(row_tokens), KEY, rows_per_batch=rows_per_batch,
                                    progress=False)  # fmt: skip
        np.testing.assert_allclose(found, oracle, rtol=1e-5)
    batch = PairRows(pairs, 120, oracle, rows_multiple=4).batch_of_step(0, 10, seed=0)
    np.testing.assert_allclose(pair_log_probs(model, batch).numpy(), batch.reference, rtol=1e-5)
    parts = torch.cat([pair_log_probs(model, batch.rows(row, row + 1)) for row in range(batch.num_rows)])
    np.testing.assert_allclose(parts.numpy(), batch.reference, rtol=1e-5)  # a row without pairs among them


def test_they_are_those_that_trl_computes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset, disable_progress_bars
        from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    tokenizer, model = pico.tiny_tokenizer(tmp_path), pico.model("llama")
    words = ["what", "is", "the", "sum", "of", "first", "second", "there", "not", "another", "question", "answers"]
    random = np.random.default_rng(0)

    def text(num_words: int) -> str:
        return " ".join(random.choice(words, num_words))

    rows = [{"prompt": f"{text(4)}?", "chosen": f" {text(3 + i % 5)}.", "rejected": f" {text(2 + i % 7)}!"}
            for i in range(12)]  # fmt: skip

    def encode(batch: Sequence[tuple[Prompt, str]]) -> list[tuple[list[int], list[int]]]:
        found = []
        for (message,), answer in batch:
            ids = tokenizer(message.content)["input_ids"]
            whole = tokenizer(message.content + answer + pico.END)["input_ids"]
            assert whole[: len(ids)] == ids
            found.append((ids, whole[len(ids) :]))
        return found

    pairs = [PreferencePair((Message("user", row["prompt"]),), row["chosen"], row["rejected"], "row") for row in rows]
    written = write_pairs(pairs, encode, tmp_path, max_tokens=120, end_of_turn=[tokenizer.eos_token_id])
    ours = reference_log_probs(model, PairRows(written, 200), tmp_path / "cache", KEY, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = DPOConfig(output_dir=str(tmp_path / "trl"), precompute_ref_log_probs=True, use_cpu=True, bf16=False,
                           per_device_train_batch_size=4, max_length=120, report_to=[], disable_tqdm=True)  # fmt: skip
        trainer = DPOTrainer(
            pico.model("llama"), args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
    theirs = np.stack([trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")], axis=1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_they_are_computed_once_for_a_key_and_the_pairs(tmp_path: Path) -> None:
    model, rows, calls = pico.model("llama"), PairRows(make_pairs(), 120), []

    def counted(current: torch.nn.Module, batch: PairBatch) -> torch.Tensor:
        calls.append(batch.num_units)
        assert not current.training and not torch.is_grad_enabled()
        return pair_log_probs(current, batch)

    def computed(rows: PairRows, key: dict[str, object], **options: bool) -> int:
        calls.clear()
        found = reference_log_probs(model, rows, tmp_path, key, log_probs=counted, progress=False, **options)
        assert found.shape == (rows.num_rows, 2) and found.dtype == np.float64 and not found.flags.writeable
        return sum(calls)

    model.train()
    assert computed(rows, KEY) == 24
    assert model.training
    assert computed(rows, dict(reversed(KEY.items()))) == 0
    assert computed(replace(rows, row_tokens=200), KEY) == 0
    assert computed(rows, {**KEY, "weights": "1" * 64}) == 24
    assert computed(replace(rows, pairs=rows.pairs.subset(np.arange(5))), KEY) == 5
    assert computed(PairRows(make_pairs(seed=1), 120), KEY) == 24
    assert computed(rows, KEY, autocast=True) == 24
    assert sorted(path.name.startswith(".") for path in tmp_path.iterdir()) == [False] * 5


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import pico
from test_reference import KEY, PairRows, make_pairs, pair_log_probs, reference_log_probs
done = 0
def log_probs(model, batch):
    global done
    done += 1
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return pair_log_probs(model, batch)
reference_log_probs(pico.model("llama"), PairRows(make_pairs(), 90), Path(sys.argv[2]), KEY, rows_per_batch=1,
                    log_probs=log_probs, progress=False)
"""


def test_a_killed_computation_goes_on_where_it_was(tmp_path: Path) -> None:
    killed = run_python(KILLED, str(tmp_path))
    assert killed.communicate(timeout=60) and killed.returncode == -signal.SIGKILL
    assert [path.name.startswith(".") for path in tmp_path.iterdir()] == [True]  # nothing is published
    model, rows, seen = pico.model("llama"), PairRows(make_pairs(), 90), 0

    def counted(current: torch.nn.Module, batch: PairBatch) -> torch.Tensor:
        nonlocal seen
        seen += batch.num_units
        return pair_log_probs(current, batch)

    found = reference_log_probs(model, rows, tmp_path, KEY, log_probs=counted, progress=False)
    assert 0 < seen < 24
    np.testing.assert_allclose(found, alone(model, rows.pairs), rtol=1e-5)


SECOND_RANK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_reference import as_rank
values, passes = as_rank(1, Path(sys.argv[2]))
np.save(Path(sys.argv[2], "second.npy"), values)
print(*passes)
"""


def as_rank(rank: int, folder: Path) -> tuple[np.ndarray, list[int]]:
    """The log-probabilities as one of two ranks of FSDP2 gets them, and the pairs of each of its forward passes."""
    passes: list[int] = []

    def counted(model: torch.nn.Module, batch: PairBatch) -> torch.Tensor:
        passes.append(batch.num_units)
        return pair_log_probs(model, batch)

    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        model, rows = pico.model("llama"), PairRows(make_pairs(), 90)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        values = reference_log_probs(
            model, rows, folder / "cache", KEY, rows_per_batch=1, log_probs=counted, progress=False
        )
        causal_lm(model, rows.batch_of_step(0, 2, seed=0)).loss.backward()  # it trains as if nothing had been
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        dist.destroy_process_group()
    return np.array(values), passes


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(Path(__file__).parent), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_sharded_ranks_share_the_work_with_equally_many_forward_passes_each(tmp_path: Path) -> None:
    other = run_python(SECOND_RANK, str(tmp_path))
    values, passes = as_rank(0, tmp_path)
    out, errors = other.communicate(timeout=60)
    assert other.returncode == 0, errors
    theirs = list(map(int, out.split()))
    assert len(theirs) == len(passes) and 24 <= sum(passes) + sum(theirs) < 30  # the last round may repeat a row
    oracle = alone(pico.model("llama"), make_pairs())
    for found in (values, np.load(tmp_path / "second.npy")):
        np.testing.assert_allclose(found, oracle, rtol=1e-5)


def test_what_is_not_finite_or_of_another_key_is_refused(tmp_path: Path) -> None:
    model, rows = pico.model("llama"), PairRows(make_pairs(), 120)

    def broken(current: torch.nn.Module, batch: PairBatch) -> torch.Tensor:
        return pair_log_probs(current, batch) * float("nan")

    with pytest.raises(TrainingError, match="nan"):
        reference_log_probs(model, rows, tmp_path, KEY, log_probs=broken, progress=False)
    reference_log_probs(model, rows, tmp_path, KEY, progress=False)
    (folder,) = tmp_path.iterdir()
    with pytest.raises(TrainingError, match="names no weights"):
        reference_log_probs(model, rows, tmp_path, {"data": "x"}, progress=False)
    (folder / "key.json").write_text("{}")
    with pytest.raises(TrainingError, match="another model or other pairs"):
        reference_log_probs(model, rows, tmp_path, KEY, progress=False)


def test_a_reference_unlike_the_policy_is_refused(tmp_path: Path) -> None:
    model, rows = pico.model("llama"), PairRows(make_pairs(), 120)
    reference = np.asarray(reference_log_probs(model, rows, tmp_path, KEY, progress=False))
    require_reference(model, replace(rows, reference=reference))
    for wrong in (None, reference * 1.01, reference[:, ::-1], reference + np.nan):
        with pytest.raises(TrainingError):
            require_reference(model, replace(rows, reference=wrong))
    with pytest.raises(TrainingError, match="unlike the policy"):
        require_reference(pico.model("llama", seed=1), replace(rows, reference=reference))


def test_the_loss_begins_at_ln_2_with_torch_s_own_words() -> None:
    model, rows = pico.model("llama"), PairRows(make_pairs(), 120)
    batch = replace(rows, reference=alone(model, rows.pairs)).batch_of_step(0, 8, seed=0)
    assert batch.reference is not None
    margins = (pair_log_probs(model, batch).numpy() - batch.reference) @ [1.0, -1.0]
    assert -F.logsigmoid(torch.from_numpy(0.1 * margins)).mean().item() == pytest.approx(math.log(2), abs=1e-5)


def test_reward_accuracy_of_known_pairs() -> None:
    values = np.asarray([[-1.0, -2.0], [-4.0, -2.0], [-3.0, -3.0], [-6.0, -2.0]])
    assert reward_accuracy(values) == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert reward_accuracy(values, np.asarray([[1, 1], [4, 1], [1, 1], [6, 1]])) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    with pytest.raises(DataError):
        reward_accuracy(values[:0])


@given(st.integers(1, 60), st.integers(1, 8), st.sampled_from(["accuracy", "given", "random"]), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_each_pair_is_in_one_chunk_and_chunks_are_equal(num_pairs: int, num_chunks: int, by: str, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(num_pairs, 2))
    if num_chunks > num_pairs:
        with pytest.raises(DataError, match="chunks"):
            split_into_chunks(num_pairs, num_chunks, seed, by, log_probs=values)
        return
    chunks = split_into_chunks(num_pairs, num_chunks, seed, by, log_probs=values)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(num_pairs))
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 1
    if by == "accuracy":
        accuracies = [reward_accuracy(values[chunk]) for chunk in chunks]
        assert accuracies == sorted(accuracies, reverse=True)


def test_chunks_by_source_are_ordered_from_easy_to_hard() -> None:
    pairs = make_pairs(9)
    chunks = split_into_chunks(9, 3, by="source", sources=pairs.sources)
    assert [chunk.tolist() for chunk in chunks] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    ordered = order_chunks(chunks, [0.4, 0.9, 0.4])
    assert [int(chunk[0]) for chunk in ordered] == [1, 0, 2]
    with pytest.raises(DataError, match="the pairs have 3 sources"):
        split_into_chunks(9, 2, by="source", sources=pairs.sources)
    with pytest.raises(DataError, match="needs the reference"):
        split_into_chunks(9, 2, by="accuracy")
