"""Backends by name, the mock, chats, and a scorer on top of any of them."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pico
import pytest
from generation.faulty import serving

from depthup.errors import CheckpointError, DepthupError
from depthup.evaluation.backend_scorer import BackendScorer
from depthup.evaluation.requests import Completion, Continuation, Whole
from depthup.generation.backend import Generated, Sampling, Unanswered, open_backend
from depthup.generation.greedy import complete
from depthup.generation.local import LocalBackend
from depthup.generation.mock import MockBackend
from depthup.models import load_model, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.checkpoint(tmp_path_factory.mktemp("backend") / "model", num_layers=2, tokenizer=True)


def test_local_answers_tell_their_tokens_and_why_they_ended(folder: Path) -> None:
    backend = open_backend(f"local:{folder}", device="cpu")
    heard: dict[int, Generated] = {}
    samplings = [Sampling(6), Sampling(3), Sampling(9, temperature=1.0, sample=2)]
    texts = backend.generate(["The user", "What", "What"], samplings, heard.__setitem__)
    assert [heard[i].text for i in range(3)] == texts and backend.identity.endswith(str(folder))
    assert [heard[i].completion_tokens for i in range(3)] == [6, 3, 9] and heard[0].finish_reason == "length"
    stop = texts[0][2:4]
    assert backend.generate(["The user"], Sampling(6, stop=(stop,)), heard.__setitem__) == [texts[0].split(stop)[0]]
    assert heard[0].finish_reason == "stop"
    with pytest.raises(DepthupError, match="2 samplings for 1 prompts"):
        backend.generate(["a"], [Sampling(), Sampling()])


def test_chats_are_rendered_by_the_template(folder: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    backend = LocalBackend(model, tokenizer)
    assert backend.generate([messages], Sampling(5)) == backend.generate([text], Sampling(5))
    chat = LocalBackend(model, tokenizer, chat=True)
    assert chat.generate(["Hello"], Sampling(5)) == backend.generate([messages[1:]], Sampling(5))
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="no chat template"):
        backend.generate([messages], Sampling(5))


def test_the_mock_answers_by_table_sample_and_function(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps({"one": "1", "two": ["2", "II"]}))
    table = open_backend(f"mock:{tmp_path / 'table.json'}")
    assert table.generate(["one", "two", "two"], [Sampling(), Sampling(), Sampling(sample=1)]) == ["1", "2", "II"]
    with pytest.raises(Unanswered, match="no answer to 'three'"):
        table.generate(["one", "three"], Sampling())
    assert open_backend("mock:echo").generate([[{"role": "user", "content": "a b c"}]], Sampling(2)) == ["b c"]
    (tmp_path / "list.json").write_text("[]")
    for wrong, message in ((tmp_path / "list.json", "is no table"), (tmp_path / "none.json", "cannot be read")):
        with pytest.raises(DepthupError, match=message):
            open_backend(f"mock:{wrong}")


def test_backends_of_other_packages_are_found_by_their_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package as pip installs it: a module, and its metadata beside it."""
    (tmp_path / "shout.py").write_text(
        "class Shout:\n"
        "    def __init__(self, rest): self.identity = 'shout:' + rest\n"
        "    def generate(self, prompts, sampling, done=None): return [p.upper() for p in prompts]\n"
        "def broken(rest): raise ValueError('no such voice')\n"
    )
    info = tmp_path / "shout-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[depthup.backends]\nshout = shout:Shout\nbroken = shout:broken\nodd = shout:str\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    try:
        backend = open_backend("shout:loud")
        assert backend.identity == "shout:loud" and backend.generate(["hi"], Sampling()) == ["HI"]
        with pytest.raises(DepthupError, match="does not open 'x': ValueError: no such voice"):
            open_backend("broken:x")
        with pytest.raises(DepthupError, match=r"did you mean 'shout'(.|\n)*shout:\.\.\."):
            open_backend("shoot:x")
    finally:
        sys.modules.pop("shout", None)


def test_specs_that_name_nothing_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DepthupError, match=r"did you mean 'local'(.|\n)*http://HOST:PORT/v1#MODEL"):
        open_backend("locl:folder")
    with pytest.raises(DepthupError, match="there is no folder"):
        open_backend(f"local:{tmp_path / 'none'}")
    with serving() as faulty:
        assert open_backend(f"{faulty.url}#tiny").generate(["a"], Sampling()) == ["<a/0>"]


def test_a_scorer_runs_through_any_backend(folder: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    requests = [Completion(f"Question: {i}\nAnswer:", ("the", "</s>"), 5 + i) for i in range(4)]
    heard: dict[int, Any] = {}
    local = BackendScorer(LocalBackend(model, tokenizer)).answer(requests, heard.__setitem__)
    assert local == complete(
        model, tokenizer, [tokenizer(request.context)["input_ids"] for request in requests],
        stop=[request.stop for request in requests], max_new_tokens=[request.max_new_tokens for request in requests],
    )  # fmt: skip
    assert heard == dict(enumerate(local))
    with serving() as faulty:
        from depthup.generation.server import ServerBackend

        served = BackendScorer(ServerBackend(faulty.url)).answer(requests)
        assert served[1] == "<Question: 1\nAnswer:/0>" and faulty.bodies[0]["stop"] == ["the", "</s>"]
    for other in (Continuation("a", "b"), Whole("a")):
        with pytest.raises(DepthupError, match=r"1 of 5 requests ask how likely(.|\n)*gsm8k"):
            BackendScorer(MockBackend({})).answer([*requests, other])
    with pytest.raises(Unanswered):
        BackendScorer(MockBackend({})).answer(requests)
