"""Preference losses: pairs packed are pairs alone, a policy that is its reference costs what it must, faults show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pico
import pytest
import torch

from depthup.data.packing import IGNORED, PairBatch
from depthup.errors import TrainingError
from depthup.training.dpo import VARIANTS, Preference, alarms, answer_lengths, answer_logps, dpo
from depthup.training.heads import FULL, Head
from depthup.training.objectives import causal_lm

HEAD = Head("chunked")
LENGTHS = ((3, 5, 9), (4, 7, 8), (2, 9, 7))  # of prompt, chosen, rejected


def make_pairs(rows: list[list[int]]) -> PairBatch:
    """Rows of the pairs of these numbers; the rest of a row is padding."""
    num_tokens = 48
    arrays = {name: np.full((len(rows), num_tokens), fill, np.int64)
              for name, fill in (("input_ids", 0), ("labels", IGNORED), ("sequences", -1))}  # fmt: skip
    position_ids = np.zeros((len(rows), num_tokens), np.int64)
    count = 0
    for place, numbers in enumerate(rows):
        start = 0
        for number in numbers:
            draw = np.random.default_rng(number)
            prompt, *answers = (draw.integers(1, pico.VOCAB_SIZE, length) for length in LENGTHS[number])
            for answer in answers:
                ids, end = np.concatenate([prompt, answer]), start + len(prompt) + len(answer)
                targets = slice(start + len(prompt) - 1, end - 1)
                arrays["input_ids"][place, start:end] = ids
                arrays["labels"][place, targets] = answer
                arrays["sequences"][place, targets] = count
                position_ids[place, start:] = np.arange(num_tokens - start)
                start, count = end, count + 1
        position_ids[place, start:] = np.arange(num_tokens - start)
    return PairBatch(**arrays, position_ids=position_ids, reference=None)


def with_reference(batch: PairBatch, model: Any, shift: float = 0.0) -> PairBatch:
    with torch.no_grad():
        reference = answer_logps(HEAD, model, batch).numpy() + shift
    return PairBatch(batch.input_ids, batch.labels, batch.position_ids, batch.sequences, reference)


def settings_of(variant: str) -> dict[str, Any]:
    return {"variant": variant, "beta": 0.5, "label_smoothing": 0.1 if VARIANTS[variant].smooths else 0.0,
            "gamma": 0.2 if variant == "simpo" else 0.0, "nll_weight": 0.3}  # fmt: skip


@pytest.mark.parametrize("head", [HEAD, FULL], ids=["chunked", "full"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_packed_are_pairs_alone(variant: str, head: Head) -> None:
    """Loss, gradient and every figure, whether pairs share a row, a batch, or neither."""
    model, reference, results = pico.model(num_layers=2), pico.model(num_layers=2, seed=1), []
    objective = dpo(**settings_of(variant), head=head)
    for batches in ([[[0, 1], [2]]], [[[0], [1]], [[2]]], [[[2]], [[1]], [[0]]]):
        model.zero_grad()
        sums: dict[str, float] = {}
        for rows in batches:
            measured = objective(model, with_reference(make_pairs(rows), reference))
            measured.loss.backward()
            for name, value in {"loss": measured.loss, **measured.sums}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        results.append((sums, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    for sums, gradient in results[1:]:
        assert sums == pytest.approx(results[0][0], rel=1e-5, abs=1e-5)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-3, atol=1e-5)


def test_rows_of_a_batch_add_up_to_the_batch() -> None:
    model, objective = pico.model(num_layers=2), dpo(head=HEAD)
    batch = with_reference(make_pairs([[0, 1], [2]]), pico.model(num_layers=2, seed=1))
    parts = [objective(model, batch.rows(i, i + 1)).loss.item() for i in range(2)]
    assert sum(parts) == pytest.approx(objective(model, batch).loss.item(), rel=1e-6)
    assert batch.rows(1, 2).num_units == 1


def test_answers_have_the_likelihood_that_the_causal_loss_gives_them() -> None:
    model, batch = pico.model(num_layers=2), make_pairs([[0, 1], [2]])
    logps = answer_logps(HEAD, model, batch)
    assert logps.shape == (3, 2)
    assert -logps.sum().item() == pytest.approx(causal_lm(model, batch).loss.item(), rel=1e-6)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if Preference(**settings_of(name)).needs_reference])
def test_a_policy_that_is_its_reference_costs_what_it_must(variant: str) -> None:
    model, options = pico.model(num_layers=2), settings_of(variant)
    settings = Preference(**options)
    measured = dpo(**options, head=HEAD)(model, with_reference(make_pairs([[0, 1], [2]]), model))
    nll = settings.nll_weight * measured.sums["nll/chosen"].item()
    assert (measured.loss.item() - nll) / 3 == pytest.approx(settings.start_loss, rel=1e-5)


def test_drift_from_the_reference_is_estimated_a_token_at_a_time() -> None:
    """Against sums over the answers' tokens by hand; a policy that is its reference has none, SimPO tells nothing."""
    model, batch = pico.model(num_layers=2), make_pairs([[0, 1], [2]])
    there = with_reference(batch, pico.model(num_layers=2, seed=1))
    sums = dpo(head=HEAD)(model, there).sums
    assert there.reference is not None
    with torch.no_grad():
        k1 = (answer_logps(HEAD, model, there).numpy() - there.reference) / answer_lengths(there)
    for number, side in enumerate(("chosen", "rejected")):
        assert sums[f"kl_k1/{side}"].item() == pytest.approx(k1[:, number].sum(), rel=1e-5)
        expected = (np.exp(-k1[:, number]) - 1 + k1[:, number]).sum()
        assert sums[f"kl_k3/{side}"].item() == pytest.approx(expected, rel=1e-4) and expected > 0
    same = dpo(head=HEAD)(model, with_reference(batch, model)).sums
    assert all(abs(same[name].item()) < 1e-5 for name in same if name.startswith("kl_"))
    assert not [name for name in dpo("simpo", beta=2.0, head=HEAD)(model, batch).sums if name.startswith("kl_")]


