"""Affine integer grids: `value = (code - zero_point) * scale`, one scale and zero point for each group of neighboring weights.

A weight `w` in a group with scale `s` and zero point `z` becomes the code `q = clamp(round(w / s) + z, 0, 2^bits - 1)`. Groups run
along the input dimension. Scales are float16 numbers from the start, because that is what files store: codes are rounded against
the very scale that will be read back. A symmetric grid has one level more below its zero than above; its scales carry a sign, so
that the longer side can face the larger weight, as in ggml's Q4_0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sottovoce.core.float16 import positive_float16
from sottovoce.core.number_format import NumberFormat, Parameters, shape_of, tensor_named
from sottovoce.core.packing import pack_rows, unpack_rows
from sottovoce.core.pieces import fit_in_pieces
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.scale_refit import POLISHES, polish_scales, refit_group_scales
from sottovoce.errors import CheckpointError, RecipeError

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
# Shares of the min-max range that are tried. Below the smallest no group of the models measured had its optimum; above 1 the outermost
# weights round to inner codes, which is better where the others then come to lie nearer to theirs.
LARGEST_SHARE, SMALLEST_SHARE, SHARES = 1.2, 0.4, 25
SEARCH_NORM = 2.4  # exponent of the rounding error that the "mse" observer minimizes, as in GPTQ's published code
FLOAT16_DIGITS = 11  # binary digits of a normal float16, the leading one included
MAX_FLOAT16_MIN_BITS = 4  # wider zero points leave too few digits to the scale
SMALLEST_EXACT_SCALE = 2.0**-18  # its last digit still is a float16 number
LARGEST_EXACT_SCALE = 4096.0  # times 15 it still is

Observer = Literal["minmax", "mse"]


@dataclass(frozen=True, kw_only=True)
class Affine(NumberFormat):
    """Integer codes with a float16 scale and, unless symmetric, an integer zero point for each group."""

    name: ClassVar[str] = "affine"
    factors: ClassVar[tuple[str, ...]] = ("scale",)
    even: ClassVar[bool] = True

    bits: int = 4  # 2, 3, 4, 5, 6 or 8
    group_size: int | None = 32  # columns that share a scale: 32, 64, 128, or None for a whole row
    symmetric: bool = False  # the zero point is 2^(bits-1) everywhere
    # "minmax" spans each group's range; "mse" scales that range to where the p = 2.4 norm of the rounding error is least.
    observer: Observer = "mse"
    # Of an asymmetric grid of at most 4 bits: scales have so few binary digits that each group's minimum, -zero_point * scale, is a
    # float16 number too, which is how ggml's Q4_1 stores it.
    float16_min: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise RecipeError(f"bits = {self.bits!r} is not supported; choose one of {BITS}")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise RecipeError(f"group size {self.group_size!r} is not supported; choose one of {GROUP_SIZES}, or a whole row")
        if self.observer not in ("minmax", "mse"):
            raise RecipeError(f"observer = {self.observer!r} is not known; choose 'minmax' or 'mse'")
        if self.float16_min and not self.symmetric and self.bits > MAX_FLOAT16_MIN_BITS:
            raise RecipeError(
                f"an asymmetric grid of {self.bits} bits has no exact float16 minima; choose a symmetric one, or at most "
                f"{MAX_FLOAT16_MIN_BITS} bits"
            )

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def max_code(self) -> int:
        """The largest code, `2^bits - 1`."""
        return (1 << self.bits) - 1

    @property
    def mid_code(self) -> int:
        """The zero point of a symmetric grid, `2^(bits-1)`."""
        return 1 << (self.bits - 1)

    @property
    def title(self) -> str:
        groups = "a scale per row" if self.group_size is None else f"groups of {self.group_size}"
        return f"{self.bits} bits, {groups}" + (", symmetric" if self.symmetric else "")

    @property
    def levels(self) -> str:
        return f"{self.max_code + 1} in even steps" + ("" if self.symmetric else ", whole zero point")

    def with_bits(self, bits: int, **changes: object) -> "Affine":
        """Return the grid at other `bits`. Beside 4-bit blocks with a minimum, ggml's 8-bit blocks have none: symmetric there."""
        symmetric = changes.pop("symmetric", self.symmetric)
        symmetric = bool(symmetric) or (self.float16_min and bits > MAX_FLOAT16_MIN_BITS)
        return replace(self, bits=bits, symmetric=symmetric, **changes)  # type: ignore[arg-type]

    def block_size(self, in_features: int) -> int:
        size = self.group_size or in_features
        if in_features % size:
            fitting = [str(g) for g in GROUP_SIZES if in_features % g == 0] + ["a whole row"]
            raise RecipeError(f"groups of {size} do not divide a row of {in_features}; these do: {', '.join(fitting)}")
        return size

    def bits_per_weight(self, in_features: int) -> float:
        per_group = 16 + (0 if self.symmetric else self.bits)
        return self.bits + per_group / self.block_size(in_features)

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """Fit `scale` (a float16 number, not zero) and `zero_point` (whole, 0 .. 2^bits - 1), both `[..., out, groups]`."""
        size = self.block_size(weight.shape[-1])
        grouped = weight.float().reshape(*weight.shape[:-1], -1, size)
        weights = None if importance is None else importance.float().reshape(-1, size)
        scale, zero = fit_in_pieces(lambda rows: self._fit_rows(rows, weights), grouped)
        return {"scale": scale, "zero_point": zero}

    def _fit_rows(self, grouped: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fit scale and zero point `[rows, groups]` of `grouped` `[rows, groups, size]`; `weights` `[groups, size]`."""
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        if self.observer == "minmax":
            scales, zeros = self._candidates(low, high, torch.ones(1, device=low.device))
            return scales[0], zeros[0]
        shares = torch.linspace(LARGEST_SHARE, SMALLEST_SHARE, SHARES).to(low.device)
        scales, zeros = self._candidates(low, high, shares)
        least, best = self._rounding_error(grouped, scales.unsqueeze(-1), zeros.unsqueeze(-1), weights).min(0)  # of equal ones the first
        scale, zero = (tried.gather(0, best.unsqueeze(0))[0] for tried in (scales, zeros))
        for _ in range(POLISHES):
            steps = self.nearest(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1)) - zero.unsqueeze(-1)
            polished = self.storable(polish_scales(grouped, steps, scale, weights))
            error = self._rounding_error(grouped, polished.unsqueeze(-1), zero.unsqueeze(-1), weights)
            better = error < least
            least, scale = torch.where(better, error, least), torch.where(better, polished, scale)
        return scale, zero

    def _candidates(self, low: Tensor, high: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return scales and zero points `[tried, rows, groups]` that span `shares` of the range; of a symmetric grid two for each share,
        first the one whose longer side is the larger weight's."""
        part = shares.reshape(-1, *[1] * low.dim())
        if not self.symmetric:
            scale = self.storable((high - low) * part / self.max_code)
            return scale, torch.round(-low * part / scale).clamp(0, self.max_code)
        longer = torch.where(high > -low, -high, -low)  # what code 0 stands for is -mid_code * scale
        scale = self.storable(longer * part / self.mid_code)
        both = torch.stack((scale, -scale), 1).flatten(0, 1)
        return both, torch.full_like(both, float(self.mid_code))

    def storable(self, scale: Tensor) -> Tensor:
        """Return the nearest scale that a file holds; 1 for a group of zeros, which any scale will do for."""
        size = scale.abs()
        if self.float16_min and not self.symmetric:
            digits, exponent = torch.frexp(size.clamp(SMALLEST_EXACT_SCALE, LARGEST_EXACT_SCALE))
            steps = 1 << (FLOAT16_DIGITS - self.bits)
            stored = torch.ldexp(torch.round(digits * steps) / steps, exponent)
        else:
            stored = positive_float16(size)
        return torch.where(size > 0, stored.copysign(scale), torch.ones_like(scale))

    def _rounding_error(self, grouped: Tensor, scale: Tensor, zero: Tensor, weights: Tensor | None) -> Tensor:
        """Sum over each group of |w - rounded w|^2.4; `[..., groups]`."""
        error = (self.nearest(grouped, scale, zero) - zero).mul_(scale).sub_(grouped).abs_().pow_(SEARCH_NORM)
        if weights is not None:
            error *= weights
        return error.sum(-1)

    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        size = in_features // parameters["scale"].shape[-1]
        return tuple(parameters[name].float().repeat_interleave(size, -1) for name in ("scale", "zero_point"))

    def nearest(self, weight: Tensor, *expanded: Tensor) -> Tensor:
        scale, zero = expanded
        return torch.round(weight / scale).add_(zero).clamp_(0, self.max_code)

    def values(self, codes: Tensor, *expanded: Tensor) -> Tensor:
        scale, zero = expanded
        return (codes - zero).mul_(scale)

    def refit(self, target: Tensor, codes: Tensor, parameters: Parameters, hessian: Tensor) -> Parameters:
        """Fit the scales again; zero points stay, and so do the signs of scales."""
        zero = parameters["zero_point"]
        basis = codes.float() - zero.repeat_interleave(self.block_size(target.shape[1]), -1)
        scale = refit_group_scales(target, basis, parameters["scale"], hessian)
        return {"scale": self.storable(scale), "zero_point": zero}

    def nearest_stored(self, name: str, value: Tensor) -> Tensor:
        del name
        return self.storable(value)

    def stored(self, parameters: Parameters) -> dict[str, Tensor]:
        return {"scale": parameters["scale"].half(), "zero_point": parameters["zero_point"].to(torch.uint8)}

    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        """Scales are float16 `[out, groups]`, finite and not zero (positive unless symmetric); zero points uint8, within the codes'
        range, and `mid_code` everywhere if symmetric."""
        scale, zero = tensor_named("scale", parameters), tensor_named("zero_point", parameters)
        if zero.dtype != torch.uint8 or scale.dtype != torch.float16:
            raise CheckpointError(f"scale {scale.dtype}, zero point {zero.dtype}; wanted float16, uint8")
        wanted = (out_features, in_features // self.block_size(in_features))
        if scale.shape != wanted or zero.shape != wanted:
            raise CheckpointError(f"scale {tuple(scale.shape)}, zero point {tuple(zero.shape)}; wanted {wanted}")
        if int(zero.max()) > self.max_code:
            raise CheckpointError(f"a zero point exceeds {self.max_code}, the largest of {self.bits} bits")
        usable = scale != 0 if self.symmetric else scale > 0
        if not bool(torch.isfinite(scale).all()) or not bool(usable.all()):
            raise CheckpointError(f"a scale is not a {'finite number other than 0' if self.symmetric else 'positive finite number'}")
        if self.symmetric and not bool((zero == self.mid_code).all()):
            raise CheckpointError(f"a symmetric grid has a zero point other than {self.mid_code}")
        if self.float16_min and not self.symmetric:
            minimum = -zero.float() * scale.float()
            if not torch.equal(minimum.half().float(), minimum):
                raise CheckpointError("a group's minimum is not a float16 number, as its grid has them")

    def pack(self, codes: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """Pack as compressed-tensors `pack-quantized` does (0.18 or later).

        Scales are float16 numbers stored as float32, so that a reader computes `(codes - zero_point) * scale` exactly.
        """
        tensors = {
            "weight_packed": pack_rows(codes, self.bits),
            "weight_scale": parameters["scale"].float(),
            "weight_shape": torch.tensor(codes.shape),
        }
        if not self.symmetric:
            tensors["weight_zero_point"] = pack_rows(parameters["zero_point"].T.contiguous(), self.bits).T.contiguous()
        return tensors

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        out_features, in_features = shape_of(tensors)
        scale = tensor_named("weight_scale", tensors)
        codes = unpack_rows(tensor_named("weight_packed", tensors), self.bits, in_features)
        if self.symmetric:
            zero = torch.full(scale.shape, self.mid_code, dtype=torch.uint8)
        else:
            zero = unpack_rows(tensor_named("weight_zero_point", tensors).T.contiguous(), self.bits, out_features).T.contiguous()
        return codes, {"scale": scale.half(), "zero_point": zero}


@dataclass(frozen=True, eq=False)
class AffineTensor:
    """The parts of a quantized weight in an affine format, as file writers rearrange them.

    `codes` uint8 `[out, in]`; `scale` float16 and `zero_point` uint8 `[out, groups]`; `group_size`: columns of one group.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    symmetric: bool

    @classmethod
    def of(cls, weight: QuantizedTensor) -> "AffineTensor | None":
        """Return the parts of `weight`, or None if its format is another."""
        if not isinstance(weight.format, Affine):
            return None
        parameters = weight.parameters
        return cls(weight.codes, parameters["scale"], parameters["zero_point"], weight.format.bits, weight.format.symmetric)

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]
