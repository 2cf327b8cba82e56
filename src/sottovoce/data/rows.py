"""One row of a manifest or table to an utterance: the names under which other tools keep path, text, speaker, language and span."""

import math
from collections.abc import Mapping
from pathlib import Path

from sottovoce.data.dataset import Utterance
from sottovoce.data.files import is_file
from sottovoce.errors import DataError

# The names of each field, the usual ones first: ours, NeMo's, Common Voice's, AudioFolder's, DeepSpeech's.
TEXT_NAMES = ("text", "transcript", "sentence", "transcription", "normalized_text", "raw_text")
SPEAKER_NAMES = ("speaker_id", "speaker", "client_id")
FIELD_NAMES: dict[str, tuple[str, ...]] = {
    "audio": ("audio", "audio_filepath", "audio_file", "audio_path", "file_name", "filename", "path", "file", "wav_filename", "wav"),
    "text": TEXT_NAMES,
    "speaker": SPEAKER_NAMES,
    "id": ("id", "utt_id", "utterance_id", "segment_id"),
    "language": ("language", "lang", "locale"),
    "offset": ("offset",),
    "duration": ("duration",),
}
WANTED = '"audio" (or "audio_filepath", "file_name", "path"), the path of a sound file'


def field_name(name: str) -> str:
    """Bring a column's name to the spelling of `FIELD_NAMES`: "File Name" to "file_name"."""
    return name.strip().lower().replace(" ", "_")


def find_field(names: Mapping[str, object], field: str) -> str | None:
    """Find the first name of `field` that is among `names` and holds something (None if there is none)."""
    return next((name for name in FIELD_NAMES[field] if names.get(name) is not None), None)


def read_row(row: object, *, root: Path, where: str, shown: str = "") -> Utterance:
    """Read one row. Paths are relative to `root`; `where` names the row in messages, `shown` is how it was written.

    Without an id of its own, an utterance is called by the name of its file. Raises `DataError` for anything that does not fit.
    """
    values = {field_name(str(key)): value for key, value in row.items()} if isinstance(row, dict) else {}
    audio = values.get(find_field(values, "audio") or "")
    if isinstance(audio, dict):  # how `datasets` writes a column of recordings
        audio = audio.get("path")
    if not isinstance(audio, str) or not audio:
        raise DataError(f"{where}: wanted an object with {WANTED}; got {(shown or str(row))[:80]!r}")
    text, speaker, own_id, language = (_text(values, field, where) for field in ("text", "speaker", "id", "language"))
    span = _span(values, where)
    piece = "" if span is None else f"-{span[0]:.2f}-{span[1]:.2f}"
    return Utterance(
        id=own_id or (Path(audio).stem or audio) + piece,
        audio=_located(root, audio),
        text=text,
        speaker=speaker or None,
        span=span,
        language=language,
        written=None if own_id else audio + piece,
    )


def _text(values: Mapping[str, object], field: str, where: str) -> str | None:
    name = find_field(values, field)
    value = values.get(name) if name else None
    if field != "text" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {name!r} must be text, got {value!r}")
    if value and any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise DataError(f"{where}: {name!r} holds half of a character ({value[:80]!r}); write it as UTF-8")
    return value


def _span(values: Mapping[str, object], where: str) -> tuple[float, float] | None:
    """Start and end in seconds of a row with an offset (NeMo); the end is infinite where no duration says it."""
    offset, duration = (_seconds(values.get(name), name, where) for name in ("offset", "duration"))
    if offset is None or (offset == 0 and duration is None):
        return None
    if duration == 0:
        raise DataError(f"{where}: a duration of 0 s leaves nothing; wanted the seconds from the offset on")
    return offset, math.inf if duration is None else offset + duration


def _seconds(value: object, name: str, where: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise DataError(f"{where}: {name!r} must be a number of seconds, got {value!r}")
    return seconds


def _located(root: Path, name: str) -> Path:
    """The file that a row calls `name`: beside the manifest, in the folder `clips` beside it (Common Voice), or as Windows writes it."""
    places = (root / name, root / "clips" / name, root / name.replace("\\", "/"))
    return next((place for place in places if is_file(place)), root / name)
