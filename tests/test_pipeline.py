"""The walk: made once, found ever after; one changed setting rebuilds its stage and what comes from it, no more."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pico
import pytest
import yaml

from depthup.artifacts.fingerprint import Digests
from depthup.artifacts.record import read_record
from depthup.artifacts.store import Store
from depthup.checkpoint.check import check_checkpoint
from depthup.errors import DepthupError, RecipeError
from depthup.models import prove_loading
from depthup.pipeline import Node, outcome, run, survey
from depthup.recipe import load_recipe, parse_recipe

REPOSITORY = Path(__file__).parents[1]
PICO = REPOSITORY / "recipes" / "pico"
NAMES = [
    "base", "mixture", "target", "base-loss", "target-loss", "trained", "tuned", "preferred", "stepwise",
    "trained-loss", "preferred-loss", "page",
]  # fmt: skip


def changed(stage: str, **settings: Any):
    """The pico recipe with some settings of one stage (or of ``data`` / the top) changed."""
    value = load_recipe(PICO).model_dump(mode="json", exclude_none=True)
    value = copy.deepcopy(value)
    place = value if stage == "top" else value["data"]["docs"] if stage == "data" else value["stages"][stage]
    place.update(settings)
    return parse_recipe(value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Node], list[str]]:
    """The pico recipe, run once."""
    store, lines = Store(tmp_path_factory.mktemp("store")), []
    return store, run(load_recipe(PICO), store, device="cpu", progress=False, tell=lines.append), lines


def states(recipe: Any, store: Store) -> dict[str, str]:
    return {name: node.state for name, node in survey(recipe, store).items()}


def test_every_stage_is_made_and_its_record_says_how(made) -> None:
    store, nodes, lines = made
    assert list(nodes) == NAMES
    assert sum("done in" in line for line in lines) == len(NAMES)
    for name, node in nodes.items():
        record = read_record(node.folder)
        assert record == node.record
        assert record.stage == name
        assert record.fingerprint.startswith(node.folder.name)
        assert (store.root / name / "latest").resolve() == node.folder.resolve()
    assert not list(store.root.rglob(".*.partial"))


def test_the_trained_target_is_a_whole_checkpoint_and_better_than_before(made) -> None:
    _, nodes, _ = made
    for name in ("base", "target", "trained"):
        assert check_checkpoint(nodes[name].folder) == []
        assert prove_loading(nodes[name].folder).whole
        assert (nodes[name].folder / "tokenizer.json").is_file()
    assert not (nodes["trained"].folder / "state").exists()
    loss = {name: nodes[f"{name}-loss"].record.results["loss"] for name in ("base", "target", "trained")}
    assert loss["trained"] < min(loss["base"], loss["target"]) - 1
    # What the loop measured at its end is what the exported folder gives.
    assert nodes["trained"].record.results["held_out_loss"] == pytest.approx(loss["trained"], rel=1e-5)


def test_the_page_and_the_table_show_what_the_records_say(made) -> None:
    _, nodes, _ = made
    page = (nodes["page"].folder / "index.html").read_text()
    table = outcome(nodes)
    for name in ("base", "target", "trained"):
        results = nodes[f"{name}-loss"].record.results
        assert f"{results['loss']:.3f}" in page
        assert f"{results['loss']:.3f}" in table
        assert f"{results['num_parameters']:,}" in page + table
    assert str(nodes["page"].folder / "index.html") in table


def test_a_second_run_does_nothing(made) -> None:
    store, _, _ = made
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    lines: list[str] = []
    run(load_recipe(PICO), store, device="cpu", progress=False, tell=lines.append)
    assert len(lines) == len(NAMES)
    assert all(": " in line and "cached" in line for line in lines)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("stage", "settings", "rebuilt", "reason"),
    [
        ("trained", {"learning_rate": 1e-3}, NAMES[5:], "learning_rate: 0.003 -> 0.001"),
        ("target", {"remove": 0}, ["target", *NAMES[4:]], "remove: 1 -> 0"),
        ("preferred", {"beta": 0.2}, ["preferred", "preferred-loss", "page"], "beta: 0.1 -> 0.2"),
        ("stepwise", {"chunks": 3}, ["stepwise"], "chunks: 2 -> 3"),
        ("base-loss", {"tokens": 1024}, ["base-loss", "page"], "tokens: 2048 -> 1024"),
        ("page", {"title": "Other"}, ["page"], "title: A random model"),
        ("data", {"held_out": 0.3}, NAMES[3:], "data.held_out: 0.2 -> 0.3"),
        ("top", {"seed": 2}, NAMES, "seed: 1 -> 2"),
        ("trained", {"micro_batch_rows": 2, "checkpoint_every": 5}, [], ""),
        ("base-loss", {"micro_batch_rows": 1}, [], ""),
    ],
)
def test_one_changed_setting_rebuilds_its_stage_and_what_comes_from_it(made, stage, settings, rebuilt, reason) -> None:
    store, _, _ = made
    nodes = survey(changed(stage, **settings), store)
    assert [name for name, node in nodes.items() if node.state != "cached"] == rebuilt
    if rebuilt:
        assert nodes[rebuilt[0]].state == "stale"
        assert nodes[rebuilt[0]].reason.startswith(reason)
        assert all("changed" in nodes[name].reason for name in rebuilt[1:] if stage not in ("data", "top"))


def test_a_renamed_stage_is_found_and_shown_under_its_new_name(made) -> None:
    store, nodes, _ = made
    value = load_recipe(PICO).model_dump(mode="json", exclude_none=True)
    text = json.dumps(value).replace('"trained"', '"healed"')
    renamed = parse_recipe(json.loads(text))
    again = run(renamed, Store(store.root), progress=False, device="cpu", tell=lambda line: None)
    assert again["healed"].fingerprint == nodes["trained"].fingerprint
    (row,) = [line.split() for line in outcome(again).splitlines() if line.startswith("healed")]
    (before,) = [line.split() for line in outcome(nodes).splitlines() if line.startswith("trained")]
    assert row[1:] == before[1:]
    page = (again["page"].folder / "index.html").read_text()
    assert "healed" in page
    assert "as it came" not in page


def test_the_seed_does_not_touch_what_is_not_random(made, tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    recipe = {"name": "x", "stages": {"base": {"kind": "import", "gguf": str(gguf)}}}
    one, other = (survey(parse_recipe({**recipe, "seed": seed}), Store(tmp_path / "s"))["base"] for seed in (1, 2))
    assert one.fingerprint == other.fingerprint


def test_a_folder_counts_by_its_model_not_by_its_records(made, tmp_path: Path) -> None:
    _, nodes, _ = made
    copy_of = shutil.copytree(nodes["base"].folder, tmp_path / "copy")
    digests = Digests(tmp_path / "digests.json")
    before = digests.of_checkpoint(copy_of)
    (copy_of / "record.json").unlink()
    (copy_of / "README.md").write_text("a card")
    assert digests.of_checkpoint(copy_of) == before
    pico.edit_config(copy_of, rms_norm_eps=1e-3)
    assert digests.of_checkpoint(copy_of) != before


def test_going_back_to_old_settings_costs_nothing(made) -> None:
    store, nodes, _ = made
    other = run(changed("page", title="Other"), store, only="page", progress=False, tell=lambda line: None)
    assert other["page"].folder != nodes["page"].folder
    assert set(states(load_recipe(PICO), store).values()) == {"cached"}


def test_a_stage_whose_inputs_are_not_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs 'base-loss', which is missing"):
        run(load_recipe(PICO), Store(tmp_path / "store"), only="page", progress=False)
    with pytest.raises(RecipeError, match=r"no stage is called 'pgae' \(did you mean 'page'"):
        run(load_recipe(PICO), Store(tmp_path / "store"), only="pgae", progress=False)
    assert set(states(load_recipe(PICO), Store(tmp_path / "store")).values()) == {"missing"}
    assert not list((tmp_path / "store").rglob("record.json"))


def test_a_stage_that_fails_publishes_nothing_and_keeps_the_ones_before(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), changed("target", remove=2)  # m = n/2: refused when it runs
    with pytest.raises(DepthupError, match="depth would not grow"):
        run(recipe, store, progress=False, tell=lambda line: None)
    assert states(recipe, store)["base"] == "cached"
    assert states(recipe, store)["target"] == "missing"
    assert [path.name for path in (tmp_path / "target").iterdir()] == []


def test_a_folder_may_stand_where_a_stage_may(made, tmp_path: Path) -> None:
    _, nodes, _ = made
    value = yaml.safe_load(f"""
        name: from-folder
        stages: {{target: {{kind: upscale, base: "{nodes["base"].folder}", target_layers: 6}}}}
    """)
    store = Store(tmp_path / "store")
    target = run(parse_recipe(value), store, progress=False, tell=lambda line: None)["target"]
    weights = "model.safetensors"
    assert (target.folder / weights).read_bytes() == (nodes["target"].folder / weights).read_bytes()


def test_a_run_that_was_killed_goes_on_and_gives_the_same_result(made, tmp_path: Path) -> None:
    """SIGKILL while training; the run after it resumes from a saved state and publishes the same weights."""
    _, nodes, _ = made
    recipe = tmp_path / "recipe.yaml"
    text = (PICO / "recipe.yaml").read_text()
    recipe.write_text(text.replace("eval_every: 10", "eval_every: 10\n    checkpoint_every: 2"))
    command = [sys.executable, "-m", "depthup", "run", str(recipe), "--store", str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    partial = Path(f"{tmp_path}/store/trained/.{nodes['trained'].folder.name}.partial")
    deadline = time.monotonic() + 120
    while not (partial / "state").is_dir() or not list((partial / "state").glob("step-????????")):
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert states(load_recipe(recipe), Store(tmp_path / "store"))["trained"] == "partial"
    assert not (tmp_path / "store" / "trained" / nodes["trained"].folder.name).exists()
    lines: list[str] = []
    again = run(load_recipe(recipe), Store(tmp_path / "store"), device="cpu", progress=False, tell=lines.append)
    assert any("trained" in line and "(goes on)" in line for line in lines)
    steps, expected = (
        [json.loads(line)["step"] for line in (ran["trained"].folder / "metrics.jsonl").read_text().splitlines()]
        for ran in (again, nodes)
    )
    assert steps == expected
    weights = "model.safetensors"
    assert (again["trained"].folder / weights).read_bytes() == (nodes["trained"].folder / weights).read_bytes()
