"""Scales fitted again to codes: GPTQ's objective, minimized over scales and codes in turn.

With codes and zero points kept, what a row stands for is linear in its scales: `sum_g s_g v_g`, where `v_g` holds the group's
`q - z` and zeros elsewhere. The scales that minimize `(t - sum_g s_g v_g) H (t - sum_g s_g v_g)^T` solve, row by row,

    A s = b,   A_gh = v_g H v_h^T,   b_g = v_g H t^T

Rounding anew with these scales, then fitting again, goes down in turn; both steps see the Hessian, which a search of scales before
rounding does not (only its diagonal).
"""

import torch
from torch import Tensor

from sottovoce.core.affine import Grid, Scaling, storable

RIDGE = 1e-6  # of the mean of A's diagonal: groups whose codes are all zero points have no say
FARTHEST = 2.0  # a scale that would change by more is left: its group's codes say too little of it


def refit_scaling(target: Tensor, codes: Tensor, scaling: Scaling, hessian: Tensor, grid: Grid) -> Scaling:
    """The scales with which `codes` `[out, in]` come nearest to `target` `[out, in]`, seen through `hessian` `[in, in]`.

    Zero points stay, and so do the signs of scales; the result is what a file can store.
    """
    rows, columns = target.shape
    size = grid.columns_per_group(columns)
    groups = columns // size
    hessian = hessian.float()
    values = codes.float() - scaling.zero_point.repeat_interleave(size, -1)
    normal = torch.empty(rows, groups, groups, dtype=torch.float64)
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        seen = values[:, own] @ hessian[own]
        normal[:, group] = seen.mul_(values).reshape(rows, groups, size).sum(-1)
    # In terms of the change: what the scales as they are leave over.
    left = target - values * scaling.scale.repeat_interleave(size, -1)
    right = (left @ hessian).mul_(values).reshape(rows, groups, size).sum(-1).double()
    mean = normal.diagonal(dim1=-2, dim2=-1).mean(-1)
    normal.diagonal(dim1=-2, dim2=-1).add_((RIDGE * mean + torch.finfo(torch.float32).tiny).unsqueeze(-1))
    scale = scaling.scale + torch.linalg.solve(normal, right).float()
    change = scale / scaling.scale
    kept = (change > 1 / FARTHEST) & (change < FARTHEST)
    return Scaling(storable(torch.where(kept, scale, scaling.scale), grid), scaling.zero_point)
