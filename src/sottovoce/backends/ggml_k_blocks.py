"""K-quants as ggml's super-blocks of 256 weights (ggml, `ggml-common.h`, `block_q2_K` and its like; little-endian).

- Q2_K: 16 bytes of sub-scale | sub-minimum << 4; codes; d; dmin
- Q3_K: 32 bytes of the codes' third bits; the codes' low bits; 12 bytes of 6-bit sub-scales + 32; d
- Q4_K, Q5_K: d; dmin; 12 bytes of 6-bit sub-scales and sub-minima; (Q5_K: 32 bytes of fifth bits); nibbles
- Q6_K: low nibbles; high two bits; 16 int8 sub-scales; d
"""

import numpy as np

from sottovoce.backends.ggml_simple import as_bytes
from sottovoce.core.k_quants import SUPER_BLOCK, KQuant
from sottovoce.core.qtensor import QuantizedTensor

U8 = np.uint8


def k_blocks(quantized: QuantizedTensor) -> np.ndarray:
    """Return the super-blocks of a K-quant, uint8 `[out, blocks, bytes]`."""
    number_format, parameters = quantized.format, quantized.parameters
    assert isinstance(number_format, KQuant)  # noqa: S101 - the packers' table says so
    out = len(quantized.codes)
    codes = quantized.codes.numpy().reshape(out, -1, SUPER_BLOCK)
    sub = parameters["sub_scale"].numpy().reshape(out, codes.shape[1], -1)
    d = as_bytes(parameters["scale"])
    if number_format.type == "Q3_K":
        return np.concatenate([_stacked_bits(codes >> U8(2)), _pairs_of_bits(codes & U8(3)), _six_bits((sub + 32).astype(U8)), d], axis=2)
    if number_format.type == "Q6_K":
        halves = codes.reshape(out, -1, 2, 4, 32)
        low = (halves[:, :, :, :2] & U8(15)) | ((halves[:, :, :, 2:] & U8(15)) << U8(4))
        return np.concatenate([low.reshape(out, -1, 128), _pairs_of_bits(codes >> U8(4)), sub.view(U8), d], axis=2)
    dmin, lows = as_bytes(parameters["minimum"]), parameters["sub_minimum"].numpy().reshape(sub.shape)
    if number_format.type == "Q2_K":
        return np.concatenate([sub | (lows << U8(4)), _pairs_of_bits(codes), d, dmin], axis=2)
    pairs = codes.reshape(out, -1, 4, 2, 32)
    nibbles = ((pairs[:, :, :, 0] & U8(15)) | ((pairs[:, :, :, 1] & U8(15)) << U8(4))).reshape(out, -1, 128)
    fifth = [_stacked_bits(codes >> U8(4))] if number_format.type == "Q5_K" else []
    return np.concatenate([d, dmin, _scales_and_minima(sub, lows), *fifth, nibbles], axis=2)


def _pairs_of_bits(codes: np.ndarray) -> np.ndarray:
    """2-bit codes: for each half of 128, byte l holds weights l, l + 32, l + 64, l + 96."""
    halves = codes.reshape(*codes.shape[:2], 2, 4, 32)
    shifted = halves << np.array([0, 2, 4, 6], U8).reshape(4, 1)
    packed: np.ndarray = np.bitwise_or.reduce(shifted, axis=3)
    return packed.reshape(*codes.shape[:2], 64)


def _stacked_bits(bits: np.ndarray) -> np.ndarray:
    """Bit j // 32 of byte j % 32 is that of weight j."""
    return np.packbits(bits.reshape(*bits.shape[:2], 8, 32), axis=2, bitorder="little").reshape(*bits.shape[:2], 32)


def _six_bits(sub: np.ndarray) -> np.ndarray:
    """Q3_K's 16 sub-scales of 6 bits in 12 bytes."""
    low = (sub[:, :, :8] & U8(15)) | ((sub[:, :, 8:] & U8(15)) << U8(4))
    high = (sub >> U8(4)).reshape(*sub.shape[:2], 4, 4) << np.array([0, 2, 4, 6], U8).reshape(4, 1)
    return np.concatenate([low, np.bitwise_or.reduce(high, axis=2)], axis=2)


def _scales_and_minima(sub: np.ndarray, lows: np.ndarray) -> np.ndarray:
    """The 8 sub-scales and 8 sub-minima of Q4_K and Q5_K, 6 bits each, in 12 bytes."""
    first = sub[:, :, :4] | ((sub[:, :, 4:] >> U8(4)) << U8(6))
    second = lows[:, :, :4] | ((lows[:, :, 4:] >> U8(4)) << U8(6))
    third = (sub[:, :, 4:] & U8(15)) | ((lows[:, :, 4:] & U8(15)) << U8(4))
    return np.concatenate([first, second, third], axis=2)
