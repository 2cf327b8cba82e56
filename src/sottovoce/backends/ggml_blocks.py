"""Codes to ggml blocks, by rearranging bits alone.

A block holds 32 weights of a row (ggml, `ggml-common.h`, `block_q4_0` and its like; little-endian):

- Q4_0: float16 d, 16 bytes of codes: low nibble = weight j, high nibble = weight j + 16; `w = (q - 8) d`
- Q4_1: float16 d, float16 m, 16 bytes of codes in the same order; `w = q d + m`
- Q5_0, Q5_1: the same with 4 bytes before the codes' low 4 bits: bit j is the fifth bit of weight j; Q5_0: `w = (q - 16) d`
- Q8_0: float16 d, 32 signed bytes; `w = q d`

Another format is a function that packs it, and a line in `PACKERS`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sottovoce.backends.backend import StoredType
from sottovoce.backends.ggml_books import book_blocks, book_kind
from sottovoce.backends.ggml_k_blocks import k_blocks
from sottovoce.backends.ggml_simple import BLOCK, as_bytes, low_blocks
from sottovoce.backends.ggml_types import BLOCK_TYPES
from sottovoce.backends.source import UnheldError, affine_parts
from sottovoce.backends.transcribe_cpp import NAME as TRANSCRIBE_CPP
from sottovoce.backends.whisper_cpp import NAME as WHISPER_CPP
from sottovoce.core.affine import Affine, AffineTensor
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.fp4 import MXFP4, NVFP4
from sottovoce.core.iq4 import IQ4NL, IQ4XS
from sottovoce.core.k_quants import KQuant
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.stochastic import Stochastic


class Packer(NamedTuple):
    """How one class of formats becomes blocks.

    `kind(number_format)`: name of the type that holds it, or None. `blocks(name, weight, kind)`: uint8 `[out, blocks, bytes]`; raises
    `ExportError` with the layer's name.
    """

    kind: Callable[[NumberFormat], str | None]
    blocks: Callable[[str, QuantizedTensor, str], np.ndarray]


def refusal(runtime: str, types: Sequence[str], number_format: NumberFormat, in_features: int) -> str | None:
    """Return why none of the block `types` that `runtime` executes holds layers of this format, in a sentence; None: one does."""
    kind = kind_of(number_format)
    if kind is None or (isinstance(number_format, Affine) and not number_format.symmetric and not number_format.float16_min):
        return f"{runtime} has no blocks for {number_format.title!r} (its own are {', '.join(types)})"
    if kind not in types:
        return f"{runtime} does not execute {kind} (but {', '.join(types)})"
    if isinstance(number_format, Affine) and (size := number_format.block_size(in_features)) % BLOCK:
        return f"groups of {size} do not fit {runtime}, which wants multiples of {BLOCK}"
    if in_features % BLOCK_TYPES[kind].weights:
        return f"rows of {in_features} do not fit {kind}, which wants multiples of {BLOCK_TYPES[kind].weights}"
    return None


def kind_of(number_format: NumberFormat) -> str | None:
    """Return the name of the block type that holds layers in this format, or None if none does."""
    packer = PACKERS.get(type(number_format))
    return None if packer is None else packer.kind(number_format)


def stored_type(kind: str) -> StoredType:
    """Return a block type as it is reported."""
    return StoredType(kind, BLOCK_TYPES[kind].bits)


def to_blocks(name: str, quantized: QuantizedTensor) -> tuple[str, np.ndarray]:
    """Return the type, and the rows as bytes: uint8 `[out, in / weights of a block * bytes of a block]`.

    Codes of 2 and 3 bits go into 4-bit blocks, of 6 bits into 8-bit blocks: the values stay exactly the same, the size does not shrink.
    Raises `ExportError` with the reason if no type holds them.
    """
    kind = kind_of(quantized.format)
    if kind is None:
        raise UnheldError(
            f"{name}: ggml has no blocks for {quantized.format.title!r}; quantize with --target {WHISPER_CPP} or {TRANSCRIBE_CPP}"
        )
    blocks = PACKERS[type(quantized.format)].blocks(name, quantized, kind)
    return kind, np.ascontiguousarray(blocks.reshape(len(blocks), -1))


def _affine_kind(number_format: NumberFormat) -> str | None:
    assert isinstance(number_format, Affine)  # noqa: S101 - see PACKERS
    if number_format.symmetric:
        return "Q4_0" if number_format.bits <= 4 else "Q5_0" if number_format.bits == 5 else "Q8_0"
    return "Q4_1" if number_format.bits <= 4 else None


def _affine_blocks(name: str, quantized: QuantizedTensor, kind: str) -> np.ndarray:
    weight = affine_parts(name, quantized)
    if weight.group_size % BLOCK:
        raise UnheldError(
            f"{name}: groups of {weight.group_size} weights do not fill ggml's blocks of {BLOCK}; quantize with --group-size 32"
        )
    codes = weight.codes.numpy().reshape(len(weight.codes), -1, BLOCK)
    repeat = weight.group_size // BLOCK
    head = [as_bytes(weight.scale.repeat_interleave(repeat, dim=1))]
    wide = BLOCK_TYPES[kind].bits
    if kind == "Q8_0":
        signed = codes.astype(np.int16) - (1 << (weight.bits - 1))
        return np.concatenate([*head, signed.astype(np.int8).view(np.uint8)], axis=2)
    if weight.symmetric:
        codes = codes + np.uint8((1 << (wide - 1)) - (1 << (weight.bits - 1)))  # the middle of a narrower grid moves to that of `wide`
    else:
        minimum = _minimum(weight)
        if not bool((minimum.half().float() == minimum).all()):
            raise UnheldError(
                f"{name}: the minima of its groups are no float16 numbers, which ggml's Q4_1 stores; quantize with --target "
                f"{TRANSCRIBE_CPP} (or {WHISPER_CPP}), whose scales are chosen so that they are"
            )
        head.append(as_bytes(minimum.half().repeat_interleave(repeat, dim=1)))
    return np.concatenate([*head, *low_blocks(codes, wide)], axis=2)


def _minimum(weight: AffineTensor) -> Tensor:
    return -weight.zero_point.float() * weight.scale.float()


def _minimum_kind(number_format: NumberFormat) -> str | None:
    assert isinstance(number_format, AffineMinimum)  # noqa: S101 - see PACKERS
    return {4: "Q4_1", 5: "Q5_1"}.get(number_format.bits) if number_format.group_size == BLOCK else None


def _minimum_blocks(_name: str, quantized: QuantizedTensor, kind: str) -> np.ndarray:
    codes = quantized.codes.numpy().reshape(len(quantized.codes), -1, BLOCK)
    head = [as_bytes(quantized.parameters[name]) for name in ("scale", "minimum")]
    return np.concatenate([*head, *low_blocks(codes, BLOCK_TYPES[kind].bits)], axis=2)


def _k_kind(number_format: NumberFormat) -> str | None:
    assert isinstance(number_format, KQuant)  # noqa: S101 - see PACKERS
    return number_format.type


PACKERS: dict[type[NumberFormat], Packer] = {
    **dict.fromkeys((Affine, Stochastic), Packer(_affine_kind, _affine_blocks)),
    AffineMinimum: Packer(_minimum_kind, _minimum_blocks),
    KQuant: Packer(_k_kind, lambda _name, quantized, _kind: k_blocks(quantized)),
    **dict.fromkeys((IQ4NL, IQ4XS, MXFP4, NVFP4), Packer(book_kind, book_blocks)),
}
