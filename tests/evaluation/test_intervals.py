"""Intervals that cover what they say, and the sign test by hand."""

import math

import numpy as np
import pytest

from sottovoce.evaluation.intervals import bootstrap_interval, sign_test


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(0), 0
    for i in range(200):
        words = generator.integers(5, 15, 60)
        errors = generator.binomial(words, 0.2)
        low, high = bootstrap_interval(errors, words, seed=i, resamples=300)
        covered += low <= 0.2 <= high
    assert 180 <= covered <= 199


def slow_percentile(values: list[float], share: float) -> float:
    """The value that far between the least and the largest, on the straight line between its two neighbors in order."""
    place, ordered = share * (len(values) - 1), sorted(values)
    below = math.floor(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(values) - 1)] - ordered[below])


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_equals_a_slow_one(seed: int) -> None:
    """Each resample draws as many utterances as there are; 95 % of the rates lie within."""
    errors, words = np.array([0, 3, 1, 7, 2, 0, 4]), np.array([5, 11, 2, 9, 14, 3, 8])
    rates = []
    for drawn in np.random.default_rng(seed).integers(0, 7, size=(200, 7)):
        rates.append(sum(int(errors[i]) for i in drawn) / sum(int(words[i]) for i in drawn))
    found = bootstrap_interval(errors, words, seed=seed, resamples=200)
    assert found == pytest.approx((slow_percentile(rates, 0.025), slow_percentile(rates, 0.975)))


def test_bootstrap_of_equal_utterances_is_binomial() -> None:
    """With one word each, half of them wrong, the errors of a resample are heads of so many throws of a coin."""
    n, total, least = 400, 0, 0
    while (total + math.comb(n, least)) / 2**n < 0.025:
        total, least = total + math.comb(n, least), least + 1
    low, high = bootstrap_interval(np.arange(n) % 2, np.ones(n), seed=0, resamples=5000)
    assert n * low == pytest.approx(least, abs=1)
    assert n * high == pytest.approx(n - least, abs=1)


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (1, 3, 10 / 16), (10, 10, 1.0)])
def test_sign_test(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p)
    assert sign_test(worse, better) == pytest.approx(p)


def test_resamples_without_a_word_have_no_errors() -> None:
    """As of silence: nothing is divided by zero."""
    assert bootstrap_interval(np.array([0, 0]), np.array([0, 0]), seed=0, resamples=20) == (0.0, 0.0)
    low, high = bootstrap_interval(np.array([0, 1]), np.array([0, 1]), seed=0, resamples=200)
    assert (low, high) == (0.0, 1.0)
