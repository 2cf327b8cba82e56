"""The compact form of a bench's results: what tables, figures and paired intervals are made from, without transcripts and cells.

OUT/bench.json          the recipes, digests of models and data, versions, processors
OUT/evaluations.jsonl   one line per model, method, bits, seed, runtime and data set: errors of every utterance, divergence
OUT/layers.jsonl        one line per quantized model whose layers differ in strength: the strength of every layer
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sottovoce.bench.cells import TORCH, CalibrationKey, Divergence, Environment
from sottovoce.errors import DataError
from sottovoce.evaluation.wer import UtteranceScore
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.plain_data import from_plain, to_plain
from sottovoce.system.versions import Processor

MANIFEST, EVALUATIONS, LAYERS = "bench.json", "evaluations.jsonl", "layers.jsonl"
ORIGINAL = "none"  # method of the full-precision model; its bits are FLOAT_BITS
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BenchManifest:
    """What a folder of results holds.

    `recipes`: what was in each recipe file that was run into this folder, for `plan_from`; `weights` and `recordings`: digests of
    the models and of the data sets, by name; `calibrations`, `environments`, `processors`: all that were used.
    """

    format: Literal["sottovoce-bench"] = "sottovoce-bench"
    version: Literal[1] = 1
    recipes: tuple[Mapping[str, Any], ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    recordings: Mapping[str, str] = field(default_factory=dict)
    calibrations: tuple[CalibrationKey, ...] = ()
    environments: tuple[Environment, ...] = ()
    processors: tuple[Processor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UtteranceErrors:
    """Errors of the utterances of one evaluation, in columns; `looped`, `empty`, `truncated` are ids."""

    ids: tuple[str, ...]
    words: tuple[int, ...]
    substitutions: tuple[int, ...]
    insertions: tuple[int, ...]
    deletions: tuple[int, ...]
    characters: tuple[int, ...]
    character_errors: tuple[int, ...]
    looped: tuple[str, ...]
    empty: tuple[str, ...]
    truncated: tuple[str, ...]
    language: str = "en"  # in which the texts were normalized

    def __post_init__(self) -> None:
        columns = (self.words, self.substitutions, self.insertions, self.deletions, self.characters, self.character_errors)
        if any(len(column) != len(self.ids) for column in columns):
            raise DataError(f"wanted {len(self.ids)} figures in every column, one for each utterance")

    @classmethod
    def of(cls, scores: Sequence[UtteranceScore]) -> "UtteranceErrors":
        """Put the scores of utterances into columns."""
        return cls(
            ids=tuple(score.id for score in scores),
            words=tuple(score.words for score in scores),
            substitutions=tuple(score.substitutions for score in scores),
            insertions=tuple(score.insertions for score in scores),
            deletions=tuple(score.deletions for score in scores),
            characters=tuple(score.characters for score in scores),
            character_errors=tuple(score.character_errors for score in scores),
            looped=tuple(score.id for score in scores if score.looped),
            empty=tuple(score.id for score in scores if score.empty),
            truncated=tuple(score.id for score in scores if score.truncated),
            language=scores[0].language if scores else "en",
        )

    def scores(self) -> list[UtteranceScore]:
        """Return the scores of the utterances."""
        looped, empty, truncated = set(self.looped), set(self.empty), set(self.truncated)
        columns = (self.ids, self.words, self.substitutions, self.insertions, self.deletions, self.characters, self.character_errors)
        return [
            UtteranceScore(
                id=name,
                language=self.language,
                words=words,
                substitutions=substitutions,
                insertions=insertions,
                deletions=deletions,
                characters=characters,
                character_errors=character_errors,
                looped=name in looped,
                empty=name in empty,
                truncated=name in truncated,
            )
            for name, words, substitutions, insertions, deletions, characters, character_errors in zip(*columns, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One model on one data set. The original has the method "none" and 16 bits; `format`: its name, if the bench asked for it by name;
    `seed`: None where no speech was used to calibrate; `settings`: a digest of recipe, target and draw of speech, by which seeds of one
    row are known to belong together; `grid`: one of the formats of all layers and the target, by which methods compare (both None: the
    original, or of a version that did not say)."""

    model: str
    method: str
    bits: int
    seed: int | None
    data: str
    runtime: str = TORCH
    format: str | None = None
    divergence: Divergence | None = None
    settings: str | None = None
    grid: str | None = None
    utterances: UtteranceErrors


@dataclass(frozen=True, kw_only=True)
class LayerStrengths:
    """The strength of the correction in every layer of one quantized model, in the order of the model; `settings`: as in evaluations."""

    model: str
    method: str
    bits: int
    seed: int | None
    names: tuple[str, ...]
    parts: tuple[str, ...]
    strengths: tuple[float, ...]
    format: str | None = None
    settings: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchResults:
    """All that tables and figures are made from. `without_texts`: data sets that were transcribed and have no text to compare with."""

    manifest: BenchManifest = field(default_factory=BenchManifest)
    evaluations: tuple[EvaluationRecord, ...] = ()
    layers: tuple[LayerStrengths, ...] = ()
    without_texts: tuple[str, ...] = ()


def read_records(out: Path) -> BenchResults:
    """Read the compact files of a bench, empty where there are none. Raises `DataError` if one is damaged."""
    manifest = BenchManifest()
    if (out / MANIFEST).is_file():
        (manifest,) = _read(out / MANIFEST, BenchManifest, whole=True)
    return BenchResults(
        manifest=manifest,
        evaluations=_read(out / EVALUATIONS, EvaluationRecord) if (out / EVALUATIONS).is_file() else (),
        layers=_read(out / LAYERS, LayerStrengths) if (out / LAYERS).is_file() else (),
    )


def write_records(out: Path, results: BenchResults) -> None:
    """Write the compact files, each whole or not at all. The same results give the same bytes."""
    write_manifest(out, results.manifest)
    for name, rows in ((EVALUATIONS, results.evaluations), (LAYERS, results.layers)):
        with written_whole(out / name) as file:
            file.writelines(_line(row) for row in rows)


def write_manifest(out: Path, manifest: BenchManifest) -> None:
    """Write `bench.json`, whole or not at all."""
    with written_whole(out / MANIFEST) as file:
        json.dump(to_plain(manifest), file, ensure_ascii=False, indent=1)
        file.write("\n")


def _line(row: EvaluationRecord | LayerStrengths) -> str:
    return json.dumps(to_plain(row), ensure_ascii=False, separators=(",", ":")) + "\n"


def _read(file: Path, kind: type[T], *, whole: bool = False) -> tuple[T, ...]:
    try:
        text = file.read_text(encoding="utf-8")
        lines = [text] if whole else [line for line in text.split("\n") if line]  # not splitlines: ids may hold other line breaks
        return tuple(from_plain(kind, json.loads(line)) for line in lines)
    except (OSError, ValueError, RecursionError, DataError) as exc:
        raise DataError(f"{file}: is damaged or of another version ({exc}); remake it from the cells or from its recipe") from exc
