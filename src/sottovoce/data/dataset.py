"""What a data set is, whatever it was read from."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sottovoce.data.audio import read_audio
from sottovoce.errors import DataError
from sottovoce.system.atomic_files import sha256


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording, or a piece of one. `text`: what was said, if known. `speaker`: an opaque name, if known. `language`: its code, if
    it is of its own.

    `audio`: a sound file, or its bytes. `span`: start and end in seconds, if it is a piece of that file.
    """

    id: str
    audio: Path | bytes = field(repr=False)
    text: str | None = None
    speaker: str | None = None
    span: tuple[float, float] | None = None
    language: str | None = None

    def samples(self) -> np.ndarray:
        """The recording, float32 mono at 16 kHz. Raises `AudioError`."""
        return read_audio(self.audio, name=self.id, span=self.span)


@dataclass(frozen=True)
class DataSet:
    """Utterances in a fixed order, under a name. `left_out`: how many the corpus itself excludes from scoring."""

    name: str
    utterances: tuple[Utterance, ...]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.utterances)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self.utterances)

    def sample(self, count: int | None, seed: int) -> "DataSet":
        """`count` utterances (all if None or more than there are), drawn and ordered by `seed`."""
        order = sorted(self.utterances, key=lambda utterance: utterance.id)
        random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible draw, no secret
        return DataSet(self.name, tuple(order[:count]), self.left_out)

    def take(self, count: int | None) -> "DataSet":
        """The first `count` utterances (all if None)."""
        return DataSet(self.name, self.utterances[:count], self.left_out)

    def digest(self) -> str:
        """A hash of all ids, texts, speakers and recordings. Raises `DataError` for a recording that cannot be read."""
        digest = hashlib.sha256()
        for utterance in self:
            about = [utterance.id, utterance.text, utterance.speaker, utterance.span]
            digest.update(json.dumps(about + ([utterance.language] if utterance.language else [])).encode())
            audio = utterance.audio
            digest.update(hashlib.sha256(audio).digest() if isinstance(audio, bytes) else _file_digest(audio))
        return digest.hexdigest()[:16]


def _file_digest(path: Path) -> bytes:
    try:
        return bytes.fromhex(sha256(path))
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror})") from exc
