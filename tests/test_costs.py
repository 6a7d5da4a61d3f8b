"""Costs: the counts of transformers' own models, and of the published SOLAR."""

from __future__ import annotations

from pathlib import Path

import pico
import pytest

from depthup.costs import FAMILIES, base_costs, costs_from_config
from depthup.errors import PlanError
from depthup.layers import LayerPlan

FORMS = [name for name, (model_type, _) in pico.FAMILIES.items() if model_type in FAMILIES]


@pytest.mark.parametrize("family", FORMS)
def test_config_alone_and_weights_alone_count_what_transformers_counts(base, family: str, tmp_path: Path) -> None:
    folder = base(family)
    oracle = pico.load(folder).num_parameters()
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for costs in (base_costs(str(folder)), base_costs(str(tmp_path))):
        assert sum(costs.layer_parameters) + costs.outside_parameters == oracle
        assert costs.num_layers == pico.NUM_LAYERS


@pytest.mark.parametrize("family", FORMS)
def test_the_cache_is_as_large_as_transformers_makes_it(base, family: str) -> None:
    folder = base(family)
    cache = pico.load(folder)(pico.tokens(num_tokens=8, num_rows=1), use_cache=True).past_key_values
    num_values = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert base_costs(str(folder)).kv_bytes_per_layer * pico.NUM_LAYERS * 8 == 2 * num_values


def test_solar_has_the_published_number_of_parameters() -> None:
    costs = base_costs(shape="mistral-7b")
    assert costs.num_layers == 32
    text = costs.describe(LayerPlan.upscale(32, 8))
    assert "7,241,732,096 -> 10,731,524,096" in text
    assert "14.48 GB -> 21.46 GB" in text


def test_a_depth_alone_gives_a_ratio() -> None:
    assert "x 1.5" in base_costs(num_layers=32).describe(LayerPlan.upscale(32, 8))


def test_an_unknown_family_has_a_depth_and_no_count() -> None:
    costs = costs_from_config({"model_type": "unheard_of", "num_hidden_layers": 12})
    assert costs.num_layers == 12
    assert costs.layer_parameters is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "name the base once"),
        ({"num_layers": 3, "shape": "mistral-7b"}, "name the base once"),
        ({"num_layers": 0}, "--base-layers 0"),
        ({"shape": "mistral-7"}, r"no shape is called 'mistral-7' \(did you mean 'mistral-7b'"),
    ],
)
def test_a_base_is_named_once(arguments: dict, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        base_costs(**arguments)
