"""Folders of sherpa-onnx (phones, boards, many languages of programming): encoder, decoder, `tokens.txt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import Backend, StoredType
from sottovoce.backends.onnx_runtime import origin, stored, tensor_bytes
from sottovoce.backends.onnx_runtime.layout import DATA
from sottovoce.backends.sherpa_onnx.layout import FILES, NAME, TOKENS
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.backends.source import Source
    from sottovoce.core.number_format import NumberFormat
    from sottovoce.evaluation.recognizer import Recognizer


def _refusal(number_format: NumberFormat, _part: str, in_features: int) -> str | None:
    from sottovoce.backends.onnx_runtime.operators import refusal

    return refusal(NAME, number_format, in_features)


def _write(source: Source, folder: Path, activations: str) -> dict[str, StoredType]:
    from sottovoce.backends.sherpa_onnx.writer import write_sherpa

    return write_sherpa(source, folder, activations)


def _open(model: str, threads: int) -> Recognizer:
    from sottovoce.backends.sherpa_onnx.runtime import SherpaRecognizer

    return SherpaRecognizer(model, threads)


def _recognizes(path: Path) -> bool:
    return (path / TOKENS).is_file() and any(all((path / graph).is_file() for graph in graphs) for graphs in FILES.values())


def _origin(path: Path) -> str | None:
    return origin(next(path / encoder for encoder, _ in FILES.values() if (path / encoder).is_file()))


SHERPA_ONNX = Backend(
    name=NAME,
    title="sherpa-onnx (a folder)",
    aliases=("sherpa",),
    target=Target(name=NAME, refusal=_refusal, int8_rows=True, rounds_activations=True),
    open=_open,
    extra="sherpa",
    packages=("sherpa-onnx",),
    stored=stored,
    write=_write,
    tensor_bytes=tensor_bytes,
    file_name="{}-sherpa",
    is_folder=True,
    files=lambda: (TOKENS, *(name for graphs in FILES.values() for graph in graphs for name in (graph, f"{graph}{DATA}"))),
    activations=("int8", "float32"),
    recognizes=_recognizes,
    origin=_origin,
)
