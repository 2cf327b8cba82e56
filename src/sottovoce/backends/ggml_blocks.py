"""Codes to ggml blocks and back, by rearranging bits alone.

A block holds 32 weights of a row (ggml, `ggml-common.h`, `block_q4_0` and its like; little-endian):

- Q4_0: float16 d, 16 bytes of codes: low nibble = weight j, high nibble = weight j + 16; `w = (q - 8) d`
- Q4_1: float16 d, float16 m, 16 bytes of codes in the same order; `w = q d + m`
- Q8_0: float16 d, 32 signed bytes; `w = q d`
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sottovoce.backends.backend import StoredType
from sottovoce.backends.source import affine_parts
from sottovoce.core.affine import Affine, AffineTensor
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import ExportError

BLOCK = 32
BlockType = Literal["Q4_0", "Q4_1", "Q8_0"]
BLOCK_BYTES: dict[BlockType, int] = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}  # ggml's numbers for the type of most weights of a file


STORED_BITS: dict[BlockType, int] = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}


def refusal(runtime: str, number_format: NumberFormat, in_features: int) -> str | None:
    """Return why no block type holds layers of this format, in a sentence; None: one does."""
    if not isinstance(number_format, Affine):
        return f"{runtime} has no blocks for {number_format.title!r}; choose an affine format"
    size = number_format.block_size(in_features)
    if size % BLOCK:
        return f"groups of {size} do not fit {runtime}, which wants multiples of {BLOCK}"
    if not number_format.symmetric and not number_format.float16_min:
        return f"{runtime} has no asymmetric blocks of {number_format.bits} bits; choose a symmetric grid"
    return None


def block_type(name: str, weight: AffineTensor) -> BlockType:
    """Return the type that holds `weight` exactly. Raises `ExportError` with the reason if none does."""
    if weight.group_size % BLOCK:
        raise ExportError(
            f"{name}: groups of {weight.group_size} weights do not fill ggml's blocks of {BLOCK}; quantize with --group-size 32"
        )
    if weight.bits == 8:
        if weight.symmetric:
            return "Q8_0"
        raise ExportError(f"{name}: ggml has no asymmetric 8-bit blocks; quantize with --symmetric, or with --target transcribe.cpp")
    if weight.symmetric:
        return "Q4_0"
    minimum = _minimum(weight)
    if not bool((minimum.half().float() == minimum).all()):
        raise ExportError(
            f"{name}: the minima of its groups are no float16 numbers, which ggml's Q4_1 stores; quantize with --target transcribe.cpp "
            "(or whisper.cpp), whose scales are chosen so that they are"
        )
    return "Q4_1"


def stored_type(kind: BlockType) -> StoredType:
    """Return a block type as it is reported."""
    return StoredType(kind, STORED_BITS[kind])


def to_blocks(name: str, quantized: QuantizedTensor) -> tuple[BlockType, np.ndarray]:
    """Return the type, and the rows as bytes: uint8 `[out, in / 32 * bytes of a block]`.

    Codes of 2 and 3 bits go into 4-bit blocks: the values stay exactly the same, the size does not shrink.
    """
    weight = affine_parts(name, quantized)
    kind = block_type(name, weight)
    out, in_features = weight.codes.shape
    repeat = weight.group_size // BLOCK
    scale = _as_bytes(weight.scale.repeat_interleave(repeat, dim=1))
    if kind == "Q8_0":
        signed = (weight.codes.to(torch.int16) - 128).to(torch.int8).numpy().reshape(out, -1, BLOCK)
        blocks = np.concatenate([scale, signed.view(np.uint8)], axis=2)
        return kind, blocks.reshape(out, -1)
    codes = weight.codes.numpy().reshape(out, -1, BLOCK)
    head = [scale]
    if kind == "Q4_0":
        codes = codes + np.uint8(8 - (1 << (weight.bits - 1)))  # the middle of a narrower grid moves to that of 4 bits
    else:
        head.append(_as_bytes(_minimum(weight).half().repeat_interleave(repeat, dim=1)))
    nibbles = codes[:, :, : BLOCK // 2] | (codes[:, :, BLOCK // 2 :] << 4)
    blocks = np.concatenate([*head, nibbles], axis=2)
    return kind, np.ascontiguousarray(blocks.reshape(out, in_features // BLOCK * BLOCK_BYTES[kind]))


def _minimum(weight: AffineTensor) -> Tensor:
    return -weight.zero_point.float() * weight.scale.float()


def _as_bytes(halves: Tensor) -> np.ndarray:
    """float16 `[out, blocks]` to uint8 `[out, blocks, 2]`."""
    return halves.contiguous().numpy().astype("<f2", copy=False).view(np.uint8).reshape(*halves.shape, 2)
