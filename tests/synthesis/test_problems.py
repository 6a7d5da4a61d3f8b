"""The offline factory: every problem right in all its tellings, by an oracle where there is one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from depthup.errors import DataError
from depthup.synthesis.answers import exact_number, extract_answer, normalise
from depthup.synthesis.families import FAMILIES
from depthup.synthesis.problems import GYM, gym_problems, make_problems, parse_factory, problems_of
from depthup.synthesis.verify import quick_verdict


def test_problems_are_unlike_and_the_same_for_a_seed() -> None:
    problems = make_problems(300, seed=3)
    assert problems == make_problems(300, seed=3) and problems[0] != make_problems(1, seed=4)[0]
    assert len({problem.question for problem in problems}) == len({problem.id for problem in problems}) == 300
    assert {problem.id.rsplit("-", 2)[0] for problem in problems} == set(FAMILIES)
    assert all(problem.factory and "{" not in problem.question.replace("frac{", "") for problem in problems)


def test_each_telling_states_the_answer() -> None:
    for problem in make_problems(300, seed=5):
        assert exact_number(normalise(problem.answer)) is not None
        for telling in problem.tellings:
            found = extract_answer(telling)
            assert found is not None and found[1] == "stated"
            verdict = quick_verdict(problem.answer, found[0])
            assert verdict is not None and verdict.equal


def test_equations_of_the_tellings_hold() -> None:
    """Each ``a op b = c`` between integers in a worked solution is true."""
    import re

    checked = 0
    sum_of = re.compile(r"(?<![\d./×+*-])(?<![×+*/-] )(-?\d+) ([-+×/]) (\d+) = (-?\d+)(?!\d|\.\d|/|\s[-+×/])")
    for problem in [*make_problems(300, seed=6), *(gym_problems(50) if find_spec("reasoning_gym") else ())]:
        for telling in problem.tellings:
            for one, sign, other, outcome in sum_of.findall(telling):
                a, b, c = int(one), int(other), int(outcome)
                assert {"+": a + b == c, "-": a - b == c, "×": a * b == c, "/": a == b * c}[sign], telling
                checked += 1
    assert checked > 500


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not here")
def test_drills_are_solved_to_their_answers() -> None:
    problems = gym_problems(60, seed=1)
    assert len(problems) == len({problem.id for problem in problems}) == 60 and problems[0].factory == GYM
    for problem in problems:
        body = problem.solution.rpartition("\nThe answer is: ")[0]
        numbers = [part.strip(".,:") for part in body.replace("=", " ").split()]
        parts = problem.answer.replace("\\dfrac", "").replace("\\frac", "").strip("{}").split("}{")
        assert all(piece in numbers for part in parts for piece in part.split("/")), problem


def test_specs_of_sources() -> None:
    assert parse_factory("factory.jsonl") is None and parse_factory("seeds/mine.jsonl") is None
    spec = parse_factory("factory:12")
    assert spec is not None and len(problems_of(spec)) == 12
    for text in ("factory:", "factory:0", "factory:many", "reasoning-gym:-3"):
        with pytest.raises(DataError, match="how many"):
            parse_factory(text)
