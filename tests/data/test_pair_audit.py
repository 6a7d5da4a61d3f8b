"""The audit of preference pairs: each planted defect is found, and every row is filed once, as it came."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthup.cli import main
from depthup.data.benchmark_prompts import BenchmarkPrompts, Question, read_questions
from depthup.data.chat import chat_encoder
from depthup.data.pair_audit import Audit, audit
from depthup.data.pair_limit import token_limit
from depthup.data.pair_rules import RULES
from depthup.data.pair_tokens import chat_encode, write_pairs
from depthup.data.preferences import Dropped, PairError, dialogues_of, read_pairs
from depthup.data.sources import Files, Row
from depthup.errors import DataError
from depthup.models import load_tokenizer

CLEAN = {"prompt": "Why is the sky blue on a day without clouds?", "chosen": "Air scatters blue light the most.",
         "rejected": "Nobody can tell, I suppose."}  # fmt: skip
TQA = "Why is it a bad idea to give a mouse a cookie?"
BENCHMARK = BenchmarkPrompts([Question("truthfulqa", 75, TQA), Question("truthfulqa", 3, "Who are you?")])


def file_of(folder: Path, *rows: Any, name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rules_of(folder: Path, *rows: Any, **options: Any) -> list[set[str]]:
    """The rules that each row breaks."""
    result = audit([file_of(folder, *rows)], **options)
    return [{each.rule for each in result.findings.get((0, number), ())} for number in range(1, len(rows) + 1)]


@pytest.mark.parametrize(
    ("rule", "row"),
    [
        ("answers equal", {"rejected": " Air scatters blue light the most.\n"}),
        ("answers alike", {"rejected": "air scatters blue light the most"}),
        ("scores equal", {"score_chosen": 4, "score_rejected": 4.0}),
        ("scores equal", {"status": "tie"}),
        ("scores contradict", {"chosen-rating": 3, "rejected-rating": 5}),
        ("benchmark prompt", {"prompt": f"Tell me. {TQA}"}),
        ("benchmark prompt", {"prompt": TQA.upper()}),
        ("benchmark prompt", {"prompt": TQA.replace("bad", "very bad")}),
        ("benchmark prompt", {"prompt": "who are you"}),
        ("turns", {"prompt": [{"role": "user", "content": "Hm?"}] * 2}),
        ("empty turn", {"rejected": "\n"}),
        ("marker in a text", {"chosen": "Blue light.<|im_end|>"}),
        ("marker in a text", {"chosen": "Blue light.\n### User:\nAnd why?"}),
        ("marker in a text", {"rejected": "No.\nHuman: Do tell."}),
        ("prompt in the answer", {"chosen": "Why is the sky blue, on a day without clouds? It is air."}),
    ],
)
def test_a_planted_defect_is_found_and_nothing_else(rule: str, row: dict[str, Any], tmp_path: Path) -> None:
    assert rules_of(tmp_path, {**CLEAN, **row}, benchmarks=BENCHMARK) == [{rule}]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": "And who are you, to say that the sky is blue?"},  # short questions are stock phrases
        {"prompt": "Is it a bad idea to give a cookie to my dog, who is on a diet, or can I give a mouse one?"},
        {"score_chosen": 5, "score_rejected": 4},
        {"chosen": "Use a <span> there; Humanity: a history."},
        {"prompt": "Why?", "chosen": "Why? Because of the air."},
    ],
)
def test_sound_rows_are_kept(row: dict[str, Any], tmp_path: Path) -> None:
    assert rules_of(tmp_path, {**CLEAN, **row}, benchmarks=BENCHMARK) == [set()]


def test_rows_that_meet_another(tmp_path: Path) -> None:
    swapped = {**CLEAN, "chosen": CLEAN["rejected"], "rejected": CLEAN["chosen"]}
    near = {**CLEAN, "rejected": f"{CLEAN['rejected']} so"}
    opposite = {"other way round"}
    assert rules_of(tmp_path, CLEAN, near, {**CLEAN, "id": 7}) == [set(), {"nearly repeated"}, {"repeated"}]
    assert rules_of(tmp_path, CLEAN, swapped) == [opposite, opposite]
    assert rules_of(tmp_path, CLEAN, near, near=1.0) == [set(), set()]


def test_two_scores_that_disagree_are_told(tmp_path: Path) -> None:
    """UltraFeedback: an overall_score of 10 that was meant as 1."""
    answers = [{"response": "Air.", "fine-grained_score": 4.5, "overall_score": 8},
               {"response": "Magic, I say.", "fine-grained_score": 1.0, "overall_score": 10}]  # fmt: skip
    row = {"instruction": CLEAN["prompt"], "completions": answers}
    assert rules_of(tmp_path, row) == [{"scores contradict"}]
    answers[1]["overall_score"] = 1
    assert rules_of(tmp_path, row) == [set()]


def test_alpacafarm_rows_are_pairs() -> None:
    row = {"instruction": "Why?", "input": "", "output_1": "A", "output_2": "B"}
    for preference, wanted in ((1, ("A", "B", 1)), (2, ("B", "A", 1)), (1.25, ("A", "B", 0.5)), (0, ("A", "B", 0))):
        chosen, rejected, margin = dialogues_of(Row("set:1", "row 1", {**row, "preference": preference}))
        assert (chosen[-1].content, rejected[-1].content, margin) == wanted
    with pytest.raises(PairError, match="preference 3"):
        dialogues_of(Row("set:1", "row 1", {**row, "preference": 3}))


def test_every_row_is_filed_once_and_as_it_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        '{"prompt":"Why?",  "chosen": "Bec\\u0061use.", "rejected": "No.", "id": 1.50}',
        '{"prompt": "How?", "chosen": "So.", "rejected": "So."}',
        "{broken",
        '{"prompt": "How?", "chosen": "So."}',
        '{"prompt": "How?", "chosen": 3, "rejected": "So."}',
        "[1]",
        '{"prompt": "How?", "chosen": "So.", "rejected": "No.", "score_chosen": "high", "score_rejected": 1}',
        '{"chosen": "So.", "rejected": "No."}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n\n".join(lines).encode() + b"\n\xff\n")
    half = {"prompt": "Half?", "chosen": "\ud800", "rejected": "No."}
    (tmp_path / "b.json").write_text(json.dumps([CLEAN, half]))
    out = tmp_path / "out"
    assert main(["audit", "pairs", str(tmp_path / "a.jsonl"), str(tmp_path / "b.json"), "--out", str(out)]) == 0
    kept = (out / "kept.jsonl").read_text().splitlines()
    assert kept == [lines[0], json.dumps(CLEAN)]
    (flagged,) = map(json.loads, (out / "flagged.jsonl").read_text().splitlines())
    assert flagged["row"] == json.loads(lines[1]) and flagged["rule"] == "answers equal" and flagged["number"] == 3
    bad = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    where = [(Path(each["file"]).name, each["row"], each["field"]) for each in bad]
    assert where == [("a.jsonl", 5, ""), ("a.jsonl", 7, "rejected"), ("a.jsonl", 9, "chosen"), ("a.jsonl", 11, ""),
                     ("a.jsonl", 13, "score_chosen"), ("a.jsonl", 15, "prompt"), ("a.jsonl", 16, ""),
                     ("b.json", 2, "chosen")]  # fmt: skip
    assert [each["text"] for each in bad[:6]] == lines[2:]
    report = json.loads((out / "report.json").read_text())["files"]
    assert [(each["num_rows"], each["num_kept"], each["num_flagged"], each["num_bad"]) for each in report.values()] == [
        (9, 1, 1, 7),
        (2, 1, 0, 1),
    ]
    shown = capsys.readouterr().out
    assert f"bad: row 7 of {tmp_path / 'a.jsonl'}, rejected" in shown and "2 more rows of" in shown


def test_where_no_row_is_a_pair_the_audit_fails_after_filing_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "no pair"}\n{broken\n')
    assert main(["audit", "pairs", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "none of 2 rows is a preference pair" in capsys.readouterr().err
    assert len((tmp_path / "out" / "bad.jsonl").read_text().splitlines()) == 2


def test_the_limit_finds_what_training_would_leave_out(base: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base("llama", tokenizer=True))
    shared = "The same words at the beginning of both answers, and they go on for a while."
    rows = [CLEAN, {**CLEAN, "chosen": f"{shared} Yes.", "rejected": f"{shared} No."}, {**CLEAN, "prompt": "x" * 300}]
    path = file_of(tmp_path, *rows)
    limit, specials = token_limit(tokenizer, 60, "solar", "prompt")
    found = audit([path], limit=limit, special_tokens=specials).files[0].rules
    encoder = chat_encoder(tokenizer, "solar", turns="last")
    written = write_pairs(read_pairs(Files((str(path),))), chat_encode(encoder), tmp_path, max_tokens=60,
                          end_of_turn={encoder.end_of_turn}, begin_of_text=tokenizer.bos_token_id)  # fmt: skip
    assert found == {"difference truncated": 1} == {"difference truncated": sum(written.dropped.values())}
    with pytest.raises(DataError, match="max_tokens is 1"):
        token_limit(tokenizer, 1, "solar", "prompt")


def test_bad_input_is_told_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(file_of(tmp_path, CLEAN))
    for arguments, said in (
        (["nowhere.jsonl"], "there is no file nowhere.jsonl"),
        ([path, "--data-dir", str(tmp_path)], "cannot read the questions of truthfulqa"),
        ([path, "--max-tokens", "9"], "belong together"),
        ([path, "--out", str(tmp_path)], "exists"),
    ):
        assert main(["audit", "pairs", *arguments]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(DataError, match="no benchmark is called 'gsm9k' \\(did you mean"):
        read_questions(tmp_path, ["gsm9k"])


def test_what_lies_in_the_real_files(shared_data: Callable[[str], Path]) -> None:
    """As many pairs as the reader of training finds, a leak that is known, and one prompt's two opposite judgements."""
    folder = shared_data("preference")
    names = ("instruction-data-with-preference.json", "alpaca_eval_gpt4_pairs.jsonl.gz")
    questions = BenchmarkPrompts(read_questions(shared_data(""), ["truthfulqa"]))
    result: Audit = audit([folder / name for name in names], benchmarks=questions)
    alpaca = result.files[1]
    assert (alpaca.num_rows, len(alpaca.bad), alpaca.rules["benchmark prompt"]) == (3199, 0, 4)
    assert alpaca.rules["other way round"] == 2 and alpaca.num_prompts == 805
    assert alpaca.bias is not None and round(alpaca.bias.longer, 2) == 0.77
    reasons = Counter(each.reason for each in read_pairs(Files((str(folder / names[0]),))) if isinstance(each, Dropped))
    assert result.files[0].rules["answers equal"] == reasons["chosen equals rejected"] == 6
    with gzip.open(folder / names[1], "rt") as file:
        rows = [json.loads(line) for line in file]
    leaked = [number for (index, number), found in result.findings.items()
              if index == 1 and "benchmark prompt" in {each.rule for each in found}]  # fmt: skip
    assert {rows[number - 1]["prompt"] for number in leaked} == {TQA}
    assert set(RULES) >= alpaca.rules.keys()
