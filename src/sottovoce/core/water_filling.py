"""Reverse water-filling: the bits per weight that real numbers of bits would choose, the ideal beside an integer schedule.

Minimize `sum_l n_l c_l 4^-b_l` with `sum_l n_l b_l = B`. All `c_l 4^-b_l` are equal at the optimum, so

    b_l = B/N + log2(c_l) / 2 - sum_m n_m log2(c_m) / (2 N),   N = sum n

Bits beyond the limits are clipped and stay; the rest is solved again until none moves (Cover and Thomas, Elements of Information Theory,
section 10.3.3).
"""

from collections.abc import Sequence

import numpy as np


def reverse_water_filling(counts: Sequence[float], levels: Sequence[float], mean_bits: float, least: float, most: float) -> np.ndarray:
    """Return the bits `[units]`, each within `least` and `most`, whose mean over the weights is `mean_bits` if the limits allow it.

    `counts`: weights of each unit. `levels`: loss per weight at 0 bits, `4^b` times that at b bits; a level of 0 gets `least`.
    """
    n, c = np.asarray(counts, float), np.asarray(levels, float)
    half_log = 0.5 * np.log2(np.maximum(c, np.finfo(float).tiny))

    def filled(water: float) -> np.ndarray:
        return np.asarray(np.clip(half_log - water, least, most))

    # The mean falls with the water level: all are clipped at the ends of this interval.
    low, high = float(half_log.min()) - most, float(half_log.max()) - least
    for _ in range(200):
        middle = (low + high) / 2
        if float(n @ filled(middle)) / n.sum() > mean_bits:
            low = middle
        else:
            high = middle
    return filled(high)
