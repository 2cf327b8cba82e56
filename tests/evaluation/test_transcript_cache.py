"""Many files, of which some are broken; and runs that were stopped on the way."""

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from sottovoce import api
from sottovoce.cli.main import main
from sottovoce.data.audio import read_audio
from sottovoce.data.load import load_data
from sottovoce.errors import AudioError, DataError, OutputError
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, TorchRecognizer, recognizer_digest
from sottovoce.evaluation.transcript_cache import TranscriptCache
from sottovoce.evaluation.transcripts import read_transcripts
from tests.conftest import make_tiny
from tests.forked import Forked


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def mixed(speech_folder: Path, tmp_path: Path) -> Path:
    """The shared recordings, and four that cannot be used."""
    folder = Path(shutil.copytree(speech_folder, tmp_path / "mixed"))
    (folder / "cut.wav").write_bytes((folder / "u1.wav").read_bytes()[:20])
    (folder / "text.wav").write_text("no sound")
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    rows = (folder / "manifest.jsonl").read_text().splitlines()
    broken = [json.dumps({"audio": f"{n}.wav", "text": "words"}) for n in ("cut", "text", "silent", "nan", "gone")]
    (folder / "manifest.jsonl").write_text("\n".join([*rows[:3], *broken, *rows[3:]]) + "\n")
    return folder


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many recordings are transcribed, call by call: to the number of their samples."""
    found = list[int]()

    def counted(_self: TorchRecognizer, recordings: Sequence[np.ndarray], *_: Any, **__: Any) -> RecognitionBatch:
        found.append(len(recordings))
        made = [Recognition(text=f"{len(recording)} samples", tokens=(65,), ended=True) for recording in recordings]
        return RecognitionBatch(recognitions=made, encoder_s=0.1, decoder_s=0.1)

    monkeypatch.setattr(TorchRecognizer, "recognize", counted)
    return found


def test_the_good_ones_are_finished_and_the_bad_ones_named(model_folder: Path, mixed: Path, tmp_path: Path) -> None:
    saved = tmp_path / "hypotheses.jsonl"
    code, printed, shown = run("evaluate", model_folder, mixed, "--save", saved, "--json")
    assert code == 1
    assert json.loads(printed)["utterances"] == 12
    assert set(json.loads(printed)["unusable"]) == {"cut", "text", "silent", "nan", "gone"}
    assert "silent.wav: is silent" in shown
    assert "nan.wav: holds NaN" in shown
    assert "gone.wav: no such file" in shown
    assert "5 of 17 recordings could not be used" in shown
    assert [t.id for t in read_transcripts(saved)] == [f"u{i}" for i in range(12)]
    code, printed, shown = run("transcribe", model_folder, mixed, "--json")
    assert (code, len(json.loads(printed))) == (1, 12)
    assert "5 of 17" in shown


def test_after_a_repair_only_the_missing_ones_are_made(model_folder: Path, mixed: Path, tmp_path: Path, counts: list[int]) -> None:
    saved = tmp_path / "hypotheses.jsonl"
    run("transcribe", model_folder, mixed, "--save", saved)
    before = {t.id: t for t in read_transcripts(saved)}
    for name in ("cut", "text", "silent", "nan", "gone"):
        shutil.copy(mixed / "u5.wav", mixed / f"{name}.wav")
    shutil.copy(mixed / "u6.wav", mixed / "u2.wav")  # changed since
    assert run("transcribe", model_folder, mixed, "--save", saved)[0] == 0
    assert counts == [12, 6]
    after = {t.id: t for t in read_transcripts(saved)}
    assert len(after) == 17
    assert {name for name in before if after[name] != before[name]} <= {"u2"}
    assert not list(tmp_path.glob(".hypotheses*"))  # all is made: the cache is gone


def test_killed_on_the_way_nothing_is_made_twice(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(12 * 8):
        shutil.copy(speech_folder / f"u{i % 12}.wav", folder / f"r{i:03d}.wav")
    saved, cache = tmp_path / "hypotheses.jsonl", tmp_path / ".hypotheses.jsonl.unfinished"
    command, logs = ["transcribe", model_folder, folder, "--threads", "1", "--save"], tmp_path / "logs"
    process = Forked([*command, saved], logs)
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if cache.is_file() and cache.read_text().count("\n") > 1:
            break
        time.sleep(0.01)
    process.kill()
    if process.finish()[0] == -signal.SIGKILL:
        with cache.open("a") as file:
            file.write('["half a li')
        made = cache.read_text().count("\n") - 1
        assert made >= 32
        data = load_data(folder)
        known = TranscriptCache(saved, json.loads(cache.read_text().splitlines()[0]), [u.id for u in data]).known
        assert len(known) == made
        assert Forked([*command, saved], logs).finish()[0] == 0
        assert len(data) == len(read_transcripts(saved))
    whole = tmp_path / "whole.jsonl"
    assert Forked([*command, whole], logs).finish()[0] == 0
    assert saved.read_bytes() == whole.read_bytes()


def test_transcripts_of_another_model_are_not_taken(model_folder: Path, mixed: Path, tmp_path: Path) -> None:
    saved = tmp_path / "hypotheses.jsonl"
    run("transcribe", model_folder, mixed, "--save", saved)
    other = tmp_path / "other"
    network = make_tiny(seed=1)
    network.network.save_pretrained(other)
    network.processor.save_pretrained(other)
    before = saved.read_bytes()
    code, _, shown = run("transcribe", other, mixed, "--save", saved)
    assert (code, "another model, other settings" in shown) == (1, True)
    assert saved.read_bytes() == before


@pytest.fixture
def three(speech_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "three"
    folder.mkdir()
    for i in range(3):
        shutil.copy(speech_folder / f"u{i}.wav", folder)
    return folder


def test_a_finished_run_is_read_and_nothing_is_transcribed_again(
    three: Path, tmp_path: Path, counts: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    saved = tmp_path / "t.jsonl"
    first = api.transcribe(make_tiny(), [three], save=saved)
    before = saved.read_bytes()
    three.rename(tmp_path / "moved")  # the same recordings elsewhere, and their files touched
    (tmp_path / "moved" / "u0.wav").touch()
    again = api.transcribe(make_tiny(), [tmp_path / "moved"], save=saved)
    assert counts == [3]
    assert again.transcripts == first.transcripts
    assert again.audio_s == 0
    assert "nothing was transcribed again" in caplog.text
    assert saved.read_bytes() == before
    assert not list(tmp_path.glob(".t.jsonl*"))


def test_what_is_new_or_changed_is_added_to_a_finished_run(three: Path, speech_folder: Path, tmp_path: Path, counts: list[int]) -> None:
    saved = tmp_path / "t.jsonl"
    api.transcribe(make_tiny(), [three], save=saved)
    shutil.copy(speech_folder / "u5.wav", three)
    shutil.copy(speech_folder / "u6.wav", three / "u0.wav")
    api.transcribe(make_tiny(), [three], save=saved)
    assert counts == [3, 2]
    assert [t.id for t in read_transcripts(saved)] == ["u0", "u1", "u2", "u5"]


@pytest.mark.parametrize("gone", [["u1"], ["u0", "u1", "u2"]])
def test_recordings_that_cannot_be_read_for_a_while_keep_their_transcripts(
    model_folder: Path, tmp_path: Path, three: Path, counts: list[int], gone: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is not mounted must not empty a file that took hours."""
    saved, manifest = tmp_path / "t.jsonl", tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"audio": f"{three.name}/{name}.wav"}) + "\n" for name in ("u0", "u1", "u2")))
    api.transcribe(model_folder, [manifest], save=saved)
    before = saved.read_bytes()
    for name in gone:
        (three / f"{name}.wav").rename(tmp_path / f"{name}.wav")
    found = api.transcribe(model_folder, [manifest], save=saved)
    assert len(found.unusable) == len(gone)
    assert saved.read_bytes() == before
    assert "keeps the transcripts of recordings that cannot be read now" in caplog.text
    for name in gone:
        (tmp_path / f"{name}.wav").rename(three / f"{name}.wav")
    assert len(api.transcribe(model_folder, [manifest], save=saved).transcripts) == 3
    assert counts == [3]


