"""Sottovoce: low-bit speech recognition that keeps its words.

    import sottovoce
    sottovoce.quantize("openai/whisper-tiny.en", "tiny-4bit", calibration="recordings/")

Importing this package imports neither torch nor transformers; the first use of a name does.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DataSet": "data.dataset",
    "Evaluation": "api",
    "Grid": "core.affine",
    "Method": "quantization.methods",
    "QuantizedTensor": "core.qtensor",
    "Recipe": "quantization.recipe",
    "Rule": "quantization.recipe",
    "Score": "evaluation.wer",
    "SottovoceError": "errors",
    "evaluate": "api",
    "export": "api",
    "load": "api",
    "load_data": "data.load",
    "method_named": "quantization.methods",
    "quantize": "api",
    "open_recognizer": "api",
    "score": "api",
    "target_grid": "quantization.target",
    "transcribe": "api",
    "verify": "api",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - names made elsewhere on first use


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sottovoce' has no attribute {name!r}")
    return getattr(import_module(f"sottovoce.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
