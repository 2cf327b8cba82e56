"""Folders of mlx-whisper (Apple computers): `config.json` and `weights.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import ORIGIN, Backend, StoredType
from sottovoce.backends.mlx.layout import CONFIG, NAME, WEIGHTS
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.backends.source import Source
    from sottovoce.core.number_format import NumberFormat
    from sottovoce.core.qtensor import QuantizedTensor
    from sottovoce.evaluation.recognizer import Recognizer


def _refusal(number_format: NumberFormat, _part: str, _in_features: int) -> str | None:
    from sottovoce.backends.mlx.matrices import refusal

    return refusal(number_format)


def _stored(number_format: NumberFormat) -> StoredType:
    from sottovoce.backends.mlx.matrices import stored_type

    return stored_type(number_format)


def _write(source: Source, folder: Path, _activations: str) -> dict[str, StoredType]:
    from sottovoce.backends.mlx.writer import write_mlx

    return write_mlx(source, folder)


def _tensor_bytes(weight: QuantizedTensor, _part: str) -> int:
    from sottovoce.backends.mlx.matrices import to_mlx

    return sum(array.nbytes for array in to_mlx(weight).values())


def _origin(path: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(path / WEIGHTS, "numpy") as file:
        return (file.metadata() or {}).get(ORIGIN)


def _open(model: str, _threads: int) -> Recognizer:
    from sottovoce.backends.mlx.runtime import MlxRecognizer

    return MlxRecognizer(model)


MLX = Backend(
    name=NAME,
    title="mlx-whisper (a folder)",
    aliases=("mlx-whisper",),
    target=Target(name=NAME, refusal=_refusal, real_minimum=True, one_format=True, beside_float=True),
    open=_open,
    extra="mlx",
    packages=("mlx", "mlx-whisper"),
    stored=_stored,
    write=_write,
    tensor_bytes=_tensor_bytes,
    file_name="{}-mlx",
    is_folder=True,
    files=lambda: (CONFIG, WEIGHTS),
    recognizes=lambda path: (path / WEIGHTS).is_file(),
    origin=_origin,
)
