"""The membership test: losses are the model's own, figures those of scipy, and a planted leak is caught by the verb."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pico
import pytest
import scipy.stats
import torch

from depthup.cli import main
from depthup.contamination.membership import (
    Estimate,
    Settings,
    auc,
    draw_neighbours,
    mean_loss,
    min_k,
    min_k_plus_plus,
    prefix_of,
    rank_difference,
    rank_result,
    rank_scores,
    reading,
    token_statistics,
)
from depthup.errors import DepthupError
from depthup.models import load_model, load_tokenizer

WORDS = ["north", "seven", "lamps", "river", "green", "stone", "house", "apple", "nine", "window", "paper", "cloud"]
TEXTS = [" ".join(np.random.default_rng(seed).choice(WORDS, 9)) for seed in range(24)]


@pytest.fixture(scope="module")
def folder(base: Callable[..., Path]) -> Path:
    return base("llama", tokenizer=True)


def test_losses_are_those_of_the_model_whatever_the_batch(folder: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    texts = [*TEXTS[:3], "one two", TEXTS[3] * 3]
    whole = token_statistics(model, tokenizer, texts, Settings())
    for batch_tokens in (1, 100):
        other = token_statistics(model, tokenizer, texts, Settings(batch_tokens=batch_tokens))
        for one, two in zip(whole, other, strict=True):
            assert np.allclose(one.log_probs, two.log_probs, atol=1e-5)
    for text, found in zip(texts, whole, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : Settings().max_tokens]
        with torch.inference_mode():
            output = model(input_ids=ids, labels=ids)
        assert mean_loss(found) == pytest.approx(float(output.loss), abs=1e-5)
        expected = torch.distributions.Categorical(logits=output.logits[0, :-1])
        assert found.means == pytest.approx(-expected.entropy().numpy(), abs=1e-5)
        logs = expected.logits.double()
        mean = (expected.probs * logs).sum(-1, keepdim=True)
        variance = (expected.probs * (logs - mean) ** 2).sum(-1)
        assert found.deviations == pytest.approx(variance.sqrt().numpy(), abs=1e-3)


def test_min_k_looks_at_the_least_probable_tokens(folder: Path) -> None:
    (found,) = token_statistics(load_model(folder), load_tokenizer(folder), [TEXTS[0]], Settings())
    count = max(1, int(len(found.log_probs) * 0.2))
    assert min_k(found) == pytest.approx(sorted(found.log_probs)[:count] @ np.full(count, 1 / count))
    standard = (found.log_probs - found.means) / found.deviations
    assert min_k_plus_plus(found, 1.0) == pytest.approx(standard.mean())


def test_neighbours_are_seeded_and_begin_as_their_item(folder: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    settings = Settings(num_neighbours=3)
    state = torch.random.get_rng_state()
    first = draw_neighbours(model, tokenizer, TEXTS[:3], settings)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == draw_neighbours(model, tokenizer, TEXTS[:3], settings)
    assert first != draw_neighbours(model, tokenizer, TEXTS[:3], Settings(num_neighbours=3, seed=1))
    for text, drawn in zip(TEXTS, first, strict=False):
        assert len(drawn) == len(set(drawn)) == 3
        prefix = " ".join(text.split()[:3])  # 40 % of nine words
        assert prefix_of(text, 0.4) == prefix and all(each.startswith(prefix) for each in drawn)
    with pytest.raises(DepthupError, match="1 words, too few"):
        prefix_of("alone", 0.4)
    with pytest.raises(DepthupError, match="before its neighbours begin"):
        draw_neighbours(model, tokenizer, TEXTS[:1], Settings(max_tokens=5))


def test_a_result_is_the_share_of_low_scores() -> None:
    neighbours = [[1.0, 2.0, 3.0, 4.0]] * 4
    lower = rank_scores([0.5, 1.0, 2.5, 9.0], neighbours)
    assert lower.mean(axis=1).tolist() == [0, 0, 0.5, 1]
    result = rank_result(lower)
    assert result.value == 0.5 and result.low < 0.5 < result.high
    assert result == rank_result(lower) and result.low >= 0 and result.high <= 1


@pytest.mark.parametrize("value", [0, 1])
def test_an_unanimous_result_keeps_its_doubt(value: int) -> None:
    """Resampling knows no doubt there; the exact interval of scipy does."""
    lower = np.full((20, 11), not value)
    result = rank_result(lower)
    exact = scipy.stats.binomtest(20 * value, 20).proportion_ci(0.95, "exact")
    assert (result.value, result.low, result.high) == pytest.approx((value, exact.low, exact.high))


def test_differences_and_aucs_are_paired_and_seeded() -> None:
    numbers = np.random.default_rng(0)
    one, two = numbers.normal(1, 1, 40), numbers.normal(0, 1, 50)
    found = auc(one, two)
    assert found.value == pytest.approx(scipy.stats.mannwhitneyu(one, two).statistic / 2000)
    oracle = scipy.stats.bootstrap((one, two), lambda a, b: scipy.stats.mannwhitneyu(a, b).statistic / 2000,
                                   vectorized=False, n_resamples=300, method="percentile", rng=0)  # fmt: skip
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.03)
    lower = numbers.random((12, 11)) < 0.1
    same = rank_difference(lower, lower)
    assert same == (0, 0, 0)


def test_readings_need_the_whole_interval() -> None:
    assert reading(Estimate(1.0, 0.86, 1.0)) == "leaked"
    assert reading(Estimate(0.9, 0.8, 1.0)) == "undecided"
    assert reading(Estimate(0.1, 0.0, 0.3)) == "clean"


def train_on(folder: Path, out: Path, texts: list[str]) -> Path:
    """A copy of a tiny model that knows the texts by heart."""
    model = pico.load(folder).train()
    batch = load_tokenizer(folder)(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    shutil.copytree(folder, out)
    model.save_pretrained(out)
    return out


def test_a_planted_leak_is_caught_and_the_clean_model_is_not(
    folder: Path, base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaked = train_on(folder, tmp_path / "leaked", TEXTS)
    items, unseen, out = tmp_path / "items.jsonl", tmp_path / "unseen.jsonl", tmp_path / "out"
    rows = [json.dumps({"question": text[:20], "answer": text[20:]}) for text in TEXTS]
    items.write_text("\n".join([*(json.dumps({"text": text}) for text in TEXTS), "{no", '{"text": 3}']))
    unseen.write_text("\n".join(rows[::-1]))
    other = base("llama", tokenizer=True, num_layers=3)
    command = ["membership", folder, "--reference", folder, "--reference", other, "--planted", leaked, "--out", out]
    command += ["--unseen", unseen, "--neighbours", 12, "--items"]
    assert main([*map(str, command), str(items)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["num_items"] == 24 and report["num_bad_rows"] == 2
    for reference in (folder, other):
        readings = {name: report["models"][str(name)]["rank"][str(reference)]["reading"] for name in (folder, leaked)}
        assert readings == {folder: "clean", leaked: "leaked"}
        assert report["planted_above_model"][str(reference)]["low"] > 0
    assert math.isclose(report["models"][str(folder)]["min_k"]["value"], 0.5, abs_tol=0.35)
    lines = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert len(lines) == len((out / "neighbours.jsonl").read_text().splitlines()) == 24
    shown = capsys.readouterr().out
    assert "the planted leak is caught" in shown and "left out: row 25 of" in shown
    shutil.rmtree(out)
    assert main([*map(str, command), str(tmp_path / "none.jsonl")]) == 2
