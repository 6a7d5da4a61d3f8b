"""Traps that no random edit finds: pipes, devices, links, odd names, encodings, and small files made to fill memory."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import mutations
import pytest

from depthup.checkpoint.check import check_checkpoint
from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME, open_checkpoint
from depthup.cli import main
from depthup.errors import CheckpointError, DepthupError, OutputError
from depthup.files import partial_path, publishing, require_space
from depthup.growth.surgery import MANIFEST_NAME, upscale
from depthup.layers import LayerPlan

PLAN = LayerPlan.upscale(mutations.N, 1)


def write(folder: Path, kind: str = "one file") -> Path:
    folder.mkdir()
    for name, content in mutations.BASES[kind].files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "base")


@pytest.fixture(autouse=True)
def never_waits() -> Iterator[None]:
    """A test that waits for a pipe fails."""

    def stop(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# -- files that are none ---------------------------------------------------------------------------------------------


def bind_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # such names are short
        made.bind(path.name)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a full device": lambda path: path.symlink_to("/dev/full"),
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a broken link": lambda path: path.symlink_to("gone"),
    "a link to a folder": lambda path: path.symlink_to("/"),
    "a socket": bind_socket,
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES.keys())
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, SINGLE_NAME, "tokenizer.json", "shard"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, folder: Path, name: str, make) -> None:
    if name == "shard":
        shutil.rmtree(folder)
        write(folder, "sharded")
        name = "model-00002-of-00003.safetensors"
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    if name == "tokenizer.json" and (folder / name).is_dir():
        upscale(folder, tmp_path / "new" / "out", PLAN)  # folders stay behind
        assert not (tmp_path / "new" / "out" / name).exists()
        return
    with pytest.raises(CheckpointError) as caught:
        upscale(folder, tmp_path / "new" / "out", PLAN)
    assert caught.value.next_step and not (tmp_path / "new").exists()
    assert check_checkpoint(folder) or name == "tokenizer.json"


def test_templates_that_lead_back_to_their_folder_are_copied_once(tmp_path: Path, folder: Path) -> None:
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool.jinja").write_text("x")
    (templates / "again").symlink_to(".")
    upscale(folder, tmp_path / "out", PLAN)
    copied = tmp_path / "out" / "additional_chat_templates"
    assert [path.name for path in copied.iterdir()] == ["tool.jinja"]


# -- names -----------------------------------------------------------------------------------------------------------

ODD_NAMES = ["caf\udce9", "a\nb", "\x1b[2J", "é" * 60, " ", "-rf", "x" * 255]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_folder_may_have_any_name_that_the_disk_takes(tmp_path: Path, name: str, capfdbinary) -> None:
    folder = write(tmp_path / name)
    out = tmp_path / f"{name[:200]}-out"
    assert main(["upscale", str(folder), str(out), "--remove", "1"]) == 0
    assert main(["check", str(out), "--quick"]) == 0
    assert main(["check", str(folder / "gone")]) == 2
    assert json.loads((out / MANIFEST_NAME).read_text())["base"]["name"] == name


@pytest.mark.parametrize(
    "name", ["a\0b", "\ud800", "x" * 300, "y" * 300 + "/out", "base/config.json/out", "."], ids=ascii
)
def test_an_output_that_the_disk_does_not_take_is_one_clear_error(tmp_path: Path, folder: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as caught:
        upscale(folder, tmp_path / name, PLAN)
    assert caught.value.next_step and sorted(tmp_path.rglob("*")) == before
    if not name.startswith(("base", ".")):
        with pytest.raises(OutputError):
            upscale(folder, f"{tmp_path}/new/{name}", PLAN)
        assert sorted(tmp_path.rglob("*")) == before
    require_space(tmp_path / name, 1)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "config.json", "base/config.json"], ids=ascii)
def test_a_base_that_is_no_folder_is_one_clear_error(
    tmp_path: Path, folder: Path, name: str, monkeypatch, capsys
) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        open_checkpoint(tmp_path / name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments in (["check"], ["layers", "--remove", "1"], ["upscale", str(tmp_path / "out"), "--remove", "1"]):
        assert main([arguments[0], str(tmp_path / name), *arguments[1:]]) == 2
        assert capsys.readouterr().err.startswith("depthup: there is no folder")


def test_what_a_link_in_place_of_the_partial_folder_leads_to_is_left_alone(tmp_path: Path, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    partial_path(tmp_path / "out").symlink_to(folder)
    with pytest.raises(OutputError, match=r"is a link[\s\S]*remove it"):
        upscale(write(tmp_path / "other"), tmp_path / "out", PLAN)
    assert {path.name for path in folder.iterdir()} == before


def test_a_file_in_place_of_the_partial_folder_is_named(tmp_path: Path, folder: Path) -> None:
    partial_path(tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write in .*\.out\.partial"), publishing(tmp_path / "out"):
        raise AssertionError("not reached")
    assert partial_path(tmp_path / "out").read_text() == "mine"


# -- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_json_in_another_encoding_is_refused_as_transformers_refuses_it(
    tmp_path: Path, name: str, encoding: str
) -> None:
    folder = write(tmp_path / "base", "sharded")
    (folder / name).write_bytes((folder / name).read_text().encode(encoding))
    with pytest.raises(CheckpointError, match=f"{name} is no JSON object"):
        open_checkpoint(folder)


def test_infinity_and_half_a_surrogate_pair_in_a_config_come_along_as_they_are(tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"time_step_limit": [0.0, float("inf")], "note": "\ud800", "\udfff": None}
    (folder / "config.json").write_text(json.dumps(config))
    upscale(folder, tmp_path / "out", PLAN)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {**config, "num_hidden_layers": PLAN.num_target_layers}


def test_a_key_that_stands_twice_is_refused_where_it_could_mean_two_things(tmp_path: Path, folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"num_hidden_layers": 5, ', 1))
    assert open_checkpoint(folder).config["num_hidden_layers"] == 5
    (folder / "config.json").write_text(text.replace("{", '{"num_hidden_layers": 4, ', 1))
    with pytest.raises(CheckpointError, match="the key 'num_hidden_layers' stands twice with unlike values"):
        open_checkpoint(folder)


# -- small files that would fill the memory, or take minutes ---------------------------------------------------------


def layers(num_layers: int) -> list[str]:
    return [f"a.{layer}.w" for layer in range(num_layers)]


MANY = layers(300)
DEPTH = {"num_hidden_layers": 300}
PARTS = {f"vision{i}_config": {"num_layers": 1, "model_type": "x"} for i in range(2000)}
BOMBS: dict[str, tuple[list[str], object]] = {
    "depth of a billion": (layers(5), {"num_hidden_layers": 10**9}),
    "as many layers as a file can name": (layers(1700), {"num_hidden_layers": 1700}),
    "many layers of as many kinds": (MANY, {**DEPTH, "layer_types": list(range(300))}),
    "a cycle of kinds": (MANY, {**DEPTH, "block_types": ["x"] * 299}),
    "many special layers": (MANY, {**DEPTH, "mlp_only_layers": list(range(-15_000, 0))}),
    "many tapped layers": (MANY, {**DEPTH, "out_indices": [1] * 30_000}),
    "a period that no plan keeps": (MANY, {**DEPTH, "decoder_sparse_step": 7}),
    "many quantised names": (MANY, {**DEPTH, "quantization_config": ["a.1"] * 12_000}),
    "a table of layers": (MANY, {**DEPTH, "per_layer_config": {str(i): {} for i in range(300)}}),
    "many stacks": ([f"visual{i}.0.w" for i in range(1500)], PARTS),
    "many nameless stacks": ([f"c{i}.0.w" for i in range(1500)], PARTS),
    "stacks of one depth": ([f"c{i}.0.w" for i in range(400)], {"num_layers": 1}),
    "a name of dots": (["." * 90_000], {"num_hidden_layers": 1}),
    "a name of numbers": (["1." * 45_000], {"num_hidden_layers": 1}),
    "sizes that multiply": ([], {"model_type": "llama", "num_hidden_layers": 5, "hidden_size": 10**30, "vocab_size": 1,
                                 "intermediate_size": [1] * 1000, "num_attention_heads": 10**30}),
    "text times a number": (layers(5), {"num_hidden_layers": 5, "hidden_size": 10**9, "num_attention_heads": 1,
                                        "num_key_value_heads": "x" * 50_000}),
    "lists in lists": (layers(5), mutations.Text("[" * 50_000 + "]" * 50_000)),
    "lists in lists, not too deep": (layers(5), mutations.Text('{"a":' + ",".join(['[' * 90 + ']' * 90] * 500) + "}")),
    "objects in objects": (layers(5), mutations.Text('{"a":' * 16_000 + "1" + "}" * 16_000)),
    "a number of 90,000 digits": (layers(5), mutations.Text('{"num_hidden_layers":' + "9" * 90_000 + "}")),
    "many empty objects": (layers(5), mutations.Text('{"a":[' + "{}," * 33_000 + "{}]}")),
    "parts in parts": (layers(1), mutations.Text('{"a_config":' * 90 + '{"num_layers":1}' + "}" * 90)),
}  # fmt: skip


def bomb(folder: Path, names: list[str], config: object) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(mutations.to_text(mutations.to_tree(config)))
    if names:
        header, data = mutations.shard({name: ("U8", [0]) for name in names})
        text = mutations.to_text(header).replace(": ", ":").encode()
        (folder / SINGLE_NAME).write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_takes_little_memory_and_time(tmp_path: Path, kind: str, capsys) -> None:
    names, config = BOMBS[kind]
    bomb(tmp_path / "base", names, config)
    assert max(path.stat().st_size for path in (tmp_path / "base").iterdir()) < 130_000
    tracemalloc.start()
    start = time.process_time()
    check_checkpoint(tmp_path / "base")
    if kind.startswith(("sizes", "text", "depth")):
        main(["layers", str(tmp_path / "base"), "--remove", "1"])
    with contextlib.suppress(DepthupError):
        upscale(tmp_path / "base", tmp_path / "out", LayerPlan.upscale(max(len(names), 3), 1))
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64_000_000
    assert seconds < 20  # most take less than one; the quickest way to fill memory or time is found here
    assert len(capsys.readouterr().err) < 3000


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, SINGLE_NAME])
def test_a_huge_file_is_refused_before_it_is_read(folder: Path, name: str) -> None:
    (folder / name).write_bytes((1 << 50).to_bytes(8, "little"))
    os.truncate(folder / name, 1 << 40)  # it takes no disk
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


# -- the command line ------------------------------------------------------------------------------------------------

VALUES = (
    "-1", "0", "1", "2", "5", "8", "10", "1000000000", "9" * 4300, "9" * 5000, "", " ", "x", "1.5", "1e3", "nan", "inf",
    "-0", "\u0663", "\udce9", "\x1b[2J", "0-4", "4-0", "0,,1", "0-", ",", "0:identity", "0:average(1,nan)",
    "1:average", "0:(", "0:random(1e400)", "0-999999999", "," * 5000, "0," * 5000, "model.layers", "rope_scaling=keep",
    "=", "=x", "solar", "g-stack", "rys-xl",
)  # fmt: skip
OPTIONS = ("--remove", "--target-layers", "--layers", "--preset", "--stack", "--max-shard-gb", "--config-list",
           "--base-layers", "--shape", "--dry-run", "--json")  # fmt: skip


def test_any_options_are_done_or_one_message(tmp_path: Path, folder: Path) -> None:
    draws = random.Random(0)
    pairs = [*itertools.product(OPTIONS, VALUES)]
    for option, value in draws.sample(pairs, len(pairs) if os.environ.get("DEPTHUP_FUZZ_EXAMPLES") else 120):
        verb = draws.choice(("upscale", "layers"))
        more = draws.choice((["--remove", "1"], ["--layers", "0-4,1"], []))
        places = [str(folder), str(tmp_path / "new" / "out")][: 2 if verb == "upscale" else draws.randint(0, 1)]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([verb, *places, *more, *([option] if option in OPTIONS[-2:] else [f"{option}={value}"])])
            except SystemExit as ended:  # argparse
                status = ended.code
        said = err.getvalue()
        assert status in (0, 2), (verb, option, value)
        assert (status == 2) == ("error: " in said or said.startswith("depthup: ")), (option, value, said)
        assert len(said) < 12_000 and "Traceback" not in said
        assert (tmp_path / "new").exists() == (tmp_path / "new" / "out").exists()
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
