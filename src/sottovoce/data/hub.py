"""Audio data sets of the Hugging Face Hub, streamed: `hf:NAME[:CONFIG][:SPLIT][?audio=COLUMN&text=COLUMN]`."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from sottovoce.data.corpora import tedlium_text
from sottovoce.data.dataset import Utterance
from sottovoce.data.rows import SPEAKER_NAMES, TEXT_NAMES
from sottovoce.errors import DataError, MissingDependencyError

PREFIX = "hf:"
DEFAULT_SPLIT = "test"
# Names under which data sets on the Hub keep what is wanted, the usual ones first.
GUESSES = {
    "audio": ("audio", "speech", "file"),
    "text": TEXT_NAMES,
    "speaker": SPEAKER_NAMES,
    "id": ("id", "segment_id", "utt_id", "wav_filename"),
}


@dataclass(frozen=True)
class HubName:
    """The parts of `hf:NAME:CONFIG:SPLIT?...`. One part after the name is the split."""

    name: str
    config: str | None
    split: str
    columns: dict[str, str]

    @classmethod
    def parse(cls, source: str) -> "HubName":
        """Raises `DataError` for a name that has too many parts or an unknown column."""
        path, _, query = source.removeprefix(PREFIX).partition("?")
        name, *parts = path.split(":")
        columns = dict(parse_qsl(query, keep_blank_values=True))
        if not name or len(parts) > 2:
            raise DataError(f"{source}: wanted hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
        if unknown := columns.keys() - GUESSES.keys():
            raise DataError(f"{source}: {min(unknown)!r} is not a column's role; known are {', '.join(GUESSES)}")
        config = parts[0] if len(parts) > 1 else None
        return cls(name, config, parts[-1] if parts else DEFAULT_SPLIT, columns)


def read_hub(source: str, at_most: int | None) -> tuple[list[Utterance], int]:
    """Up to `at_most` utterances (all if None) with their recordings in memory, and how many are not to be scored.

    Raises `DataError` if there is no such data set or column, and `MissingDependencyError` without the package `datasets`.
    """
    hub = HubName.parse(source)
    try:
        import datasets
    except ImportError as exc:
        raise MissingDependencyError(f'{source} needs the package datasets: pip install "sottovoce[hub]"') from exc
    datasets.disable_progress_bars()
    try:
        rows: Any = datasets.load_dataset(hub.name, hub.config, split=hub.split, streaming=True)
        columns = _columns(rows.column_names or list(next(iter(rows), {})), hub, source)
        # The bytes as they are: they are decoded like any other sound file.
        rows = rows.cast_column(columns["audio"], datasets.Audio(decode=False))
        return _utterances(islice(rows, at_most), columns, source)
    except ImportError as exc:
        raise MissingDependencyError(f"{source}: its recordings are not stored in parquet files ({exc})") from exc
    except (ValueError, FileNotFoundError, ConnectionError, OSError, RuntimeError) as exc:
        raise DataError(f"{source}: cannot be read from the Hub ({type(exc).__name__}: {exc})") from exc


def _columns(present: list[str], hub: HubName, source: str) -> dict[str, str]:
    columns = {}
    for role, guesses in GUESSES.items():
        wanted = (hub.columns[role],) if role in hub.columns else guesses
        found = next((name for name in wanted if name in present), None)
        if found is not None:
            columns[role] = found
        elif role in hub.columns or role == "audio":
            raise DataError(
                f"{source}: has no column {' or '.join(map(repr, wanted))}, but {', '.join(present)}; name it with ?{role}=COLUMN"
            )
    return columns


def _utterances(rows: Iterable[dict[str, Any]], columns: dict[str, str], source: str) -> tuple[list[Utterance], int]:
    found, ignored = [], 0
    for number, row in enumerate(rows):
        audio, text = row[columns["audio"]], row[columns["text"]] if "text" in columns else None
        if text is not None:
            text = tedlium_text(str(text))
            if text is None:
                ignored += 1
                continue
        if not isinstance(audio, dict) or not (audio.get("bytes") or audio.get("path")):
            raise DataError(f"{source}, row {number}: column {columns['audio']!r} holds no recording")
        speaker = row[columns["speaker"]] if "speaker" in columns else None
        found.append(
            Utterance(
                id=f"{number:06d}-{row[columns['id']]}" if "id" in columns else f"{number:06d}",
                audio=audio["bytes"] if audio.get("bytes") else Path(audio["path"]),
                text=text,
                speaker=None if speaker in (None, "") else str(speaker),
            )
        )
    return found, ignored
