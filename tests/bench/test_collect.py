"""Which of the cells that lie in a folder make up its tables. The cells are made here: no model is needed to sort them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.bench import read_results, summarize, write_summary
from sottovoce.bench.cells import (
    CalibrationKey,
    CellStore,
    Divergence,
    Environment,
    EvaluationCell,
    EvaluationKey,
    EvaluationResult,
    Made,
    QuantizationCell,
    QuantizationKey,
    QuantizationResult,
    ReferenceCell,
    ReferenceKey,
    ReferenceResult,
    cell_name,
)
from sottovoce.bench.collect import finished_evaluations, prefer
from sottovoce.bench.records import BenchManifest, write_manifest
from sottovoce.bench.table import Row
from sottovoce.core.affine import Affine
from sottovoce.errors import DataError
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.quantization.layer import LayerReport
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe

MACHINE = Environment(versions={}, threads=1)
SPOKEN = ("red green blue black", "cats dogs cows hens")


def transcripts(wrong: int, *, texts: Sequence[str | None] = SPOKEN, language: str | None = None) -> tuple[Transcript, ...]:
    """Utterances of the set, of whose words the first `wrong` are wrong."""
    words = " ".join(SPOKEN).split()
    heard = ["no"] * wrong + words[wrong:]
    return tuple(
        Transcript(id=str(i), text=" ".join(heard[4 * i : 4 * i + 4]), tokens=(), reference=text, duration_s=1.0, language=language)
        for i, text in enumerate(texts)
    )


class Bench:
    """A folder of results to which cells are added, one second after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.clock = folder, CellStore(folder), 0.0
        write_manifest(folder, BenchManifest())

    def made(self) -> Made:
        self.clock += 1
        return Made(finished=self.clock)

    def original(self, data: str = "test", *, weights: str = "w", wrong: int = 0, **of: object) -> str:
        """Add the original on a set; return the name of the cell."""
        key = ReferenceKey(model="m", weights=weights, data=data, recordings="r", language=None, environment=MACHINE)
        heard = transcripts(wrong, **of)  # type: ignore[arg-type]
        self.store.write(ReferenceCell(key=key, result=ReferenceResult(transcripts=heard), made=self.made()))
        return cell_name(key)

    def quantized(
        self,
        recipe: Recipe,
        seed: int,
        wrong: int,
        *,
        name: str = "fade",
        utterances: int = 8,
        target: str = "torch",
        strengths: Sequence[float] = (),
    ) -> str:
        """Add a quantized model and its evaluation; return the name of the latter."""
        layers = tuple(
            LayerReport(
                name=f"layer{i}",
                part="decoder mlp",
                bits=4,
                bits_per_weight=4.5,
                weights=64,
                vulnerability=0.1,
                outlier_ratio=2.0,
                strength=own,
            )
            for i, own in enumerate(strengths)
        )
        drawn = CalibrationKey(data="calibration", seed=seed, utterances=utterances, recordings=f"{seed}", language=None, batch_size=8)
        key = QuantizationKey(
            model="m", weights="w", method=name, bits=4, recipe=recipe, target=target, calibration=drawn, environment=MACHINE
        )
        self.store.write(QuantizationCell(key=key, result=QuantizationResult(layers=layers), made=self.made()))
        own = EvaluationKey(quantization=cell_name(key), data="test", recordings="r", language=None, environment=MACHINE)
        result = EvaluationResult(transcripts=transcripts(wrong), divergence=Divergence(mean=0.1, median=0.1, tokens=8))
        self.store.write(EvaluationCell(key=own, result=result, made=self.made()))
        return cell_name(own)

    def row(self, method: str = "fade") -> Row:
        (row,) = (row for row in summarize(read_results(self.folder).evaluations) if row.method == method)
        return row


FLOAT_HEAD, SAME_HEAD = (Recipe(method=METHODS["fade"], format=Affine(bits=4), head_bits=bits) for bits in (16, None))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "results")
    made.original()
    return made


@pytest.mark.parametrize(
    ("recipe", "of"),
    [(SAME_HEAD, {}), (FLOAT_HEAD, {"utterances": 16}), (FLOAT_HEAD, {"target": "onnxruntime"})],
    ids=["another recipe", "other speech", "another target"],
)
def test_a_row_has_the_seeds_of_one_setting(bench: Bench, recipe: Recipe, of: dict[str, int]) -> None:
    for seed in (0, 1):
        bench.quantized(FLOAT_HEAD, seed, wrong=2)
    bench.quantized(recipe, 0, wrong=4, **of)  # type: ignore[arg-type]
    row = bench.row()
    assert (row.seeds, row.wer, row.deviation) == (1, 4 / 8, 0)


