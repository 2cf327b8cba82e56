"""Turn cells into the compact records, and find the results of a bench whether its cells are there or not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sottovoce.bench.cells import (
    TORCH,
    CalibrationKey,
    Cell,
    CellStore,
    Divergence,
    EvaluationCell,
    QuantizationCell,
    ReferenceCell,
)
from sottovoce.bench.records import (
    MANIFEST,
    ORIGINAL,
    BenchManifest,
    BenchResults,
    EvaluationRecord,
    LayerStrengths,
    T,
    UtteranceErrors,
    read_records,
)
from sottovoce.errors import DataError
from sottovoce.evaluation.normalize import normalize
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_utterance
from sottovoce.quantization.layer import LayerReport
from sottovoce.quantization.recipe import FLOAT_BITS


@dataclass(frozen=True, kw_only=True)
class FinishedEvaluation:
    """One evaluation as its cells have it. The original has the method "none", 16 bits and no layers."""

    model: str
    method: str
    bits: int
    format: str | None
    seed: int | None
    data: str
    runtime: str
    transcripts: tuple[Transcript, ...]
    divergence: Divergence | None
    layers: tuple[LayerReport, ...]


def is_bench(folder: str | Path) -> bool:
    """Tell whether `folder` holds results of a bench, compact or as cells."""
    folder = Path(folder).expanduser()
    return (folder / MANIFEST).is_file() or (folder / "cells").is_dir()


def read_results(out: str | Path) -> BenchResults:
    """Read the results of a bench: the compact files, brought up to date with the cells where they are there.

    Where the same was measured more than once (with other versions or settings), the newest counts. A compact record without a cell
    stays, unless its model's weights or its data's recordings are no longer those of the cells.

    Raises `DataError` if there are neither compact files nor cells, or if one of them is damaged.
    """
    folder = Path(out).expanduser()
    if not is_bench(folder):
        raise DataError(f"{out}: holds no results of a bench (neither {MANIFEST} nor cells/); run one with sottovoce bench")
    kept, cells = read_records(folder), CellStore(folder).all()
    weights, recordings = _current_digests(cells.values())

    def holds(model: str, data: str | None = None) -> bool:
        before = kept.manifest
        same_model = model not in weights or before.weights.get(model) == weights[model]
        return same_model and (data is None or data not in recordings or before.recordings.get(data) == recordings[data])

    evaluations = {_place(record): record for record in kept.evaluations if holds(record.model, record.data)}
    layers = {_layers_place(record): record for record in kept.layers if holds(record.model)}
    for evaluation in finished_evaluations(cells):
        record = _record(evaluation)
        evaluations[_place(record)] = record
        strengths = _strengths(evaluation)
        layers.pop(_layers_place(strengths), None)
        if len({strength for strength in strengths.strengths if strength > 0}) > 1:
            layers[_layers_place(strengths)] = strengths
    return BenchResults(
        manifest=BenchManifest(
            recipes=kept.manifest.recipes,
            weights={**kept.manifest.weights, **weights},
            recordings={**kept.manifest.recordings, **recordings},
            calibrations=_distinct([*kept.manifest.calibrations, *_calibrations(cells.values())]),
            environments=_distinct([*kept.manifest.environments, *(cell.key.environment for cell in cells.values())]),
            processors=_distinct([*kept.manifest.processors, *(cell.made.processor for cell in cells.values())]),
        ),
        evaluations=tuple(evaluations[place] for place in sorted(evaluations)),
        layers=tuple(layers[place] for place in sorted(layers)),
    )


def _calibrations(cells: Iterable[Cell]) -> list[CalibrationKey]:
    keys = [cell.key for cell in cells if isinstance(cell, QuantizationCell)]
    return [key.calibration for key in keys if key.calibration is not None]


def _current_digests(cells: Iterable[Cell]) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of models and of data sets by name, as the newest cells have them."""
    weights, recordings = dict[str, str](), dict[str, str]()
    for cell in cells:
        if cell.result is None:
            continue
        if isinstance(cell, (ReferenceCell, QuantizationCell)):
            weights[cell.key.model] = cell.key.weights
        if isinstance(cell, (ReferenceCell, EvaluationCell)):
            recordings[cell.key.data] = cell.key.recordings
    return weights, recordings


