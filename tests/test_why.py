"""`depthup why`: each state is explained, and a stale one down to the setting that a person changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pico
import pytest
import yaml

from depthup.artifacts.record import RECORD_NAME, read_record
from depthup.artifacts.store import Store
from depthup.cli import main
from depthup.pipeline import run, survey
from depthup.recipe import Recipe, parse_recipe
from depthup.why import causes, explain

SURGERIES = {
    "name": "surgeries",
    "seed": 1,
    "stages": {
        "base": {"kind": "import", "random": {"num_layers": 4, "hidden_size": 32}},
        "other": {"kind": "import", "random": {"num_layers": 4, "hidden_size": 16}},
        "deep": {"kind": "upscale", "base": "base", "remove": 1},
        "deeper": {"kind": "upscale", "base": "deep", "remove": 2},
        "deepest": {"kind": "upscale", "base": "deeper", "remove": 3},
    },
}


def recipe(**changes: dict[str, Any]) -> Recipe:
    value = copy.deepcopy(SURGERIES)
    for stage, settings in changes.items():
        value["stages"].setdefault(stage, {}).update(settings)  # type: ignore[index]
    return parse_recipe(value)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    run(recipe(), store, progress=False, tell=lambda line: None)
    return store


def firsts(now: Recipe, store: Store, stage: str) -> list[tuple[str, str]]:
    return [(cause.stage, cause.text) for cause in causes(survey(now, store), store, stage) if cause.is_first]


def test_a_stale_stage_is_walked_down_to_the_first_cause(store: Store) -> None:
    now = recipe(deep={"remove": 0})
    assert firsts(now, store, "deepest") == [("deep", "remove: 1 -> 0")]
    text = explain(survey(now, store), store, "deepest")
    assert text.splitlines()[1:] == [
        "  its input deeper changed", "    its input deep changed", "      remove: 1 -> 0", "first cause:",
        "  deep: remove: 1 -> 0",
    ]  # fmt: skip


def test_every_changed_setting_is_a_cause_each_told_once(store: Store) -> None:
    now = recipe(deep={"remove": 0}, deepest={"remove": None, "target_layers": 10})
    assert firsts(now, store, "deepest") == [
        ("deepest", "remove: 3 -> unset"), ("deepest", "target_layers: unset -> 10"), ("deep", "remove: 1 -> 0"),
    ]  # fmt: skip


def test_another_input_is_the_cause_not_what_that_one_was_made_of(store: Store) -> None:
    assert firsts(recipe(deep={"base": "other"}), store, "deeper") == [("deep", "base: base -> other")]


def test_a_folder_with_other_files_is_the_cause(tmp_path: Path) -> None:
    folder, store = pico.checkpoint(tmp_path / "model", num_layers=4), Store(tmp_path / "store")
    now = parse_recipe({"name": "x", "stages": {"deep": {"kind": "upscale", "base": str(folder), "remove": 1}}})
    run(now, store, progress=False, tell=lambda line: None)
    assert causes(survey(now, store), store, "deep") == []
    pico.edit_config(folder, rms_norm_eps=1e-3)
    ((stage, text),) = firsts(now, store, "deep")
    assert stage == "deep" and text == f"base: the checkpoint {folder} holds other files than before"


def test_cached_missing_and_gone_are_explained(store: Store, tmp_path: Path) -> None:
    assert "deep is cached" in explain(survey(recipe(), store), store, "deep")
    empty = Store(tmp_path / "empty")
    assert firsts(recipe(), empty, "deepest")[0][0] == "base"
    assert explain(survey(recipe(), empty), empty, "base").startswith("base is missing: it was never made")
    run(recipe(), empty, only="base", progress=False, tell=lambda line: None)
    (empty.root / "base" / "latest" / RECORD_NAME).unlink()
    assert survey(recipe(), empty)["base"].state == "missing"


def test_a_new_version_of_the_code_is_named(store: Store, tmp_path: Path) -> None:
    now = Store(tmp_path / "store")
    run(recipe(), now, only="base", progress=False, tell=lambda line: None)
    (folder,) = [path for path in (now.root / "base").iterdir() if not path.is_symlink()]
    record = read_record(folder)
    assert record is not None
    identity = record.identity | {"version": 0}
    record.model_copy(update={"identity": identity, "fingerprint": "0" * 64}).write(folder)
    folder.rename(folder.with_name("0" * 12))
    ((_, text),) = firsts(recipe(), now, "base")
    assert text == "depthup makes this kind of stage otherwise than it did: version: 0 -> 1"


def test_the_verb_names_the_nearest_stage(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SURGERIES))
    assert main(["why", str(path), "deepest", "--store", str(store.root)]) == 0
    assert "deepest is cached" in capsys.readouterr().out
    assert main(["why", str(path), "deepst", "--store", str(store.root)]) == 2
    assert "did you mean 'deepest'?" in capsys.readouterr().err
