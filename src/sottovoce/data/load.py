"""Data sets by name or folder: manifests, sound files, LibriSpeech, TED-LIUM and SPGISpeech as handed out, and the Hub."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sottovoce.data.audio import SUFFIXES
from sottovoce.data.corpora import is_spgispeech, read_folder, read_librispeech, read_spgispeech, read_tedlium
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.data.files import is_file, shown_name, visible_files
from sottovoce.data.hub import PREFIX, read_hub
from sottovoce.data.manifest import JSON_SUFFIXES, TABLE_SUFFIXES, read_manifest, table_columns
from sottovoce.errors import DataError, first_of
from sottovoce.system.notices import notice
from sottovoce.system.paths import last_part

__all__ = ["DataSet", "Utterance", "load_data", "load_sources"]

MANIFEST_NAMES = ("manifest.jsonl", "manifest.json")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")  # of an AudioFolder


def load_data(source: str | Path, *, at_most: int | None = None) -> DataSet:
    """Read the data set at `source`.

    A manifest (`.jsonl`, `.json`, `.csv`, `.tsv`); a SPGISpeech `.csv`; a folder that holds `manifest.jsonl`, an AudioFolder's
    `metadata.csv`, a tree of LibriSpeech, TED-LIUM or SPGISpeech, one table, or sound files; or `hf:NAME:CONFIG:SPLIT` (see
    `data.hub`). `at_most`: only the first so many utterances (of a Hub data set no more are fetched). Raises `DataError` if there is
    nothing there, a line does not parse, or two utterances share an id.
    """
    if not str(source):
        raise DataError("the name of a data set is empty; give a folder, a manifest or hf:NAME:CONFIG:SPLIT")
    if str(source).startswith(PREFIX):
        utterances, left_out = read_hub(str(source), at_most)
        name = str(source).removeprefix(PREFIX)
    else:
        path = Path(source).expanduser()
        utterances, left_out = _read_path(path)
        name = path.resolve().name if path.is_dir() else path.stem
    if not utterances:
        raise DataError(f"{source}: holds no utterances; sound files ({', '.join(SUFFIXES)}) or a manifest.jsonl are wanted")
    return DataSet(name, tuple(_with_unique_ids(utterances, source)[:at_most]), left_out)


def corpus_name(source: str) -> str:
    """Return what a data set is called in what is published: the last part of its path; one of the Hub as it is named."""
    return source if source.startswith(PREFIX) else last_part(source)


def load_sources(sources: Sequence[str | Path | DataSet]) -> DataSet:
    """Read sound files, folders of them and data sets as one data set, in their order; ids as by `load_each`."""
    parts = load_each(sources, _load_source)
    if len(parts) == 1:
        return parts[0]
    utterances = tuple(utterance for data in parts for utterance in data)
    return DataSet(f"{len(parts)} sources", utterances, sum(data.left_out for data in parts))


def load_each(sources: Sequence[str | Path | DataSet], load: Callable[[str | Path], DataSet]) -> list[DataSet]:
    """Read data sets, each by `load`, with ids that are unique over all of them.

    With more than one source, recordings are called by their path as written, `FOLDER/FILE`, or `SOURCE/ID` where an id is given.
    Raises `DataError` if a recording comes from two of the sources.
    """
    found = [source if isinstance(source, DataSet) else load(source) for source in sources]
    if len(found) == 1:
        return found
    parts = list[DataSet]()
    for data, source in zip(found, sources, strict=True):
        if isinstance(source, DataSet):
            parts.append(with_place(data, f"{data.name}/"))
        else:
            parts.append(data if _is_recording(source) else replace(with_place(data, place_of(source)), name=str(source)))
    if twice := _repeated(utterance.id for data in parts for utterance in data):
        raise DataError(f"{first_of(twice)} is given twice; give every recording once")
    return parts


def with_place(data: DataSet, place: str) -> DataSet:
    """Call each utterance of `data` by `place`, where it was read from (see `place_of`), and its own path or id in there."""
    return replace(data, utterances=tuple(replace(u, id=f"{place}{u.written or u.id}") for u in data))


def place_of(source: str | Path) -> str:
    """Write a source as it stands before its recordings: "FOLDER/", and nothing for the folder one is in."""
    place = str(source) if str(source).startswith(PREFIX) else Path(source).as_posix()
    return "" if place == "." else f"{place}/"


def listings(source: str | Path) -> tuple[Path, ...]:
    """Return the files that say what the data set `source` is: itself, or those that are looked for in a folder, there or not."""
    path = Path(source).expanduser()
    return tuple(path / name for name in (*MANIFEST_NAMES, *METADATA_NAMES)) if path.is_dir() else (path,)


def _is_recording(source: str | Path) -> bool:
    path = Path(source).expanduser()
    listed = path.suffix.lower() in (*JSON_SUFFIXES, *TABLE_SUFFIXES)
    return not (str(source).startswith(PREFIX) or path.is_dir() or listed)


def _load_source(source: str | Path) -> DataSet:
    if not _is_recording(source):
        return load_data(source)
    path = Path(source).expanduser()
    return DataSet(path.name, (Utterance(id=shown_name(source), audio=path),))


def _read_path(path: Path) -> tuple[list[Utterance], int]:
    if path.is_file():
        return _read_file(path), 0
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; a .jsonl manifest or a folder of sound files is wanted")
    for name in MANIFEST_NAMES:
        if (path / name).is_file():
            return read_manifest(path / name), 0
    if listings := [file for name in METADATA_NAMES for file in visible_files(path, name)]:
        return _read_metadata(path, listings), 0
    if transcripts := list(visible_files(path, "*.trans.txt")):
        return read_librispeech(transcripts), 0
    if transcripts := list(visible_files(path, "*.stm")):
        return read_tedlium(transcripts)
    tables = sorted(file for suffix in TABLE_SUFFIXES for file in path.glob(f"*{suffix}") if is_file(file) and file.name[0] != ".")
    if corpus := [table for table in tables if is_spgispeech(table)]:
        return [utterance for table in corpus for utterance in read_spgispeech(table)], 0
    if known := [table for table in tables if _is_listing(table)]:
        return _read_only_table(path, known), 0
    return read_folder(path), 0


def _read_file(path: Path) -> list[Utterance]:
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return read_manifest(path)
    if is_spgispeech(path):
        return read_spgispeech(path)
    utterances = read_manifest(path)
    if all(utterance.text is None for utterance in utterances):
        notice(f"{path}: no text is known of its recordings; its columns are {', '.join(table_columns(path) or ())}")
    return utterances


def _read_metadata(root: Path, listings: Sequence[Path]) -> list[Utterance]:
    """The listings of an AudioFolder, whose splits may lie in folders of their own."""
    if len(listings) > 1:
        notice(f"{root}: reads {', '.join(file.relative_to(root).as_posix() for file in listings)} together")
    utterances = []
    for file in listings:
        place = file.parent.relative_to(root)
        utterances += [replace(u, written=u.written and (place / u.written).as_posix()) for u in _read_file(file)]
    return utterances


def _is_listing(table: Path) -> bool:
    try:
        return table_columns(table) is not None
    except DataError:
        return False


def _read_only_table(folder: Path, tables: Sequence[Path]) -> list[Utterance]:
    if len(tables) > 1:
        raise DataError(f"{folder}: holds {len(tables)} tables of recordings ({', '.join(t.name for t in tables)}); give one of them")
    notice(f"{folder}: reads the recordings that {tables[0].name} lists")
    return _read_file(tables[0])


def _with_unique_ids(utterances: list[Utterance], source: str | Path) -> list[Utterance]:
    """Call utterances by their path as written where their ids are alike, and say so.

    Raises `DataError` where ids are alike that were given, or the same path occurs twice.
    """
    renamed = list[str]()
    while alike := _repeated(u.id for u in utterances):
        group = [u for u in utterances if u.id in alike]
        stuck = _repeated(u.written or u.id for u in group)
        if stuck:
            first = next(u.id for u in group if (u.written or u.id) in stuck)
            raise DataError(f"{source}: the id {first!r} occurs twice; ids must be unique")
        utterances = [replace(u, id=u.written or u.id) if u.id in alike else u for u in utterances]
        renamed += [u.written for u in group if u.written and u.written != u.id]
    if renamed:
        shown = ", ".join(renamed[:4]) + (", ..." if len(renamed) > 4 else "")
        notice(f"{source}: {len(renamed)} recordings are called by their whole path, since their names are alike: {shown}")
    return utterances


def _repeated(names: Iterable[str]) -> list[str]:
    """What occurs more than once, in the order of its first occurrence."""
    return [name for name, count in Counter(names).items() if count > 1]