def test_seeds_of_one_setting_stand_in_one_row(bench: Bench) -> None:
    bench.quantized(SAME_HEAD, 0, wrong=7)
    for seed, wrong in ((0, 2), (1, 4)):
        bench.quantized(FLOAT_HEAD, seed, wrong)
    assert (bench.row().seeds, bench.row().wer) == (2, 3 / 8)


def test_what_is_asked_for_again_counts_again(bench: Bench) -> None:
    first = [bench.quantized(FLOAT_HEAD, seed, wrong=2) for seed in (0, 1)]
    other = bench.quantized(SAME_HEAD, 0, wrong=4)
    before = {file: file.read_bytes() for file in bench.store.folder.iterdir()}
    prefer(bench.store, [other])
    assert before == {file: file.read_bytes() for file in bench.store.folder.iterdir()}  # it counts already
    prefer(bench.store, first)
    assert (bench.row().seeds, bench.row().wer) == (2, 2 / 8)
    assert {evaluation.cell for evaluation in finished_evaluations(bench.store.all()) if evaluation.method == "fade"} == set(first)


def test_records_of_other_settings_go_with_their_row(bench: Bench) -> None:
    for seed in (0, 1):
        bench.quantized(FLOAT_HEAD, seed, wrong=2)
    write_summary(bench.folder)
    for file in bench.store.folder.iterdir():
        file.unlink()
    assert bench.row().seeds == 2
    bench.original()
    bench.quantized(SAME_HEAD, 0, wrong=4)
    assert (bench.row().seeds, bench.row().wer) == (1, 4 / 8)


def test_strengths_of_other_settings_go_with_their_row(bench: Bench) -> None:
    for seed in (0, 1):
        bench.quantized(FLOAT_HEAD, seed, wrong=2, strengths=(0.1, 0.2))
    write_summary(bench.folder)
    for file in bench.store.folder.iterdir():
        file.unlink()
    assert {record.seed for record in read_results(bench.folder).layers} == {0, 1}
    bench.original()
    bench.quantized(SAME_HEAD, 0, wrong=4, strengths=(0.5, 0.6, 0.7))
    assert [record.strengths for record in read_results(bench.folder).layers] == [(0.5, 0.6, 0.7)]


def test_an_original_that_is_asked_for_again_counts_again(bench: Bench) -> None:
    first = [bench.original(), bench.quantized(FLOAT_HEAD, 0, wrong=2)]
    bench.original(weights="changed", wrong=3)
    assert {row.method: row.wer for row in summarize(read_results(bench.folder).evaluations)} == {"none": 3 / 8}
    prefer(bench.store, first)
    assert {row.method: row.wer for row in summarize(read_results(bench.folder).evaluations)} == {"none": 0, "fade": 2 / 8}


@pytest.mark.parametrize(
    ("recipe", "target"), [(replace(SAME_HEAD, method=METHODS["rtn"]), "torch"), (replace(FLOAT_HEAD, method=METHODS["rtn"]), "mlx")]
)
def test_there_is_no_gain_over_rounding_of_another_head_or_target(bench: Bench, recipe: Recipe, target: str) -> None:
    bench.quantized(recipe, 0, wrong=4, name="rtn", target=target)
    bench.quantized(FLOAT_HEAD, 0, wrong=2)
    assert (bench.row().gain, bench.row().reliability) == (None, None)


def test_a_method_on_a_grid_of_its_own_has_no_gain_over_another_grid(bench: Bench) -> None:
    rounded = replace(FLOAT_HEAD, method=METHODS["rtn"])
    bench.quantized(rounded, 0, wrong=4, name="rtn")
    bench.quantized(FLOAT_HEAD, 0, wrong=2)
    bench.quantized(replace(FLOAT_HEAD, format=Affine(bits=4, group_size=128)), 0, wrong=2, name="fade128")
    assert bench.row().gain == 0.5
    assert (bench.row("fade128").gain, bench.row("fade128").reliability) == (None, None)


def test_a_set_without_texts_is_named_and_leaves_the_others(bench: Bench) -> None:
    bench.original("silent", texts=[None, None])
    summary = write_summary(bench.folder)
    assert {row.data for row in summary.rows} == {"test"}
    assert summary.notes[0] == "silent: no utterance has a text with words, so it has no word error rate and no row"


def test_nothing_but_sets_without_texts_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "results")
    bench.original("silent", texts=[None, None])
    with pytest.raises(DataError, match="silent: no utterance has a text.*give data with texts"):
        write_summary(bench.folder)


def test_a_reference_is_empty_by_the_rules_of_its_language(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "results")
    bench.original(texts=["Um.", "dois"], language="pt")  # in English "um" is left out
    assert bench.row("none").words == 2
