"""The verbs `inspect` and `inspect_errors`: what a quantized folder is, and how the errors of its layers add up."""

from __future__ import annotations

from pathlib import Path

from sottovoce.api.fitting import DEFAULT_HELD_OUT
from sottovoce.api.inputs import limited, loaded_original_of
from sottovoce.checkpoint.load import open_folder
from sottovoce.checkpoint.manifest import Manifest, read_manifest
from sottovoce.data.dataset import DataSet
from sottovoce.evaluation.error_statistics import ErrorStatistics, error_statistics
from sottovoce.fitting.speech import held_out_speech
from sottovoce.models.load import local_folder
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.progress import Progress, silent


def inspect(folder: str | Path) -> Manifest:
    """Return what a quantized folder is: plan, recipe, calibration, diagnostics, files. Raises `CheckpointError`."""
    return read_manifest(local_folder(folder))


def inspect_errors(
    folder: str | Path,
    audio: str | Path | DataSet,
    *,
    against: str | Path | SpeechModel | None = None,
    limit: int | None = DEFAULT_HELD_OUT,
    alone: bool = False,
    language: str | None = None,
    progress: Progress = silent,
) -> ErrorStatistics:
    """Return how the errors of a quantized folder's layers add up on `audio` (its first `limit` utterances; no transcripts needed).

    `against`: the original, if it no longer is where the folder says it came from. `alone`: each layer on its own in the original, in place
    of one after the other. `language`: of recordings without one of their own. Use speech that calibration has not seen. Raises
    `CheckpointError`, `DataError`, `ModelError` for an original that is missing or another model.
    """
    opened = open_folder(folder)
    original = loaded_original_of(opened.model, against, opened.manifest.source, folder)
    data = limited(audio, limit)
    speech = held_out_speech(original, data, language=language, progress=progress)
    planned = {layer.name for layer in opened.manifest.plan.layers}
    units = {layer.name: [layer.name] for layer in original.layers() if layer.name in planned}
    return error_statistics(original, opened.model, units, speech, mode="alone" if alone else "telescoped", progress=progress)
