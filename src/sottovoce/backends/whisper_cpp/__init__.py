"""`.bin` files of whisper.cpp."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import Backend, StoredType, begins_with
from sottovoce.backends.ggml_record import refusal, stored, tensor_bytes
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.backends.source import Source
    from sottovoce.evaluation.recognizer import Recognizer

NAME = "whisper.cpp"
TYPES = (  # block types that it executes
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4",
)  # fmt: skip


def _write(source: Source, file: Path, _activations: str) -> dict[str, StoredType]:
    from sottovoce.backends.whisper_cpp.writer import write_ggml

    return write_ggml(source, file)


def _open(model: str, threads: int) -> Recognizer:
    from sottovoce.backends.whisper_cpp.runtime import WhisperCppRecognizer

    return WhisperCppRecognizer(model, threads)


WHISPER_CPP = Backend(
    name=NAME,
    title="whisper.cpp (.bin)",
    aliases=("ggml",),
    target=Target(
        name=NAME, refusal=partial(refusal, NAME, TYPES), symmetric=True, float16_min=True, one_format=True, rounds_activations=True
    ),
    open=_open,
    extra="ggml",
    packages=("pywhispercpp",),
    stored=stored,
    write=_write,
    tensor_bytes=tensor_bytes,
    file_name="{}.bin",
    recognizes=lambda path: begins_with(path, b"lmgg"),
)
