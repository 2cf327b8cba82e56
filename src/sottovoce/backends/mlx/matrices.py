"""A quantized weight as MLX holds it (mlx 0.32, `mx.quantize`).

`weight`: uint32, each row one little-endian bit stream of codes, code `i` at bit `i * bits`. In the mode "affine" a weight is
`code * scale + bias`, with `scales` and `biases` float16 `[out, groups]`; in "mxfp4" and "nvfp4" the codes are E2M1 numbers and
`scales` bytes, of E8M0 and E4M3.
"""

from typing import Any

import numpy as np
import torch

from sottovoce.backends.backend import StoredType
from sottovoce.backends.mlx.layout import NAME
from sottovoce.core.affine import BITS, GROUP_SIZES, Affine
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.fp4 import MXFP4, NVFP4
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.packing import pack_rows
from sottovoce.core.qtensor import QuantizedTensor


def refusal(number_format: NumberFormat) -> str | None:
    """Return why MLX cannot hold layers of this format, in a sentence; None: it can."""
    if isinstance(number_format, MXFP4) or (isinstance(number_format, NVFP4) and not number_format.tensor_exponent):
        return None
    if not isinstance(number_format, Affine | AffineMinimum):
        return f"{NAME} holds even steps with a real minimum, MXFP4, and NVFP4 without a scale of the tensor, not {number_format.title!r}"
    if isinstance(number_format, Affine) and not number_format.symmetric and not number_format.float16_min:
        return f"{NAME} holds a float16 minimum for each group, which those of {number_format.title!r} are not (--target {NAME} makes such)"
    if number_format.bits not in BITS:
        return f"{NAME} holds {', '.join(map(str, BITS))} bits, not {number_format.bits}"
    if number_format.group_size not in GROUP_SIZES:
        groups = "a whole row" if number_format.group_size is None else f"groups of {number_format.group_size}"
        return f"{NAME} holds groups of {', '.join(map(str, GROUP_SIZES))} weights, not {groups}"
    return None


def quantization(number_format: NumberFormat) -> dict[str, Any]:
    """Return the entry `quantization` of `config.json`: what mlx-whisper hands on to `mlx.nn.quantize`."""
    if isinstance(number_format, MXFP4 | NVFP4):
        return {"group_size": number_format.block, "bits": number_format.code_bits, "mode": number_format.name}
    assert isinstance(number_format, Affine | AffineMinimum)  # noqa: S101 - see `refusal`
    return {"group_size": number_format.group_size, "bits": number_format.bits}


def stored_type(number_format: NumberFormat) -> StoredType:
    """Return how a layer of this format is stored, as it is reported."""
    if isinstance(number_format, MXFP4 | NVFP4):
        return StoredType(number_format.name, number_format.code_bits)
    return StoredType(f"affine, {number_format.code_bits} bits", number_format.code_bits)


def to_mlx(weight: QuantizedTensor) -> dict[str, np.ndarray]:
    """Return the tensors of a quantized module by the last part of their names."""
    words = pack_rows(weight.codes, weight.format.code_bits).numpy().view(np.uint32)
    scale = weight.parameters["scale"].contiguous()
    if isinstance(weight.format, MXFP4 | NVFP4):
        return {"weight": words, "scales": scale.view(torch.uint8).numpy()}
    if isinstance(weight.format, Affine):
        bias = (-weight.parameters["zero_point"].float() * scale.float()).half()
    else:
        bias = weight.parameters["minimum"].contiguous()
    return {"weight": words, "scales": scale.numpy(), "biases": bias.numpy()}
