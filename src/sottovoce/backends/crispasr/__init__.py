"""Folders of CrispASR: `model.gguf`, and for Moonshine `tokenizer.bin`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import GGUF, Backend, StoredType
from sottovoce.backends.crispasr.layout import HEADER, MODEL, NAME, QWEN, TOKENIZER
from sottovoce.backends.ggml_record import origin, refusal, stored, tensor_bytes
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.backends.source import Source
    from sottovoce.evaluation.recognizer import Recognizer

TYPES = (  # block types that it executes
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS",
)  # fmt: skip


def _write(source: Source, folder: Path, _activations: str) -> dict[str, StoredType]:
    from sottovoce.backends.crispasr.writer import write_crispasr

    return write_crispasr(source, folder)


def _open(model: str, threads: int) -> Recognizer:
    from sottovoce.backends.crispasr.runtime import CrispAsrRecognizer

    return CrispAsrRecognizer(model, threads)


def _recognizes(path: Path) -> bool:
    """Whether a folder is one of ours; the file of a language model may have the same name."""
    if not (path / MODEL).is_file():
        return False
    with (path / MODEL).open("rb") as file:
        header = file.read(HEADER)
    return header.startswith(GGUF) and ((path / TOKENIZER).is_file() or QWEN.encode() in header)


CRISPASR = Backend(
    name=NAME,
    title="CrispASR (a folder)",
    target=Target(name=NAME, refusal=partial(refusal, NAME, TYPES), symmetric=True, float16_min=True, rounds_activations=True),
    open=_open,
    extra="crispasr",
    packages=("crispasr",),
    stored=stored,
    write=_write,
    tensor_bytes=tensor_bytes,
    file_name="{}-crispasr",
    is_folder=True,
    files=lambda: (MODEL, TOKENIZER),
    recognizes=_recognizes,
    origin=lambda path: origin(path / MODEL),
)
