"""LESA: layers on a smooth curve are told from their neighbours; OpT-DeUS: permuted neurons are put back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
from grown import DOWN, NORM, UP, grow, layer, logits, tensors

from depthup.errors import CheckpointError
from depthup.growth.learned import fit
from depthup.growth.surgery import upscale
from depthup.growth.transport import match
from depthup.layers import LayerPlan

Base = Callable[..., Path]


# -- learned ----------------------------------------------------------------------------------------------------------


def curve(depth: float, short: int = 12, long: int = 256) -> np.ndarray:
    """A matrix that turns with depth in a few planes: [short, long]."""
    basis = np.random.default_rng(3).standard_normal((6, short, long))
    waves = [wave(0.55 * speed * depth) for speed in (1.0, 0.8, 1.2) for wave in (np.cos, np.sin)]
    return np.tensordot(waves, basis, 1).astype(np.float32)


def error(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))


def test_the_layer_between_two_on_a_smooth_curve_is_told_better_than_by_their_average() -> None:
    known = [i for i in range(24) if i not in (7, 15)]  # 7 and 15 are held out
    pattern = fit(curve, known, "up_proj")
    for middle in (7, 15):
        below, above = curve(middle - 1), curve(middle + 1)
        assert error(pattern.between(below, above), curve(middle)) < 0.7 * error((below + above) / 2, curve(middle))


def test_what_is_learned_depends_on_the_key_alone() -> None:
    patterns = [fit(curve, range(6), key, num_epochs=1) for key in ("up", "up", "down")]
    one, again, other = (pattern.between(curve(2), curve(3)) for pattern in patterns)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    state = torch.get_rng_state()
    fit(curve, range(4), "up", num_epochs=1)
    assert torch.equal(state, torch.get_rng_state())


def test_directions_that_no_layer_uses_are_left_out() -> None:
    def flat(depth: float) -> np.ndarray:
        matrix = curve(depth)
        matrix[5] = 0
        return matrix

    pattern = fit(flat, range(5), "up", num_epochs=1)
    assert pattern.directions.shape == (12, 11)
    assert np.isfinite(pattern.between(flat(1), flat(2))).all()


def test_a_learned_layer_on_disk(base: Base, tmp_path: Path) -> None:
    source, grown = tensors(base("llama_bias")), grow(base("llama_bias"), tmp_path / "out", "0-2,2:learned,3-6")
    assert torch.equal(grown[layer(3, NORM)], 0.5 * (source[layer(2, NORM)] + source[layer(3, NORM)]))
    assert torch.equal(grown[layer(3, "mlp.up_proj.bias")],
                       0.5 * (source[layer(2, "mlp.up_proj.bias")] + source[layer(3, "mlp.up_proj.bias")]))  # fmt: skip
    for suffix in (UP, DOWN, "self_attn.k_proj.weight"):
        made, neighbour = grown[layer(3, suffix)], source[layer(2, suffix)]
        assert made.isfinite().all() and 0 < made.norm() < 2 * neighbour.norm()


def test_experts_are_not_predicted(base: Base, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"experts\.0.*cannot be predicted[\s\S]*2:average"):
        upscale(base("mixtral"), tmp_path / "out", LayerPlan.parse("0-2,2:learned,3-6", 7))


# -- transport --------------------------------------------------------------------------------------------------------


def permuted(folder: Path, out: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The checkpoint with layer 3 made of layer 2, its neurons in another order; all weights far from each other."""
    out.mkdir()
    (out / "config.json").write_text((folder / "config.json").read_text())
    held, generator = tensors(folder), torch.Generator().manual_seed(0)
    for suffix, rows in {"q_proj": 32, "k_proj": 16, "v_proj": 16, "gate_proj": 48, "up_proj": 48}.items():
        name = f"{'mlp' if rows == 48 else 'self_attn'}.{suffix}"
        order = torch.randperm(rows, generator=generator)
        held[layer(2, f"{name}.weight")] = torch.randn(rows, 32, generator=generator)
        for part in ("weight", "bias"):
            held[layer(3, f"{name}.{part}")] = held[layer(2, f"{name}.{part}")][order]
    raw = {name: pico.Raw("F32", tuple(tensor.shape), tensor.contiguous().numpy().tobytes())
           for name, tensor in held.items()}  # fmt: skip
    pico.write_tensors(out / "model.safetensors", raw)
    return out, held


def test_transport_puts_permuted_neurons_back(base: Base, tmp_path: Path) -> None:
    folder, source = permuted(base("llama_bias"), tmp_path / "base")
    grown = grow(folder, tmp_path / "out", "0-2,2:transport,3-6")
    for suffix in (UP, "mlp.up_proj.bias", "mlp.gate_proj.weight", "self_attn.q_proj.weight", "self_attn.k_proj.bias"):
        assert torch.allclose(grown[layer(3, suffix)], source[layer(3, suffix)], atol=1e-4)
        average = (source[layer(2, suffix)] + source[layer(3, suffix)]) / 2
        assert not torch.allclose(average, source[layer(3, suffix)], atol=1e-2)
    assert not grown[layer(3, DOWN)].any() and not grown[layer(3, "self_attn.o_proj.bias")].any()
    assert torch.equal(logits(folder), logits(tmp_path / "out"))


def test_matching_keeps_both_marginals_at_any_strength() -> None:
    generator = np.random.default_rng(0)
    one, other = (generator.standard_normal((40, 16)).astype(np.float32) for _ in range(2))
    for entropy in (0.01, 0.06, 1.0, 100.0):
        plan = match(one, other, entropy)
        assert plan.min() >= 0
        assert np.allclose(plan.sum(0), 1, atol=1e-5)  # each target row is a weighted mean
        assert np.allclose(plan.sum(1), 1, atol=0.05)  # each source row is used once
    assert np.allclose(match(one, other, 1e4), 1 / 40, atol=1e-3)  # nothing but entropy


def test_a_sharp_matching_is_the_best_of_all_assignments() -> None:
    generator = np.random.default_rng(1)
    one, other = (generator.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
    cost = np.linalg.norm(one[:, None] - other[None], axis=-1)
    best = min(permutations(range(6)), key=lambda order: sum(cost[row, column] for row, column in enumerate(order)))
    assert np.allclose(match(one, other, 0.01)[range(6), best], 1, atol=0.02)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "mixtral", "mamba"])
def test_layers_of_other_forms_are_not_matched(base: Base, tmp_path: Path, family: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be matched"):
        upscale(base(family), tmp_path / "out", LayerPlan.parse("0-2,2:transport,3-6", 7))
