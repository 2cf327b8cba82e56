"""Codes decoded with parameters that gradients can change, rounded to what a file stores.

With codes kept, a weight is linear in its format's factors and offsets (`NumberFormat.factors`, `.offsets`). A move `theta` turns

    a factor s into  s * exp(theta)      (signs stay),
    an offset m into  m + theta * |s|    (s: the first factor, as it was),

and the result is rounded to the nearest value that a file holds. Gradients pass the rounding as if it were not there (straight-through
estimator, arXiv 1308.3432), so what is trained is what is written. A move of 0 leaves every value as it was, to the bit.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sottovoce.core.qtensor import QuantizedTensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor) -> Tensor:
        del ctx, value
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradient, None


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded` (same shape), with the gradient of `value`."""
    result: Tensor = _StraightThrough.apply(value, rounded)  # type: ignore[no-untyped-call]
    return result


def first_moves(weight: QuantizedTensor) -> dict[str, Tensor]:
    """Return moves of 0 for all parameters of `weight` that may change, float32 in their shapes; none if its format has none."""
    names = [*weight.format.factors, *weight.format.offsets]
    return {name: torch.zeros_like(weight.parameters[name], dtype=torch.float32) for name in names if name in weight.parameters}


def moved_parameters(weight: QuantizedTensor, moves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of `weight` after `moves`: moved ones float32 and rounded to what a file holds, the others as stored."""
    number_format, found = weight.format, dict(weight.parameters)
    for name, move in moves.items():
        start = weight.parameters[name].float()
        if name in number_format.factors:
            moved = start * move.exp()
        else:
            moved = start + move * weight.parameters[number_format.factors[0]].float().abs()
        found[name] = straight_through(moved, number_format.nearest_stored(name, moved.detach()))
    return found


def decode_moved(weight: QuantizedTensor, moves: Mapping[str, Tensor]) -> Tensor:
    """Return the values of `weight` after `moves`, float32 `[out, in]`, differentiable in them."""
    return weight.format.decode(weight.codes, moved_parameters(weight, moves))


@torch.no_grad()
def with_moves(weight: QuantizedTensor, moves: Mapping[str, Tensor]) -> QuantizedTensor:
    """Return `weight` as it is stored after `moves`: the same codes, other parameters."""
    if not moves:
        return weight
    moved = moved_parameters(weight, moves)
    # What did not move is as stored already; formats convert whole sets.
    return QuantizedTensor(weight.codes, weight.format.stored(moved), weight.format)
