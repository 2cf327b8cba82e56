"""A number format: how weights become small whole codes, and what the codes stand for.

RTN, GPTQ, QEP, FADE and AWQ know nothing of a format but this interface. A format has *parameters* (scales, zero points, whatever
its formula needs): named tensors `[..., out, k]`, where `k` is a multiple of the number of blocks in a row. The columns of one
block are fitted together and do not depend on the columns of other blocks.

A new format is a frozen dataclass in a file of its own that implements the abstract methods, and a line in `core.formats.FORMATS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from sottovoce.core.packing import pack_rows, unpack_rows
from sottovoce.errors import CheckpointError

Parameters = Mapping[str, Tensor]


class NumberFormat(ABC):
    """The values that a weight may take, and how they are stored. Subclasses are frozen dataclasses; their fields are the settings."""

    name: ClassVar[str]  # in manifests, recipes and messages
    refit_bits: ClassVar[int] = 2  # the widest codes for which `refit` gains more than next to nothing
    # Parameters that may change while the codes stay: values are linear in each. Those in `factors` may be multiplied by a positive
    # number; those in `offsets` may be shifted, in units of the first factor. What is in neither (whole numbers, powers of two) stays.
    factors: ClassVar[tuple[str, ...]] = ()
    offsets: ClassVar[tuple[str, ...]] = ()
    even: ClassVar[bool] = False  # whether a weight's levels stand at equal distances, the first of what `expand` returns

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of one code, 1 to 8, without the overhead of parameters."""

    @abstractmethod
    def block_size(self, in_features: int) -> int:
        """Columns of one block in a row of `in_features`. Raises `RecipeError` if blocks do not divide the row."""

    @abstractmethod
    def bits_per_weight(self, in_features: int) -> float:
        """Stored bits per weight, parameters included."""

    @abstractmethod
    def fit(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """Fit parameters to `weight` `[..., out, in]`: float32, and already such that storing changes nothing.

        `importance` `[in]` (optional, positive) weights the columns' rounding errors.
        """

    @abstractmethod
    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        """Return what `nearest` and `values` need for every weight: float32 tensors `[..., out, in]`."""

    @abstractmethod
    def nearest(self, weight: Tensor, *expanded: Tensor) -> Tensor:
        """Return the codes (whole numbers, float32) whose values are nearest to `weight`; all shapes equal, whatever they are."""

    @abstractmethod
    def values(self, codes: Tensor, *expanded: Tensor) -> Tensor:
        """Return the values that `codes` (float32) stand for; all shapes equal, whatever they are."""

    @abstractmethod
    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        """Check stored parameters: names, dtypes, shapes, ranges. Raises `CheckpointError`."""

    def part_size(self, in_features: int) -> int | None:
        """Columns that share parameters which `adapt` may choose again, a divisor of 32; None: parameters stay as they were fitted."""
        del in_features
        return None

    def adapt(self, weight: Tensor, parameters: Parameters, importance: Tensor) -> dict[str, Tensor]:
        """Choose the parameters of one part of a row again, just before its columns are rounded.

        `weight` `[..., out, part]` as compensated so far; `parameters` `[..., out, 1]`: those that hold for it; `importance`
        `[..., part]`: what an error in each column costs. Returns the ones chosen again; what the part shares with others stays.
        """
        del weight, importance
        return dict(parameters)

    def refit(self, target: Tensor, codes: Tensor, parameters: Parameters, hessian: Tensor) -> Parameters | None:
        """Fit parameters again to `codes` `[out, in]`, seen through `hessian` `[in, in]`; None: the format cannot."""
        del target, codes, parameters, hessian
        return None

    def largest_step(self, parameters: Parameters, in_features: int) -> Tensor:
        """Return the largest distance between neighboring levels of every weight, float32 `[..., out, in]`."""
        expanded = self.expand(parameters, in_features)
        if self.even:
            return expanded[0].abs()
        below = self.values(torch.zeros_like(expanded[0]), *expanded)
        largest = torch.zeros_like(below)
        for code in range(1, 1 << self.code_bits):
            above = self.values(torch.full_like(below, code), *expanded)
            largest, below = torch.maximum(largest, (above - below).abs()), above
        return largest

    def nearest_stored(self, name: str, value: Tensor) -> Tensor:
        """Return the nearest values of the parameter `name`, one of `factors` or `offsets`, that a file holds; float32, same shape."""
        raise NotImplementedError(f"{type(self).__name__} names {name!r} as one that may change, and does not say how it is stored")

    def stored(self, parameters: Parameters) -> dict[str, Tensor]:
        """Return `parameters` in the dtypes in which they are stored."""
        return {name: tensor.float() for name, tensor in parameters.items()}

    def pack(self, codes: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """Return a layer's tensors for a file, by suffix: codes uint8 `[out, in]` and stored parameters."""
        packed = {"weight_packed": pack_rows(codes, self.code_bits), "weight_shape": torch.tensor(codes.shape)}
        return packed | {f"weight_{name}": tensor.contiguous() for name, tensor in parameters.items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return codes and stored parameters: the inverse of `pack`. Raises `CheckpointError` for a missing tensor."""
        codes = unpack_rows(tensor_named("weight_packed", tensors), self.code_bits, shape_of(tensors)[1])
        rest = tensors.keys() - {"weight_packed", "weight_shape"}
        return codes, {name.removeprefix("weight_"): tensors[name] for name in sorted(rest)}

    def encode(self, weight: Tensor, parameters: Parameters) -> Tensor:
        """Return the nearest codes, float32 `[..., out, in]`."""
        return self.nearest(weight.float(), *self.expand(parameters, weight.shape[-1]))

    def decode(self, codes: Tensor, parameters: Parameters) -> Tensor:
        """Return the values of codes `[..., out, in]`, float32."""
        return self.values(codes.float(), *self.expand(parameters, codes.shape[-1]))

    @property
    def title(self) -> str:
        """The format in a few words, for tables."""
        return f"{self.name}, {self.code_bits} bits"

    @property
    def levels(self) -> str:
        """The values of a block at scale 1, in a few words."""
        return str(1 << self.code_bits)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


def stack(parameters: Sequence[Parameters]) -> dict[str, Tensor]:
    """Stack parameters of several weights along a new first dimension."""
    return {name: torch.stack([one[name] for one in parameters]) for name in parameters[0]}


def join_blocks(parameters: Sequence[Parameters]) -> dict[str, Tensor]:
    """Put parameters of neighboring blocks side by side."""
    return {name: torch.cat([one[name] for one in parameters], -1) for name in parameters[0]}


def tensor_named(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return `tensors[name]`. Raises `CheckpointError` if it is missing."""
    if name not in tensors:
        raise CheckpointError(f"the tensor {name!r} is missing")
    return tensors[name]


def shape_of(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return `[out, in]` as stored beside packed codes. Raises `CheckpointError`."""
    shape = tensor_named("weight_shape", tensors)
    if shape.numel() != 2 or bool((shape < 1).any()):
        raise CheckpointError(f"'weight_shape' is {shape.tolist()}; wanted two positive numbers")
    out_features, in_features = (int(size) for size in shape)
    return out_features, in_features
