"""Folders as the corpora are handed out: LibriSpeech, TED-LIUM, SPGISpeech, and plain folders of sound files.

Their texts follow rules of their own. What is not speech (TED-LIUM's `<unk>`, `{NOISE}`, pronunciation marks) is taken out here,
so that a text can also be taught; spelling, case, punctuation and numbers are levelled when scoring (`evaluation.normalize`).
"""

import codecs
import csv
import re
from collections.abc import Iterator
from pathlib import Path

from sottovoce.data.audio import SUFFIXES
from sottovoce.data.containers import CONTAINER_SUFFIXES, INSTALL, decoder_installed
from sottovoce.data.dataset import Utterance
from sottovoce.data.files import counted_by_suffix, is_file, is_hidden, shown_name, visible_files
from sottovoce.errors import DataError
from sottovoce.system.notices import notice
from sottovoce.system.text_files import read_text, split_lines

IGNORED = "ignore_time_segment_in_scoring"  # the text of a TED-LIUM segment that must not be scored
NOT_WORDS = re.compile(r"<[^>]*>|\{[^}]*\}|\(\d+\)|\[[^\]]*\]")
STM_FIELDS = 7  # file, channel, speaker, start, end, label, text
SPGI_COLUMNS = ("wav_filename", "wav_filesize", "transcript")


def read_folder(path: Path) -> list[Utterance]:
    """Read all sound files and videos below a folder, by name; nothing is known of what they say. Hidden files are passed over; what
    else is left out is said, and so is what needs a decoder that is not installed."""
    wanted = (*SUFFIXES, *CONTAINER_SUFFIXES)
    files = list(visible_files(path))
    recordings = [file for file in files if file.suffix.lower() in wanted]
    if others := [file for file in files if file.suffix.lower() not in wanted]:
        notice(f"{path}: left out {counted_by_suffix(others)} (not known as recordings)")
    if hidden := [file for file in path.rglob("*") if file.suffix.lower() in wanted and is_hidden(file, path) and is_file(file)]:
        notice(f"{path}: passed over hidden files: {counted_by_suffix(hidden)}")
    if not decoder_installed() and (unread := [file for file in recordings if file.suffix.lower() in CONTAINER_SUFFIXES]):
        notice(f"{path}: {counted_by_suffix(unread)} cannot be read without PyAV; {INSTALL}")
    named = ((file, file.relative_to(path)) for file in recordings)
    return [Utterance(id=shown_name(name.with_suffix("")), audio=file, written=shown_name(name)) for file, name in named]


def read_librispeech(transcripts: list[Path]) -> list[Utterance]:
    """LibriSpeech's own layout: `speaker/chapter/speaker-chapter.trans.txt` beside `speaker-chapter-NNNN.flac`."""
    utterances = []
    for transcript in transcripts:
        for number, line in enumerate(split_lines(_text(transcript)), start=1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            files = [transcript.parent / f"{name}{suffix}" for suffix in (".flac", ".wav")]
            audio = next((file for file in files if Path(name).name == name and is_file(file)), None)
            if audio is None:
                raise DataError(f"{transcript}, line {number}: no {name}.flac beside it")
            utterances.append(Utterance(id=name, audio=audio, text=text, speaker=name.split("-")[0]))
    return utterances


def tedlium_text(text: str) -> str | None:
    """A TED-LIUM transcript without its marks and with its apostrophes joined ("i 'm" is "i'm").

    None: not to be scored, since nobody knows what is said there; of marks of noises and unknown words alone, too.
    """
    if text.strip() == IGNORED:
        return None
    words = NOT_WORDS.sub(" ", text).split()
    return re.sub(r"\s+'\s*(?=\w)", "'", " ".join(words)) if words or not text.strip() else None


def read_tedlium(transcripts: list[Path]) -> tuple[list[Utterance], int]:
    """TED-LIUM's layout: `stm/TALK.stm` beside `sph/TALK.sph`, one line per segment. Returns also how many are not to be scored."""
    utterances, ignored = [], 0
    for transcript in transcripts:
        audio = _recording_of(transcript)
        for where, (_, _, speaker, start, end, _, text) in _stm_lines(transcript):
            cleaned = tedlium_text(text)
            if not cleaned:
                ignored += 1
                continue
            try:
                span = float(start), float(end)
            except ValueError as exc:
                raise DataError(f"{where}: start {start!r} and end {end!r} must be seconds") from exc
            if not 0 <= span[0] < span[1]:
                raise DataError(f"{where}: a segment from {start} s to {end} s has no length")
            name = f"{transcript.stem}-{span[0]:.2f}-{span[1]:.2f}"
            utterances.append(Utterance(id=name, audio=audio, text=cleaned, speaker=speaker, span=span))
    return utterances, ignored


def _stm_lines(transcript: Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(split_lines(_text(transcript)), start=1):
        if not line.strip() or line.startswith(";;"):
            continue
        fields = line.split(maxsplit=STM_FIELDS - 1)
        if len(fields) == STM_FIELDS - 1:
            fields.append("")  # a segment without words
        if len(fields) < STM_FIELDS:
            raise DataError(f"{transcript}, line {number}: wanted file, channel, speaker, start, end, <label> and text; got {line[:80]!r}")
        yield f"{transcript}, line {number}", fields


def _recording_of(transcript: Path) -> Path:
    for folder in (transcript.parent.parent / "sph", transcript.parent.parent / "wav", transcript.parent):
        for suffix in (".sph", ".wav", ".flac"):
            file = folder / f"{transcript.stem}{suffix}"
            if is_file(file):
                return file
    raise DataError(f"{transcript}: no {transcript.stem}.sph in the folder sph beside it")


def read_spgispeech(table: Path) -> list[Utterance]:
    """SPGISpeech's layout: `val.csv`, with `|` between its columns, beside the folder `val` of wav files."""
    utterances = []
    root = table.parent / table.stem if (table.parent / table.stem).is_dir() else table.parent
    # Quotes stand for themselves: transcripts hold them unpaired.
    rows = csv.reader(split_lines(_text(table)), delimiter="|", quoting=csv.QUOTE_NONE)
    try:
        if tuple(next(rows, ())) != SPGI_COLUMNS:
            raise DataError(f"{table}: its first line must be {'|'.join(SPGI_COLUMNS)}")
        for number, row in enumerate(rows, start=2):
            if len(row) != len(SPGI_COLUMNS):
                raise DataError(f"{table}, line {number}: wanted {len(SPGI_COLUMNS)} columns, got {len(row)}")
            name, _, text = row
            if not Path(name).name or "\0" in name:
                raise DataError(f"{table}, line {number}: {name!r} is not the name of a file")
            if not (root / name).resolve().is_relative_to(root.resolve()):
                raise DataError(f"{table}, line {number}: {name!r} is outside of {root}")
            written = f"{table.stem}/{name}"
            called = Path(name).with_suffix("").as_posix()
            utterances.append(Utterance(id=called, audio=root / name, text=text, speaker=_folder(name), written=written))
    except csv.Error as exc:
        raise DataError(f"{table}, line {rows.line_num}: {exc}") from exc
    return utterances


def is_spgispeech(table: Path) -> bool:
    """Whether a table begins as those of SPGISpeech."""
    with table.open("rb") as file:
        return file.readline().removeprefix(codecs.BOM_UTF8).startswith(f"{SPGI_COLUMNS[0]}|".encode())


def _folder(name: str) -> str | None:
    """SPGISpeech names no speakers; the clips of one call lie in one folder."""
    parent = Path(name).parent.as_posix()
    return None if parent == "." else parent


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({exc})") from exc
