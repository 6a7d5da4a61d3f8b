"""Whole probes of models whose answers are known, their files, the verb and the stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pico
import pytest
import torch

from depthup.artifacts.store import Store
from depthup.cli import main
from depthup.errors import CheckpointError, DataError, PlanError
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.pipeline import run, survey
from depthup.probe.maps import Ledger, ledger_key, map_plans, map_positions
from depthup.probe.rows import cut_rows
from depthup.probe.run import Wanted, probe_model
from depthup.probe.seams import joined_one_by_one, seam_report, upscaling_seam
from depthup.probe.similarity import residual_stream
from depthup.probe.virtual import find_tower, zero_step_losses
from depthup.probe_stage import plan_of
from depthup.recipe import parse_recipe
from depthup.report.probe_figures import probe_figures

Base = Callable[..., Path]
PLANTED = 3  # does nothing


@pytest.fixture(scope="module")
def planted(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, of which one is an identity."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    upscale(base(num_layers=5, tokenizer=True), folder, LayerPlan.parse("0-2,2:identity,3-4", 5))
    (folder / "depthup.json").unlink()  # a base like any other
    (folder / "freeze_map.json").unlink()
    return folder


@pytest.fixture(scope="module")
def found(planted: Path) -> dict[str, Any]:
    return probe_model(pico.load(planted), pico.tokens(20, 4), Wanted(stride=1, map_rows=4))


# -- known answers ----------------------------------------------------------------------------------------------------


def test_a_planted_redundant_layer_is_found_and_costs_nothing(found: dict[str, Any]) -> None:
    assert min(range(6), key=lambda layer: found["similarity"]["influence"][layer]) == PLANTED
    assert found["without_layer"][PLANTED] == [0, 0]
    assert all(abs(one[0]) > 1e-5 for layer, one in enumerate(found["without_layer"]) if layer != PLANTED)
    cells = {kind: {(i, j): rest for i, j, *rest in found["maps"][kind]["cells"]} for kind in ("drop", "duplicate")}
    alone = (PLANTED, PLANTED + 1)
    assert cells["drop"][alone][1] == cells["duplicate"][alone][1] == 0
    for kind in cells:  # nor does it matter whether a run begins or ends with it
        assert cells[kind][0, PLANTED] == pytest.approx(cells[kind][0, PLANTED + 1], abs=1e-5)
        assert cells[kind][PLANTED, 6 - (kind == "drop")] == pytest.approx(
            cells[kind][PLANTED + 1, 6 - (kind == "drop")], abs=1e-5
        )


def test_what_is_said_twice_is_said_alike(found: dict[str, Any]) -> None:
    """The lens ends at the base's loss; m = 0 is the whole base doubled; single layers stand in the map, too."""
    assert found["lens"]["loss"][-1] == pytest.approx(found["base"]["loss"], abs=2e-6)
    drop = {(i, j): rest for i, j, *rest in found["maps"]["drop"]["cells"]}
    duplicate = {(i, j): rest for i, j, *rest in found["maps"]["duplicate"]["cells"]}
    assert [drop[layer, layer + 1][1] for layer in range(6)] == [one[0] for one in found["without_layer"]]
    for m, one in enumerate(found["upscale"]):
        assert one["num_removed"] == m and one["num_target_layers"] == 12 - 2 * m
        assert [one["loss"], one["difference"]] == pytest.approx(duplicate[m, 6 - m][:2], abs=2e-6)
        assert one["seams"][0]["loss_jump"] == pytest.approx(one["difference"], abs=2e-6)
    assert len(drop) == 6 * 7 // 2 - 1 and len(duplicate) == 6 * 7 // 2


def test_the_stride_leaves_runs_out() -> None:
    assert map_positions(30) == (*range(0, 30, 2), 30) and map_positions(7, 3) == (0, 3, 6, 7)
    assert map_positions(12) == tuple(range(13)) and len(map_positions(80)) == 17
    plans = map_plans("duplicate", 80, (0, 45, 52, 80))
    assert plans[45, 52].text == "0-51,45-79"  # RYS
    assert (0, 80) not in map_plans("drop", 80, (0, 80))


# -- seams ------------------------------------------------------------------------------------------------------------


