"""Selectors: on the target each selects exactly the copies of what it selected on the base, as its library reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import product

import pytest
from transformers.quantizers.quantizers_utils import should_convert_module

from depthup.checkpoint import selectors
from depthup.checkpoint.names import Stack
from depthup.checkpoint.selectors import (
    Modules,
    Rule,
    carry_fields,
    carry_selector,
    dynamic,
    general,
    globbed,
    named,
    prefixed,
    qualified,
    searched,
)
from depthup.errors import CheckpointError
from depthup.layers import LayerPlan

N = 12
STACK = Stack("model.layers", N, (), ("num_hidden_layers",))
PLANS = [LayerPlan.upscale(N, 3), LayerPlan.parse("0-3,2,10,5-9,11,1", N)]
LEAVES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.experts.1.w1", "mlp.experts.11.w1", "mlp.gate")
NAMES = [
    *(f"model.layers.{layer}.{leaf}.weight" for layer in range(N) for leaf in LEAVES),
    "lm_head.weight", "model.embed_tokens.weight", "visual.blocks.3.mlp.up_proj.weight",
]  # fmt: skip

# How the libraries themselves read a list of selectors: whether it selects the module of a name.
Oracle = Callable[[list[str], str], bool]


def gptq(texts: list[str], name: str) -> bool:
    return any(re.match(re.sub(r"^[+-]:", "", text), name) for text in texts)


def compressed(texts: list[str], name: str) -> bool:
    match_name = pytest.importorskip("compressed_tensors.utils.match").match_name
    return any(match_name(name, text) for text in texts)


ORACLES: dict[str, tuple[Rule, Oracle, str]] = {  # the rule, the oracle, what stands before a pattern
    "transformers": (named, lambda texts, name: not should_convert_module(name, texts), ""),
    "gptq": (dynamic, gptq, "-:"),
    "compressed-tensors": (prefixed, compressed, "re:"),
    "torchao": (
        qualified,
        lambda texts, name: any(t == name or (t[:3] == "re:" and bool(re.fullmatch(t[3:], name))) for t in texts),
        "re:",
    ),
    "gemma": (searched, lambda texts, name: any(re.search(text, name) for text in texts), ""),
}
HEADS = ("model.layers.", r".*layers\.", r"^model\.layers\.", r".*\.", r"model[.]layers[.]")
INDICES = ("3", r"\d", r"[0-9]+", "(?:[0-2]|11)", "1[01]", "[2-4]", ".*", "(?!3)[0-9]+")
TAILS = (r"\.mlp$", r"\.mlp\..*", "", r"\.self_attn\.q_proj$", r".*_proj", r"\.(mlp|self_attn)\.[a-z]+_proj")


def modules(plan: LayerPlan, stack: Stack = STACK, names: list[str] = NAMES) -> Modules:
    return Modules.of(names, stack, plan)


def pairs(plan: LayerPlan) -> list[tuple[str, str]]:
    """Every module of the target with the one that it is a copy of, spelt out here."""
    result = [(name, name) for name in ("lm_head", "model.embed_tokens", "visual.blocks.3.mlp.up_proj")]
    for target, source in enumerate(plan.sources):
        for leaf in ("", *(f".{leaf}" for leaf in LEAVES), ".mlp", ".self_attn", ".mlp.experts"):
            result.append((f"model.layers.{target}{leaf}", f"model.layers.{source}{leaf}"))
    return result


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of compressed-tensors
@pytest.mark.parametrize(("library", "plan"), [*((library, PLANS[0]) for library in ORACLES), ("gptq", PLANS[1])])
def test_every_pattern_selects_the_copies_of_what_it_selected_or_is_refused(library: str, plan: LayerPlan) -> None:
    rule, selects, mark = ORACLES[library]
    known, expected = modules(plan), pairs(plan)
    num_refused = num_changed = 0
    for parts in product(HEADS, INDICES, TAILS):
        selector = mark + "".join(parts)
        try:
            carried = carry_selector(selector, rule, known, where="ignore")
        except CheckpointError:
            num_refused += 1
            continue
        num_changed += carried != [selector]
        assert all(text.startswith(mark) or mark == "re:" for text in carried)
        wrong = [(target, source) for target, source in expected
                 if selects(carried, target) != selects([selector], source)]  # fmt: skip
        assert not wrong, (selector, carried, wrong[:3])
    assert num_refused <= 6 and num_changed > 70, (num_refused, num_changed)


@pytest.mark.parametrize(
    ("selector", "rule", "expected"),
    [
        ("lm_head", named, ["lm_head"]),
        ("model.layers.3", named, ["model.layers.3", "model.layers.9"]),
        ("model.layers.3.mlp.up_proj", named, ["model.layers.3.mlp.up_proj", "model.layers.9.mlp.up_proj"]),
        ("layers.11.mlp", named, ["layers.17.mlp"]),
        ("experts.11.w1", named, ["experts.11.w1"]),
        ("model.layers.*.mlp", named, ["model.layers.*.mlp"]),
        ("model.layers.(2|9).mlp", named, ["model.layers.(?:2|15).mlp"]),
        (r"re:.*layers\.3\..*", prefixed, [r"re:.*layers\.3\..*", r"re:.*layers\.9\..*"]),
        (r"re:model\.layers\.(3|4|5)\.mlp.*", prefixed, [r"re:model\.layers\.(?:3|4|5|9|10|11)\.mlp.*"]),
        (r"re:.*layers\.(?:[0-9]|10|11)\..*", prefixed, [r"re:.*layers\.[0-9]+\..*"]),
        (r"re:.*layers\.[0-9]+\.mlp.*", prefixed, [r"re:.*layers\.[0-9]+\.mlp.*"]),
        (r"re:(?!.*layers\.3\.).*mlp.*", prefixed, [r"re:(?!.*layers\.(?:3|9)\.).*mlp.*"]),
        (r"re:.*\.4\.mlp\.gate$", prefixed, ["model.layers.10.mlp.gate", "model.layers.4.mlp.gate"]),
        (r"-:model\.layers\.1", dynamic, [r"-:model\.layers\.(?:1|16|17)(?![0-9])"]),  # it selects 10 and 11 as well
        (r"+:model\.layers\.4\.mlp", dynamic, [r"+:model\.layers\.4\.mlp", r"+:model\.layers\.10\.mlp"]),
        ("model.layers.3*", globbed, ["model.layers.3", "model.layers.3.*", "model.layers.9", "model.layers.9.*"]),
        ("model.layers.3.self_attn*", globbed, ["model.layers.3.self_attn*", "model.layers.9.self_attn*"]),
        ("*gate", globbed, ["*gate"]),
        ("*.layers.4.mlp*", named, ["*.layers.4.mlp*", "*.layers.10.mlp*"]),
    ],
)
def test_selectors_are_written_as_simply_as_they_were(selector: str, rule: Rule, expected: list[str]) -> None:
    assert carry_selector(selector, rule, modules(PLANS[0]), where="ignore") == expected


def test_shell_patterns_select_the_copies() -> None:
    plan = PLANS[0]
    for text in ("model.layers.1*", "*.layers.[0-2].mlp*", "model.layers.?.self_attn.*", "model.layers.1?", "*.3.mlp*"):
        carried = carry_selector(text, globbed, modules(plan), where="exclude_modules")
        for target, source in pairs(plan):
            assert any(fnmatchcase(target, one) for one in carried) == fnmatchcase(source, text), (text, target)


def test_names_in_memory_count_as_well_as_those_on_disk() -> None:
    stack = Stack("language_model.model.layers", N, ("text_config",), ("num_hidden_layers",))
    names = [f"language_model.model.layers.{i}.mlp.up_proj.weight" for i in range(N)]
    known = modules(PLANS[0], stack, [*names, "vision_tower.encoder.layers.3.mlp.fc1.weight"])
    for text in ("model.language_model.layers.4.mlp", "language_model.model.layers.4.mlp", "language_model.layers.4"):
        carried = carry_selector(text, named, known, where="ignore")
        assert carried == [text, text.replace(".4", ".10")]
    pattern = r"re:model\.language_model\.layers\.(4|5)\..*"
    assert carry_selector(pattern, prefixed, known, where="ignore") == [pattern.replace("(4|5)", "(?:4|5|10|11)")]


@pytest.mark.parametrize(
    "text", ["vision_tower.encoder.layers.3.mlp.fc1", "vision_tower.encoder.layers.3",
             r"re:vision_tower.*layers\.3\..*", r"re:.*encoder\.layers\.(3|4)\.mlp.*"]
)  # fmt: skip
def test_layers_of_another_stack_stay_though_their_list_is_called_the_same(text: str) -> None:
    names = [*NAMES, *(f"vision_tower.encoder.layers.{i}.mlp.fc1.weight" for i in range(N))]
    assert carry_selector(text, general, modules(PLANS[0], names=names), where="ignore") == [text]


def test_a_block_behind_the_last_layer_is_named_behind_the_targets_last() -> None:
    stack = Stack("model.layers", N, (), ("num_hidden_layers",), 1)
    known = modules(PLANS[0], stack, [*NAMES, "model.layers.12.eh_proj.weight", "model.layers.12.mlp.gate.weight"])
    assert carry_selector("model.layers.12.eh_proj", named, known, where="ignore") == ["model.layers.18.eh_proj"]
    assert carry_selector(r"re:.*layers\.(0|12)\..*", prefixed, known, where="ignore") == [r"re:.*layers\.(?:0|18)\..*"]


def test_what_selects_nothing_stays_and_what_is_left_out_goes() -> None:
    plan = LayerPlan(N, (0, 1, 2, 2))
    assert carry_selector("not.there.7", named, modules(plan), where="ignore") == ["not.there.7"]
    assert carry_selector("model.layers.7.mlp", named, modules(plan), where="ignore") == []
    assert carry_selector(r"re:.*layers\.3$", prefixed, modules(LayerPlan(N, (0, 1, 2, 2))), where="ignore") == []


@pytest.mark.parametrize("text", ["(", "[", "*.mlp", "model.layers.[9-0]", "a{2,1}", "+", "?", "re:(", "-:[", "\\", ""])
def test_what_is_no_pattern_is_no_crash(text: str) -> None:
    for rule in (named, prefixed, qualified, dynamic, searched, globbed, general):
        assert isinstance(carry_selector(text, rule, modules(PLANS[0]), where="ignore"), list)


def test_what_cannot_be_written_is_refused_with_the_field_and_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert carry_selector("3.mlp.gate", named, modules(PLANS[0]), where="skip") == [
        r"^model\.layers\.3\.mlp\.gate$", r"^model\.layers\.9\.mlp\.gate$"
    ]  # fmt: skip
    monkeypatch.setattr(selectors, "_MOST_NAMES", 1)
    with pytest.raises(CheckpointError, match=r"skip has '3.mlp.gate'[\s\S]*names, one for each layer"):
        carry_selector("3.mlp.gate", named, modules(PLANS[0]), where="skip")


def test_fields_are_carried_wherever_they_stand_and_others_stay() -> None:
    value = {
        "bits": 4, "group_size": None, "sym": True, "w4a16": [1, 2, 3], "group_0": {"targets": ["Linear"]},
        "ignore": ["lm_head", r"re:.*layers\.3\..*"], "layers": [["model.layers.4", "x"], []],
        "by_name": {"model.layers.4.mlp.gate": {"bits": 8}, "lm_head": False},
        "blocks": "model.layers.0,model.layers.4", "text": "model.layers, visual.blocks", "dataset": ["layers.4 is"],
    }  # fmt: skip
    carried = carry_fields(value, modules(PLANS[0]), {"ignore": prefixed, "dataset": None}, where="config")
    assert carried == {
        **value,
        "ignore": ["lm_head", r"re:.*layers\.3\..*", r"re:.*layers\.9\..*"],
        "layers": [["model.layers.4", "model.layers.10", "x"], []],
        "by_name": {"model.layers.4.mlp.gate": {"bits": 8}, "model.layers.10.mlp.gate": {"bits": 8}, "lm_head": False},
        "blocks": "model.layers.0,model.layers.4,model.layers.10",
    }
    assert list(carried) == list(value) and value["ignore"] == ["lm_head", r"re:.*layers\.3\..*"]
