"""`.bin` files of whisper.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import Backend, StoredType, looks_like
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.backends.source import Source
    from sottovoce.core.number_format import NumberFormat
    from sottovoce.core.qtensor import QuantizedTensor
    from sottovoce.evaluation.recognizer import Recognizer

NAME = "whisper.cpp"
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")  # block types that it executes


def _refusal(number_format: NumberFormat, _part: str, in_features: int) -> str | None:
    from sottovoce.backends.ggml_blocks import refusal

    return refusal(NAME, TYPES, number_format, in_features)


def _stored(number_format: NumberFormat) -> StoredType:
    from sottovoce.backends.ggml_blocks import kind_of, stored_type

    return stored_type(str(kind_of(number_format)))


def _write(source: Source, file: Path, _activations: str) -> dict[str, StoredType]:
    from sottovoce.backends.whisper_cpp.writer import write_ggml

    return write_ggml(source, file)


def _tensor_bytes(weight: QuantizedTensor, _part: str) -> int:
    from sottovoce.backends.ggml_blocks import to_blocks

    return int(to_blocks("layer", weight)[1].nbytes)


def _open(model: str, threads: int) -> Recognizer:
    from sottovoce.backends.whisper_cpp.runtime import WhisperCppRecognizer

    return WhisperCppRecognizer(model, threads)


WHISPER_CPP = Backend(
    name=NAME,
    title="whisper.cpp (.bin)",
    aliases=("ggml",),
    target=Target(name=NAME, refusal=_refusal, symmetric=True, float16_min=True, one_format=True, rounds_activations=True),
    open=_open,
    extra="ggml",
    packages=("pywhispercpp",),
    stored=_stored,
    write=_write,
    tensor_bytes=_tensor_bytes,
    file_name="{}.bin",
    recognizes=lambda path: looks_like(path, ".bin", b"lmgg"),
)
