"""GPTQ (arXiv 2210.17323): rounding column by column, each error made good in the columns still to come.

With `H = X X^T + damping * mean(diag) * I` and `H^-1 = U^T U`, `U` upper triangular, for each column i:

    q_i = round(w_i);  e = (w_i - q_i) / U_ii;  w_j <- w_j - e * U_ij  for j > i

Columns are taken in blocks, with one matrix product per block for the columns behind it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.core.error_metrics import output_energy
from sottovoce.core.hessian import Hessian
from sottovoce.core.number_format import NumberFormat, Parameters, join_blocks
from sottovoce.core.qtensor import QuantizedTensor

BLOCK = 32


@dataclass(frozen=True)
class GptqResult:
    """`damping` is what was used in the end, in units of the mean diagonal; `dead` counts columns that never see an input.

    `worst_case`: what `tr(E H E^T)` cannot exceed if no weight is further than half a step from a level when its turn comes, that is, if
    nothing clips: `sum_i (1 / U_ii^2) sum_r s_ri^2 / 4`, with the largest steps `s` of the final parameters.
    """

    weight: QuantizedTensor
    damping: float
    dead: int
    worst_case: float


def gptq(
    weight: Tensor,
    hessian: Hessian,
    number_format: NumberFormat,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    parameters: Parameters | None = None,
    scale_refits: int = 0,
    adaptive: bool = False,
) -> GptqResult:
    """Quantize `weight` `[out, in]` against `hessian` (`damping`: dampening_frac or percdamp elsewhere).

    `act_order` takes columns by decreasing diagonal (desc_act, actorder), which needs parameters fixed beforehand (from `weight`,
    or `parameters`); otherwise columns come as they stand, and each block's parameters are fitted to the weights as compensated so
    far, unless `parameters` are given. Columns with a zero diagonal are dead: their weight becomes 0.
    `scale_refits`: how often parameters are fitted again to the codes, which are rounded again in between; the best is kept.
    `adaptive`: with `act_order`, parameters of the format's parts are chosen again on compensated weights; columns of a part then stay
    together. Raises `CalibrationError` if no damping up to 10^4 makes the Hessian positive definite.
    """
    dead = hessian.dead
    weight = torch.where(dead, 0.0, weight.float())
    part = (number_format.part_size(weight.shape[1]) if adaptive and act_order else None) or 1
    columns = hessian.columns(act_order, part)
    factor, used = hessian.factor(damping, act_order, part)
    if act_order and parameters is None:
        parameters = number_format.fit(weight)
    factor = factor.float()
    codes, parameters = round_columns(weight, factor, number_format, columns, parameters, part)
    best = QuantizedTensor.from_codes(codes, parameters, number_format)
    if scale_refits:
        matrix = hessian.damped(used)
        least = output_energy(weight - best.dequantize(), matrix)
        for i in range(scale_refits):
            if i:
                codes, parameters = round_columns(weight, factor, number_format, columns, parameters, part)
            fitted = number_format.refit(weight, codes, parameters, matrix)
            if fitted is None:
                break
            parameters = fitted
            refitted = QuantizedTensor.from_codes(codes, parameters, number_format)
            if (error := output_energy(weight - refitted.dequantize(), matrix)) < least:
                best, least = refitted, error
    steps = torch.where(dead, 0.0, number_format.largest_step(best.parameters, weight.shape[1]))[..., columns]
    worst = steps.square().sum(0, dtype=torch.float64) / factor.diagonal().double().square()
    return GptqResult(best, used, int(dead.sum()), float(worst.sum()) / 4)


def round_columns(
    weight: Tensor, factor: Tensor, number_format: NumberFormat, columns: Tensor, parameters: Parameters | None, part: int = 1
) -> tuple[Tensor, Parameters]:
    """Run the column loop, over any leading batch dimensions.

    `weight` `[..., out, in]`; `factor` `[..., in, in]` in rounding order; `columns` `[..., in]` or `[in]`: which column is rounded
    when; `parameters`: of all of `weight`, or None to fit each block when it begins (columns in original order only). `part` above 1: so
    many neighboring columns come together, and their parameters, given, are chosen again when their turn comes. Returns codes
    (float32, original order) and the parameters.
    """
    n = weight.shape[-1]
    size = number_format.block_size(n)
    index = columns.expand(*weight.shape[:-2], n).unsqueeze(-2).expand(weight.shape)

    def in_order(tensor: Tensor) -> Tensor:
        # Columns first, so that each column is one contiguous piece of memory.
        return torch.gather(tensor, -1, index).transpose(-1, -2).contiguous()

    work = in_order(weight)
    fixed = None if parameters is None else tuple(in_order(t.expand(weight.shape)) for t in number_format.expand(parameters, n))
    fitted: list[Parameters] = []
    of_block: tuple[Tensor, ...] = ()
    codes = torch.empty_like(work)
    rows = factor / factor.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # row i is U_i / U_ii: errors stay in weight units
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        errors = torch.empty_like(work[..., start:end, :])
        for i in range(start, end):
            if fixed is None and i % size == 0:
                # The block may reach beyond this piece: bring those columns up to date before fitting.
                block = _up_to_date(work, errors, rows, start, i, end, i + size).transpose(-1, -2)
                fitted.append(number_format.fit(block))
                of_block = tuple(t.transpose(-1, -2).contiguous() for t in number_format.expand(fitted[-1], size))
            if part > 1 and fixed is not None and parameters is not None and i % part == 0:
                place = columns.expand(*weight.shape[:-2], n)[..., i] // part
                importance = factor.diagonal(dim1=-2, dim2=-1)[..., i : i + part].square().reciprocal()
                parameters, own = _adapted(number_format, work[..., i : i + part, :].transpose(-1, -2), parameters, place, n, importance)
                for tensor, new in zip(fixed, number_format.expand(own, part), strict=True):
                    tensor[..., i : i + part, :] = new.transpose(-1, -2)
            at_column = tuple(t[..., i, :] for t in fixed) if fixed is not None else tuple(t[..., i % size, :] for t in of_block)
            column = work[..., i, :]
            code = number_format.nearest(column, *at_column)
            codes[..., i, :] = code
            error = torch.sub(column, number_format.values(code, *at_column), out=errors[..., i - start, :])
            if i + 1 < end:
                behind = rows[..., i, i + 1 : end].unsqueeze(-1)
                work[..., i + 1 : end, :].addcmul_(behind, error.unsqueeze(-2), value=-1)
        if end < n:
            work[..., end:, :] -= rows[..., start:end, end:].transpose(-1, -2) @ errors
    result = torch.empty_like(weight)
    result.scatter_(-1, index, codes.transpose(-1, -2))
    return result, join_blocks(fitted) if parameters is None else parameters


def _up_to_date(work: Tensor, errors: Tensor, rows: Tensor, start: int, i: int, end: int, stop: int) -> Tensor:
    """Return columns `i` to `stop`, with this piece's errors so far also taken out of the columns behind the piece."""
    group = work[..., i:stop, :]
    if stop <= end or i == start:
        return group
    group = group.clone()
    group[..., end - i :, :] -= rows[..., start:i, end:stop].transpose(-1, -2) @ errors[..., : i - start, :]
    return group


def _adapted(
    number_format: NumberFormat, weight: Tensor, parameters: Parameters, place: Tensor, n: int, importance: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Choose the parameters of the part at `place` `[...]` again. Return all parameters, and the part's, `[..., out, 1]`."""
    parts = n // weight.shape[-1]
    at = {
        name: (place * tensor.shape[-1] // parts).unsqueeze(-1).unsqueeze(-1).expand(*tensor.shape[:-1], 1)
        for name, tensor in parameters.items()
    }
    own = {name: torch.gather(tensor, -1, at[name]) for name, tensor in parameters.items()}
    new = number_format.adapt(weight, own, importance)
    every = {name: tensor.scatter(-1, at[name], new[name]) if name in new else tensor for name, tensor in parameters.items()}
    return every, own | new
