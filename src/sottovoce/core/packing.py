"""Codes to 32-bit words and back: the layout of compressed-tensors `pack-quantized` (0.18 or later).

A row of `n` codes of `bits` bits is one little-endian bit stream, code `i` at bit `i * bits`, cut into
`ceil(n * bits / 32)` words. Nothing is padded between codes, so 3-bit codes cross word borders.
"""

import numpy as np
import torch
from torch import Tensor

from sottovoce.errors import CheckpointError

WORD_BITS = 32


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes `[rows, n]`, each below `2^bits`, to int32 words `[rows, ceil(n * bits / 32)]`."""
    rows, n = codes.shape
    n_words = -(-n * bits // WORD_BITS)
    stream = np.unpackbits(codes.contiguous().numpy()[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(rows, n * bits)
    packed = np.zeros((rows, n_words * 4), dtype=np.uint8)
    squeezed = np.packbits(stream, axis=1, bitorder="little")
    packed[:, : squeezed.shape[1]] = squeezed
    return torch.from_numpy(packed.view("<i4").astype(np.int32, copy=False))


def unpack_rows(words: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of `pack_rows`: int32 words to uint8 codes `[rows, n]`.

    Raises `CheckpointError` if the words are no int32 or not exactly as many as `n` codes need.
    """
    if words.dtype != torch.int32:
        raise CheckpointError(f"codes are stored as {str(words.dtype).removeprefix('torch.')}; wanted int32")
    rows, n_words = words.shape
    if n_words != -(-n * bits // WORD_BITS):
        raise CheckpointError(f"{n_words} words a row cannot hold exactly {n} codes of {bits} bits")
    raw = words.contiguous().numpy().astype("<i4", copy=False).view(np.uint8)
    pairs = raw.astype(np.uint16)  # a code of at most 8 bits lies within two neighboring bytes
    pairs[:, :-1] |= pairs[:, 1:] << 8
    first = np.arange(n) * bits
    codes = pairs[:, first >> 3]
    codes >>= (first & 7).astype(np.uint16)
    codes &= (1 << bits) - 1
    return torch.from_numpy(codes.astype(np.uint8))


def pack_nibbles(codes: Tensor) -> Tensor:
    """uint8 codes `[rows, n]` below 16, `n` even, to bytes `[rows, n / 2]`, the first code of a byte in its low bits."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`. Raises `CheckpointError` if `packed` is not uint8 `[rows, n / 2]`."""
    if packed.dtype != torch.uint8 or packed.ndim != 2:
        raise CheckpointError(f"packed codes are {packed.dtype} {tuple(packed.shape)}; wanted uint8 [rows, n / 2]")
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
