"""Calibration speech: what is cut, left out and asked of the model, batch by batch and rank by rank."""

import io
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.errors import CalibrationError
from sottovoce.evaluation.recognizer import Recognition
from sottovoce.quantization import calibration_set
from sottovoce.quantization.calibration_set import CalibrationSpeech, prepare_speech
from sottovoce.quantization.run_state import RunState
from sottovoce.system.progress import Progress
from sottovoce.system.ranks import ALONE, Ranks

MODEL: Any = SimpleNamespace(max_duration_s=1.0, source="model", window_positions=50)


def utterance(name: str, seconds: float = 0.5, *, silence: bool = False, **about: str) -> Utterance:
    """A recording of noise; how loud it is tells it from others."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, int(16000 * seconds)) * (not silence)
    soundfile.write(file, noise, 16000, format="WAV", subtype="FLOAT")
    return Utterance(id=name, audio=file.getvalue(), **about)  # type: ignore[arg-type]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[str | None]]]:
    """How many recordings are transcribed at once, and in which languages: to tenths of seconds, in French where that is to be found."""
    found = list[tuple[int, set[str | None]]]()

    def recognize(_: object, heard: Sequence[Callable[[], np.ndarray]], languages: Sequence[str | None], size: int) -> Iterator[Any]:
        assert len(heard) <= size
        if heard:
            found.append((len(heard), set(languages)))
        recordings = [
            SimpleNamespace(
                index=i,
                recognition=Recognition(
                    text="", tokens=(round(len(read()) / 1600), 7), ended=True, language="fr" if code == "auto" else code
                ),
            )
            for i, (read, code) in enumerate(zip(heard, languages, strict=True))
        ]
        yield SimpleNamespace(recordings=recordings)

    monkeypatch.setattr(calibration_set, "recognize_batches", recognize)
    return found


def prepared(*utterances: Utterance, **settings: Any) -> CalibrationSpeech:
    return prepare_speech(MODEL, DataSet("d", utterances), **settings)


@pytest.mark.usefixtures("calls")
def test_a_long_recording_is_cut_and_its_pieces_are_of_one_speaker() -> None:
    speech = prepared(utterance("a", 1.0, speaker="s"), utterance("b", 1.5), utterance("c", 0.5), utterance("d", 1.5, speaker="s"))
    assert speech.ids == ("a", "b#0", "b#1", "c", "d#0", "d#1")
    assert speech.speakers == ("s", "b", "b", None, "s", "s")
    assert speech.cut == ("b", "d")
    assert speech.seconds == pytest.approx(4.5)
    assert sum(len(speech.recordings[i]) for i in (1, 2)) == 24000
    assert speech.named_speakers == ("s",)
    assert len(speech.hashes) == 4
    assert speech.hashes[1] == speech.hashes[3] != speech.hashes[0]  # before they were cut
    assert [tokens[0] for tokens in speech.transcripts] == [round(len(samples) / 1600) for samples in speech.recordings]
    assert speech.label_time_s >= 0


def test_an_utterances_own_language_comes_first_and_one_that_is_heard_is_kept(calls: list[Any]) -> None:
    speech = prepared(utterance("a", language="de"), utterance("b"), utterance("c", language="auto"), language="en")
    assert speech.languages == ("de", "en", "fr")
    assert sorted(calls, key=str) == sorted([(1, {"de"}), (1, {"en"}), (1, {"auto"})], key=str)
    assert prepared(utterance("a"), utterance("b")).languages == (None, None)


@pytest.mark.parametrize(
    ("count", "least", "said"),
    [
        (2, 2, None),
        (1, 1, None),
        (1, 2, "d: 1 usable recording; at least 2 are needed, better a hundred; z: is silent"),
        (0, 1, "d: 0 usable recordings; one is needed; z: is silent"),
        (2, 3, "d: 2 usable recordings; at least 3 are needed"),
    ],
)
def test_too_little_speech_is_refused_with_what_could_not_be_used(count: int, least: int, said: str | None, calls: list[Any]) -> None:
    given = [utterance(name) for name in "ab"[:count]] + [utterance("z", silence=True)]
    if said is None:
        speech = prepared(*given, least=least)
        assert len(speech.ids) == count
        assert list(speech.left_out) == ["z"]
        return
    with pytest.raises(CalibrationError, match=said):
        prepared(*given, least=least)
    assert not calls


@pytest.mark.usefixtures("calls")
def test_two_recordings_are_the_least_unless_told_otherwise() -> None:
    assert len(prepared(utterance("a"), utterance("b")).ids) == 2
    with pytest.raises(CalibrationError, match="at least 2 are needed"):
        prepared(utterance("a"))


def test_sixteen_are_transcribed_at_once_and_none_twice(calls: list[Any]) -> None:
    given, state = [utterance(f"u{i:02}", 0.1 * (1 + i % 5)) for i in range(18)], RunState()
    told = list[tuple[int, int]]()
    progress: Progress = lambda _what, done, of, *_: told.append((done, of))  # noqa: E731
    first = prepared(*given[:17], state=state, progress=progress)
    assert [count for count, _ in calls] == [16, 1]
    assert told == [(0, 17), (16, 17), (17, 17)]
    assert state.transcripts() == dict(zip(first.ids, first.transcripts, strict=True))
    calls.clear()
    state.add_transcripts({"u03": (99,)})
    again = prepared(*given, state=state)
    assert calls == [(1, {None})]
    assert again.transcripts[3] == (99,)
    assert again.transcripts[17] == (3, 7)


def test_what_is_known_is_heard_again_where_its_language_is_not(calls: list[Any]) -> None:
    state = RunState()
    state.add_transcripts({"a": (5,), "b": (6,)})
    speech = prepared(utterance("a"), utterance("b", language="de"), language="auto", state=state)
    assert (speech.languages, speech.transcripts) == (("fr", "de"), ((5,), (6,)))
    assert calls == [(1, {"auto"})]
    calls.clear()
    told = list[int]()
    progress: Progress = lambda _what, done, *_: told.append(done)  # noqa: E731
    assert prepared(utterance("a"), utterance("b"), state=state, progress=progress).transcripts == ((5,), (6,))
    assert not calls
    assert not told  # there was nothing to do


class Half(Ranks):
    """One of two processes; the other, in its place, says what it has prepared to say."""

    def __init__(self, rank: int, others: list[Any]) -> None:
        super().__init__(rank, 2)
        self.others, self.said = others, list[Any]()

    def exchange(self, value: Any) -> list[Any]:
        self.said.append(value)
        other = self.others[len(self.said) - 1]
        return [value, other] if self.rank == 0 else [other, value]


def test_two_processes_share_the_batches_and_both_know_all(calls: list[Any]) -> None:
    """Of three batches the first process has the first and the last, the second the other; where one recording is known, both have one."""
    given = [utterance(f"u{i:02}", 0.1 * (1 + i % 5)) for i in range(33)]
    whole = prepared(*given, ranks=ALONE)
    calls.clear()
    rows = [(i, list(whole.transcripts[i]), None) for i in range(33)]
    state = RunState()
    first, second = Half(0, [{}, rows[16:32], []]), Half(1, [{"u00": [42]}, rows[1:17]])
    assert prepared(*given, ranks=first, state=state).transcripts == whole.transcripts
    assert [count for count, _ in calls] == [16, 1]
    assert [[row[0] for row in said] for said in first.said[1:]] == [list(range(16)), [32]]
    assert len(state.transcripts()) == 33
    calls.clear()
    other = RunState()
    other.add_transcripts({"u05": (1,)})  # what counts is what the first process knows
    found = prepared(*given, ranks=second, state=other).transcripts
    assert found == ((42,), *whole.transcripts[1:])
    assert second.said[0] == {}
    assert [[row[0] for row in said] for said in second.said[1:]] == [list(range(17, 33))]
