"""Sottovoce: low-bit speech recognition that keeps its words.

    import sottovoce
    sottovoce.quantize("openai/whisper-tiny.en", "tiny-4bit", calibration="recordings/")

Importing this package imports neither torch nor transformers; the first use of a name does.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AWQ": "quantization.methods",
    "Affine": "core.affine",
    "Augmentation": "data.augment",
    "Backend": "backends.backend",
    "BACKENDS": "backends.registry",
    "BenchOutcome": "bench",
    "Certificate": "evaluation.certificate",
    "Choice": "api",
    "ConfidenceRecord": "checkpoint.manifest",
    "ConfidenceScaling": "evaluation.confidence",
    "Context": "evaluation.context",
    "DataSet": "data.dataset",
    "ErrorStatistics": "evaluation.error_statistics",
    "Evaluation": "api",
    "Export": "backends.export",
    "FADE": "quantization.methods",
    "Fallback": "evaluation.fallback",
    "FitRecord": "quantization.fit_record",
    "FitResult": "api",
    "FittedConfidence": "evaluation.confidence",
    "GPTQ": "quantization.methods",
    "LayerReport": "quantization.layer",
    "METHODS": "quantization.methods",
    "Manifest": "checkpoint.manifest",
    "NumberFormat": "core.number_format",
    "Placement": "system.devices",
    "Plan": "quantization.plan",
    "PlannedLayer": "quantization.plan",
    "Push": "hub.push",
    "QEP": "quantization.methods",
    "QuantizedModel": "quantization.pipeline",
    "QuantizedTensor": "core.qtensor",
    "RTN": "quantization.methods",
    "Recipe": "quantization.recipe",
    "Recognizer": "evaluation.recognizer",
    "Rule": "quantization.recipe",
    "Score": "evaluation.wer",
    "ShortContext": "evaluation.context",
    "SottovoceError": "errors",
    "SpeechModel": "models.speech_model",
    "Transcript": "evaluation.transcripts",
    "Transcription": "evaluation.transcribe",
    "TuneRecord": "quantization.tune_record",
    "TuneResult": "api",
    "TuneSettings": "quantization.tune_record",
    "Utterance": "data.dataset",
    "WordConfidence": "evaluation.confidence",
    "certify": "api",
    "choose_smallest": "api",
    "evaluate": "api",
    "export": "api",
    "find_placement": "system.devices",
    "fit": "api",
    "fit_confidence": "api",
    "format_named": "core.formats",
    "inspect": "api",
    "inspect_errors": "api",
    "load": "api",
    "load_data": "data.load",
    "make_plan": "api",
    "method_named": "quantization.methods",
    "open_recognizer": "api",
    "push": "api",
    "quantize": "api",
    "read_plan": "quantization.plan_file",
    "run_bench": "bench",
    "score": "api",
    "store_certificate": "checkpoint.certificates",
    "store_confidence": "checkpoint.manifest",
    "target_named": "backends.registry",
    "transcribe": "api",
    "tune": "api",
    "verify": "api",
    "word_confidences": "evaluation.confidence",
    "write_plan": "quantization.plan_file",
    "write_report": "report.page",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - names made elsewhere on first use


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sottovoce' has no attribute {name!r}")
    return getattr(import_module(f"sottovoce.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
