"""`certify` and `choose_smallest`: folds are kept apart, looks are counted, the file that ships is the one that is certified."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from sottovoce import api
from sottovoce.api import certification, certified_speech
from sottovoce.api.certification import certify, choose_smallest
from sottovoce.api.certified_speech import recording_hashes
from sottovoce.checkpoint.certificates import BEGIN, store_certificate
from sottovoce.checkpoint.manifest import MANIFEST, read_manifest, write_manifest, write_sealed
from sottovoce.cli.main import main
from sottovoce.core.affine import Affine
from sottovoce.data.dataset import Utterance
from sottovoce.data.load import load_data
from sottovoce.errors import DataError, OutputError, RecipeError
from sottovoce.evaluation.certificate import Certificate, read_certificate, write_certificate
from sottovoce.evaluation.certificate_words import assumptions, sentences
from sottovoce.evaluation.ledger import default_ledger
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from sottovoce.report.page import folder_page
from tests.conftest import make_tiny

EIGHT_BITS = Recipe(format=Affine(bits=8, group_size=32), method=method_named("gptq"))


def write_speech(folder: Path, seed: int, count: int, speakers: Sequence[str | None]) -> Path:
    folder.mkdir(parents=True)
    generator, rows = np.random.default_rng(seed), []
    for i in range(count):
        samples = np.convolve(generator.standard_normal(12000 + 1000 * i), np.hanning(3 + 2 * i), mode="same")
        soundfile.write(folder / f"r{i}.wav", 0.3 * samples / np.abs(samples).max(), 16000)
        row = {"id": f"r{i}", "audio": f"r{i}.wav", "text": f"words of number {i}", "speaker": speakers[i % len(speakers)]}
        rows.append({key: value for key, value in row.items() if value is not None})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("held") / "held-out", 5, 6, ["anna", "bert", "s1"])


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, speech_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("certified") / "tiny-8bit"
    api.quantize(model_folder, folder, recipe=EIGHT_BITS, calibration=speech_folder)
    return folder


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("rounded") / "tiny-2bit"
    api.quantize(model_folder, folder, recipe=Recipe(format=Affine(bits=2, group_size=32), method=method_named("rtn")))
    return folder


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOTTOVOCE_LEDGER", str(tmp_path / "state" / "looks.jsonl"))
    return tmp_path / "state" / "looks.jsonl"


class Scripted:
    """A recognizer that says what the length of a recording tells; one of 2 bits says something else."""

    max_duration_s = 30.0

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)

    @property
    def stored_bytes(self) -> int:
        return sum(file.stat().st_size for file in Path(self.source).glob("*.safetensors"))

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        said = "nothing of this" if "2bit" in self.source else "words that were"
        recognitions = [Recognition(text=f"{said} {len(r)}", tokens=(), ended=True, language=language or "en") for r in recordings]
        return RecognitionBatch(recognitions=recognitions, encoder_s=0, decoder_s=0)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certification, "open_recognizer", lambda model, *_, **__: Scripted(model))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory, quantized: Path, model_folder: Path, held_out: Path) -> Certificate:
    ledger = tmp_path_factory.mktemp("ledger") / "looks.jsonl"
    return certify(quantized, held_out, against=model_folder, ledger=ledger)


def test_a_certificate_of_a_folder(certificate: Certificate, quantized: Path, model_folder: Path, tmp_path: Path) -> None:
    assert (certificate.runtime, certificate.calibration, certificate.earlier_looks) == ("torch", "disjoint", 0)
    assert (certificate.checkpoint, certificate.reference) == (quantized.name, model_folder.name)  # paths would be published
    assert certificate.digest == read_manifest(quantized).files["model.safetensors"].sha256
    assert certificate.shared_speakers == ("s1",)
    (corpus,) = certificate.corpora
    assert (corpus.name, corpus.utterances, corpus.speakers, corpus.unnamed) == ("held-out", 6, 3, 0)
    assert corpus.seconds == pytest.approx(sum(12000 + 1000 * i for i in range(6)) / 16000, abs=1e-3)
    assert {s.unit for s in certificate.statements} == {"utterance", "word", "speaker"}
    assert certificate.statement("worse") is not None
    words = " ".join((*sentences(certificate), *assumptions(certificate)))
    for said in ("held-out", "6 utterances", "3 speakers", " en", "greedy", "95 %", "hashes were compared", "s1"):
        assert said in words
    write_certificate(tmp_path / "c.json", certificate)
    assert read_certificate(tmp_path / "c.json") == certificate
    (tmp_path / "c.json").write_text('{"checkpoint": 1}')
    with pytest.raises(DataError, match="is not a certificate"):
        read_certificate(tmp_path / "c.json")


@pytest.mark.usefixtures("scripted")
def test_few_utterances_are_named_before_the_work(model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certify(model_folder, write_speech(tmp_path / "few", 7, 3, ["anna"]), against=model_folder)
    assert "3 utterances bound little: even if nothing changes, the bound is 63 % of utterances; give 59 or more" in caplog.text
    caplog.clear()
    certification._name_few(SimpleNamespace(data=range(59)), SimpleNamespace(confidence=0.95, limits={}))  # type: ignore[arg-type]
    assert not caplog.text


@pytest.mark.parametrize(
    ("limit", "advice"), [(0.1, "give 29 or more, or a larger limit"), (0.39, "give 7 or more"), (0.0, "give a limit above 0")]
)
def test_a_limit_that_cannot_be_shown_is_refused_before_the_work(
    model_folder: Path, held_out: Path, limit: float, advice: str, ledger: Path
) -> None:
    with pytest.raises(DataError, match=f"cannot be shown with 6 utterances: even without a case the bound is 39.3 %; {advice}"):
        certify(model_folder, held_out, against=model_folder, limits={"looped": limit})
    assert not ledger.exists()  # nobody has looked


@pytest.mark.usefixtures("scripted")
def test_a_limit_that_just_can_be_shown_is_tried(model_folder: Path, held_out: Path) -> None:
    found = certify(model_folder, held_out, against=model_folder, limits={"looped": 0.394})
    assert not found.exceeded({"looped": 0.394})


@pytest.mark.usefixtures("scripted")
def test_a_certificate_that_cannot_be_stored_was_printed(quantized: Path, model_folder: Path, held_out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OutputError("the disk is full")

        patch.setattr("sottovoce.checkpoint.certificates.store_certificate", full)
        code, printed, shown = run("certify", quantized, "--against", model_folder, "--audio", held_out, "--store")
    assert (code, "On speech like held-out" in printed) == (1, True)
    assert "the disk is full" in shown


@pytest.mark.usefixtures("scripted")
def test_a_model_that_is_its_own_original_changes_nothing(model_folder: Path, held_out: Path) -> None:
    found = certify(model_folder, held_out, against=model_folder)
    assert found.calibration == "unknown"
    changed = found.statement("changed")
    assert changed is not None
    assert (changed.estimate, changed.bound) == (0, pytest.approx(1 - 0.05 ** (1 / 6)))


@pytest.mark.usefixtures("scripted")
def test_calibration_speech_is_refused_whatever_its_name(quantized: Path, model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was calibrated on 12 of these recordings"):
        certify(quantized, speech_folder, against=model_folder)
    disguised = tmp_path / "disguised"
    disguised.mkdir()
    samples, rate = soundfile.read(speech_folder / "u3.wav", dtype="int16")
    soundfile.write(disguised / "another name.flac", samples, rate)
    with pytest.raises(DataError, match="was calibrated on 1 of these recordings, another name"):
        certify(quantized, disguised, against=model_folder)
    assert not default_ledger().exists()  # what was refused was not looked at


@pytest.mark.usefixtures("scripted")
def test_folders_that_know_their_speech_by_name_only(quantized: Path, model_folder: Path, held_out: Path, tmp_path: Path) -> None:
    """As versions before wrote them: the manifest has no hashes."""
    older = Path(shutil.copytree(quantized, tmp_path / "older"))
    content = json.loads((older / MANIFEST).read_text())
    for key in ("recordings", "speakers"):
        del content["calibration"][key]
    for key in ("certificates", "chosen_on"):
        del content[key]
    write_sealed(older, content)
    assert certify(older, held_out, against=model_folder).calibration == "unknown"
    manifest = read_manifest(older)
    assert manifest.calibration is not None
    write_manifest(older, replace(manifest, calibration=replace(manifest.calibration, utterances=("elsewhere/r2",))))
    with pytest.raises(DataError, match="was calibrated on 1 of these recordings, r2"):
        certify(older, held_out, against=model_folder)


@pytest.mark.usefixtures("scripted")
def test_speech_that_chose_a_folder_is_refused(quantized: Path, model_folder: Path, held_out: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "chosen"))
    hashes = recording_hashes(held_out)
    write_manifest(folder, replace(read_manifest(folder), chosen_on=hashes[:2]))
    with pytest.raises(DataError, match="was chosen by 2 of these recordings"):
        certify(folder, held_out, against=model_folder)


@pytest.mark.usefixtures("scripted")
def test_speech_that_is_none(quantized: Path, model_folder: Path, held_out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no utterances"):
        certify(quantized, tmp_path / "empty", against=model_folder)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match="no recording can be used"):
        certify(quantized, broken, against=model_folder)
    shutil.copy(held_out / "r0.wav", broken / "b.wav")
    shutil.copy(held_out / "r0.wav", broken / "c.wav")
    with pytest.raises(DataError, match="is the same recording as b"):
        certify(quantized, broken, against=model_folder)
    (broken / "c.wav").unlink()
    found = certify(quantized, broken, against=model_folder)
    assert (found.utterances, list(found.left_out)) == (1, ["a"])
    assert str(tmp_path) not in str(found.left_out)
    assert "a.wav" in found.left_out["a"]


def test_what_cannot_be_used_is_named_without_its_path(tmp_path: Path) -> None:
    left_out = dict[str, str]()
    for folder in ("one", "two"):
        file = tmp_path / folder / "a.wav"
        certified_speech._leave_out(left_out, Utterance(id=str(file), audio=file), f"{file}: cannot be read")
    assert left_out == {"a.wav": "a.wav: cannot be read", "a.wav (2)": "a.wav: cannot be read"}
    assert certified_speech._corpus_name("openslr/librispeech_asr:clean:test") == "openslr/librispeech_asr:clean:test"
    assert certified_speech._corpus_name("/home/me/speech") == "speech"


@pytest.mark.usefixtures("scripted")
def test_certificates_against_two_originals_of_one_name_are_two(
    quantized: Path, model_folder: Path, rounded: Path, held_out: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "kept"))
    for version, model in (("v1", model_folder), ("v2", rounded)):
        shutil.copytree(model, tmp_path / version / "original")
        for _ in range(2):
            store_certificate(folder, certify(folder, held_out, against=tmp_path / version / "original"))
    assert [certificate.reference for certificate in read_manifest(folder).certificates] == ["original", "original"]


@pytest.mark.usefixtures("scripted")
def test_one_speaker_has_no_bound_over_speakers(quantized: Path, model_folder: Path, tmp_path: Path) -> None:
    alone = certify(quantized, write_speech(tmp_path / "one", 6, 3, ["anna"]), against=model_folder)
    assert "speaker" not in {s.unit for s in alone.statements}
    assert "about these speakers only" in " ".join(assumptions(alone))
    both = certify(quantized, [tmp_path / "one", write_speech(tmp_path / "two", 7, 4, ["anna", None])], against=model_folder)
    assert [(c.name, c.speakers, c.unnamed) for c in both.corpora] == [("one", 1, 0), ("two", 1, 2)]
    # One name in two corpora is two people.
    assert next(s for s in both.statements if s.unit == "speaker").n == 2


@pytest.mark.usefixtures("scripted")
def test_a_second_look_with_another_setting_is_counted(
    quantized: Path, rounded: Path, model_folder: Path, held_out: Path, ledger: Path
) -> None:
    def look(folder: Path, **settings: object) -> int:
        return certify(folder, held_out, against=model_folder, **settings).earlier_looks  # type: ignore[arg-type]

    assert [look(quantized), look(quantized)] == [0, 0]
    assert look(rounded) == 1
    assert look(quantized, confidence=0.9) == 2
    said = " ".join(assumptions(certify(rounded, held_out, against=model_folder)))
    assert "before: 2" in said
    assert "its confidence is 85 %" in said
    assert len(ledger.read_text().splitlines()) == 3
    ledger.write_text("{}\n")
    with pytest.raises(DataError, match="ledger of looks"):
        look(quantized)


def test_a_file_of_another_runtime(held_out: Path, speech_folder: Path, rounded: Path, tmp_path: Path) -> None:
    """The certificate is of the very bytes that `export` writes, whether the file is named or the folder with its runtime."""
    pytest.importorskip("onnxruntime")
    model, model_folder, quantized = make_tiny(layers=1), tmp_path / "model", tmp_path / "quantized"
    model.network.save_pretrained(model_folder)
    model.processor.save_pretrained(model_folder)
    api.quantize(model_folder, quantized, recipe=EIGHT_BITS, calibration=speech_folder)
    exported = api.export(quantized, "onnxruntime", tmp_path / "onnx", verify=False).file
    known = certify(exported, held_out, against=model_folder, folder=quantized)
    assert (known.runtime, known.calibration) == ("onnxruntime", "disjoint")
    files = sorted(file for file in exported.rglob("*") if file.is_file())
    lines = "".join(f"{sha256(file.read_bytes()).hexdigest()}  {file.relative_to(exported)}\n" for file in files)
    assert known.digest == sha256(lines.encode()).hexdigest()
    same = certify(quantized, held_out, against=model_folder, runtime="onnxruntime")
    assert (same.digest, same.statements, same.earlier_looks) == (known.digest, known.statements, 0)
    assert certify(exported, held_out, against=model_folder).calibration == "unknown"
    with pytest.raises(DataError, match="was calibrated on"):
        certify(exported, speech_folder, against=model_folder, folder=quantized)
    with pytest.raises(RecipeError, match="not a folder written by sottovoce"):
        certify(exported, held_out, against=model_folder, folder=model_folder)
    with pytest.raises(RecipeError, match="was not exported from .*tiny-2bit"):
        certify(exported, held_out, against=model_folder, folder=rounded)


@pytest.mark.usefixtures("scripted")
def test_the_smallest_that_passes_is_chosen(
    quantized: Path, rounded: Path, model_folder: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[str]()
    whole = certification._certificate

    def watched(file: object, *arguments: object) -> Certificate:
        tried.append(Path(file.name).name)  # type: ignore[attr-defined]
        return whole(file, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(certification, "_certificate", watched)
    candidates = [rounded, model_folder, quantized]
    choice = choose_smallest(candidates, held_out, against=model_folder, limits={"disagreement": 0.99})
    assert [Path(c.checkpoint).name for c in choice.candidates] == ["tiny", "tiny-8bit", "tiny-2bit"]
    assert [c.bytes for c in choice.candidates] == sorted((c.bytes for c in choice.candidates), reverse=True)
    passing = [c for c in choice.candidates if c.certificate and not c.exceeded]
    assert choice.chosen == passing[-1]
    assert choice.chosen is not None
    assert choice.chosen.certificate is not None
    assert "chosen out of 3" in sentences(choice.chosen.certificate)[0]
    assert choice.candidates[-1].exceeded == ("disagreement",)
    # The first failure ends it: what is smaller is not even transcribed.
    tried.clear()
    strict = choose_smallest(candidates, held_out, against=model_folder, limits={"disagreement": 0.001})
    assert strict.chosen is None
    assert tried == ["tiny"]
    assert [c.certificate is None for c in strict.candidates] == [False, True, True]


@pytest.mark.usefixtures("scripted")
def test_choices_and_limits_that_make_no_sense(quantized: Path, model_folder: Path, held_out: Path) -> None:
    with pytest.raises(RecipeError, match="two checkpoints and one limit"):
        choose_smallest([quantized], held_out, against=model_folder, limits={"changed": 0.1})
    with pytest.raises(RecipeError, match="makes no sense"):
        certify(quantized, held_out, against=model_folder, limits={"changed": 2.0})
    with pytest.raises(RecipeError, match="makes no sense"):
        certify(quantized, held_out, against=model_folder, limits={"size": 0.1})  # type: ignore[dict-item]
    unlabelled = replace(load_data(held_out), utterances=tuple(replace(u, text=None) for u in load_data(held_out)))
    found = certify(quantized, unlabelled, against=model_folder)
    assert found.statement("worse") is None
    with pytest.raises(DataError, match="needs the texts"):
        found.exceeded({"worse": 0.5})


def test_a_certificate_kept_in_its_folder(quantized: Path, certificate: Certificate, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "kept"))
    before = (folder / "README.md").read_text()
    store_certificate(folder, certificate)
    store_certificate(folder, replace(certificate, earlier_looks=3))
    store_certificate(folder, replace(certificate, runtime="transcribe.cpp"), chosen_on=("ab", "ab", "cd"))
    manifest = read_manifest(folder)
    assert [(c.runtime, c.earlier_looks) for c in manifest.certificates] == [("torch", 3), ("transcribe.cpp", 0)]
    assert manifest.chosen_on == ("ab", "cd")
    assert api.verify(folder).unlisted == ()
    card = (folder / "README.md").read_text()
    assert card.count(BEGIN) == 1
    assert card.count("### ") == 2
    for sentence in (*sentences(certificate), *assumptions(certificate)):
        assert sentence in card
    assert before.rstrip().rpartition("\n\n")[2] == card.rstrip().rpartition("\n\n")[2]
    assert (quantized / "README.md").read_text() == before  # a link to a file is not written through
    page = folder_page(folder)
    assert page.count('class="certificate"') == 2
    assert "hashes were compared" in page
    assert 'class="certificate"' not in folder_page(quantized)


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("scripted")
def test_the_command(quantized: Path, rounded: Path, model_folder: Path, held_out: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "kept"))
    rest = ("--against", model_folder, "--audio", held_out)
    code, printed, shown = run("certify", folder, *rest, "--store", "--out", tmp_path / "c.json", "--json")
    assert code == 0, shown
    assert json.loads(printed) == json.loads((tmp_path / "c.json").read_text())
    assert read_manifest(folder).certificates == (read_certificate(tmp_path / "c.json"),)
    code, printed, _ = run("certify", folder, *rest)
    assert code == 0
    assert "On speech like held-out (6 utterances, 3 speakers, en, greedy decoding)" in printed
    assert "certificate (torch" in run("inspect", folder)[1]
    code, _, shown = run("certify", rounded, *rest, "--max-changed", 40)
    assert code == 3
    assert "exceeded: --max-changed" in shown
    code, _, shown = run("certify", "--choose", folder, rounded, *rest, "--max-looped", 99, "--max-disagreement", 1)
    assert code == 3
    assert "none of the checkpoints" in shown
    code, printed, shown = run("certify", "--choose", folder, rounded, *rest, "--max-looped", 99, "--json", "--store")
    assert code == 0, shown
    assert json.loads(printed)["chosen"]["checkpoint"] == str(rounded)
    code, _, shown = run("certify", rounded, *rest)
    assert code == 1
    assert "was chosen by 6 of these recordings" in shown.replace("\n", " ")
    for words in (
        ("--choose", folder),
        (folder, rounded),
        ("--choose", folder, rounded),
        ("--choose", folder, rounded, "--folder", folder),
    ):
        assert run("certify", *words, *rest)[0] == 2
    assert run("certify", model_folder, *rest, "--store")[0] == 1
