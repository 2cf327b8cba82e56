"""Scales fitted again to codes: GPTQ's objective, minimized over scales and codes in turn.

With codes kept, what a row stands for is linear in its group scales: `sum_g s_g v_g`, where `v_g` holds the values of the group's
codes at scale 1 and zeros elsewhere. The scales that minimize `(t - sum_g s_g v_g) H (t - sum_g s_g v_g)^T` solve, row by row,

    A s = b,   A_gh = v_g H v_h^T,   b_g = v_g H t^T

Rounding anew with these scales, then fitting again, goes down in turn; both steps see the Hessian, which a search of scales before
rounding does not (only its diagonal).
"""

import torch
from torch import Tensor

POLISHES = 2  # least-squares fits of a searched scale to the codes it gave
RIDGE = 1e-6  # of the mean of A's diagonal: groups whose codes all stand for zero have no say
FARTHEST = 2.0  # a scale that would change by more is left: its group's codes say too little of it


def polish_scales(blocks: Tensor, levels: Tensor, scale: Tensor, weights: Tensor | None) -> Tensor:
    """Return the scales `[..., blocks]` with which `scale * levels` comes nearest to `blocks` `[..., blocks, size]`, columns weighted.

    `levels`: values of the codes at scale 1. A block whose levels are all 0 keeps its `scale`. The caller rounds the result to what a file
    can store.
    """
    seen = levels if weights is None else levels * weights
    size = (seen * levels).sum(-1)
    return torch.where(size > 0, (seen * blocks).sum(-1) / size, scale)


def refit_group_scales(target: Tensor, basis: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """Return the scales `[out, groups]` with which `scale * basis` comes nearest to `target`, seen through `hessian` `[in, in]`.

    `target`, `basis` `[out, in]`: weights, and the values of their codes at scale 1. `scale` `[out, groups]`: the scales so far;
    groups are of equal size. Signs stay. The caller rounds the result to what a file can store.
    """
    rows, columns = target.shape
    groups = scale.shape[1]
    size = columns // groups
    hessian = hessian.float()
    normal = torch.empty(rows, groups, groups, dtype=torch.float64, device=target.device)
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        seen = basis[:, own] @ hessian[own]
        normal[:, group] = seen.mul_(basis).reshape(rows, groups, size).sum(-1)
    # In terms of the change: what the scales as they are leave over.
    left = target - basis * scale.repeat_interleave(size, -1)
    right = (left @ hessian).mul_(basis).reshape(rows, groups, size).sum(-1).double()
    mean = normal.diagonal(dim1=-2, dim2=-1).mean(-1)
    normal.diagonal(dim1=-2, dim2=-1).add_((RIDGE * mean + torch.finfo(torch.float32).tiny).unsqueeze(-1))
    fitted = scale + torch.linalg.solve(normal, right).float()
    change = fitted / scale
    kept = (change > 1 / FARTHEST) & (change < FARTHEST)
    return torch.where(kept, fitted, scale)


def refit_linear(target: Tensor, bases: Tensor, coefficients: Tensor, hessian: Tensor) -> Tensor:
    """Return the coefficients `[kinds, out, blocks]` with which `sum_k c_k b_k` comes nearest to `target`, seen through `hessian`.

    `target` `[out, in]`; `bases` `[kinds, out, in]`: values at coefficient 1; `coefficients`: those so far; blocks are of equal size. As
    `refit_group_scales`, for formats whose values have several such terms, and without its limit on the change.
    """
    kinds, rows, columns = bases.shape
    blocks = coefficients.shape[2]
    size, unknowns = columns // blocks, kinds * blocks
    hessian = hessian.float()
    normal = torch.empty(rows, unknowns, unknowns, dtype=torch.float64, device=target.device)
    for kind in range(kinds):
        for block in range(blocks):
            own = slice(block * size, (block + 1) * size)
            seen = bases[kind, :, own] @ hessian[own]
            products = (seen * bases).reshape(kinds, rows, blocks, size).sum(-1)
            normal[:, kind * blocks + block] = products.transpose(0, 1).reshape(rows, unknowns).double()
    left = target - (bases * coefficients.repeat_interleave(size, -1)).sum(0)
    right = ((left @ hessian) * bases).reshape(kinds, rows, blocks, size).sum(-1).transpose(0, 1).reshape(rows, unknowns).double()
    # Terms differ in size (codes against ones), so each unknown is in units of its own diagonal.
    unit = normal.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(torch.float32).tiny).rsqrt()
    scaled = normal * unit.unsqueeze(-1) * unit.unsqueeze(-2)
    scaled.diagonal(dim1=-2, dim2=-1).add_(RIDGE)
    change = torch.linalg.solve(scaled, right * unit) * unit
    fitted: Tensor = coefficients + change.float().reshape(rows, kinds, blocks).transpose(0, 1)
    return fitted
