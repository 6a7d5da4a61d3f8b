"""The data card: every row is counted once, what is closed or not free is named, and the filter loses no row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from depthup.cli import main
from depthup.data.card import LICENCES, card_of, closed_by, commercial_use, kind_of, lineage_of, render_card

SYNTHETIC = {
    "prompt": "Q", "response": "A",
    "lineage": {"seed": "train/7", "source": "MATH train", "licence": "MIT", "made_by": "model",
                "backend": "local:/models/mistral", "verdict": {"equal": True, "method": "exact", "gold": "7"}},
}  # fmt: skip
FACTORY = {"lineage": {"seed": "f-1", "source": "factory", "licence": "Apache-2.0", "made_by": "factory",
                       "backend": "factory 1"}}  # fmt: skip
PEOPLE = {"generator": "human", "licence": "CC BY-NC 4.0"}
PAID = {"lineage": {**SYNTHETIC["lineage"], "backend": "https://api.openai.com/v1#gpt-4o"}}


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("text_davinci_003", "OpenAI"), ("GPT-4 Turbo", "OpenAI"), ("gpt-3.5-turbo", "OpenAI"), ("o3-mini", "OpenAI"),
        ("https://api.anthropic.com/v1#x", "Anthropic"), ("claude-3-opus", "Anthropic"), ("gemini-1.5-pro", "Google"),
        ("mistral-large", "Mistral AI, hosted only"), ("Qwen2.5-Max", "Alibaba, hosted only"),
        ("openai-community/gpt2", None), ("openai/gpt-oss-20b", None), ("gemma-2-9b", None), ("local:/m/olmo1", None),
        ("http://localhost:8000/v1#Qwen2.5-7B", None), ("mistral-7b", None), ("bardeen", None), ("phi-2", None),
    ],
)  # fmt: skip
def test_closed_models_are_known_by_name_and_address(name: str, owner: str | None) -> None:
    assert closed_by(name) == owner


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("local:/models/mine", "open"), ("http://localhost:8000/v1#mine", "open"), ("server:Qwen2.5-7B:chat", "open"),
        ("meta-llama/Llama-2-70b-chat-hf", "open"), ("Mixtral 8x7B", "open"), ("openai/gpt-oss-20b", "open"),
        ("server:house-model", "unknown"), ("https://models.example.org/v1#x", "unknown"), ("somebody", "unknown"),
        ("optimist", "unknown"), ("factory:rules-3", "rules"), ("human", "human"), ("server:gpt-4o", "closed"),
    ],
)  # fmt: skip
def test_a_model_is_open_only_where_it_is_known_to_be(name: str, kind: str) -> None:
    assert kind_of(name) == kind == lineage_of({"generator": name}).openness


def test_one_writer_in_the_dark_leaves_the_row_there() -> None:
    for other in ("llama-2", "human", "factory 1"):
        assert lineage_of({"chosen_model": other, "rejected_model": "house-model"}).openness == "unknown"
    assert lineage_of({"chosen_model": "gpt-4", "rejected_model": "house-model"}).openness == "closed"
    assert lineage_of({"chosen_model": "llama-2", "rejected_model": "human"}).openness == "open"


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [("MIT", True), ("MIT License", True), ("Apache 2.0", True), ("apache-2.0", True), ("CC BY-SA 4.0", True),
     ("cc-by-nc-4.0", False), ("CC BY-NC-SA 4.0", False), ("CC0", True), ("ODC-BY", True), ("unknown", None),
     ("see website", None), ("Research only", False)],
)  # fmt: skip
def test_licences_are_read_however_they_are_spelt(licence: str, allowed: bool | None) -> None:
    assert commercial_use(licence)[0] is allowed
    assert all(commercial_use(name)[0] == entry[0] for name, entry in LICENCES.items())


def test_a_row_tells_its_origin_or_is_unknown() -> None:
    found = lineage_of(SYNTHETIC)
    assert (found.source, found.licence, found.openness, found.has_seed) == ("MATH train", "MIT", "open", True)
    assert found.verdicts == {"answer equal": "true", "answer method": "exact"}
    assert lineage_of(FACTORY).openness == "rules" and lineage_of(PAID).openness == "closed"
    assert lineage_of({"chosen_model": "alpaca-7b", "rejected_model": "gpt4"}).openness == "closed"
    assert lineage_of({"generator": "human"}).openness == "human"
    for row in ({"prompt": "Q"}, [1], None, {"lineage": 3}, {"made_by": "model"}):
        assert lineage_of(row).openness == "unknown"
    assert lineage_of({"license": "MIT"}, "mine", "x").licence == "MIT" and lineage_of({}, "mine", "x").source == "mine"


def test_the_card_counts_every_row_once() -> None:
    rows = [SYNTHETIC] * 3 + [FACTORY] * 2 + [PAID] + [{}] * 4 + [{"licence": "CC BY-NC 4.0", "model": "x|y"}]
    card = card_of(map(lineage_of, rows))
    assert card.num_rows == sum(card.groups.values()) == sum(card.by_licence().values()) == 11
    kinds = {"open": 3, "rules": 2, "closed": 1, "human": 0, "unknown": 5}
    assert {kind: card.count(kind) for kind in kinds} == kinds  # type: ignore[arg-type]
    assert card.num_with_seed == 6
    text = render_card(card, {"rows.jsonl": "ab"}, num_bad=2)
    assert "11 rows in 1 files." in text and "2 more rows are no JSON" in text
    assert "CC BY-NC 4.0 forbids it: 1 rows" in text and "x\\|y" in text
    assert "1 rows hold text of closed models" in text and "Of 5 rows it is not known" in text
    free = render_card(card_of([lineage_of(SYNTHETIC)]), {})
    assert "Nothing in the ledger forbids commercial use." in free


def test_the_filter_leaves_out_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        json.dumps(row) for row in (SYNTHETIC, FACTORY, PAID, {}, {"generator": "human", "licence": "CC BY-NC 4.0"})
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join([*lines, "{no"]))
    rules = {"--exclude-closed": (2, "closed model"), "--exclude-unknown": (3, "unknown generator")}
    for switch, (left_out, rule) in rules.items():
        out = tmp_path / switch.strip("-")
        other = [] if switch == "--exclude-unknown" else ["--keep-unknown"]
        assert main(["data", "filter", str(source), switch, *other, "--out", str(out)]) == 0
        assert (out / "kept.jsonl").read_text().splitlines() == lines[:left_out] + lines[left_out + 1 :]
        (flagged,) = map(json.loads, (out / "flagged.jsonl").read_text().splitlines())
        assert flagged["row"] == json.loads(lines[left_out]) and flagged["rule"] == rule
        (bad,) = map(json.loads, (out / "bad.jsonl").read_text().splitlines())
        assert bad["row"] == 6 and bad["text"] == "{no"
    out = tmp_path / "free"
    switches = ["--exclude-closed", "--exclude-unknown", "--exclude-noncommercial"]
    main(["data", "filter", str(source), *switches, "--out", str(out)])
    assert (out / "kept.jsonl").read_text().splitlines() == lines[:2]
    assert json.loads((out / "report.json").read_text())["num_rows"] == 6
    capsys.readouterr()
    assert main(["data", "filter", str(source), "--out", str(tmp_path / "no")]) == 2
    assert "nothing is to be left out" in capsys.readouterr().err
    assert main(["data", "filter", str(source), "--exclude-closed", "--out", str(tmp_path / "no")]) == 2
    told = capsys.readouterr().err
    assert "row 4 of" in told and "names no writer" in told and "--keep-unknown" in told
    assert not (tmp_path / "no").exists()
    both = ["--exclude-unknown", "--keep-unknown"]
    assert main(["data", "filter", str(source), *both, "--out", str(tmp_path / "no")]) == 2


def test_the_card_is_written_or_printed(shared_data: Callable[[str], Path], tmp_path: Path, capsys) -> None:
    path = str(shared_data("preference/alpaca_eval_gpt4_pairs.jsonl.gz"))
    assert main(["data", "card", path, "--licence", "CC BY-NC 4.0", "--out", str(tmp_path / "card.md")]) == 0
    assert "3,199 closed, 0 open" in capsys.readouterr().out  # one of the two answers is davinci's, in every row
    assert main(["data", "card", path]) == 0
    shown = capsys.readouterr().out
    assert "| unknown | 3,199 | **not known** |" in shown
    assert main(["data", "card", path, "--out", str(tmp_path / "card.md")]) == 2


def test_a_folder_of_a_run_is_its_rows_and_what_a_closed_model_wrote_stays_its(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rejected rows, journal and manifest are no data; seeds of a closed model taint what is made of them."""
    seeds, out = tmp_path / "seeds.jsonl", str(tmp_path / "synth")
    seeds.write_text(json.dumps({
        "question": "How many legs have 3 cows?", "answer": "A cow has 4.\nThe answer is: 12", "generator": "gpt-4o",
        "license": "MIT",
    }))  # fmt: skip
    command = ["synthesize", "math", "--seeds", str(seeds), "--backend", "factory", "--no-symbolic", "--out", out]
    assert main(command) == 0
    rows = (tmp_path / "synth" / "rows-00000.jsonl").read_text().splitlines()
    assert {json.loads(row)["lineage"]["seed_generator"] for row in rows} == {"gpt-4o"}
    assert {json.loads(row)["lineage"]["licence"] for row in rows} == {"MIT"}
    capsys.readouterr()
    assert main(["data", "card", out]) == 0
    assert f"{len(rows)} rows in 1 files" in capsys.readouterr().out
    assert main(["data", "filter", out, "--exclude-closed", "--out", str(tmp_path / "open")]) == 0
    assert f"left out: {len(rows)}: closed model" in capsys.readouterr().out
    assert main(["data", "card", str(seeds), "--out", str(tmp_path / "no" / "card.md")]) == 2
    assert "there is no folder" in capsys.readouterr().err
