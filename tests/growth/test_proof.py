"""A target is proved from its base to the byte, whoever made it; whatever is not as it should be is found and named."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
import transformers

from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME, open_checkpoint, read_header
from depthup.cli import main
from depthup.growth.manifest import MANIFEST_NAME
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

N = pico.NUM_LAYERS
PLAN = LayerPlan.upscale(N, 2)
EVERY_KIND = (
    "0-6,2:attenuated(0.5),2:average,3:slerp(1,0.3),4:random(3),5:transport,6:norm-matched(1.2)"  # by arithmetic
)
SOURCES = (0, 1, 2, 3, 4, 2, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def folder(base) -> Path:
    return base("llama", tokenizer=True, shard_size="60KB")


@pytest.fixture
def target(folder: Path, tmp_path: Path) -> Path:
    upscale(folder, tmp_path / "target", PLAN, max_shard_bytes=70_000)
    return tmp_path / "target"


@pytest.fixture
def check(folder: Path, capsys) -> Callable[..., tuple[int, str]]:
    """``check(target, "--remove", "2")``: status and output of ``depthup check TARGET --against BASE``."""

    def run(target: Path, *options: str, base: Path = folder) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["check", str(target), "--against", str(base), *options])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


# -- what is proved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["0-4,2-6", "0-6", "6,5,4,3,2,1,0,0", "0-6,2:identity,6:identity", EVERY_KIND])
@pytest.mark.parametrize("options", [{}, {"max_shard_bytes": 40_000}, {"max_shard_bytes": 40_000, "link": True}])
def test_what_depthup_writes_is_proved_by_its_manifest(folder, tmp_path, check, plan: str, options: dict) -> None:
    surgery = upscale(folder, tmp_path / "target", LayerPlan.parse(plan, N), **options)
    status, said = check(tmp_path / "target")
    assert status == 0 and f"proved: {len(surgery.moves)} tensors ({surgery.num_bytes:,} bytes)" in said
    assert ("4 of them made again" in said) == ("identity" in plan) and "not compared" not in said


def test_a_script_of_other_people_is_proved_by_its_plan(folder: Path, tmp_path: Path, check) -> None:
    """The layers are deep-copied in memory and saved by transformers, as the scripts on the hub do."""
    model = pico.load(folder)
    stacked = [copy.deepcopy(model.model.layers[source]) for source in SOURCES]
    model.model.layers, model.config.num_hidden_layers = torch.nn.ModuleList(stacked), len(stacked)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(tmp_path / "target")
    transformers.utils.logging.enable_progress_bar()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(folder / name, tmp_path / "target" / name)
    (tmp_path / "target" / "merge.yml").write_text("how: by hand")
    assert not (tmp_path / "target" / MANIFEST_NAME).exists()
    for options in (["--remove", "2"], ["--layers", "0-4,2-6"], ["--target-layers", "10"]):
        status, said = check(tmp_path / "target", *options)
        assert status == 0 and "proved: 93 tensors" in said and "not compared: the target has files that" in said
    status, said = check(tmp_path / "target")
    assert status == 2 and "has no depthup.json" in said and "--layers 0-23,8-31" in said


def test_a_config_written_by_another_version_is_compared_by_what_it_says(folder: Path, target: Path, check) -> None:
    config = pico.read_json(target / "config.json")
    edits = {"transformers_version": "4.0.0", "_name_or_path": "x", "dtype": ..., "torch_dtype": config["dtype"]}
    pico.edit_config(target, **edits, rms_norm_eps=float(config["rms_norm_eps"]), added=1)
    (target / MANIFEST_NAME).unlink()
    status, said = check(target, "--remove", "2")
    assert status == 0 and "not compared: config.json also states what the base does not: added" in said


# -- what is found ----------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 64
    path.write_bytes(data)


@pytest.mark.parametrize("byte", [0, 1, 1000, -1])
@pytest.mark.parametrize("number", [0, 17, 50, 92])
def test_one_bit_anywhere_is_found_and_named(target: Path, check, number: int, byte: int) -> None:
    tensors = list(open_checkpoint(target).tensors.values())
    tensor = tensors[number]
    place = byte % tensor.num_bytes
    flip(target / tensor.shard, tensor.begin + place)
    status, said = check(target)
    parts = tensor.name.split(".")
    if parts[1] == "layers":
        parts[2] = str(SOURCES[int(parts[2])])
    assert status == 1 and "not proved: 1 differences" in said and "next: make the target again" in said
    assert f"{tensor.name} differs from {'.'.join(parts)} of the base, first at its byte {place}" in said


def test_a_tensor_that_is_made_is_made_again_and_compared(folder: Path, tmp_path: Path, check) -> None:
    upscale(folder, tmp_path / "target", LayerPlan.parse("0-6,2:identity", N))
    found = open_checkpoint(tmp_path / "target").tensors["model.layers.7.mlp.down_proj.weight"]
    flip(tmp_path / "target" / found.shard, found.begin + 5)
    status, said = check(tmp_path / "target")
    assert status == 1 and "differs from what 'identity' makes of model.layers.2.mlp.down_proj.weight" in said


def rewrite(folder: Path, change: Callable[[dict[str, pico.Raw]], None]) -> None:
    """Change the tensors of a target of one file."""
    tensors = pico.raw(folder)
    change(tensors)
    pico.write_tensors(folder / SINGLE_NAME, tensors)


FIRST, LAST = "model.layers.0.mlp.up_proj.weight", "model.layers.9.mlp.up_proj.weight"
FAULTS: dict[str, tuple[Callable[[dict[str, pico.Raw]], object], str]] = {
    "extra": (lambda t: t.update({"model.extra": t[FIRST]}), "model.extra is in the target, and not in the plan"),
    "type": (lambda t: t.update({FIRST: t[FIRST]._replace(dtype="I32")}), f"{FIRST} is I32 [48, 32], its source F32"),
    "shape": (lambda t: t.update({FIRST: t[FIRST]._replace(shape=(32, 48))}), f"{FIRST} is F32 [32, 48], its source"),
    "swapped": (lambda t: t.update({FIRST: t[LAST], LAST: t[FIRST]}), f"{LAST} differs from model.layers.6.mlp.up"),
    "gone": (lambda t: t.pop("lm_head.weight"), "lm_head.weight is missing: it should be lm_head.weight of the base"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_tensors_that_are_missing_added_or_of_another_form_are_named(folder, tmp_path, check, kind: str) -> None:
    upscale(folder, tmp_path / "target", PLAN)
    change, message = FAULTS[kind]
    rewrite(tmp_path / "target", change)
    if kind in ("gone", "shape"):  # a plain check finds these itself, before it looks at the base
        pico.edit_config(tmp_path / "target", architectures=["LlamaModel"])
    status, said = check(tmp_path / "target")
    assert status == 1
    assert message in said or (kind == "shape" and "most other layers" in said)


def test_config_and_files_beside_are_compared_too(folder: Path, target: Path, check) -> None:
    pico.edit_config(target, rope_parameters={"rope_theta": 5.0, "rope_type": "default"}, eos_token_id=7, new=True,
                     hidden_act=...)  # fmt: skip
    flip(target / "tokenizer.json", 33)
    (target / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes() + b" ")
    (target / "generation_config.json").unlink()
    (target / "modeling_new.py").write_text("")
    status, said = check(target)
    size = (folder / "tokenizer_config.json").stat().st_size
    assert status == 1 and "not proved: 8 differences" in said
    for line in ("config.json states rope_parameters.rope_theta = 5.0, which should be 10000.0",
                 "config.json states eos_token_id = 7, which should be 0",
                 "config.json states new = True, which should not be there",
                 "config.json does not state hidden_act, it should be silu",
                 "tokenizer.json differs from the base's, first at byte 33",
                 f"tokenizer_config.json differs from the base's, first at byte {size}",
                 "generation_config.json is missing: the base has it",
                 "the base does not have modeling_new.py"):  # fmt: skip
        assert line in said


def test_another_plan_and_another_base_are_not_proved_and_not_all_is_told(base, folder, target, check) -> None:
    status, said = check(target, "--layers", "0-4,1-5")
    assert status == 1 and "not proved: 45 differences, 20 of them shown" in said and said.count(" differs ") == 20
    status, said = check(target, base=base("llama", tokenizer=True, seed=3))
    assert status == 1 and "not proved: 93 differences" in said
    status, said = check(target, base=base("llama", num_layers=5))
    assert status == 2 and "the plan is for a base of 7 layers" in said


def test_a_target_that_is_not_whole_is_told_first(target: Path, check) -> None:
    next(target.glob("model-*")).unlink()
    status, said = check(target)
    assert status == 1 and "shards are missing" in said and "proved" not in said


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"plan": 3, "stack": "x"}', '{"plan": {}, "stack": "model.layers"}', "{"]
)
def test_a_manifest_that_is_none_is_one_clear_error(target: Path, check, text: str) -> None:
    (target / MANIFEST_NAME).write_text(text)
    status, said = check(target)
    assert status == 2 and "\ndepthup: " in said and "Traceback" not in said
    assert check(target, "--remove", "2")[0] == 0  # a plan that is named needs none


def test_a_plan_without_a_base_is_refused(target: Path, capsys) -> None:
    assert main(["check", str(target), "--remove", "2"]) == 2
    assert "add --against BASE" in capsys.readouterr().err


# -- the manifest -----------------------------------------------------------------------------------------------------


def test_the_manifest_names_every_file_with_its_size_and_digests(folder: Path, tmp_path: Path) -> None:
    for digests in (False, True):
        out = tmp_path / f"{digests}"
        reported: list[int] = []
        surgery = upscale(folder, out, LayerPlan.parse("0-4,2:identity,3-6", N), max_shard_bytes=70_000,
                          digests=digests, progress=reported.append)  # fmt: skip
        manifest = pico.read_json(out / MANIFEST_NAME)
        assert manifest["files"].keys() == {path.name for path in out.iterdir()} - {MANIFEST_NAME}
        base_shards = set(pico.read_json(folder / INDEX_NAME)["weight_map"].values())
        assert manifest["base"]["files"].keys() == {"config.json"} | base_shards
        for place, facts in ((out, manifest["files"]), (folder, manifest["base"]["files"])):
            for name, fact in facts.items():
                data = (place / name).read_bytes()
                length = 8 + int.from_bytes(data[:8], "little")
                expected = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                if name.endswith(".safetensors"):
                    expected["header_sha256"] = hashlib.sha256(data[:length]).hexdigest()
                    if not digests:
                        del expected["sha256"]
                assert fact == expected, name
        assert sum(reported) >= surgery.num_bytes * (2 if digests else 1)
    assert manifest["new_layers"] == {"5": "2:identity", "6": "3:copy", "7": "4:copy"}
    assert manifest["seams"] == [[4, 2]] and manifest["stack"] == "model.layers" and manifest["config_lists"] == {}


def test_choices_for_lists_in_the_config_are_kept_for_the_proof(base, tmp_path: Path, check) -> None:
    folder = pico.edit_config(shutil.copytree(base(), tmp_path / "base"), scales=list(range(N)), names=["x"] * N)
    upscale(folder, tmp_path / "target", PLAN, config_lists={"scales": "layers", "names": "keep"})
    assert pico.read_json(tmp_path / "target" / "config.json")["scales"] == list(SOURCES)
    assert check(tmp_path / "target", base=folder)[0] == 0


# -- memory -----------------------------------------------------------------------------------------------------------

PROVE = """
import sys
from depthup.cli import main
status = main(["check", sys.argv[2], "--against", sys.argv[1]])
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(status, peak[0].split()[1], "torch" in sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A base of 150 MB that takes no disk, and its target."""
    num_bytes, names = 15_000_000, ["embed", *(f"model.layers.{i}.w" for i in range(8)), "lm_head.weight"]
    (tmp_path / "base").mkdir()
    spans = [(i * num_bytes, (i + 1) * num_bytes) for i in range(len(names))]
    header = json.dumps({
        name: {"dtype": "U8", "shape": [num_bytes], "data_offsets": span}
        for name, span in zip(names, spans, strict=True)
    }).encode()  # fmt: skip
    with open(tmp_path / "base" / SINGLE_NAME, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + len(names) * num_bytes)
    (tmp_path / "base" / "config.json").write_text('{"num_hidden_layers": 8}')
    upscale(tmp_path / "base", tmp_path / "target", LayerPlan.upscale(8, 3))
    assert len(read_header(tmp_path / "target", SINGLE_NAME)[0]) == 12
    command = [sys.executable, "-c", PROVE, str(tmp_path / "base"), str(tmp_path / "target")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(tmp_path / "target")
    status, peak_kib, torch_loaded = done.stdout.splitlines()[-1].split()
    assert (status, torch_loaded) == ("0", "False") and int(peak_kib) < 60_000
