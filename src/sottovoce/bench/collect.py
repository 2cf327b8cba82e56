"""Turn cells into the compact records, and find the results of a bench whether its cells are there or not."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    settings: str | None = None
    grid: str | None = None
    cell: str


def is_bench(folder: str | Path) -> bool:
    """Tell whether `folder` holds results of a bench, compact or as cells."""
    folder = Path(folder).expanduser()
    return (folder / MANIFEST).is_file() or (folder / "cells").is_dir()


def read_results(out: str | Path) -> BenchResults:
    """Read the results of a bench: the compact files, brought up to date with the cells where they are there.

    Where the same was measured more than once (with other versions or settings), the newest counts; of a row of the table, over seeds,
    only what has the settings of the newest. A compact record without a cell stays, unless its model's weights or its data's
    recordings are no longer those of the cells, or its settings no longer those of the row. A data set without texts is left out.

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

    finished = finished_evaluations(cells)
    settings = {_row(evaluation): evaluation.settings for evaluation in finished}

    def agrees(record: EvaluationRecord) -> bool:
        return record.settings is None or settings.get(_row(record), record.settings) == record.settings

    evaluations = {_place(record): record for record in kept.evaluations if holds(record.model, record.data) and agrees(record)}
    of_series = {_layers_place(strengths)[:-1]: strengths.settings for strengths in map(_strengths, finished)}
    layers = {
        _layers_place(record): record
        for record in kept.layers
        if holds(record.model) and record.settings in (None, of_series.get(_layers_place(record)[:-1], record.settings))
    }
    silent = set[str]()
    for evaluation in finished:
        record = _record(evaluation)
        if record is None:
            silent.add(evaluation.data)
            continue
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
        without_texts=tuple(sorted(silent)),
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

    Of those that stand in one row, which differ in their seeds only, these have the settings of the newest: a mean over other settings
    would be of nothing. `cells`: by name, the oldest first, as `CellStore.all` gives them.
    """
    weights, recordings = _current_digests(cells.values())
    found = dict[tuple[str, str, int, str, str, str, int], FinishedEvaluation]()
    settings = dict[tuple[str, str, int, str, str, str], str | None]()
    for name, cell in cells.items():
        evaluation = None
        if isinstance(cell, QuantizationCell) or recordings.get(cell.key.data) != cell.key.recordings:
            continue
        if isinstance(cell, EvaluationCell):
            made = cells.get(cell.key.quantization)
            if isinstance(made, QuantizationCell) and weights.get(made.key.model) == made.key.weights:
                evaluation = _of_quantized(name, cell, made)
        elif weights.get(cell.key.model) == cell.key.weights:
            evaluation = _of_original(name, cell)
        if evaluation is not None:
            found[_place(evaluation)] = evaluation
            settings[_row(evaluation)] = evaluation.settings
    return [evaluation for evaluation in found.values() if evaluation.settings == settings[_row(evaluation)]]


def prefer(store: CellStore, names: Collection[str]) -> None:
    """Make finished cells, by name, count as the newest where others have taken their places in the tables."""
    cells = store.all()
    shown = {evaluation.cell for evaluation in finished_evaluations(cells)}
    hidden = [cells[name] for name in sorted(set(names) & cells.keys() - shown)]
    for kind in (ReferenceCell, EvaluationCell):  # in this order: originals say which weights and recordings are today's
        for cell in hidden:
            if isinstance(cell, kind):
                store.write(replace(cell, made=replace(cell.made, finished=round(time.time(), 3))))


def _of_original(name: str, cell: ReferenceCell) -> FinishedEvaluation | None:
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
        cell=name,
    )


def _of_quantized(name: str, cell: EvaluationCell, made: QuantizationCell) -> FinishedEvaluation | None:
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
        settings=made.key.settings,
        grid=made.key.grid,
        cell=name,
    )


def _record(evaluation: FinishedEvaluation) -> EvaluationRecord | None:
    spoken = [t for t in evaluation.transcripts if t.reference is not None and normalize(t.reference, t.language)]
    if not spoken:
        return None
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
        settings=evaluation.settings,
        grid=evaluation.grid,
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
        settings=evaluation.settings,
    )


def _place(record: EvaluationRecord | FinishedEvaluation) -> tuple[str, str, int, str, str, str, int]:
    """What a record is the measurement of; records are sorted by it."""
    return *_row(record), -1 if record.seed is None else record.seed


def _row(record: EvaluationRecord | FinishedEvaluation) -> tuple[str, str, int, str, str, str]:
    """The row of the table that a record belongs to: its place, but for the seed."""
    return record.model, record.data, -record.bits, record.format or "", record.method, record.runtime


def _layers_place(record: LayerStrengths) -> tuple[str, int, str, str, int]:
    return record.model, -record.bits, record.format or "", record.method, -1 if record.seed is None else record.seed


def _distinct(values: Sequence[T]) -> tuple[T, ...]:
    """Every value once, in an order that does not depend on theirs."""
    found = list[T]()
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(sorted(found, key=repr))
