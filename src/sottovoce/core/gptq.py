"""GPTQ (arXiv 2210.17323): rounding column by column, each error made good in the columns still to come.

With `H = X X^T + damping * mean(diag) * I` and `H^-1 = U^T U`, `U` upper triangular, for each column i:

    q_i = round(w_i);  e = (w_i - q_i) / U_ii;  w_j <- w_j - e * U_ij  for j > i

Columns are taken in blocks, with one matrix product per block for the columns behind it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.core.affine import Grid, Scaling, fit_scaling, round_to_codes
from sottovoce.core.error_metrics import output_energy
from sottovoce.core.hessian import Hessian, Order
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.scale_refit import refit_scaling

BLOCK = 32


@dataclass(frozen=True)
class GptqResult:
    """`damping` is what was used in the end, in units of the mean diagonal; `dead` counts columns that never see an input."""

    weight: QuantizedTensor
    damping: float
    dead: int


def gptq(
    weight: Tensor,
    hessian: Hessian,
    grid: Grid,
    *,
    damping: float = 0.01,
    order: Order = "activation",
    scaling: Scaling | None = None,
    refits: int = 0,
) -> GptqResult:
    """Quantize `weight` `[out, in]` against `hessian`.

    `order`: "activation" takes columns by decreasing diagonal, which needs scales fixed beforehand (from `weight`, or
    `scaling`); "original" takes them as they stand and fits each group's scale to the weights as compensated so far,
    unless `scaling` is given. Columns with a zero diagonal are dead: their weight becomes 0.
    `refits`: how often scales are fitted again to the codes (`core.refit`), which are rounded again in between; the best is kept.
    Raises `CalibrationError` if no damping up to 10^4 makes the Hessian positive definite.
    """
    dead = hessian.dead
    weight = torch.where(dead, 0.0, weight.float())
    columns = hessian.columns(order)
    factor, used = hessian.factor(damping, order)
    if order == "activation" and scaling is None:
        scaling = fit_scaling(weight, grid)
    factor = factor.float()
    codes, scaling = round_columns(weight, factor, grid, columns, scaling)
    best = QuantizedTensor.from_scaling(codes, scaling, grid)
    if refits:
        matrix = hessian.damped(used)
        least = output_energy(weight - best.dequantize(), matrix)
        for i in range(refits):
            if i:
                codes, _ = round_columns(weight, factor, grid, columns, scaling)
            scaling = refit_scaling(weight, codes, scaling, matrix, grid)
            refitted = QuantizedTensor.from_scaling(codes, scaling, grid)
            if (error := output_energy(weight - refitted.dequantize(), matrix)) < least:
                best, least = refitted, error
    return GptqResult(best, used, int(dead.sum()))


def round_columns(weight: Tensor, factor: Tensor, grid: Grid, columns: Tensor, scaling: Scaling | None) -> tuple[Tensor, Scaling]:
    """The column loop, over any leading batch dimensions.

    `weight` `[..., out, in]`; `factor` `[..., in, in]` in rounding order; `columns` `[..., in]` or `[in]`: which column is
    rounded when; `scaling` `[..., out, groups]`, or None to fit each
    group when it begins (columns in original order only). Returns codes (float, original order) and the scaling.
    """
    n = weight.shape[-1]
    batch, size = weight.shape[:-2], grid.columns_per_group(n)
    index = columns.expand(*batch, n).unsqueeze(-2).expand(weight.shape)
    # Columns first, so that each column is one contiguous piece of memory.
    work = torch.gather(weight, -1, index).transpose(-1, -2).contiguous()
    if scaling is not None:
        groups = (columns // size).expand(*batch, n).unsqueeze(-1).expand(work.shape)
        scale = torch.gather(scaling.scale.transpose(-1, -2).expand(*batch, -1, -1), -2, groups)
        zero = torch.gather(scaling.zero_point.transpose(-1, -2).expand(*batch, -1, -1), -2, groups)
    else:
        scale, zero = torch.empty_like(work), torch.empty_like(work)
    codes = torch.empty_like(work)
    fitted: list[Scaling] = []
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
            error = torch.sub(column, code.sub_(z).mul_(s), out=errors[..., i - start, :])
            if i + 1 < end:
                behind = rows[..., i, i + 1 : end].unsqueeze(-1)
                work[..., i + 1 : end, :].addcmul_(behind, error.unsqueeze(-2), value=-1)
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
