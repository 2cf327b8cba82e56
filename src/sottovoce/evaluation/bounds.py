"""Upper bounds of a mean, from independent draws, that hold for every distribution and every number of draws.

Numbers in, numbers out. Each bound is one-sided: it lies below the true mean with probability at most `delta`. No bound here takes a
sum for normal: with losses that are mostly zero and rarely 1, a normal or bootstrap bound misses far more often than it says.

- Shares: Clopper and Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of the binomial".
- Means: betting, Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting" (the predictable plug-in of
  section 4, one-sided), as Bates et al. (2021), "Distribution-free, risk-controlling prediction sets" (section 3.1.3) use it.
- Means: Hoeffding and Bentkus, in the form of Angelopoulos et al. (2021), "Learn then test" (section 3.1).

A rate per word, E[a] / E[w] with `0 <= a <= w`, is bounded as a mean is: it is below `rate` where the mean of `a - rate w` is below 0.
"""

import math

import numpy as np

STEPS = 60  # of a bisection: the width of its last interval is below 1e-17


def clopper_pearson_bound(events: int, n: int, delta: float) -> float:
    """Return the largest share p for which at most `events` of `n` draws have probability `delta` at least.

    It is the `1 - delta` quantile of Beta(events + 1, n - events). Raises `ValueError` unless `0 <= events <= n`, `n >= 1` and
    `0 < delta < 1`.
    """
    _check(n, delta)
    if not 0 <= events <= n:
        raise ValueError(f"{events} events in {n} draws")
    if events == n:
        return 1.0
    low, high = events / n, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(events, n, middle) > delta else (low, middle)
    return high


def betting_bound(losses: np.ndarray, delta: float, *, weights: np.ndarray | None = None, floor: float = 0.0) -> np.ndarray:
    """Return the smallest mean that a gambler has refuted, `[...]`, for `losses` `[..., n]` in 0 .. 1 in an order fixed beforehand.

    The gambler's wealth if the mean is R is `K_i(R) = prod_{j <= i} (1 - v_j (L_j - R))`, with bets v_j that know the losses before j
    only. If the mean is R or more, no bet gains on average, so by Ville's inequality the wealth ever reaches `1 / delta` with
    probability at most `delta`. The bets are `v_i = min(1 / (1 - floor), sqrt(2 ln(1 / delta) / (n s^2_{i-1})))`, where `s^2` is the
    running variance of the losses, which starts at 1/4 around 1/2.

    `weights` `[..., n]` in 0 .. 1, none below its loss: bound E[loss] / E[weight] instead, by bets on `L_j - R w_j`. `floor`: the bound is
    never below it, which permits larger bets. Raises `ValueError` for numbers out of range.
    """
    losses = np.asarray(losses, float)
    _check(losses.shape[-1], delta)
    weighed = np.ones_like(losses) if weights is None else np.asarray(weights, float)
    if not (losses >= 0).all() or not (losses <= weighed).all() or not (weighed <= 1).all() or not 0 <= floor < 1:
        raise ValueError("losses must be within 0 .. weight, weights within 0 .. 1, and the floor within 0 .. 1")
    bets = _bets(losses + floor * (1 - weighed), delta, 1 / (1 - floor))
    low, high = np.full(losses.shape[:-1], floor), np.ones(losses.shape[:-1])
    for _ in range(STEPS):  # the wealth grows with R, since no bet depends on R
        middle = (low + high) / 2
        refuted = _wealth(losses, weighed, bets, middle) >= math.log(1 / delta)
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return high


def hoeffding_bentkus_bound(losses: np.ndarray, delta: float) -> float:
    """Return the smallest mean that the Hoeffding-Bentkus p-value refutes, for `losses` `[n]` in 0 .. 1; the order is of no matter.

    Raises `ValueError` for numbers out of range.
    """
    losses = np.asarray(losses, float)
    _check(losses.size, delta)
    if not (losses >= 0).all() or not (losses <= 1).all():
        raise ValueError("losses must be within 0 .. 1")
    mean = float(losses.mean())
    low, high = mean, 1.0
    for _ in range(STEPS):  # the p-value falls with the bound
        middle = (low + high) / 2
        low, high = (low, middle) if hoeffding_bentkus_p(mean, losses.size, middle) <= delta else (middle, high)
    return high


def hoeffding_bentkus_p(mean: float, n: int, bound: float) -> float:
    """Return a p-value of "the true mean is at least `bound`", for a `mean` of `n` draws in 0 .. 1.

    The lesser of `exp(-n h(min(mean, bound), bound))`, with the binary divergence `h`, and `e P[Bin(n, bound) <= ceil(n mean)]`.
    """
    if bound >= 1:
        return 0.0 if mean < 1 else 1.0
    hoeffding = math.exp(-n * _divergence(min(mean, bound), bound))
    # A sum that rounding left a trace above a whole number must not count as the next one: 1e-9 is less than any loss.
    bentkus = math.e * binomial_cdf(math.ceil(n * mean - 1e-9), n, bound)
    return min(1.0, hoeffding, bentkus)


def binomial_cdf(events: int, n: int, share: float) -> float:
    """Return the probability of at most `events` events in `n` draws, each of probability `share`."""
    if events >= n or share <= 0:
        return 1.0
    if share >= 1:
        return 0.0
    k = np.arange(events + 1)
    logarithms = _log_factorials(n)[n] - _log_factorials(n)[k] - _log_factorials(n)[n - k]
    logarithms = logarithms + k * math.log(share) + (n - k) * math.log1p(-share)
    largest = float(logarithms.max())
    return min(1.0, math.exp(largest) * float(np.exp(logarithms - largest).sum()))


def _bets(losses: np.ndarray, delta: float, largest: float) -> np.ndarray:
    """The bet on each loss, `[..., n]`, from the losses before it."""
    n = losses.shape[-1]
    draws = np.arange(1, n + 1)
    means = (0.5 + losses.cumsum(-1)) / (1 + draws)
    variances = (0.25 + ((losses - means) ** 2).cumsum(-1)) / (1 + draws)
    before = np.concatenate([np.full((*losses.shape[:-1], 1), 0.25), variances[..., :-1]], axis=-1)
    bets: np.ndarray = np.minimum(largest, np.sqrt(2 * math.log(1 / delta) / (n * before)))
    return bets


def _wealth(losses: np.ndarray, weights: np.ndarray, bets: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The logarithm of the greatest wealth that the bets ever reach if the rates are `rates` `[...]`."""
    with np.errstate(divide="ignore"):  # a bet that loses all: minus infinity, and no way back
        gains = np.log1p(-bets * (losses - rates[..., None] * weights))
    wealth: np.ndarray = gains.cumsum(-1).max(-1)
    return wealth


def _divergence(x: float, y: float) -> float:
    """x ln(x / y) + (1 - x) ln((1 - x) / (1 - y)), for 0 <= x <= y < 1."""
    first = x * math.log(x / y) if x > 0 else 0.0
    return first + (1 - x) * math.log((1 - x) / (1 - y))


_FACTORIALS: dict[int, np.ndarray] = {}


def _log_factorials(n: int) -> np.ndarray:
    """ln k! for k = 0 .. n; the last table is kept, since a bisection asks for it again and again."""
    if n not in _FACTORIALS:
        _FACTORIALS.clear()
        _FACTORIALS[n] = np.array([math.lgamma(k + 1) for k in range(n + 1)])
    return _FACTORIALS[n]


def _check(n: int, delta: float) -> None:
    if n < 1:
        raise ValueError("a bound needs one draw at least")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; a probability between 0 and 1 is wanted")
