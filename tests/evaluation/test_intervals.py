"""Intervals that cover what they say, and the sign test by hand."""

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


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (1, 3, 10 / 16), (10, 10, 1.0)])
def test_sign_test(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p)
    assert sign_test(worse, better) == pytest.approx(p)
