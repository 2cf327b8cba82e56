"""Even levels with a real minimum for each group: `value = code * scale + minimum`, both float16 (ggml's Q4_1 and Q5_1).

Unlike `core.affine`, whose minimum is a whole number of steps, no level need stand for zero.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sottovoce.core.affine import LARGEST_SHARE, SHARES, SMALLEST_SHARE
from sottovoce.core.float16 import finite_float16, positive_float16
from sottovoce.core.number_format import NumberFormat, Parameters, tensor_named
from sottovoce.core.pieces import fit_in_pieces
from sottovoce.core.scale_refit import refit_linear
from sottovoce.errors import CheckpointError, RecipeError


@dataclass(frozen=True, kw_only=True)
class AffineMinimum(NumberFormat):
    """Whole codes with a float16 scale and a float16 minimum for each group of columns."""

    name: ClassVar[str] = "affine-minimum"
    factors: ClassVar[tuple[str, ...]] = ("scale",)
    offsets: ClassVar[tuple[str, ...]] = ("minimum",)
    even: ClassVar[bool] = True

    bits: int = 4  # 2 to 8
    group_size: int = 32

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise RecipeError(f"bits = {self.bits!r} is not supported; choose 2 to 8")
        if self.group_size < 1:
            raise RecipeError(f"group size {self.group_size!r} is not supported; choose a positive one, such as 32")

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def max_code(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def title(self) -> str:
        return f"{self.bits} bits, groups of {self.group_size} with a real minimum"

    @property
    def levels(self) -> str:
        return f"{self.max_code + 1} in even steps, real minimum"

    def block_size(self, in_features: int) -> int:
        if in_features % self.group_size:
            raise RecipeError(f"groups of {self.group_size} do not divide a row of {in_features}")
        return self.group_size

    def bits_per_weight(self, in_features: int) -> float:
        return self.bits + 32 / self.block_size(in_features)

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """Fit `scale` (positive) and `minimum` `[..., out, groups]`, float16 numbers, to the least weighted squared rounding error.

        Of every range that is tried the codes give a least-squares line, which is a candidate beside the range itself.
        """
        size = self.block_size(weight.shape[-1])
        x = weight.float().reshape(*weight.shape[:-1], -1, size)
        weights = torch.ones(size, device=x.device) if importance is None else importance.float().reshape(-1, size)
        scale, minimum = fit_in_pieces(lambda rows: self._fit_rows(rows, weights), x)
        return {"scale": scale, "minimum": minimum}

    def _fit_rows(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Fit scale and minimum `[rows, groups]` of `x` `[rows, groups, size]`; `weights` `[groups, size]` or `[size]`."""
        low, high = x.amin(-1), x.amax(-1)
        shares = torch.linspace(LARGEST_SHARE, SMALLEST_SHARE, SHARES).to(x.device).reshape(-1, 1, 1)
        middle, half = (low + high) / 2, (high - low) * shares / 2
        spans = _storable(2 * half, middle - half, self.max_code)
        codes = self.nearest(x, *(tensor.unsqueeze(-1) for tensor in spans))
        lines = _line(x, codes, weights, *spans)
        scale, minimum = (torch.stack(both, 1).flatten(0, 1) for both in zip(spans, lines, strict=True))
        wide = scale.unsqueeze(-1), minimum.unsqueeze(-1)
        best = ((self.values(self.nearest(x, *wide), *wide) - x).square() * weights).sum(-1).argmin(0, keepdim=True)  # the first
        return scale.gather(0, best)[0], minimum.gather(0, best)[0]

    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        size = in_features // parameters["scale"].shape[-1]
        return tuple(parameters[name].float().repeat_interleave(size, -1) for name in ("scale", "minimum"))

    def nearest(self, weight: Tensor, *expanded: Tensor) -> Tensor:
        scale, minimum = expanded
        return torch.round((weight - minimum) / scale).clamp_(0, self.max_code)

    def values(self, codes: Tensor, *expanded: Tensor) -> Tensor:
        scale, minimum = expanded
        return codes * scale + minimum

    def refit(self, target: Tensor, codes: Tensor, parameters: Parameters, hessian: Tensor) -> Parameters:
        """Fit scales and minima again together; a group whose scale would not stay positive and near keeps both."""
        old = torch.stack([parameters["scale"], parameters["minimum"]])
        scale, minimum = refit_linear(target, torch.stack([codes.float(), torch.ones_like(target)]), old, hessian)
        kept = (scale > 0.5 * old[0]) & (scale < 2 * old[0])
        scale, minimum = torch.where(kept, scale, old[0]), torch.where(kept, minimum, old[1])
        return {"scale": positive_float16(scale), "minimum": finite_float16(minimum)}

    def nearest_stored(self, name: str, value: Tensor) -> Tensor:
        return positive_float16(value) if name == "scale" else finite_float16(value)

    def stored(self, parameters: Parameters) -> dict[str, Tensor]:
        return {name: parameters[name].half() for name in ("scale", "minimum")}

    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        """Scale (positive) and minimum are finite float16 `[out, groups]`."""
        wanted = (out_features, in_features // self.block_size(in_features))
        for name in ("scale", "minimum"):
            tensor = tensor_named(name, parameters)
            if tensor.dtype != torch.float16 or tensor.shape != wanted or not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; wanted finite float16 {wanted}")
        if not bool((parameters["scale"] > 0).all()):
            raise CheckpointError("a scale is not a positive number")


def _storable(span: Tensor, low: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Scale and minimum of a range, as files hold them; scale 1 for a group of equal weights."""
    scale = torch.where(span > 0, positive_float16(span / max_code), 1.0)
    return scale, finite_float16(low)


def _line(x: Tensor, codes: Tensor, weights: Tensor, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted least-squares line through codes and weights, as stored; what it was where the codes do not differ."""
    total = weights.sum(-1)
    mean_code, mean = (weights * codes).sum(-1) / total, (weights * x).sum(-1) / total
    spread = (weights * (codes - mean_code.unsqueeze(-1)).square()).sum(-1)
    slope = (weights * (codes - mean_code.unsqueeze(-1)) * x).sum(-1) / spread
    usable = (spread > 0) & (slope > 0)
    fitted = torch.where(usable, positive_float16(slope), scale)
    return fitted, torch.where(usable, finite_float16(mean - fitted * mean_code), minimum)
