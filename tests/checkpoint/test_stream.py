"""Streamed surgery: the same files as local surgery, each byte fetched once, whatever the server does in between."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pico
import pytest
import servers
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Hub, Server, drop, garble, lie, reset, serving, stall, status

from depthup import files
from depthup.checkpoint import stream
from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME, Tensor, open_checkpoint
from depthup.checkpoint.remote import open_base
from depthup.checkpoint.stream import JOURNAL_NAME, Layout
from depthup.checkpoint.writer import Move, plan_shards
from depthup.cli import main
from depthup.errors import CheckpointError, OutputError
from depthup.growth.surgery import MANIFEST_NAME, plan_surgery, publish_surgery, upscale
from depthup.layers import LayerPlan

N = pico.NUM_LAYERS
PLAN = LayerPlan.upscale(N, 2)


@pytest.fixture
def model(base, server: Server) -> Path:
    """A base of six files with a tokenizer, in the folder that is served."""
    return served(base("llama", shard_size="60KB", tokenizer=True), server)


def served(folder: Path, server: Server) -> Path:
    shutil.copytree(folder, server.root, dirs_exist_ok=True)
    return server.root


def shard_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, which names where the base was."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    return {name: digest for name, digest in found.items() if name != MANIFEST_NAME}


def assert_as_local(out: Path, base: Path, plan: LayerPlan = PLAN, **options: Any) -> None:
    """Every file equals that of local surgery, and nothing is left over."""
    local = out.parent / "local"
    upscale(base, local, plan, **options)
    assert digests(out) == digests(local)
    one, other = (pico.read_json(folder / MANIFEST_NAME) for folder in (out, local))
    assert {key: value for key, value in one.items() if key != "base"} == {
        key: value for key, value in other.items() if key != "base"
    }
    assert not files.partial_path(out).exists()
    shutil.rmtree(local)


def num_weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


# -- the same as local -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shard_bytes", [1 << 40, 40_000])
@pytest.mark.parametrize("shard_size", [None, "60KB"])
@pytest.mark.parametrize("plan", ["0-4,2-6", "0-6,6", "3,3,3", "0-1,4-6", "5-6,0-1,5"])
def test_every_file_equals_that_of_local_surgery(
    base, server: Server, tmp_path: Path, plan: str, shard_size: str | None, max_shard_bytes: int
) -> None:
    """Layers that stand once, twice, thrice, in another order, and not at all."""
    folder = served(base("llama", **({"shard_size": shard_size} if shard_size else {})), server)
    layers, reported = LayerPlan.parse(plan, N), []
    surgery = upscale(
        server.url, tmp_path / "out", layers, max_shard_bytes=max_shard_bytes, progress=reported.append
    )  # fmt: skip
    assert sum(reported) == surgery.num_bytes
    assert_as_local(tmp_path / "out", folder, layers, max_shard_bytes=max_shard_bytes)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "qwen3_moe", "gpt_oss", "mamba"])
def test_other_architectures_are_no_exception(base, server: Server, tmp_path: Path, family: str) -> None:
    folder = served(base(family), server)
    upscale(server.url, tmp_path / "out", PLAN)
    assert_as_local(tmp_path / "out", folder)


def test_types_of_all_widths_and_empty_tensors(server: Server, tmp_path: Path) -> None:
    layer = {
        "i8": pico.Raw("I8", (3,), b"abc"), "f32": pico.Raw("F32", (2,), bytes(range(8))),
        "none": pico.Raw("F32", (0, 5), b""), "f8": pico.Raw("F8_E4M3", (7,), bytes(range(7))),
    }  # fmt: skip
    tensors = {f"model.layers.{i}.{name}": raw for i in range(3) for name, raw in layer.items()}
    (server.root / "config.json").write_text('{"num_hidden_layers": 3}')
    pico.write_tensors(server.root / SINGLE_NAME, {"embed": pico.Raw("U8", (1,), b"e"), **tensors})
    upscale(server.url, tmp_path / "out", LayerPlan.upscale(3, 1))
    assert_as_local(tmp_path / "out", server.root, LayerPlan.upscale(3, 1))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_layout_has_one_first_place_for_each_byte_and_a_copy_for_each_other(data: st.DataObject) -> None:
    """Against a model of it: the target's files as lists of (source file, byte)."""
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    begins = [10 + sum(sizes[:i]) for i in range(len(sizes))]
    tensors = [Tensor(f"{i}", "U8", (size,), f"s{i % 2}", begin, begin + size)
               for i, (size, begin) in enumerate(zip(sizes, begins, strict=True))]  # fmt: skip
    chosen = data.draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=12))
    shards = plan_shards([Move(f"t{i}", tensor) for i, tensor in enumerate(chosen)], data.draw(st.integers(1, 30)))
    layout, written = Layout.of(shards), {}
    for name in layout.parts:
        begin, end = sorted(data.draw(st.tuples(st.integers(0, 99), st.integers(0, 99))))
        for first, last in ((0, begin), (begin, end), (end, 99)):  # pieces may end anywhere
            position = first
            for start, stop, part in layout.cut(name, first, last):
                assert start == position < stop
                position = stop
                for byte in range(start, stop) if part else ():
                    assert part.begin <= byte < part.end
                    place = (part.file, part.offset + byte - part.begin)
                    assert place not in written
                    written[place] = (name, byte)
            assert position == last
    for copy in (copy for found in layout.copies.values() for copy in found):
        for i in range(copy.num_bytes):
            place = (copy.file, copy.offset + i)
            assert place not in written
            written[place] = written[copy.source_file, copy.source_offset + i]
    expected = {}
    for shard in shards:
        offset = len(shard.header())
        for move in shard.moves:
            for i in range(move.num_bytes):
                expected[shard.file, offset + i] = (move.source.shard, move.source.begin + i)
            offset += move.num_bytes
    assert written == expected


