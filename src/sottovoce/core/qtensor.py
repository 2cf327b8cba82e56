"""A quantized weight matrix and its invariants."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.core.affine import Grid, Scaling, round_to_codes
from sottovoce.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Integer codes with their scales and zero points.

    Invariants, checked on construction (`CheckpointError`):
    - `codes` is uint8 `[out, in]`, every code within `0 .. 2^bits - 1`;
    - `scale` is float16 `[out, groups]`, finite and not zero; `groups` divides `in`; only a symmetric grid has negative ones;
    - `zero_point` is uint8 `[out, groups]` within the codes' range, and `2^(bits-1)` everywhere if the grid is symmetric.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or self.zero_point.dtype != torch.uint8 or self.scale.dtype != torch.float16:
            raise CheckpointError(
                f"codes {self.codes.dtype}, scale {self.scale.dtype}, zero point {self.zero_point.dtype}; wanted uint8, float16, uint8"
            )
        if self.codes.ndim != 2 or self.scale.shape != self.zero_point.shape or self.scale.ndim != 2:
            raise CheckpointError(f"codes {tuple(self.codes.shape)}, scale {tuple(self.scale.shape)}: wanted [out, in] and [out, groups]")
        (out, in_features), (rows, groups) = self.codes.shape, self.scale.shape
        if rows != out or groups == 0 or in_features % groups:
            raise CheckpointError(f"{groups} groups in {rows} rows do not fit codes of shape {out} x {in_features}")
        top = (1 << self.bits) - 1
        if int(self.codes.max()) > top or int(self.zero_point.max()) > top:
            raise CheckpointError(f"a code or zero point exceeds {top}, the largest of {self.bits} bits")
        usable = self.scale != 0 if self.symmetric else self.scale > 0
        if not bool(torch.isfinite(self.scale).all()) or not bool(usable.all()):
            raise CheckpointError(f"a scale is not a {'finite number other than 0' if self.symmetric else 'positive finite number'}")
        if self.symmetric and not bool((self.zero_point == 1 << (self.bits - 1)).all()):
            raise CheckpointError(f"a symmetric grid has a zero point other than {1 << (self.bits - 1)}")

    @classmethod
    def from_scaling(cls, codes: Tensor, scaling: Scaling, grid: Grid) -> "QuantizedTensor":
        """From whole-number codes of any dtype and the scaling they were rounded with."""
        return cls(codes.to(torch.uint8), scaling.scale.half(), scaling.zero_point.to(torch.uint8), grid.bits, grid.symmetric)

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales and zero points included."""
        per_group = 16 + (0 if self.symmetric else self.bits)
        return self.bits + per_group / self.group_size

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, `[out, in]`: `(codes - zero_point) * scale`, computed in `dtype`."""
        grouped = self.codes.reshape(len(self.codes), -1, self.group_size).to(dtype)
        zero, scale = self.zero_point.to(dtype).unsqueeze(-1), self.scale.to(dtype).unsqueeze(-1)
        values: Tensor = ((grouped - zero) * scale).flatten(1)
        return values


def round_to_nearest(weight: Tensor, scaling: Scaling, grid: Grid) -> QuantizedTensor:
    """`weight` `[out, in]` rounded to the nearest levels of a given scaling."""
    size = grid.columns_per_group(weight.shape[1])
    grouped = weight.float().reshape(len(weight), -1, size)
    codes = round_to_codes(grouped, scaling.scale.unsqueeze(-1), scaling.zero_point.unsqueeze(-1), grid)
    return QuantizedTensor.from_scaling(codes.flatten(1), scaling, grid)
