"""Answers: where they stand, when two are the same, and that no comparison ever blocks a run."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthup.errors import DepthupError
from depthup.synthesis import verify
from depthup.synthesis.answers import boxed, exact_number, extract_answer, in_words, normalise
from depthup.synthesis.verify import Verifier, quick_verdict

needs_math_verify = pytest.mark.skipif(verify.find_spec("math_verify") is None, reason="math-verify is not here")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(num_workers=1, seconds=5) as one:
        yield one


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{\frac{1}{2}}.", (r"\frac{1}{2}", "boxed")),
        (r"\boxed{3} and then \boxed{\{1, 2\}}", (r"\{1, 2\}", "boxed")),
        (r"\boxed{5", None),
        ("The answer is: $3.50$.", ("$3.50$", "stated")),
        ("The answer is 5. It is not 7.", ("5", "stated")),
        (r"\boxed{9}" + "\nThe final answer is \\boxed{7}.", ("7", "stated")),
        ("The value of x is: 12", ("12", "stated")),
        ("The answer is:", None),
        ("3 + 4 = <<3+4=7>>7\n#### 1,234", ("1,234", "marked")),
        ("12 apples and 7 pears", ("7", "last number")),
        ("no number", None),
    ],
)
def test_the_final_answer_is_found_where_it_stands(text: str, found: tuple[str, str] | None) -> None:
    assert extract_answer(text) == found


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/2", "0.5"), (r"\frac12", r"\dfrac{1}{2}"), ("1,234", "1234.0"), ("50\\%", "50"), (r"3\frac{1}{2}", "3.5"),
        ("5", "5 apples"), ("25", "twenty-five"), ("206", "two hundred and six"), ("-7", "−7"), ("30^\\circ", "30"),
        (r"\$4.50", "4.5"), ("1 1/2", r"\frac{3}{2}"), (r"\text{Tuesday}", "Tuesday"), (r"\sqrt3", r"\sqrt{3}"),
        (r"\left(1, 2\right)", "(1,2)"), ("x = 3", "3"), (r"$\frac{a}{b}$", r"\tfrac{a}{b}"),
        ("10,080\\pi", r"10080\pi"),
    ],
)  # fmt: skip
def test_spellings_of_one_answer_are_equal_without_math_verify(gold: str, answer: str) -> None:
    for pair in ((gold, answer), (answer, gold)):
        found = quick_verdict(*pair)
        assert found is not None and found.equal, pair


@pytest.mark.parametrize(("gold", "answer"), [("5", "6"), ("1/3", "0.333"), ("12", "21"), ("-3", "3"), ("0", "0.0001")])
def test_unlike_numbers_are_told_apart_exactly(gold: str, answer: str) -> None:
    found = quick_verdict(gold, answer)
    assert found is not None and (found.equal, found.method) == (False, "exact")


@pytest.mark.parametrize(
    ("gold", "answer"), [("5", "5 million"), ("12", "1 2"), ("(1,2)", "12"), ("5", ""), ("", ""), ("1/0", "1")]
)
def test_what_looks_alike_is_not_equal(gold: str, answer: str) -> None:
    found = quick_verdict(gold, answer)
    assert found is None or not found.equal


@given(st.fractions(max_denominator=10**6))
def test_each_fraction_equals_itself_in_every_spelling(value: Fraction) -> None:
    sign, above, below = "-" if value < 0 else "", abs(value.numerator), value.denominator
    for text in (str(value), f"{sign}\\frac{{{above}}}{{{below}}}", f"${sign}\\dfrac{{{above}}}{{{below}}}$"):
        assert exact_number(normalise(text)) == value


@given(st.text(max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    extract_answer(text), boxed(text), in_words(text), quick_verdict(text, text), quick_verdict("3", text)


def perturbed(answer: str, chance: random.Random) -> str:
    """The answer with one digit changed, or with a term added where it has none."""
    places = [place for place, char in enumerate(answer) if char.isdigit()]
    if not places:
        return f"{answer}+1"
    place = chance.choice(places)
    return answer[:place] + str((int(answer[place]) + chance.randint(1, 8)) % 10) + answer[place + 1 :]


@needs_math_verify
def test_the_quick_rungs_agree_with_math_verify_on_real_answers(shared_data: Callable[[str], Path]) -> None:
    """Oracle: math-verify itself. Equal spellings must be equal for both; what is perturbed must be for neither."""
    from math_verify import parse
    from math_verify import verify as oracle

    with gzip.open(shared_data("math/test.jsonl.gz"), "rt") as file:
        answers = [extract_answer(json.loads(line)["solution"])[0] for line in file]  # type: ignore[index]
    chance = random.Random(0)
    decided = 0
    for gold in chance.sample(answers, 90):
        for answer in (f"${gold}$", gold.replace("\\frac", "\\dfrac"), perturbed(gold, chance)):
            found = quick_verdict(gold, answer)
            if found is None or "text" in gold:
                continue
            forms = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
            if all(forms):
                decided += 1
                assert found.equal == oracle(*forms, timeout_seconds=None), (gold, answer, found)
    assert decided > 150


@needs_math_verify
def test_symbolic_answers_go_to_math_verify(verifier: Verifier) -> None:
    assert [verdict.equal for verdict in verifier.verify_all([
        (r"2\sqrt{3}", r"\sqrt{12}"), ("x^2+2x+1", "(x+1)^2"), (r"2\sqrt{3}", r"3\sqrt{2}"), ("5", "5 million"),
    ])] == [True, True, False, False]  # fmt: skip
    assert verifier.verify(r"2\sqrt{3}", r"\sqrt{12}").method == "math-verify"


@needs_math_verify
def test_a_comparison_that_hangs_is_ended_and_its_process_replaced() -> None:
    with Verifier(num_workers=1, seconds=1.0) as short:
        assert short.verify(r"\sqrt{8}", r"2\sqrt{2}").equal  # started
        began = time.monotonic()
        tower = "9^{9^{9^{9}}}"
        assert short.verify(tower, "9^{9^{9^{8}}}").method in ("timeout", "failed")
        assert time.monotonic() - began < 30
        assert short.verify(r"\sqrt{18}", r"3\sqrt{2}").equal


def test_without_math_verify_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    with pytest.raises(DepthupError, match="synthesis"):
        Verifier()
    with Verifier(symbolic=False) as plain:
        assert not plain.verify(r"2\sqrt{3}", r"\sqrt{12}").equal and plain.verify("1/2", "0.5").equal
