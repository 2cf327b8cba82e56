"""Data sets by name or folder: manifests, sound files, LibriSpeech, TED-LIUM and SPGISpeech as handed out, and the Hub."""

from pathlib import Path

from sottovoce.data.audio import SUFFIXES
from sottovoce.data.corpora import SPGI_COLUMNS, read_folder, read_librispeech, read_spgispeech, read_tedlium
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.data.hub import PREFIX, read_hub
from sottovoce.data.manifest import read_manifest
from sottovoce.errors import DataError

__all__ = ["DataSet", "Utterance", "load_data"]


def load_data(source: str | Path, *, at_most: int | None = None) -> DataSet:
    """The data set at `source`.

    A `.jsonl` manifest; a SPGISpeech `.csv`; a folder that holds `manifest.jsonl`, a tree of LibriSpeech, TED-LIUM or
    SPGISpeech, or sound files; or `hf:NAME:CONFIG:SPLIT` (see `data.hub`). `at_most`: only the first so many utterances
    (of a Hub data set no more are fetched). Raises `DataError` if there is nothing there, a line does not parse, or two
    utterances share an id.
    """
    if str(source).startswith(PREFIX):
        utterances, left_out = read_hub(str(source), at_most)
        name = str(source).removeprefix(PREFIX)
    else:
        path = Path(source).expanduser()
        utterances, left_out = _read_path(path)
        name = path.resolve().name if path.is_dir() else path.stem
    if not utterances:
        raise DataError(f"{source}: holds no utterances; sound files ({', '.join(SUFFIXES)}) or a manifest.jsonl are wanted")
    seen: set[str] = set()
    for utterance in utterances:
        if utterance.id in seen:
            raise DataError(f"{source}: the id {utterance.id!r} occurs twice; ids must be unique")
        seen.add(utterance.id)
    return DataSet(name, tuple(utterances[:at_most]), left_out)


def _read_path(path: Path) -> tuple[list[Utterance], int]:
    if path.is_file():
        return (read_spgispeech(path) if path.suffix == ".csv" else read_manifest(path)), 0
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; a .jsonl manifest or a folder of sound files is wanted")
    if (path / "manifest.jsonl").is_file():
        return read_manifest(path / "manifest.jsonl"), 0
    if transcripts := sorted(path.rglob("*.trans.txt")):
        return read_librispeech(transcripts), 0
    if transcripts := sorted(path.rglob("*.stm")):
        return read_tedlium(transcripts)
    if tables := [table for table in sorted(path.glob("*.csv")) if _is_spgispeech(table)]:
        return [utterance for table in tables for utterance in read_spgispeech(table)], 0
    return read_folder(path), 0


def _is_spgispeech(table: Path) -> bool:
    with table.open("rb") as file:
        return file.readline().strip() == "|".join(SPGI_COLUMNS).encode()
