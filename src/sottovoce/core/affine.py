"""Affine integer grids: which values a weight may take.

A weight `w` in a group with scale `s` and zero point `z` becomes the code `q = clamp(round(w / s) + z, 0, 2^bits - 1)` and
stands for `(q - z) * s`. Groups run along the input dimension. Scales are float16 numbers from the start, because that is
what files store: codes are rounded against the very scale that will be read back. A symmetric grid has one level more
below its zero than above; its scales carry a sign, so that the longer side can face the larger weight, as in ggml's Q4_0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sottovoce.errors import RecipeError

BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128)
SHRINK_STEPS = 20
SHRINK_LOWEST = 0.4  # below this share of the min-max range no group of the models measured had its optimum
SEARCH_NORM = 2.4  # exponent of the rounding error that the search minimizes, as in GPTQ's published code
SMALLEST_SCALE = 2.0**-24  # smallest positive float16
LARGEST_SCALE = 65504.0  # largest finite float16
FLOAT16_DIGITS = 11  # binary digits of a normal float16, the leading one included
MAX_FLOAT16_MIN_BITS = 4  # wider zero points leave too few digits to the scale
SMALLEST_EXACT_SCALE = 2.0**-18  # its last digit still is a float16 number
LARGEST_EXACT_SCALE = 4096.0  # times 15 it still is


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A number format for a weight matrix.

    `bits`: 2, 3, 4 or 8. `group_size`: columns that share a scale: 32, 64, 128, or None for a whole row. `symmetric`: the
    zero point is `2^(bits-1)` everywhere. `scale`: "minmax" spans each group's range; "search" shrinks that range to where
    the p = 2.4 norm of the rounding error is least. `float16_min`: of an asymmetric grid of at most 4 bits: scales have so
    few binary digits that each group's minimum, `-zero_point * scale`, is a float16 number too, which is how ggml's Q4_1
    stores it.
    """

    bits: int = 4
    group_size: int | None = 32
    symmetric: bool = False
    scale: Literal["minmax", "search"] = "search"
    float16_min: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise RecipeError(f"bits = {self.bits!r} is not supported; choose one of {BITS}")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise RecipeError(f"group size {self.group_size!r} is not supported; choose one of {GROUP_SIZES}, or a whole row")
        if self.scale not in ("minmax", "search"):
            raise RecipeError(f"scale = {self.scale!r} is not known; choose 'minmax' or 'search'")
        if self.float16_min and not self.symmetric and self.bits > MAX_FLOAT16_MIN_BITS:
            raise RecipeError(
                f"an asymmetric grid of {self.bits} bits has no exact float16 minima; choose a symmetric one, or at most "
                f"{MAX_FLOAT16_MIN_BITS} bits"
            )

    @property
    def max_code(self) -> int:
        """The largest code, `2^bits - 1`."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid, `2^(bits-1)`."""
        return 1 << (self.bits - 1)

    def columns_per_group(self, in_features: int) -> int:
        """Columns in one group of a row of `in_features`. Raises `RecipeError` if groups do not divide the row."""
        size = self.group_size or in_features
        if in_features % size:
            fitting = [str(g) for g in GROUP_SIZES if in_features % g == 0] + ["a whole row"]
            raise RecipeError(f"groups of {size} do not divide a row of {in_features}; these do: {', '.join(fitting)}")
        return size


@dataclass(frozen=True)
class Scaling:
    """Scales (float16 values, not zero) and zero points (whole numbers in 0 .. 2^bits - 1), both float32 `[..., groups]`."""

    scale: Tensor
    zero_point: Tensor

    def __getitem__(self, rows: slice) -> "Scaling":
        return Scaling(self.scale[rows], self.zero_point[rows])


def fit_scaling(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Scaling:
    """Scale and zero point of every group of `weight` `[..., in]`; result `[..., groups]`.

    `importance` `[in]` (optional, positive) weighs the columns' rounding errors in a search.
    """
    size = grid.columns_per_group(weight.shape[-1])
    grouped = weight.float().reshape(*weight.shape[:-1], -1, size)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    best = next(_scalings(low, high, 1.0, grid))
    if grid.scale == "minmax":
        return best
    weights = None if importance is None else importance.float().reshape(-1, size)
    least = torch.full_like(low, float("inf"))
    scale, zero = best.scale.clone(), best.zero_point.clone()
    for shrink in torch.linspace(1.0, SHRINK_LOWEST, SHRINK_STEPS + 1).tolist():
        for candidate in _scalings(low, high, shrink, grid):
            error = _rounding_error(grouped, candidate, grid, weights)
            better = error < least
            least = torch.where(better, error, least)
            scale = torch.where(better, candidate.scale, scale)
            zero = torch.where(better, candidate.zero_point, zero)
    return Scaling(scale, zero)


def _scalings(low: Tensor, high: Tensor, shrink: float, grid: Grid) -> Iterator[Scaling]:
    """Scalings that span `shrink` times the range; of a symmetric grid first the one whose longer side is the larger weight's."""
    if not grid.symmetric:
        scale = storable((high - low) * shrink / grid.max_code, grid)
        yield Scaling(scale, torch.round(-low * shrink / scale).clamp(0, grid.max_code))
        return
    longer = torch.where(high > -low, -high, -low)  # what code 0 stands for is -middle * scale
    scale = storable(longer * shrink / grid.middle, grid)
    zero = torch.full_like(scale, float(grid.middle))
    yield Scaling(scale, zero)
    yield Scaling(-scale, zero)


def storable(scale: Tensor, grid: Grid) -> Tensor:
    """The nearest scale that a file holds; 1 for a group of zeros, which any scale will do for."""
    size = scale.abs()
    if grid.float16_min and not grid.symmetric:
        digits, exponent = torch.frexp(size.clamp(SMALLEST_EXACT_SCALE, LARGEST_EXACT_SCALE))
        steps = 1 << (FLOAT16_DIGITS - grid.bits)
        stored = torch.ldexp(torch.round(digits * steps) / steps, exponent)
    else:
        stored = size.clamp(SMALLEST_SCALE, LARGEST_SCALE).half().float()
    return torch.where(size > 0, stored.copysign(scale), torch.ones_like(scale))


def _rounding_error(grouped: Tensor, scaling: Scaling, grid: Grid, weights: Tensor | None) -> Tensor:
    """Sum over each group of |w - rounded w|^2.4; `[..., groups]`."""
    scale, zero = scaling.scale.unsqueeze(-1), scaling.zero_point.unsqueeze(-1)
    error = (round_to_codes(grouped, scale, zero, grid) - zero).mul_(scale).sub_(grouped).abs_().pow_(SEARCH_NORM)
    if weights is not None:
        error *= weights
    return error.sum(-1)


def round_to_codes(weight: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Nearest codes, as floats; `scale` and `zero_point` broadcast against `weight`."""
    return torch.round(weight / scale).add_(zero_point).clamp_(0, grid.max_code)
