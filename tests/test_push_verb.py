"""`depthup push`: what goes, what must not, and that nothing goes twice, against a stand-in for the Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import servers
from huggingface_hub import ModelCard, constants

from depthup.artifacts.store import Store
from depthup.checkpoint.upload import SECRETS, File, find_leaks, plan_upload
from depthup.cli import main
from depthup.errors import CheckpointError
from depthup.pipeline import survey
from depthup.recipe import load_recipe, parse_recipe

# The hub's library hands a file to httpx in a way that httpx is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_" + "x" * 34
RECIPE = """
name: tiny
data:
  docs: {source: files, paths: [%s], held_out: 0.3, licence: cc0-1.0}
stages:
  base: {kind: import, random: {num_layers: 4, hidden_size: 16}}
  deep: {kind: upscale, base: base, remove: 1}
  base-loss: &loss {kind: evaluate, model: base, data: docs, tokens: 256, row_tokens: 64}
  deep-loss: {<<: *loss, model: deep}
  page: {kind: report, title: Tiny, evaluations: [base-loss, deep-loss], licence: mit, base_model: owner/base}
"""


@dataclass
class Standin:
    """What the Hub would keep: large objects by digest, committed files by name; and what it was asked."""

    objects: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)  # digests of uploads, in order
    commits: int = 0
    private: bool | None = None
    is_public: bool = False
    fail_after: int | None = None  # uploads, then the connection is refused
    tokens: set[str] = field(default_factory=set)
    cards: list[str] = field(default_factory=list)  # that were to be validated
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Standin

    def answer(self, value: Any = None, status: int = 200) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def do_POST(self) -> None:
        hub, path, body = self.hub, self.path.partition("?")[0], self.body()
        hub.tokens.add(self.headers.get("Authorization", ""))
        if path == "/api/repos/create":
            asked = json.loads(body)
            hub.private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.answer({"url": f"{hub.url}/me/tiny", "id": "me/tiny"})
        elif path == "/api/validate-yaml":
            hub.cards.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [{"path": one["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                     for one in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = []
            for one in json.loads(body)["objects"]:
                actions = {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}
                objects.append(one | ({} if one["oid"] in hub.objects else {"actions": actions}))
            self.answer({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            hub.commits += 1
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "lfsFile":
                    value = line["value"]
                    assert value["oid"] in hub.objects
                    hub.files[value["path"]] = {
                        "size": value["size"],
                        "oid": "0" * 40,
                        "lfs": {"oid": value["oid"], "size": value["size"], "pointerSize": 9},
                    }
                elif line["key"] == "file":
                    data = base64.b64decode(line["value"]["content"])
                    hub.files[line["value"]["path"]] = {"size": len(data), "oid": servers.git_sha1(data), "data": data}
            self.answer(
                {"commitUrl": f"{hub.url}/me/tiny/commit/{1:040}", "commitOid": "1" * 40, "pullRequestUrl": None}
            )
        else:
            self.answer({"error": path}, 404)

    def do_PUT(self) -> None:
        hub, body = self.hub, self.body()
        if hub.fail_after is not None and len(hub.sent) >= hub.fail_after:
            self.answer({"error": "no more"}, 400)
            return
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == digest
        hub.objects[digest] = body
        hub.sent.append(digest)
        self.answer()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/me/tiny":
            self.answer({"id": "me/tiny", "private": bool(self.hub.private) and not self.hub.is_public})
        elif path == "/api/models/me/tiny/tree/main":
            self.answer([{"type": "file", "path": name} | {key: value for key, value in one.items() if key != "data"}
                         for name, one in self.hub.files.items()])  # fmt: skip
        else:
            self.answer({"error": path}, 404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    standin = Standin()
    with servers.Threads(("127.0.0.1", 0), type("Hub", (Handler,), {"hub": standin})) as listening:
        standin.url = f"http://127.0.0.1:{listening.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", standin.url)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield standin
        listening.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The options that name a recipe whose stages are made."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [json.dumps({"text": f"Page {i} tells of {i * i} things and of little else. " * 4}) for i in range(30)]
    (folder / "docs.jsonl").write_text("\n".join(rows))
    (folder / "recipe.yaml").write_text(RECIPE % (folder / "docs.jsonl"))
    options = ("--recipe", str(folder), "--store", str(folder / "store"))
    assert main(["run", str(folder), *options[2:], "--device", "cpu"]) == 0
    return options


@pytest.fixture
def model(base: Any, tmp_path: Path) -> Path:
    """A checkpoint of several files, with a card."""
    folder = tmp_path / "model"
    shutil.copytree(base("llama", shard_size="60KB", tokenizer=True), folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    return folder


# -- what goes --------------------------------------------------------------------------------------------------------


def test_dry_run_names_every_file_with_its_size_and_asks_nobody(
    made: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)  # and HF_HUB_OFFLINE is set: any request would fail
    assert main(["push", "deep", "me/tiny", *made, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "me/tiny (public)" in told and told.endswith("dry run: nothing was sent\n")
    lines = {line.split()[0] for line in told.splitlines() if line.startswith("  ")}
    for name in ("README.md", "config.json", "model.safetensors", "depthup.json", "report/index.html",
                 "report/report.md", "report/figures/layers.svg", "report/CITATION.bib"):  # fmt: skip
        assert name in lines
    assert "not sent: record.json" in told and not [name for name in lines if "record.json" in name]


def test_a_stage_is_published_with_its_card_and_report(made: tuple[str, ...], hub: Standin) -> None:
    assert main(["push", "deep", "me/tiny", *made, "--private"]) == 0
    assert hub.private is True and hub.commits == 1 and hub.tokens == {f"Bearer {TOKEN}"}
    card = ModelCard(hub.files["README.md"]["data"].decode())
    assert card.data.license == "mit" and card.data.base_model == "owner/base" and "cc0-1.0" not in card.text
    assert "6 layers" in card.text and "owner/base" in card.text and "depth-up-scaling" in card.data.tags
    assert 'name = "me/tiny"' in card.text
    assert b"In a minute" in hub.files["report/index.html"]["data"]


def test_a_folder_goes_with_its_own_card(model: Path, hub: Standin) -> None:
    assert main(["push", str(model), "me/tiny"]) == 0
    assert hub.files["README.md"]["data"] == (model / "README.md").read_bytes()
    shards = {path.name: path.read_bytes() for path in model.glob("*.safetensors")}
    assert len(shards) > 1
    assert {name: hub.objects[hub.files[name]["lfs"]["oid"]] for name in shards} == shards


def test_nothing_goes_twice(model: Path, hub: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    num_shards = len(list(model.glob("*.safetensors")))
    hub.fail_after = 1
    assert main(["push", str(model), "me/tiny"]) == 2
    assert "run it again" in capsys.readouterr().err and hub.commits == 0 and len(hub.sent) == 1
    hub.fail_after = None
    assert main(["push", str(model), "me/tiny"]) == 0
    assert len(hub.sent) == num_shards == len(set(hub.sent))  # the first was kept
    assert main(["push", str(model), "me/tiny"]) == 0
    assert hub.commits == 1 and len(hub.sent) == num_shards
    (model / "generation_config.json").write_text('{"max_new_tokens": 7}')
    capsys.readouterr()
    assert main(["push", str(model), "me/tiny"]) == 0
    told = capsys.readouterr()
    assert (
        "sent: generation_config.json" in told.out and told.out.count("\nsent: ") + told.out.startswith("sent: ") == 1
    )
    assert hub.commits == 2 and len(hub.sent) == num_shards


# -- what must not go -------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["push", *arguments]) == 2
    return capsys.readouterr().err


def test_what_check_faults_is_not_sent(model: Path, hub: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] + 1}))
    assert "is not whole" in refused(capsys, str(model), "me/tiny")
    assert hub.commits == 0 and hub.private is None


def test_a_card_must_state_a_licence(model: Path, hub: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "README.md").write_text("# mine\n")
    assert "states no licence" in refused(capsys, str(model), "me/tiny")
    (model / "README.md").unlink()
    assert "states no licence" in refused(capsys, str(model), "me/tiny", "--dry-run")
    assert main(["push", str(model), "me/tiny", "--licence", "apache-2.0"]) == 0
    card = ModelCard(hub.files["README.md"]["data"].decode())
    assert card.data.license == "apache-2.0" and "layers" in card.text
    assert not (model / "README.md").exists()  # the folder is as it was


@pytest.mark.parametrize(
    "line", ['"x": "hf_%s"' % ("a1" * 17), "key=sk-ant-%s" % ("b2" * 16), "AKIA" + "Z9" * 8, "ghp_" + "c3" * 18,
             "-----BEGIN RSA PRIVATE KEY-----", "https://me:secret@host.org/x",
             '"_name_or_path": "/home/me/models/base"', "see /data/run-7/out.txt.",
             r'"path": "C:\\Users\\me"', "AIza" + "d" * 35, "xoxb-" + "e" * 24],
)  # fmt: skip
def test_secrets_and_paths_are_found(tmp_path: Path, line: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(f"{{ {line} }}")
    [leak] = find_leaks([File(path, "config.json", 1)])
    assert leak.startswith("config.json: ") and "a1a1a1a1" not in leak  # a secret is not told
    assert leak.partition(": ")[2].startswith(("a ", "an "))
    told = leak.rpartition(", ")[2].removesuffix("...")
    assert find_leaks([File(path, "config.json", 1)], allowed=[told]) == []


@pytest.mark.parametrize(
    "line", ["https://huggingface.co/data/models/x", "a/data/b", "and/or /usr/bin/env", "~/data/x", "hf_short",
             "1/2 km", "{{ bos_token }}/{% if tmp/x %}", "layers/home/x", "sk-learn"],
)  # fmt: skip
def test_what_is_neither_is_no_leak(tmp_path: Path, line: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(line)
    assert find_leaks([File(path, "README.md", 1)]) == []


def test_secrets_are_found_in_headers_of_weights_and_paths_not_in_vocabularies(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"from": "/home/me/base"}}).encode()
    weights, vocabulary = tmp_path / "model.safetensors", tmp_path / "tokenizer.json"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"/home/me/in/weights")
    vocabulary.write_text('{"/home/me": 1}')
    files = [File(weights, weights.name, 1), File(vocabulary, vocabulary.name, 1)]
    assert find_leaks(files) == ["model.safetensors: a path of this machine, /home/me/base"]
    vocabulary.write_text(json.dumps({"x": "hf_" + "k" * 34}))
    assert len(find_leaks(files)) == 2 and all(SECRETS)


def test_leaks_stop_the_push_until_they_are_allowed(
    model: Path, hub: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\nTrained in /scratch/me/run.\n")
    assert "README.md: a path of this machine, /scratch/me/run" in refused(capsys, str(model), "me/tiny")
    assert hub.commits == 0
    assert main(["push", str(model), "me/tiny", "--allow", "/scratch/me"]) == 0 and hub.commits == 1


def test_private_is_not_sent_to_a_public_repository(
    model: Path, hub: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.is_public = True
    assert "is public, and --private is asked for" in refused(capsys, str(model), "me/tiny", "--private")
    assert hub.commits == 0 and not hub.sent


def test_bad_names_and_missing_things_are_told(
    model: Path, made: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "HF_TOKEN is not set" in refused(capsys, str(model), "me/tiny")
    assert "'tiny' is no name on the Hub" in refused(capsys, str(model), "tiny")
    assert "add --recipe" in refused(capsys, "nowhere", "me/tiny")
    assert "did you mean 'deep'" in refused(capsys, "deap", "me/tiny", *made)
    assert "makes no model" in refused(capsys, "page", "me/tiny", *made)
    with pytest.raises(CheckpointError, match="no name on the Hub"):
        plan_upload(model, "a/../b")


# -- the report beside it ---------------------------------------------------------------------------------------------


def test_report_is_copied_out_whole(made: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "site"
    assert main(["report", made[1], *made[2:], "--out", str(out)]) == 0
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"index.html", "report.md", "CITATION.bib", "model/README.md", "figures/layers.svg"} <= names
    assert "cc0-1.0" not in (out / "report.md").read_text()  # what is only measured on trains nothing
    assert "record.json" not in names and str(tmp_path) not in (out / "index.html").read_text()
    card = ModelCard((out / "model" / "README.md").read_text())
    assert card.data.license == "mit" and "cc0-1.0" not in card.data.to_dict()
    capsys.readouterr()
    assert main(["report", made[1], *made[2:], "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_licence_that_the_recipe_states_changes_the_page_alone(made: tuple[str, ...], tmp_path: Path) -> None:
    value = load_recipe(made[1]).model_dump(mode="json", exclude_none=True)
    store = Store(Path(made[3]))
    assert {node.state for node in survey(parse_recipe(value), store).values()} == {"cached"}
    value["data"]["docs"]["licence"] = "mit"
    states = {name: node.state for name, node in survey(parse_recipe(value), store).items()}
    assert [name for name, state in states.items() if state != "cached"] == ["page"]
