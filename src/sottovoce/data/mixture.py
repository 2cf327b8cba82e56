"""Several data sets as one: how many utterances each gives, and a seeded draw of them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from sottovoce.data.dataset import DataSet, Share
from sottovoce.errors import DataError

Weighting = Literal["hours", "equal"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


def mix(sets: Sequence[DataSet], *, count: int | None, seed: int, weighting: Weighting = "hours") -> DataSet:
    """Draw `count` utterances (all if None) from `sets`, in an order that is drawn too.

    `weighting`: each set gives utterances by its hours of speech ("hours"), or all give as many ("equal"); one that has less than its
    share gives all, and the others make up for it. Of one set the draw is `DataSet.sample`. Raises `DataError` if a weighting is not
    known, there is no set, or two different recordings have one id (see `data.load.with_place`).
    """
    if weighting not in WEIGHTINGS:
        raise DataError(f"{weighting!r} is no weighting of data sets; known are {', '.join(WEIGHTINGS)}")
    if not sets:
        raise DataError("no data set was given; give one at least")
    if len(sets) == 1:
        return sets[0].sample(count, seed)
    seconds = [sum(utterance.duration_s() for utterance in data) for data in sets]
    weights = _normalized(seconds if weighting == "hours" else [1.0] * len(sets))
    available = [len(data) for data in sets]
    counts = available if count is None else allot(count, weights, available)
    drawn = [data.sample(n, seed) for data, n in zip(sets, counts, strict=True)]
    shares = tuple(
        Share(source=data.name, weight=weight, available=len(data), seconds=round(length, 3), utterances=n)
        for data, weight, length, n in zip(sets, weights, seconds, counts, strict=True)
    )
    whole = DataSet(
        " + ".join(data.name for data in sets),
        tuple(utterance for data in drawn for utterance in data),
        sum(data.left_out for data in sets),
    )
    return replace(whole.sample(None, seed), shares=shares)


def allot(count: int, weights: Sequence[float], available: Sequence[int]) -> list[int]:
    """Divide `count` by `weights` (that add up to 1) into whole numbers of at most `available`, by largest remainders.

    What is more than is available goes to the others, by their weights.
    """
    shares = _shares(min(count, sum(available)), np.array(weights, float), np.array(available, float))
    counts = [math.floor(share + 1e-9) for share in shares]
    # Of equal remainders, the first; equal up to the rounding of the shares.
    for i in sorted(range(len(counts)), key=lambda i: round(counts[i] - shares[i], 9))[: min(count, sum(available)) - sum(counts)]:
        counts[i] += 1
    return counts


def _shares(count: int, weights: np.ndarray, available: np.ndarray) -> list[float]:
    """`count` by weight, in fractions of an utterance. Where a set has less than that, the others take over."""
    shares, full = np.zeros(len(weights)), np.zeros(len(weights), bool)
    while not full.all():
        open_weights = np.where(full, 0.0, weights)
        if not open_weights.any():  # sets of no weight come last
            open_weights = np.where(full, 0.0, 1.0)
        shares = np.where(full, available, (count - available[full].sum()) * open_weights / open_weights.sum())
        beyond = ~full & (shares > available)
        if not beyond.any():
            break
        full |= beyond
    return [float(share) for share in shares]


def _normalized(weights: Sequence[float]) -> list[float]:
    """The weights as shares of 1; equal ones if all are 0 (no header tells how long the recordings are)."""
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else [1 / len(weights)] * len(weights)
