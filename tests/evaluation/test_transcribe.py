"""A data set to transcripts: order, pieces, batches."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.data.audio import read_audio
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.data.load import load_data
from sottovoce.evaluation.context import FULL
from sottovoce.evaluation.recognize import RecognizedRecording
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, TorchRecognizer
from sottovoce.evaluation.transcribe import BatchSettings, TranscribedBatch, transcribe_data, transcript_of
from sottovoce.evaluation.transcripts import Transcript
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


def utterance(name: str, **about: str) -> Utterance:
    return Utterance(id=name, audio=b"", **about)  # type: ignore[arg-type]


def test_the_language_of_a_transcript_is_its_own_then_the_one_heard_then_the_one_asked_for() -> None:
    def made(own: str | None, heard: str | None, asked: str | None) -> str | None:
        recognition = Recognition(text="x", tokens=(1,), ended=False, language=heard, temperature=0.2, decoding="fallback")
        recording = RecognizedRecording(index=0, recognition=recognition, duration_s=2.0, pieces=3, context=7)
        transcript = transcript_of(replace(utterance("a", text="said"), language=own), recording, asked)
        assert (transcript.id, transcript.text, transcript.reference, transcript.tokens) == ("a", "x", "said", (1,))
        assert (transcript.truncated, transcript.pieces, transcript.context, transcript.duration_s) == (True, 3, 7, 2.0)
        assert (transcript.temperature, transcript.decoding) == (0.2, "fallback")
        return transcript.language

    languages = [("de", "fr", "es"), (None, "fr", "es"), (None, None, "es"), (None, None, "auto"), (None, None, None)]
    assert [made(*row) for row in languages] == ["de", "fr", "es", "en", "en"]


def test_batches_that_come_back_in_any_order_are_put_in_that_of_the_data() -> None:
    """Languages do not share a batch; what could not be used is named, and times are added up."""
    model: Any = SimpleNamespace(source="model", max_duration_s=1.0)
    data = DataSet("d", tuple(utterance(f"u{i}", **({"language": "de"} if i % 2 else {})) for i in range(5)))
    given, told = list[list[str]](), list[tuple[int, int]]()

    def elsewhere(settings: BatchSettings, batches: Sequence[Sequence[Utterance]]) -> Iterator[TranscribedBatch]:
        assert (settings.language, settings.confidence, settings.lenient, settings.context) == ("en", True, True, FULL)
        for batch in reversed(batches):
            given.append([one.id for one in batch])
            made = tuple(Transcript(id=one.id, text="", tokens=(), duration_s=1.5) for one in batch if one.id != "u2")
            yield TranscribedBatch(
                transcripts=made, encoder_s=1.0, decoder_s=2.0, unusable={one.id: "why" for one in batch if one.id == "u2"}
            )

    found = transcribe_data(
        model, data, language="en", confidence=True, lenient=True, elsewhere=elsewhere,
        progress=lambda _what, done, of, *_rest: told.append((done, of)),
    )  # fmt: skip
    assert given == [["u0", "u2", "u4"], ["u1", "u3"]]
    assert [transcript.id for transcript in found.transcripts] == ["u0", "u1", "u3", "u4"]
    assert (found.encoder_s, found.decoder_s, found.audio_s, found.unusable) == (2.0, 4.0, 6.0, {"u2": "why"})
    assert told == [(0, 5), (3, 5), (5, 5)]


def test_thirty_two_utterances_make_a_batch() -> None:
    sizes, model = list[int](), SimpleNamespace(source="model", max_duration_s=1.0)

    def elsewhere(_settings: BatchSettings, batches: Sequence[Sequence[Utterance]]) -> list[TranscribedBatch]:
        sizes.extend(map(len, batches))
        return []

    transcribe_data(model, DataSet("d", tuple(utterance(f"u{i}") for i in range(33))), elsewhere=elsewhere)  # type: ignore[arg-type]
    assert sizes == [32, 1]
