"""Transcripts as they are made, beside the file they will be written to, so that nothing is transcribed twice after a stop.

The first line says what makes the transcripts; each further one holds a recording's fingerprint and its transcript.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sottovoce.data.dataset import Utterance
from sottovoce.errors import DataError, OutputError
from sottovoce.evaluation.transcripts import Transcript, transcript_from, write_transcripts
from sottovoce.system.text_files import read_lines


class TranscriptCache:
    """The transcripts made so far for the transcript file `target`.

    `inputs`: what makes the transcripts (model, runtime, language); those made from other inputs are thrown away.
    """

    def __init__(self, target: str | Path, inputs: Mapping[str, Any]) -> None:
        self.target = Path(target).expanduser().absolute()
        self.file = self.target.with_name(f".{self.target.name}.unfinished")
        self.known = self._read(header := json.dumps(dict(inputs), sort_keys=True))
        if not self.known:
            self._write("w", [header])

    def transcript(self, utterance: Utterance) -> Transcript | None:
        """Return the transcript of a recording that has not changed since, or None."""
        return self.known.get(fingerprint(utterance))

    def add(self, utterances: Sequence[Utterance], transcripts: Sequence[Transcript]) -> None:
        """Keep what was just transcribed. Raises `OutputError`."""
        made = {fingerprint(utterance): t for utterance, t in zip(utterances, transcripts, strict=True)}
        self._write("a", [json.dumps([key, asdict(t)], ensure_ascii=False) for key, t in made.items()])
        self.known |= made

    def finish(self, transcripts: Sequence[Transcript], *, whole: bool) -> None:
        """Write the transcript file; unless it is `whole`, keep the cache, for when the missing recordings can be read."""
        write_transcripts(self.target, transcripts)
        if whole:
            self.file.unlink(missing_ok=True)

    def _read(self, header: str) -> dict[str, Transcript]:
        try:
            first, *lines = read_lines(self.file)
        except (OSError, UnicodeDecodeError, ValueError):
            return {}
        found: dict[str, Transcript] = {}
        for line in lines if first == header else ():
            try:
                key, row = json.loads(line)
                found[key] = transcript_from(row, str(self.file))
            except (ValueError, TypeError, DataError):
                break  # it was being written when the run was stopped
        if found:  # without what may stand behind the last whole line
            self._write("w", [header, *(json.dumps([key, asdict(t)], ensure_ascii=False) for key, t in found.items())])
        return found

    def _write(self, mode: str, lines: Sequence[str]) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open(mode, encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise OutputError(f"{self.target}: transcripts cannot be written ({exc})") from exc


def fingerprint(utterance: Utterance) -> str:
    """Return what tells one recording from another without decoding it: its name, place, and its file's size and time."""
    audio = utterance.audio
    if isinstance(audio, bytes):
        about: list[Any] = [hashlib.sha256(audio).hexdigest()]
    else:
        status = audio.stat() if audio.exists() else None
        about = [str(audio.absolute()), status and status.st_size, status and status.st_mtime_ns]
    return json.dumps([utterance.id, utterance.text, utterance.span, utterance.language, *about])
