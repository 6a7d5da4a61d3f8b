"""Files of the base that are used as they are: the same file, the same tensors, no disk, and a clear refusal."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pico
import pytest

from depthup.checkpoint.reader import open_checkpoint
from depthup.cli import main
from depthup.errors import OutputError
from depthup.files import partial_path
from depthup.growth.surgery import plan_surgery, upscale
from depthup.layers import LayerPlan

N = pico.NUM_LAYERS
PLAN = LayerPlan.upscale(N, 2)


@pytest.fixture
def folder(base, tmp_path: Path) -> Path:
    return shutil.copytree(base("llama", shard_size="30KB"), tmp_path / "base")


def links(one: Path, other: Path) -> dict[str, str]:
    """Weight files of one folder that are also files of the other."""
    files = [path for path in other.iterdir() if path.is_file()]
    return {path.name: same.name for path in sorted(one.glob("*.safetensors")) for same in files if path.samefile(same)}


def test_a_linked_target_holds_what_a_copied_one_does_and_loads(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    upscale(folder, tmp_path / "copied", PLAN, max_shard_bytes=30_000)
    surgery = upscale(folder, tmp_path / "out", PLAN, max_shard_bytes=30_000, link=True)
    found = links(tmp_path / "out", folder)
    assert found == {shard.file: shard.link for shard in surgery.shards if shard.link} and len(found) >= 3
    assert pico.raw(tmp_path / "out") == pico.raw(tmp_path / "copied") and not links(tmp_path / "copied", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    shutil.rmtree(folder)  # a target stands without its base
    assert pico.load(tmp_path / "out").config.num_hidden_layers == 10


def test_what_is_linked_takes_no_disk_and_is_said(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    asked: list[int] = []
    monkeypatch.setattr("depthup.growth.surgery.require_space", lambda folder, num_bytes: asked.append(num_bytes))
    options = ["--remove", "2", "--max-shard-gb", "0.00003"]
    assert main(["upscale", str(folder), str(tmp_path / "out"), *options, "--link"]) == 0
    linked = sum((tmp_path / "out" / name).stat().st_size for name in links(tmp_path / "out", folder))
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("model-*.safetensors")) - linked
    assert linked > 90_000 and asked[0] < written + 2_000
    surgery = plan_surgery(open_checkpoint(folder), PLAN, max_shard_bytes=30_000, link=True)
    assert f"linked      {surgery.num_linked_bytes:,} bytes in" in capsys.readouterr().out
    manifest = pico.read_json(tmp_path / "out" / "depthup.json")["files"]
    assert {name: facts["link"] for name, facts in manifest.items() if "link" in facts} == links(
        tmp_path / "out", folder
    )


def test_progress_counts_linked_bytes_too(folder: Path, tmp_path: Path) -> None:
    reported: list[int] = []
    surgery = upscale(folder, tmp_path / "out", PLAN, link=True, progress=reported.append)
    assert sum(reported) == surgery.num_bytes


def test_of_a_cache_of_links_the_blobs_are_linked(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blobs / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    upscale(snapshot, tmp_path / "out", PLAN, max_shard_bytes=30_000, link=True)
    found = links(tmp_path / "out", blobs)
    assert len(found) >= 3 and not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    manifest = pico.read_json(tmp_path / "out" / "depthup.json")
    assert {manifest["base"]["files"][facts["link"]]["hub_sha256"] for facts in manifest["files"].values()
            if "link" in facts} == set(found.values())  # fmt: skip


def test_a_base_no_file_of_which_stays_whole_is_copied_and_that_is_said(base, tmp_path: Path, capsys) -> None:
    assert main(["upscale", str(base()), str(tmp_path / "out"), "--remove", "2", "--link"]) == 0
    assert "linked      nothing" in capsys.readouterr().out and not links(tmp_path / "out", base())


def test_the_identity_is_a_folder_of_links(folder: Path, tmp_path: Path) -> None:
    upscale(folder, tmp_path / "out", LayerPlan(N, tuple(range(N))), link=True)
    assert len(links(tmp_path / "out", folder)) == len(list(folder.glob("*.safetensors")))
    assert pico.raw(tmp_path / "out") == pico.raw(folder)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_system_that_refuses_links_is_one_clear_error_before_a_byte_is_copied(
    folder: Path, tmp_path: Path, monkeypatch, capsys, code: int
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    copied: list[object] = []
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "copy_file_range", lambda *args, **options: copied.append(args))
    with pytest.raises(
        OutputError, match=rf"refuses a hard link to .*{os.strerror(code)}[\s\S]*next:.*without|leave out"
    ):
        upscale(folder, tmp_path / "out", PLAN, max_shard_bytes=30_000, link=True)
    assert not copied and sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_another_file_system_is_named(folder: Path, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    out = elsewhere / f"depthup-test-{os.getpid()}"
    with pytest.raises(OutputError, match="allowed: an output on the same file system"):
        upscale(folder, out, PLAN, max_shard_bytes=30_000, link=True)
    assert not out.exists() and not partial_path(out).exists()


def test_a_resumed_run_links_again_and_copies_where_links_are_no_longer_wanted(folder: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", {"max_shard_bytes": 30_000, "resume": True}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for link in (True, False, True):
        upscale(folder, out, PLAN, link=link, **options)
        assert bool(links(out, folder)) == link
        raw = pico.raw(out)
        out.rename(partial_path(out))
    assert raw == pico.raw(partial_path(out)) and {path.name: path.read_bytes() for path in folder.iterdir()} == before