def test_the_report_of_a_seam_is_of_the_states_that_meet_there(base: Base) -> None:
    model, rows, plan = pico.load(base()), pico.tokens(20, 3), LayerPlan.upscale(7, 2)
    tower = find_tower(model)
    home = residual_stream(tower, rows)
    [one] = seam_report(plan, residual_stream(tower, rows, plan), home)
    with torch.inference_mode():
        states = model(rows, output_hidden_states=True).hidden_states
    below, above = (states[i].flatten(0, 1).double() for i in (5, 2))  # behind layer 4, in front of layer 2
    assert one["cosine"] == pytest.approx(torch.cosine_similarity(below, above).mean().item(), rel=1e-4)
    assert (one["below"], one["above"], one["layer_distance"]) == (4, 2, 2) and one["rms_ratio"] > 1
    assert upscaling_seam(plan, home) == [one]


def test_jumps_of_several_seams_add_up(base: Base) -> None:
    plan = LayerPlan.parse("0-3,2-4,1-6", 7)
    parts = joined_one_by_one(plan)
    assert [part.text for part in parts] == ["0-3,2-6", "0-3,2-4,1-6"]
    wanted = Wanted(tried={"two seams": plan}, maps=False)
    model, rows = pico.load(base()), pico.tokens(20, 3)
    [tried] = probe_model(model, rows, wanted)["tried"]
    one, two = zero_step_losses(model, parts, rows)
    jumps = [seam["loss_jump"] for seam in tried["seams"]]
    assert jumps == pytest.approx([one.difference, two.difference - one.difference], abs=1e-6)
    assert sum(jumps) == pytest.approx(tried["difference"], abs=1e-5)


def test_before_and_after_training(base: Base, tmp_path: Path) -> None:
    """Training that moves one copy of a layer: the change is found there, and before is the untrained target."""
    folder, plan = base(num_layers=5), LayerPlan.upscale(5, 1)
    upscale(folder, tmp_path / "out", plan)
    trained = pico.load(tmp_path / "out")
    with torch.no_grad():
        for weight in trained.model.layers[5].parameters():
            weight.mul_(1.1)
    model, rows = pico.load(folder), pico.tokens(20, 4)
    told = probe_model(model, rows, Wanted(maps=False), trained=(trained, plan))["trained"]
    assert told["change"]["from_source"] == [0, 0, 0, 0, 0, pytest.approx(0.1, rel=1e-4), 0, 0]
    assert told["change"]["between_copies"] == [0, 0, pytest.approx(0.1, rel=1e-4), 0, 0]
    [before] = zero_step_losses(model, [plan], rows)
    assert told["before"]["difference"] == pytest.approx(before.difference, abs=1e-6)
    assert told["after"]["difference"] != told["before"]["difference"]
    # without the second copies the untrained target is the base; so without the moved one, the trained one is
    assert told["before"]["without_second_copies"][0] == pytest.approx(-before.difference, abs=1e-6)
    with pytest.raises(PlanError, match="the plan makes 6 layers, and the trained model has 8"):
        probe_model(model, rows, Wanted(maps=False), trained=(trained, LayerPlan.upscale(5, 2)))


def test_the_plan_of_a_target_is_read_beside_it(base: Base, tmp_path: Path) -> None:
    plan = LayerPlan.upscale(7, 2)
    upscale(base(), tmp_path / "out", plan)
    assert plan_of(tmp_path / "out", None, 7) == plan_of(tmp_path / "out", "0-4,2-6", 7) == plan
    with pytest.raises(PlanError, match="a base of 7 layers, and this one has 6"):
        plan_of(tmp_path / "out", None, 6)
    (tmp_path / "out" / "depthup.json").unlink()
    assert plan_of(tmp_path / "out", None, 7) == plan
    (tmp_path / "out" / "freeze_map.json").unlink()
    with pytest.raises(CheckpointError, match="does not say how it was made"):
        plan_of(tmp_path / "out", None, 7)


# -- a stopped probe --------------------------------------------------------------------------------------------------


def test_losses_that_are_known_are_not_run_again(base: Base, tmp_path: Path) -> None:
    model, rows, path = pico.load(base()), pico.tokens(20, 4), tmp_path / "losses.jsonl"
    tower, plans = find_tower(model), [LayerPlan.upscale(7, m) for m in range(4)]
    key = ledger_key(tower, rows)
    whole = Ledger(path, key).losses(tower, plans, rows)
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 5
    path.write_text("\n".join(lines[:4]) + '\n{"layers": "0-')  # killed while it wrote
    again = Ledger(path, key)
    runs: list[int] = []
    assert len(again.known) == 3 and again.losses(tower, plans, rows, runs.append) == whole
    assert len(runs) == 2 and again.count(tower, plans, 4) == 0
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.mul_(2)
    assert ledger_key(tower, rows) != key and not Ledger(path, "other").known


