"""What is refused before a model is loaded: there is no model in most of these tests, so that loading it would be another error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce import api
from sottovoce.backends.export import refuse_existing_export
from sottovoce.backends.registry import BACKENDS
from sottovoce.bench.run import run_bench
from sottovoce.errors import DataError, ModelError, OutputError
from sottovoce.evaluation.certificate import CERTIFICATE
from sottovoce.evaluation.recognizer import RecognitionBatch, TorchRecognizer
from sottovoce.evaluation.transcripts import TRANSCRIPTS, Transcript, write_transcripts
from sottovoce.quantization.plan_file import PLAN, write_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.report.page import PAGE, write_report
from tests.cli.test_cli import run
from tests.conftest import make_tiny, planned

NONE = "./no-model"
TRANSCRIPT = Transcript(id="a", text="words", tokens=(1,), duration_s=1.0)


@pytest.fixture
def speech(speech_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(speech_folder, tmp_path / "speech"))


def evaluate(data: Any, **options: Any) -> object:
    return api.evaluate(NONE, data, against=NONE, **options)


def transcribe(data: Any, **options: Any) -> object:
    return api.transcribe(NONE, [data], **options)


def certify(data: Any, **options: Any) -> object:
    return api.certify(NONE, data, against=NONE, **options)


def choose(data: Any, **options: Any) -> object:
    return api.choose_smallest([NONE, "./other"], data, against=NONE, limits={"changed": 0.1}, **options)


def fit(data: Any, **options: Any) -> object:
    return api.fit(NONE, data.parent / "out", max_kl=1.0, calibration=data, **options)


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        (evaluate, "save"),
        (evaluate, "save_reference"),
        (transcribe, "save"),
        (certify, "save"),
        (certify, "save_reference"),
        (certify, "out"),
        (choose, "out"),
        (choose, "save_reference"),
        (fit, "save_plan"),
    ],
)
@pytest.mark.parametrize("name", ["speech/manifest.jsonl", "speech/u0.wav", "speech", "notes.md/t.jsonl", "notes.md", "heard.json"])
def test_no_output_replaces_what_it_is_not(verb: Callable[..., object], option: str, name: str, speech: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# mine\n")
    (tmp_path / "heard.json").write_text(json.dumps({"id": "a", "text": "of another program"}))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(OutputError, match=r"already|is a folder|is a file") as caught:
        verb(speech, **{option: tmp_path / name})
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_two_outputs_of_one_name(speech: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="reads or writes this file already"):
        evaluate(speech, save=tmp_path / "t.jsonl", save_reference=tmp_path / "t.jsonl")
    with pytest.raises(OutputError, match="reads or writes this file already"):
        fit(speech, save_plan=tmp_path / "out")


def test_nothing_is_written_among_the_files_of_a_model(speech: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(OutputError, match="lies in .*model, the folder of a model"):
        api.evaluate(tmp_path / "model", speech, save=tmp_path / "model" / "t.jsonl")
    code, _, shown = run(
        "transcribe", tmp_path / "model", speech, "--json", "--confidence", "raw", "--save", tmp_path / "model" / "t.jsonl"
    )
    assert (code, "the folder of a model" in shown) == (1, True)


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    transcripts, plan, page, other = (tmp_path / name for name in ("t.jsonl", "plan.json", "page.html", "other.json"))
    write_transcripts(transcripts, [TRANSCRIPT])
    write_plan(plan, planned(make_tiny(), Recipe()))
    page.write_text("<!DOCTYPE html>\n<title>mine</title>")
    other.write_text('{"audio": "a.wav", "id": "a", "text": "words", "tokens": [1], "duration_s": 1.0}')
    held = [[kind.holds(file) for file in (transcripts, plan, page, other)] for kind in (TRANSCRIPTS, PLAN, PAGE, CERTIFICATE)]
    assert held == [[True, False, False, False], [False, True, False, False], [False, False, True, False], [False] * 4]


@pytest.mark.parametrize("name", ["a.wav", "notes.md", "ours.jsonl", "notes.md/page.html"])
def test_a_report_replaces_pages_only(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "notes.md").write_text("# mine\n")
    write_transcripts(tmp_path / "ours.jsonl", [TRANSCRIPT])
    with pytest.raises(OutputError):
        write_report(tmp_path / "folder", transcripts=tmp_path / "ours.jsonl", html=tmp_path / name)


def test_a_plan_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the plan cannot be written"):
        write_plan(tmp_path, planned(make_tiny(), Recipe()))


def test_an_export_replaces_exports_only(tmp_path: Path) -> None:
    sound = tmp_path / "speech.wav"
    sound.write_bytes(b"RIFF")
    with pytest.raises(OutputError, match="is not an export for transcribe.cpp, so it is not replaced"):
        refuse_existing_export(sound, BACKENDS["transcribe.cpp"], overwrite=True)
    (tmp_path / "old.gguf").write_bytes(b"GGUF")
    refuse_existing_export(tmp_path / "old.gguf", BACKENDS["transcribe.cpp"], overwrite=True)


def test_a_bench_replaces_results_only(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"models": ["tiny"], "methods": ["rtn"], "bits": [4], "data": ["speech"], "seeds": [0]}
    (tmp_path / "results.md").write_text("mine")
    with pytest.raises(OutputError, match="holds results.md, which is of no bench"):
        run_bench(recipe, tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        run_bench(recipe, tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == "mine"


class Busy(TorchRecognizer):
    def recognize(self, recordings: object, *rest: object, **options: object) -> RecognitionBatch:
        raise AssertionError("it transcribes")


def test_a_misspelt_model_is_told_before_the_reference_transcribes(speech: Path) -> None:
    with pytest.raises(ModelError, match="no-model"):
        api.evaluate(NONE, speech, against=Busy(make_tiny()))
    with pytest.raises(AssertionError, match="it transcribes"):
        api.evaluate(make_tiny(), speech, against=Busy(make_tiny()))


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        (evaluate, {}, "an error rate needs what was spoken"),
        (certify, {"limits": {"worse": 0.1}}, "a limit of worse needs what was spoken"),
        (certify, {"limits": {"changed": 0.1, "wer_increase": 0.1}}, "a limit of wer_increase needs what was spoken"),
        (lambda data: api.fit_confidence(NONE, data), {}, "a fit of confidences needs what was spoken"),
    ],
)
def test_texts_that_are_missing(verb: Callable[..., object], options: dict[str, Any], said: str, speech: Path) -> None:
    (speech / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match=said) as caught:
        verb(speech, **options)
    assert 'JSON lines with "audio" and "text"' in str(caught.value)
    assert "without texts" in str(caught.value) or "need no texts" in str(caught.value)


def test_quantizing_onto_what_is_there(speech: Path, tmp_path: Path) -> None:
    for words in (("--calibration", speech), ("--method", "rtn")):
        code, _, shown = run("quantize", NONE, tmp_path, *words)
        assert (code, "exists already" in shown) == (1, True)
    with pytest.raises(OutputError, match="the name of the output is empty"):
        api.quantize(NONE, "", calibration=speech)


def test_speech_of_silence_alone_needs_no_words(speech: Path) -> None:
    """An empty text is one: nothing is said there."""
    rows = [json.dumps({"audio": f"u{i}.wav", "text": ""}) for i in range(2)]
    (speech / "manifest.jsonl").write_text("\n".join(rows))
    with pytest.raises(ModelError):
        evaluate(speech)
