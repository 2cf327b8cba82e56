"""Quantization error propagation (QEP, arXiv 2504.09629): aim at the original output, given the inputs the layer will get.

`X`: inputs in the full-precision model; `X^`: inputs once everything before is quantized; `delta = X - X^`. With
`H = X^ X^^T` and `D = delta X^^T`, the weights that best give `W X` from `X^` are `W + W D (H + ridge)^-1`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sottovoce.errors import CalibrationError


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of a layer's inputs: `hessian` = X^ X^^T, symmetric, and `cross` = (X - X^) X^^T; both `[in, in]`.

    Factorisations are kept per ridge, because layers that share an input share its moments.
    """

    hessian: Tensor
    cross: Tensor
    _factors: dict[float, Tensor] = field(default_factory=dict, repr=False)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.hessian + other.hessian, self.cross + other.cross)

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        """`right @ (H + ridge * mean(diag H) * I)^-1` for `right` `[rows, in]`. Raises `CalibrationError` if singular."""
        if ridge not in self._factors:
            damped = self.hessian.clone()
            mean = float(damped.diagonal().mean())
            damped.diagonal().add_(ridge * mean if mean > 0 else 1.0)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if failed or not bool(torch.isfinite(factor).all()):
                raise CalibrationError(
                    f"H + {ridge:g} x its mean diagonal is not positive definite: raise the ridge, or check the audio for NaN"
                )
            self._factors[ridge] = factor
        return torch.cholesky_solve(right.to(self.hessian.dtype).T, self._factors[ridge]).T


def correction(weight: Tensor, moments: Moments, ridge: float) -> Tensor:
    """The full correction `W D (H + ridge * mean(diag H) * I)^-1`, `[out, in]`."""
    return moments.solve(weight.to(moments.cross.dtype) @ moments.cross, ridge)


def corrected_target(weight: Tensor, moments: Moments, *, strength: float, ridge: float) -> Tensor:
    """`W + strength * correction`: the weights to be quantized, float32 `[out, in]`."""
    if strength == 0:
        return weight.float()
    return (weight + strength * correction(weight, moments, ridge)).float()
