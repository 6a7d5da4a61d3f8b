"""Finding the layers from names and config, for every layout that is met on disk."""

from __future__ import annotations

import re

import pico
import pytest

from depthup.checkpoint.indices import indexed_prefixes
from depthup.checkpoint.names import Stack, find_stack, find_stacks
from depthup.errors import CheckpointError


def layers(prefix: str, num_layers: int, *suffixes: str) -> list[str]:
    return [f"{prefix}.{i}.{suffix}" for i in range(num_layers) for suffix in suffixes or ("a.weight", "b.bias")]


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_every_family_has_one_stack_that_holds_what_the_model_calls_its_layers(base, family: str) -> None:
    folder = base(family)
    names = list(pico.raw(folder))
    stack = find_stack(names, pico.read_json(folder / "config.json"))
    assert stack.num_layers == pico.NUM_LAYERS and stack.scope == ()
    for name in names:
        place = stack.split(name)
        numbers = re.findall(r"\.(\d+)\.", name)
        assert (place is None) == (not numbers)
        if place is not None:
            assert place[0] == int(numbers[0]) and stack.name(*place) == name


# What the checkpoint has, the config, and the stacks to find: (prefix, layers, scope, depth keys).
LAYOUTS = {
    "old gpt2": (layers("h", 4), {"n_layer": 4}, [("h", 4, (), ("n_layer",))]),
    "experts inside": (
        layers("model.layers", 4, "mlp.experts.0.w", "mlp.experts.1.w", "mlp.experts.2.w", "mlp.experts.3.w"),
        {"num_hidden_layers": 4}, [("model.layers", 4, (), ("num_hidden_layers",))],
    ),
    "two words for one depth": (
        layers("transformer.h", 4), {"n_layer": 4, "num_hidden_layers": 4},
        [("transformer.h", 4, (), ("n_layer", "num_hidden_layers"))],
    ),
    "vision and text of one depth": (
        layers("vision_tower.vision_model.encoder.layers", 4) + layers("language_model.model.layers", 4),
        {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}},
        [("vision_tower.vision_model.encoder.layers", 4, ("vision_config",), ("num_hidden_layers",)),
         ("language_model.model.layers", 4, ("text_config",), ("num_hidden_layers",))],
    ),
    "text depth repeated at the top": (
        layers("model.language_model.layers", 4), {"num_hidden_layers": 4, "text_config": {"num_hidden_layers": 4}},
        [("model.language_model.layers", 4, ("text_config",), ("num_hidden_layers",))],
    ),
    "vision blocks with depth": (
        layers("visual.blocks", 3) + layers("model.layers", 4),
        {"num_hidden_layers": 4, "vision_config": {"depth": 3}},
        [("visual.blocks", 3, ("vision_config",), ("depth",)), ("model.layers", 4, (), ("num_hidden_layers",))],
    ),
    "encoder and decoder": (
        layers("model.encoder.layers", 2) + layers("model.decoder.layers", 4),
        {"encoder_layers": 2, "decoder_layers": 4},
        [("model.encoder.layers", 2, (), ("encoder_layers",)), ("model.decoder.layers", 4, (), ("decoder_layers",))],
    ),
    "another indexed list": (
        layers("model.layers", 4) + layers("altup_projections", 3), {"num_hidden_layers": 4},
        [("model.layers", 4, (), ("num_hidden_layers",))],
    ),
    "a hole": (layers("model.layers", 4)[2:], {"num_hidden_layers": 4}, []),
    "T5, whose decoder is as deep as the encoder if it is not said": (
        layers("encoder.block", 3) + layers("decoder.block", 3), {"num_layers": 3, "num_decoder_layers": None},
        [("encoder.block", 3, (), ("num_layers",)), ("decoder.block", 3, (), ("num_layers",))],
    ),
    "BART, which says the encoder's depth twice": (
        layers("model.encoder.layers", 3) + layers("model.decoder.layers", 3),
        {"encoder_layers": 3, "decoder_layers": 3, "num_hidden_layers": 3},
        [("model.encoder.layers", 3, (), ("encoder_layers", "num_hidden_layers")),
         ("model.decoder.layers", 3, (), ("decoder_layers",))],
    ),
    "parts that are no *_config": (
        layers("encoder.encoder.layer", 3) + layers("decoder.bert.encoder.layer", 4),
        {"encoder": {"num_hidden_layers": 3}, "decoder": {"num_hidden_layers": 4}},
        [("encoder.encoder.layer", 3, ("encoder",), ("num_hidden_layers",)),
         ("decoder.bert.encoder.layer", 4, ("decoder",), ("num_hidden_layers",))],
    ),
    "LLaVA 1.5, whose text depth is the default of its class": (
        layers("language_model.model.layers", 32) + layers("vision_tower.vision_model.encoder.layers", 24),
        {"text_config": {"model_type": "llama"}, "vision_config": {"num_hidden_layers": 24}},
        [("language_model.model.layers", 32, ("text_config",), ("num_hidden_layers",)),
         ("vision_tower.vision_model.encoder.layers", 24, ("vision_config",), ("num_hidden_layers",))],
    ),
    "vision in the name of a model of one stack": (
        layers("visual_bert.encoder.layer", 4), {"num_hidden_layers": 4},
        [("visual_bert.encoder.layer", 4, (), ("num_hidden_layers",))],
    ),
    "stages": (
        [f"encoder.layers.{i}.blocks.{j}.w" for i, depth in enumerate((2, 2, 6, 2)) for j in range(depth)],
        {"depths": [2, 2, 6, 2], "num_layers": 4}, [],
    ),
    "a prompt list of the same length": (
        layers("model.layers", 4, "a", "b", "c", "d") + layers("prompt.points", 4), {"num_hidden_layers": 4},
        [("model.layers", 4, (), ("num_hidden_layers",))],
    ),
    "a block of multi-token prediction behind the last layer": (
        layers("model.layers", 5), {"num_hidden_layers": 4, "num_nextn_predict_layers": 1},
        [("model.layers", 4, (), ("num_hidden_layers",))],
    ),
    "more layers than stated": (layers("model.layers", 6), {"num_hidden_layers": 4}, []),
    "fewer layers than stated": (layers("model.layers", 4), {"num_hidden_layers": 6}, []),
    "no depth stated": (layers("model.layers", 4), {}, []),
    "depth that is no number": (layers("model.layers", 1), {"num_hidden_layers": True, "n_layer": "1"}, []),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stacks_are_found_by_index_range_and_stated_depth(layout: str) -> None:
    names, config, expected = LAYOUTS[layout]
    found = [(stack.prefix, stack.num_layers, stack.scope, stack.depth_keys) for stack in find_stacks(names, config)]
    assert found == expected


