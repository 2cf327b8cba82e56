"""Sound files of many kinds to samples, and cuts at silence."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.data import containers
from sottovoce.data.audio import read_audio, split_at_silence
from sottovoce.errors import AudioError


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_rates_and_channels(suffix: str, tmp_path: Path) -> None:
    stereo = np.stack([tone(1.0, 44100), 0 * tone(1.0, 44100)], axis=1)
    soundfile.write(tmp_path / f"a.{suffix}", stereo, 44100)
    samples = read_audio(tmp_path / f"a.{suffix}")
    assert samples.dtype == np.float32
    assert abs(len(samples) - 16000) < 1500
    middle = samples[4000:12000]
    assert abs(np.abs(np.fft.rfft(middle)).argmax() * 16000 / 8000 - 440) <= 2
    assert np.abs(middle).max() == pytest.approx(0.15, abs=0.02)


def test_bad_audio_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "short": (tone(0.05), "0.050 s is too short"),
        "silent": (np.zeros(16000), "is silent"),
        "nan": (np.full(16000, np.nan, dtype=np.float32), "NaN"),
        "empty": (np.zeros(0), "no samples"),
    }
    for name, (samples, words) in cases.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
        with pytest.raises(AudioError, match=words) as caught:
            read_audio(tmp_path / f"{name}.wav")
        assert f"{name}.wav" in str(caught.value)
    (tmp_path / "text.wav").write_text("no sound")
    for installed, more in ((True, "WAV or FLAC$"), (False, r"WAV or FLAC, and with sottovoce\[av\]")):
        monkeypatch.setattr(containers, "decoder_installed", lambda installed=installed: installed)
        with pytest.raises(AudioError, match=f"cannot be read as audio.*{more}"):
            read_audio(tmp_path / "text.wav")
    (tmp_path / "nothing.wav").touch()
    with pytest.raises(AudioError, match=r"nothing\.wav: is empty \(0 bytes\)"):
        read_audio(tmp_path / "nothing.wav")
    with pytest.raises(AudioError, match="no such file"):
        read_audio(tmp_path / "absent.wav")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200_000), st.floats(0.5, 4.0))
def test_cutting_loses_nothing_but_a_tail_too_short_to_use(n: int, max_duration_s: float) -> None:
    samples = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    pieces = split_at_silence(samples, max_duration_s)
    joined = np.concatenate(pieces)
    assert max(map(len, pieces)) <= max_duration_s * 16000
    assert n - 1600 <= len(joined) <= n
    assert np.array_equal(joined, samples[: len(joined)])


def test_cuts_fall_into_pauses() -> None:
    samples = np.concatenate([tone(1.7), np.zeros(4000, np.float32), tone(1.5)])
    pieces = split_at_silence(samples, 2.0)
    assert 1.7 * 16000 <= len(pieces[0]) <= 1.7 * 16000 + 4000
