"""Results on disk: one JSON file per cell, named by a hash of everything that determines it, written whole or not at all."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.errors import DataError
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.system.atomic_files import written_whole


@dataclass(frozen=True)
class Cell:
    """`kind`: "reference", "quantize" or "evaluate"; `key`: everything that determines the result, as plain data."""

    kind: str
    key: dict[str, Any]

    @property
    def name(self) -> str:
        """A readable beginning and the hash of the key."""
        digest = hashlib.sha256(json.dumps([self.kind, self.key], sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.kind}-{digest}"


class Results:
    """The folder of a bench's results."""

    def __init__(self, folder: Path) -> None:
        self.cells = folder / "cells"
        self.cells.mkdir(parents=True, exist_ok=True)

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a cell that was finished without an error, else None."""
        file = self.cells / f"{cell.name}.json"
        if not file.is_file():
            return None
        content = read_cell(file)
        return None if "error" in content else content

    def write(self, cell: Cell, timing: dict[str, float], **content: Any) -> dict[str, Any]:
        """Store what came out: `result=...` or `error=...`, with the moment it did (seconds since 1970) among the timing."""
        whole = {"kind": cell.kind, "key": cell.key, **content, "timing": {**timing, "finished": round(time.time(), 3)}}
        with written_whole(self.cells / f"{cell.name}.json") as file:
            json.dump(whole, file, indent=1, ensure_ascii=False)
            file.write("\n")
        return whole


def read_cell(file: Path) -> dict[str, Any]:
    """One result file. Raises `DataError` if it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DataError(f"{file}: is damaged ({exc}); delete it, and the bench computes it again") from exc
    if not isinstance(content, dict) or not {"kind", "key"} <= content.keys():
        raise DataError(f"{file}: is not a result of a bench; delete it, and the bench computes it again")
    return content


def as_transcript(row: dict[str, Any]) -> Transcript:
    """A transcript as it stands in a result."""
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Transcript(**fields)


def once(file: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON in `file`; computed and stored first if it is not there."""
    if not file.is_file():
        content = compute()
        with written_whole(file) as handle:
            json.dump(content, handle)
    return dict(json.loads(file.read_text(encoding="utf-8")))
