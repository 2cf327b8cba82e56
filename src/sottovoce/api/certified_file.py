"""The file of a certificate: a checkpoint opened once, what is known of its calibration, and what it must not have seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sottovoce.api.certified_speech import CertifiedSpeech
from sottovoce.api.opening import open_recognizer
from sottovoce.api.origin import check_origin
from sottovoce.backends.registry import DEFAULT_RUNTIME, backend_named, runtime_of
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import AudioError, DataError, RecipeError
from sottovoce.evaluation.context import Context
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.recognizer import recognizer_digest, window_of
from sottovoce.models.load import local_folder
from sottovoce.quantization.pipeline import CalibrationRecord

Calibration = Literal["disjoint", "none", "unknown"]


@dataclass(frozen=True, kw_only=True)
class CertifiedFile:
    """A file to certify: what runs it, and what is known of its calibration."""

    name: str
    path: str  # where it lies: an exported folder's is another than its name
    runtime: str
    digest: str
    bytes: int
    manifest: Manifest | None
    context: Context


def open_file(
    checkpoint: str | Path,
    folder: str | Path | None,
    runtime: str | None,
    fallback: Fallback | None,
    asked: Context,
    speech: CertifiedSpeech,
) -> CertifiedFile:
    """Open a checkpoint once, which exports it where the runtime needs that, to know its size, its hash and its context.

    Raises `AudioError` if the context is shorter than a recording.
    """
    origin = local_folder(folder or checkpoint)
    if folder is not None and not (origin / MANIFEST).is_file():
        raise RecipeError(f"{folder}: is not a folder written by sottovoce, so it tells nothing of {checkpoint}; leave --folder out")
    manifest = read_manifest(origin) if (origin / MANIFEST).is_file() else None
    if folder is not None and manifest is not None:
        check_origin(checkpoint, origin, manifest)
    recognizer = open_recognizer(checkpoint, runtime, fallback=fallback)
    window = window_of(recognizer)
    if manifest is not None:
        window = replace(window, tuned=manifest.short_context)
    context = asked.resolve(window, str(checkpoint))
    for name, seconds in speech.seconds.items():
        try:
            context.of(round(seconds * SAMPLE_RATE), window)
        except AudioError as exc:
            raise AudioError(f"{name}: {exc}") from exc
    exported = runtime_of(recognizer.source)
    name = exported or (DEFAULT_RUNTIME if runtime is None else backend_named(runtime).name)
    weights = manifest.files[WEIGHTS].sha256 if manifest is not None and exported is None else None
    return CertifiedFile(
        name=str(checkpoint),
        path=recognizer.source if exported else str(checkpoint),
        runtime=name,
        digest=weights or recognizer_digest(recognizer),
        bytes=recognizer.stored_bytes,
        manifest=manifest,
        context=context,
    )


def check_folds(file: CertifiedFile, speech: CertifiedSpeech) -> tuple[Calibration, tuple[str, ...]]:
    """Refuse speech that had a part in making the file; say what is known, and which speakers have names of the calibration's."""
    manifest = file.manifest
    if manifest is None:
        return "unknown", ()
    name_of = {digest: name for name, digest in speech.hashes.items()}
    if chosen := [name_of[digest] for digest in manifest.chosen_on if digest in name_of]:
        raise DataError(
            f"{file.name} was chosen by {len(chosen)} of these recordings, {chosen[0]} for one; give speech that had no part in that"
        )
    tuned_on = manifest.tune.speech if manifest.tune is not None else None
    records = [record for record in (manifest.calibration, tuned_on) if record is not None]
    if not records:
        return "none", ()
    for record in records:
        used = [name_of[digest] for digest in record.recordings if digest in name_of] or _named_alike(record, speech)
        if used:
            done = "tuned" if record is tuned_on else "calibrated"
            raise DataError(
                f"{file.name} was {done} on {len(used)} of these recordings, {used[0]} for one; give speech that had no part in that"
            )
    speakers = {utterance.speaker for utterance in speech.data if utterance.speaker is not None}
    shared = speakers & {speaker for record in records for speaker in record.speakers}
    return "disjoint" if all(record.recordings for record in records) else "unknown", tuple(sorted(shared))


def _named_alike(calibration: CalibrationRecord, speech: CertifiedSpeech) -> list[str]:
    """Recordings with the name of one in the calibration speech, for folders whose manifest has names only."""
    if calibration.recordings:
        return []
    names = {name.rsplit("/", 1)[-1] for name in calibration.utterances}
    return [name for name in speech.hashes if name.rsplit("/", 1)[-1] in names]
