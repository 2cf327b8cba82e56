"""`evaluate` and `score` on the command line: languages, silence, reference systems without words, JSON without NaN."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from sottovoce import api
from sottovoce.backends.agreement import compare
from sottovoce.cli.main import main
from sottovoce.cli.options import print_json
from sottovoce.data.load import load_data
from sottovoce.errors import DataError, ExportError
from sottovoce.evaluation.recognizer import Recognition, TorchRecognizer
from sottovoce.evaluation.transcripts import Transcript, read_transcripts, write_transcripts
from sottovoce.models.batching import Encoded
from tests.conftest import make_tiny


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def strict(text: str) -> dict:
    """Parse JSON as other languages do, which have no NaN."""
    content: dict = json.loads(text, parse_constant=refuse_constant)
    return content


def written(path: Path, *rows: tuple[str, str, str | None]) -> Path:
    """A transcript file of (reference, text, language)."""
    transcripts = [
        Transcript(id=str(i), text=text, tokens=(), duration_s=1.0, reference=reference, language=language)
        for i, (reference, text, language) in enumerate(rows)
    ]
    write_transcripts(path, transcripts)
    return path


def test_score_by_the_language_of_utterance_then_option(tmp_path: Path) -> None:
    german = ("um den See, die Hüte", "den See, die Hute", None)
    file = written(tmp_path / "t.jsonl", german)
    assert strict(run("score", file, "--json", "--language", "de")[1])["wer_percent"] == pytest.approx(40)
    assert strict(run("score", file, "--json", "--language", "German")[1])["languages"] == ["de"]
    named = written(tmp_path / "n.jsonl", (*german[:2], "de-AT"))
    assert strict(run("score", named, "--json", "--language", "en")[1])["wer_percent"] == pytest.approx(40)


def test_tables_and_comparisons_lead_with_characters(tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", ("東京は首都です", "東京は主都です", "ja"), ("今日は晴れ", "今日は晴れ", "ja"))
    other = written(tmp_path / "o.jsonl", ("東京は首都です", "東京は首都です", "ja"), ("今日は晴れ", "明日は晴れ", "ja"))
    _, table, _ = run("score", file, "--against", other)
    heading = table.splitlines()[1]
    assert heading.index("CER") < heading.index("95 % interval") < heading.index("WER")
    assert "points of CER" in table
    content = strict(run("score", file, "--against", other, "--json")[1])
    assert (content["metric"], content["rate_percent"]) == ("CER", pytest.approx(100 / 12))
    assert content["interval_percent"][0] <= content["rate_percent"] <= content["interval_percent"][1]
    assert (content["paired"]["better"], content["paired"]["worse"]) == (["1"], ["0"])


def test_the_reference_system_must_recognize_words(tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", ("cats and dogs", "", "en"))
    deaf = written(tmp_path / "o.jsonl", ("cats and dogs", "...", "en"))
    for options in ([], ["--gate"], ["--json"]):
        code, printed, complaint = run("score", file, "--against", deaf, *options)
        assert (code, printed) == (1, "")
        assert "recognized no word in 1 utterances with words, so a comparison with it proves nothing" in complaint


@pytest.mark.parametrize(("ours", "theirs", "metric"), [("zh", "en", "CER"), ("en", "zh", "WER"), (None, "ja", "WER")])
def test_both_are_scored_in_the_languages_of_the_model(ours: str | None, theirs: str, metric: str, tmp_path: Path) -> None:
    said = "今天天气很好"
    file = written(tmp_path / "t.jsonl", (said, "今天天气", ours))
    other = written(tmp_path / "o.jsonl", (said, "今天", theirs), ("人", "", theirs))
    content = strict(run("score", file, "--against", other, "--json")[1])
    reference = content["reference"]
    assert (content["metric"], reference["metric"]) == (metric, metric)
    assert (content["languages"], content["words"]) == (reference["languages"], reference["words"])
    assert content["rate_percent"] - reference["rate_percent"] == pytest.approx(content["paired"]["difference_percent"])
    (row,) = (line for line in run("score", file, "--against", other)[1].splitlines() if line.startswith("│ original"))
    assert f"{reference['rate_percent']:.2f} %" in row


def test_silence_alone_is_scored_and_gated(tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", ("", "thank you", "en"), ("", "", "en"))
    quiet = written(tmp_path / "o.jsonl", ("", "", "en"), ("", "...", "en"))
    code, printed, complaint = run("score", file, "--json")
    assert code == 0, complaint
    assert (strict(printed)["spoken_silence"], strict(printed)["invented_words"], strict(printed)["wer_percent"]) == (["0"], 2, None)
    assert "2 utterances without words; 2 words recognized in them" in run("score", file)[1]
    code, _, complaint = run("score", file, "--against", quiet, "--gate")
    assert code == 3
    assert "added, spoken silence (1): 0" in complaint
    assert run("score", quiet, "--against", file, "--gate")[0] == 0


def test_evaluate_writes_the_language_it_scored_in(model_folder: Path, tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(12000)
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "Hüte"}) + "\n")
    saved = tmp_path / "t.jsonl"
    code, printed, complaint = run("evaluate", model_folder, tmp_path, "--json", "--save", saved)
    assert code == 0, complaint
    assert strict(printed)["languages"] == ["en"]
    assert [transcript.language for transcript in read_transcripts(saved)] == ["en"]


def test_transcripts_from_a_file_took_no_time(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    command = ("evaluate", model_folder, speech_folder, "--limit", 2, "--json", "--save", tmp_path / "t.jsonl")
    made, read = (strict(run(*command)[1]) for _ in range(2))
    times = ("rtfx", "encoder_s", "decoder_s")
    assert all(made[name] > 0 for name in times)
    assert [read[name] for name in times] == [None] * 3
    assert (made["wer_percent"], read["audio_s"]) == (read["wer_percent"], 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_null_for_what_is_no_number(value: float, capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1.5, value, {"b": (value, "NaN", 3)}], "c": True})
    assert strict(capsys.readouterr().out) == {"a": [1.5, None, {"b": [None, "NaN", 3]}], "c": True}


class Deaf(TorchRecognizer):
    def recognize_encoded(self, encoded: Encoded, language: str | None, *, confidence: bool = False) -> list[Recognition]:
        return [Recognition(text="...", tokens=(1,), ended=True) for _ in encoded.states]


class Detecting(TorchRecognizer):
    """Recognizes one text, and finds one language."""

    def __init__(self, text: str, language: str) -> None:
        super().__init__(make_tiny())
        self.text, self.language = text, language

    def recognize_encoded(self, encoded: Encoded, language: str | None, *, confidence: bool = False) -> list[Recognition]:
        return [Recognition(text=self.text, tokens=(1,), ended=True, language=self.language) for _ in encoded.states]


def test_an_evaluation_scores_the_original_in_the_languages_of_the_model(speech_folder: Path) -> None:
    data = load_data(speech_folder).take(2)
    found = api.evaluate(Detecting("words", "zh"), data, against=Detecting("words of", "en"), language="auto")
    assert found.reference is not None
    assert (found.score.metric, found.reference.score.metric) == ("CER", "CER")
    assert found.score.paired is not None
    assert found.score.rate - found.reference.score.rate == pytest.approx(found.score.paired.difference)
    assert [t.language for t in found.reference.transcription.transcripts] == ["en", "en"]


def test_an_export_is_not_compared_with_a_model_that_recognizes_nothing(speech_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchRecognizer, "recognize_encoded", Deaf.recognize_encoded)
    with pytest.raises(ExportError, match=r"tiny recognizes no word of .* \(2 recordings\) .*proves nothing; the file was deleted"):
        compare(make_tiny(), "onnxruntime", Path("never-opened"), load_data(speech_folder).take(2), None)


def test_the_reference_of_an_evaluation_must_recognize_words(speech_folder: Path) -> None:
    with pytest.raises(DataError, match="recognized no word in 3 utterances"):
        api.evaluate(make_tiny(), load_data(speech_folder).take(3), against=Deaf(make_tiny()))
