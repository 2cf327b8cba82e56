"""Results as plain data for `--json`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import get_num_threads

from sottovoce.api import Evaluation
from sottovoce.backends.export import Export
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.cli.display_folder import notes
from sottovoce.demo.run import DemoResult
from sottovoce.errors import CheckpointError
from sottovoce.evaluation.confidence import UNSCALED, ConfidenceScaling, word_confidences
from sottovoce.evaluation.gate import Gate
from sottovoce.evaluation.recognizer import Recognizer
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_to_dict
from sottovoce.models.load import local_folder
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.system.plain_data import to_plain
from sottovoce.system.versions import environment, processor


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
    """Return scores and transcripts; None for times that were not measured: of transcripts read from a file, of a runtime's parts."""
    transcription = result.transcription
    return {
        **score_to_dict(result.score),
        "model_bytes": result.model_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "rtfx": result.rtfx or None,
        "audio_s": transcription.audio_s,
        "encoder_s": transcription.encoder_s or None,
        "decoder_s": transcription.decoder_s or None,
        "context": str(result.context),
        "unusable": dict(transcription.unusable),
        "transcripts": [
            {"id": t.id, "text": t.text, "reference": t.reference, "language": t.language, "context": t.context}
            for t in transcription.transcripts
        ],
        "reference": None if result.reference is None else evaluation_to_dict(result.reference),
    }


def stored_scaling(model: str, name: str) -> ConfidenceScaling:
    """Return the scaling called `name` ("raw": none) that a quantized folder, here or on the Hub, carries.

    Raises `CheckpointError` if it carries none.
    """
    if name == "raw":
        return UNSCALED
    stored = read_manifest(local_folder(model)).confidence
    if stored is None:
        raise CheckpointError(f"{model}: carries no scaling of confidences; fit one with `sottovoce confidence --store`")
    return stored.fitted.temperature if name == "temperature" else stored.fitted.platt


def words(recognizer: Recognizer, transcript: Transcript, scaling: ConfidenceScaling) -> list[dict[str, Any]] | None:
    """Return words with their confidences, or None where there are none (a recording of more than one pass).

    Raises `ModelError` for a runtime that does not tell how its tokens make words.
    """
    if not transcript.has_confidences:
        return None
    return [{"word": word.text, "confidence": round(word.confidence, 4)} for word in word_confidences(recognizer, transcript, scaling)]


def demo_to_dict(result: DemoResult) -> dict[str, Any]:
    """Return the demo's outcome."""
    return {
        "folder": str(result.folder),
        "bits": result.quantized.recipe.format.code_bits,
        "systems": {
            name: {"bytes": result.bytes[name], "mean_kl": result.divergences[name], **score_to_dict(score)}
            for name, score in result.scores.items()
        },
        "speech": dict(result.digests),
        "threads": get_num_threads(),
        "processor": to_plain(processor()),
        "environment": environment(),
        "layers": [asdict(report) for report in result.quantized.reports],
    }