def test_each_byte_is_fetched_once_and_the_disk_holds_the_target_alone(
    base, server: Server, tmp_path: Path, monkeypatch
) -> None:
    folder = served(base("llama", hidden_size=256, intermediate_size=512), server)
    size, most = num_weight_bytes(folder), []
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    surgery = plan_surgery(open_base(server.url), PLAN)

    def watch(num_bytes: int) -> None:
        most.append(sum(path.lstat().st_blocks * 512 for path in shelf.rglob("*")))

    publish_surgery(surgery, shelf / "out", watch)
    assert size > 10_000_000 and max(most) <= surgery.num_output_bytes + 100_000
    # The start of the file is fetched for its header first; beside the weights there are only small files.
    assert size <= server.num_bytes <= size + 100_000
    assert server.asked(f"/{SINGLE_NAME}")[1:] == [(len(surgery.base.remote.headers[SINGLE_NAME]), size)]


def test_the_hub_is_streamed_from_at_one_commit_and_the_manifest_names_it(base, tmp_path: Path, online, monkeypatch):
    import huggingface_hub

    folder = shutil.copytree(base("llama", shard_size="60KB", tokenizer=True), tmp_path / "served")
    with serving(Server(folder)) as cdn, serving(Hub(folder, cdn=cdn, token="hf_x")) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        surgery = plan_surgery(open_base("owner/model"), PLAN)
        hub.faults["/api/models/owner/model/revision/main"] = [status(404)]  # the name is not resolved again
        publish_surgery(surgery, tmp_path / "out")
        assert not any("authorization" in request.headers for request in cdn.requests)
    assert_as_local(tmp_path / "out", folder)
    origin = pico.read_json(tmp_path / "out" / MANIFEST_NAME)["base"]
    assert (origin["name"], origin["source"], origin["revision"]) == ("model", "owner/model", servers.COMMIT)
    for name, facts in origin["files"].items():
        assert facts["sha256"] == digests(folder)[name] == facts.get("hub_sha256", facts["sha256"])
    assert sorted(origin["files"]) == ["config.json", *shard_names(folder)]
    assert main(["check", str(tmp_path / "out"), "--against", str(folder)]) == 0


def test_the_command_line_streams_and_says_so(server: Server, model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["upscale", server.url, str(out), "--remove", "2"]) == 0
    said = capsys.readouterr().out
    assert f"{server.url}: {num_weight_bytes(model):,} bytes in {len(shard_names(model))} files" in said
    assert main(["check", str(out)]) == 0


