"""Results as plain data for `--json`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.api import Evaluation
from sottovoce.backends.export import Export
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.cli.display_folder import notes
from sottovoce.demo.run import DemoResult
from sottovoce.errors import CheckpointError, ModelError
from sottovoce.evaluation.confidence import Scaling, words_of
from sottovoce.evaluation.gate import Gate
from sottovoce.evaluation.recognizer import Recognizer
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_to_dict
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.system.plain_data import to_plain


def export_to_dict(done: Export) -> dict[str, Any]:
    """Return an export."""
    return {
        "file": str(done.file),
        "backend": done.backend,
        "bytes": done.bytes,
        "types": {name: kind.name for name, kind in done.types.items()},
        "widened": list(done.widened),
        "agreement": None if done.agreement is None else asdict(done.agreement),
    }


def quantized_to_dict(result: QuantizedModel, out: Path) -> dict[str, Any]:
    """Return the outcome of a quantization."""
    return {
        "folder": str(out),
        "bytes": (out / WEIGHTS).stat().st_size,
        "timing": asdict(result.timing),
        "calibration": to_plain(result.calibration),
        "notes": notes(result),
        "layers": [asdict(report) for report in result.reports],
    }


def gate_to_dict(result: Gate) -> dict[str, Any]:
    """Return the gate's verdict."""
    added = {name: list(ids) for name, ids in result.added.items()}
    return {"passed": result.open, "tolerance": result.tolerance, "added": added}


def evaluation_to_dict(result: Evaluation) -> dict[str, Any]:
    """Return scores and transcripts."""
    transcription = result.transcription
    return {
        **score_to_dict(result.score),
        "model_bytes": result.model_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "rtfx": result.rtfx,
        "audio_s": transcription.audio_s,
        "encoder_s": transcription.encoder_s,
        "decoder_s": transcription.decoder_s,
        "unusable": dict(transcription.unusable),
        "transcripts": [{"id": t.id, "text": t.text, "reference": t.reference} for t in transcription.transcripts],
        "reference": None if result.reference is None else evaluation_to_dict(result.reference),
    }


def stored_scaling(model: str, name: str) -> Scaling:
    """The scaling called `name` ("raw": none) that a quantized folder carries. Raises `CheckpointError` if it carries none."""
    if name == "raw":
        return Scaling()
    stored = read_manifest(Path(model)).confidence
    if stored is None:
        raise CheckpointError(f"{model}: carries no scaling of confidences; fit one with `sottovoce confidence --store`")
    return stored.fitted.temperature if name == "temperature" else stored.fitted.platt


def words(recognizer: Recognizer, transcript: Transcript, scaling: Scaling) -> list[dict[str, Any]] | None:
    """Words with their confidences, or None where there are none (a recording of more than one pass).

    Raises `ModelError` for a runtime that does not tell how its tokens make words.
    """
    model = getattr(recognizer, "model", None)
    if model is None:
        raise ModelError(f"{recognizer.source}: word confidences need the runtime torch or onnx")
    if len(transcript.log_probabilities) != len(transcript.tokens):
        return None
    return [
        {"word": word.text, "confidence": round(float(scaling.apply(np.array([word.confidence]))[0]), 4)}
        for word in words_of(model, transcript)
    ]


def demo_to_dict(result: DemoResult) -> dict[str, Any]:
    """Return the demo's outcome."""
    return {
        "folder": str(result.folder),
        "systems": {
            name: {"bytes": result.bytes[name], "rtfx": outcome.rtfx, **score_to_dict(outcome.score)}
            for name, outcome in result.evaluations.items()
        },
        "layers": [asdict(report) for report in result.quantized.reports],
    }
