"""A data set to transcripts: order, pieces, batches."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.data.audio import read_audio
from sottovoce.data.load import load_data
from sottovoce.evaluation.recognizer import RecognitionBatch, TorchRecognizer
from sottovoce.evaluation.transcribe import transcribe_data
from tests.conftest import make_tiny


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_transcribing_keeps_order_and_joins_pieces(tmp_path: Path) -> None:
    for name, seconds in (("a", 1.0), ("b", 4.5), ("c", 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", tone(seconds) + 0.01, 16000)
    model = make_tiny()
    together = transcribe_data(model, load_data(tmp_path))
    assert [(t.id, t.pieces > 1) for t in together.transcripts] == [("a", False), ("b", True), ("c", False)]
    alone = model.decode(model.encode(model.features([read_audio(tmp_path / "a.wav")])), None)[0]
    assert together.transcripts[0].tokens == tuple(alone)
    assert together.audio_s == pytest.approx(6.0)


def test_long_recordings_are_recognized_a_few_pieces_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(21.0) + 0.01, 16000)
    recognizer, data = TorchRecognizer(make_tiny()), load_data(tmp_path)
    (whole,) = transcribe_data(recognizer, data).transcripts
    assert whole.pieces > 3
    sizes, recognize = [], recognizer.recognize

    def watched(recordings: list[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        sizes.append(len(recordings))
        return recognize(recordings, language, confidence=confidence)

    monkeypatch.setattr(recognizer, "recognize", watched)
    monkeypatch.setattr("sottovoce.evaluation.transcribe.DECODER_BATCH", 3)
    (parts,) = transcribe_data(recognizer, data).transcripts
    assert parts == whole
    assert max(sizes) == 3
    assert sum(sizes) == whole.pieces