# -- text, files, verb, stage -----------------------------------------------------------------------------------------


def test_rows_come_from_the_files_in_turn_and_from_the_beginning_of_documents(tmp_path: Path) -> None:
    tokenizer = pico.tiny_tokenizer(tmp_path)
    texts = [["user " * 40, "assistant " * 40], ["question " * 90]]
    rows = cut_rows(tokenizer, texts, 4, 8)
    firsts = [tokenizer(text)["input_ids"][:8] for text in (texts[0][0], texts[1][0], texts[0][1])]
    assert rows[:3].tolist() == firsts and rows.shape == (4, 8)
    with pytest.raises(DataError, match="gives 0 rows of 500 tokens, and 4 are wanted"):
        cut_rows(tokenizer, [["too short"]], 4, 500)


def test_figures_say_in_words_what_they_show(found: dict[str, Any]) -> None:
    figures = probe_figures(found, standalone=True)
    assert figures.keys() == {"upscale", "without-layer", "influence", "rms", "lens", "angular-distance", "cka",
                              "drop", "duplicate"}  # fmt: skip
    for figure in figures.values():
        root = ElementTree.fromstring(figure)
        assert root.attrib["role"] == "img" and len(root.find("{http://www.w3.org/2000/svg}desc").text) > 20
    assert f"least for layer {PLANTED} (0.0000)" in figures["influence"]
    assert "prefers-color-scheme:dark" in figures["lens"] and "prefers" not in probe_figures(found)["lens"]
    assert figures["drop"].count("<title>layers") == 20


def test_the_verb_writes_a_probe_and_prints_the_best(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The assistant answers the question that the user asks. " * 60)
    how = ["--text", str(text), "--tokens", "128", "--row-tokens", "32", "--map-tokens", "64", "--stride", "2"]
    assert main(["probe", str(planted), "--out", str(tmp_path / "out"), *how, "--try", "rys(1,4)"]) == 0
    printed = capsys.readouterr().out
    assert f"{PLANTED} (+0.000)" in printed and "best m before training" in printed and "tried rys(1,4): 9" in printed
    told = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert told["rows"] == [4, 32] and told["map_rows"] == 2 and told["texts"] == ["text.txt"]
    assert told["seconds"]["plans"]["processor"] >= 0 and (tmp_path / "out" / "lens.svg").exists()
    for wrong, why in [
        (["--out", str(tmp_path / "out"), *how], "exists"),
        (["--out", str(tmp_path / "new"), *how, "--tokens", "32"], "fewer than two rows"),
        (["--out", str(tmp_path / "new"), *how, "--try", "solarr"], "no preset is called"),
    ]:
        assert main(["probe", str(planted), *wrong]) == 2 and why in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_stage_feeds_the_report(tmp_path: Path) -> None:
    small = {"tokens": 256, "row_tokens": 64, "map_tokens": 128, "stride": 2}
    recipe = parse_recipe({
        "name": "probed", "seed": 1,
        "data": {"docs": {"source": "installed-docs", "packages": ["python"], "held_out": 0.2, "max_documents": 40}},
        "stages": {
            "base": {"kind": "import", "random": {"num_layers": 4, "hidden_size": 16}},
            "target": {"kind": "upscale", "base": "base", "remove": 1},
            "look": {"kind": "probe", "model": "base", "trained": "target", "data": "docs", **small},
            "loss": {"kind": "evaluate", "model": "base", "data": "docs", "tokens": 256, "row_tokens": 64},
            "report": {"kind": "report", "title": "x", "evaluations": ["loss"], "probes": ["look"]},
        },
    })  # fmt: skip
    store = Store(tmp_path / "store")
    run(recipe, store, progress=False)
    nodes = survey(recipe, store)
    assert nodes["look"].record.results["probe"] == "probe.json"
    told = json.loads((nodes["look"].folder / "probe.json").read_text())
    assert told["trained"]["layers"] == "0-2,1-3" and told["model"] == "base"
    assert told["trained"]["before"]["loss"] == told["trained"]["after"]["loss"]  # not trained at all
    page = (nodes["report"].folder / "index.html").read_text()
    assert "Inside the model: look" in page and page.count('<div class="panel figure scroll"><svg') == 12
