"""Transcripts as they are made, beside the file they will be written to, so that nothing is transcribed twice after a stop.

The first line says what makes the transcripts; each further one holds a recording's fingerprint and its transcript.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sottovoce.data.dataset import Utterance
from sottovoce.errors import DataError, OutputError
from sottovoce.evaluation.transcripts import Transcript, transcript_from, write_transcripts
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.json_lines import append_lines, json_line, whole_lines


class TranscriptCache:
    """The transcripts made so far for the transcript file `target`.

    `inputs`: what makes the transcripts (model, runtime, language); those made from other inputs are thrown away.
    """

    def __init__(self, target: str | Path, inputs: Mapping[str, Any]) -> None:
        self.target = Path(target).expanduser().absolute()
        self.file = self.target.with_name(f".{self.target.name}.unfinished")
        self._inputs = json.loads(json.dumps(dict(inputs)))
        self.known = self._read()
        with self._writing(), written_whole(self.file) as file:  # without what may stand behind the last whole line
            file.writelines(json_line(row) for row in (self._inputs, *_rows(self.known)))

    def transcript(self, utterance: Utterance) -> Transcript | None:
        """Return the transcript of a recording that has not changed since, or None."""
        return self.known.get(fingerprint(utterance))

    def add(self, utterances: Sequence[Utterance], transcripts: Sequence[Transcript]) -> None:
        """Keep what was just transcribed. Raises `OutputError`."""
        made = {fingerprint(utterance): t for utterance, t in zip(utterances, transcripts, strict=True)}
        with self._writing():
            append_lines(self.file, _rows(made))
        self.known |= made

    def finish(self, transcripts: Sequence[Transcript], *, whole: bool) -> None:
        """Write the transcript file; unless it is `whole`, keep the cache, for when the missing recordings can be read."""
        write_transcripts(self.target, transcripts)
        if whole:
            self.file.unlink(missing_ok=True)

    def _read(self) -> dict[str, Transcript]:
        """The transcripts that the last run had made from the same inputs."""
        try:
            inputs, *rows = whole_lines(self.file)
        except (OSError, ValueError):  # no file, none of ours, or not a whole line
            return {}
        found: dict[str, Transcript] = {}
        for line in rows if inputs == self._inputs else ():
            try:
                key, row = line
                found[key] = transcript_from(row, str(self.file))
            except (ValueError, TypeError, DataError):
                break
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise OutputError(f"{self.target}: transcripts cannot be written ({exc})") from exc


def _rows(transcripts: Mapping[str, Transcript]) -> list[Any]:
    return [[key, asdict(transcript)] for key, transcript in transcripts.items()]


def fingerprint(utterance: Utterance) -> str:
    """Return what tells one recording from another without decoding it: its name, place, and its file's size and time."""
    audio = utterance.audio
    if isinstance(audio, bytes):
        about: list[Any] = [hashlib.sha256(audio).hexdigest()]
    else:
        status = audio.stat() if audio.exists() else None
        about = [str(audio.absolute()), status and status.st_size, status and status.st_mtime_ns]
    return json.dumps([utterance.id, utterance.text, utterance.span, utterance.language, *about])
