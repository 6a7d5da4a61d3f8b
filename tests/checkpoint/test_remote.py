"""Names: a folder, a hub model, a URL. Of what is not here only config, index and headers are fetched."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pico
import pytest
import servers
from huggingface_hub import constants
from servers import Hub, Server, drop, garble, redirect, serving, status, whole

from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME, open_checkpoint
from depthup.checkpoint.remote import find_base, local_folder, open_base
from depthup.cli import main
from depthup.costs import base_costs
from depthup.errors import CheckpointError


@pytest.fixture
def model(base, tmp_path: Path) -> Path:
    """A sharded checkpoint with a tokenizer, in the folder that is served."""
    folder = base("llama", shard_size="60KB", tokenizer=True)
    shutil.copytree(folder, tmp_path / "served", dirs_exist_ok=True)
    (tmp_path / "served" / "LICENSE").write_text("free\n")
    (tmp_path / "served" / "README.md").write_text("a card\n")
    return tmp_path / "served"


@pytest.fixture
def hub(tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub and its CDN, as HF_ENDPOINT."""
    (tmp_path / "served").mkdir()
    with serving(Server(tmp_path / "served")) as cdn, serving(Hub(tmp_path / "served", cdn=cdn)) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def carried_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"config.json", "README.md", INDEX_NAME} - {
        path.name for path in folder.glob("*.safetensors")
    }  # fmt: skip


# -- a URL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_url_gives_the_checkpoint_that_the_folder_gives(server: Server, model: Path, slash: str) -> None:
    (opened, local) = open_base(server.url + slash), open_checkpoint(model)
    assert (opened.config, opened.tensors, opened.metadata) == (local.config, local.tensors, local.metadata)
    assert opened.remote.revision is None and opened.remote.name == server.url
    assert {file.name for file in opened.remote.carried} == carried_names(model)
    for shard, start in opened.remote.headers.items():
        data = (model / shard).read_bytes()
        assert data.startswith(start) and len(start) == 8 + int.from_bytes(data[:8], "little")


