"""Bounds: equal to slow references and to scipy, and no more misses than they say on losses that are mostly zero and rarely 1."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from sottovoce.evaluation.bounds import (
    betting_bound,
    binomial_cdf,
    clopper_pearson_bound,
    hoeffding_bentkus_bound,
    hoeffding_bentkus_p,
)

DRAWS, DELTA = 2000, 0.05
ALLOWED = DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)  # delta and three standard deviations of a share of so many draws

Losses = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def rare_ones(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return (generator.random(size) < 0.004).astype(float)


def zero_inflated(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    small = np.where(generator.random(size) < 0.2, generator.beta(1, 15, size), 0)
    return np.where(generator.random(size) < 0.006, 1.0, small)


def half_and_half(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return (generator.random(size) < 0.5).astype(float)


MEANS = {rare_ones: 0.004, zero_inflated: 0.006 + 0.994 * 0.2 / 16, half_and_half: 0.5}


@pytest.mark.parametrize("losses", MEANS, ids=lambda losses: losses.__name__)
def test_the_betting_bound_misses_no_more_than_it_says(losses: Losses) -> None:
    bounds = betting_bound(losses(np.random.default_rng(0), (DRAWS, 200)), DELTA)
    assert (bounds < MEANS[losses]).mean() <= ALLOWED
    assert bounds.mean() < MEANS[losses] + 0.12  # and it says something


def test_the_normal_bound_would_fail_here() -> None:
    values = zero_inflated(np.random.default_rng(0), (DRAWS, 200))
    normal = values.mean(1) + 1.645 * values.std(1, ddof=1) / math.sqrt(200)
    assert (normal < MEANS[zero_inflated]).mean() > ALLOWED


def test_the_betting_bound_of_a_rate_per_word_misses_no_more_than_it_says() -> None:
    generator = np.random.default_rng(1)
    weights = (1 + generator.geometric(0.08, (DRAWS, 200))).clip(1, 64) / 64
    # Long utterances are worse: the mean over words is not the mean over utterances.
    wrong = generator.random((DRAWS, 200)) < 0.1 * weights
    many = np.random.default_rng(2)
    lengths = (1 + many.geometric(0.08, 2_000_000)).clip(1, 64) / 64
    true = (0.1 * lengths**2).mean() / lengths.mean()
    bounds = betting_bound(weights * wrong, DELTA, weights=weights)
    assert (bounds < true).mean() <= ALLOWED
    assert bounds.mean() < 0.25


def test_the_betting_bound_of_a_signed_mean_misses_no_more_than_it_says() -> None:
    generator = np.random.default_rng(3)
    changes = np.where(generator.random((DRAWS, 200)) < 0.03, 1.0, -0.02)
    bounds = 2 * betting_bound((changes + 1) / 2, DELTA, floor=0.5) - 1
    assert (bounds < 0.03 - 0.97 * 0.02).mean() <= ALLOWED
    assert bounds.min() >= 0


@pytest.mark.parametrize("share", [0.004, 0.1, 0.5])
def test_the_bounds_of_a_share_miss_no_more_than_they_say(share: float) -> None:
    events = np.random.default_rng(4).binomial(300, share, DRAWS)
    exact = {k: clopper_pearson_bound(int(k), 300, DELTA) for k in set(events)}
    assert np.mean([exact[k] < share for k in events]) <= ALLOWED
    p_values = {k: hoeffding_bentkus_p(k / 300, 300, share) for k in set(events)}
    assert np.mean([p_values[k] <= DELTA for k in events]) <= ALLOWED


def test_hoeffding_bentkus_misses_no_more_than_it_says() -> None:
    means = zero_inflated(np.random.default_rng(5), (DRAWS, 300)).mean(1)
    assert np.mean([hoeffding_bentkus_p(mean, 300, MEANS[zero_inflated]) <= DELTA for mean in means]) <= ALLOWED


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.001, 0.5))
def test_clopper_pearson_is_scipys_beta_quantile(n: int, share: float, delta: float) -> None:
    events = round(share * n)
    wanted = 1.0 if events == n else beta.ppf(1 - delta, events + 1, n - events)
    assert clopper_pearson_bound(events, n, delta) == pytest.approx(wanted, rel=1e-9)


def test_clopper_pearson_without_events_and_at_the_published_sizes() -> None:
    assert clopper_pearson_bound(0, 300, 0.05) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert [round(100 * clopper_pearson_bound(k, 2620, 0.05), 2) for k in (0, 1, 3, 10)] == [0.11, 0.18, 0.30, 0.65]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_the_binomial_distribution_is_scipys(n: int, share: float, part: float) -> None:
    events = round(part * n)
    assert binomial_cdf(events, n, share) == pytest.approx(binom.cdf(events, n, share), abs=1e-11)


def slow_betting_bound(losses: list[float], weights: list[float], delta: float, floor: float = 0.0) -> float:
    """The formula of Waudby-Smith and Ramdas, one loss after the other, for a thousand rates from `floor` on.

    Bets are on `L - R w`, none larger than `1 / (1 - floor)`; their variance is that of `L + floor (1 - w)`.
    """
    n = len(losses)
    for step in range(1001):
        rate, wealth, greatest = floor + (1 - floor) * step / 1000, 1.0, 0.0
        total, squares, variance = 0.5, 0.25, 0.25
        for i, (loss, weight) in enumerate(zip(losses, weights, strict=True), start=1):
            bet = min(1 / (1 - floor), math.sqrt(2 * math.log(1 / delta) / (n * variance)))
            wealth *= 1 - bet * (loss - rate * weight)
            greatest = max(greatest, wealth)
            bet_on = loss + floor * (1 - weight)
            total += bet_on
            squares += (bet_on - total / (1 + i)) ** 2
            variance = squares / (1 + i)
        if greatest >= 1 / delta:
            return rate
    return 1.0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(0, 1)), min_size=1, max_size=30), st.sampled_from([0.05, 0.2]))
def test_the_betting_bound_is_that_of_the_slow_reference(losses: list[float], delta: float) -> None:
    bound = float(betting_bound(np.array(losses), delta))
    assert bound == pytest.approx(slow_betting_bound(losses, [1.0] * len(losses), delta), abs=1e-3)
    assert bound >= 0
    halves = np.full(len(losses), 0.5)  # a weight of all alike changes the units of the losses, no more
    assert betting_bound(np.array(losses) * 0.5, delta, weights=halves) >= bound - 1e-12


def test_hoeffding_bentkus_is_the_formula() -> None:
    n, mean, bound = 40, 0.13, 0.3
    divergence = mean * math.log(mean / bound) + (1 - mean) * math.log((1 - mean) / (1 - bound))
    tail = sum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(math.ceil(n * mean) + 1))
    assert hoeffding_bentkus_p(mean, n, bound) == pytest.approx(min(math.exp(-n * divergence), math.e * tail))
    found = hoeffding_bentkus_bound(np.full(n, mean), 0.05)
    assert hoeffding_bentkus_p(mean, n, found) <= 0.05 < hoeffding_bentkus_p(mean, n, found - 1e-6)


def test_the_published_sizes_of_bounds_of_a_mean() -> None:
    """Of losses with mean 1.6 %, 80 % zero: betting is nearer than Hoeffding-Bentkus (2.5 and 3.4 % at n = 500)."""
    values = zero_inflated(np.random.default_rng(6), (20, 500))
    betting = betting_bound(values, 0.05).mean()
    assert betting < np.mean([hoeffding_bentkus_bound(row, 0.05) for row in values])
    assert betting < 0.035


@pytest.mark.parametrize(
    "call",
    [
        lambda: clopper_pearson_bound(3, 2, 0.05),
        lambda: clopper_pearson_bound(0, 0, 0.05),
        lambda: clopper_pearson_bound(0, 5, 0.0),
        lambda: betting_bound(np.array([1.2]), 0.05),
        lambda: betting_bound(np.array([0.5]), 0.05, weights=np.array([0.4])),
        lambda: betting_bound(np.array([float("nan")]), 0.05),
        lambda: betting_bound(np.zeros(0), 0.05),
        lambda: hoeffding_bentkus_bound(np.array([-0.1]), 0.05),
    ],
)
def test_numbers_out_of_range_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        call()


def test_several_series_at_once_have_the_bounds_that_each_has_alone() -> None:
    generator = np.random.default_rng(0)
    losses, weights = generator.random((2, 3, 40)) * 0.3, 0.5 + 0.5 * generator.random((2, 3, 40))
    for weighed, floor in ((None, 0.0), (None, 0.25), (weights, 0.0), (weights, 0.25)):
        found = betting_bound(losses, DELTA, weights=weighed, floor=floor)
        assert found.shape == (2, 3)
        for i, j in np.ndindex(2, 3):
            alone = betting_bound(losses[i, j], DELTA, weights=None if weighed is None else weighed[i, j], floor=floor)
            assert alone.shape == ()
            assert found[i, j] == alone


@pytest.mark.parametrize("floor", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_rate_per_word_with_a_floor_is_that_of_the_slow_reference(floor: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = 0.2 + 0.8 * generator.random(25)
    losses = weights * np.where(generator.random(25) < 0.3 + floor / 2, 1.0, 0.4 * floor)
    found = float(betting_bound(losses, DELTA, weights=weights, floor=floor))
    assert found == pytest.approx(slow_betting_bound(losses.tolist(), weights.tolist(), DELTA, floor), abs=1.01e-3)
    assert found >= floor


@pytest.mark.parametrize("losses", [[0.0], [1.0], [0.0, 1.0], [1.0] * 5])
def test_losses_at_the_ends_of_their_range_are_taken(losses: list[float]) -> None:
    for bound in (float(betting_bound(np.array(losses), DELTA)), hoeffding_bentkus_bound(np.array(losses), DELTA)):
        assert np.mean(losses) <= bound <= 1
    assert float(betting_bound(np.array(losses), DELTA, weights=np.ones(len(losses)))) == float(betting_bound(np.array(losses), DELTA))
    assert clopper_pearson_bound(len(losses), len(losses), DELTA) == 1


def test_p_values_at_the_ends() -> None:
    assert [hoeffding_bentkus_p(mean, 10, 1.0) for mean in (0.9, 1.0)] == [0.0, 1.0]
    assert hoeffding_bentkus_p(0.5, 10, 0.4) == 1.0  # the mean is above the bound already
    assert hoeffding_bentkus_p(0.0, 10, 0.5) == pytest.approx(0.5**10)
    # 0.1 + 0.2 is a trace above 0.3: three events of ten, not four.
    assert hoeffding_bentkus_p(0.1 + 0.2, 10, 0.9) == pytest.approx(hoeffding_bentkus_p(0.3, 10, 0.9))
    assert [binomial_cdf(events, 3, share) for events, share in ((3, 0.5), (2, 0.0), (2, 1.0), (0, 1.0))] == [1.0, 1.0, 0.0, 0.0]
    assert binomial_cdf(2, 3, 1.0 - 1e-12) == pytest.approx(3e-12, rel=1e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: clopper_pearson_bound(-1, 2, 0.05),
        lambda: clopper_pearson_bound(0, 5, 1.0),
        lambda: betting_bound(np.array([-0.1]), 0.05),
        lambda: betting_bound(np.array([0.5]), 0.05, weights=np.array([1.1])),
        lambda: betting_bound(np.array([0.5]), 0.05, floor=1.0),
        lambda: betting_bound(np.array([0.5]), 0.05, floor=-0.1),
        lambda: hoeffding_bentkus_bound(np.array([1.1]), 0.05),
        lambda: hoeffding_bentkus_bound(np.zeros(0), 0.05),
    ],
)
def test_numbers_just_out_of_range_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"events in|must be within|delta is|one draw"):
        call()


def test_one_draw_is_enough() -> None:
    assert clopper_pearson_bound(0, 1, 0.05) == pytest.approx(0.95)
