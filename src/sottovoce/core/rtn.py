"""Round to nearest: the data-free baseline."""

from torch import Tensor

from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor, round_to_nearest


def rtn(weight: Tensor, number_format: NumberFormat, importance: Tensor | None = None) -> QuantizedTensor:
    """Round `weight` `[out, in]` to the nearest values of the format fitted to it, where errors in a column count by `importance` `[in]`.

    Raises `RecipeError` if the format's blocks do not divide `in`.
    """
    return round_to_nearest(weight, number_format.fit(weight, importance), number_format)
