"""Files that grow by a JSON text per line while a program works, and outlive its being stopped at any moment."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sottovoce.system.text_files import read_lines


def json_line(row: Any) -> str:
    """Return plain data as a line of such a file, with its end."""
    return json.dumps(row) + "\n"


def append_lines(path: Path, rows: Iterable[Any]) -> None:
    """Add plain data to a file, one line each, on the disk when this returns. Raises `OSError`."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json_line(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())


def drop_torn_line(path: Path) -> None:
    """Take away a last line without an end, which was being written when its program was stopped: nobody would read what followed it.

    For files that one program writes at a time. Raises `OSError`.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def whole_lines(path: Path) -> list[Any]:
    """Return the plain data of a file, nothing if there is none, up to a line that was being written when its program was stopped.

    Raises `OSError` and `UnicodeDecodeError`.
    """
    found = list[Any]()
    for line in read_lines(path) if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
