"""ONNX folders for ONNX Runtime, transformers.js and onnx-asr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import ORIGIN, Backend, StoredType
from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.backends.source import Source
    from sottovoce.core.number_format import NumberFormat
    from sottovoce.core.qtensor import QuantizedTensor
    from sottovoce.evaluation.recognizer import Recognizer

NAME = "onnxruntime"


def _refusal(number_format: NumberFormat, _part: str, in_features: int) -> str | None:
    from sottovoce.backends.onnx_runtime.operators import refusal

    return refusal(NAME, number_format, in_features)


def stored(number_format: NumberFormat) -> StoredType:
    """Return how the operators store a format."""
    from sottovoce.backends.onnx_runtime.operators import stored_type

    return stored_type(number_format)


def _write(source: Source, folder: Path, activations: str) -> dict[str, StoredType]:
    from sottovoce.backends.onnx_runtime.writer import write_onnx

    return write_onnx(source, folder, activations)


def tensor_bytes(weight: QuantizedTensor, part: str) -> int:
    """Return the bytes of a weight in a graph."""
    from sottovoce.backends.onnx_runtime.layers import stored_bytes

    return stored_bytes(weight, head=part == "head")


def origin(encoder: Path) -> str | None:
    """Return what the encoder's file says of the quantized folder that it was written from; None: nothing."""
    from sottovoce.backends.onnx_runtime.writer import require_onnx

    graph = require_onnx().load(str(encoder), load_external_data=False)
    return next((entry.value for entry in graph.metadata_props if entry.key == ORIGIN), None)


def _open(model: str, threads: int) -> Recognizer:
    from sottovoce.backends.onnx_runtime.runtime import OnnxRecognizer

    return OnnxRecognizer(model, threads)


def _find_library(given: str | Path | None) -> Path:
    from sottovoce.backends.onnx_runtime.web_page import find_library

    return find_library(given)


def _write_page(folder: Path, name: str, library: Path, original: Source | None) -> None:
    from sottovoce.backends.onnx_runtime.web_page import write_page

    write_page(folder, name, library, original)


def _files() -> set[str]:
    from sottovoce.backends.onnx_runtime.web_page import file_names

    return file_names()


ONNX_RUNTIME = Backend(
    name=NAME,
    title="ONNX Runtime (a folder)",
    aliases=("onnx",),
    target=Target(name=NAME, refusal=_refusal, int8_rows=True, rounds_activations=True),
    open=_open,
    extra="onnx",
    packages=("onnxruntime",),
    stored=stored,
    write=_write,
    tensor_bytes=tensor_bytes,
    file_name="{}-onnx",
    keeps_token_limit=True,
    is_folder=True,
    files=_files,
    find_library=_find_library,
    write_page=_write_page,
    activations=("int8", "float32"),
    recognizes=lambda path: (path / ENCODER).is_file() and (path / DECODER).is_file(),
    origin=lambda path: origin(path / ENCODER),
)
