"""Calibration speech of several sources, and varied speech."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from sottovoce import api
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.data.augment import Augmentation, augment, source_ids
from sottovoce.data.dataset import Utterance
from sottovoce.data.load import load_data, load_each
from sottovoce.data.mixture import allot, mix
from sottovoce.data.usable import Recordings, read_usable
from sottovoce.errors import DataError, RecipeError
from tests.cli.test_cli import run
from tests.conftest import make_tiny

NOTHING = Augmentation(short=0, cut=0, joined=0, noise=0)


def speech(folder: Path, count: int, seconds: float) -> Path:
    folder.mkdir()
    for i in range(count):
        samples = np.convolve(np.random.default_rng(i).standard_normal(round(seconds * 16000)), np.hanning(9), mode="same")
        soundfile.write(folder / f"{i:03d}.wav", 0.3 * samples / np.abs(samples).max(), 16000)
    return folder


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`long`: 10 clips of 1.5 s; `short`: 30 clips of 0.5 s: as many seconds of both."""
    monkeypatch.chdir(tmp_path)
    speech(tmp_path / "long", 10, 1.5)
    speech(tmp_path / "short", 30, 0.5)
    return ["long", "short"]


def quota(count: int, weights: list[int], available: list[int]) -> list[int]:
    """Largest remainders, in exact fractions, one full set after the other: slow and plain."""
    open_, fixed = set(range(len(weights))), {}
    while True:
        left = count - sum(fixed.values())
        total = sum(weights[i] for i in open_)
        share = {i: Fraction(left * weights[i], total) if total else Fraction(left, len(open_)) for i in open_}
        full = {i for i in open_ if share[i] > available[i]}
        if not full:
            break
        fixed |= {i: available[i] for i in full}
        open_ -= full
    counts = fixed | {i: int(share[i]) for i in open_}
    for i in sorted(open_, key=lambda i: (int(share[i]) - share[i], i))[: count - sum(counts.values())]:
        counts[i] += 1
    return [counts[i] for i in range(len(weights))]


@example(41, [(2, 6), (3, 14), (9, 12), (1, 5), (5, 5)])  # two remainders of a half, after two sets are full
@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), min_size=1, max_size=5))
def test_shares_by_largest_remainder(count: int, sets: list[tuple[int, int]]) -> None:
    weights, available = [weight for weight, _ in sets], [n for _, n in sets]
    count = min(count, sum(available))
    total = sum(weights) or 1
    found = allot(count, [weight / total for weight in weights], available)
    assert sum(found) == count
    assert all(0 <= n <= most for n, most in zip(found, available, strict=True))
    assert found == quota(count, weights, available)


def test_shares_by_hand() -> None:
    assert allot(10, [0.5, 0.3, 0.2], [99, 99, 99]) == [5, 3, 2]
    assert allot(10, [0.5, 0.5], [2, 99]) == [2, 8]
    assert allot(10, [1.0, 0.0], [4, 99]) == [4, 6]
    assert allot(5, [0.45, 0.45, 0.1], [9, 9, 9]) == [2, 2, 1]
    assert allot(99, [0.5, 0.5], [3, 4]) == [3, 4]


