"""Estimates: time is FLOPs over what the hardware gives, advice holds when it is followed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depthup.errors import PlanError
from depthup.layers import LayerPlan
from depthup.planning.compute import ALL, Trainable, training_flops
from depthup.planning.estimate import advice, default_mfu, estimate, layout_of, most_rows, smallest_number
from depthup.planning.hardware import DEVICES, Cluster, parse_hardware, this_machine
from depthup.planning.memory import memory
from depthup.planning.shapes import ModelShape, published_shape
from depthup.planning.workload import UNIT_TOKENS, Workload, running

REPOSITORY = Path(__file__).parents[2]
SMOL = published_shape("smollm2-135m").grown(LayerPlan.upscale(30, 8))
SOLAR = published_shape("mistral-7b").grown(LayerPlan.upscale(32, 8))
H100 = DEVICES["h100"]


def pretrain(shape: ModelShape = SOLAR, **settings: Any) -> Workload:
    """SOLAR, a row of 4,096 tokens in a micro-batch, states shared within a node of 8."""
    work = Workload("trained", "pretrain", shape, ALL, 4096, rows_per_step=256, num_steps=100, compiled=True)
    return replace(work, **{"shard_ranks": 8, **settings})


def held(work: Workload, number: int, device=H100) -> float:
    return sum(item.num_bytes for item in memory(work, layout_of(device, number)))


def test_time_is_flops_over_what_the_hardware_gives() -> None:
    work, cluster = pretrain(), Cluster(H100, 8, 4)
    found = estimate(work, cluster, mfu=0.4)
    by_hand = 100 * 256 * 4096 * training_flops(SOLAR, 4096) / (32 * 989e12 * 0.4)
    assert found.seconds == pytest.approx(by_hand)
    assert found.tokens_per_second == pytest.approx(100 * 256 * 4096 / by_hand)
    assert found.flops == pytest.approx(100 * 256 * 4096 * training_flops(SOLAR, 4096))
    assert found.dollars == pytest.approx(by_hand / 3600 * 32 * 2.5)
    assert not any("network" in note for note in found.notes)


def test_throughput_of_the_measured_runs_comes_out() -> None:
    work = pretrain(SMOL, row_tokens=2048, rows_per_step=32, micro_batch_rows=32, shard_ranks=None)
    found = estimate(work, Cluster(H100))
    assert found.tokens_per_second == pytest.approx(215_722, rel=0.01)
    assert found.fits
    eager = estimate(replace(work, compiled=False), Cluster(H100))
    assert eager.tokens_per_second == pytest.approx(89_558, rel=0.01)


def test_utilisation_rises_with_size_between_the_measured_ones_and_stays_above() -> None:
    small, large = default_mfu(SMOL, "pretrain", H100), default_mfu(SOLAR, "pretrain", H100)
    assert small == pytest.approx(0.309, abs=0.001)
    assert large == 0.465
    assert 0.05 <= default_mfu(SMOL.grown(LayerPlan.drop(44, range(43))), "pretrain", H100) < small
    assert default_mfu(SOLAR, "dpo", H100) < large
    assert default_mfu(SOLAR, "pretrain", H100, compiled=False) < large


def test_states_are_shared_among_all_unless_the_recipe_says_less() -> None:
    cluster = Cluster(H100, 8, 4)
    whole, hybrid = estimate(pretrain(shard_ranks=None), cluster), estimate(pretrain(), cluster)
    assert (whole.shards, hybrid.shards) == (32, 8)
    assert whole.memory_bytes < hybrid.memory_bytes
    with pytest.raises(PlanError, match="shard_ranks is 5"):
        estimate(pretrain(shard_ranks=5), cluster)


def test_a_slow_network_is_told() -> None:
    work = pretrain(shard_ranks=None)
    found, fast = estimate(work, Cluster(H100, 8, 4)), estimate(pretrain(), Cluster(H100, 8, 4))
    assert found.seconds > 2 * fast.seconds
    assert any("the network holds it up" in note and "shard_ranks: 8" in note for note in found.notes)


def test_devices_without_rows_are_told() -> None:
    few = estimate(pretrain(rows_per_step=6), Cluster(H100, 8))
    assert few.num_devices == 6
    assert any("gives work to 6 of 8 devices" in note for note in few.notes)
    ragged = estimate(pretrain(rows_per_step=9), Cluster(H100, 8))
    assert any("no multiple of 8 devices" in note for note in ragged.notes)
    assert ragged.tokens_per_second < estimate(pretrain(rows_per_step=16), Cluster(H100, 8)).tokens_per_second


def test_advice_that_is_said_to_fit_fits() -> None:
    work = pretrain(micro_batch_rows=4)
    found = estimate(work, Cluster(H100, 8))
    assert not found.fits
    lines = advice(found, H100)
    assert "does not fit" in lines[0]
    rows = most_rows(work, H100, 8)
    assert any(f"micro_batch_rows: {rows} (now 4)" in line and "fits" in line for line in lines)
    assert held(replace(work, micro_batch_rows=rows), 8) <= found.capacity
    assert held(replace(work, micro_batch_rows=rows + 1), 8) > found.capacity
    assert advice(estimate(replace(work, micro_batch_rows=rows), Cluster(H100, 8)), H100) == []


def test_the_smallest_number_of_devices_fits_and_one_less_does_not() -> None:
    work = pretrain(shard_ranks=None)
    number = smallest_number(work, H100)
    assert number is not None and number > 1
    limit = estimate(work, Cluster(H100)).capacity
    assert held(work, number) <= limit < held(work, number - 1)
    assert smallest_number(pretrain(micro_batch_rows=64), H100) is None  # no sharing makes activations smaller


def test_lora_makes_solar_fit_one_device() -> None:
    work = pretrain(kind="sft", row_tokens=2048, rows_per_step=8, shard_ranks=None)
    lora = replace(work, trainable=Trainable(lora_rank=16))
    whole, adapted = estimate(work, Cluster(H100)), estimate(lora, Cluster(H100))
    assert not whole.fits and adapted.fits
    assert any("rank: 16" in line and line.endswith(", fits") for line in advice(whole, H100))
    assert adapted.seconds < whole.seconds


def test_a_reference_is_a_forward_pass_more() -> None:
    plain = pretrain(kind="dpo", rows_per_step=8, at_most=True)
    work = replace(plain, forward_share=1)
    assert work.num_forward_tokens == work.num_tokens
    seconds = [estimate(one, Cluster(H100, 8)).seconds for one in (plain, work)]
    assert seconds[1] == pytest.approx(seconds[0] * 4 / 3, rel=0.01)


def test_data_that_are_not_counted_are_stated_for_a_billion_tokens() -> None:
    found = estimate(pretrain(num_steps=None), Cluster(H100, 8))
    assert found.work.num_tokens == UNIT_TOKENS
    assert any("not counted" in note for note in found.notes)


def test_evaluation_runs_on_one_device_and_writing_is_bound_by_memory() -> None:
    work = running("loss", "evaluate", SOLAR, num_tokens=1000, row_tokens=500, rows=2)
    silent, writing = (estimate(replace(work, generated_tokens=n), Cluster(H100, 8)) for n in (0, 100))
    assert silent.num_devices == 1
    assert writing.seconds - silent.seconds == pytest.approx(100 * 4 * SOLAR.num_parameters / 3.35e12)


def test_the_recorded_quickstart_took_the_time_that_is_planned() -> None:
    """docs/results/quickstart.json: two cores with AVX2; 14 steps of 4 rows of 256 tokens, three held-out losses."""
    recorded = json.loads((REPOSITORY / "docs/results/quickstart.json").read_text())["stages"]
    cluster = Cluster(this_machine(2, 24e9))
    trained = Workload("t", "pretrain", SMOL, ALL, 256, rows_per_step=4, micro_batch_rows=4, num_steps=14)
    found = estimate(replace(trained, forward_tokens=3 * 4096), cluster)
    assert found.seconds == pytest.approx(recorded["trained"]["circumstance"]["seconds"], rel=0.15)
    loss = running("l", "evaluate", SMOL, num_tokens=4096, row_tokens=256, rows=4, generated_tokens=64)
    assert estimate(loss, cluster).seconds == pytest.approx(
        recorded["trained-loss"]["circumstance"]["seconds"], rel=0.2
    )


@pytest.mark.parametrize(("text", "devices"), [("h100", 1), ("8xH100", 8), (" 2xl40s ", 2)])
def test_hardware_is_read(text: str, devices: int) -> None:
    assert parse_hardware(text, 3).num_devices == 3 * devices


def test_a_price_and_this_machine() -> None:
    assert parse_hardware("8xh100", 2, price=2.0).price == 32
    assert parse_hardware("cpu").device.is_processor
    assert this_machine(4, 1e9).peak == pytest.approx(4 * DEVICES["cpu"].peak)


@pytest.mark.parametrize(
    ("text", "nodes", "said"),
    [
        ("8xh1000", 1, r"did you mean 'h100'"), ("0xh100", 1, "at least one"), ("h100", 0, "at least one"),
        ("2xcpu", 1, "one machine"), ("cpu", 2, "one machine"), ("8 h100", 1, "8xh100"),
    ],
)  # fmt: skip
def test_other_hardware_is_refused(text: str, nodes: int, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        parse_hardware(text, nodes)
