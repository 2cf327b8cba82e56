"""Recordings of phones, browsers and cameras, made and read with PyAV; and what is said without it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce import api
from sottovoce.data import containers
from sottovoce.data.audio import duration_of, read_audio
from sottovoce.data.dataset import Utterance
from sottovoce.data.load import load_data
from sottovoce.errors import AudioError
from tests.cli.test_cli import run
from tests.conftest import make_tiny

KINDS = {
    "a.m4a": ("aac", 44100), "a.mp4": ("aac", 44100), "a.mov": ("aac", 48000), "a.aac": ("aac", 16000), "a.3gp": ("aac", 16000),
    "a.webm": ("libopus", 48000), "a.mkv": ("libopus", 48000), "a.amr": ("libopencore_amrnb", 8000), "a.wma": ("wmav2", 44100),
    "a.avi": ("libmp3lame", 44100), "a.ac3": ("ac3", 48000), "l.m4a": ("alac", 44100), "a.flv": ("aac", 44100),
}  # fmt: skip
FORMATS = {".m4a": "ipod", ".aac": "adts", ".wma": "asf", ".mkv": "matroska"}


def sweep(seconds: float = 2.0, rate: int = 16000) -> np.ndarray:
    """A tone that rises from 300 to 1500 Hz, so that any shift in time shows."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (300 + 600 * time / seconds) * time)).astype(np.float32)


def write(path: Path, codec: str, rate: int, samples: np.ndarray, *, video: bool = False) -> Path:
    """Encode `samples` (`[n]` or `[n, 2]`, at `rate`), with pictures beside them if `video`."""
    av = pytest.importorskip("av")
    layout = "mono" if samples.ndim == 1 else "stereo"
    with av.open(str(path), "w", format=FORMATS.get(path.suffix, path.suffix[1:])) as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 64
        track = container.add_stream(codec, rate=rate, layout=layout)
        if codec in ("wmav2", "libopencore_amrnb"):
            track.bit_rate = 12200 if codec == "libopencore_amrnb" else 64000
        if video:
            for packet in pictures.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")):
                container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(np.atleast_2d(samples.T)), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        to_codec = av.AudioResampler(format=track.codec_context.format, layout=layout, rate=rate)
        for part in (*to_codec.resample(frame), *to_codec.resample(None)):
            container.mux(track.encode(part))
        container.mux(track.encode(None))
        if video:
            container.mux(pictures.encode(None))
    return path


def assert_like(found: np.ndarray, wanted: np.ndarray) -> None:
    """The same sound: as long but for padding, and at its best shift, of at most 100 ms, nearly the same samples."""
    assert found.dtype == np.float32
    assert len(wanted) - 400 <= len(found) <= len(wanted) + 3200
    inner = wanted[3200:-3200]
    best = max(
        float(np.dot(piece := found[start : start + len(inner)], inner) / np.linalg.norm(piece) / np.linalg.norm(inner))
        for start in range(1600, 4800)
        if start + len(inner) <= len(found)
    )
    assert best > 0.95


@pytest.mark.parametrize("name", KINDS)
def test_containers_give_the_sound_that_was_put_in(tmp_path: Path, name: str) -> None:
    codec, rate = KINDS[name]
    file = write(tmp_path / name, codec, rate, sweep(2.0, rate))
    assert_like(read_audio(file), sweep())
    assert_like(read_audio(file.read_bytes(), name="bytes"), sweep())
    assert duration_of(file) == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize(("name", "codec", "rate"), [("v.mp4", "aac", 44100), ("v.webm", "libopus", 48000), ("v.mov", "aac", 44100)])
