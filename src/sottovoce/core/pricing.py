"""What a number format costs a layer, from GPTQ's own Cholesky factor and without running GPTQ.

With `H + damping = (U^T U)^-1`, GPTQ's error is exactly `tr(E H E^T) = sum_i sum_r (e_ri / U_ii)^2`, where `e_ri` is what rounding
takes from the weight of row r and column i at the moment it is rounded. Those weights are the original ones plus corrections that do not
know the grid, so the errors are as large as those of plain rounding. For steps s without clipping they are uniform in a cell:

    E = sum_i (1 / U_ii^2) sum_r s_ri^2 / 12

Here the mean squared rounding error of each block stands in place of `s^2 / 12`: the two agree for uniform steps, and the former also
knows clipping and levels at unequal distances. One factor prices every format.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.core.hessian import Hessian
from sottovoce.core.number_format import NumberFormat


@dataclass(frozen=True)
class ColumnWeights:
    """What a squared rounding error in each column adds to the layer's error: `1 / U_ii^2`, `[in]`, float64, original order.

    `importance` `[in]`: by which the format is fitted, or None: unweighted.
    """

    weights: Tensor
    importance: Tensor | None = None


def column_weights(hessian: Hessian, damping: float, *, act_order: bool, importance: bool) -> ColumnWeights:
    """Take the column weights from the factor that GPTQ uses. A column that never sees an input weighs nothing."""
    factor, _ = hessian.factor(damping, act_order)
    weights = torch.empty(len(factor), dtype=torch.float64, device=factor.device)
    weights[hessian.columns(act_order)] = factor.diagonal().double().square().reciprocal()
    return ColumnWeights(torch.where(hessian.dead, 0.0, weights), hessian.importance if importance else None)


def expected_error(weight: Tensor, columns: ColumnWeights, number_format: NumberFormat) -> float:
    """Return the expected `tr(E H E^T)` of GPTQ on `weight` `[out, in]` in this format."""
    n = weight.shape[1]
    size = number_format.block_size(n)
    parameters = number_format.fit(weight, columns.importance)
    error = weight.float() - number_format.decode(number_format.encode(weight, parameters), parameters)
    per_block = error.square().sum(0, dtype=torch.float64).reshape(-1, size).mean(1)
    return float((per_block * columns.weights.reshape(-1, size).sum(1)).sum())