def test_two_recognizers_of_ones_own_are_told_apart() -> None:
    def named(source: str) -> Any:
        return SimpleNamespace(source=source, stored_bytes=1)

    assert recognizer_digest(named("service-a")) != recognizer_digest(named("service-b"))
    assert recognizer_digest(named("")) == recognizer_digest(named(""))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model", "another model, other settings"),
        ("decoding", "another model, other settings"),
        ("confidence", "another model, other settings"),
        ("edited", "another version of a package made, or what was edited"),
        ("cut", "another version of a package made, or what was edited"),
        ("fewer", "transcripts of other recordings, 'u2' for one"),
    ],
)
def test_a_finished_run_of_another_kind_stays(three: Path, tmp_path: Path, counts: list[int], change: str, said: str) -> None:
    saved, model, options = tmp_path / "t.jsonl", make_tiny(), dict[str, Any]()
    api.transcribe(model, [three], save=saved)
    match change:
        case "model":
            model = make_tiny(seed=1)
        case "decoding":
            model.network.generation_config.suppress_tokens = [65]
        case "confidence":
            options["confidence"] = True
        case "edited":
            saved.write_text(saved.read_text().replace('"text": "', '"text": "so ', 1))
        case "cut":
            saved.write_text(saved.read_text()[:-20])
        case "fewer":
            (three / "u2.wav").unlink()
    before = saved.read_bytes()
    with pytest.raises(OutputError, match=said):
        api.transcribe(model, [three], save=saved, **options)
    assert counts == [3]
    assert saved.read_bytes() == before