def test_draws_by_hours_and_equal_ones(sources: list[str]) -> None:
    sets = load_each(sources, load_data)
    for weighting, counts in {"hours": (8, 8), "equal": (8, 8)}.items():
        drawn = mix(sets, count=16, seed=0, weighting=weighting)
        assert [(s.source, s.utterances, s.available, s.weight) for s in drawn.shares] == [
            ("long", counts[0], 10, 0.5), ("short", counts[1], 30, 0.5)]  # fmt: skip
        assert sum(u.id.startswith("long/") for u in drawn) == counts[0]
        assert [s.seconds for s in drawn.shares] == [15.0, 15.0]
    third = replace(sets[1], utterances=sets[1].utterances[:10])  # a third of the seconds of `long`
    assert [s.utterances for s in mix([sets[0], third], count=12, seed=0, weighting="hours").shares] == [9, 3]
    assert [s.utterances for s in mix([sets[0], third], count=12, seed=0, weighting="equal").shares] == [6, 6]
    assert len(mix(sets, count=None, seed=0)) == 40
    one, again, other = (mix(sets, count=16, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert {u.id for u in one} != {u.id for u in other}
    assert [u.id for u in mix([sets[0]], count=4, seed=7)] == [u.id for u in sets[0].sample(4, 7)]
    with pytest.raises(DataError, match="'size' is no weighting"):
        mix(sets, count=4, seed=0, weighting="size")  # type: ignore[arg-type]


def test_quantize_states_sources_and_augmentation(sources: list[str], model_folder: Path, tmp_path: Path) -> None:
    options = ("--calibration", "long", "--calibration", "short", "--calibration-weights", "equal", "--augment", "--utterances", 8)
    code, _, shown = run("quantize", model_folder, tmp_path / "out", *options, "--method", "gptq")
    assert code == 0, shown
    calibration = read_manifest(tmp_path / "out").calibration
    assert calibration is not None
    assert [(s.source, s.weight, s.utterances) for s in calibration.sources] == [("long", 0.5, 4), ("short", 0.5, 4)]
    assert calibration.augmentation is not None
    assert calibration.augmentation.short == 0.25
    assert any(mark in name for name in calibration.utterances for mark in ("~short", "~cut", "+", "~noise"))
    for name in ("one", "two"):
        api.quantize(make_tiny(), tmp_path / name, calibration=sources, utterances=8, augmentation=Augmentation())
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    plain = api.quantize(make_tiny(), tmp_path / "plain", calibration=sources, utterances=8)
    assert plain.calibration is not None
    assert plain.calibration.augmentation is None
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() != weights[0]
    with pytest.raises(DataError, match="'long/000.wav'.* is given twice"):
        api.quantize(make_tiny(), tmp_path / "x", calibration=["long", "long/"])
    with pytest.raises(RecipeError, match=r"calibrates on speech, and none was given: give a folder or manifest \(--calibration\)"):
        api.quantize(make_tiny(), tmp_path / "x", calibration=[])


def recordings(count: int = 60, seconds: float = 4.0, **about: str | None) -> Recordings:
    generator = np.random.default_rng(0)
    samples = tuple(generator.standard_normal(round(seconds * 16000)).astype(np.float32) for _ in range(count))
    utterances = tuple(Utterance(id=f"u{i}", audio=b"", text=f"t{i}", **about) for i in range(count))  # type: ignore[arg-type]
    return Recordings(utterances=utterances, samples=samples, left_out={"x": "is silent"})


def test_same_seed_same_samples() -> None:
    whole = recordings()
    one, again, other = (augment(whole, Augmentation(), seed) for seed in (0, 0, 1))
    assert one.utterances == again.utterances
    assert [s.tobytes() for s in one.samples] == [s.tobytes() for s in again.samples]
    assert [s.tobytes() for s in one.samples] != [s.tobytes() for s in other.samples]
    assert all(s.dtype == np.float32 for s in one.samples)
    assert len({u.id for u in one.utterances}) == len(one.utterances)
    assert one.left_out == {"x": "is silent"}
    marks = " ".join(u.id for u in one.utterances)
    assert all(mark in marks for mark in ("~short", "~cut", "+", "~noise"))
    fewer = Recordings(utterances=whole.utterances[:5], samples=whole.samples[:5], left_out={})
    settings = Augmentation(joined=0)
    alone, among = augment(fewer, settings, 0), augment(whole, settings, 0)
    assert all(np.array_equal(a, b) for a, b in zip(alone.samples, among.samples, strict=False))


def test_nothing_asked_for_nothing_done() -> None:
    whole = recordings(5)
    same = augment(whole, NOTHING, 0)
    assert same.utterances == whole.utterances
    assert all(a is b for a, b in zip(same.samples, whole.samples, strict=True))


@pytest.mark.parametrize(("kind", "shortest", "longest"), [("short", 0.7, 3.0), ("cut", 2.0, 3.6)])
def test_pieces_are_stretches_of_the_recording_without_its_text(kind: str, shortest: float, longest: float) -> None:
    whole = recordings(20)
    found = augment(whole, replace(NOTHING, **{kind: 1.0}), 0)
    for before, samples, utterance, piece in zip(whole.utterances, whole.samples, found.utterances, found.samples, strict=True):
        assert shortest * 16000 - 1 <= len(piece) <= longest * 16000 + 1
        assert piece.tobytes() in samples.tobytes()
        assert (utterance.id, utterance.text) == (f"{before.id}~{kind}", None)
    assert len({len(piece) for piece in found.samples}) > 10


def test_clips_that_are_shorter_than_their_piece_stay_whole() -> None:
    whole = recordings(5, 0.5)
    found = augment(whole, replace(NOTHING, short=1.0), 0)
    assert found.utterances == whole.utterances


def test_joined_clips_take_each_recording_once() -> None:
    whole = recordings(21)
    found = augment(whole, replace(NOTHING, joined=1.0), 0)
    assert [u.id for u in found.utterances] == [f"u{i}+u{i + 1}" for i in range(0, 20, 2)] + ["u20"]
    assert found.utterances[0].text == "t0 t1"
    pause = len(found.samples[0]) - 128000
    assert 0.1 * 16000 <= pause <= 0.6 * 16000
    np.testing.assert_array_equal(found.samples[0][:64000], whole.samples[0])
    np.testing.assert_array_equal(found.samples[0][-64000:], whole.samples[1])
    assert not found.samples[0][64000:-64000].any()
    assert len(augment(recordings(4, 15.0), replace(NOTHING, joined=1.0), 0).samples) == 4  # 30 s are no one pass
    mixed = recordings(4)
    languages = [replace(u, language=code) for u, code in zip(mixed.utterances, ("de", "en", "en", "de"), strict=True)]
    joined = augment(replace(mixed, utterances=tuple(languages)), replace(NOTHING, joined=1.0), 0)
    assert [u.id for u in joined.utterances] == ["u0+u3", "u1+u2"]


def test_noise_is_as_far_below_the_speech_as_it_says() -> None:
    whole = recordings(20)
    found = augment(whole, replace(NOTHING, noise=1.0, noise_db=(20.0, 20.0)), 0)
    for before, after, utterance in zip(whole.samples, found.samples, found.utterances, strict=True):
        noise = after.astype(np.float64) - before
        assert 10 * np.log10(np.mean(before.astype(np.float64) ** 2) / np.mean(noise**2)) == pytest.approx(20, abs=0.2)
        assert utterance.text is not None
        assert utterance.id.endswith("~noise")


def test_settings_out_of_range() -> None:
    for settings in ({"short": -0.1}, {"short": 0.5, "cut": 0.6}, {"noise": 1.5}, {"short_s": (3.0, 1.0)}, {"kept": (0.5, 1.5)}):
        with pytest.raises(RecipeError):
            Augmentation(**settings)  # type: ignore[arg-type]


def test_shares_of_kinds_are_as_asked() -> None:
    found = augment(recordings(800, 0.9), Augmentation(joined=0, short=0.3, short_s=(0.2, 0.3), cut=0, noise=0), 0)
    assert sum("~short" in u.id for u in found.utterances) == pytest.approx(240, abs=40)


def test_bad_recordings_do_not_change_the_others(sources: list[str]) -> None:
    settings = Augmentation(joined=0)
    before = augment(read_usable(load_data(sources[0])), settings, 0)
    Path("long/003.wav").write_text("no sound")
    after = augment(read_usable(load_data(sources[0])), settings, 0)
    kept = [(u.id, s.tobytes()) for u, s in zip(before.utterances, before.samples, strict=True) if not u.id.startswith("003")]
    assert [(u.id, s.tobytes()) for u, s in zip(after.utterances, after.samples, strict=True)] == kept
    assert after.left_out.keys() == {"003"}


def test_the_sources_of_a_varied_recording() -> None:
    assert {"a", "b"} <= source_ids("a+b~noise")
    assert {"a"} <= source_ids("a~cut~noise")
    assert {"a"} <= source_ids("a#0")
    assert source_ids("a") == {"a"}


def test_only_clips_of_one_speaker_are_joined() -> None:
    """Folds are by speaker, and a joined clip lies in one of them."""
    whole = recordings(8)
    speakers = ("a", "b", "b", "a", None, "c", None, "a")
    named = tuple(replace(u, speaker=speaker) for u, speaker in zip(whole.utterances, speakers, strict=True))
    joined = augment(replace(whole, utterances=named), replace(NOTHING, joined=1.0), 0)
    assert [u.id for u in joined.utterances] == ["u0+u3", "u1+u2", "u4+u6", "u5", "u7"]
