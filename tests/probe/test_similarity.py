"""Measures of likeness, on streams and models whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
from scipy.spatial.distance import cosine as scipy_cosine
from torch.nn.functional import cross_entropy

from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.probe import similarity
from depthup.probe.virtual import find_tower

Base = Callable[..., Path]


def stream(*states: torch.Tensor) -> torch.Tensor:
    return torch.stack(states)


def noise(seed: int, num_tokens: int = 40, hidden: int = 8) -> torch.Tensor:
    return torch.randn(num_tokens, hidden, generator=torch.Generator().manual_seed(seed))


def test_angles_of_vectors_that_are_the_same_square_and_opposite() -> None:
    one = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    square = torch.tensor([[0.0, 5.0], [1.0, 0.0]])
    found = similarity.angular_distances(stream(one, 7 * one, square, -one))
    assert torch.allclose(found[0], torch.tensor([0.0, 0.0, 0.5, 1.0]).double(), atol=1e-6)
    assert torch.equal(found, found.T) and not found.diagonal().any()
    assert torch.allclose(similarity.block_influence(stream(one, 7 * one, square)), torch.tensor([0.0, 1.0]).double())


def test_cosines_are_scipys() -> None:
    states = stream(noise(1), noise(2), noise(3))
    found = similarity.cosines(states)
    wanted = np.mean([1 - scipy_cosine(a, b) for a, b in zip(states[0].numpy(), states[2].numpy(), strict=True)])
    assert found[0, 2].item() == pytest.approx(wanted, abs=1e-6)


def test_cka_of_a_state_with_itself_turned_scaled_and_moved_is_one_and_with_noise_it_is_not() -> None:
    state = noise(1)
    turn, _ = torch.linalg.qr(noise(2, 8))
    found = similarity.linear_cka(stream(state, 3 * state @ turn + 1, noise(3)))
    assert found[0, 0] == 1 and found[0, 1].item() == pytest.approx(1, abs=1e-5) and found[0, 2] < 0.5
    assert torch.equal(found, found.T)


def test_cka_is_that_of_the_feature_form() -> None:
    """|Y'X|^2 / (|X'X| |Y'Y|) on centred features: the other way to write it (arXiv:1905.00414, equation 7)."""
    x, y = (one - one.mean(0) for one in (noise(1).double(), (noise(1) + 0.5 * noise(2)).double()))
    wanted = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert similarity.linear_cka(stream(x, y))[0, 1].item() == pytest.approx(wanted.item(), rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2"])
def test_the_stream_is_transformers_own_record(base: Base, family: str) -> None:
    model, rows = pico.load(base(family)), pico.tokens(20, 3)
    found = similarity.residual_stream(find_tower(model), rows)
    with torch.inference_mode():
        states = model(rows, output_hidden_states=True).hidden_states
    assert torch.equal(found[:-1], torch.stack(states[:-1]).flatten(1, 2))  # theirs ends behind the final norm
    rms = states[2].square().mean(-1).sqrt().flatten().double()
    assert similarity.stream_rms(found)[2].item() == pytest.approx(rms.sort().values[29].item())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_lens_ends_at_the_models_loss_and_says_what_shorter_models_say(
    base: Base, tmp_path: Path, family: str
) -> None:
    model, rows = pico.load(base(family)), pico.tokens(20, 3)
    lens = similarity.logit_lens(find_tower(model), rows)

    def loss(one: torch.nn.Module) -> float:
        with torch.inference_mode():
            logits = one(rows).logits[:, :-1]
        return cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1)).item()

    assert lens.loss[-1] == pytest.approx(loss(model), abs=1e-6)
    assert (lens.divergence[-1], lens.agreement[-1]) == (0, 1) and min(lens.divergence) == 0
    for depth in (1, 4):
        upscale(base(family), tmp_path / str(depth), LayerPlan.drop(pico.NUM_LAYERS, range(depth, pico.NUM_LAYERS)))
        assert lens.loss[depth] == pytest.approx(loss(pico.load(tmp_path / str(depth))), rel=1e-6)
    assert len(lens.loss) == pico.NUM_LAYERS + 1


def test_a_layer_that_does_nothing_has_no_influence(base: Base, tmp_path: Path) -> None:
    upscale(base(), tmp_path / "out", LayerPlan.parse("0-3,3:identity,4-6", 7))
    found = similarity.residual_stream(find_tower(pico.load(tmp_path / "out")), pico.tokens())
    influence = similarity.block_influence(found)
    assert influence.argmin() == 4 and influence[4] < 1e-12
    measures = similarity.as_json(found)
    assert measures["angular_distance"][4][5] < 1e-7 and measures["cka"][4][5] == pytest.approx(1, abs=1e-5)
