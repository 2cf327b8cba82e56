"""The quantized folder itself, as `transformers` and vLLM load it: compressed-tensors `pack-quantized`. `quantize` writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sottovoce.backends.backend import Backend
from sottovoce.backends.pytorch import NAME as PYTORCH
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.core.number_format import NumberFormat
    from sottovoce.evaluation.recognizer import Recognizer

NAME = "compressed-tensors"


def _refusal(number_format: NumberFormat, _part: str, _in_features: int) -> str | None:
    from sottovoce.core.affine import Affine
    from sottovoce.core.fp4 import MXFP4, NVFP4

    if isinstance(number_format, Affine | MXFP4 | NVFP4):
        return None
    return f"{NAME} holds affine formats, MXFP4 and NVFP4, not {number_format.title!r} (--target {PYTORCH} holds every format)"


def _open(model: str, _threads: int) -> Recognizer:
    from sottovoce.backends.compressed_tensors.runtime import open_in_transformers

    return open_in_transformers(model)


COMPRESSED_TENSORS = Backend(
    name=NAME,
    title="transformers and vLLM (compressed-tensors)",
    aliases=("hf",),
    target=Target(name=NAME, refusal=_refusal, fused=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))),  # as vLLM runs them
    open=_open,
    packages=("transformers", "compressed-tensors"),
)
