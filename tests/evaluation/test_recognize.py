"""The loop from recordings to recognitions, with a recognizer that writes down what it is given."""

from collections.abc import Sequence

import numpy as np
import pytest

from sottovoce.errors import AudioError
from sottovoce.evaluation.context import Context, EncoderWindow
from sottovoce.evaluation.recognize import _joined, recognize_batches
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
    assert {r.recognition.log_probabilities for r in batch.recordings} == {()}  # nobody asked how sure it is
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


def test_a_recording_of_just_one_pass_is_not_long() -> None:
    """One sample more is; a procedure for long recordings is not asked about others."""
    for extra, text in ((0, "3"), (1, "long")):
        read = np.full(16000 + extra, 3, np.float32)
        (batch,) = recognize_batches(Recorder(long=True), [lambda read=read: read], ["en"], 2)
        (found,) = batch.recordings
        assert (found.recognition.text, found.pieces, found.recognition.language) == (text, 1, "en")
        assert found.duration_s == len(read) / 16000


def test_pieces_are_joined_to_what_all_of_them_are() -> None:
    def piece(text: str, language: str | None, *, ended: bool = True, temperature: float = 0.0) -> Recognition:
        return Recognition(
            text=text, tokens=(len(text),), ended=ended, log_probabilities=(-1.0,), language=language, temperature=temperature
        )

    found = _joined([piece("one", "de"), piece("", "fr", temperature=0.4), piece("three", "fr", ended=False, temperature=0.2)])
    assert (found.text, found.tokens, found.log_probabilities) == ("one three", (3, 0, 5), (-1.0,) * 3)
    assert (found.language, found.ended, found.temperature, found.decoding) == ("fr", False, 0.4, "greedy")
    assert _joined([piece("one", "de")]).ended


class Windowed(Recorder):
    """Says which contexts it was given; its window is a second of 50 positions."""

    window = EncoderWindow(positions=50)

    def recognize(
        self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False, contexts: Sequence[int | None] = ()
    ) -> RecognitionBatch:
        self.given = [*getattr(self, "given", []), tuple(contexts)]
        return super().recognize(recordings, language, confidence=confidence)


def test_contexts_go_with_the_recordings_and_whole_windows_are_not_named() -> None:
    samples = [np.full(length, i, np.float32) for i, length in enumerate((4000, 16000, 8000, 20000))]
    heard = [lambda read=read: read for read in samples]
    recorder = Windowed()
    (batch,) = recognize_batches(recorder, heard, [None] * 4, 4, context=Context(kind="margin", positions=5))
    assert [recording.context for recording in batch.recordings] == [18, None, 30, None]
    assert recorder.given == [(18, None, 30, None), ()]  # the last one is two pieces; the second of them makes a batch of its own
    recorder = Windowed()
    list(recognize_batches(recorder, heard[:3], [None] * 3, 4))
    assert recorder.given == [()]
