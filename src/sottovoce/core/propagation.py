"""Quantization error propagation (QEP, arXiv 2504.09629): aim at the original output, given the inputs the layer will get.

`X`: inputs in the full-precision model; `X^`: inputs once everything before is quantized; `delta = X - X^`. With
`H = X^ X^^T` and `D = delta X^^T`, the weights that best give `W X` from `X^` are `W + W D (H + ridge)^-1`.
"""

from dataclasses import dataclass

from torch import Tensor

from sottovoce.core.hessian import Hessian


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of a layer's inputs: `hessian` of X^ X^^T, and `cross` = (X - X^) X^^T `[in, in]`."""

    hessian: Hessian
    cross: Tensor

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.hessian + other.hessian, self.cross + other.cross)


def correction(weight: Tensor, moments: Moments, ridge: float) -> Tensor:
    """The full correction `W D (H + ridge * mean(diag H) * I)^-1`, `[out, in]`, in the dtype of the moments."""
    return moments.hessian.solve(weight.to(moments.cross.dtype) @ moments.cross, ridge)


def corrected_target(weight: Tensor, moments: Moments, *, strength: float, ridge: float) -> Tensor:
    """`W + strength * correction`: the weights to be quantized, float32 `[out, in]`."""
    if strength == 0:
        return weight.float()
    return (weight + strength * correction(weight, moments, ridge)).float()
