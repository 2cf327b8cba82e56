"""What a data set is, whatever it was read from."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sottovoce.data.audio import duration_of, read_audio
from sottovoce.errors import DataError
from sottovoce.system.atomic_files import sha256


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording, or a piece of one. `text`: what was said, if known. `speaker`: an opaque name, if known. `language`: its code, if
    it is of its own.

    `audio`: a sound file, or its bytes. `span`: start and end in seconds, if it is a piece of that file. `written`: the path as it was
    written, from which `id` was made; None where the id was given.
    """

    id: str
    audio: Path | bytes = field(repr=False)
    text: str | None = None
    speaker: str | None = None
    span: tuple[float, float] | None = None
    language: str | None = None
    written: str | None = field(default=None, repr=False, compare=False)

    @property
    def says_nothing(self) -> bool:
        """Whether it is known that no word is said: its text holds no letter and no digit."""
        return self.text is not None and not any(character.isalnum() for character in self.text)

    def samples(self) -> np.ndarray:
        """Read the recording, float32 mono at 16 kHz. It may be silent if nothing is said in it. Raises `AudioError`."""
        return read_audio(self.audio, name=self.id, span=self.span, silence=self.says_nothing)

    def duration_s(self) -> float:
        """Estimate the seconds from the file's header; 0 if it cannot be read."""
        whole = duration_of(self.audio)
        return whole if self.span is None else max(0.0, min(self.span[1], whole) - self.span[0])


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a data set that was put together took from one source: `utterances` of its `available`, which last `seconds` in all, by
    `weight` (the share that was wanted, 0 to 1)."""

    source: str
    weight: float
    available: int
    seconds: float
    utterances: int


@dataclass(frozen=True)
class DataSet:
    """Utterances in a fixed order, under a name. `left_out`: how many the corpus itself excludes from scoring. `shares`: where they come
    from, if from several sources.

    Two different utterances never share an id: `DataError`.
    """

    name: str
    utterances: tuple[Utterance, ...]
    left_out: int = 0
    shares: tuple[Share, ...] = ()

    def __post_init__(self) -> None:
        known: dict[str, Utterance] = {}
        for utterance in self.utterances:
            if (other := known.setdefault(utterance.id, utterance)) is not utterance and other != utterance:
                raise DataError(f"{self.name}: the id {utterance.id!r} stands for two different recordings; ids must be unique")

    def __len__(self) -> int:
        return len(self.utterances)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self.utterances)

    def sample(self, count: int | None, seed: int) -> "DataSet":
        """Draw `count` utterances (all if None or more than there are), in an order that is drawn too."""
        order = sorted(self.utterances, key=lambda utterance: utterance.id)
        random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible draw, no secret
        return replace(self, utterances=tuple(order[:count]))

    def take(self, count: int | None) -> "DataSet":
        """Take the first `count` utterances (all if None)."""
        return replace(self, utterances=self.utterances[:count])

    def digest(self) -> str:
        """Hash all ids, texts, speakers and recordings. A recording that cannot be read counts as such."""
        digest = hashlib.sha256()
        for utterance in self:
            about = [utterance.id, utterance.text, utterance.speaker, utterance.span]
            digest.update(json.dumps(about + ([utterance.language] if utterance.language else [])).encode())
            audio = utterance.audio
            digest.update(hashlib.sha256(audio).digest() if isinstance(audio, bytes) else file_digest(audio))
        return digest.hexdigest()[:16]


def file_digest(path: Path) -> bytes:
    """Return the sha256 of a recording; one that cannot be read has a digest of its own."""
    try:
        return bytes.fromhex(sha256(path))
    except (OSError, ValueError):
        return hashlib.sha256(b"unreadable").digest()


def need_texts(data: DataSet, purpose: str, without: str) -> None:
    """Raise `DataError` if no text is known of any recording. `purpose`: what needs texts; `without`: what can be done without."""
    if all(utterance.text is None for utterance in data):
        raise DataError(
            f"{data.name}: no text is known of its recordings, and {purpose} needs what was spoken; give a manifest, a file of JSON lines "
            f'with "audio" and "text"; {without}'
        )
