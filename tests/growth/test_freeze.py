"""Freeze maps: every parameter of a loaded model falls into the right group, and a trainer can go by it."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pico
import pytest

from depthup.errors import CheckpointError
from depthup.growth.freeze import FREEZE_MAP_NAME, FreezeMap, read_freeze_map
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.presets import preset_plan

N = pico.NUM_LAYERS
PRO = "0-2,2:identity,3-6,6:identity"  # new: 3 and 8
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def grown(base, tmp_path_factory: pytest.TempPathFactory):
    root, made = tmp_path_factory.mktemp("grown"), {}

    def build(family: str, text: str = PRO) -> Path:
        if (family, text) not in made:
            made[family, text] = root / f"{family}-{len(made)}"
            upscale(base(family), made[family, text], LayerPlan.parse(text, N))
        return made[family, text]

    return build


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "opt", "gemma3_text", "mamba"])
def test_each_parameter_in_memory_is_in_the_group_of_its_layer(grown, family: str) -> None:
    """mixtral and qwen3_moe fuse their experts in memory: names on disk and in memory differ."""
    model = pico.load(grown(family))
    names = [name for name, _ in model.named_parameters()]
    groups = read_freeze_map(grown(family)).groups(names)
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    inside = {name: [int(part) for part in name.split(".") if part.isdigit()] for name in names}
    assert all((inside[name][:1] or [None])[0] in (3, 8) for name in groups["new"])
    assert {inside[name][0] for name in groups["original"]} == {0, 1, 2, 4, 5, 6, 7}
    assert not any(inside[name] for name in groups["outside"]) and groups["outside"] and not groups["seam"]
    assert len(groups["new"]) * 7 == len(groups["original"]) * 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_file_names_every_tensor_on_disk_by_prefix_and_by_regex(grown, family: str) -> None:
    folder = grown(family)
    held = json.loads((folder / FREEZE_MAP_NAME).read_text())
    names, groups = set(pico.raw(folder)), held["groups"]
    by_prefix = {key: {n for n in names if n.startswith(tuple(groups[key]["prefixes"]))} for key in ("new", "original")}
    by_regex = {key: {n for n in names if re.search(groups[key]["regex"], n)} for key in ("new", "original")}
    assert by_prefix == by_regex and by_prefix["new"] | by_prefix["original"] | set(groups["outside"]["names"]) == names
    assert {key: groups[key]["layers"] for key in ("new", "original")} == {
        "new": [3, 8], "original": [0, 1, 2, 4, 5, 6, 7]
    }  # fmt: skip
    assert [(row["source"], row["init"], row["new"]) for row in held["layers"]][2:5] == [
        (2, "copy", False), (2, "identity", True), (3, "copy", False)
    ]  # fmt: skip
    by_group = read_freeze_map(folder).groups(sorted(names))
    assert {key: set(by_group[key]) for key in ("new", "original")} == by_prefix


def test_of_depth_upscaling_the_second_copies_are_new_and_seams_have_neighbours(tmp_path: Path) -> None:
    freeze_map = FreezeMap("model.layers", preset_plan("solar", 32))
    assert freeze_map.new == tuple(range(24, 40)) and freeze_map.original == (*range(24), *range(40, 48))
    assert freeze_map.near_seam() == (23, 24) and freeze_map.near_seam(3) == (21, 22, 23, 24, 25, 26)
    assert freeze_map.layers_to_seam[0] == 23 and freeze_map.layers_to_seam[47] == 23
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(48)] + ["lm_head.weight"]
    groups = freeze_map.groups(names, within=2)
    assert {key: len(group) for key, group in groups.items()} == {"new": 16, "seam": 2, "original": 30, "outside": 1}
    assert groups["seam"] == names[22:24]
    whole = FreezeMap("model.layers", LayerPlan(4, (0, 1, 2, 3)))
    assert whole.near_seam(9) == () and whole.new == ()
    assert json.loads(whole.text(names))["groups"]["new"] == {"layers": [], "prefixes": [], "regex": None}


@pytest.mark.parametrize("wrap", ["{}", "base_model.model.{}", "module.{}", "model.language_model.{}", "_orig_mod.{}"])
def test_wrapped_names_are_found_among_other_stacks(wrap: str) -> None:
    freeze_map = FreezeMap("model.layers", LayerPlan.parse("0-1,1", 2))
    names = [wrap.format(f"model.layers.{layer}.q.weight") for layer in range(3)]
    names += [f"model.visual.blocks.{layer}.q.weight" for layer in range(3)] + ["head.0.weight", "norm.weight"]
    groups = freeze_map.groups(names)
    assert groups == {"new": names[2:3], "seam": [], "original": names[:2], "outside": names[3:]}


def test_names_of_another_model_are_refused() -> None:
    freeze_map = FreezeMap("model.layers", LayerPlan.parse("0-1,1", 2))
    for names in (["model.layers.0.q"], [f"{part}.layers.{i}.q" for part in ("a", "b") for i in range(3)]):
        with pytest.raises(CheckpointError, match=r"\d stacks of 3 layers like model.layers"):
            freeze_map.groups(names)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"stack": 3, "plan": {}}',
        '{"stack": "a", "plan": {}}',
        "\xff",
        "[" * 5000,
        '{"stack": "a", "plan": {"num_base_layers": 1, "layers": "0"}, "companions": 3}',
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .*freeze_map.json"):
        read_freeze_map(tmp_path)
    (tmp_path / FREEZE_MAP_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="make the target again"):
        read_freeze_map(tmp_path)


def test_the_example_trains_the_new_layers_and_no_other_weight(
    base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upscale(base("llama", tokenizer=True), tmp_path / "grown", LayerPlan.parse(PRO, N))
    (tmp_path / "text.txt").write_text("The user asks the assistant a question. " * 8)
    script = REPOSITORY / "examples" / "train_new_layers.py"
    monkeypatch.setattr(
        sys, "argv", [str(script), *(str(tmp_path / name) for name in ("grown", "text.txt", "trained"))]
    )
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.count("loss") == 3
    before, after = pico.raw(tmp_path / "grown"), pico.raw(tmp_path / "trained")
    changed = {name.split(".")[2] for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and changed == {"3", "8"}
