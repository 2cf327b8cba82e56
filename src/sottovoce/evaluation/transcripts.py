"""Transcripts, and files of them: one JSON object per line, so that scoring needs no model.

    {"id": "...", "text": "...", "reference": "...", "duration_s": 3.2, "tokens": [...], "pieces": 1, "truncated": false,
     "log_probabilities": [...], "language": "de", "decoding": "greedy", "temperature": 0.0, "context": null,
     "recording": "...", "run": "..."}

Only `id` and `text` are required when reading; `reference` is the text that was spoken, null or missing where it is not known.
`recording` and `run` are written by `--save` (see `evaluation.transcript_cache`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sottovoce.errors import DataError, OutputError
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.outputs import FileKind
from sottovoce.system.plain_data import from_plain
from sottovoce.system.text_files import read_lines

GREEDY = "greedy"  # the decoding in which models and runtimes are compared
NOT_SAID: dict[str, Any] = {"tokens": [], "duration_s": 0.0}  # of a file that holds texts alone
RECORDING, RUN = "recording", "run"  # keys beside those of a transcript
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


def write_transcripts(path: str | Path, transcripts: Sequence[Transcript], beside: Sequence[Mapping[str, str]] | None = None) -> None:
    """Write a transcript file, whole or not at all; `beside`: more keys for each line. Raises `OutputError`."""
    target = Path(path).expanduser().absolute()
    try:
        with written_whole(target) as file:
            for transcript, more in zip(transcripts, beside or [{}] * len(transcripts), strict=True):
                file.write(json.dumps({**asdict(transcript), **more}, ensure_ascii=False) + "\n")
    except OSError as exc:
        raise OutputError(f"{path}: transcripts cannot be written ({exc.strerror or exc})") from exc


def read_transcripts(path: str | Path) -> tuple[Transcript, ...]:
    """Read a transcript file. Raises `DataError` with file and line for anything that does not fit."""
    source = Path(path).expanduser()
    try:
        lines = read_lines(source)
    except FileNotFoundError as exc:
        raise DataError(f"{path}: no such file; give transcripts that --save wrote") from exc
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
    """Read a transcript as it stands in a file. Raises `DataError`, calling its place `where`, for anything that does not fit.

    Keys that a `Transcript` does not have are left out: files of other programs may have more to say.
    """
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
        raise DataError(f'{where}: wanted an object with "id" and "text" (both text); got {str(row)[:80]!r}')
    known = {field.name for field in fields(Transcript)}
    try:
        transcript = from_plain(Transcript, NOT_SAID | {key: value for key, value in row.items() if key in known})
    except DataError as exc:
        raise DataError(f"{where}: {exc}") from exc
    for name, (fits, wanted) in {
        "duration_s": (0 <= transcript.duration_s < math.inf, "a number of seconds"),
        "pieces": (transcript.pieces >= 1, "a whole number that is at least 1"),
        "log_probabilities": (all(p <= 0 for p in transcript.log_probabilities), "a list of numbers that are at most 0"),
        "temperature": (0 <= transcript.temperature < math.inf, "a number that is at least 0"),
        "context": (transcript.context is None or transcript.context >= 1, "a number of encoder positions or null"),
    }.items():
        if not fits:
            raise DataError(f"{where}: {name}: wanted {wanted}, got {str(row[name])[:80]}")
    return transcript


def _is_ours(path: Path) -> bool:
    """Whether the first line of a file is a transcript with all that `write_transcripts` has always written, and nothing else."""
    names = {field.name for field in fields(Transcript)}
    try:
        row = json.loads(next(line for line in read_lines(path) if line.strip()))
        transcript_from(row, str(path))
    except (OSError, ValueError, StopIteration, RecursionError, DataError):
        return False
    return bool({"id", "text", "tokens", "duration_s"} <= row.keys() <= names | {RECORDING, RUN})


TRANSCRIPTS = FileKind(title="a file of transcripts written by sottovoce", holds=_is_ours)
