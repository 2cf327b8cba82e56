"""Transcripts that outlive a run: as they are made, beside the file they will be written to, and afterwards in that file itself.

The first line of the file beside it says what makes the transcripts; each further one holds a recording's fingerprint and its transcript.
In the finished file every transcript carries that fingerprint ("recording"), and a digest of itself and of what made it ("run").
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sottovoce.data.dataset import Utterance, file_digest
from sottovoce.errors import DataError, OutputError
from sottovoce.evaluation.transcripts import RECORDING, RUN, Transcript, transcript_from, write_transcripts
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.json_lines import append_lines, json_line, whole_lines
from sottovoce.system.notices import notice
from sottovoce.system.text_files import read_lines


class TranscriptCache:
    """The transcripts made so far for the transcript file `target`.

    `inputs`: what makes the transcripts (model, runtime, language); `ids`: of the recordings. Raises `OutputError` if transcripts are there
    that were made from other inputs or of other recordings: they may have taken hours, and are not thrown away.
    """

    def __init__(self, target: str | Path, inputs: Mapping[str, Any], ids: Collection[str]) -> None:
        self.target = Path(target).expanduser().absolute()
        self.file = self.target.with_name(f".{self.target.name}.unfinished")
        self._inputs = json.loads(json.dumps(dict(inputs)))
        self._order = {name: place for place, name in enumerate(ids)}
        self._file_digests = dict[Path, bytes]()
        self._fingerprints = dict[str, str]()  # by id
        self._finished = self._read_finished()
        self.known = self._finished | self._read_unfinished()
        self._begun = False

    def transcript(self, utterance: Utterance) -> Transcript | None:
        """Return the transcript of a recording that has not changed since, or None."""
        return self.known.get(self._fingerprint(utterance)) if self.known else None

    def add(self, utterances: Sequence[Utterance], transcripts: Sequence[Transcript]) -> None:
        """Keep what was just transcribed. Raises `OutputError`."""
        made = {self._fingerprint(utterance): t for utterance, t in zip(utterances, transcripts, strict=True)}
        with self._writing():
            if not self._begun:
                with written_whole(self.file) as file:  # without what may stand behind the last whole line
                    file.writelines(json_line(row) for row in (self._inputs, *_rows(self.known)))
            self._begun = True
            append_lines(self.file, _rows(made))
        self.known |= made

    def finish(self, transcripts: Sequence[Transcript]) -> None:
        """Write the transcript file, unless it holds them already, which is said. Raises `OutputError`.

        What an earlier run made of a recording that cannot be read now stays in the file: the recording may come back.
        """
        fingerprints = {t.id: self._fingerprints[t.id] for t in transcripts}
        kept = {t.id: t for t in self.known.values() if t.id not in fingerprints}
        fingerprints |= {t.id: fingerprint for fingerprint, t in self.known.items() if t.id in kept}
        rows = sorted([*transcripts, *kept.values()], key=lambda t: self._order[t.id])
        if kept:
            notice(f"{self.target}: keeps the transcripts of recordings that cannot be read now, {next(iter(kept))} for one")
        if self._finished and list(self._finished.values()) == rows:
            notice(f"{self.target}: holds the transcripts of this model, these settings and recordings; nothing was transcribed again")
        else:
            write_transcripts(self.target, rows, [{RECORDING: fingerprints[t.id], RUN: self._run_of(t)} for t in rows])
        self.file.unlink(missing_ok=True)

    def _read_finished(self) -> dict[str, Transcript]:
        """The transcripts in the target, by fingerprint: of the same inputs, or none."""
        found = dict[str, Transcript]()
        try:
            for line in read_lines(self.target) if self.target.is_file() else ():
                row = json.loads(line)
                transcript = transcript_from(row, str(self.target))
                if row.get(RUN) != self._run_of(transcript):
                    raise ValueError
                self._refuse_others(transcript, self.target)
                found[str(row[RECORDING])] = transcript
        except (OSError, ValueError, KeyError, RecursionError, DataError) as exc:
            raise OutputError(
                f"{self.target}: holds what another model, other settings or another version of a package made, or what was edited, so it "
                "is not replaced; remove it, or give another name"
            ) from exc
        return found

    def _read_unfinished(self) -> dict[str, Transcript]:
        """The transcripts that a stopped run had made from the same inputs."""
        try:
            inputs, *rows = whole_lines(self.file)
        except (OSError, ValueError):  # no file, none of ours, or not a whole line
            return {}
        if rows and inputs != self._inputs:
            raise OutputError(
                f"{self.file}: holds {len(rows)} transcripts of a stopped run with another model, other settings or another version of a "
                "package; go on with those, choose another name, or remove this file"
            )
        found = dict[str, Transcript]()
        for line in rows:
            try:
                key, row = line
                transcript = transcript_from(row, str(self.file))
            except (ValueError, TypeError, DataError):
                break
            self._refuse_others(transcript, self.file)
            found[key] = transcript
        return found

    def _refuse_others(self, transcript: Transcript, file: Path) -> None:
        if transcript.id not in self._order:
            raise OutputError(
                f"{file}: holds transcripts of other recordings, {transcript.id!r} for one, so it is not replaced; remove it, or give "
                "another name"
            )

    def _fingerprint(self, utterance: Utterance) -> str:
        """What tells one recording from another: its name, its content, and what is known of it."""
        audio = utterance.audio
        if isinstance(audio, bytes):
            content = hashlib.sha256(audio).digest()
        else:
            if audio not in self._file_digests:  # of which many utterances may be pieces
                self._file_digests[audio] = file_digest(audio)
            content = self._file_digests[audio]
        found = _short_hash([utterance.id, utterance.text, utterance.span, utterance.language, content.hex()])
        self._fingerprints[utterance.id] = found
        return found

    def _run_of(self, transcript: Transcript) -> str:
        return _short_hash([self._inputs, asdict(transcript)])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise OutputError(f"{self.target}: transcripts cannot be written ({exc.strerror or exc})") from exc


def _rows(transcripts: Mapping[str, Transcript]) -> list[Any]:
    return [[key, asdict(transcript)] for key, transcript in transcripts.items()]


def _short_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
