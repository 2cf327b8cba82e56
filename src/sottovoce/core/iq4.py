"""IQ4_NL and IQ4_XS: ggml's 4-bit books of 16 fitted levels, denser around 0, with no level at 0.

IQ4_NL has a float16 scale for each 32 weights. IQ4_XS has a float16 scale `d` for each 256 and a whole number `-32 .. 31` for each 32,
which multiply. Layouts: ggml, `ggml-common.h` (`block_iq4_nl`, `block_iq4_xs`); levels: `kvalues_iq4nl` there.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sottovoce.core.k_quants import SUPER_BLOCK
from sottovoce.core.level_book import Float16Scale, LevelBook, book_of, float16_scale
from sottovoce.core.number_format import Parameters, tensor_named
from sottovoce.core.scale_refit import refit_group_scales
from sottovoce.errors import CheckpointError

LEVELS = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
BLOCK = 32
LOWEST, HIGHEST = -32, 31  # sub-scales
DIVISORS = (-32, -31, -30, -29, -28, 31, 30, 29, 28)  # what the largest scale of a super-block is tried as


@dataclass(frozen=True, kw_only=True)
class IQ4NL(Float16Scale):
    """16 levels, a float16 scale for each 32 weights: 4.5 bits a weight."""

    name: ClassVar[str] = "iq4_nl"

    @property
    def table(self) -> tuple[float, ...]:
        return LEVELS

    @property
    def block(self) -> int:
        return BLOCK

    @property
    def title(self) -> str:
        return "IQ4_NL"


@dataclass(frozen=True, kw_only=True)
class IQ4XS(LevelBook):
    """16 levels, a 6-bit scale for each 32 weights and a float16 scale for each 256: 4.25 bits a weight."""

    name: ClassVar[str] = "iq4_xs"
    factors: ClassVar[tuple[str, ...]] = ("scale",)

    @property
    def table(self) -> tuple[float, ...]:
        return LEVELS

    @property
    def block(self) -> int:
        return SUPER_BLOCK

    @property
    def title(self) -> str:
        return "IQ4_XS"

    def bits_per_weight(self, in_features: int) -> float:
        return self.code_bits + 6 / BLOCK + 16 / self.block_size(in_features)

    def storable(self, scale: Tensor) -> Tensor:
        return scale  # of a sub-block: rounded together with the others of its super-block

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """Fit `scale` `[..., out, in / 256]` and `sub_scale` `[..., out, in / 32]`, whole numbers.

        Scales of the sub-blocks are searched freely. Then several `scale` are tried with the sub-scales that come nearest to those, and
        at last the neighbors of each sub-scale.
        """
        self.block_size(weight.shape[-1])
        per_super = SUPER_BLOCK // BLOCK
        blocks = weight.float().reshape(*weight.shape[:-1], -1, per_super, BLOCK)
        weights = None if importance is None else importance.float().reshape(-1, per_super, BLOCK)
        free = self.search(blocks, weights)
        farthest = torch.gather(free, -1, free.abs().argmax(-1, keepdim=True))
        best = self._with_scale(blocks, weights, free, farthest / DIVISORS[0])
        for divisor in DIVISORS[1:]:
            scale, sub_scale, error = self._with_scale(blocks, weights, free, farthest / divisor)
            better = error.sum(-1, keepdim=True) < best[2].sum(-1, keepdim=True)
            best = (
                torch.where(better, scale, best[0]),
                torch.where(better, sub_scale, best[1]),
                torch.where(better, error, best[2]),
            )
        scale, sub_scale, least = best
        first = sub_scale
        for step in (-1, 1):
            tried = (first + step).clamp(LOWEST, HIGHEST)
            error = self.rounding_error(blocks, scale * tried, weights)
            better = error < least
            sub_scale, least = torch.where(better, tried, sub_scale), torch.where(better, error, least)
        return {"scale": scale.squeeze(-1), "sub_scale": sub_scale.flatten(-2)}

    def _with_scale(self, blocks: Tensor, weights: Tensor | None, free: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`scale` as stored `[..., 1]`, the sub-scales nearest to `free` `[..., 8]`, and the errors of the sub-blocks."""
        scale = float16_scale(scale)
        sub_scale = torch.round(free / torch.where(scale == 0, 1.0, scale)).clamp(LOWEST, HIGHEST)
        return scale, sub_scale, self.rounding_error(blocks, scale * sub_scale, weights)

    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        self.block_size(in_features)
        scale = parameters["scale"].float().repeat_interleave(SUPER_BLOCK // BLOCK, -1) * parameters["sub_scale"].float()
        return (scale.repeat_interleave(BLOCK, -1),)

    def refit(self, target: Tensor, codes: Tensor, parameters: Parameters, hessian: Tensor) -> Parameters | None:
        """Fit the scales of super-blocks again; their signs and the sub-scales stay."""
        basis = book_of(self.table, codes.device).levels[codes.long()] * parameters["sub_scale"].float().repeat_interleave(BLOCK, -1)
        scale = float16_scale(refit_group_scales(target, basis, parameters["scale"], hessian))
        return {"scale": scale, "sub_scale": parameters["sub_scale"]}

    def nearest_stored(self, name: str, value: Tensor) -> Tensor:
        del name
        return float16_scale(value)

    def stored(self, parameters: Parameters) -> dict[str, Tensor]:
        return {"scale": parameters["scale"].half(), "sub_scale": parameters["sub_scale"].to(torch.int8)}

    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        """Scales are float16 `[out, in / 256]` and finite, sub-scales int8 `[out, in / 32]` within -32 .. 31."""
        self.block_size(in_features)
        sub_scale = tensor_named("sub_scale", parameters)
        rest = {name: tensor for name, tensor in parameters.items() if name != "sub_scale"}
        scale = self.check_scale(rest, torch.float16, (out_features, in_features // SUPER_BLOCK))
        if not bool(torch.isfinite(scale).all()):
            raise CheckpointError("a scale is not a finite number")
        if sub_scale.dtype != torch.int8 or sub_scale.shape != (out_features, in_features // BLOCK):
            raise CheckpointError(
                f"sub-scale {sub_scale.dtype} {tuple(sub_scale.shape)}; wanted torch.int8 {(out_features, in_features // BLOCK)}"
            )
        if int(sub_scale.min()) < LOWEST or int(sub_scale.max()) > HIGHEST:
            raise CheckpointError(f"a sub-scale is not within {LOWEST} .. {HIGHEST}")
