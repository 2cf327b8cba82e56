"""Manifests: JSON lines or a JSON array, or a table (CSV, TSV). What a row may hold: see `data.rows`."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sottovoce.data.dataset import Utterance
from sottovoce.data.rows import FIELD_NAMES, field_name, find_field, read_row
from sottovoce.errors import DataError
from sottovoce.system.text_files import read_text, split_lines

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
DELIMITERS = ("\t", ",", ";", "|")


def read_manifest(path: Path) -> list[Utterance]:
    """Read the utterances of a manifest. Raises `DataError` with file and line for anything that does not fit."""
    rows = _table_rows(path) if path.suffix.lower() in TABLE_SUFFIXES else _json_rows(path)
    return [read_row(row, root=path.parent, where=where, shown=shown) for row, where, shown in rows]


def table_columns(path: Path) -> list[str] | None:
    """Read the column names of a CSV or TSV file; None if none of them is known to hold paths of recordings."""
    header = next((line for line in split_lines(_text(path)) if line.strip()), "")
    delimiter = _delimiter(header, path)
    return None if delimiter is None else _cells(header, delimiter)


def _json_rows(path: Path) -> Iterator[tuple[Any, str, str]]:
    """Each row, its place, and how it is written."""
    text = _text(path)
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parsed(text, str(path)), start=1):
            yield row, f"{path}, row {number}", str(row)
        return
    for number, line in enumerate(split_lines(text), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _parsed(line, where), where, line


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{where}: is not JSON ({exc}); wanted one JSON object a line, or one array of them") from exc


def _table_rows(path: Path) -> Iterator[tuple[dict[str, str | None], str, str]]:
    """Each row by its columns' names, its place, and how it is written. An empty cell is an unknown value."""
    text = _text(path)
    header = next((line for line in split_lines(text) if line.strip()), "")
    delimiter = _delimiter(header, path)
    if delimiter is None:
        raise DataError(
            f"{path}: its first line {header[:80]!r} names no column of paths; wanted a column {', '.join(FIELD_NAMES['audio'][:7])} "
            f"and, for what is said, {', '.join(FIELD_NAMES['text'][:4])}"
        )
    # Quotes stand for themselves between tabs, as in Common Voice; a cell that is quoted as a whole is unquoted later.
    as_written = delimiter == "\t"
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE if as_written else csv.QUOTE_MINIMAL, strict=True
    )
    columns: list[str] | None = None
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            cells = [_unquoted(cell) for cell in row] if as_written else row
            if columns is None:
                columns = [field_name(cell) for cell in cells]
                continue
            where = f"{path}, line {rows.line_num}"
            if len(cells) != len(columns):
                raise DataError(f"{where}: wanted {len(columns)} columns, got {len(cells)}: {delimiter.join(row)[:80]!r}")
            yield {name: cell.strip() or None for name, cell in zip(columns, cells, strict=True)}, where, delimiter.join(row)
    except csv.Error as exc:
        raise DataError(f"{path}, line {rows.line_num}: {exc}") from exc


def _delimiter(header: str, path: Path) -> str | None:
    """What stands between the columns: by it, the header holds a known name of paths."""
    for delimiter in DELIMITERS if path.suffix.lower() != ".tsv" else ("\t",):
        if find_field(dict.fromkeys(_cells(header, delimiter), ""), "audio"):
            return delimiter
    return None


def _cells(header: str, delimiter: str) -> list[str]:
    return [field_name(_unquoted(cell.strip())) for cell in header.split(delimiter)]


def _unquoted(cell: str) -> str:
    """`cell` without quotes around it, if all quotes inside of them are doubled."""
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else cell


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except UnicodeDecodeError as exc:
        raise DataError(
            f"{path}: is not UTF-8 text, so not a manifest (JSON lines, CSV or TSV); save it as UTF-8; for one sound file, give its folder"
        ) from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror})") from exc
