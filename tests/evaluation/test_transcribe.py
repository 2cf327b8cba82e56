"""Sound files, data sets and scores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.data.audio import read_audio, split_at_silence
from sottovoce.data.load import load_data
from sottovoce.errors import AudioError, DataError
from sottovoce.evaluation.failures import is_loop
from sottovoce.evaluation.gate import gate
from sottovoce.evaluation.intervals import bootstrap_interval, sign_test
from sottovoce.evaluation.recognizer import RecognitionBatch, TorchRecognizer
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.evaluation.transcripts import Transcript, read_transcripts, write_transcripts
from sottovoce.evaluation.wer import score_transcripts
from tests.conftest import make_tiny


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


def test_bad_audio_is_named(tmp_path: Path) -> None:
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
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read_audio(tmp_path / "text.wav")
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


def test_manifest_folder_and_librispeech_tree(tmp_path: Path) -> None:
    folder = tmp_path / "84" / "121123"
    folder.mkdir(parents=True)
    for i in range(2):
        soundfile.write(folder / f"84-121123-000{i}.flac", tone(0.5), 16000)
    plain = load_data(tmp_path)
    assert [u.id for u in plain] == ["84/121123/84-121123-0000", "84/121123/84-121123-0001"]
    (folder / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n")
    tree = load_data(tmp_path)
    assert [(u.id, u.text, u.speaker) for u in tree][0] == ("84-121123-0000", "GO DO YOU HEAR", "84")
    (tmp_path / "manifest.jsonl").write_text(
        '{"audio": "84/121123/84-121123-0000.flac", "text": "go", "speaker": 84}\n\n{"audio": "84/121123/84-121123-0001.flac"}\n'
    )
    listed = load_data(tmp_path)
    assert [(u.text, u.speaker) for u in listed] == [("go", "84"), (None, None)]
    assert len(listed.utterances[0].samples()) == 8000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", 'line 2: wanted an object with "audio"'),
        ('{"text": "x"}', 'line 2: wanted an object with "audio"'),
        ('{"audio": "b.wav", "text": 5}', "line 2: 'text' must be text"),
        ('{"audio": "a.wav"}', "'a' occurs twice"),
    ],
)
def test_bad_manifest_lines(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav"}\n' + line + "\n")
    with pytest.raises(DataError, match=words):
        load_data(tmp_path / "m.jsonl")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_data(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no utterances"):
        load_data(tmp_path)
    (tmp_path / "x.wav").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_data(tmp_path / "x.wav")


def test_draws_depend_on_the_seed_alone(speech_folder: Path) -> None:
    data = load_data(speech_folder)
    ids = [[u.id for u in data.sample(5, seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len(data.sample(None, 0)) == len(data) == 12


def heard(text: str, reference: str | None, name: str = "u") -> Transcript:
    return Transcript(id=name, text=text, tokens=(), duration_s=1.0, reference=reference)


def test_score_by_hand() -> None:
    score = score_transcripts(
        [
            heard("the cat sat on mat", "The cat sat on the mat!", "a"),  # one deletion
            heard("It's twenty dollars please now", "it is $20, please", "b"),  # one insertion
            heard("", "hello there", "c"),  # two deletions, empty
            heard("what", None, "d"),
        ],
        [
            heard("the cat sat on the mat", "The cat sat on the mat!", "a"),
            heard("its", "it is $20, please", "b"),
            heard("", "hello there", "c"),
        ],
    )
    assert (score.words, score.substitutions, score.insertions, score.deletions) == (12, 0, 1, 3)
    assert score.wer == pytest.approx(4 / 12)
    assert score.low <= score.wer <= score.high
    assert score.empty == ("c",)
    assert score.paired is not None
    assert score.paired.worse == ("a",)
    assert score.unscored == 1


def test_scores_need_references_and_the_same_utterances() -> None:
    with pytest.raises(DataError, match="no utterance has a reference"):
        score_transcripts([heard("x", None)])
    with pytest.raises(DataError, match="no transcript of 'a'"):
        score_transcripts([heard("x", "x", "a")], [heard("x", "x", "b")])


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(0), 0
    for i in range(200):
        words = generator.integers(5, 15, 60)
        errors = generator.binomial(words, 0.2)
        low, high = bootstrap_interval(errors, words, seed=i, resamples=300)
        covered += low <= 0.2 <= high
    assert 180 <= covered <= 199


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("so we went home", False),
        ("no no no no no", True),
        ("thank you thank you thank you thank you thank you", True),
        ("and then he said and then he said and then he said goodbye", False),
        ("a b c " * 30, True),
        ("", False),
    ],
)
def test_loops(text: str, loop: bool) -> None:
    assert is_loop(text) == loop


def test_transcribing_keeps_order_and_joins_pieces(tmp_path: Path) -> None:
    for name, seconds in (("a", 1.0), ("b", 4.5), ("c", 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", tone(seconds) + 0.01, 16000)
    model = make_tiny()
    together = transcribe_data(model, load_data(tmp_path))
    assert [(t.id, t.pieces > 1) for t in together.transcripts] == [("a", False), ("b", True), ("c", False)]
    alone = model.decode(model.encode(model.features([read_audio(tmp_path / "a.wav")])), None)[0]
    assert together.transcripts[0].tokens == tuple(alone)
    assert together.audio_s == pytest.approx(6.0)


def test_long_recordings_are_recognised_a_few_pieces_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(21.0) + 0.01, 16000)
    ears, data = TorchRecognizer(make_tiny()), load_data(tmp_path)
    (whole,) = transcribe_data(ears, data).transcripts
    assert whole.pieces > 3
    sizes, recognize = [], ears.recognize

    def watched(recordings: list[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        sizes.append(len(recordings))
        return recognize(recordings, language, confidence=confidence)

    monkeypatch.setattr(ears, "recognize", watched)
    monkeypatch.setattr("sottovoce.evaluation.transcribe.DECODER_BATCH", 3)
    (parts,) = transcribe_data(ears, data).transcripts
    assert parts == whole
    assert max(sizes) == 3
    assert sum(sizes) == whole.pieces


def test_only_what_reaches_the_limit_is_truncated() -> None:
    model = make_tiny()
    noise = np.random.default_rng(0).standard_normal((6, 16000)).astype(np.float32)
    encoded = model.encode(model.features(list(noise)))
    whole = model.greedy_decode(encoded, None)
    for limit in (3, 8):
        for (tokens, ended), (all_tokens, came_to_end) in zip(model.greedy_decode(encoded, None, limit), whole, strict=True):
            assert tokens == all_tokens[:limit]
            assert ended == (came_to_end and len(all_tokens) < limit)
    for i in range(len(noise)):
        assert model.greedy_decode(encoded[[i]], None) == whole[i : i + 1]


def test_looping_utterances_do_not_change_by_going_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny()
    encoded = model.encode(model.features([tone(1.0), tone(0.3), np.random.default_rng(0).standard_normal(9000).astype(np.float32)]))
    whole = model.decode(encoded, None)
    monkeypatch.setattr("sottovoce.models.whisper.FIRST_TOKENS", 3)
    assert model.decode(encoded, None) == whole
    assert max(map(len, whole)) > 3


def test_json_of_a_manifest_line_keeps_unicode(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "ä.wav", tone(0.5), 16000)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio": "ä.wav", "text": "schön"}, ensure_ascii=False), encoding="utf-8")
    assert next(iter(load_data(tmp_path))).text == "schön"


def test_paired_comparison_by_hand() -> None:
    references = ["cats dogs birds fish", "oak elm pine fir", "red green blue black", "sun moon star sky"]
    ours = [heard(t, r, str(i)) for i, (t, r) in enumerate(zip(["cats dogs birds", *references[1:]], references, strict=True))]
    theirs = [heard("", references[0], "0")] + [heard(r, r, str(i)) for i, r in enumerate(references[1:], 1)]
    score = score_transcripts(ours, theirs)
    paired = score.paired
    assert paired is not None
    assert paired.difference == pytest.approx((1 - 4) / 16)
    assert (paired.better, paired.worse) == (("0",), ())
    assert paired.low <= paired.difference <= paired.high <= 0
    assert paired.sign_test == 1.0
    assert score.quality_of_inference == 1.0
    assert score.cer == pytest.approx(len(" fish") / sum(map(len, references)))
    with pytest.raises(DataError, match="differs between"):
        score_transcripts(ours, [heard("x", "quite another text here now", str(i)) for i in range(4)])


def test_a_loop_counts_once_in_the_capped_rate() -> None:
    score = score_transcripts([heard("cats " * 200, "cats dogs birds fish", "a"), heard("oak elm", "oak elm pine fir", "b")])
    assert score.wer == pytest.approx((199 + 2) / 8)
    assert score.capped_wer == pytest.approx((4 + 2) / 8)


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (1, 3, 10 / 16), (10, 10, 1.0)])
def test_sign_test(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p)
    assert sign_test(worse, better) == pytest.approx(p)


def test_the_gate_counts_failures_that_were_added() -> None:
    loop = "again and again " * 12
    ours = score_transcripts(
        [
            heard(loop, "again once more", "loop"),
            heard("", "one two", "empty"),
            heard("thank you", "", "silence"),
            replace(heard("word", "word", "cut"), truncated=True),
            heard("fine", "fine", "ok"),
        ]
    )
    assert (ours.looped, ours.empty, ours.spoken_silence, ours.truncated) == (
        ("loop",), ("empty",), ("silence",), ("cut",),
    )  # fmt: skip
    clean = score_transcripts(
        [
            heard("again once more", "again once more", "loop"),
            heard("", "one two", "empty"),
            heard("fine", "fine", "ok"),
        ]
    )
    verdict = gate(ours, clean)
    assert not verdict.open
    assert verdict.added == {"looped": ("loop",), "empty": (), "spoken_silence": ("silence",), "truncated": ("cut",)}
    assert gate(ours, clean, tolerance=1).open
    assert gate(clean, ours).open


def test_transcripts_survive_the_file(tmp_path: Path) -> None:
    transcripts = (
        Transcript(id="a/1", text='he said "né"', tokens=(1, 2), duration_s=1.25, reference="x", pieces=2, truncated=True),
        Transcript(id="b", text="", tokens=(), duration_s=0.5),
    )
    write_transcripts(tmp_path / "new" / "t.jsonl", transcripts)
    assert read_transcripts(tmp_path / "new" / "t.jsonl") == transcripts
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: is not JSON"),
        ("[1]", "wanted an object"),
        ('{"id": "x"}', "wanted an object"),
        ('{"id": "x", "text": "y", "reference": 3}', "reference"),
        ('{"id": "x", "text": "y", "duration_s": NaN}', "duration_s"),
        ('{"id": "x", "text": "y", "tokens": ["a"]}', "tokens"),
        ('{"id": "first", "text": "y"}', "occurs twice"),
    ],
)
def test_bad_transcript_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"id": "first", "text": "y"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read_transcripts(file)
