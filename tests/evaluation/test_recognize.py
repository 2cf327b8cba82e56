"""The loop from recordings to recognitions, with a recognizer that writes down what it is given."""

from collections.abc import Sequence

import numpy as np
import pytest

from sottovoce.errors import AudioError
from sottovoce.evaluation.recognize import recognize_batches
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch


class Recorder:
    """Says the first sample of each recording; the language is its own of what it is asked to detect."""

    source, max_duration_s, stored_bytes = "recorder", 1.0, 0

    def __init__(self, *, long: bool = False) -> None:
        self.long, self.calls = long, list[tuple[int, str | None]]()

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        self.calls.append((len(recordings), language))
        found = [
            Recognition(text=f"{r[0]:.0f}", tokens=(int(r[0]),), ended=r[0] < 9, log_probabilities=(-1.0,) if confidence else (),
                        language=("de" if r[0] % 2 else "fr") if language == "auto" else None)
            for r in recordings
        ]  # fmt: skip
        return RecognitionBatch(recognitions=found, encoder_s=1.0, decoder_s=2.0)

    def recognize_long(self, recording: np.ndarray, language: str | None) -> Recognition | None:
        return Recognition(text="long", tokens=(1, 2), ended=True) if self.long else None

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
        return [(str(token), [value]) for token, value in zip(tokens, values, strict=True)]


def recordings(*firsts: float, seconds: float = 0.5) -> list:
    return [lambda first=first: np.full(int(16000 * seconds), first, np.float32) for first in firsts]


def test_batches_hold_one_language_and_at_most_so_many() -> None:
    recorder = Recorder()
    languages = ["en", "de", "en", None, "en", "de"]
    batches = list(recognize_batches(recorder, recordings(0, 1, 2, 3, 4, 5), languages, 2, confidence=True))
    assert recorder.calls == [(1, None), (2, "de"), (2, "en"), (1, "en")]
    assert [[r.index for r in batch.recordings] for batch in batches] == [[3], [1, 5], [0, 2], [4]]
    for batch in batches:
        for r in batch.recordings:
            assert (r.recognition.text, r.recognition.language) == (str(r.index), languages[r.index])
            assert r.recognition.log_probabilities == (-1.0,)
            assert (r.duration_s, r.pieces) == (0.5, 1)
        assert (batch.encoder_s, batch.decoder_s) == (1.0, pytest.approx(2.0, abs=0.1))


def test_recordings_are_read_when_their_batch_is_due() -> None:
    read = list[int]()

    def reader(i: int):
        return lambda: (read.append(i), np.full(8000, i, np.float32))[1]

    for done, _ in enumerate(recognize_batches(Recorder(), [reader(i) for i in range(5)], [None] * 5, 2), start=1):
        assert len(read) == min(2 * done, 5)


def test_unusable_recordings_are_told_or_raised() -> None:
    def broken() -> np.ndarray:
        raise AudioError("b.wav: is silent")

    mixed = [*recordings(1), broken, *recordings(2)]
    told = list[tuple[int, str]]()
    (batch,) = recognize_batches(Recorder(), mixed, [None] * 3, 8, on_unusable=lambda i, reason: told.append((i, str(reason))))
    assert told == [(1, "b.wav: is silent")]
    assert [r.index for r in batch.recordings] == [0, 2]
    with pytest.raises(AudioError, match="is silent"):
        list(recognize_batches(Recorder(), mixed, [None] * 3, 8))


def test_long_recordings_are_cut_and_joined_or_go_by_the_models_own_procedure() -> None:
    samples = np.concatenate([np.full(14000, first, np.float32) * (np.arange(14000) < 13000) for first in (1, 2, 9)])
    recorder = Recorder()
    (batch,) = recognize_batches(recorder, [lambda: samples], ["auto"], 2, confidence=True)
    (joined,) = batch.recordings
    assert joined.pieces == len(joined.recognition.tokens) == 3
    assert recorder.calls == [(2, "auto"), (1, "auto")]
    assert joined.recognition.text.startswith("1 ")
    assert joined.recognition.language in ("de", "fr")
    (batch,) = recognize_batches(Recorder(long=True), [lambda: samples], [None], 2, confidence=True)
    assert (batch.recordings[0].recognition.text, batch.recordings[0].pieces) == ("long", 1)
    assert batch.recordings[0].recognition.log_probabilities == ()
