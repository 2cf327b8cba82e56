"""GPTQ (arXiv 2210.17323): rounding column by column, each error made good in the columns still to come.

With `H = X X^T + damping * mean(diag) * I` and `H^-1 = U^T U`, `U` upper triangular, for each column i:

    q_i = round(w_i);  e = (w_i - q_i) / U_ii;  w_j <- w_j - e * U_ij  for j > i

Columns are taken in blocks with one matrix product per block for the columns behind it. `U` is the inverse of the upper
triangular `R` of `H = R R^T`, taken from a Cholesky factor of `H` with its columns reversed; `H` itself is never inverted.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sottovoce.core.grid import Grid, Scaling, fit_scaling, round_to_codes
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import CalibrationError

BLOCK = 64
DAMPING_STEP = 10.0  # factor by which the damping grows when a factorisation fails
DAMPING_LIMIT = 1e4

Order = Literal["activation", "original"]


@dataclass(frozen=True)
class GptqResult:
    """`damping` is what was used in the end, in units of the mean diagonal; `dead` counts columns that never see an input."""

    weight: QuantizedTensor
    damping: float
    dead: int


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    damping: float = 0.01,
    order: Order = "activation",
    scaling: Scaling | None = None,
) -> GptqResult:
    """Quantize `weight` `[out, in]` against `hessian` `[in, in]`.

    `order`: "activation" takes columns by decreasing diagonal, which needs scales fixed beforehand (from `weight`, or
    `scaling`); "original" takes them as they stand and fits each group's scale to the weights as compensated so far,
    unless `scaling` is given. Columns with a zero diagonal are dead: their weight becomes 0.
    Raises `CalibrationError` if no damping up to 10^4 makes the Hessian positive definite.
    """
    dead = hessian.diagonal() <= 0
    weight = torch.where(dead, 0.0, weight.float())
    columns = column_order(hessian, order)
    factor, used = inverse_factor(hessian, damping, columns)
    if order == "activation" and scaling is None:
        scaling = fit_scaling(weight, grid)
    size = grid.columns_per_group(weight.shape[1])
    codes, scaling = solve_columns(weight, factor, grid, columns // size, columns, scaling)
    return GptqResult(QuantizedTensor.from_scaling(codes, scaling, grid), used, int(dead.sum()))


def column_order(hessian: Tensor, order: Order) -> Tensor:
    """The columns in the order they are rounded; int64 `[in]`. Equal diagonals keep their order."""
    diagonal = hessian.diagonal()
    if order == "activation":
        return torch.argsort(diagonal, descending=True, stable=True)
    return torch.arange(len(diagonal))


def inverse_factor(hessian: Tensor, damping: float, columns: Tensor) -> tuple[Tensor, float]:
    """Upper triangular `U` with `U^T U = (H + damping * mean(diag H) * I)^-1`, rows and columns taken in the order `columns`.

    Computed in the dtype of `hessian`, returned as float32, with the damping that was used: it is raised tenfold until
    the factorisation succeeds.
    """
    mean = float(hessian.diagonal().mean())
    if not mean > 0:
        return torch.eye(len(hessian)), damping  # nothing was ever seen: plain rounding, and every column is dead
    backwards = columns.flip(0)
    reordered = hessian[backwards][:, backwards]
    reordered.diagonal()[reordered.diagonal() <= 0] = mean
    while damping <= DAMPING_LIMIT:
        damped = reordered.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and bool(torch.isfinite(lower).all()):
            # H backwards = L L^T, so H = R R^T with R = L read backwards both ways; U = R^-1 is L^-1 read the same way.
            inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
            return inverse.flip(0, 1).float(), damping
        damping = max(damping, 1e-4) * DAMPING_STEP
    raise CalibrationError(
        f"the Hessian is not positive definite even with a damping of {DAMPING_LIMIT:g} times its mean diagonal ({mean:g}): "
        "check the calibration audio and the model's weights for NaN"
    )


def solve_columns(
    weight: Tensor, factor: Tensor, grid: Grid, group_of: Tensor, columns: Tensor, scaling: Scaling | None
) -> tuple[Tensor, Scaling]:
    """The column loop, over any leading batch dimensions.

    `weight` `[..., out, in]`; `factor` `[..., in, in]` in rounding order; `columns` `[..., in]` or `[in]`: which column is
    rounded when; `group_of` the same shape: the group of each of them; `scaling` `[..., out, groups]`, or None to fit each
    group when it begins (columns in original order only). Returns codes (float, original order) and the scaling.
    """
    n = weight.shape[-1]
    batch = weight.shape[:-2]
    index = columns.expand(*batch, n).unsqueeze(-2).expand(weight.shape)
    # Columns first, so that each column is one contiguous piece of memory.
    work = torch.gather(weight, -1, index).transpose(-1, -2).contiguous()
    if scaling is not None:
        groups = group_of.expand(*batch, n).unsqueeze(-1).expand(work.shape)
        scale = torch.gather(scaling.scale.transpose(-1, -2).expand(*batch, -1, -1), -2, groups)
        zero = torch.gather(scaling.zero_point.transpose(-1, -2).expand(*batch, -1, -1), -2, groups)
    else:
        scale, zero = torch.empty_like(work), torch.empty_like(work)
    codes = torch.empty_like(work)
    size, fitted = grid.columns_per_group(n), []
    rows = factor / factor.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # row i is U_i / U_ii: errors stay in weight units
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        errors = torch.empty_like(work[..., start:end, :])
        for i in range(start, end):
            if scaling is None and i % size == 0:
                # The group may reach beyond this block: bring those columns up to date before fitting.
                group = _up_to_date(work, errors, rows, start, i, end, i + size)
                fitted.append(fit_scaling(group.transpose(-1, -2), grid))
                scale[..., i : i + size, :] = fitted[-1].scale.transpose(-1, -2)
                zero[..., i : i + size, :] = fitted[-1].zero_point.transpose(-1, -2)
            column, s, z = work[..., i, :], scale[..., i, :], zero[..., i, :]
            code = round_to_codes(column, s, z, grid)
            codes[..., i, :] = code
            error = column - (code - z) * s
            errors[..., i - start, :] = error
            if i + 1 < end:
                work[..., i + 1 : end, :] -= rows[..., i, i + 1 : end].unsqueeze(-1) * error.unsqueeze(-2)
        if end < n:
            work[..., end:, :] -= rows[..., start:end, end:].transpose(-1, -2) @ errors
    if scaling is None:
        scaling = Scaling(torch.cat([f.scale for f in fitted], -1), torch.cat([f.zero_point for f in fitted], -1))
    result = torch.empty_like(weight)
    result.scatter_(-1, index, codes.transpose(-1, -2))
    return result, scaling


def _up_to_date(work: Tensor, errors: Tensor, rows: Tensor, start: int, i: int, end: int, stop: int) -> Tensor:
    """Columns `i` to `stop`, with this block's errors so far also taken out of the columns behind the block."""
    group = work[..., i:stop, :]
    if stop <= end or i == start:
        return group
    group = group.clone()
    group[..., end - i :, :] -= rows[..., start:i, end:stop].transpose(-1, -2) @ errors[..., : i - start, :]
    return group
