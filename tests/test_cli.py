"""The command line: exit statuses, messages without tracebacks, and a start that nobody waits for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pico
import pytest

from depthup.cli import main, make_parser

REPOSITORY = Path(__file__).parents[1]
VERBS = list(make_parser()._subparsers._group_actions[0].choices)


def test_help_answers_at_once() -> None:
    """What would make it slow is not imported; the seconds are measured by `benchmarks/start.py`, not here."""
    show = (
        "import sys; from depthup.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    said = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    modules = set(said.stderr.split())
    assert "depthup.cli" in modules and "usage: depthup" in said.stdout
    assert not modules & {
        "torch",
        "transformers",
        "numpy",
        "numba",
        "yaml",
        "safetensors",
        "huggingface_hub",
        "asyncio",
    }
    assert len(modules) < 300, len(modules)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"depthup {verb}" in capsys.readouterr().out.split("examples:")[1]
    assert verb in make_parser().format_help()


def test_upscale_then_check_which_loads_or_only_looks(base, tmp_path: Path, capsys) -> None:
    out = tmp_path / "target"
    assert main(["upscale", str(base("llama")), str(out), "--remove", "2"]) == 0
    said = capsys.readouterr().out
    assert "7 -> 10 layers" in said
    assert "seam" in said
    assert main(["check", str(out)]) == 0
    assert "whole and consistent, and it loads\n" in capsys.readouterr().out
    assert main(["check", str(out), "--quick"]) == 0
    assert "whole and consistent\n" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(base, tmp_path: Path, capsys) -> None:
    assert main(["upscale", str(base("llama")), str(tmp_path / "out"), "--target-layers", "10", "--dry-run"]) == 0
    assert "was not written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_check_names_each_finding_and_exits_with_1(tmp_path: Path, capsys) -> None:
    folder = pico.edit_config(pico.checkpoint(tmp_path / "model"), num_hidden_layers=5)
    assert main(["check", str(folder)]) == 1
    assert "num_hidden_layers = 5" in capsys.readouterr().out
    folder = pico.edit_config(pico.checkpoint(tmp_path / "other"), intermediate_size=16)
    assert (
        main(["check", str(folder), "--quick"]) == 0
    )  # names and headers are consistent; the model class knows better
    assert main(["check", str(folder)]) == 1
    assert "mis-shaped on loading: model.layers.0.mlp" in capsys.readouterr().out


def test_layers_prints_the_plan_as_text_and_as_json(capsys) -> None:
    assert main(["layers", "--base-layers", "32", "--remove", "8"]) == 0
    assert "23|8, layer distance 15" in capsys.readouterr().out
    assert main(["layers", "--shape", "mistral-7b", "--preset", "solar", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"num_base_layers": 32, "layers": "0-23,8-31"}


def test_generate_shows_checkpoints_side_by_side(tmp_path: Path, capsys) -> None:
    folders = [str(pico.checkpoint(tmp_path / name, tokenizer=True, seed=i)) for i, name in enumerate("ab")]
    assert main(["generate", *folders, "--prompt", "The sum", "--max-new-tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert all(f"── {folder} ── The sum" in said for folder in folders)


def test_an_empty_prompt_and_a_model_that_transformers_does_not_know_are_named(tmp_path: Path, capsys) -> None:
    folder = pico.checkpoint(tmp_path / "model", tokenizer=True)
    assert main(["generate", str(folder), "--prompt", ""]) == 2
    assert "an empty prompt" in capsys.readouterr().err
    pico.edit_config(folder, model_type="unheard_of", architectures=["UnheardOfForCausalLM"])
    assert main(["generate", str(folder), "--prompt", "x"]) == 2
    assert "does not load" in capsys.readouterr().err
    assert main(["check", str(folder)]) == 0
    assert "not loaded: transformers" in (said := capsys.readouterr().out) and "UnheardOfForCausalLM" in said


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1", "big"])
def test_a_shard_size_that_is_no_size_is_refused(base, tmp_path: Path, capsys, size: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["upscale", str(base("llama")), str(tmp_path / "out"), "--remove", "1", f"--max-shard-gb={size}"])
    assert ended.value.code == 2
    assert "--max-shard-gb" in capsys.readouterr().err


def test_layers_of_a_config_with_few_fields_gives_the_ratio(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 8}')
    assert main(["layers", str(tmp_path), "--remove", "2"]) == 0
    assert "layer parameters x 1.5" in capsys.readouterr().out


def test_status_of_a_recipe_from_the_hub_tells_that_the_model_is_not_here_yet(tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: hub\nstages: {target: {kind: upscale, base: someone/no-such-model, remove: 1}}\n")
    assert main(["status", str(recipe), "--store", str(tmp_path / "store")]) == 0
    assert "missing" in capsys.readouterr().out
    assert main(["run", str(recipe), "--store", str(tmp_path / "store")]) == 2
    assert "could not be had" in capsys.readouterr().err


def test_status_tells_what_a_run_would_do(tmp_path: Path, capsys) -> None:
    arguments = [str(REPOSITORY / "recipes" / "pico"), "--store", str(tmp_path / "store")]
    assert main(["status", *arguments]) == 0
    assert main(["run", *arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24
    assert all("missing" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


BAD = [
    (["upscale", "{llama}", "{out}", "--remove", "4"], "m = 4"),
    (["upscale", "{llama}", "{out}", "--layers", "0-9"], "names base layer 9, but the base has 7 layers"),
    (["upscale", "{llama}", "{out}"], "0 plans are given"),
    (["upscale", "{llama}", "{out}", "--remove", "1", "--preset", "solar"], "2 plans are given"),
    (["upscale", "{llama}", "{out}", "--preset", "solr"], "did you mean 'solar'"),
    (["upscale", "{llama}", "{out}", "--remove", "1", "--stack", "model.layer"], "no stack of layers is called"),
    (["upscale", "{llama}", "{out}", "--remove", "1", "--config-list", "a=b"], "the config has no list 'a'"),
    (["upscale", "{llama}", "{llama}", "--remove", "1"], "exists"),
    (["upscale", "no/such/folder/here", "{out}", "--remove", "1"], "there is no folder"),
    (["layers", "--remove", "1"], "name the base once"),
    (["import", "nowhere.gguf", "{out}"], "there is no file nowhere.gguf"),
    (["import", "{llama}/config.json", "{out}"], "is no GGUF file"),
    (["generate", "no-such-model", "--prompt", "x"], "there is no folder no-such-model"),
    (["generate", "{llama}", "--prompt", "x", "--device", "gpu"], "torch cannot compute on 'gpu'"),
    (["generate", "{llama}", "--prompt", "x", "--max-new-tokens", "0"], "cannot draw 0 tokens"),
    (["generate", "{llama}", "--prompt", "x", "--top-p", "2"], "top_p 2.0"),
    (["generate", "{llama}", "--prompt", "x"], "has no tokenizer"),
    (["check", "{llama}", "--remove", "1"], "add --against BASE"),
    (["check", "{llama}", "--against", "no/such/folder/here"], "there is no folder"),
    (["check", "{llama}", "--against", "{llama}"], "has no depthup.json that states its plan"),
    (["run", "nowhere"], "cannot read the recipe"),
    (["status", "nowhere"], "cannot read the recipe"),
    (["report", "{pico}", "--store", "{out}"], "needs 'base-loss', which is missing"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments)[:50] for arguments, _ in BAD])
def test_bad_input_is_one_message_and_status_2_and_writes_nothing(base, tmp_path, capsys, arguments, said) -> None:
    places = {"llama": base("llama"), "out": tmp_path / "out", "pico": REPOSITORY / "recipes" / "pico"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("depthup: ")
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_hub_model_that_cannot_be_had_is_named(tmp_path: Path, capsys) -> None:
    assert main(["upscale", "someone/no-such-model", str(tmp_path / "out"), "--remove", "1"]) == 2
    assert "the hub model could not be had" in capsys.readouterr().err


def test_the_reference_pages_are_current() -> None:
    command = [sys.executable, "-m", "depthup.reference", "docs", "--check"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
