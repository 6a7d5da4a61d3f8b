"""Rephrased questions by embeddings: vectors are those of transformers; windows, numbers and files are as promised."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from depthup.cli import main
from depthup.contamination.audit import Audit, merge_shards, run_audit
from depthup.contamination.benchmarks import Item
from depthup.contamination.embeddings import (
    LEAST,
    NEAR_MATH,
    WHOLE,
    WINDOW,
    Encoder,
    Nearness,
    identity_of,
    is_near,
    numbers_of,
    share_of_numbers,
    windows,
)

QUESTION = (
    "A train with 12 wagons leaves the old harbour station at 7 and carries 340 crates of oranges. How many per wagon?"
)
OTHER = QUESTION.replace("12", "15").replace("340", "90")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    tokenizer = pico.tiny_tokenizer(path)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    torch.manual_seed(3)
    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2,
                                     num_attention_heads=2, intermediate_size=32)  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(path)  # with a head, without a pooler
    return path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "tests" / "gsm8k"
    path.mkdir(parents=True)
    (path / "test.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "28"}) + "\n")
    return tmp_path / "tests"


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train"
    path.mkdir()
    for number in range(3):
        rows = [{"id": number, "text": QUESTION}, {"text": OTHER}, {"text": "short"}, 7]
        (path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_embeddings_are_the_mean_of_the_last_hidden_states(folder: Path) -> None:
    texts = ["one two", QUESTION, "x", OTHER * 3]
    found = Encoder(folder, "cpu").embed(texts)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)["input_ids"]
        with torch.inference_mode():
            mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        assert np.allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


@given(st.integers(0, 300), st.sampled_from([" ", "\n\n", " \t"]))
def test_windows_hold_every_word_and_end_where_the_text_ends(num_words: int, gap: str) -> None:
    text = gap + gap.join(f"w{k}" for k in range(num_words)) + gap
    found = [text[begin:end].split() for begin, end in windows(text)]
    if num_words < LEAST:
        assert found == []
        return
    assert found[0][0] == "w0" and found[-1][-1] == f"w{num_words - 1}"
    assert {word for words in found for word in words} == set(text.split())
    assert {len(words) for words in found} == ({num_words} if num_words <= WHOLE else {WINDOW})


def test_numbers_are_the_same_in_digits_and_words() -> None:
    assert numbers_of("$1,000.50, twelve and 3.0, half") == {"1000.5": 1, "12": 1, "3": 1, "2": 1}
    assert share_of_numbers("6 of 8 eggs for 2 people", "Six people, 8 eggs") == pytest.approx(2 / 3)
    assert share_of_numbers("no numbers", "6") == 0
    math, other = Item("gsm8k", "0", QUESTION, ""), Item("arc", "0", QUESTION, "")
    assert is_near(math, QUESTION, NEAR_MATH) and not is_near(math, OTHER, 0.99) and not is_near(other, QUESTION, 0.85)


def test_places_are_bytes_of_the_field(folder: Path) -> None:
    encoder = Encoder(folder, "cpu")
    items = [Item("gsm8k", "0", QUESTION, ""), Item("gsm8k", "1", "Too short?", "")]
    nearness = Nearness(encoder, items, encoder.embed([QUESTION]))
    (near,) = nearness.find([[("a", OTHER)], [("a", "x"), ("b", f"  é\n{QUESTION} ")]])
    assert (near.row, near.field, near.item) == (1, "b", 0) and near.cosine >= NEAR_MATH
    assert f"  é\n{QUESTION} ".encode()[near.begin : near.end].decode() == f"é\n{QUESTION}"


def test_rows_that_words_do_not_find_are_flagged_and_shards_go_together(
    folder: Path, train: Path, data_dir: Path, tmp_path: Path
) -> None:
    audit = Audit((str(train),), ("gsm8k",), data_dir, ("name",), embeddings=folder)
    report = run_audit(audit, tmp_path / "one")
    rows = [json.loads(line) for line in (tmp_path / "one" / "flagged.jsonl").read_text().splitlines()]
    assert [(row["number"], row["row"]["id"]) for row in rows] == [(1, 0), (1, 1), (1, 2)]
    leak = rows[0]["leaks"][0]
    assert (leak["rule"], leak["item"], leak["score"], leak["spans"][0]["field"]) == ("embedding", "0", 1.0, "text")
    assert report["benchmarks"]["gsm8k"]["rows_by_rule"] == {"embedding": 3} and report["num_kept"] == 9
    assert report["identity"]["embeddings"] == identity_of(folder)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "flagged.jsonl", "items.jsonl", "kept.jsonl", "report.json",
    ]  # fmt: skip
    for number in (1, 2):
        run_audit(Audit(audit.paths, audit.against, data_dir, audit.rules, (), (number, 2), folder), tmp_path / "two")
    merge_shards(tmp_path / "two")
    for name in ("flagged.jsonl", "kept.jsonl", "items.jsonl", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    plain = run_audit(Audit(audit.paths, audit.against, data_dir), tmp_path / "plain")
    assert plain["identity"]["embeddings"] is None
    assert set(plain["benchmarks"]["gsm8k"]["rows_by_rule"]) == {"exact", "numbers"}


@pytest.mark.slow
def test_two_workers_write_what_one_writes(folder: Path, train: Path, data_dir: Path, tmp_path: Path) -> None:
    audit = Audit((str(train),), ("gsm8k",), data_dir, ("name",), embeddings=folder)
    for workers in (1, 2):
        run_audit(audit, tmp_path / str(workers), workers)
    for name in ("flagged.jsonl", "kept.jsonl", "items.jsonl", "report.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_stopped_run_keeps_the_embeddings_of_the_test_questions(
    folder: Path, train: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit((str(train),), ("gsm8k",), data_dir, ("name",), embeddings=folder)
    (train / "2.jsonl").write_text("{no json")
    assert main_of(train, data_dir, tmp_path / "out", str(folder)) == 2
    asked = []
    embed = Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, texts, *rest: asked.extend(texts) or embed(self, texts, *rest))
    (train / "2.jsonl").write_text("")
    run_audit(audit, tmp_path / "out")
    assert len(asked) == 4  # the windows of two files; not the test question again


def main_of(train: Path, data_dir: Path, out: Path, model: str) -> int:
    return main(["decontaminate", str(train), "--against", "gsm8k", "--data-dir", str(data_dir), "--rules", "name",
                 "--workers", "1", "--out", str(out), "--embeddings", model])  # fmt: skip


def test_what_is_no_encoder_is_told(
    train: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for model, problem in ((str(empty), "config.json"), (str(tmp_path / "none"), "there is no folder")):
        assert main_of(train, data_dir, tmp_path / "out", model) == 2
        told = capsys.readouterr().err
        assert problem in told and not re.search("Traceback", told)