def test_links_to_what_is_not_here_are_refused(server: Server, model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only files of this disk can be linked"):
        upscale(server.url, tmp_path / "out", PLAN, link=True)


def test_a_sentence_encoder_with_modules_in_folders_is_not_streamed_without_them(
    server: Server, model: Path, tmp_path: Path
) -> None:
    (model / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    with pytest.raises(CheckpointError, match="folders that go along: 1_Pooling"):
        upscale(server.url, tmp_path / "out", PLAN)


def test_digests_of_all_files_can_be_had(server: Server, model: Path, tmp_path: Path) -> None:
    upscale(server.url, tmp_path / "out", PLAN, digests=True, resume=True)
    upscale(model, tmp_path / "local", PLAN, digests=True)
    one, other = (pico.read_json(tmp_path / name / MANIFEST_NAME) for name in ("out", "local"))
    assert one["files"] == other["files"] and one["base"]["files"] == other["base"]["files"]


@pytest.mark.parametrize("layers", ["0-4,2:identity,3-6", "0-6,6:identity", "0-3,3:random(7),4-6", "0-5,6:identity"])
def test_layers_that_need_no_weights_are_made(server: Server, model: Path, tmp_path: Path, layers: str) -> None:
    plan, reported = LayerPlan.parse(layers, N), []
    surgery = upscale(server.url, tmp_path / "out", plan, progress=reported.append)
    assert sum(reported) == surgery.num_bytes and any(move.make for move in surgery.moves)
    assert_as_local(tmp_path / "out", model, plan)


@pytest.mark.parametrize("layers", ["0-3,3:average(4),4-6", "0-6,6:attenuated(0.5)", "0-6,6:identity,6:slerp(5)"])
def test_what_must_be_made_from_weights_is_refused_before_any_is_fetched(
    server: Server, model: Path, tmp_path: Path, layers: str
) -> None:
    with pytest.raises(
        CheckpointError, match=r"not on this disk, and layers that start as \w+ are[\s\S]*next: download"
    ):
        upscale(server.url, tmp_path / "out", LayerPlan.parse(layers, N))
    assert list(tmp_path.glob("*out*")) == []


# -- servers that drop, stall and lie ----------------------------------------------------------------------------------


def test_a_server_that_does_everything_wrong_for_a_while(server: Server, model: Path, tmp_path: Path) -> None:
    shards = shard_names(model)
    for number, shard in enumerate(shards):
        server.faults[f"/{shard}"] = [
            None, drop(9_000 + number), stall(2_000, 0.5), status(503, Retry_After="0"), reset(5_000), status(429),
        ]  # fmt: skip
    upscale(server.url, tmp_path / "out", PLAN)
    assert all(not left for left in server.faults.values())
    assert_as_local(tmp_path / "out", model)


LYING = {
    "another range": (lie(Content_Range="bytes 8-9/10"), "answers with the range"),
    "no ranges": (servers.whole, "does not serve byte ranges"),
    "another version": (lie(ETag='"2"'), "changed while it was read"),
    "gone": (status(404), "there is no http"),
    "forbidden": (status(403), "refused: 403"),
    "broken for good": (drop(0), "early, after 4 attempts"),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_server_that_lies_is_told_and_the_same_command_goes_on(
    server: Server, model: Path, tmp_path: Path, kind: str
) -> None:
    fault, message = LYING[kind]
    out, last = tmp_path / "out", shard_names(model)[-1]
    server.faults[f"/{last}"] = [None, *[fault] * 9]
    with pytest.raises(CheckpointError, match=message) as caught:
        upscale(server.url, out, PLAN)
    assert last in caught.value.problem and caught.value.next_step and not out.exists()
    assert files.partial_path(out).exists()
    server.faults.clear()
    upscale(server.url, out, PLAN)
    assert_as_local(out, model)


def test_garbled_bytes_are_found_by_the_hubs_checksum_and_only_their_file_is_fetched_anew(
    base, tmp_path: Path, online, monkeypatch
) -> None:
    import huggingface_hub

    folder, out = shutil.copytree(base("llama", shard_size="60KB"), tmp_path / "served"), tmp_path / "out"
    shards = shard_names(folder)
    with serving(Server(folder)) as cdn, serving(Hub(folder, cdn=cdn)) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(stream, "_NUM_CONNECTIONS", 1)  # so that all others are whole when it fails
        cdn.faults[f"/{shards[-1]}"] = [None, garble(1234)]
        with pytest.raises(CheckpointError, match=rf"{shards[-1]} arrived with the checksum .* the server declares"):
            upscale("owner/model", out, PLAN)
        assert not out.exists()
        before = {shard: len(cdn.asked(f"/{shard}")) for shard in shards}
        upscale("owner/model", out, PLAN)
        # One request each for the header; the garbled file is asked for once more.
        assert {shard: len(cdn.asked(f"/{shard}")) - before[shard] for shard in shards} == {
            **dict.fromkeys(shards, 1), shards[-1]: 2
        }  # fmt: skip
    assert_as_local(out, folder)


def test_a_small_file_of_the_hub_is_checked_too(base, tmp_path: Path, online, monkeypatch) -> None:
    import huggingface_hub

    folder = shutil.copytree(base("llama", tokenizer=True), tmp_path / "served")
    with serving(Server(folder)) as cdn, serving(Hub(folder, cdn=cdn)) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        cdn.faults["/tokenizer.json"] = [garble(99)]
        with pytest.raises(CheckpointError, match=r"tokenizer\.json arrived with the checksum"):
            upscale("owner/model", tmp_path / "out", PLAN)


def test_a_model_that_changes_between_two_attempts_is_fetched_anew(server: Server, model, base, tmp_path: Path) -> None:
    """Same names, same sizes, other bytes: the version that the server states tells them apart."""
    out, last = tmp_path / "out", shard_names(model)[-1]
    server.faults[f"/{last}"] = [None, drop(2000), *[status(500)] * 9]
    with pytest.raises(CheckpointError, match="answers 500"):
        upscale(server.url, out, PLAN)
    server.faults.clear()
    served(base("llama", shard_size="60KB", tokenizer=True, seed=1), server)
    upscale(server.url, out, PLAN)
    assert_as_local(out, server.root)


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def halted(server: Server, base, tmp_path: Path, monkeypatch) -> Path:
    """A run that ended with an error when the larger part of a file of 900 kB had come; returns its ``out``."""
    monkeypatch.setattr(stream, "_SAVE_BYTES", 50_000)
    served(base("llama", hidden_size=64, intermediate_size=128, tokenizer=True), server)
    server.faults[f"/{SINGLE_NAME}"] = [None, drop(600_000), *[status(500)] * 9]
    with pytest.raises(CheckpointError, match=r"answers 500[\s\S]*the same command goes on"):
        upscale(server.url, tmp_path / "out", PLAN)
    server.faults.clear()
    server.num_bytes = 0
    server.requests.clear()
    return tmp_path / "out"


def finish(server: Server, out: Path) -> int:
    """Run it again; returns at which byte of the weights it went on."""
    upscale(server.url, out, PLAN)
    assert_as_local(out, server.root)
    return server.asked(f"/{SINGLE_NAME}")[1][0]


def test_a_run_goes_on_where_it_ended(server: Server, halted: Path) -> None:
    assert (files.partial_path(halted) / JOURNAL_NAME).exists()
    assert finish(server, halted) > 600_000


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def edit_journal(partial: Path, **fields: Any) -> None:
    journal = pico.read_json(partial / JOURNAL_NAME)
    (partial / JOURNAL_NAME).write_text(json.dumps({**journal, **fields}))


SPOILED = {
    "a bit of the weights": lambda partial: flip(partial / SINGLE_NAME, 300_000),
    "weights cut off": lambda partial: os.truncate(partial / SINGLE_NAME, 200_000),
    "weights gone": lambda partial: (partial / SINGLE_NAME).unlink(),
    "no journal": lambda partial: (partial / JOURNAL_NAME).unlink(),
    "half a journal": lambda partial: os.truncate(partial / JOURNAL_NAME, 50),
    "a journal of something else": lambda partial: (partial / JOURNAL_NAME).write_text("[1]"),
    "nonsense in the journal": lambda partial: edit_journal(partial, sources={SINGLE_NAME: 3}),
    "too far": lambda partial: edit_journal(partial, sources={SINGLE_NAME: [10**9, "00"]}),
    "another surgery": lambda partial: edit_journal(partial, identity="00"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_what_is_not_as_it_was_left_is_fetched_anew(server: Server, halted: Path, kind: str) -> None:
    SPOILED[kind](files.partial_path(halted))
    assert finish(server, halted) < 10_000


def test_strangers_in_the_unfinished_folder_are_not_published(server: Server, halted: Path) -> None:
    partial = files.partial_path(halted)
    (partial / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (partial / ".config.json.123.tmp").write_bytes(b"{")
    (partial / "folder").mkdir()
    assert finish(server, halted) > 600_000


def test_a_target_on_a_server_grows_again_and_is_undone_by_what_it_says_of_itself(
    server: Server, model: Path, tmp_path: Path, capsys
) -> None:
    upscale(model, tmp_path / "grown", PLAN)
    shutil.rmtree(server.root)
    (tmp_path / "grown").rename(server.root)
    assert main(["upscale", server.url, str(tmp_path / "back"), "--undo"]) == 0
    assert pico.read_json(tmp_path / "back" / MANIFEST_NAME)["history"][0]["plan"]["layers"] == PLAN.text
    capsys.readouterr()
    assert main(["layers", server.url, "--undo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_base_layers"] == PLAN.num_target_layers


def test_another_plan_starts_anew(server: Server, halted: Path) -> None:
    plan = LayerPlan.upscale(N, 1)
    upscale(server.url, halted, plan)
    assert_as_local(halted, server.root, plan)


def test_local_surgery_to_the_same_place_takes_nothing_over(server: Server, halted: Path) -> None:
    upscale(server.root, halted, PLAN)
    assert_as_local(halted, server.root)


def test_a_full_disk_is_told_and_what_came_is_kept(server: Server, model: Path, tmp_path: Path, monkeypatch) -> None:
    out, real, written = tmp_path / "out", stream._write, []

    def write(file, offset: int, data: memoryview) -> None:
        if sum(written) > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(data))
        real(file, offset, data)

    monkeypatch.setattr(stream, "_write", write)
    with pytest.raises(OutputError, match="is full"):
        upscale(server.url, out, PLAN)
    monkeypatch.setattr(stream, "_write", real)
    kept = pico.read_json(files.partial_path(out) / JOURNAL_NAME)["sources"]
    assert kept
    server.requests.clear()
    upscale(server.url, out, PLAN)
    for shard, (position, _) in kept.items():
        # After the request for the header: what is missing, or nothing.
        assert server.asked(f"/{shard}")[1:] in ([], [(position, (model / shard).stat().st_size)])
    assert_as_local(out, model)


def test_a_disk_that_cannot_keep_what_it_took_is_told(server: Server, base, tmp_path: Path, monkeypatch) -> None:
    """The first sync fails in the background, while bytes go on arriving."""
    served(base("llama", hidden_size=64, intermediate_size=128), server)
    monkeypatch.setattr(stream, "_SAVE_BYTES", 10_000)
    real, failed = os.fsync, []

    def fsync(descriptor: int) -> None:
        if not failed and threading.current_thread() is not threading.main_thread():
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=os.strerror(errno.EIO)):
        upscale(server.url, tmp_path / "out", PLAN)
    assert failed and not (tmp_path / "out").exists()
    upscale(server.url, tmp_path / "out", PLAN)
    assert_as_local(tmp_path / "out", server.root)


def test_a_disk_that_is_too_small_is_told_before_the_first_weight(server: Server, model, tmp_path, monkeypatch) -> None:
    surgery = plan_surgery(open_base(server.url), PLAN)
    needed = surgery.num_output_bytes
    assert needed > surgery.num_bytes + sum(file.num_bytes for file in surgery.base.remote.carried)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    server.requests.clear()
    with pytest.raises(OutputError, match="not enough disk"):
        publish_surgery(surgery, tmp_path / "out")
    assert server.requests == []
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    publish_surgery(surgery, tmp_path / "out")


def test_the_same_surgery_can_be_tried_again_in_one_process(server: Server, model: Path, tmp_path: Path) -> None:
    surgery = plan_surgery(open_base(server.url), PLAN)
    server.faults["/tokenizer.json"] = [drop(100), *[status(500)] * 9]
    for fault in ([status(500)] * 9, []):
        server.faults[f"/{shard_names(model)[0]}"] = list(fault)
        if fault:
            with pytest.raises(CheckpointError, match="answers 500"):
                publish_surgery(surgery, tmp_path / "out")
            server.faults["/tokenizer.json"].clear()
        else:
            publish_surgery(surgery, tmp_path / "out")
    assert_as_local(tmp_path / "out", model)


def test_temporary_files_go_with_the_checkpoint(server: Server, model: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    opened = open_base(server.url)
    kept = {path.name for path in opened.folder.iterdir()}
    assert kept >= {"config.json", "tokenizer_config.json"} and "tokenizer.json" not in kept
    assert open_checkpoint(model).config == pico.read_json(opened.folder / "config.json")
    del opened
    assert list((tmp_path / "temporary").iterdir()) == []


# -- other processes ---------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from depthup.checkpoint import stream, web
stream._SAVE_BYTES = 50_000
web.PATIENCE = web.Patience(stall_seconds=20.0)
from depthup.cli import main
sys.exit(main(["upscale", sys.argv[1], sys.argv[2], "--remove", "2"]))
"""


def start(server: Server, out: Path) -> subprocess.Popen:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "TMPDIR": str(out.parent)}
    return subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(out)], env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip


def wait_until_saved(child: subprocess.Popen, out: Path, num_bytes: int) -> None:
    """Wait until the journal has so many bytes of the single weights file."""
    journal, end = files.partial_path(out) / JOURNAL_NAME, time.monotonic() + 60
    while not journal.exists() or pico.read_json(journal)["sources"].get(SINGLE_NAME, [0])[0] < num_bytes:
        if child.poll() is not None or time.monotonic() > end:
            child.kill()
            raise AssertionError(f"the child saved nothing: {child.stderr.read()}")
        time.sleep(0.01)


@pytest.fixture
def large(server: Server, base) -> Server:
    """A server of a model of 900 kB."""
    served(base("llama", hidden_size=64, intermediate_size=128, tokenizer=True), server)
    return server


def test_a_killed_run_publishes_nothing_and_the_next_goes_on(large: Server, tmp_path: Path) -> None:
    out, size = tmp_path / "out", num_weight_bytes(large.root)
    large.pause = 0.05
    with start(large, out) as child:
        wait_until_saved(child, out, 300_000)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and not out.exists()
    large.pause, large.num_bytes = 0.0, 0
    upscale(large.url, out, PLAN)
    assert large.num_bytes < size - 300_000 + 150_000  # the header's request is part of it
    assert_as_local(out, large.root)


def test_ctrl_c_is_heard_while_the_server_says_nothing(large: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    large.faults[f"/{SINGLE_NAME}"] = [None, stall(500_000, 30)]
    with start(large, out) as child:
        while len(large.asked(f"/{SINGLE_NAME}")) < 2 and child.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)
        begin = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=20)
    assert child.returncode == 130 and time.monotonic() - begin < 15
    assert "stopped" in said and "Traceback" not in said and not out.exists()
    large.faults.clear()
    upscale(large.url, out, PLAN)
    assert large.asked(f"/{SINGLE_NAME}")[-1][0] > 400_000
    assert_as_local(out, large.root)


def test_of_two_runs_at_once_one_is_refused(large: Server, tmp_path: Path) -> None:
    large.pause = 0.05
    with start(large, tmp_path / "out") as child:
        wait_until_saved(child, tmp_path / "out", 100_000)
        with pytest.raises(OutputError, match="another process is writing"):
            upscale(large.url, tmp_path / "out", PLAN)
        large.pause = 0.0
    assert child.returncode == 0
    assert_as_local(tmp_path / "out", large.root)


MEASURED = """
import sys
{body}
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak[0].split()[1], *({{"torch", "transformers", "numpy"}} & sys.modules.keys()))
"""
BIG = """
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
upscale(sys.argv[1], sys.argv[2], LayerPlan.upscale(8, 2))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_model(server: Server, tmp_path: Path) -> None:
    """A base of 300 MB in two files; the peak is counted from a bare interpreter's."""
    num_bytes = 15_000_000
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.{part}" for i in range(8) for part in "ab"), "lm_head"]
    weight_map = {name: f"{number % 2}.safetensors" for number, name in enumerate(sorted(names))}
    for shard in ("0.safetensors", "1.safetensors"):
        write_sparse(server.root / shard, [name for name in names if weight_map[name] == shard], num_bytes)
    (server.root / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (server.root / "config.json").write_text('{"num_hidden_layers": 8}')
    bare, _ = peak_kib(MEASURED.format(body=""))
    peak, loaded = peak_kib(MEASURED.format(body=BIG), server.url, str(tmp_path / "out"))
    written = num_weight_bytes(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert written > 26 * num_bytes and loaded == []
    assert peak - bare < 40_000


def write_sparse(path: Path, names: list[str], num_bytes: int) -> None:
    """Tensors of zeros that take no disk."""
    offsets = [(i * num_bytes, (i + 1) * num_bytes) for i in range(len(names))]
    header = json.dumps({n: {"dtype": "U8", "shape": [num_bytes], "data_offsets": o}
                         for n, o in zip(names, offsets, strict=True)}).encode()  # fmt: skip
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + len(names) * num_bytes)


def peak_kib(code: str, *args: str) -> tuple[int, list[str]]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    peak, *loaded = done.stdout.split()
    return int(peak), loaded
