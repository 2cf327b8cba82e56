"""Folders of CrispASR: `model.gguf`, and for Moonshine `tokenizer.bin`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import Backend, StoredType
from sottovoce.backends.crispasr.layout import HEADER, MODEL, NAME, QWEN, TOKENIZER
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.backends.source import Source
    from sottovoce.core.number_format import NumberFormat
    from sottovoce.core.qtensor import QuantizedTensor
    from sottovoce.evaluation.recognizer import Recognizer

TYPES = (  # block types that it executes
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS",
)  # fmt: skip


def _refusal(number_format: NumberFormat, _part: str, in_features: int) -> str | None:
    from sottovoce.backends.ggml_blocks import refusal

    return refusal(NAME, TYPES, number_format, in_features)


def _stored(number_format: NumberFormat) -> StoredType:
    from sottovoce.backends.ggml_blocks import kind_of, stored_type

    return stored_type(str(kind_of(number_format)))


def _write(source: Source, folder: Path, _activations: str) -> dict[str, StoredType]:
    from sottovoce.backends.crispasr.writer import write_crispasr

    return write_crispasr(source, folder)


def _tensor_bytes(weight: QuantizedTensor, _part: str) -> int:
    from sottovoce.backends.ggml_blocks import to_blocks

    return int(to_blocks("layer", weight)[1].nbytes)


def _open(model: str, threads: int) -> Recognizer:
    from sottovoce.backends.crispasr.runtime import CrispAsrRecognizer

    return CrispAsrRecognizer(model, threads)


def _recognizes(path: Path) -> bool:
    """Whether a folder is one of ours; the file of a language model may have the same name."""
    if not (path / MODEL).is_file():
        return False
    with (path / MODEL).open("rb") as file:
        return (path / TOKENIZER).is_file() or QWEN.encode() in file.read(HEADER)


CRISPASR = Backend(
    name=NAME,
    title="CrispASR (a folder)",
    target=Target(name=NAME, refusal=_refusal, symmetric=True, float16_min=True, rounds_activations=True),
    open=_open,
    extra="crispasr",
    packages=("crispasr",),
    stored=_stored,
    write=_write,
    tensor_bytes=_tensor_bytes,
    file_name="{}-crispasr",
    is_folder=True,
    recognizes=_recognizes,
)
