"""A store with a mirror: what lies there counts as made, comes when it is needed, and is whole or not there at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from depthup.artifacts.mirror import Mirror
from depthup.artifacts.record import Record
from depthup.artifacts.store import Store
from depthup.cli import main
from depthup.errors import OutputError, Stopped
from depthup.files import partial_path
from depthup.pipeline import run, survey
from depthup.recipe import parse_recipe


def recipe(steps: int = 3, tokens: int = 256, **trained: object) -> Any:
    loss = {"kind": "evaluate", "data": "docs", "tokens": tokens, "row_tokens": 64}
    return parse_recipe({
        "name": "test",
        "data": {"docs": {"source": "installed-docs", "max_documents": 20, "held_out": 0.2}},
        "stages": {
            "base": {"kind": "import", "random": {"num_layers": 2, "hidden_size": 32}},
            "target": {"kind": "upscale", "base": "base", "layers": "0-1,0-1"},
            "trained": {
                "kind": "pretrain", "model": "target", "data": "docs", "steps": steps, "rows_per_step": 2,
                "row_tokens": 64, "learning_rate": 1e-3, "eval_tokens": 256, **trained,
            },
            "loss": {**loss, "model": "trained"},
            "page": {"kind": "report", "title": "Mirrored", "evaluations": ["loss"]},
        },
    })  # fmt: skip


def make(wanted: Any, root: Path, address: Path) -> tuple[Store, list[str]]:
    store, lines = Store(root, Mirror(str(address))), []
    run(wanted, store, device="cpu", progress=False, tell=lines.append)
    return store, lines


def weights_in(root: Path) -> set[str]:
    return {path.parents[1].name for path in root.rglob("model.safetensors") if ".light" not in path.parts}


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    """A mirror that one machine has filled, and that machine's store."""
    address = tmp_path_factory.mktemp("mirror")
    return address, make(recipe(), tmp_path_factory.mktemp("first"), address)[0]


def test_another_machine_makes_nothing_again_and_fetches_the_page_alone(mirrored, tmp_path: Path) -> None:
    address, first = mirrored
    store, lines = make(recipe(), tmp_path / "second", address)
    assert all("cached" in line for line in lines)
    assert weights_in(store.root) == set()
    pages = [next(root.glob("page/*/index.html")) for root in (first.root, store.root)]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_changed_stage_fetches_its_own_input_and_no_more(mirrored, tmp_path: Path, monkeypatch) -> None:
    address, first = mirrored
    monkeypatch.setattr("depthup.artifacts.mirror.LIGHT_BYTES", 4096)  # the models of this test are small
    store, lines = make(recipe(tokens=320), tmp_path / "second", address)
    assert [line.split()[1] for line in lines if "done in" in line] == ["loss", "page"]
    assert weights_in(store.root) == {"trained"}
    here, there = (root / "trained" for root in (store.root, first.root))
    for path in sorted(there.glob("*/*")):
        if path.is_file() and not path.parent.is_symlink():
            assert (here / path.parent.name / path.name).read_bytes() == path.read_bytes()
    assert Mirror(str(address)).find("loss", survey(recipe(tokens=320), store)["loss"].fingerprint) is not None


def test_a_stopped_stage_goes_on_where_another_machine_left_it(tmp_path: Path, monkeypatch) -> None:
    address, wanted = tmp_path / "mirror", recipe(steps=6, checkpoint_every=1)
    whole, _ = make(wanted, tmp_path / "whole", tmp_path / "other")
    stop = tmp_path / "stop"
    stop.touch()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setenv("DEPTHUP_STOP_FILE", str(stop))
        make(wanted, tmp_path / "first", address)
    second = Store(tmp_path / "second", Mirror(str(address)))
    assert survey(wanted, second)["trained"].state == "partial"
    second, lines = make(wanted, tmp_path / "second", address)
    assert any("(goes on)" in line for line in lines)
    results = [next(store.root.glob("trained/*/model.safetensors")).read_bytes() for store in (whole, second)]
    assert results[0] == results[1]  # as if it had never been stopped
    assert not list(address.glob("trained/.*"))