def finished_evaluations(cells: Mapping[str, Cell]) -> list[FinishedEvaluation]:
    """Return every evaluation that did not fail, of the current weights and recordings, and of equal ones the newest.

    `cells`: by name, the oldest first, as `CellStore.all` gives them.
    """
    weights, recordings = _current_digests(cells.values())
    found = dict[tuple[str, str, int, str, str, str, int], FinishedEvaluation]()
    for cell in cells.values():
        evaluation = None
        if isinstance(cell, QuantizationCell) or recordings.get(cell.key.data) != cell.key.recordings:
            continue
        if isinstance(cell, EvaluationCell):
            made = cells.get(cell.key.quantization)
            if isinstance(made, QuantizationCell) and weights.get(made.key.model) == made.key.weights:
                evaluation = _of_quantized(cell, made)
        elif weights.get(cell.key.model) == cell.key.weights:
            evaluation = _of_original(cell)
        if evaluation is not None:
            found[_place(evaluation)] = evaluation
    return list(found.values())


def _of_original(cell: ReferenceCell) -> FinishedEvaluation | None:
    if cell.result is None:
        return None
    return FinishedEvaluation(
        model=cell.key.model,
        method=ORIGINAL,
        bits=FLOAT_BITS,
        format=None,
        seed=None,
        data=cell.key.data,
        runtime=TORCH,
        transcripts=cell.result.transcripts,
        divergence=None,
        layers=(),
    )


def _of_quantized(cell: EvaluationCell, made: QuantizationCell) -> FinishedEvaluation | None:
    if cell.result is None or made.result is None:
        return None
    return FinishedEvaluation(
        model=made.key.model,
        method=made.key.method,
        bits=made.key.bits,
        format=made.key.format,
        seed=made.key.seed,
        data=cell.key.data,
        runtime=cell.key.runtime,
        transcripts=cell.result.transcripts,
        divergence=cell.result.divergence,
        layers=made.result.layers,
    )


def _record(evaluation: FinishedEvaluation) -> EvaluationRecord:
    spoken = [t for t in evaluation.transcripts if t.reference is not None and normalize(t.reference)]
    if not spoken:
        raise DataError(
            f"{evaluation.data}: no utterance has a reference text (what was said), so there is no word error rate; give data with texts"
        )
    return EvaluationRecord(
        model=evaluation.model,
        method=evaluation.method,
        bits=evaluation.bits,
        format=evaluation.format,
        seed=evaluation.seed,
        data=evaluation.data,
        runtime=evaluation.runtime,
        divergence=evaluation.divergence,
        utterances=UtteranceErrors.of([score_utterance(transcript) for transcript in spoken]),
    )


def _strengths(evaluation: FinishedEvaluation) -> LayerStrengths:
    return LayerStrengths(
        model=evaluation.model,
        method=evaluation.method,
        bits=evaluation.bits,
        format=evaluation.format,
        seed=evaluation.seed,
        names=tuple(layer.name for layer in evaluation.layers),
        parts=tuple(layer.part for layer in evaluation.layers),
        strengths=tuple(layer.strength for layer in evaluation.layers),
    )


def _place(record: EvaluationRecord | FinishedEvaluation) -> tuple[str, str, int, str, str, str, int]:
    """What a record is the measurement of; records are sorted by it."""
    return (
        record.model,
        record.data,
        -record.bits,
        record.format or "",
        record.method,
        record.runtime,
        -1 if record.seed is None else record.seed,
    )


def _layers_place(record: LayerStrengths) -> tuple[str, int, str, str, int]:
    return record.model, -record.bits, record.format or "", record.method, -1 if record.seed is None else record.seed


def _distinct(values: Sequence[T]) -> tuple[T, ...]:
    """Every value once, in an order that does not depend on theirs."""
    found = list[T]()
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(sorted(found, key=repr))
