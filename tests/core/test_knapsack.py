"""The knapsack against brute force, and water-filling against its worked example and a general optimizer."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sottovoce.core.knapsack import Packing, _pareto, _Relaxation, least_cost
from sottovoce.core.water_filling import reverse_water_filling

# Few different numbers, so that ties and dominated options occur.
number = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.0, 2.0, 3.5]) | st.floats(0, 5)
option = st.tuples(st.integers(0, 12), number)
items = st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=6)


def brute_force(weights: list[list[float]], costs: list[list[float]], capacity: float) -> float | None:
    sums = [
        sum(costs[i][k] for i, k in enumerate(choice))
        for choice in itertools.product(*(range(len(row)) for row in costs))
        if sum(weights[i][k] for i, k in enumerate(choice)) <= capacity
    ]
    return min(sums, default=None)


@settings(max_examples=300, deadline=None)
@given(items, st.integers(0, 60))
def test_equals_brute_force(given_items: list[list[tuple[int, float]]], capacity: int) -> None:
    weights = [[float(w) for w, _ in row] for row in given_items]
    costs = [[c for _, c in row] for row in given_items]
    found, wanted = least_cost(weights, costs, capacity), brute_force(weights, costs, capacity)
    if wanted is None:
        assert found is None
        return
    assert found is not None
    assert found.cost == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert found.weight <= capacity
    assert found.weight == sum(weights[i][k] for i, k in enumerate(found.options))
    assert found.cost == pytest.approx(sum(costs[i][k] for i, k in enumerate(found.options)))


def test_worked_example() -> None:
    """Two units of 10 bytes at 4 bits and 20 at 8; 30 bytes go to the one that gains more."""
    assert least_cost([[10, 20], [10, 20]], [[4.0, 1.0], [6.0, 2.0]], 30) == Packing((0, 1), 30.0, 6.0)


def test_a_hundred_units_are_quick() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(10_000, 3_000_000, 100)
    bits = np.array([2.56, 3.06, 4.5, 5.0, 5.5, 6.56, 8.5, 16.0])
    scale = generator.lognormal(0, 2, 100)
    weights = [list(np.ceil(size * bits / 8)) for size in sizes]
    costs = [list(s * 4.0**-bits * generator.lognormal(0, 0.1, len(bits))) for s in scale]
    found = least_cost(weights, costs, float(sizes.sum() * 4.4 / 8))
    assert found is not None
    assert found.weight <= sizes.sum() * 4.4 / 8 < 1.001 * found.weight


def test_water_filling_worked_example() -> None:
    bits = reverse_water_filling([10, 10, 20, 5], [1, 4, 16, 0.25], 3.0, 0, 16)
    np.testing.assert_allclose(bits, [2, 3, 4, 1], atol=1e-9)


def test_water_filling_clips_and_solves_the_rest_again() -> None:
    bits = reverse_water_filling([10, 10, 20, 5], [1, 4, 16, 0.25], 3.0, 2, 8)
    assert bits.min() == 2
    assert np.average(bits, weights=[10, 10, 20, 5]) == pytest.approx(3)
    # Those that are not clipped have equal losses per weight.
    free = [i for i, b in enumerate(bits) if b > 2]
    losses = [np.array([1, 4, 16, 0.25])[i] * 4.0 ** -bits[i] for i in free]
    np.testing.assert_allclose(losses, losses[0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(1e-6, 1e3)), min_size=2, max_size=6), st.floats(2, 8), st.integers(0, 9))
def test_no_move_of_bits_is_better(units: list[tuple[int, float]], mean: float, seed: int) -> None:
    counts, levels = np.array([n for n, _ in units], float), np.array([c for _, c in units])
    bits = reverse_water_filling(counts, levels, mean, 1, 10)
    loss = float((counts * levels * 4.0**-bits).sum())
    assert np.average(bits, weights=counts) == pytest.approx(mean, abs=1e-6)
    move = np.random.default_rng(seed).normal(0, 0.3, len(bits))
    moved = np.clip(bits + move - np.average(move, weights=counts), 1, 10)
    if np.average(moved, weights=counts) <= np.average(bits, weights=counts):
        assert (counts * levels * 4.0**-moved).sum() >= loss * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_the_linear_relaxation(seed: int) -> None:
    """What partial choices are dropped by: the least cost if items could be mixed from their options, by a general solver."""
    random = np.random.default_rng(seed)
    items = [_pareto(random.uniform(1, 9, 6), random.uniform(0, 9, 6)) for _ in range(4)]
    relaxed = _Relaxation(items)
    weights, costs = (np.concatenate([item[k] for item in items]) for k in (0, 1))
    one_each = np.zeros((len(items), len(weights)))
    ends = np.cumsum([len(item[0]) for item in items])
    for i, end in enumerate(ends):
        one_each[i, end - len(items[i][0]) : end] = 1
    heaviest = sum(float(item[0][-1]) for item in items)
    for capacity in np.linspace(relaxed.lightest, heaviest, 7):
        wanted = linprog(costs, A_ub=weights[None], b_ub=[capacity + 1e-9], A_eq=one_each, b_eq=np.ones(len(items)))
        assert wanted.success
        assert float(relaxed(np.array(capacity))) == pytest.approx(wanted.fun, abs=1e-6)
