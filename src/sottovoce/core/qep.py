"""Quantization error propagation (QEP, arXiv 2504.09629): aim at the original output, given the inputs the layer will get.

`X`: inputs in the full-precision model; `X^`: inputs once everything before is quantized; `delta = X - X^`. With
`H = X^ X^^T` and `D = delta X^^T`, the weights that best give `W X` from `X^` are `W + W D (H + ridge)^-1`.
"""

from dataclasses import dataclass

from torch import Tensor

from sottovoce.core.hessian import Hessian


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of a layer's inputs: `hessian` of X^ X^^T, and `cross` = delta X^^T `[in, in]`.

    If `projected`, `cross` is `W delta X^^T` `[out, in]`: the one weight that reads these inputs is applied already.
    """

    hessian: Hessian
    cross: Tensor
    projected: bool = False

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.hessian + other.hessian, self.cross + other.cross, self.projected)

    def cross_output(self, weight: Tensor) -> Tensor:
        """Return `W D`: the error at the layer's outputs against its inputs, `[out, in]` in the dtype of the moments."""
        return self.cross if self.projected else weight.to(self.cross.dtype) @ self.cross

    def of_rows(self, rows: slice) -> "Moments":
        """Return the moments for some rows of the weight."""
        return Moments(self.hessian, self.cross[rows], True) if self.projected else self

    def float32(self) -> "Moments":
        """Return the same in float32, a new `Hessian` object included."""
        return Moments(Hessian(self.hessian.matrix.float()), self.cross.float(), self.projected)


def correction(weight: Tensor, moments: Moments, ridge: float) -> Tensor:
    """Return the full correction `W D (H + ridge * mean(diag H) * I)^-1`, `[out, in]`, in the dtype of the moments."""
    return moments.hessian.solve(moments.cross_output(weight), ridge)


def corrected_target(weight: Tensor, moments: Moments, *, strength: float, ridge: float) -> Tensor:
    """Return `W + strength * correction`: the weights to be quantized, float32 `[out, in]`."""
    if strength == 0:
        return weight.float()
    return (weight + strength * correction(weight, moments, ridge)).float()
