"""Alike sets, phrases in texts, and the statistics of length, against slow and plain ways, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.data.length_bias import length_bias, sign_test, wilson_interval
from depthup.data.likeness import Phrases, alike, jaccard, shingles, words_of

WORDS = st.lists(st.sampled_from("abcde"), max_size=12)


def plain(words: list[str], size: int) -> set[tuple[str, ...]]:
    width = min(size, len(words))
    return {tuple(words[place : place + width]) for place in range(len(words) - width + 1)} if words else set()


@given(WORDS, WORDS, st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_sets_of_ngrams_are_sets_of_tuples(first: list[str], second: list[str], size: int) -> None:
    one, two = plain(first, size), plain(second, size)
    made = shingles(first, size), shingles(second, size)
    assert [len(each) for each in made] == [len(one), len(two)]
    assert jaccard(*made) == pytest.approx(len(one & two) / len(one | two) if one | two else 1)


@given(st.lists(WORDS, max_size=12), st.sampled_from([0.2, 0.5, 0.8, 1.0]))
@settings(max_examples=200, deadline=None)
def test_no_pair_that_is_alike_is_missed(texts: list[list[str]], threshold: float) -> None:
    sets = [plain(words, 2) for words in texts]
    wanted = {}
    for index, each in enumerate(sets):
        likeness = [len(each & other) / len(each | other) if each and other else 0 for other in sets[:index]]
        close = [other for other, value in enumerate(likeness) if value >= threshold - 1e-9]
        if close:
            wanted[index] = close[0]
    found = alike([shingles(words, 2) for words in texts], threshold)
    assert {index: other for index, (other, _) in found.items()} == wanted


def test_phrases_are_found_by_their_share() -> None:
    phrases = Phrases(["one two three four", "two three four five six seven", "too short"], 3)
    assert phrases.best("Well: ONE, two; three - four!") == (0, 1.0)
    assert phrases.best("three four five six, and no more") == (1, 0.5)
    assert phrases.best("too short") is None and phrases.best("") is None


def test_words_are_letters_and_digits_of_any_script() -> None:
    assert words_of("It's 3.5 Straße, ВЕРНО") == ["it", "s", "3", "5", "strasse", "верно"]


@given(st.integers(0, 400).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
@settings(max_examples=60, deadline=None)
def test_share_and_sign_test_are_those_of_scipy(case: tuple[int, int]) -> None:
    successes, trials = case
    if not trials:
        assert wilson_interval(0, 0) == (0, 1) and sign_test(0, 0) == 1
        return
    oracle = scipy.stats.binomtest(successes, trials)
    assert sign_test(successes, trials) == pytest.approx(oracle.pvalue, rel=1e-9)
    interval = oracle.proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_length_bias_of_known_lengths() -> None:
    numbers = np.random.default_rng(0)
    chosen, rejected = numbers.integers(0, 50, 300), numbers.integers(0, 40, 300)
    bias = length_bias(chosen, rejected)
    assert bias is not None
    oracle = scipy.stats.mannwhitneyu(chosen, rejected).statistic / 300**2
    assert bias.auc == pytest.approx(oracle)
    logs = np.log((chosen + 1) / (rejected + 1))
    interval = scipy.stats.norm.interval(0.95, logs.mean(), scipy.stats.sem(logs))
    assert (bias.ratio_low, bias.ratio_high) == pytest.approx(tuple(np.exp(interval)))
    other = length_bias(rejected, chosen)
    assert other is not None
    assert (other.longer, other.ratio, other.auc) == pytest.approx((1 - bias.longer, 1 / bias.ratio, 1 - bias.auc))
    assert (other.accuracy, other.p_value) == pytest.approx((bias.accuracy, bias.p_value))


def test_equal_lengths_say_nothing() -> None:
    bias = length_bias([3, 3], [3, 3])
    assert bias is not None
    assert (bias.longer, bias.num_equal, bias.accuracy, bias.auc, bias.p_value, bias.ratio) == (0.5, 2, 0.5, 0.5, 1, 1)
    assert length_bias([], []) is None
    single = length_bias([9], [4])
    assert single is not None and single.ratio == pytest.approx(2)
