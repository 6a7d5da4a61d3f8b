"""`depthup choose` on tiny models where the right answer is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pico
import pytest
import torch

from depthup.choosing.choose import Choice, Request, choose
from depthup.choosing.verdict import CONTROL, CONTROLS
from depthup.cli import main
from depthup.errors import CheckpointError, TrainingError
from depthup.recipe import load_recipe

_SMALL = {"row_tokens": 48, "rows_per_step": 4, "eval_rows": 8, "probe_steps": 4, "keep": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sentences that say the same of many numbers, so that a tiny model learns them in a few steps."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [
        " ".join(f"the user asks for {i * j % 97} and gets {i * j % 97}." for j in range(3, 9)) for i in range(120)
    ]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers, the upper four of which change nothing."""
    folder = pico.checkpoint(tmp_path_factory.mktemp("bases") / "base", num_layers=8, tokenizer=True)
    model = pico.load(folder)
    with torch.no_grad():
        for layer in model.model.layers[4:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


def ask(model: Path, out: Path, text: str, **changes: Any) -> Choice:
    minutes = changes.pop("minutes", None)
    request = Request(**{"model": str(model), "files": (text,), "budget_tokens": 10_000, **_SMALL, **changes})
    return choose(request, out, minutes=minutes, device="cpu", progress=False, tell=lambda line: None)


def losses(choice: Choice) -> dict[str, float]:
    return {one.name: one.loss for one in choice.zero}


def test_repeating_layers_that_change_nothing_costs_nothing(folder: Path, text: str, tmp_path: Path) -> None:
    choice = ask(folder, tmp_path / "out", text, budget_tokens=0, target_layers=10)
    found = losses(choice)
    assert found["identity"] == pytest.approx(found[CONTROL], abs=1e-6)
    assert found["block(5-6)"] == pytest.approx(found[CONTROL], abs=1e-6)
    assert abs(found["block(1-2)"] - found[CONTROL]) > 1e-3
    assert choice.trained == () and any("budget is 0" in said for said in choice.left_out)
    assert choice.verdict.decision == "do-not-grow" or min(found.values()) < found[CONTROL] - 1e-3
    recipe = load_recipe(tmp_path / "out")
    assert [stage.kind for stage in recipe.stages.values()] == ["upscale", "evaluate", "evaluate", "report"]


def test_without_tokens_a_layer_is_repeated_only_where_that_helps(text: str, tmp_path: Path) -> None:
    """Of a trained model two layers are halved, so that repeating just these gives back what was taken."""
    base = pico.checkpoint(tmp_path / "base", num_layers=6, tokenizer=True, seed=3)
    model, tokenizer = pico.load(base), pico.tiny_tokenizer(base)
    lines = [json.loads(line)["text"] for line in Path(text).read_text().splitlines()]
    rows = torch.stack([torch.tensor(tokenizer(line)["input_ids"][:48]) for line in lines])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        batch = rows[(torch.arange(16) + 16 * step) % len(rows)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(base)
    with torch.no_grad():
        for layer in model.model.layers[2:4]:
            layer.self_attn.o_proj.weight *= 0.5
            layer.mlp.down_proj.weight *= 0.5
    halved = tmp_path / "halved"
    pico.tiny_tokenizer(halved)
    model.save_pretrained(halved)
    choice = ask(halved, tmp_path / "out", text, budget_tokens=0, target_layers=8)
    assert choice.verdict.decision == "grow" and choice.verdict.best is not None
    assert choice.verdict.best.plan.text in ("0-3,2-5",), choice.verdict.words


@pytest.mark.slow
def test_a_stopped_choice_goes_on_and_ends_as_if_it_were_not(folder: Path, text: str, tmp_path: Path) -> None:
    whole = ask(folder, tmp_path / "whole", text, target_layers=10)
    out = tmp_path / "stopped"
    with pytest.raises(TrainingError, match="the time was over"):
        ask(folder, out, text, target_layers=10, minutes=1e-9)
    known = {plan: [9.0 - len(plan) / 100] * 8 for plan in json.loads((tmp_path / "whole" / "zero.json").read_text())}
    (out / "zero.json").write_text(json.dumps(known))  # all are known: no run has time to begin
    stopped = ask(folder, out, text, target_layers=10, minutes=1e-9)
    assert stopped.trained == () and any("--minutes are over" in said for said in stopped.left_out)
    assert stopped.verdict.decision == "continue-base"
    (out / "zero.json").write_bytes((tmp_path / "whole" / "zero.json").read_bytes())
    resumed = ask(folder, out, text, target_layers=10)
    assert resumed == whole
    assert [len(rung) for rung in whole.trained] == [4, 3, 3]
    assert [rung[0].step for rung in whole.trained] == [1, 2, 4]
    assert all((rung[0].name, rung[1].name) == CONTROLS for rung in whole.trained)
    assert all(rung[0].rows != rung[1].rows for rung in whole.trained)
    assert not list(out.glob("runs/*/model")) and not list(out.glob("runs/*/state"))
    (out / "choose.json").unlink()
    assert ask(folder, out, text, target_layers=10) == whole
    assert (out / "choose.json").read_bytes() == (tmp_path / "whole" / "choose.json").read_bytes()


@pytest.mark.parametrize("budget, steps, rungs", [
    (0, 32, ()), (1, 32, (1,)), (2 * 192, 32, (1, 2)), (10**9, 32, (8, 16, 32)), (10**9, 10, (2, 4, 8)),
])  # fmt: skip
def test_rungs_double_within_the_budget(budget: int, steps: int, rungs: tuple[int, ...]) -> None:
    assert Request("base", budget, rows_per_step=4, row_tokens=48, probe_steps=steps).rungs == rungs


def test_the_verb_says_what_it_found_and_its_recipe_runs_dry(
    folder: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["choose", str(folder), "--factor", "1.5", "--budget-tokens", "8e3", "--data", text,
                 "--probe-steps", "1", "--row-tokens", "48", "--eval-rows", "6", "--keep", "1",
                 "--out", str(out)]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "minus control, last rung" in said and "not known: " in said and "measured here" in said
    found = json.loads((out / "choose.json").read_text())
    assert found["verdict"] in said and found["rungs"][-1][0]["name"] == CONTROL
    assert set(found["learning_rate"]) == {"peak", "said", "source"}
    stages = load_recipe(out).stages
    assert stages["control"].steps == stages["trained"].steps == 8000 // (4 * 48)
    assert main(["status", str(out), "--store", str(tmp_path / "store")]) == 0
    assert main([*arguments, "--seed", "1"]) == 2
    assert "made with other settings: seed: 0 -> 1" in capsys.readouterr().err


@pytest.mark.parametrize("options, said", [
    (["--factor", "3"], "9 to 16 layers"),
    (["--params", "10"], "name a larger size"),
    ([], "say the wanted size once"),
    (["--factor", "1.5", "--data", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
    (["--factor", "1.5", "--data", "{text}", "--row-tokens", "4096"], "0 held-out documents have 4096 tokens"),
    (["--factor", "1.5", "--data", "{text}", "--field", "txt"], "did you mean"),
    (["--factor", "1.5", "--out", "{full}"], "exists and holds no choice"),
])  # fmt: skip
def test_bad_input_is_refused_in_words(
    folder: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    given = [option.format(text=text, full=tmp_path / "full") for option in options]
    out = [] if "--out" in options else ["--out", str(tmp_path / "out")]
    assert main(["choose", str(folder), "--budget-tokens", "100", *given, *out]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_quantised_weights_are_refused(folder: Path, text: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    pico.edit_config(base, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="holds quantised weights"):
        ask(base, tmp_path / "out", text, factor=1.5)


@pytest.mark.parametrize(
    "options", [["--budget-tokens", "-1"], ["--budget-tokens", "1.5"], ["--budget-tokens", "many"]]
)
def test_a_budget_is_a_whole_number(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["choose", "base", "--factor", "1.5", "--out", "out", *options])
    assert "no whole number of at least 0" in capsys.readouterr().err
