"""AWQ (arXiv 2306.00978): before rounding, channels that carry large inputs are made larger, and their inputs smaller.

Input channel j of the weights is multiplied by `s_j = mean|x_j|^a`, and the operation before is divided by it, which changes
nothing in full precision. The exponent `a` in [0, 1) is the one of 20 with the least output error after rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sottovoce.core.error_metrics import output_energy
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.rtn import rtn

STEPS = 20
SMALLEST = 1e-4


@dataclass(frozen=True, eq=False)
class ChannelScales:
    """`scales` `[in]`, positive, with geometric mean of extremes 1; the `exponent` they come from; the summed output `error`."""

    scales: Tensor
    exponent: float
    error: float


def search_scales(
    weights: Sequence[Tensor],
    hessians: Sequence[Tensor],
    formats: Sequence[NumberFormat],
    magnitude: Tensor,
    *,
    steps: int = STEPS,
) -> ChannelScales:
    """Search scales shared by several weights `[out, in]` that read the same channels.

    `hessians` `[in, in]`: second moment of each weight's inputs; `magnitude` `[in]`: mean absolute input of each channel.
    """
    best = None
    for step in range(steps):
        exponent = step / steps
        scales = magnitude.clamp(min=SMALLEST) ** exponent
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = sum(
            output_energy(weight - rtn(weight * scales, number_format).dequantize() / scales, hessian)
            for weight, hessian, number_format in zip(weights, hessians, formats, strict=True)
        )
        if best is None or error < best.error:
            best = ChannelScales(scales, exponent, error)
    if best is None:
        raise ValueError("steps must be at least 1")
    return best


def scale_inputs(weight: Tensor, scales: Tensor) -> Tensor:
    """Return the weights for inputs that were divided by `scales` `[in]`."""
    return weight * scales


def divide_outputs(weight: Tensor, bias: Tensor | None, scales: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a LayerNorm's (`[out]`) or linear's (`[out, in]`) parameters with its outputs divided by `scales` `[out]`."""
    divided = weight / (scales if weight.ndim == 1 else scales.unsqueeze(1))
    return divided, None if bias is None else bias / scales