def test_videos_give_their_sound(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    if name.endswith("webm"):
        name = "v.mkv"  # MPEG-4 pictures do not go into WebM
    assert_like(read_audio(write(tmp_path / name, codec, rate, sweep(2.0, rate), video=True)), sweep())


def test_channels_are_averaged_and_spans_are_cut(tmp_path: Path) -> None:
    one, silent = sweep(2.0, 44100), np.zeros(88200, np.float32)
    file = write(tmp_path / "a.m4a", "alac", 44100, np.stack([one, silent], axis=1))
    assert_like(2 * read_audio(file), sweep())
    piece = Utterance(id="p", audio=file, span=(0.5, 1.5))
    np.testing.assert_allclose(piece.samples()[800:-800], read_audio(file)[8800 : 24000 - 800], atol=1e-2)
    assert piece.duration_s() == pytest.approx(1.0)
    opposite = write(tmp_path / "o.m4a", "alac", 44100, np.stack([one, -one], axis=1))
    with pytest.raises(AudioError, match="its channels cancel"):
        read_audio(opposite)
    with pytest.raises(AudioError, match=r"is 2.\d\d s long, but a segment from 5.00 s to 6.00 s"):
        Utterance(id="p", audio=file, span=(5.0, 6.0)).samples()


def test_the_first_bytes_count_more_than_the_suffix(tmp_path: Path) -> None:
    write(tmp_path / "a.m4a", "aac", 16000, sweep()).rename(tmp_path / "really-m4a.wav")
    soundfile.write(tmp_path / "a.wav", sweep(), 16000)
    (tmp_path / "a.wav").rename(tmp_path / "really-wav.m4a")
    for file in tmp_path.iterdir():
        assert_like(read_audio(file), sweep())


def test_a_folder_of_a_phone(tmp_path: Path, model_folder: Path) -> None:
    pytest.importorskip("av")
    for name in ("a.m4a", "a.webm", "a.mp4"):
        write(tmp_path / name, *KINDS[name], sweep(1.0, KINDS[name][1]))
    soundfile.write(tmp_path / "b.flac", sweep(1.0), 16000)
    code, printed, _ = run("transcribe", model_folder, tmp_path, "--json")
    assert code == 0
    assert [row["audio"] for row in json.loads(printed)] == ["a.m4a", "a.mp4", "a.webm", "b"]
    assert all(row["duration_s"] == pytest.approx(1.0, abs=0.15) for row in json.loads(printed))


def test_damaged_and_soundless_containers_are_named(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    whole = write(tmp_path / "a.m4a", "aac", 16000, sweep()).read_bytes()
    (tmp_path / "cut.m4a").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.m4a").write_text("no sound")
    (tmp_path / "empty.webm").write_bytes(b"")
    with av.open(str(tmp_path / "pictures.mp4"), "w") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width = track.height = 64
        container.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(track.encode(None))
    for name, words in {"cut.m4a": "decoded", "text.m4a": "decoded", "empty.webm": "decoded", "pictures.mp4": "no sound track"}.items():
        with pytest.raises(AudioError, match=f"{name}: .*{words}"):
            read_audio(tmp_path / name)


def test_without_the_decoder_all_are_counted_and_named(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(containers, "decoder_installed", lambda: False)
    monkeypatch.setattr("sottovoce.data.corpora.decoder_installed", lambda: False)
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("a.m4a", "b.M4A", "c.webm", "d.mp4"):
        (tmp_path / name).write_bytes(b"\x00\x00\x00\x1cftypM4A \x00\x00\x02\x00")
    soundfile.write(tmp_path / "e.flac", sweep(1.0), 16000)
    code, printed, shown = run("transcribe", model_folder, tmp_path, "--json")
    assert code == 1
    assert [row["audio"] for row in json.loads(printed)] == ["e"]
    assert "2 .m4a, 1 .mp4, 1 .webm cannot be read without PyAV; install it (pip install 'sottovoce[av]')" in caplog.text + shown
    assert all(f"{name}: cannot be read without PyAV" in shown for name in ("a.m4a", "b.M4A", "c.webm", "d.mp4"))
    assert duration_of(tmp_path / "a.m4a") == 0
    assert api.transcribe(make_tiny(), [tmp_path / "e.flac"]).transcripts[0].text == json.loads(printed)[0]["text"]
    assert len(load_data(tmp_path)) == 5
