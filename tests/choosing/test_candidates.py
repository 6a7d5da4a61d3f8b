"""Candidates: each reaches the wanted depth, none stands twice, the paper's own plan is among them."""

from __future__ import annotations

from collections import Counter

import pytest

from depthup.choosing.candidates import candidates, wanted_depth
from depthup.costs import BaseCosts, base_costs
from depthup.errors import PlanError
from depthup.layers import LayerPlan


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 30])
def test_every_plan_reaches_the_depth_and_uses_every_layer(n: int) -> None:
    for s in range(n + 1, 2 * n + 1):
        found = candidates(n, s)
        assert len({one.name for one in found}) == len(found)
        assert len({(one.plan, one.trains_new_only) for one in found}) == len(found)
        for one in found:
            assert one.plan.num_target_layers == s and one.plan.unused == (), one
        assert {"identity", "identity, new layers only", "stack", "random"} <= {one.family for one in found}


def test_solar_is_the_paper_s_plan() -> None:
    by_name = {one.name: one.plan for one in candidates(32, 48)}
    assert by_name["solar"] == LayerPlan.upscale(32, 8)
    assert by_name["spread"].sources[:6] == (0, 1, 1, 2, 3, 3)
    identity = by_name["identity"]
    assert Counter(init.kind for init in identity.inits) == {"copy": 32, "identity": 16}
    random = by_name["solar-random"]
    assert random.sources == by_name["solar"].sources
    assert [t for t in range(48) if random.init(t).kind == "random"] == list(range(24, 40))
    assert by_name["two-blocks"].duplicated == (*range(5, 13), *range(18, 26))
    large = {one.name for one in candidates(32, 48, layer_parameters=2e8)}
    assert "lesa" in by_name and "lesa" not in large


def test_a_size_is_a_depth() -> None:
    smol = base_costs(shape="smollm2-135m")
    assert wanted_depth(smol, params=184e6) == 44 == wanted_depth(smol, factor=1.47)
    assert wanted_depth(base_costs(shape="mistral-7b"), params=10.7e9) == 48


@pytest.mark.parametrize("size, said", [
    ({}, "say the wanted size once"),
    ({"params": 2e8, "factor": 1.5}, "say the wanted size once"),
    ({"target_layers": 30}, "31 to 60"),
    ({"params": 1e9}, "two steps"),
    ({"params": 1e6}, "name a larger size"),
])  # fmt: skip
def test_other_sizes_are_refused(size: dict[str, float], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        wanted_depth(base_costs(shape="smollm2-135m"), **size)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="cannot be counted"):
        wanted_depth(BaseCosts(8), params=1e9)
