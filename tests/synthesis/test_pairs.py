"""Synth. Math-Alignment: each variant is what it says, the same of the same seed, and matching leaves length no say."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from depthup.alignment import alignment_report
from depthup.cli import main
from depthup.data.preferences import PreferencePair, read_pairs
from depthup.data.sources import Files
from depthup.errors import DataError
from depthup.synthesis.pairs import CALIPER, VARIANTS, Solved, align, balanced, solved_of
from depthup.synthesize_alignment_verb import add_alignment

Run = Callable[..., None]


def rows(num_seeds: int = 20) -> list[Solved]:
    """Of each seed: a rephrased question with five answers, two of them wrong, one not verified, and another kind."""
    made = []
    for seed in range(num_seeds):
        origin = {"original_question": f"What is {seed} + 1?", "original_answer": f"It is {seed + 1}." + " So." * 9}
        question = f"Add 1 to {seed}. What is it?"
        for number, correct in enumerate((True, False, True, False, None)):
            answer = "Count. " * (seed + number) + f"{seed + 1 if correct else -number}"
            made.append(Solved(f"s{seed}", question, answer, "rephrase", correct, name=f"r:{len(made)}", **origin))
        made.append(Solved(f"s{seed}", f"x + 1 = {seed}", "x", "fobar", True, name=f"r:{len(made)}", **origin))
    return made


def test_the_paper_pairs_a_rephrased_question_with_the_original_answer() -> None:
    made = align(rows())
    origins = {row.seed_id: row for row in rows() if row.kind == "rephrase"}
    assert len(made.triplets) == 100 and made.left_out == {"not a rephrased question": 20}
    for triplet in made.triplets:
        assert triplet.rejected == origins[triplet.seed_id].original_answer
        assert triplet.prompt == origins[triplet.seed_id].question
    assert [each.chosen for each in made.triplets] == [row.answer for row in rows() if row.kind == "rephrase"]


def test_the_controls_are_what_they_say() -> None:
    paper = {(each.prompt, each.chosen, each.rejected) for each in align(rows()).triplets}
    turned = {(each.prompt, each.rejected, each.chosen) for each in align(rows(), "swapped").triplets}
    assert turned == paper
    drawn = [(each.prompt, each.chosen, each.rejected) in paper for each in align(rows(), "random").triplets]
    assert 35 < sum(drawn) < 65
    checked, same = align(rows(), "checked"), align(rows(), "same")
    assert {(each.chosen_correct, each.rejected_correct) for each in checked.triplets} == {(True, False)}
    assert {(each.chosen_correct, each.rejected_correct) for each in same.triplets} == {(True, True)}
    questions = {row.answer: row.question for row in rows()}
    for each in (*checked.triplets, *same.triplets):
        assert questions[each.chosen] == questions[each.rejected] == each.prompt
    assert Counter(each.prompt for each in checked.triplets) == Counter({row.question: 2 for row in rows()
                                                                         if row.kind == "rephrase"})  # fmt: skip
    assert same.left_out["answer not verified"] == 20


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("match_length", [False, True])
def test_a_seed_gives_one_set_and_no_answer_is_used_twice(variant: str, match_length: bool) -> None:
    first, again, other = (align(rows(), variant, seed=seed, match_length=match_length) for seed in (1, 1, 2))
    assert first == again
    if variant in ("same", "random"):
        assert first != other
    used = Counter(row for triplet in first.triplets for row in triplet.rows)
    assert set(used.values()) == {1}
    if match_length:
        skews = [triplet.skew for triplet in first.triplets]
        assert sum(skew > 0 for skew in skews) == sum(skew < 0 for skew in skews)
        assert abs(float(np.mean(skews))) <= CALIPER / 2


@given(st.lists(st.floats(-2, 2).map(lambda value: round(value, 2)), max_size=30))
@settings(max_examples=150, deadline=None)
def test_balancing_keeps_as_many_pairs_as_can_be(skews: list[float]) -> None:
    kept = [skews[index] for index in balanced(skews)]
    longer, shorter = sorted(x for x in skews if x > 0), sorted(-x for x in skews if x < 0)
    couples = 0
    if longer and shorter:
        near = csr_matrix(np.abs(np.subtract.outer(longer, shorter)) <= CALIPER)
        couples = int((maximum_bipartite_matching(near, perm_type="column") >= 0).sum())
    assert len(kept) == 2 * couples + skews.count(0)
    assert sum(skew > 0 for skew in kept) == sum(skew < 0 for skew in kept) == couples


def test_matched_answers_are_neighbours_in_length() -> None:
    """Of several right and wrong answers to one question, those of like length meet."""
    right = [Solved("s", "Why?", "r" * size, "answer", True, name=f"a:{size}") for size in (10, 100, 1000)]
    wrong = [Solved("s", "Why?", "w" * size, "answer", False, name=f"b:{size}") for size in (1000, 10, 100)]
    made = align([*right, *wrong], "checked", match_length=True)
    assert sorted(len(each.chosen) - len(each.rejected) for each in made.triplets) == [0, 0, 0]
    with pytest.raises(DataError, match="length not matched: 1"):
        align([right[0], wrong[0]], "checked", match_length=True)


def test_what_cannot_be_made_is_told() -> None:
    with pytest.raises(DataError, match="no variant is called 'cheked' \\(did you mean 'checked'"):
        align(rows(), "cheked")
    with pytest.raises(DataError, match="no wrong answer to the question is left: 1"):
        align([Solved("s", "Why?", "So.", "rephrase", True)], "checked")
    with pytest.raises(DataError, match="answers equal: 1"):
        align([Solved("s", "Why?", "So.", "rephrase", True, original_answer="So. ")])


def test_rows_of_the_pipeline_are_read_and_bad_ones_named() -> None:
    plain = {"seed_id": "s", "question": "Q?", "answer": "A", "kind": "rephrase", "correct": True}
    nested = {"question": "Q?", "answer": "A", "kind": "rephrase", "verdict": {"equal": True, "method": "exact"},
              "lineage": {"seed": {"id": "s"}, "original_answer": "B"}}  # fmt: skip
    assert solved_of(plain, "row 1") == Solved("s", "Q?", "A", "rephrase", True)
    read = solved_of(nested, "row 1")
    assert (read.seed_id, read.correct, read.original_answer) == ("s", True, "B")
    for changed, field in (({"answer": ""}, "answer"), ({"kind": None}, "kind"), ({"correct": "yes"}, "verdict"),
                           ({"lineage": 3}, "lineage")):  # fmt: skip
        field = {"answer": "response"}.get(field, field)
        with pytest.raises(DataError, match=f"^{field}: row 1 holds"):
            solved_of({**plain, **changed}, "row 1")
    with pytest.raises(DataError, match=r"^row: "):
        solved_of([plain], "row 1")


@pytest.fixture
def run() -> Run:
    """``run("rows.jsonl", "--out", "dir")``: the verb by itself."""
    parser = argparse.ArgumentParser()
    add_alignment(parser.add_subparsers())

    def call(*arguments: object) -> None:
        options = parser.parse_args(["alignment", *map(str, arguments)])
        options.function(options)

    return call


def test_the_verb_writes_pairs_that_training_reads(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"id": row.name, "prompt": row.question, "response": row.answer, "lineage":
                         {"seed": row.seed_id, "kind": row.kind, "licence": "MIT",
                          "verdict": None if row.correct is None else {"equal": row.correct, "method": "exact"}},
                         **({} if row.correct is not False else {"reason": "wrong answer"})}
                        ) for row in rows()]  # fmt: skip
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join([*lines, "{no", '{"question": "Q?"}']))
    out = tmp_path / "out"
    run(source, "--out", out, "--variant", "checked", "--match-length")
    pairs = list(read_pairs(Files((str(out / "pairs.jsonl"),))))
    report = json.loads((out / "report.json").read_text())
    assert len(pairs) == report["num_pairs"] > 0 and all(isinstance(pair, PreferencePair) for pair in pairs)
    assert report["correctness"] == {"right over wrong": len(pairs)} and report["num_bad"] == 2
    assert report["num_rows"] == 122 and report["length"]["longer"] == 0.5
    bad = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert [(each["row"], each["field"]) for each in bad] == [(121, "row"), (122, "response")]
    first = json.loads((out / "pairs.jsonl").read_text().splitlines()[0])
    assert first["lineage"]["licence"] == "MIT" and first["lineage"]["alignment"]["rejected_correct"] is False
    assert "answer right over wrong" in capsys.readouterr().out
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"id": f"s{number}", "problem": "P?", "solution": f"So {number}."}) + "\n"
                             for number in range(20)))  # fmt: skip
    run(source, "--out", tmp_path / "paper", "--seeds", seeds)
    report = json.loads((tmp_path / "paper" / "report.json").read_text())
    assert report["correctness"] == {"right over right": 40, "not verified over right": 20}
    assert report["rows_left_out"] == {"rejected: wrong answer": 40, "not a rephrased question": 20}


def test_what_synthesis_rejected_is_not_used_again() -> None:
    """A contaminated row stays out, however right; a wrong answer is what ``checked`` is made of."""
    wrong = Solved("s", "Why?", "No.", "rephrase", False, reason="wrong answer")
    dirty = Solved("s", "Why?", "So it is.", "rephrase", True, reason="contaminated")
    right = Solved("s", "Why?", "So.", "rephrase", True, reason="quota")
    made = align([wrong, dirty, right], "checked")
    assert [(each.chosen, each.rejected) for each in made.triplets] == [("So.", "No.")]
    assert made.left_out == {"rejected: contaminated": 1}
    failed = solved_of(
        {"prompt": "", "response": "", "reason": "echo", "lineage": {"seed": "s", "kind": "rephrase"}}, ""
    )
    assert failed.reason == "echo"


def test_overlap_is_that_of_word_ngrams() -> None:
    row = Solved("s", "a b c d", "one two three four", "rephrase", None, "a b c e", "one two three five")
    report = alignment_report(align([row]))
    assert report["overlap"] == {"chosen with rejected": 1 / 3, "prompt with original question": 1 / 3}
    assert report["correctness"] == {"not verified over right": 1}


def test_what_was_not_proved_wrong_is_not_taken_for_wrong() -> None:
    """A comparison that broke off, or one of letters alone, leaves open which answer is right."""
    for method, correct in (
        ("exact", False), ("math-verify", False), ("timeout", None), ("failed", None), ("text", None),
    ):  # fmt: skip
        row = {"prompt": "Q?", "response": "A", "reason": "wrong answer",
               "lineage": {"seed": "s", "kind": "rephrase", "verdict": {"equal": False, "method": method}}}  # fmt: skip
        assert solved_of(row, "").correct is correct


def test_seeds_of_another_run_are_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "synth"
    command = ["synthesize", "math", "--seeds", "factory:12", "--backend", "factory", "--seed", "5", "--no-symbolic"]
    assert main([*command, "--out", str(out)]) == 0
    rows = out / "rows-00000.jsonl"
    run(rows, "--seeds", "factory:12", "--seeds-seed", 5, "--out", tmp_path / "pairs")
    report = json.loads((tmp_path / "pairs" / "report.json").read_text())
    assert report["correctness"] == {"right over right": report["num_pairs"]} and report["num_pairs"] > 5
    named = next(json.loads(line) for line in rows.read_text().splitlines() if '"kind": "rephrase"' in line)
    seeds = tmp_path / "seeds.jsonl"
    seed = {"id": named["lineage"]["seed"], "question": "Another?", "answer": "The answer is: 12345"}
    seeds.write_text(json.dumps(seed))
    with pytest.raises(DataError, match="is another one: its answer is 12345"):
        run(rows, "--seeds", seeds, "--out", tmp_path / "wrong")
    seeds.write_text(f"{json.dumps(seed)}\n{json.dumps({**seed, 'question': 'And this?'})}\n")
    with pytest.raises(DataError, match="two seeds have the id"):
        run(rows, "--seeds", seeds, "--out", tmp_path / "wrong")
    with pytest.raises(DataError, match=r"none of 6 rows can be read.*manifest"):
        run(out / "manifest.json", "--out", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
