"""A manifest: JSON lines with `audio` (a path, relative to the manifest) and optionally `id`, `text`, `speaker` and `language`."""

import json
from pathlib import Path

from sottovoce.data.dataset import Utterance
from sottovoce.errors import DataError


def read_manifest(path: Path) -> list[Utterance]:
    """The utterances of a manifest. Raises `DataError` with file and line for anything that does not fit."""
    utterances = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as exc:
        raise DataError(f"{path}: is not UTF-8 text, so not a manifest (JSON lines); for one sound file, give its folder") from exc
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
    for key in ("id", "text", "speaker", "language"):
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
        language=fields["language"],
    )