def test_a_stopped_run_of_another_kind_stays(three: Path, tmp_path: Path) -> None:
    saved, data = tmp_path / "t.jsonl", load_data(three)
    stopped = TranscriptCache(saved, {"language": "de"}, [u.id for u in data])
    stopped.add(data.utterances[:1], api.transcribe(make_tiny(), [three]).transcripts[:1])
    with pytest.raises(OutputError, match=r"\.t\.jsonl\.unfinished: holds 1 transcripts of a stopped run with another model"):
        api.transcribe(make_tiny(), [three], save=saved)
    with pytest.raises(OutputError, match="of other recordings, 'u0' for one"):
        TranscriptCache(saved, {"language": "de"}, ["u1"])


def test_the_saved_file_of_another_run_is_told_before_the_reference_transcribes(
    speech_folder: Path, tmp_path: Path, counts: list[int]
) -> None:
    saved = tmp_path / "t.jsonl"
    api.transcribe(make_tiny(seed=1), [speech_folder], save=saved)
    with pytest.raises(OutputError, match="another model, other settings"):
        api.evaluate(make_tiny(), speech_folder, against=make_tiny(seed=2), save=saved)
    assert counts == [12]


def test_nothing_usable_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "words"}))
    with pytest.raises(DataError, match="none of its recordings can be used"):
        api.evaluate(model_folder, tmp_path)


@pytest.mark.parametrize(("rate", "message"), [(999, "sample rate"), (10**9, "sample rate")])
def test_sample_rates_that_no_speech_has(rate: int, message: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(4000), 16000)
    raw = bytearray((tmp_path / "a.wav").read_bytes())
    raw[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(raw)
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / "a.wav")


def test_a_small_file_of_a_very_long_recording_is_refused(tmp_path: Path) -> None:
    """A day of constant sound at 1 kHz is 86 million samples in a flac file of some hundred kilobytes."""
    with soundfile.SoundFile(tmp_path / "day.flac", "w", 1000, 1, subtype="PCM_16") as file:
        for _ in range(24 * 36):
            file.write(np.full(100_000, 0.5))
    assert (tmp_path / "day.flac").stat().st_size < 2_000_000
    with pytest.raises(AudioError, match="longer than 12 hours"):
        read_audio(tmp_path / "day.flac")
