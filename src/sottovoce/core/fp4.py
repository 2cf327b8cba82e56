"""MXFP4 and NVFP4: 4-bit floating-point numbers (E2M1) with a small floating-point scale for each block.

Levels are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; the highest bit of a code is its sign. Sources: OCP Microscaling Formats
specification 1.0 (MXFP4); compressed-tensors `mxfp4-pack-quantized` and `nvfp4-pack-quantized`; ggml `block_mxfp4`, `block_nvfp4`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sottovoce.core.level_book import LevelBook
from sottovoce.core.number_format import Parameters, tensor_named
from sottovoce.core.packing import pack_nibbles, unpack_nibbles
from sottovoce.errors import CheckpointError, RecipeError

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LEVELS = (*MAGNITUDES, *(-size for size in MAGNITUDES))
BIAS = 127  # of E8M0: a byte e stands for 2^(e - 127)
LOWEST_BYTE, HIGHEST_BYTE = 32, 222  # 2^-95 to 2^95: products with levels and sums of squares stay normal float32 numbers
SMALLEST_E4M3, LARGEST_E4M3 = 2.0**-9, 448.0
MOST_TENSOR_EXPONENT = 32


class FloatBook(LevelBook):
    """E2M1 levels, packed as compressed-tensors does: two codes a byte, the first in the low bits."""

    @property
    def table(self) -> tuple[float, ...]:
        return LEVELS

    def pack(self, codes: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        return {"weight_packed": pack_nibbles(codes), "weight_scale": parameters["scale"].contiguous()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return unpack_nibbles(tensor_named("weight_packed", tensors)), {"scale": tensor_named("weight_scale", tensors)}

    def refuse_others(self, tensors: Mapping[str, Tensor], names: set[str]) -> None:
        """Raise `CheckpointError` if there are other tensors than `names`."""
        if extra := sorted(tensors.keys() - names):
            raise CheckpointError(f"a tensor {extra[0]!r} is there, which {self.title!r} does not have")


@dataclass(frozen=True, kw_only=True)
class MXFP4(FloatBook):
    """4-bit floats with a power of two for each 32 weights: 4.25 bits a weight. In memory scales are their powers, stored as E8M0."""

    name: ClassVar[str] = "mxfp4"

    @property
    def block(self) -> int:
        return 32

    @property
    def title(self) -> str:
        return "MXFP4"

    def bits_per_weight(self, in_features: int) -> float:
        return self.code_bits + 8 / self.block_size(in_features)

    def storable(self, scale: Tensor) -> Tensor:
        exponent = torch.round(torch.log2(scale.abs().clamp(min=2.0**-120))).clamp(LOWEST_BYTE - BIAS, HIGHEST_BYTE - BIAS)
        return torch.where(scale == 0, 1.0, torch.exp2(exponent))

    def shares(self, spanning: Tensor) -> Iterator[Tensor]:
        nearest = self.storable(spanning)
        for factor in (1.0, 0.5, 2.0):
            yield self.storable(nearest * factor)

    def refit(self, target: Tensor, codes: Tensor, parameters: Parameters, hessian: Tensor) -> Parameters | None:
        del target, codes, parameters, hessian
        return None  # powers of two are too far apart

    def stored(self, parameters: Parameters) -> dict[str, Tensor]:
        return {"scale": (torch.log2(parameters["scale"]) + BIAS).round().to(torch.uint8)}

    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        scale = parameters["scale"]
        if scale.dtype == torch.uint8:
            scale = torch.exp2(scale.float() - BIAS)
        return (scale.repeat_interleave(self.block_size(in_features), -1),)

    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        """Scales are uint8 `[out, in / 32]`, within 32 .. 222."""
        scale = self.check_scale(parameters, torch.uint8, (out_features, in_features // self.block_size(in_features)))
        if int(scale.min()) < LOWEST_BYTE or int(scale.max()) > HIGHEST_BYTE:
            raise CheckpointError(f"a scale is not within {LOWEST_BYTE} .. {HIGHEST_BYTE}")

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.refuse_others(tensors, {"weight_packed", "weight_scale"})
        return super().unpack(tensors)


@dataclass(frozen=True, kw_only=True)
class NVFP4(FloatBook):
    """4-bit floats with an 8-bit float (E4M3) for each 16 weights: 4.5 bits a weight.

    `value = level * scale * 2^tensor_exponent`. E4M3 numbers are exact to 6 % from 2^-6 to 448, and the blocks of most speech models
    need scales below. A factor of the whole tensor mends that: any number in compressed-tensors, none in ggml. Ours is the same power of
    two for all tensors, so that runtimes that fuse layers (vLLM: query, key and value) need not choose one of several.
    """

    name: ClassVar[str] = "nvfp4"

    tensor_exponent: int = -8  # scales from 2^-17 to 1.75; 0 is no factor, which is all that ggml holds

    def __post_init__(self) -> None:
        if type(self.tensor_exponent) is not int or abs(self.tensor_exponent) > MOST_TENSOR_EXPONENT:
            raise RecipeError(f"tensor_exponent {self.tensor_exponent!r} is out of range; a whole number, at most 32 either way")

    @property
    def block(self) -> int:
        return 16

    @property
    def title(self) -> str:
        return "NVFP4" if self.tensor_exponent else "NVFP4 without a scale of the tensor"

    @property
    def tensor_scale(self) -> float:
        """The factor of the whole tensor."""
        return 2.0**self.tensor_exponent

    def bits_per_weight(self, in_features: int) -> float:
        return self.code_bits + 8 / self.block_size(in_features)

    def storable(self, scale: Tensor) -> Tensor:
        own = (scale / self.tensor_scale).abs().clamp(SMALLEST_E4M3, LARGEST_E4M3)
        return own.to(torch.float8_e4m3fn).float() * self.tensor_scale

    def stored(self, parameters: Parameters) -> dict[str, Tensor]:
        return {"scale": (parameters["scale"] / self.tensor_scale).to(torch.float8_e4m3fn)}

    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        scale = parameters["scale"]
        if scale.dtype == torch.float8_e4m3fn:
            scale = scale.float() * self.tensor_scale
        return (scale.repeat_interleave(self.block_size(in_features), -1),)

    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        """Scales are E4M3 `[out, in / 16]`, positive and finite."""
        scale = self.check_scale(parameters, torch.float8_e4m3fn, (out_features, in_features // self.block_size(in_features))).float()
        if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
            raise CheckpointError("a scale is not a positive finite number")

    def pack(self, codes: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """Pack as compressed-tensors does: it divides by `weight_global_scale`."""
        return super().pack(codes, parameters) | {"weight_global_scale": torch.tensor([1 / self.tensor_scale])}

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.refuse_others(tensors, {"weight_packed", "weight_scale", "weight_global_scale"})
        found = tensor_named("weight_global_scale", tensors)
        if found.dtype != torch.float32 or found.tolist() != [1 / self.tensor_scale]:
            raise CheckpointError(f"'weight_global_scale' is {found.dtype} {tuple(found.shape)}; wanted [{1 / self.tensor_scale:g}]")
        return super().unpack(tensors)
