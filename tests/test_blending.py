"""Blended seams: what every blended plan must be, for every base and width, and what is refused."""

from __future__ import annotations

import pytest

from depthup.blending import blend
from depthup.errors import PlanError
from depthup.layers import COPY, LayerPlan


@pytest.mark.parametrize("num_base_layers", [4, 7, 12, 32])
def test_each_seam_becomes_so_many_averages_that_pass_from_one_slice_to_the_next(num_base_layers: int) -> None:
    for m in range((num_base_layers + 1) // 2):
        plan = LayerPlan.upscale(num_base_layers, m)
        for width in range(1, num_base_layers - 2 * m):
            blended = blend(plan, width)
            assert blended.num_target_layers == plan.num_target_layers - width
            first = num_base_layers - m - width  # target layers below it are the lower copy's, untouched
            assert blended.sources[:first] == tuple(range(first))
            assert blended.sources[first + width :] == tuple(range(m + width, num_base_layers))
            for k in range(width):
                source, init = blended.sources[first + k], blended.init(first + k)
                other, share = init.numbers
                assert {source, int(other)} == {first + k, m + k} and share <= 0.5
                above = share if source == first + k else 1 - share
                assert above == pytest.approx((k + 1) / (width + 1))
            untouched = {*range(first), *range(first + width, blended.num_target_layers)}
            assert all(blended.init(target) == COPY for target in untouched)
            assert LayerPlan.from_json(blended.to_json()) == blended
        assert blend(plan, num_base_layers - 2 * m) == LayerPlan(num_base_layers, tuple(range(num_base_layers)))


def test_several_seams_are_blended_at_once() -> None:
    plan = LayerPlan.parse("0-5,3-8,6-11", 12)
    assert blend(plan, 1).text == "0-4,5:average(3,0.5),4-7,8:average(6,0.5),7-11"
    assert blend(plan, 3).num_target_layers == plan.num_target_layers - 6


@pytest.mark.parametrize(("text", "width"), [
    ("0-5,3-8,6-11", 4),  # the slice in the middle holds 6, of which both seams would take 4
    ("0-5,2-11", 0), ("0-5,2-11", -1), ("0-5,2-11", 7), ("0-5,5:identity,6-11,2-11", 1),
])  # fmt: skip
def test_too_wide_a_blend_is_refused(text: str, width: int) -> None:
    with pytest.raises(PlanError, match=f"blended over {width} layers"):
        blend(LayerPlan.parse(text, 12), width)


def test_a_plan_without_a_seam_stays_as_it_is() -> None:
    plan = LayerPlan.parse("0-11", 12)
    assert blend(plan, 3) == plan
