"""Recordings joined to windows: what fits together, and that nothing is lost or heard twice."""

from dataclasses import replace

import numpy as np
import pytest

from sottovoce.data.folds import assign_folds
from sottovoce.errors import RecipeError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.windows import FILLED, PAUSE_S, make_windows
from tests.conftest import make_tiny, make_tiny_moonshine
from tests.models.test_languages import make_multilingual

RATE = 16000


def speech(seconds: list[float], tokens: int = 2, **changes: object) -> CalibrationSpeech:
    count = len(seconds)
    made = CalibrationSpeech(
        ids=tuple(f"u{i}" for i in range(count)),
        recordings=tuple(np.full(round(s * RATE), i + 1, np.float32) for i, s in enumerate(seconds)),
        transcripts=tuple(tuple(100 * i + k for k in range(tokens)) for i in range(count)),
        languages=(None,) * count, speakers=(None,) * count, cut=(), seconds=sum(seconds), label_time_s=0.0,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize("make", [make_tiny, make_tiny_moonshine])
def test_every_recording_and_token_is_heard_once_and_in_its_fold(make: object) -> None:
    model: SpeechModel = make()  # type: ignore[operator]
    given = speech(list(np.random.default_rng(0).uniform(0.2, 1.5, 24)), speakers=tuple("aabbcdefghijklmnopqrstuv"))
    windows, folds = make_windows(model, given, joined=1.0), assign_folds(given.speakers)
    heard = [name for names in windows.names for name in names.split("+")]
    assert sorted(heard) == sorted(given.ids)
    for names, samples, transcript, fold in zip(windows.names, windows.samples, windows.transcripts, windows.folds, strict=True):
        which = [given.ids.index(name) for name in names.split("+")]
        assert {folds[i] for i in which} == {fold}
        assert transcript == tuple(token for i in which for token in given.transcripts[i])
        silence = np.zeros(int(PAUSE_S * RATE), np.float32)
        expected = [given.recordings[which[0]]]
        for i in which[1:]:
            expected += [silence, given.recordings[i]]
        np.testing.assert_array_equal(samples, np.concatenate(expected))
        assert len(which) == 1 or len(samples) <= FILLED * model.max_duration_s * RATE
    if make is make_tiny_moonshine:  # its passes are as long as the recordings
        assert windows.names == given.ids
        return
    assert len(windows) < len(given.ids)
    for k, (names, fold) in enumerate(zip(windows.names, windows.folds, strict=True)):
        first = len(given.recordings[given.ids.index(names.split("+")[0])])
        earlier = [samples for samples, own in zip(windows.samples[:k], windows.folds[:k], strict=True) if own == fold]
        assert all(len(samples) + first + PAUSE_S * RATE > FILLED * model.max_duration_s * RATE for samples in earlier)


def test_a_recording_goes_to_the_first_window_with_room() -> None:
    model = make_tiny()  # 2 s
    together = make_windows(model, speech([1.2, 0.1, 1.0, 0.1, 0.4, 0.1], speakers=tuple("abcdef")), joined=1.0)
    # Folds alternate: 0, 2 and 4 are of one, 1, 3 and 5 of the other.
    assert together.names == ("u0+u4", "u1+u3+u5", "u2")
    assert make_windows(model, speech([0.1] * 3), joined=0.0).names == ("u0", "u1", "u2")


def test_languages_stay_apart_and_transcripts_have_room() -> None:
    apart = make_windows(make_multilingual(), speech([0.2] * 4, speakers=tuple("abcd"), languages=("en", "en", "de", "de")), joined=1.0)
    assert apart.names == ("u0", "u1", "u2", "u3")
    model = make_tiny()
    room = model.max_new_tokens(None)
    full = make_windows(model, speech([0.1] * 6, tokens=room // 2, speakers=tuple("abcdef")), joined=1.0)
    assert full.names == ("u0+u2", "u1+u3", "u4", "u5")
    assert all(len(transcript) <= room for transcript in full.transcripts)


def test_a_share_of_each_fold_is_joined() -> None:
    given = speech([0.1] * 12, speakers=tuple("abcdefghijkl"))
    half = make_windows(make_tiny(), given, joined=0.5)
    # Folds alternate: of 0, 2, 4, ... every second one is joined, and of 1, 3, 5, ... too.
    assert half.names == ("u0", "u1", "u2+u6+u10", "u3+u7+u11", "u4", "u5", "u8", "u9")
    assert len(make_windows(make_tiny(), given, joined=1.0)) == 2


def test_a_recording_of_a_whole_window_stays_whole() -> None:
    windows = make_windows(make_tiny(), speech([2.0, 0.1, 0.1, 0.1, 0.1]), joined=1.0)
    assert windows.names == ("u0", "u1+u3", "u2+u4")
    assert len(windows.samples[0]) == 2 * RATE


def test_a_share_is_within_its_range() -> None:
    with pytest.raises(RecipeError, match=r"within 0 \.\. 1, got 1\.5"):
        Recipe(joined=1.5)


def test_a_window_is_filled_to_the_last_sample_but_for_its_end() -> None:
    """Windows of 2 s take 1.9 s: 1 s, a pause of a quarter, and 0.65 s. One sample more has no room, nor has a token more."""
    model, speakers = make_tiny(), tuple("abc")
    assert make_windows(model, speech([1.0, 0.1, 0.65], speakers=speakers), joined=1.0).names == ("u0+u2", "u1")
    assert make_windows(model, speech([1.0, 0.1, 0.65 + 1 / RATE], speakers=speakers), joined=1.0).names == ("u0", "u1", "u2")
    joined = make_windows(model, speech([1.0, 0.1, 0.65], speakers=speakers), joined=1.0).samples[0]
    assert len(joined) == 1.9 * RATE
    assert not joined[RATE : RATE + RATE // 4].any()
    assert joined[RATE - 1] == 1
    assert joined[RATE + RATE // 4] == 3
    room = model.max_new_tokens(None)
    for longer, names in ((0, ("u0+u2", "u1")), (1, ("u0", "u1", "u2"))):
        transcripts = ((1,) * (room - 3), (1,), (2,) * (3 + longer))
        assert make_windows(model, speech([0.1] * 3, speakers=speakers, transcripts=transcripts), joined=1.0).names == names


def test_every_recording_takes_its_length_and_a_pause() -> None:
    """0.3 s, 0.3 s and 0.35 s with two pauses leave 0.45 s of 1.9 s: a third pause, and 0.2 s."""
    for last, names in ((0.2, ("u0+u2+u4+u6", "u1+u3+u5")), (0.2 + 1 / RATE, ("u0+u2+u4", "u1+u3+u5", "u6"))):
        given = speech([0.3, 0.1, 0.3, 0.1, 0.35, 0.1, last], speakers=tuple("abcdefg"))
        assert make_windows(make_tiny(), given, joined=1.0).names == names


def test_the_first_windows_of_each_fold() -> None:
    given = speech([0.1] * 6, speakers=("a", "a", "a", "b", "c", "d"))
    windows = make_windows(make_tiny(), given, joined=0.0)
    assert windows.folds == (0, 0, 0, 1, 1, 1)
    few = windows.first(2)
    assert (few.names, few.folds, few.transcripts) == (
        ("u0", "u1", "u3", "u4"),
        (0, 0, 1, 1),
        tuple(given.transcripts[i] for i in (0, 1, 3, 4)),
    )
    assert [int(samples[0]) for samples in few.samples] == [1, 2, 4, 5]
    assert len(few) == len(few.languages) == 4
    assert windows.first(9).names == windows.names
