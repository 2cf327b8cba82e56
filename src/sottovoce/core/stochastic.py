"""Stochastic rounding onto an affine grid: up or down by chance, so that the expected value is the weight.

A weight between two levels goes to the upper one with the probability of its share of the way, `q = floor(w / s + u) + z` with `u`
uniform in [0, 1). The error has no bias and a larger variance: 1/6 of a squared step on average, and 1/12 by rounding to nearest. The
number `u` is a hash of the weight, the scale and the seed, so that the same inputs give the same codes in whatever order they come.
What results are ordinary affine codes, which every reader of affine formats takes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sottovoce.core.affine import Affine

MASK = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Stochastic(Affine):
    """An affine grid onto which weights are rounded up or down by chance. Scales are searched as for rounding to nearest."""

    name: ClassVar[str] = "stochastic"

    seed: int = 0

    @property
    def title(self) -> str:
        return f"{super().title}, stochastic rounding, seed {self.seed}"

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        settings = {name: value for name, value in self.settings.items() if name != "seed"}
        return Affine(**settings).fit(weight, importance)

    def nearest(self, weight: Tensor, *expanded: Tensor) -> Tensor:
        """Return the codes of the level below or above, by chance; clamped where there is none."""
        scale, zero = expanded[0], expanded[1]
        return torch.floor(weight / scale + uniform(weight, scale, self.seed)).add_(zero).clamp_(0, self.max_code)


def uniform(weight: Tensor, scale: Tensor, seed: int) -> Tensor:
    """Return numbers in [0, 1) that depend on the bits of `weight` and `scale` (float32, shapes that broadcast) and on `seed`."""
    mixed = _mix(_bits(scale) ^ _mix(torch.tensor(seed & MASK, device=weight.device)))
    return (_mix(_bits(weight) ^ mixed) >> 8).float() / (1 << 24)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous().view(torch.int32).long() & MASK


def _mix(value: Tensor) -> Tensor:
    """Scatter the 32 low bits (the finalizer of a 32-bit hash; both factors are below 2^31, so that products fit in 63 bits)."""
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & MASK
    value = ((value ^ (value >> 15)) * 0x735A2D97) & MASK
    return value ^ (value >> 15)
