"""Schedules: a warmup that rises, a shape that falls, and the ends where they should be."""

from __future__ import annotations

import pytest
import torch

from depthup.training.schedule import SHAPES, Schedule


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("num_steps", "num_warmup"), [(1, 0), (10, 0), (10, 3), (100, 10)])
def test_factors_rise_to_one_and_never_rise_again(name: str, num_steps: int, num_warmup: int) -> None:
    schedule = Schedule(name, num_steps, num_warmup, final_factor=0.1)
    factors = [schedule.factor(step) for step in range(num_steps)]
    assert factors[:num_warmup] == pytest.approx([(step + 1) / num_warmup for step in range(num_warmup)])
    rest = factors[num_warmup:]
    assert rest == sorted(rest, reverse=True)
    assert all(0.1 <= factor <= 1 for factor in rest)
    assert factors[-1] == pytest.approx(1.0 if name == "constant" else 0.1)


def test_cosine_is_torch_s_own_cosine() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    schedule = Schedule("cosine", 20)
    for step in range(20):
        optimizer.step()
        oracle.step()
        assert schedule.factor(step) == pytest.approx(oracle.get_last_lr()[0], abs=1e-12)


def test_wsd_is_flat_until_its_decay() -> None:
    schedule = Schedule("wsd", 100, 10, decay_share=0.2)
    factors = [schedule.factor(step) for step in range(100)]
    assert set(factors[10:80]) == {1.0}
    assert factors[80] < 1
    assert factors[-1] == pytest.approx(0)
