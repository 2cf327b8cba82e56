"""What a recording may hold: silence that is meant, samples beyond full scale, channels that cancel."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce import api
from sottovoce.data.audio import read_audio
from sottovoce.data.load import load_data
from sottovoce.errors import AudioError
from tests.cli.test_cli import run
from tests.conftest import make_tiny

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.float32)


def manifest(folder: Path, *rows: dict[str, object]) -> Path:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "spoken.wav", TONE, 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "faint.flac", np.zeros(44100 * 5), 44100)
    return tmp_path


@pytest.mark.parametrize("text", ["", " ", "...", "\u2026"])
def test_silence_with_an_empty_text_is_evaluated_and_invented_words_are_counted(folder: Path, text: str) -> None:
    spoken = {"audio": "spoken.wav", "text": "hello"}
    silent = [{"audio": name, "text": text} for name in ("silent.wav", "faint.flac")]
    result = api.evaluate(make_tiny(), manifest(folder, spoken, *silent))
    assert not result.transcription.unusable
    found = {t.id: t for t in result.transcription.transcripts}
    assert found["faint"].duration_s == pytest.approx(5.0, abs=1e-3)
    assert set(found) == {"spoken", "silent", "faint"}
    zeros = make_tiny().greedy_decode(make_tiny().encode(make_tiny().features([np.zeros(16000, np.float32)])), None)[0][0]
    assert found["silent"].tokens == tuple(zeros)
    heard = api.transcribe(make_tiny(), [folder / "manifest.jsonl"])
    assert len(heard.transcripts) == 3


@pytest.mark.parametrize("about", [{}, {"text": None}, {"text": "hello"}, {"text": "7"}, {"text": "你好"}])
def test_other_silence_is_refused_by_name(folder: Path, about: dict[str, object]) -> None:
    data = manifest(folder, {"audio": "spoken.wav", "text": "hello"}, {"audio": "silent.wav", **about})
    result = api.evaluate(make_tiny(), data)
    assert result.transcription.unusable.keys() == {"silent"}
    assert f"{folder}/silent.wav: is silent" in result.transcription.unusable["silent"]
    assert 'set its text to ""' in result.transcription.unusable["silent"]


def test_the_command_exits_by_it(folder: Path, model_folder: Path) -> None:
    code, _, shown = run("transcribe", model_folder, manifest(folder, {"audio": "silent.wav", "text": ""}))
    assert code == 0, shown
    code, _, shown = run("transcribe", model_folder, folder / "silent.wav", folder / "spoken.wav")
    assert code == 1
    assert "silent.wav: is silent" in shown


@pytest.mark.parametrize("peak", [127.0, 255.0, 32767.0, 2.0**23 - 1, 2.0**31, 1e12])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_whole_numbers_stored_as_floats_are_refused(tmp_path: Path, peak: float, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", TONE.astype(np.float64) / 0.3 * peak, 16000, subtype=subtype)
    with pytest.raises(AudioError, match=r"a.wav: its samples reach .*, where full scale is 1: .* divide them by"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("peak", [1.0, 1.01, 1.5, 4.0, 10.0])
def test_loud_masters_and_clipping_are_read_as_they_are(tmp_path: Path, peak: float) -> None:
    loud = TONE / 0.3 * np.float32(peak)
    soundfile.write(tmp_path / "a.wav", loud, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), loud)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_opposite_channels_are_said_to_cancel(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([TONE, -TONE], axis=1), 16000, subtype=subtype)
    with pytest.raises(AudioError, match=r"a.wav: its channels cancel, each is the opposite of another"):
        read_audio(tmp_path / "a.wav")


def test_channels_cancel_also_nearly_and_in_pairs_and_after_compression(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((16000, 2)).astype(np.float32) * 1e-3
    cases = {
        "near.wav": np.stack([TONE, -1.001 * TONE], axis=1) + noise,
        "four.wav": np.stack([TONE, -TONE, TONE[::-1], -TONE[::-1]], axis=1),
        "a.ogg": np.stack([TONE, -TONE], axis=1),
        "a.mp3": np.stack([TONE, -TONE], axis=1),
        "a.flac": np.stack([TONE, -TONE], axis=1),
    }
    for name, samples in cases.items():
        soundfile.write(tmp_path / name, samples, 16000)
        with pytest.raises(AudioError, match=f"{name}: its channels cancel"):
            read_audio(tmp_path / name)


def test_other_channels_are_averaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((16000, 2)).astype(np.float32) * 0.1
    for samples in (
        noise,  # nothing in common
        np.stack([TONE, 0 * TONE], axis=1),
        np.stack([TONE, TONE, 0 * TONE, 0 * TONE, 0 * TONE, 0 * TONE], axis=1),
        np.stack([TONE, -0.8 * TONE], axis=1),
    ):
        soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
        np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), samples.mean(axis=1), atol=1e-7)
    soundfile.write(tmp_path / "a.wav", np.zeros((16000, 2)), 16000)
    with pytest.raises(AudioError, match="is silent"):
        read_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", np.stack([TONE * np.nan, TONE], axis=1), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN"):
        read_audio(tmp_path / "a.wav")


def test_a_folder_says_by_suffix_what_it_leaves_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.TXT", "c.pdf", "README", ".DS_Store", "._a.wav"):
        (folder / name).write_bytes(b"x")
    assert [u.id for u in load_data(folder)] == ["faint", "silent", "spoken"]
    assert f"{folder}: left out 2 .txt, 1 .pdf, 1 without a suffix" in caplog.text
    assert f"{folder}: passed over hidden files: 1 .wav" in caplog.text


def test_a_notice_goes_to_standard_error(folder: Path, model_folder: Path) -> None:
    (folder / "silent.wav").unlink()
    (folder / "faint.flac").unlink()
    (folder / "a.docx").write_bytes(b"x")
    code, printed, shown = run("transcribe", model_folder, folder, "--json")
    assert code == 0
    assert [row["audio"] for row in json.loads(printed)] == ["spoken"]
    assert "note: " in shown
    assert "left out 1 .docx" in shown
