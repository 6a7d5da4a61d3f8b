"""Filters: numbers in any spelling, echoes, and near-duplicates against brute force."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.synthesis.filters import NearDuplicates, changed_numbers, is_echo, numbers_in, shingles, too_like


def test_numbers_are_found_in_figures_and_words() -> None:
    sure, perhaps = numbers_in("Of 1,200 eggs at $3.50, twenty-five went; one of them, a dozen, \\frac{1}{2}, 3/4, .5")
    assert sure == {Fraction(1200), Fraction(7, 2), Fraction(25), Fraction(1, 2), Fraction(3, 4)}
    assert perhaps == {Fraction(1), Fraction(12)}
    assert numbers_in("two, three and four, nineteen")[0] == {Fraction(number) for number in (2, 3, 4, 19)}
    assert numbers_in("two hundred and six")[0] == {Fraction(206)}
    assert numbers_in("\\dfrac13 of $x^2$")[0] == {Fraction(1, 3), Fraction(2)}


@pytest.mark.parametrize(
    ("seed", "rewritten"),
    [
        ("Tom has 12 eggs.", "Tom has a dozen eggs."), ("He ate half of 8.", "He ate 1/2 of eight."),
        ("One of 5 is red.", "Of five, one is red."), ("A 10-minute walk", "It takes 10 minutes to walk."),
        ("$\\frac{1}{2}x + 3$", "$\\dfrac12 x+3$"), ("twice as many as 4", "2 times as many as 4"), ("1,000", "1000"),
    ],
)  # fmt: skip
def test_numbers_that_are_only_spelt_anew_are_preserved(seed: str, rewritten: str) -> None:
    assert changed_numbers(seed, rewritten) == (frozenset(), frozenset())


@pytest.mark.parametrize(
    ("seed", "rewritten", "lost", "gained"),
    [
        ("3 and 4", "3 and 5", {4}, {5}), ("3 and 4", "3", {4}, set()), ("seven", "eight", {7}, {8}),
        ("2.5", "25", {Fraction(5, 2)}, {25}),
    ],
)  # fmt: skip
def test_changed_numbers_are_named(seed: str, rewritten: str, lost: set[int], gained: set[int]) -> None:
    assert changed_numbers(seed, rewritten) == (lost, gained)


@given(st.text())
def test_any_text_has_numbers_that_it_preserves(text: str) -> None:
    assert changed_numbers(text, text) == (frozenset(), frozenset()) and is_echo(text, text)


def test_an_echo_differs_in_case_blanks_and_punctuation_alone() -> None:
    assert is_echo("Find $x+1$, please!", "find  $x + 1$ please")
    assert not is_echo("Find $x+1$.", "Find $x-1$.") and not is_echo("Find 2.5", "Find 25")


words = st.lists(st.sampled_from("a b c d".split()), min_size=1, max_size=14).map(" ".join)  # noqa: SIM905


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=1, max_size=25), words, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_near_duplicates_are_those_that_brute_force_finds(texts: list[str], text: str, threshold: float) -> None:
    near = NearDuplicates(threshold)
    for number, one in enumerate(texts):
        near.add(str(number), one)
    mine = set(shingles(text))
    similar = [len(mine & set(shingles(one))) / len(mine | set(shingles(one))) for one in texts]
    found = near.find(text)
    if max(similar) >= threshold:
        assert found is not None and found[1] == max(similar)
    else:
        assert found is None


def test_other_numbers_make_another_problem() -> None:
    near = NearDuplicates(0.5)
    near.add("one", "A box holds 5 red balls and some green balls. How many are red?")
    assert near.find("A box holds 5 red balls and some green balls. How many are green?")
    assert near.find("A box holds 6 red balls and some green balls. How many are red?") is None


def test_solutions_that_repeat_are_too_like() -> None:
    solution = "We add the numbers and get the sum. Then we divide it by their count."
    assert too_like(solution + " Done.", [solution], 0.8) and not too_like("Something else is said here.", [solution])
