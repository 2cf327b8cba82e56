"""Books of levels to ggml blocks, by rearranging bits alone (ggml, `ggml-common.h`; little-endian).

- IQ4_NL: float16 d, 16 bytes of codes: low nibble = weight j, high nibble = weight j + 16
- IQ4_XS: float16 d, uint16 with the 2 high bits of 8 sub-scales (32 more than they are), 4 bytes with their low nibbles, and for each
  32 weights 16 bytes of codes as above
- MXFP4: a byte e (E8M0), 16 bytes of codes as above
- NVFP4: 4 bytes of scales (E4M3), and for each 16 weights 8 bytes of codes: low nibble = weight j, high nibble = weight j + 8
"""

import numpy as np
import torch

from sottovoce.backends.ggml_simple import as_bytes, nibble_pairs
from sottovoce.core.fp4 import MXFP4, NVFP4
from sottovoce.core.iq4 import BLOCK, IQ4NL, IQ4XS, LOWEST
from sottovoce.core.k_quants import SUPER_BLOCK
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor

NVFP4_BLOCK = 64
KINDS: dict[type[NumberFormat], str] = {IQ4NL: "IQ4_NL", IQ4XS: "IQ4_XS", MXFP4: "MXFP4", NVFP4: "NVFP4"}


def book_kind(number_format: NumberFormat) -> str | None:
    """Return the block type that holds a book of levels, or None: ggml's NVFP4 has no factor of the tensor."""
    if isinstance(number_format, NVFP4) and number_format.tensor_exponent:
        return None
    return KINDS.get(type(number_format))


def book_blocks(name: str, quantized: QuantizedTensor, kind: str) -> np.ndarray:
    """Return the blocks of `kind`, uint8 `[out, blocks, bytes]`."""
    del name
    codes, scale = quantized.codes.numpy(), quantized.parameters["scale"]
    out = len(codes)
    if kind == "NVFP4":
        nibbles = nibble_pairs(codes.reshape(out, -1, 16)).reshape(out, -1, NVFP4_BLOCK // 2)
        return np.concatenate([scale.contiguous().view(torch.uint8).numpy().reshape(out, -1, 4), nibbles], axis=2)
    nibbles = nibble_pairs(codes.reshape(out, -1, BLOCK))
    if kind == "MXFP4":
        return np.concatenate([scale.numpy()[:, :, None], nibbles], axis=2)
    halves = as_bytes(scale)
    if kind == "IQ4_NL":
        return np.concatenate([halves, nibbles], axis=2)
    sub = (quantized.parameters["sub_scale"].numpy().astype(np.int16) - LOWEST).astype(np.uint16).reshape(out, -1, SUPER_BLOCK // BLOCK)
    low = (sub[:, :, 0::2] & 15 | (sub[:, :, 1::2] & 15) << 4).astype(np.uint8)
    high = np.bitwise_or.reduce((sub >> 4) << (2 * np.arange(sub.shape[2], dtype=np.uint16)), axis=2).astype("<u2")
    high_bytes = np.ascontiguousarray(high).view(np.uint8).reshape(out, -1, 2)
    return np.concatenate([halves, high_bytes, low, nibbles.reshape(out, -1, SUPER_BLOCK // 2)], axis=2)
