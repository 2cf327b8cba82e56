"""Confidence intervals and tests over utterances."""

import math
from fractions import Fraction

import numpy as np

RESAMPLES = 1000  # of the bootstrap over utterances


def sign_test(better: int, worse: int) -> float:
    """Return the exact two-sided p of a split at least as uneven under a fair coin; leave ties out beforehand."""
    count, fewer = better + worse, min(better, worse)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, float(Fraction(2 * tail, 2**count)))


def bootstrap_interval(errors: np.ndarray, words: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of the corpus rate (all errors over all words) over resamples of the utterances.

    `errors`, `words`: of each utterance, `[n]`.
    """
    samples = np.random.default_rng(seed).integers(0, len(errors), size=(resamples, len(errors)))
    rates = errors[samples].sum(axis=1) / np.maximum(words[samples].sum(axis=1), 1)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)
