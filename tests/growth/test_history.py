"""The history of a grown model: it tells the original layers, and gives the base back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pico
import pytest

from depthup.cli import main
from depthup.errors import CheckpointError, PlanError
from depthup.growth.history import read_history, undo_plan
from depthup.growth.manifest import MANIFEST_NAME
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

N = pico.NUM_LAYERS


def test_the_manifest_of_a_model_grown_three_times_tells_the_original_layers(base, tmp_path: Path) -> None:
    texts = ["0-4,2-6", "0-9,9:identity", "0-5,3-10"]
    folder, origin = base(), list(range(N))
    for number, text in enumerate(texts):
        plan = LayerPlan.parse(text, len(origin))
        upscale(folder, tmp_path / str(number), plan)
        folder, origin = tmp_path / str(number), [origin[source] for source in plan.sources]
        manifest = pico.read_json(folder / MANIFEST_NAME)
        assert LayerPlan.from_json(manifest["original_layers"]) == LayerPlan(N, tuple(origin))
    history = read_history(folder)
    assert [step.plan.text for step in history] == texts
    assert [step.base for step in history] == [base().name, "0", "1"]
    for number in (1, 0):  # and back again, step by step
        plan = undo_plan(folder, len(origin))
        upscale(folder, tmp_path / f"back-{number}", plan)
        assert pico.raw(tmp_path / f"back-{number}") == pico.raw(tmp_path / str(number))
        folder, origin = tmp_path / str(number), origin[: plan.num_target_layers]


def test_the_command_line_grows_undoes_and_drops(base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grown, back, less = (str(tmp_path / name) for name in ("grown", "back", "less"))
    assert main(["upscale", str(base()), grown, "--preset", "solar then block(2-3)"]) == 0
    assert LayerPlan.from_json(pico.read_json(Path(grown) / MANIFEST_NAME)["plan"]).text == "0-3,2-5,1-6"
    assert main(["layers", grown, "--undo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"num_base_layers": 14, "layers": "0-3,6-7,13"}
    assert main(["upscale", grown, back, "--undo"]) == 0
    assert pico.raw(Path(back)) == pico.raw(base())
    assert main(["upscale", str(base()), less, "--drop", "2-3,5"]) == 0
    said = capsys.readouterr().out
    assert "7 -> 4 layers" in said and "0 base layers stand more than once, 3 not at all" in said
    assert pico.load_with_info(Path(less))[0].config.num_hidden_layers == 4
    assert pico.read_json(Path(less) / MANIFEST_NAME)["made_by"] == "surgery"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{base}", "--undo"], "does not say how it was made"), (["--base-layers", "7", "--undo"], "a depth alone"),
        (["{less}", "--undo"], "no plain copy of base layer 2, 3, so it does not hold the base"),
        (["{base}", "--undo", "--remove", "1"], "2 plans are given"),
        (["{base}", "--drop", "0-6"], "the plan is empty"), (["{base}", "--drop", "7"], "base layer 7"),
        (["{base}", "--drop", "x"], "'x' in 'x' is no layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_undone_or_dropped_is_told(
    base, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    less = tmp_path / "less"
    upscale(base(), less, LayerPlan.drop(N, (2, 3)))
    assert main(["layers", *(option.format(base=base(), less=less) for option in options)]) == 2
    told = capsys.readouterr().err
    assert told.count("depthup:") == 1 and said in told


@pytest.mark.parametrize(
    "edit",
    [
        lambda held: b"\xff", lambda held: b'{"a":' * 5000, lambda held: b"[]", lambda held: b'{"plan": 3}',
        lambda held: json.dumps({**held, "plan": {"num_base_layers": 7, "layers": "9"}}).encode(),
        lambda held: json.dumps({**held, "plan": {"num_base_layers": 7, "layers": "0-2"}}).encode(),
        lambda held: json.dumps({**held, "history": 3}).encode(),
        lambda held: json.dumps({**held, "history": [{}]}).encode(),
        lambda held: json.dumps({**held, "base": None}).encode(),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_stops_surgery_before_it_writes(base, tmp_path: Path, edit) -> None:
    upscale(base(), tmp_path / "grown", LayerPlan.upscale(N, 2))
    path = tmp_path / "grown" / MANIFEST_NAME
    path.write_bytes(edit(pico.read_json(path)))
    with pytest.raises(CheckpointError, match=r"depthup.json does not tell how[\s\S]*remove the file"):
        upscale(tmp_path / "grown", tmp_path / "again", LayerPlan.upscale(10, 1))
    assert not (tmp_path / "again").exists()
    path.unlink()
    upscale(tmp_path / "grown", tmp_path / "again", LayerPlan.upscale(10, 1))


def test_dropping_what_a_threshold_counts_names_the_layers_that_can_be_dropped(base, tmp_path: Path) -> None:
    """DeepSeek-V2: the first layer is dense, and only that."""
    with pytest.raises(PlanError, match=r"first_k_dense_replace = 1[\s\S]*of single layers, \[1, 2, 3, 4, 5, 6\] can"):
        upscale(base("deepseek_v2"), tmp_path / "out", LayerPlan.drop(N, (0,)))


def test_a_trained_model_is_a_base_of_its_own(base, tmp_path: Path) -> None:
    """Without a manifest, as after training, the history begins anew."""
    upscale(base(), tmp_path / "grown", LayerPlan.upscale(N, 2))
    shutil.copytree(tmp_path / "grown", tmp_path / "trained", ignore=shutil.ignore_patterns(MANIFEST_NAME))
    upscale(tmp_path / "trained", tmp_path / "again", LayerPlan.upscale(10, 2))
    assert pico.read_json(tmp_path / "again" / MANIFEST_NAME)["history"] == []
