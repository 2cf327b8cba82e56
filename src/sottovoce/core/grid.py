"""Affine integer grids: which values a weight may take.

A weight `w` in a group with scale `s` and zero point `z` becomes the code `q = clamp(round(w / s) + z, 0, 2^bits - 1)` and
stands for `(q - z) * s`. Groups run along the input dimension. Scales are float16 numbers from the start, because that is
what files store: codes are rounded against the very scale that will be read back.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sottovoce.errors import RecipeError

BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128)
SHRINK_STEPS = 20
SHRINK_LOWEST = 0.4  # below this share of the min-max range no group of the models measured had its optimum
SEARCH_NORM = 2.4  # exponent of the rounding error that the search minimises, as in GPTQ's published code
SMALLEST_SCALE = 2.0**-24  # smallest positive float16
LARGEST_SCALE = 65504.0  # largest finite float16


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A number format for a weight matrix.

    `bits`: 2, 3, 4 or 8. `group_size`: columns that share a scale: 32, 64, 128, or None for a whole row. `symmetric`: the
    zero point is `2^(bits-1)` everywhere. `scale`: "minmax" spans each group's range; "search" shrinks that range to where
    the p = 2.4 norm of the rounding error is least.
    """

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = False
    scale: Literal["minmax", "search"] = "search"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise RecipeError(f"bits = {self.bits!r} is not supported; choose one of {BITS}")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise RecipeError(
                f"group size {self.group_size!r} is not supported; choose one of {GROUP_SIZES}, or a whole row"
            )
        if self.scale not in ("minmax", "search"):
            raise RecipeError(f"scale = {self.scale!r} is not known; choose 'minmax' or 'search'")

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
    """Scales (float16 values, > 0) and zero points (whole numbers in 0 .. 2^bits - 1), both float32 `[..., groups]`."""

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
    if grid.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best = _scaling_of_range(low, high, grid)
    if grid.scale == "minmax":
        return best
    weights = None if importance is None else importance.float().reshape(-1, size)
    least = _rounding_error(grouped, best, grid, weights)
    scale, zero = best.scale.clone(), best.zero_point.clone()
    for shrink in torch.linspace(1.0, SHRINK_LOWEST, SHRINK_STEPS + 1)[1:].tolist():
        candidate = _scaling_of_range(low * shrink, high * shrink, grid)
        error = _rounding_error(grouped, candidate, grid, weights)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, candidate.scale, scale)
        zero = torch.where(better, candidate.zero_point, zero)
    return Scaling(scale, zero)


def _scaling_of_range(low: Tensor, high: Tensor, grid: Grid) -> Scaling:
    scale = ((high - low) / grid.max_code).clamp(SMALLEST_SCALE, LARGEST_SCALE).half().float()
    scale = torch.where(high > low, scale, torch.ones_like(scale))  # a group of zeros: any scale will do
    if grid.symmetric:
        return Scaling(scale, torch.full_like(scale, float(grid.middle)))
    return Scaling(scale, torch.round(-low / scale).clamp(0, grid.max_code))


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
