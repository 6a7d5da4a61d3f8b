"""`depthup adopt`: a checkpoint from elsewhere stands for a stage, under the fingerprint of its own files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pico
import pytest
import yaml
from test_why import SURGERIES, firsts, recipe

from depthup.adoption import adopt
from depthup.artifacts.record import read_record
from depthup.artifacts.store import Store
from depthup.cli import main
from depthup.errors import CheckpointError, RecipeError
from depthup.pipeline import needed_folders, run, survey

WEIGHTS = "model.safetensors"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkpoint of another seed, to stand for ``base``."""
    made = run(recipe().model_copy(update={"seed": 5}), Store(tmp_path / "elsewhere"), only="base", progress=False,
               tell=lambda line: None)  # fmt: skip
    return Path(shutil.copytree(made["base"].folder, tmp_path / "other"))


def states(store: Store, **changes: dict) -> list[str]:
    return [node.state for node in survey(recipe(**changes), store).values()]


def test_an_adopted_checkpoint_is_used_and_what_came_from_the_other_is_stale(other: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    adopt(recipe(), store, "base", str(other))
    assert states(store) == ["cached", "missing", "missing", "missing", "missing"]
    now = run(recipe(), store, progress=False, tell=lambda line: None)
    assert (now["base"].folder / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    assert now["deep"].record.identity["base"] == now["base"].fingerprint
    record = read_record(now["base"].folder)
    assert record.identity == {"kind": "import", "adopted": store.digests.of_checkpoint(other)}
    assert record.circumstance["adopted_from"] == str(other)
    assert {now["base"].folder} <= needed_folders(recipe(), store)
    # the same recipe without it makes other results all the way down
    plain = run(recipe(), Store(tmp_path / "plain"), progress=False, tell=lambda line: None)
    assert all(plain[name].fingerprint != now[name].fingerprint for name in ("base", "deep", "deeper", "deepest"))
    # changed settings: it stands for the old ones only, and going back finds it again
    assert states(store, base={"random": {"num_layers": 6, "hidden_size": 32}})[0] == "stale"
    assert firsts(recipe(base={"random": {"num_layers": 6, "hidden_size": 32}}), store, "deep") == [
        ("base", "random.num_layers: 4 -> 6")
    ]
    assert states(store) == ["cached"] * 5


def test_files_are_linked_or_copied(other: Path, tmp_path: Path) -> None:
    for link in (True, False):
        store = Store(tmp_path / f"store-{link}")
        record = adopt(recipe(), store, "base", str(other), link=link)
        taken = store.folder("base", record.fingerprint) / WEIGHTS
        assert taken.samefile(other / WEIGHTS) == link
        assert taken.read_bytes() == (other / WEIGHTS).read_bytes()


def test_what_is_not_whole_or_does_not_fit_is_refused(other: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(recipe(), store, only="base", progress=False, tell=lambda line: None)
    with pytest.raises(RecipeError, match="stage base is cached"):
        adopt(recipe(), store, "base", str(other))
    with pytest.raises(CheckpointError, match=r"it has 4 layers(.|\n)*allowed: 6, as stage deep makes"):
        adopt(recipe(), store, "deep", str(other))
    pico.edit_config(other, num_hidden_layers=9)
    with pytest.raises(CheckpointError, match=r"missing on loading: model\.layers\.4"):
        adopt(recipe(), store, "other", str(other))
    pico.edit_config(other, num_hidden_layers=4, intermediate_size=16)  # only its class knows better
    with pytest.raises(CheckpointError, match="mis-shaped on loading"):
        adopt(recipe(), store, "other", str(other))
    assert states(store)[1] == "missing" and not list((store.root / "other").glob("*"))


def test_an_adopted_surgery_keeps_its_plan_and_why_tells_where_it_is_from(other: Path, tmp_path: Path, capsys) -> None:
    store, path, deep = Store(tmp_path / "store"), tmp_path / "recipe.yaml", tmp_path / "deep"
    path.write_text(yaml.safe_dump(SURGERIES))
    run(recipe(), store, progress=False, tell=lambda line: None)
    assert main(["upscale", str(other), str(deep), "--remove", "1"]) == 0
    shutil.rmtree(survey(recipe(), store)["deep"].folder)
    assert main(["adopt", str(path), "deep", str(deep), "--store", str(store.root)]) == 0
    assert survey(recipe(), store)["deep"].record.results["plan"] == {"num_base_layers": 4, "layers": "0-2,1-3"}
    capsys.readouterr()
    assert main(["why", str(path), "deepest", "--store", str(store.root)]) == 0
    assert capsys.readouterr().out.endswith(f"first cause:\n  deep: adopted from {deep}\n")
