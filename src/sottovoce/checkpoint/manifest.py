"""`sottovoce.json`: what a quantized folder is, with a sha256 of every other file, and of itself.

Its own digest stands in its last line and is that of the file with zeros in the digest's place.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sottovoce.checkpoint.manifest_v1 import upgrade
from sottovoce.data.load import corpus_name
from sottovoce.errors import CheckpointError, DataError, OutputError
from sottovoce.evaluation.certificate import Certificate
from sottovoce.evaluation.confidence import FittedConfidence
from sottovoce.evaluation.context import ShortContext
from sottovoce.models.weight_files import MANIFEST as MANIFEST  # known there, since it tells a folder of ours from other models
from sottovoce.quantization.fit_record import FitRecord
from sottovoce.quantization.layer import LayerReport
from sottovoce.quantization.pipeline import CalibrationRecord
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.tune_record import TuneRecord
from sottovoce.system.atomic_files import sha256, written_whole
from sottovoce.system.plain_data import from_plain, to_plain

FORMAT_VERSION = 2
SEAL_KEY = "sha256_of_this_file"
SEAL = re.compile(rb'  "sha256_of_this_file": "([0-9a-f]{64})"\n\}\n\Z')
OPEN = "0" * 64


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of the folder as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ConfidenceRecord:
    """Scalings of word confidences that were fitted for this folder, and on what."""

    fitted: FittedConfidence
    data: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `sottovoce.json`."""

    source: str  # what was quantized
    recipe: Recipe
    plan: Plan
    calibration: CalibrationRecord | None
    environment: dict[str, str]  # versions that can influence the result
    layers: tuple[LayerReport, ...]  # diagnostics, in the order the layers were finished
    files: dict[str, FileRecord]
    confidence: ConfidenceRecord | None = None
    certificates: tuple[Certificate, ...] = ()  # of this folder and its exports
    chosen_on: tuple[str, ...] = ()  # hashes of the recordings by which this folder, or a setting of it, was chosen from others
    fit: FitRecord | None = None  # how the plan was chosen, if it was made for a size
    tune: TuneRecord | None = None  # how scales and floating-point numbers were tuned, if they were
    short_context: ShortContext | None = None  # what the model was tuned for, if its encoder may stop when the speech stops

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files.values())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seal the manifest and write it, whole or not at all. Raises `OSError`."""
    write_sealed(folder, {"format_version": FORMAT_VERSION, **to_plain(manifest)})


def write_sealed(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the plain data of a manifest with its own digest in the last line, whole or not at all. Raises `OSError`."""
    sealed = {key: value for key, value in content.items() if key != SEAL_KEY} | {SEAL_KEY: OPEN}
    text = json.dumps(sealed, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    with written_whole(folder / MANIFEST) as file:
        file.write(text[::-1].replace(OPEN, digest[::-1], 1)[::-1])


def read_manifest(folder: Path | str) -> Manifest:
    """Read `sottovoce.json` after checking its version, its own sha256 and that of every other file. Raises `CheckpointError`."""
    folder = Path(folder).expanduser()
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as exc:
        if not folder.exists():
            raise CheckpointError(f"{folder}: no such folder; give one written by `sottovoce quantize`") from exc
        raise CheckpointError(
            f"{folder}: has no readable {MANIFEST}, so it was not written by sottovoce; in place of an exported file give the folder that "
            "it was made from"
        ) from exc
    content, version = _parsed(raw, path)
    seal = SEAL.search(raw)
    if seal is None or hashlib.sha256(raw[: seal.start(1)] + OPEN.encode() + raw[seal.end(1) :]).hexdigest() != seal[1].decode():
        raise CheckpointError(f"{path}: has changed since it was written (wrong sha256); fetch the folder again")
    manifest = _typed(content, version, folder)
    if odd := {report.name for report in manifest.layers} - {layer.name for layer in manifest.plan.layers}:
        raise CheckpointError(f"{path}: reports on {min(odd)!r}, which is not in the plan")
    for name, record in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(f"{folder}: the file {name!r} is missing; fetch the folder again")
        if sha256(file) != record.sha256:
            raise CheckpointError(f"{file}: has changed since it was written (wrong sha256); fetch the folder again")
    return manifest


def _typed(content: dict[str, Any], version: int, folder: Path) -> Manifest:
    try:
        return from_plain(Manifest, _as_today(upgrade(content, folder) if version == 1 else content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DataError, SafetensorError) as exc:
        raise CheckpointError(f"{folder / MANIFEST}: is damaged ({exc})") from exc


def _as_today(content: dict[str, Any]) -> dict[str, Any]:
    """The content, also of a folder from before recordings were joined and while known texts were used, as it is written today."""
    content["recipe"].setdefault("joined", 0.0)
    for speech in (content["calibration"], (content.get("tune") or {}).get("speech")):
        if speech is not None:
            speech.pop("transcribed_by_the_model", None)
    return content


def _parsed(raw: bytes, path: Path) -> tuple[dict[str, Any], int]:
    """The content without version and seal, and the version. Raises `CheckpointError`."""
    try:
        content = json.loads(raw.decode("utf-8"))
        version = content.pop("format_version")
        content.pop(SEAL_KEY, None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{path}: is damaged ({exc})") from exc
    if version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path.parent}: is of format version {version}, this sottovoce reads 1 and {FORMAT_VERSION}; install a newer one"
        )
    return content, version


def written_files(folder: Path) -> set[str]:
    """Return the names of the files that sottovoce wrote into a folder of ours, without checking them. Raises `CheckpointError`."""
    path = folder / MANIFEST
    try:
        content, _ = _parsed(path.read_bytes(), path)
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be read ({exc})") from exc
    if not isinstance(files := content.get("files"), dict):
        raise CheckpointError(f"{path}: is damaged (it lists no files)")
    return {MANIFEST, *files}


def read_short_context(model: Path | str) -> ShortContext | None:
    """Return the contexts that a folder of ours was tuned for, without checking its files; None for any other model.

    Raises `CheckpointError` for a damaged manifest.
    """
    folder = Path(model).expanduser()
    try:
        raw = (folder / MANIFEST).read_bytes()
    except (OSError, ValueError):
        return None
    content, _ = _parsed(raw, folder / MANIFEST)
    try:
        return None if (found := content.get("short_context")) is None else from_plain(ShortContext, found)
    except DataError as exc:
        raise CheckpointError(f"{folder / MANIFEST}: is damaged ({exc})") from exc


def store_confidence(folder: Path | str, confidence: ConfidenceRecord) -> None:
    """Put what was fitted to the words of held-out speech into the folder's manifest, `data` by name, without the path to it.

    Raises `CheckpointError`, `OutputError`.
    """
    folder = Path(folder).expanduser()
    try:
        write_manifest(folder, replace(read_manifest(folder), confidence=replace(confidence, data=corpus_name(confidence.data))))
    except OSError as exc:
        raise OutputError(f"{folder / MANIFEST}: cannot be written ({exc})") from exc
