"""Bytes that several of ggml's blocks are made of."""

import numpy as np
from torch import Tensor

BLOCK = 32  # weights of a simple block


def low_blocks(codes: np.ndarray, bits: int) -> list[np.ndarray]:
    """Codes uint8 `[out, blocks, 32]` of 4 or 5 bits as ggml's simple blocks have them: the fifth bits, if any, and the nibbles."""
    nibbles = nibble_pairs(codes)
    return [np.packbits(codes >> np.uint8(4), axis=2, bitorder="little"), nibbles] if bits == 5 else [nibbles]


def nibble_pairs(codes: np.ndarray) -> np.ndarray:
    """The low nibbles of codes uint8 `[out, blocks, n]`, two a byte: `[out, blocks, n / 2]`, a block's first half in the low bits."""
    half = codes.shape[2] // 2
    packed: np.ndarray = (codes[:, :, :half] & np.uint8(15)) | (codes[:, :, half:] << np.uint8(4))
    return packed


def as_bytes(halves: Tensor) -> np.ndarray:
    """float16 `[out, blocks]` to uint8 `[out, blocks, 2]`."""
    return halves.contiguous().numpy().astype("<f2", copy=False).view(np.uint8).reshape(*halves.shape, 2)
