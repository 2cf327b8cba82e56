"""Modules that become ONNX Runtime's low-bit operators when a network is exported.

`com.microsoft.MatMulNBits`: B uint8 `[N, ceil(K / block), block * bits / 8]`, low bits first along K; scales float `[N, blocks]`; zero
points packed the same way, `[N, ceil(blocks * bits / 8)]`; `y = x @ ((B - zero) * scale).T + bias`.
`com.microsoft.GatherBlockQuantized`: rows of the same packed matrix.
`com.microsoft.DynamicQuantizeMatMul`: B int8 `[K, N]`, a scale for each of its columns; inputs rounded to uint8, one scale for all of
them. Of many rows at once, as in an encoder, by far the fastest. Source: onnxruntime, `docs/ContribOperators.md`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.backends.backend import StoredType
from sottovoce.core.affine import Affine, AffineTensor
from sottovoce.core.nf4 import NF4
from sottovoce.core.number_format import NumberFormat
from sottovoce.errors import ExportError

SMALLEST_BLOCK = 16
LARGEST_BLOCK = 256
# `accuracy_level` by what multiplies: "int8", the fast kernels, round inputs to 8 bits block by block.
ACTIVATIONS = {"int8": 4, "float32": 1}


WIDTHS = (2, 4, 8)  # bits of the operator's codes


def runtime_bits(bits: int) -> int:
    """The operator's width for codes of `bits`: codes of 3 bits go into 4, of 5 and 6 into 8."""
    return next(width for width in WIDTHS if width >= bits)


def stored_type(number_format: NumberFormat) -> StoredType:
    """Return how the operators hold layers of this format."""
    if isinstance(number_format, NF4):
        return StoredType("NF4", 4)
    width = runtime_bits(number_format.code_bits)
    return StoredType(f"{width} bits", width)


def refusal(runtime: str, number_format: NumberFormat, in_features: int) -> str | None:
    """Return why the operators hold no layers of this format, in a sentence; None: they do."""
    if isinstance(number_format, NF4):
        return None
    if not isinstance(number_format, Affine):
        return f"{runtime} has no operator for {number_format.title!r}, only for affine formats and NF4"
    size = number_format.block_size(in_features)
    if size % SMALLEST_BLOCK:
        return f"groups of {size} do not fit {runtime}, which wants multiples of {SMALLEST_BLOCK}"
    return None


def packed(name: str, weight: AffineTensor) -> dict[str, Tensor]:
    """`codes` `[out, blocks, bytes]`, `scales` `[out, blocks]` float16 and, unless it is the middle everywhere, packed `zero_points`.

    Raises `ExportError` if no block of the operator fits the groups.
    """
    block = _block(name, weight)
    bits, repeat = runtime_bits(weight.bits), weight.group_size // block
    out, in_features = weight.codes.shape
    shift = (1 << (bits - 1)) - (1 << (weight.bits - 1)) if weight.symmetric else 0
    codes = weight.codes + shift
    tensors = {
        "codes": _pack(codes, bits).reshape(out, in_features // block, block * bits // 8),
        "scales": weight.scale.repeat_interleave(repeat, dim=1).contiguous(),
    }
    if not weight.symmetric:
        tensors["zero_points"] = _pack(weight.zero_point.repeat_interleave(repeat, dim=1), bits)
    return tensors


def _block(name: str, weight: AffineTensor) -> int:
    """The largest power of two that divides the groups."""
    block = weight.group_size & -weight.group_size
    if block < SMALLEST_BLOCK:
        raise ExportError(
            f"{name}: groups of {weight.group_size} weights are no multiple of {SMALLEST_BLOCK}, the smallest block of "
            "ONNX Runtime; quantize with --group-size 32"
        )
    return min(block, LARGEST_BLOCK)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 `[rows, n]` to bytes, low bits first, rows padded to whole bytes."""
    per_byte = 8 // bits
    rows, n = codes.shape
    padded = np.zeros((rows, -(-n // per_byte) * per_byte), np.uint8)
    padded[:, :n] = codes.numpy()
    result = np.zeros((rows, padded.shape[1] // per_byte), np.uint8)
    for i in range(per_byte):
        result |= padded[:, i::per_byte] << np.uint8(bits * i)
    return torch.from_numpy(result)


def operator_node(name: str, inputs: list[Tensor | None], shape: tuple[int | torch.SymInt, ...], **attributes: Any) -> Tensor:
    """Make a node of ONNX Runtime's own domain with a float32 result of `shape`. Inputs may be missing; at the end they are left away."""
    while inputs[-1] is None:
        inputs = inputs[:-1]
    result: Tensor = torch.onnx.ops.symbolic(f"com.microsoft::{name}", inputs, attributes, dtype=torch.float32, shape=shape, version=1)
    return result


class Int8Linear(nn.Module):
    """A linear layer of 8 bits with a symmetric scale for each row as `DynamicQuantizeMatMul`."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: AffineTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.codes = nn.Buffer((weight.codes.short() - 128).to(torch.int8).T.contiguous())
        self.scales = nn.Buffer(weight.scale[:, 0].contiguous())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.codes.shape[1])
        return operator_node("DynamicQuantizeMatMul", [x, self.codes, self.scales.float(), None, self.bias], shape)


class NBitsLinear(nn.Module):
    """A linear layer as `MatMulNBits`."""

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bias: Tensor | None
    shape: tuple[int, ...]

    def __init__(self, name: str, weight: AffineTensor, bias: Tensor | None, activations: str = "int8") -> None:
        super().__init__()
        tensors = packed(name, weight)
        self.accuracy_level = ACTIVATIONS[activations]
        self.bits, self.shape = runtime_bits(weight.bits), tuple(weight.codes.shape)
        self.block = self.shape[1] // tensors["scales"].shape[1]
        self.codes, self.scales = nn.Buffer(tensors["codes"]), nn.Buffer(tensors["scales"])
        self.zero_points = nn.Buffer(tensors["zero_points"]) if "zero_points" in tensors else None
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return operator_node(
            "MatMulNBits",
            [x, self.codes, self.scales.float(), self.zero_points, None, self.bias],
            (*x.shape[:-1], self.shape[0]),
            K=self.shape[1],
            N=self.shape[0],
            bits=self.bits,
            block_size=self.block,
            accuracy_level=self.accuracy_level,
        )


class NBitsEmbedding(nn.Module):
    """A token embedding as `GatherBlockQuantized`, over the codes of the head that it shares them with."""

    def __init__(self, head: NBitsLinear) -> None:
        super().__init__()
        self.head = head
        self.weight = torch.empty(0)  # `transformers` asks for its device only

    def forward(self, ids: Tensor) -> Tensor:
        head = self.head
        return operator_node(
            "GatherBlockQuantized",
            [head.codes.flatten(1), ids, head.scales.float(), head.zero_points],
            (*ids.shape, head.shape[1]),
            bits=head.bits,
            block_size=head.block,
            gather_axis=0,
            quantize_axis=1,
        )