def test_code_that_the_config_names_is_had_too(server: Server, base) -> None:
    shutil.copytree(base("llama"), server.root, dirs_exist_ok=True)
    named = {"AutoConfig": "configuration_own.OwnConfig", "AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    pico.edit_config(server.root, auto_map=named)
    for name in ("configuration_own.py", "tokenization_own.py", "other.py"):
        (server.root / name).write_text("pass\n")
    names = {file.name for file in open_base(server.url).remote.carried}
    assert {"configuration_own.py", "tokenization_own.py"} <= names and "other.py" not in names


def test_a_header_longer_than_the_first_request_is_had_whole(server: Server, tmp_path: Path) -> None:
    (server.root / "config.json").write_text('{"num_hidden_layers": 1}')
    names = [f"model.layers.0.{i:0100}" for i in range(1000)]
    pico.write_tensors(server.root / SINGLE_NAME, {name: pico.Raw("U8", (1,), b"x") for name in names})
    assert list(open_base(server.url).tensors) == names
    assert len(server.asked(f"/{SINGLE_NAME}")) == 2


def break_model(folder: Path, kind: str) -> None:
    index, first = folder / INDEX_NAME, sorted(folder.glob("*.safetensors"))[0]
    if kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "no JSON":
        (folder / "config.json").write_text("<html>")
    elif kind == "no weights":
        index.unlink()
    elif kind == "a shard is missing":
        first.unlink()
    elif kind == "a shard is cut":
        first.write_bytes(first.read_bytes()[:-1])
    elif kind == "a shard is empty":
        first.write_bytes(b"")
    elif kind == "no header":
        first.write_bytes(b"\xff" * 100)
    elif kind == "the index leaves the folder":
        index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    elif kind == "the index names what is not there":
        index.write_text(index.read_text().replace("model.norm.weight", "model.other.weight"))


BROKEN = {
    "no config": "there is no http.*/config.json",
    "no JSON": "config.json is no JSON",
    "no weights": "has no model.safetensors and no model.safetensors.index.json",
    "a shard is missing": "1 of 3 shards are missing|1 of 4 shards are missing|1 of .* shards are missing",
    "a shard is cut": "it is truncated",
    "a shard is empty": "1 of .* shards are missing",
    "no header": "not a whole safetensors file: its header should have",
    "the index leaves the folder": r"names the file '\.\./\.\./secret\.safetensors'",
    "the index names what is not there": "model.norm.weight|model.other.weight",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_found_by_its_headers(server: Server, model: Path, kind: str) -> None:
    break_model(model, kind)
    with pytest.raises(CheckpointError, match=BROKEN[kind]) as caught:
        open_base(server.url)
    assert caught.value.next_step
    assert not any("secret" in request.path for request in server.requests)


@pytest.mark.parametrize(
    ("fault", "message"),
    [(whole, "does not serve byte ranges"), (status(500), "answers 500"), (redirect("/config.json"), "loop"),
     (status(401), "refused: 401")],
)  # fmt: skip
def test_a_server_that_cannot_be_used_is_told(server: Server, model: Path, fault: servers.Fault, message: str) -> None:
    server.every["/config.json"] = fault
    with pytest.raises(CheckpointError, match=message):
        open_base(server.url)


def test_offline_is_offline(server: Server, model: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        open_base(server.url)
    with pytest.raises(CheckpointError, match="there is no folder owner/model, and the hub model could not be had"):
        open_base("owner/model")
    assert server.requests == []


@pytest.mark.parametrize("name", ["gone", "a/b/c", "ftp://x/y", "https://user:secret@host/x", "http://h/x?y=1"])
def test_other_names_are_refused_with_what_is_allowed(online: None, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder[\s\S]*allowed: .*owner/name.*https://"):
        open_base(name)


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["owner/model", "owner/model@main", f"owner/model@{servers.COMMIT}"])
def test_a_hub_model_gives_the_checkpoint_that_its_download_gives(hub: Hub, model: Path, name: str) -> None:
    opened, local = open_base(name), open_checkpoint(model)
    assert (opened.config, opened.tensors, opened.metadata) == (local.config, local.tensors, local.metadata)
    assert opened.remote.revision == servers.COMMIT and opened.remote.name == "owner/model"
    assert {file.name for file in opened.remote.carried} == carried_names(model)
    for shard in opened.remote.headers:
        file = opened.remote.files[shard]
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.num_bytes == (model / shard).stat().st_size
    assert all(f"/resolve/{servers.COMMIT}/" in request.path for request in hub.requests if "resolve/" in request.path)


def test_of_a_plan_only_config_and_headers_are_fetched(hub: Hub, model: Path, tmp_path: Path, capsys) -> None:
    """Weights of 2 MB: what is fetched of them are the first 64 KiB."""
    shutil.rmtree(model)
    pico.checkpoint(model, "llama", num_layers=7, intermediate_size=4096)
    size = (model / SINGLE_NAME).stat().st_size
    assert size > 2_000_000
    assert main(["layers", "owner/model", "--remove", "2"]) == 0
    assert "7 -> 10 layers" in capsys.readouterr().out
    assert main(["upscale", "owner/model", str(tmp_path / "out"), "--remove", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "was not written" in said and f"owner/model at commit {servers.COMMIT[:12]}: {size:,} bytes in 1 f" in said
    assert hub.num_bytes + hub.cdn.num_bytes < 2 * (1 << 16) + 10_000
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_of_a_recipe_that_is_planned_on_hardware_only_config_and_headers_are_fetched(
    hub: Hub, model: Path, tmp_path: Path, capsys
) -> None:
    shutil.rmtree(model)
    pico.checkpoint(model, "llama", num_layers=7, intermediate_size=4096)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: far\nstages: {target: {kind: upscale, base: owner/model, remove: 2}}\n")
    assert main(["plan", str(recipe), "--hardware", "h100", "--json"]) == 0
    layer = sum(p.numel() for p in pico.load(model).model.layers[0].parameters())
    planned = json.loads(capsys.readouterr().out)["stages"][0]["num_parameters"]
    assert planned == open_checkpoint(model).num_parameters + 3 * layer
    assert hub.num_bytes + hub.cdn.num_bytes < (1 << 16) + 10_000


def test_costs_of_a_hub_model_without_safetensors_come_from_its_config(hub: Hub, model: Path) -> None:
    for path in (*model.glob("*.safetensors"), model / INDEX_NAME):
        path.unlink()
    assert base_costs("owner/model").num_layers == pico.NUM_LAYERS
    with pytest.raises(CheckpointError, match="owner/model has no model"):
        open_base("owner/model")


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(hub: Hub, model: Path, monkeypatch) -> None:
    hub.token = "hf_secret"
    with pytest.raises(CheckpointError, match=r"owner/model.*refused: 401[\s\S]*hf auth login"):
        open_base("owner/model")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    open_base("owner/model")
    assert hub.cdn.requests and not any("authorization" in request.headers for request in hub.cdn.requests)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with pytest.raises(CheckpointError, match="refused: 401"):
        open_base("owner/model")


@pytest.mark.parametrize(
    ("name", "message"), [("owner/other", "Repository not found"), ("owner/model@v9", "Invalid rev")]
)
def test_an_unknown_model_or_revision_is_told_with_the_hubs_words(
    hub: Hub, model: Path, name: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"there is no folder owner/.* could not be had: .*{message}"):
        open_base(name)


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_small_file_that_is_not_what_the_hub_declares_is_refused(hub: Hub, model: Path, name: str) -> None:
    hub.every[f"/api/resolve-cache/models/{servers.COMMIT}/{name}"] = garble(40)
    with pytest.raises(CheckpointError, match="arrived with the checksum"):
        open_base("owner/model")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"sha": "main"}', b'{"sha": null}'])
def test_an_endpoint_that_is_no_hub_is_told(hub: Hub, model: Path, body: bytes) -> None:
    hub.every["/api/models/owner/model/revision/main"] = lambda handler, answer: servers.Answer(200, {}, body)
    with pytest.raises(CheckpointError, match=r"does not answer as the Hugging Face Hub does[\s\S]*HF_ENDPOINT"):
        open_base("owner/model")


def test_a_hub_that_stumbles_is_asked_again(hub: Hub, model: Path) -> None:
    hub.faults["/api/models/owner/model/revision/main"] = [status(503, Retry_After="0"), drop(5)]
    hub.faults[f"/api/models/owner/model/tree/{servers.COMMIT}"] = [status(429, RateLimit='"api";r=0;t=0')]
    assert open_base("owner/model").tensors


def test_an_adapter_of_the_hub_is_fetched(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "adapter_config.json").write_text("{}")
    (hub.root / "adapter_model.safetensors").write_bytes(b"weights")
    found = find_base("owner/model")
    assert isinstance(found, Path) and (found / "adapter_model.safetensors").read_bytes() == b"weights"


def test_what_the_cache_holds_whole_is_not_fetched_again(hub: Hub, model: Path) -> None:
    """The cache is filled by the hub's own library, from the same server."""
    cached = local_folder("owner/model")
    assert {path.name for path in cached.iterdir()} == {path.name for path in model.iterdir()} - {"README.md"}
    num_bytes = hub.cdn.num_bytes
    opened = open_base("owner/model")
    assert opened.remote is None and opened.folder == cached and hub.cdn.num_bytes == num_bytes
    (cached / "tokenizer.json").unlink()  # as when only the model was used
    assert open_base("owner/model").remote is None and (cached / "tokenizer.json").exists()
    sorted(cached.glob("*.safetensors"))[-1].unlink()
    assert open_base("owner/model").remote is not None


def test_the_cache_of_another_commit_is_not_taken(hub: Hub, model: Path) -> None:
    local_folder("owner/model")
    hub.commit = "f" * 40
    assert open_base("owner/model").remote.revision == "f" * 40


def test_a_hub_out_of_reach_leaves_what_the_cache_holds(hub: Hub, model: Path) -> None:
    cached = local_folder("owner/model")
    hub.every["/api/models/owner/model/revision/main"] = status(500)
    assert open_base("owner/model").folder == cached
    shutil.rmtree(cached)
    with pytest.raises(CheckpointError, match=r"could not be had: .* answers 500"):
        open_base("owner/model")
