"""Exported files in the runtimes that they are for."""

from pathlib import Path

from sottovoce.errors import ModelError
from sottovoce.evaluation.recognizer import Recognizer

PACKAGES = {"gguf": ("transcribe-cpp",), "ggml": ("pywhispercpp",), "onnx": ("onnxruntime",)}  # that run each


def open_runtime(runtime: str, file: str | Path, threads: int) -> Recognizer:
    """A file (for onnx a folder) in its runtime. Raises `ExportError`, or `MissingDependencyError` with the install command."""
    if runtime == "gguf":
        from sottovoce.backends.transcribe_cpp.runtime import TranscribeCppRecognizer

        return TranscribeCppRecognizer(file, threads)
    if runtime == "ggml":
        from sottovoce.backends.whisper_cpp.runtime import WhisperCppRecognizer

        return WhisperCppRecognizer(file, threads)
    if runtime == "onnx":
        from sottovoce.backends.onnx_runtime.runtime import OnnxRecognizer

        return OnnxRecognizer(file, threads)
    raise ModelError(f"runtime {runtime!r} is not known; choose torch, onnx, gguf or ggml")


def runtime_of(file: str | Path) -> str | None:
    """The runtime that `file` is made for, or None if it is no export."""
    path = Path(file).expanduser()
    if path.is_dir():
        return "onnx" if (path / "onnx").is_dir() else None
    return {".gguf": "gguf", ".bin": "ggml"}.get(path.suffix) if path.is_file() else None
