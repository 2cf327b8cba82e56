"""The backends by name. A new one is a folder here, with a record, and a line in `BACKENDS`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.backends.backend import Backend
from sottovoce.backends.compressed_tensors import COMPRESSED_TENSORS
from sottovoce.backends.crispasr import CRISPASR
from sottovoce.backends.mlx import MLX
from sottovoce.backends.onnx_runtime import ONNX_RUNTIME
from sottovoce.backends.pytorch import PYTORCH
from sottovoce.backends.sherpa_onnx import SHERPA_ONNX
from sottovoce.backends.transcribe_cpp import TRANSCRIBE_CPP
from sottovoce.backends.whisper_cpp import WHISPER_CPP
from sottovoce.errors import ModelError, RecipeError
from sottovoce.models.weight_files import holds_model

if TYPE_CHECKING:
    from sottovoce.evaluation.recognizer import Recognizer
    from sottovoce.quantization.target import Target

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (COMPRESSED_TENSORS, ONNX_RUNTIME, TRANSCRIBE_CPP, WHISPER_CPP, MLX, SHERPA_ONNX, CRISPASR, PYTORCH)
}
DEFAULT_TARGET = COMPRESSED_TENSORS.name
DEFAULT_RUNTIME = PYTORCH.name


def backend_named(name: str) -> Backend:
    """Return the backend called `name`, which may be an alias. Raises `RecipeError` for an unknown name."""
    for backend in BACKENDS.values():
        if name in (backend.name, *backend.aliases):
            return backend
    raise RecipeError(f"{name!r} is not a backend; choose one of {', '.join(BACKENDS)}")


def target_named(name: str) -> Target:
    """Return what the backend called `name` is as a target of quantization. Raises `RecipeError` for an unknown name."""
    return backend_named(name).target


def exporting_backends() -> dict[str, Backend]:
    """Return the backends whose files are written from a quantized folder, by name."""
    return {name: backend for name, backend in BACKENDS.items() if backend.write is not None}


def open_runtime(name: str, model: str | Path, threads: int) -> Recognizer:
    """Open a file (or folder) in the runtime called `name`.

    Raises `ExportError` if it does not load, or `MissingDependencyError` with the install command.
    """
    return backend_named(name).open(str(model), threads)


def refuse_export(model: str | Path) -> None:
    """Raise `ModelError` if `model` is the file of a backend, from which no model is loaded."""
    if (runtime := runtime_of(model)) is not None:
        raise ModelError(f"{model}: is an export for {runtime}; give the original model or a quantized folder")


def runtime_of(model: str | Path) -> str | None:
    """Return the name of the backend whose file `model` is, or None if it is no export.

    A folder with weights that PyTorch loads is a model, whatever lies beside them: repositories of the Hub have an `onnx` folder too.
    """
    path = Path(model).expanduser()
    if holds_model(path):
        return None
    return next((name for name, backend in BACKENDS.items() if backend.recognizes(path)), None)
