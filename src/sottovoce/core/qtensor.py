"""A quantized weight matrix and its invariants."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.core.number_format import NumberFormat, Parameters
from sottovoce.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes with the parameters of their number format.

    Invariants, checked on construction (`CheckpointError`):
    - `codes` is uint8 `[out, in]`, every code within `0 .. 2^code_bits - 1`;
    - `parameters` are as the format stores them (`NumberFormat.check`).
    """

    codes: Tensor
    parameters: Parameters
    format: NumberFormat

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or self.codes.ndim != 2 or not self.codes.numel():
            raise CheckpointError(f"codes are {self.codes.dtype} {tuple(self.codes.shape)}; wanted uint8 [out, in]")
        top = (1 << self.format.code_bits) - 1
        if int(self.codes.max()) > top:
            raise CheckpointError(f"a code exceeds {top}, the largest of {self.format.code_bits} bits")
        self.format.check(self.parameters, *self.codes.shape)

    @classmethod
    def from_codes(cls, codes: Tensor, parameters: Parameters, number_format: NumberFormat) -> "QuantizedTensor":
        """Build from whole-number codes of any dtype and the parameters they were rounded with."""
        return cls(codes.to(torch.uint8), number_format.stored(parameters), number_format)

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], number_format: NumberFormat) -> "QuantizedTensor":
        """Build from the tensors of a file, by suffix. Raises `CheckpointError`."""
        codes, parameters = number_format.unpack(tensors)
        return cls(codes, parameters, number_format)

    def pack(self) -> dict[str, Tensor]:
        """Return the tensors for a file, by suffix."""
        return self.format.pack(self.codes, self.parameters)

    def to(self, device: torch.device) -> "QuantizedTensor":
        """Return the same on `device`."""
        if self.codes.device == device:
            return self
        return QuantizedTensor(self.codes.to(device), {name: tensor.to(device) for name, tensor in self.parameters.items()}, self.format)

    def cpu(self) -> "QuantizedTensor":
        """Return the same on the CPU, where packing, files and hashes are."""
        return self.to(torch.device("cpu"))

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, parameters included."""
        return self.format.bits_per_weight(self.codes.shape[1])

    def dequantize(self) -> Tensor:
        """Return the values, float32 `[out, in]`."""
        return self.format.decode(self.codes, self.parameters)


def round_to_nearest(weight: Tensor, parameters: Parameters, number_format: NumberFormat) -> QuantizedTensor:
    """Round `weight` `[out, in]` to the nearest values that given parameters allow."""
    return QuantizedTensor.from_codes(number_format.encode(weight, parameters), parameters, number_format)
