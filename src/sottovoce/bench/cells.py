"""Keep what a bench computes while it runs: one JSON file per cell, named by a hash of all that determines it, written whole or not at all.

A cell is one transcription of a data set by the original ("reference"), one quantized model ("quantization"), or one evaluation of a
quantized model on a data set ("evaluation"). Its key is what is hashed; two runs with equal keys have equal results.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from sottovoce.errors import DataError
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.quantization.layer import LayerReport
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.plain_data import from_plain, to_plain
from sottovoce.system.versions import Processor, processor

TORCH = "torch"  # the runtime that shows its distributions


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What of the machine can influence a result: versions of packages, and CPU threads (the order of sums)."""

    versions: Mapping[str, str]
    threads: int


@dataclass(frozen=True, kw_only=True)
class ReferenceKey:
    """The original on a data set. `weights`, `recordings`: digests of the model and of the data set."""

    model: str
    weights: str
    data: str
    recordings: str
    language: str | None
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class CalibrationKey:
    """A calibration sample: `utterances` of the set `data`, drawn by `seed`, with the digest `recordings`."""

    data: str
    seed: int
    utterances: int
    recordings: str
    language: str | None
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class LabelsKey:
    """The original's transcripts of a calibration sample."""

    weights: str
    recordings: str
    language: str | None
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class QuantizationKey:
    """A quantized model. `method`: its name in the bench; `calibration`: None where no speech is used."""

    model: str
    weights: str
    method: str
    bits: int
    recipe: Recipe
    target: str
    calibration: CalibrationKey | None
    environment: Environment
    format: str | None = None  # its name, if the bench asks for it by name

    @property
    def seed(self) -> int | None:
        """The seed of the calibration sample."""
        return None if self.calibration is None else self.calibration.seed

    @property
    def grid(self) -> str:
        """A digest of what can be stored: the formats of all layers, and the target."""
        own = self.recipe
        return _digest([to_plain(part) for part in (own.format, own.head_bits, own.rules)] + [self.target])

    @property
    def settings(self) -> str:
        """A digest of all that a reader would call the settings: recipe, target, and how speech was drawn, but for the seed."""
        calibration = None if self.calibration is None else {**to_plain(self.calibration), "seed": None, "recordings": None}
        return _digest([to_plain(self.recipe), self.target, calibration])


@dataclass(frozen=True, kw_only=True)
class EvaluationKey:
    """A quantized model on a data set. `quantization`: the name of its cell; `runtime_versions`: of the packages of `runtime`."""

    quantization: str
    data: str
    recordings: str
    language: str | None
    environment: Environment
    runtime: str = TORCH
    runtime_versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Kullback-Leibler divergence from the original at the `tokens` tokens of its transcripts, in nats per token."""

    mean: float
    median: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class ReferenceResult:
    """What the original recognized."""

    transcripts: tuple[Transcript, ...]


@dataclass(frozen=True, kw_only=True)
class QuantizationResult:
    """The diagnostics of every layer, in the order in which they were quantized."""

    layers: tuple[LayerReport, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What the quantized model recognized; `divergence` is None in a runtime that does not show its distributions."""

    transcripts: tuple[Transcript, ...]
    divergence: Divergence | None


@dataclass(frozen=True, kw_only=True)
class Made:
    """How a cell was made: `seconds` of wall-clock time by piece of work, the moment (since 1970), and the processor.

    A finished cell that was asked for again after others had taken its place in the tables has the moment of that.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    finished: float = field(default_factory=lambda: round(time.time(), 3))
    processor: Processor = field(default_factory=processor)


@dataclass(frozen=True, kw_only=True)
class ReferenceCell:
    """Holds `result` or, if it failed, `error`, as the other cells do."""

    kind: Literal["reference"] = "reference"
    key: ReferenceKey
    result: ReferenceResult | None = None
    error: str | None = None
    made: Made = field(default_factory=Made)


@dataclass(frozen=True, kw_only=True)
class QuantizationCell:
    """A quantized model, or why there is none."""

    kind: Literal["quantization"] = "quantization"
    key: QuantizationKey
    result: QuantizationResult | None = None
    error: str | None = None
    made: Made = field(default_factory=Made)


@dataclass(frozen=True, kw_only=True)
class EvaluationCell:
    """An evaluation of a quantized model, or why there is none."""

    kind: Literal["evaluation"] = "evaluation"
    key: EvaluationKey
    result: EvaluationResult | None = None
    error: str | None = None
    made: Made = field(default_factory=Made)


Key: TypeAlias = ReferenceKey | QuantizationKey | EvaluationKey | LabelsKey
Cell: TypeAlias = ReferenceCell | QuantizationCell | EvaluationCell
CellType = TypeVar("CellType", ReferenceCell, QuantizationCell, EvaluationCell)
KINDS: dict[str, type[Cell]] = {"reference": ReferenceCell, "quantization": QuantizationCell, "evaluation": EvaluationCell}
KEY_KINDS: dict[type[Key], str] = {
    ReferenceKey: "reference",
    QuantizationKey: "quantization",
    EvaluationKey: "evaluation",
    LabelsKey: "labels",
}


def cell_name(key: Key) -> str:
    """Return the kind of cell and the hash of its key."""
    kind = KEY_KINDS[type(key)]
    return f"{kind}-{_digest([kind, to_plain(key)])}"


def _digest(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


class CellStore:
    """The folder `cells` of a bench's results."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "cells"

    def finished(self, key: Key, kind: type[CellType]) -> CellType | None:
        """Return the cell of `key` if it is there and did not fail, else None. Raises `DataError` if it is damaged."""
        file = self.folder / f"{cell_name(key)}.json"
        cell = read_cell(file) if file.is_file() else None
        return cell if isinstance(cell, kind) and cell.result is not None else None

    def write(self, cell: Cell) -> None:
        """Store a cell in the place of one with the same key."""
        with written_whole(self.folder / f"{cell_name(cell.key)}.json") as file:
            json.dump(to_plain(cell), file, ensure_ascii=False)
            file.write("\n")

    def write_error(self, cell: Cell) -> None:
        """Store why a cell failed, unless there is a finished one of the same key."""
        file = self.folder / f"{cell_name(cell.key)}.json"
        if not (file.is_file() and read_cell(file).result is not None):
            self.write(cell)

    def all(self) -> dict[str, Cell]:
        """Return all cells by name, the oldest first (by the time inside: copying gives files any times)."""
        cells = {file.stem: read_cell(file) for file in sorted(self.folder.glob("*.json"))}
        return dict(sorted(cells.items(), key=lambda item: item[1].made.finished))


def read_cell(file: Path) -> Cell:
    """Read one cell. Raises `DataError` if it is damaged, or was written by a version with other settings or diagnostics."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind not in KINDS:
            raise DataError(f"kind: wanted one of {', '.join(KINDS)}, got {kind!r}")
        return from_plain(KINDS[kind], content)
    except (OSError, ValueError, RecursionError, DataError) as exc:
        raise DataError(f"{file}: is damaged or of another version ({exc}); delete it, and the bench computes it again") from exc
