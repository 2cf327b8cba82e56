"""Data sets: a manifest, a folder of sound files, or a LibriSpeech tree.

A manifest is JSON lines with `audio` (a path, relative to the manifest) and optionally `id`, `text`, `speaker`, `duration_s`.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sottovoce.audio import SUFFIXES, read_audio
from sottovoce.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording. `text`: what was said, if known. `speaker`: an opaque name, if known."""

    id: str
    audio: Path
    text: str | None = None
    speaker: str | None = None

    def samples(self) -> np.ndarray:
        """The recording, float32 mono at 16 kHz. Raises `AudioError`."""
        return read_audio(self.audio)


@dataclass(frozen=True)
class DataSet:
    """Utterances in a fixed order, under a name."""

    name: str
    utterances: tuple[Utterance, ...]

    def __len__(self) -> int:
        return len(self.utterances)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self.utterances)

    def draw(self, count: int | None, seed: int) -> "DataSet":
        """`count` utterances (all if None or more than there are), drawn and ordered by `seed`."""
        order = sorted(self.utterances, key=lambda utterance: utterance.id)
        random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible draw, no secret
        return DataSet(self.name, tuple(order[:count]))

    def take(self, count: int | None) -> "DataSet":
        """The first `count` utterances (all if None)."""
        return DataSet(self.name, self.utterances[:count])


def load_data(source: str | Path) -> DataSet:
    """The data set at `source`: a `.jsonl` manifest, or a folder that holds `manifest.jsonl`, a LibriSpeech tree or sound files.

    Raises `DataError` if there is nothing there, a manifest line does not parse, or two utterances share an id.
    """
    path = Path(source).expanduser()
    if path.is_file():
        utterances = _read_manifest(path)
    elif (path / "manifest.jsonl").is_file():
        utterances = _read_manifest(path / "manifest.jsonl")
    elif path.is_dir():
        transcripts = sorted(path.rglob("*.trans.txt"))
        utterances = _read_librispeech(transcripts) if transcripts else _read_folder(path)
    else:
        raise DataError(f"{source}: no such file or folder; a .jsonl manifest or a folder of sound files is wanted")
    if not utterances:
        raise DataError(
            f"{source}: holds no utterances; sound files ({', '.join(SUFFIXES)}) or a manifest.jsonl are wanted"
        )
    seen: set[str] = set()
    for utterance in utterances:
        if utterance.id in seen:
            raise DataError(f"{source}: the id {utterance.id!r} occurs twice; ids must be unique")
        seen.add(utterance.id)
    return DataSet(path.resolve().name if path.is_dir() else path.stem, tuple(utterances))


def _read_manifest(path: Path) -> list[Utterance]:
    utterances = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as exc:
        raise DataError(
            f"{path}: is not UTF-8 text, so not a manifest (JSON lines); for one sound file, give its folder"
        ) from exc
    for number, line in enumerate(lines, start=1):
        if line.strip():
            utterances.append(_manifest_line(line, path, number))
    return utterances


def _manifest_line(line: str, path: Path, number: int) -> Utterance:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as exc:
        raise DataError(f"{where}: is not JSON ({exc})") from exc
    if not isinstance(row, dict) or not isinstance(row.get("audio"), str) or not row["audio"]:
        raise DataError(f'{where}: wanted an object with "audio", the path of a sound file; got {line[:80]!r}')
    fields: dict[str, str | None] = {}
    for key in ("id", "text", "speaker"):
        value = row.get(key)
        if key != "text" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {key!r} must be text, got {value!r}")
        fields[key] = value
    return Utterance(
        id=fields["id"] or Path(row["audio"]).stem,
        audio=path.parent / row["audio"],
        text=fields["text"],
        speaker=fields["speaker"],
    )


def _read_folder(path: Path) -> list[Utterance]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    return [Utterance(id=file.relative_to(path).with_suffix("").as_posix(), audio=file) for file in files]


def _read_librispeech(transcripts: list[Path]) -> list[Utterance]:
    """LibriSpeech's own layout: `speaker/chapter/speaker-chapter.trans.txt` beside `speaker-chapter-NNNN.flac`."""
    utterances = []
    for transcript in transcripts:
        for number, line in enumerate(transcript.read_text(encoding="utf-8").splitlines(), start=1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            audio = next(
                (file for s in (".flac", ".wav") if (file := transcript.parent / f"{name}{s}").is_file()), None
            )
            if audio is None:
                raise DataError(f"{transcript}, line {number}: no {name}.flac beside it")
            utterances.append(Utterance(id=name, audio=audio, text=text, speaker=name.split("-")[0]))
    return utterances