def test_what_is_not_whole_there_is_not_there(mirrored, tmp_path: Path) -> None:
    _, first = mirrored
    mirror, record = Mirror(str(tmp_path / "mirror")), first.newest("base")
    folder = first.folder("base", record.fingerprint)
    assert mirror.find("base", record.fingerprint) is None
    assert mirror.put("base", record.fingerprint, folder) and not mirror.put("base", record.fingerprint, folder)
    said = tmp_path / "mirror" / "base" / folder.name / "whole.json"
    value = json.loads(said.read_text())
    said.write_text("{")
    assert Mirror(mirror.address).find("base", record.fingerprint) is None
    said.write_text(json.dumps(value | {"files": value["files"] | {"config.json": 1}}))
    store = Store(tmp_path / "store", Mirror(mirror.address))
    assert isinstance(store.known("base", record.fingerprint), Record)
    with pytest.raises(OutputError, match=r"config\.json has [0-9]+ bytes, not 1"):
        store.bring("base", record.fingerprint)
    assert not store.folder("base", record.fingerprint).exists()
    assert not partial_path(store.folder("base", record.fingerprint)).exists()
    said.write_text(json.dumps(value | {"files": {"../outside": 1}}))
    with pytest.raises(OutputError, match="outside its folder"):
        Store(tmp_path / "store", Mirror(mirror.address)).known("base", record.fingerprint)


def test_an_upload_that_fails_keeps_what_is_made(mirrored, tmp_path: Path, monkeypatch) -> None:
    _, first = mirrored
    record = first.newest("base")
    mirror = Mirror(str(tmp_path / "mirror"))

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionResetError("peer went away")

    monkeypatch.setattr(mirror._files, "put_file", refuse)
    with pytest.raises(OutputError, match="what is made is kept here"):
        mirror.put("base", record.fingerprint, first.folder("base", record.fingerprint))
    monkeypatch.undo()
    assert Mirror(mirror.address).find("base", record.fingerprint) is None
    assert Mirror(mirror.address).put("base", record.fingerprint, first.folder("base", record.fingerprint))


def test_whatever_the_protocol_raises_is_one_message(tmp_path: Path, monkeypatch) -> None:
    class NoCredentials(Exception):
        pass

    def refuse(*_: object) -> None:
        raise NoCredentials("no key was found")

    mirror = Mirror(str(tmp_path))
    monkeypatch.setattr(mirror._files, "cat_file", refuse)
    with pytest.raises(OutputError, match="no key was found"):
        mirror.find("base", "0" * 64)


def test_an_address_that_cannot_be_opened_is_told(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("DEPTHUP_MIRROR", "")  # set by the run below, and so put back
    recipes = Path(__file__).parents[1] / "recipes" / "pico"
    assert main(["status", str(recipes), "--store", str(tmp_path), "--mirror", "s4://bucket/run"]) == 2
    assert "the mirror s4://bucket/run cannot be opened" in capsys.readouterr().err


def test_on_an_s3_server(mirrored, tmp_path: Path, monkeypatch) -> None:
    moto = pytest.importorskip("moto.server", reason="moto plays the server: pip install 'moto[server]' s3fs")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for key, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():  # fmt: skip
            monkeypatch.setenv(key, value)
        Mirror("s3://runs/one")._files.mkdir("runs")
        _, first = mirrored
        record = first.newest("trained")
        folder = first.folder("trained", record.fingerprint)
        assert Mirror("s3://runs/one").find("trained", record.fingerprint) is None
        assert Mirror("s3://runs/one").put("trained", record.fingerprint, folder)
        store = Store(tmp_path, Mirror("s3://runs/one"))
        assert store.known("trained", record.fingerprint) == record
        store.bring("trained", record.fingerprint)
        for path in folder.iterdir():
            assert (store.folder("trained", record.fingerprint) / path.name).read_bytes() == path.read_bytes()
    finally:
        server.stop()
