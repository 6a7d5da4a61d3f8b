"""The four augmentations: what is masked, what is asked, what is taken from a reply."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from depthup.synthesis.answers import extract_answer
from depthup.synthesis.filters import changed_numbers
from depthup.synthesis.metamath import (
    Masked,
    Step,
    finish_solution,
    fobar_question,
    load_prompt,
    maskings,
    read_rewrite,
    self_verification_question,
    split_asking,
    statement_fault,
)
from depthup.synthesis.problems import make_problems
from depthup.synthesis.rephrasing import NUM_REPHRASINGS, rephrase, retell

QUESTION = "Tom buys 3 boxes for \\$4.50 each and seven pens. How many dollars are left of $20$?"


def test_each_number_that_stands_alone_is_masked_once() -> None:
    found = maskings(QUESTION)
    assert [masked.value for masked in found] == ["3", "4.50", "7", "20"]
    assert found[1].question == QUESTION.replace("4.50", "x") and found[3].question.endswith("left of $x$?")
    assert all(masked.unknown == "x" for masked in found)


@pytest.mark.parametrize(
    "question",
    ["A 10-minute walk", "Find $x^2$", "the point (3,4)", "$\\frac 13$ of it", "one of them", "12 [asy]draw();[/asy]",
     "$2 + 3$"],
)  # fmt: skip
def test_what_is_part_of_something_is_not_masked(question: str) -> None:
    assert maskings(question) == []


def test_the_letter_is_one_that_the_question_does_not_use() -> None:
    assert maskings("Find $x$ if 3 is its half")[0].unknown == "X"
    assert maskings("Find $2x$ and $X$ if 3 is half")[0].unknown == "u"
    assert maskings("Find \\max if 3 is half of it")[0].unknown == "x"  # a command is no letter


def test_backward_questions_state_the_answer_and_ask_for_the_unknown() -> None:
    masked = maskings(QUESTION)[0]
    assert fobar_question(masked, "6.50").endswith(
        "left of $20$? If the answer to this question is 6.50, what is the value of the unknown x?"
    )
    asked = self_verification_question(masked, "6.50 dollars are left of $20$.")
    assert asked == ("Tom buys x boxes for \\$4.50 each and seven pens. 6.50 dollars are left of $20$."
                     " What is the value of the unknown x?")  # fmt: skip


def test_the_asking_sentence_is_the_last_with_a_question_mark() -> None:
    assert split_asking("There are 3. How many? Round down.") == ("There are 3.", "How many?", "Round down.")
    assert split_asking("It costs $3.50. Find it.") == ("It costs $3.50.", "Find it.", "")


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("8 apples are left on x trees.", ""), ("8 apples are left.", "lost"),
        ("9 apples are left on x trees.", "numbers"),
        ("How many are left on x trees?", "question"), ("", "empty"),
    ],
)  # fmt: skip
def test_statements_must_say_what_was_asked_and_answered(statement: str, fault: str) -> None:
    masked = Masked("Some fall. How many apples are left on x trees?", "x", "3", 0)
    assert (fault in statement_fault(masked, "8", statement)) and bool(statement_fault(masked, "8", statement)) == bool(
        fault
    )


def test_rewritten_questions_lose_labels_and_what_follows() -> None:
    assert read_rewrite(' In other words: "How many?"\n\nProblem: next') == "How many?"


@pytest.mark.parametrize(
    "text",
    ["It is 5.\nThe answer is: $5$.", "It is \\boxed{5}.", "It is 5.\n#### 5", "It is 5.\nSo the final answer is 5."],
)
def test_solutions_end_with_their_answer_said_once(text: str) -> None:
    done = finish_solution(text)
    assert done.count("The answer is") == 1 and extract_answer(done.replace("$", "")) == ("5", "stated")
    assert finish_solution(done) == done


def test_prompts_are_ours_with_examples_that_are_true(shared_data: Callable[[str], Path]) -> None:
    theirs = "\n".join(path.read_text() for path in shared_data("metamath/prompts").glob("*.txt"))
    for step in get_args(Step):
        prompt = load_prompt(step)
        assert prompt.text.count("{question}") == 1 and len(prompt.digest) == 16
        lines = [line for line in prompt.text.splitlines() if len(line.split()) > 6]
        assert not [line for line in lines if line in theirs]
        assert not {"{question}", "{answer}"} & set(prompt.render("a", "b").split())
    pairs = load_prompt("rephrase").text.split("Problem: ")[1:-1]
    for pair in pairs:
        question, _, rewritten = pair.partition("\nIn other words: ")
        assert changed_numbers(question, rewritten.strip()) == (frozenset(), frozenset()), question


def test_rules_keep_numbers_and_formulas() -> None:
    for problem in make_problems(60):
        rewritings = {rephrase(problem.question, variant) for variant in range(NUM_REPHRASINGS)}
        assert len(rewritings) >= 3
        for text in rewritings:
            assert changed_numbers(problem.question, text) == (frozenset(), frozenset()), text
    told = retell("We find $a. B$ first. Then 2. \\[x = 1. Y\\] So 3.", 1)
    assert told.splitlines()[1:] == ["(1) We find $a. B$ first.", "(2) Then 2.", "(3) \\[x = 1. Y\\] So 3."]
