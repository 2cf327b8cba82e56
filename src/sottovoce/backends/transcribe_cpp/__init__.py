"""GGUF files of transcribe.cpp."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import GGUF, Backend, StoredType, begins_with
from sottovoce.backends.ggml_record import origin, refusal, stored, tensor_bytes
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.backends.source import Source
    from sottovoce.evaluation.recognizer import Recognizer

NAME = "transcribe.cpp"
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")  # block types that it executes


def _write(source: Source, file: Path, _activations: str) -> dict[str, StoredType]:
    from sottovoce.backends.transcribe_cpp.writer import write_gguf

    return write_gguf(source, file)


def _open(model: str, threads: int) -> Recognizer:
    from sottovoce.backends.transcribe_cpp.runtime import TranscribeCppRecognizer

    return TranscribeCppRecognizer(model, threads)


TRANSCRIBE_CPP = Backend(
    name=NAME,
    title="transcribe.cpp (GGUF)",
    aliases=("gguf",),
    target=Target(name=NAME, refusal=partial(refusal, NAME, TYPES), symmetric=True, float16_min=True, rounds_activations=True),
    open=_open,
    extra="gguf",
    packages=("transcribe-cpp",),
    stored=stored,
    write=_write,
    tensor_bytes=tensor_bytes,
    file_name="{}.gguf",
    recognizes=lambda path: begins_with(path, GGUF),
    origin=origin,
)
