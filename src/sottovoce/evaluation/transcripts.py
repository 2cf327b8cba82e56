"""Transcripts, and files of them: one JSON object per line, so that scoring needs no model.

    {"id": "...", "text": "...", "reference": "...", "duration_s": 3.2, "tokens": [...], "pieces": 1, "truncated": false,
     "log_probabilities": [...], "language": "de", "decoding": "greedy", "temperature": 0.0, "context": null}

Only `id` and `text` are required when reading; `reference` is the text that was spoken, null or missing where it is not known.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sottovoce.errors import DataError, OutputError
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.text_files import read_lines

GREEDY = "greedy"  # the decoding in which models and runtimes are compared
LONG_FORM = "long-form"  # a model's own procedure for recordings of more than one pass


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The hypothesis `text` for one utterance, with its `reference` where that is known.

    `tokens`: ids without prompt and end token. `pieces`: more than 1 if the recording was cut. `truncated`: decoding stopped at the token
    limit, not at an end token. `log_probabilities`: natural, of each token, or empty if they were not asked for. `language`: the code whose
    rules score it: the utterance's own, else the one asked for or detected; None if nobody said. `decoding`: "greedy", "fallback" or
    "long-form"; `temperature`: at which a fallback ended. `context`: encoder positions that were worked through, None: the whole window.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    duration_s: float
    reference: str | None = None
    pieces: int = 1
    truncated: bool = False
    log_probabilities: tuple[float, ...] = ()
    language: str | None = None
    decoding: str = GREEDY
    temperature: float = 0.0
    context: int | None = None

    @property
    def has_confidences(self) -> bool:
        """Tell whether every token has its log-probability."""
        return len(self.log_probabilities) == len(self.tokens)


def write_transcripts(path: str | Path, transcripts: Sequence[Transcript]) -> None:
    """Write a transcript file, whole or not at all. Raises `OutputError`."""
    target = Path(path).expanduser().absolute()
    try:
        with written_whole(target) as file:
            for transcript in transcripts:
                file.write(json.dumps(asdict(transcript), ensure_ascii=False) + "\n")
    except OSError as exc:
        raise OutputError(f"{path}: transcripts cannot be written ({exc})") from exc


def read_transcripts(path: str | Path) -> tuple[Transcript, ...]:
    """Read a transcript file. Raises `DataError` with file and line for anything that does not fit."""
    source = Path(path).expanduser()
    try:
        lines = read_lines(source)
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read as a transcript file (JSON lines): {exc}") from exc
    found: dict[str, Transcript] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            transcript = _from_line(line, f"{path}, line {number}")
            if transcript.id in found:
                raise DataError(f"{path}, line {number}: the id {transcript.id!r} occurs twice; ids must be unique")
            found[transcript.id] = transcript
    if not found:
        raise DataError(f'{path}: holds no transcripts; lines of JSON with "id", "text" and "reference" are wanted')
    return tuple(found.values())


def _from_line(line: str, where: str) -> Transcript:
    try:
        return transcript_from(json.loads(line), where)
    except (json.JSONDecodeError, RecursionError) as exc:
        raise DataError(f"{where}: is not JSON ({exc})") from exc


def transcript_from(row: Any, where: str) -> Transcript:
    """Read a transcript as it stands in a file. Raises `DataError`, calling its place `where`, for anything that does not fit."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
        raise DataError(f'{where}: wanted an object with "id" and "text" (both text); got {str(row)[:80]!r}')
    reference, duration, tokens = row.get("reference"), row.get("duration_s", 0.0), row.get("tokens", [])
    if reference is not None and not isinstance(reference, str):
        raise DataError(f'{where}: "reference" must be text or null, got {reference!r}')
    if not isinstance(duration, int | float) or not 0 <= duration < float("inf"):
        raise DataError(f'{where}: "duration_s" must be a number of seconds, got {duration!r}')
    log_probabilities = row.get("log_probabilities", [])
    if not isinstance(log_probabilities, list) or not all(isinstance(p, int | float) and p <= 0 for p in log_probabilities):
        raise DataError(f'{where}: "log_probabilities" must be a list of numbers that are at most 0')
    language, decoding, temperature = row.get("language"), row.get("decoding", GREEDY), row.get("temperature", 0.0)
    if language is not None and not isinstance(language, str):
        raise DataError(f'{where}: "language" must be text or null, got {language!r}')
    if not isinstance(decoding, str):
        raise DataError(f'{where}: "decoding" must be text, got {decoding!r}')
    if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
        raise DataError(f'{where}: "temperature" must be a number that is at least 0, got {temperature!r}')
    context = row.get("context")
    if context is not None and (not isinstance(context, int) or context < 1):
        raise DataError(f'{where}: "context" must be a number of encoder positions or null, got {context!r}')
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise DataError(f'{where}: "tokens" must be a list of whole numbers')
    return Transcript(
        id=row["id"],
        text=row["text"],
        tokens=tuple(tokens),
        duration_s=float(duration),
        reference=reference,
        pieces=row["pieces"] if isinstance(row.get("pieces"), int) else 1,
        truncated=row.get("truncated") is True,
        log_probabilities=tuple(map(float, log_probabilities)),
        language=language,
        decoding=decoding,
        temperature=float(temperature),
        context=context,
    )
