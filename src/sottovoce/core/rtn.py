"""Round to nearest: the data-free baseline."""

from torch import Tensor

from sottovoce.core.affine import Grid, fit_scaling
from sottovoce.core.qtensor import QuantizedTensor, round_to_nearest


def rtn(weight: Tensor, grid: Grid) -> QuantizedTensor:
    """`weight` `[out, in]` rounded to the nearest level of its own grid. Raises `RecipeError` if groups do not divide `in`."""
    return round_to_nearest(weight, fit_scaling(weight, grid), grid)