def test_without_a_stack_the_message_gives_both_sides_of_the_contradiction() -> None:
    with pytest.raises(CheckpointError) as caught:
        find_stack(layers("model.layers", 6), {"num_hidden_layers": 4})
    assert "model.layers (0-5, 6 of them)" in str(caught.value) and "num_hidden_layers = 4" in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize(("names", "config"), [([], {}), (["lm_head.weight"], {"num_hidden_layers": 4})])
def test_no_layers_at_all_is_said(names: list[str], config: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="no indexed names"):
        find_stack(names, config)


def test_of_several_stacks_one_must_be_chosen() -> None:
    names, config, _ = LAYOUTS["encoder and decoder"]
    with pytest.raises(
        CheckpointError, match=r"several stacks.*model.encoder.layers \(encoder, 2 layers\)[\s\S]*--stack"
    ):
        find_stack(names, config)
    assert find_stack(names, config, wanted="model.decoder.layers").num_layers == 4
    assert find_stack(names, config, wanted="decoder") == find_stack(names, config, wanted="model.decoder.layers")
    with pytest.raises(CheckpointError, match=r"called 'model.layers'[\s\S]*encoder.layers[\s\S]*model.decoder.layers"):
        find_stack(names, config, wanted="model.layers")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.7.mlp.up_proj.weight", (7, "mlp.up_proj.weight")),
        ("model.layers.12.a", (12, "a")),
        ("model.layers.x.a", None),
        ("model.layers", None),
        ("model.layers.norm.weight", None),
        ("xmodel.layers.7.a", None),
        ("model.layers_extra.7.a", None),
        ("encoder.model.layers.7.a", None),
        ("model.layers.٣.a", None),
        ("model.layers.99999999999.a", None),
    ],
)
def test_only_names_under_the_prefix_belong_to_a_layer(name: str, place: tuple[int, str] | None) -> None:
    assert Stack("model.layers", 20, (), ()).split(name) == place


def test_only_the_outermost_index_counts() -> None:
    assert indexed_prefixes(["0.weight", "a.0.b.3.c", "a.1.b.4.c", "a.b"]) == {"a": {0, 1}}
