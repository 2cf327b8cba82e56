"""What the verbs are given: a quantized folder is no original."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sottovoce import api
from sottovoce.api import recognition
from sottovoce.checkpoint.load import load
from sottovoce.core.formats import format_named
from sottovoce.data.load import load_sources
from sottovoce.errors import DataError, ModelError, RecipeError
from sottovoce.evaluation.confidence import FittedConfidence, fit_scalings
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe, Rule
from tests.cli.test_cli import run
from tests.evaluation.test_confidence import sampled_confidences

RTN = Recipe(method=METHODS["rtn"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "tiny-4bit"
    api.quantize(model_folder, out, recipe=RTN)
    return out


@pytest.mark.parametrize(
    "verb",
    [
        lambda folder, out, _speech: api.quantize(folder, out, recipe=RTN),
        lambda folder, out, _speech: api.quantize(api.load(folder), out, recipe=RTN),
        lambda folder, _out, _speech: api.make_plan(folder),
        lambda folder, out, speech: api.fit(folder, out, max_size=100_000, calibration=speech),
        lambda folder, out, speech: api.tune(folder, out, calibration=speech, against=folder),
    ],
    ids=["quantize", "a loaded model", "make_plan", "fit", "tune against"],
)
def test_a_quantized_folder_is_no_original(
    verb: Callable[..., Any], folder: Path, model_folder: Path, speech_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        verb(folder, tmp_path / "out", speech_folder)
    assert str(error.value) == f"{folder}: was quantized already; give the original ({model_folder})"
    assert not (tmp_path / "out").exists()


def test_the_mark_goes_along_with_the_network(folder: Path, model_folder: Path) -> None:
    model = load(folder)
    assert model.with_network(model.network).quantized_from == str(model_folder)
    assert api.load(model_folder).quantized_from is None


def test_one_source_is_transcribed_like_a_list_of_one(model_folder: Path, speech_folder: Path) -> None:
    recognizer = api.open_recognizer(model_folder)
    (file, *_) = sorted(speech_folder.glob("*.wav")) or sorted(speech_folder.rglob("*.flac"))
    expected = api.transcribe(recognizer, [file]).transcripts
    assert len(expected) == 1
    for source in (file, str(file), load_sources([file])):
        assert [t.text for t in api.transcribe(recognizer, source).transcripts] == [t.text for t in expected]


def test_a_recognizer_has_its_runtime(model_folder: Path, speech_folder: Path) -> None:
    recognizer = api.open_recognizer(model_folder)
    for verb in (api.evaluate, api.transcribe):
        with pytest.raises(RecipeError, match="give runtime, fallback"):
            verb(recognizer, speech_folder, runtime="onnxruntime")


@pytest.mark.parametrize(
    "verb",
    [
        lambda model, speech, _out: api.evaluate(model, speech, limit=0),
        lambda model, speech, _out: api.evaluate(model, speech, limit=-3),
        lambda model, speech, out: api.quantize(model, out, calibration=speech, utterances=-1),
        lambda model, speech, out: api.fit(model, out, max_kl=1.0, calibration=speech, utterances=-5, held_out=8),
        lambda model, speech, out: api.tune(model, out, calibration=speech, held_out=0),
        lambda model, _speech, _out: api.transcribe(model, ""),
    ],
    ids=["no recordings", "a negative limit", "a negative sample", "a negative sample of a fit", "nothing held out", "an empty name"],
)
def test_counts_below_one_and_empty_names_are_refused(
    verb: Callable[..., Any], model_folder: Path, speech_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="give 1 or more|give at least 1|name of a data set is empty"):
        verb(model_folder, speech_folder, tmp_path / "out")


def test_confidences_are_fitted_without_a_recording_that_cannot_be_used(
    model_folder: Path, speech_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in (speech_folder / "manifest.jsonl").read_text().splitlines()][:4]
    lines = [row | {"audio": str(speech_folder / row["audio"])} for row in rows]
    (tmp_path / "broken.wav").write_text("no sound")
    lines[1]["audio"] = "broken.wav"
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    seen = list[tuple[int, int]]()

    def fit(_: object, heard: Sequence[object], halves: Sequence[int]) -> FittedConfidence:
        seen.append((len(heard), len(halves)))
        return fit_scalings([sampled_confidences(400, 0.5, -1.0, seed=seed) for seed in (0, 1)], (0, 1))

    monkeypatch.setattr(recognition, "fit_to_transcripts", fit)
    assert api.fit_confidence(model_folder, tmp_path).unusable == 1
    assert seen == [(3, 3)]
    code, printed, _ = run("confidence", model_folder, tmp_path, "--json")
    assert (code, json.loads(printed)["unusable"]) == (1, 1)
    assert "broken.wav" in caplog.text
    assert "it is left out" in caplog.text


def test_the_manifest_names_the_format_of_a_plan_that_was_given(model_folder: Path, tmp_path: Path) -> None:
    plan = api.make_plan(model_folder, Recipe(method=METHODS["rtn"], format=format_named("q4_0")), target="transcribe.cpp")
    api.quantize(model_folder, tmp_path / "out", recipe=RTN, plan=plan)
    assert plan.formats == (format_named("q4_0"),)
    assert api.inspect(tmp_path / "out").recipe == Recipe(method=METHODS["rtn"], format=format_named("q4_0"))


def test_the_manifest_keeps_a_recipe_whose_rules_name_every_layer(model_folder: Path, tmp_path: Path) -> None:
    rules = (Rule(part="encoder", bits=8, group_size=None), Rule(match="decoder", bits=2))
    recipe = Recipe(method=METHODS["rtn"], rules=rules)
    api.quantize(model_folder, tmp_path / "out", recipe=recipe)
    assert api.inspect(tmp_path / "out").recipe == recipe