def test_losses_at_the_start() -> None:
    assert Preference().start_loss == pytest.approx(math.log(2))
    assert Preference("sigmoid_norm", 5.0).start_loss == pytest.approx(math.log(2))
    assert Preference("robust", label_smoothing=0.2).start_loss == pytest.approx(math.log(2))
    assert Preference("ipo", 0.1).start_loss == pytest.approx(25.0)
    assert Preference("apo_zero").start_loss == pytest.approx(1.0)


def test_robust_is_unbiased_under_flipped_labels() -> None:
    """In the mean over labels flipped with the stated share, it is the loss of the true labels (arXiv:2403.00409)."""
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    robust, clean = Preference("robust", 0.5, label_smoothing=0.3), Preference("sigmoid", 0.5)
    mean = 0.7 * robust.pair_losses(*scores) + 0.3 * robust.pair_losses(*scores.flip(0))
    torch.testing.assert_close(mean, clean.pair_losses(*scores))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_along_the_gradient_prefers_the_chosen_answer(variant: str) -> None:
    scores = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Preference(variant).pair_losses(*scores), scores)
    assert gradient[0] < 0 < gradient[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "sigmoide"}, "did you mean 'sigmoid'"),
        ({"beta": 0.0}, "beta is 0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"variant": "robust", "label_smoothing": 0.5}, "where labels say nothing"),
        ({"variant": "ipo", "label_smoothing": 0.1}, "sigmoid, sigmoid_norm, robust"),
        ({"gamma": 1.0}, "the variant simpo"),
        ({"nll_weight": -1.0}, "nll_weight is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        dpo(**options)


def test_batches_without_pairs_or_reference_are_refused() -> None:
    model, batch = pico.model(num_layers=2), make_pairs([[0]])
    with pytest.raises(TrainingError, match="without pairs"):
        dpo()(model, super(PairBatch, batch).rows(0, 1))
    with pytest.raises(TrainingError, match="take simpo"):
        dpo()(model, batch)
    assert torch.isfinite(dpo("simpo", 2.0, gamma=0.6)(model, batch).loss)


def step(**values: float) -> dict[str, float]:
    quiet = {
        "loss": 0.69, "rewards/accuracies": 0.6, "rewards/margins": 0.1, "rewards/margins_squared": 0.5,
        "logps/chosen": -90.0, "logps/rejected": -80.0, "logps/chosen_per_token": -1.0,
        "logps/rejected_per_token": -1.0,
    }  # fmt: skip
    return quiet | {name.replace("__", "/"): value for name, value in values.items()}


def test_alarms() -> None:
    assert alarms([]) == alarms([step()]) == alarms([step()] * 20) == []
    cases = {
        "differ by something trivial": [step()] + [step(loss=0.01, rewards__accuracies=1.0)] * 10,
        "both grow unlikely, by 1.00 and 2.00": [step()]
        + [step(logps__chosen_per_token=-2.0, logps__rejected_per_token=-3.0)] * 10,
        "the same text": [step(logps__rejected=-90.0)] * 5,
        "margins spread": [step()] * 9 + [step(rewards__margins_squared=400.0)],
    }
    for message, history in cases.items():
        (found,) = alarms(history)
        assert message in found
    falls = [step()] + [step(logps__rejected_per_token=-3.0)] * 10  # rejected alone: as it should be
    assert alarms(falls) == []
