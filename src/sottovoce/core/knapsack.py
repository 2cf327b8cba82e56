"""The multiple-choice knapsack: one option for each item, the least total cost within a total weight. Exact.

Dynamic programming over the items keeps the Pareto front of (weight, cost) of the items so far. A partial choice is dropped if even the
best continuation cannot beat a choice that is known: the bound is the linear relaxation of the items to come, whose minimum is a convex,
piecewise linear function of the weight that is left (Kellerer, Pferschy, Pisinger: Knapsack Problems, chapter 11).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SLACK = 1e-12  # relative; what differs by less is equal


@dataclass(frozen=True)
class Packing:
    """The option of each item, and the totals."""

    options: tuple[int, ...]
    weight: float
    cost: float


def least_cost(weights: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], capacity: float) -> Packing | None:
    """Choose one option per item with `sum(weights) <= capacity` and the least `sum(costs)`; None if even the lightest is too heavy.

    `weights[i][k]`, `costs[i][k]`: not negative, of option k of item i. Of equal costs the lighter choice wins.
    """
    items = [_pareto(np.asarray(w, float), np.asarray(c, float)) for w, c in zip(weights, costs, strict=True)]
    if sum(w[0] for w, _, _ in items) > capacity:
        return None
    bounds = [_Relaxation(items[i:]) for i in range(len(items) + 1)]
    best = _rounded_down(items, capacity)
    weight, cost = np.zeros(1), np.zeros(1)
    history = list[tuple[np.ndarray, np.ndarray]]()  # per item: the state before, the option
    for i, (own_weight, own_cost, options) in enumerate(items):
        parents = np.repeat(np.arange(len(weight)), len(options))
        new_weight = (weight[:, None] + own_weight[None, :]).ravel()
        new_cost = (cost[:, None] + own_cost[None, :]).ravel()
        chosen = np.tile(options, len(weight))
        left = capacity - new_weight
        kept = left >= bounds[i + 1].lightest - SLACK * max(capacity, 1.0)
        bound = np.full(len(left), np.inf)
        bound[kept] = new_cost[kept] + bounds[i + 1](left[kept])
        kept &= bound <= best * (1 + 1e-9) + SLACK
        front = np.flatnonzero(kept)
        front = front[np.lexsort((new_cost[front], new_weight[front]))]
        lowest = np.minimum.accumulate(new_cost[front])
        front = front[np.r_[True, new_cost[front][1:] < lowest[:-1]]]
        weight, cost = new_weight[front], new_cost[front]
        history.append((parents[front], chosen[front]))
    state = len(cost) - 1  # a front: the cheapest is the heaviest
    result = Packing((), float(weight[state]), float(cost[state]))
    options_found = list[int]()
    for parents, chosen in reversed(history):
        options_found.append(int(chosen[state]))
        state = int(parents[state])
    return Packing(tuple(reversed(options_found)), result.weight, result.cost)


def _pareto(weight: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The options that no lighter one is as cheap as, by increasing weight: weights, costs, numbers."""
    order = np.lexsort((cost, weight))
    lowest = np.minimum.accumulate(cost[order])
    kept = order[np.r_[True, cost[order][1:] < lowest[:-1]]]
    return weight[kept], cost[kept], kept


def _hull(weight: np.ndarray, cost: np.ndarray) -> list[int]:
    """The lower convex hull of a Pareto front."""
    hull = list[int]()
    for i in range(len(weight)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (cost[a] - cost[b]) * (weight[i] - weight[b]) <= (cost[b] - cost[i]) * (weight[b] - weight[a]):
                hull.pop()
            else:
                break
        hull.append(i)
    return hull


class _Relaxation:
    """The least cost of the linear relaxation of some items, as a function of the capacity."""

    def __init__(self, items: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        self.lightest = sum(float(w[0]) for w, _, _ in items)
        steps = list[tuple[float, float]]()
        for weight, cost, _ in items:
            hull = _hull(weight, cost)
            steps += [(float(weight[b] - weight[a]), float(cost[a] - cost[b])) for a, b in zip(hull, hull[1:], strict=False)]
        steps.sort(key=lambda step: step[1] / step[0], reverse=True)
        base = sum(float(c[0]) for _, c, _ in items)
        self._weights = self.lightest + np.cumsum([0.0] + [step[0] for step in steps])
        self._costs = base - np.cumsum([0.0] + [step[1] for step in steps])

    def __call__(self, capacity: np.ndarray) -> np.ndarray:
        return np.asarray(np.interp(capacity, self._weights, self._costs))


def _rounded_down(items: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], capacity: float) -> float:
    """The cost of a good choice: the steps of the hulls in order of gain per weight, as long as they fit."""
    at = [0] * len(items)
    hulls = [_hull(weight, cost) for weight, cost, _ in items]
    room = capacity - sum(float(w[0]) for w, _, _ in items)
    steps = list[tuple[float, int, int, float]]()
    for i, (weight, cost, _) in enumerate(items):
        for k in range(1, len(hulls[i])):
            a, b = hulls[i][k - 1], hulls[i][k]
            steps.append((float(cost[a] - cost[b]) / float(weight[b] - weight[a]), i, k, float(weight[b] - weight[a])))
    for _, i, k, heavier in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        if at[i] == k - 1 and heavier <= room:
            at[i], room = k, room - heavier
    return sum(float(cost[hulls[i][at[i]]]) for i, (_, cost, _) in enumerate(items))
