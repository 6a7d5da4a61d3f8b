"""`depthup gc`: what a recipe needs stays, what nothing needs goes, what a run uses is not touched."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from test_why import SURGERIES, recipe

from depthup.artifacts.garbage import find_garbage, remove
from depthup.artifacts.store import Store
from depthup.cli import main
from depthup.errors import OutputError
from depthup.pipeline import needed_folders, run, survey


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Holds the results of the recipe, and of one with another ``deep``; some tokens, answers, and leftovers."""
    store = Store(tmp_path / "store")
    run(recipe(), store, progress=False, tell=lambda line: None)
    run(recipe(deep={"remove": 0}), store, progress=False, tell=lambda line: None)
    (store.root / "tokens" / "0123456789ab").mkdir(parents=True)
    (store.root / "answers").mkdir()
    (store.root / "answers" / "0123.sqlite").write_bytes(b"x")
    (store.root / "deep" / ".ffffffffffff.partial" / "state").mkdir(parents=True)
    return store


def found(store: Store, keep_days: float | None = None) -> list[str]:
    garbage = find_garbage(store, needed_folders(recipe(), store), keep_days)
    return [f"{each.what} {each.path.parent.name}" for each in garbage]


def test_results_of_other_settings_and_leftovers_go_and_the_rest_stays(store: Store) -> None:
    assert found(store) == ["leftover deep", "result deep", "result deeper", "result deepest"]
    list(remove(find_garbage(store, needed_folders(recipe(), store))))
    assert found(store) == []
    assert {node.state for node in survey(recipe(), store).values()} == {"cached"}
    assert survey(recipe(deep={"remove": 0}), store)["deep"].state == "stale"
    assert (store.root / "tokens" / "0123456789ab").is_dir()
    assert not [path for path in store.root.rglob("*") if path.is_symlink() and not path.exists()]


def test_tokens_and_answers_go_by_age_and_young_things_stay(store: Store) -> None:
    assert found(store, keep_days=1) == []
    assert {"tokens tokens", "answers answers"} <= set(found(store, keep_days=0))
    month = time.time() - 31 * 86400
    for path in (store.root / "tokens" / "0123456789ab", store.root / "answers" / "0123.sqlite"):
        os.utime(path, (month, month))
    assert {"tokens tokens", "answers answers"} <= set(found(store))


def test_what_depthup_did_not_write_is_left_alone(store: Store) -> None:
    (store.root / "deep" / "notes").mkdir()
    (store.root / "mine").mkdir()
    (store.root / "mine" / "abcdefabcdef").mkdir()  # named like a result, without a record
    before = found(store)
    assert not any("mine" in line for line in before) and before.count("result deep") == 1
    list(remove(find_garbage(store, needed_folders(recipe(), store))))
    assert (store.root / "deep" / "notes").is_dir() and (store.root / "mine" / "abcdefabcdef").is_dir()


def test_a_removal_that_was_killed_leaves_no_result_that_looks_whole(store: Store, monkeypatch) -> None:
    import depthup.artifacts.garbage as garbage

    def killed(path: Path, **options: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(garbage.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        list(remove(each for each in find_garbage(store, needed_folders(recipe(), store)) if each.what == "result"))
    monkeypatch.undo()
    assert survey(recipe(deep={"remove": 0}), store)["deep"].state == "stale"
    assert "leftover deep" in found(store)
    list(remove(find_garbage(store, needed_folders(recipe(), store))))
    assert not list(store.root.rglob("*.gone"))


def test_hard_links_free_nothing_and_a_dry_run_removes_nothing(store: Store, tmp_path: Path, capsys) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SURGERIES))
    for number, file in enumerate(store.root.rglob("*.safetensors")):
        os.link(file, tmp_path / str(number))
    before = sorted(store.root.rglob("*"))
    assert main(["gc", str(path), "--store", str(store.root), "--dry-run"]) == 0
    assert sorted(store.root.rglob("*")) == before
    garbage = find_garbage(store, needed_folders(recipe(), store))
    linked = sum(path.stat().st_blocks * 512 for each in garbage for path in each.path.rglob("*.safetensors"))
    every = sum(path.lstat().st_blocks * 512 for each in garbage for path in each.path.rglob("*") if path.is_file())
    assert sum(each.num_bytes for each in garbage) == every - linked > 0
    assert "would be freed; 4 of" in capsys.readouterr().out


def test_a_store_in_use_is_not_cleaned_and_one_being_cleaned_not_used(store: Store, tmp_path: Path, capsys) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SURGERIES))
    with store.in_use(), Store(store.root).in_use():
        assert main(["gc", str(path), "--store", str(store.root)]) == 2
        assert "a run uses the store" in capsys.readouterr().err
        assert main(["gc", str(path), "--store", str(store.root), "--dry-run"]) == 0
    with store.cleaning(), pytest.raises(OutputError, match="is cleaning"):
        run(recipe(), Store(store.root), progress=False)
    assert main(["gc", str(path), "--store", str(store.root)]) == 0
    assert main(["gc", str(path), str(path)]) == 2
    assert "no store that they share" in capsys.readouterr().err
