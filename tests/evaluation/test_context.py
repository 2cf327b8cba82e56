"""Contexts as a user writes them, and what they mean for a clip."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce import api
from sottovoce.api.certification import certify
from sottovoce.checkpoint.manifest import read_manifest, write_manifest
from sottovoce.core.affine import Affine
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.errors import AudioError, DataError, ModelError, OutputError, RecipeError
from sottovoce.evaluation.context import AUTO, FULL, Context, EncoderWindow, ShortContext, as_context, by_context
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.evaluation.transcripts import read_transcripts, write_transcripts
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.cli.test_cli import run
from tests.conftest import make_tiny, make_tiny_moonshine

WINDOW = EncoderWindow()
TUNED = ShortContext(margin=16, smallest=50)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("auto", AUTO),
        ("full", FULL),
        ("640", Context(kind="fixed", positions=640)),
        (640, Context(kind="fixed", positions=640)),
        ("+16", Context(kind="margin", positions=16)),
        ("+0", Context(kind="margin", positions=0)),
        (FULL, FULL),
    ],
)
def test_what_may_be_written(written: str | int | Context, wanted: Context) -> None:
    assert as_context(written) == wanted
    assert as_context(str(wanted)) == wanted


@pytest.mark.parametrize("written", ["", "0", "-5", "+", "short", "1.5", "++3", -1, "²"])
def test_what_may_not(written: str | int) -> None:
    with pytest.raises(RecipeError, match="is no context; give auto, full"):
        as_context(written)


@pytest.mark.parametrize(
    ("context", "seconds", "wanted"),
    [
        ("full", 3.0, None),
        ("+16", 3.0, 166),
        ("+16", 3.00001, 166 + 1),  # a position that has begun counts
        ("+16", 0.1, 21),
        ("+0", 0.0001, 1),
        ("640", 0.1, 640),
        ("640", 12.8, 640),
        ("+16", 29.68, None),  # the margin reaches the end of the window
        ("+16", 29.66, 1499),
        ("+16", 30.0, None),
        ("640", 31.0, None),  # recordings beyond one window have whole ones
        ("1500", 30.0, None),
    ],
)
def test_positions_of_a_clip(context: str, seconds: float, wanted: int | None) -> None:
    assert as_context(context).resolve(WINDOW, "model").of(round(seconds * 16000) + (seconds == 3.00001), WINDOW) == wanted


def test_a_clip_longer_than_the_context_is_refused_in_a_sentence() -> None:
    with pytest.raises(AudioError, match=r"is 12.82 s long, which is 641 encoder positions, and the context is 640; give a context of 641"):
        as_context(640).of(round(12.82 * 16000), WINDOW)
    with pytest.raises(AudioError, match="1500 encoder positions"):
        as_context(640).of(30 * 16000, WINDOW)


def test_auto_is_what_the_model_was_tuned_for() -> None:
    assert AUTO.resolve(WINDOW, "model") == FULL
    tuned = AUTO.resolve(replace(WINDOW, tuned=TUNED), "model")
    assert (tuned.of(16000 * 3, WINDOW), tuned.of(1600, WINDOW)) == (166, 50)
    assert AUTO.resolve(replace(WINDOW, tuned=TUNED, refusal="cannot"), "model") == FULL
    with pytest.raises(ModelError, match=r"^model: cannot; leave the context \+16 out"):
        as_context("+16").resolve(replace(WINDOW, refusal="cannot"), "model")
    with pytest.raises(RecipeError, match="1600 is more than the 1500 positions"):
        as_context(1600).resolve(WINDOW, "model")
    assert as_context(1500).resolve(WINDOW, "model") == FULL


def test_places_by_context() -> None:
    assert by_context([5, None, 5, 7]) == {5: [0, 2], None: [1], 7: [3]}


def clips(folder: Path, seconds: Sequence[float]) -> DataSet:
    """Noise of so many seconds each; 0.0 is half a second of digital silence, in which nothing is said."""
    utterances = list[Utterance]()
    for i, length in enumerate(seconds):
        noise = 0.2 * np.random.default_rng(i).standard_normal(int(16000 * (length or 0.5)))
        soundfile.write(folder / f"{i}.wav", noise if length else 0 * noise, 16000)
        utterances.append(Utterance(id=f"{i}.wav", audio=folder / f"{i}.wav", text=None if length else ""))
    return DataSet("clips", tuple(utterances))


LENGTHS = (0.1, 0.0, 1.0, 2.0, 3.1, 0.5)  # of windows of 2 s: short ones, silence, exactly one, more than one


def test_a_recording_is_heard_alike_whatever_stands_beside_it(tmp_path: Path) -> None:
    model, data = make_tiny(seed=1), clips(tmp_path, LENGTHS)
    context = as_context("+16")
    together = transcribe_data(model, data, context=context, confidence=True).transcripts
    assert [t.context for t in together] == [21, 41, 66, None, None, 41]
    assert together[4].pieces > 1
    for utterance, transcript in zip(data, together, strict=True):
        (alone,) = transcribe_data(model, DataSet("one", (utterance,)), context=context, confidence=True).transcripts
        assert (alone.text, alone.tokens, alone.context) == (transcript.text, transcript.tokens, transcript.context)
        assert alone.log_probabilities == pytest.approx(transcript.log_probabilities, abs=1e-4)
    full = transcribe_data(model, data).transcripts
    assert [t.text for t in full[3:5]] == [t.text for t in together[3:5]]
    assert full[2].text != together[2].text  # a random model hears the end of the window


def test_the_recognizer_decodes_what_the_encoder_gave(tiny: Whisper) -> None:
    samples = [np.full(8000, 0.1, np.float32), np.ones(16000, np.float32)]
    recognizer = TorchRecognizer(tiny)
    features = tiny.features(samples)
    wanted = [tiny.decode(tiny.encode(tiny.shortened({"input_features": features["input_features"][i : i + 1]}, n)), None)[0]
              for i, n in enumerate((30, 66))]  # fmt: skip
    found = recognizer.recognize(samples, None, contexts=(30, 66)).recognitions
    assert [list(r.tokens) for r in found] == wanted


def test_a_fixed_context_below_a_clip_leaves_it_out_by_name(tmp_path: Path, tiny: Whisper) -> None:
    data = clips(tmp_path, (0.5, 1.5))
    made = transcribe_data(tiny, data, context=as_context(40), lenient=True)
    assert [t.context for t in made.transcripts] == [40]
    assert "1.wav: is 1.50 s long, which is 75 encoder positions, and the context is 40" in made.unusable["1.wav"]
    with pytest.raises(AudioError, match="1.wav: is 1.50 s long"):
        transcribe_data(tiny, data, context=as_context(40))
    with pytest.raises(ModelError, match="'moonshine' model has no window of fixed length"):
        transcribe_data(make_tiny_moonshine(), data, context=as_context("+16"))


def test_transcript_files_carry_the_context(tmp_path: Path, tiny: Whisper) -> None:
    made = transcribe_data(tiny, clips(tmp_path, (0.5,)), context=as_context("+4")).transcripts
    write_transcripts(tmp_path / "t.jsonl", made)
    assert read_transcripts(tmp_path / "t.jsonl") == made
    assert made[0].context == 29
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "text": "b", "context": 0}\n')
    with pytest.raises(DataError, match="context: wanted a number of encoder positions or null, got 0"):
        read_transcripts(tmp_path / "bad.jsonl")


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "out"
    api.quantize(model_folder, out, recipe=Recipe(method=method_named("rtn"), format=Affine(bits=8, group_size=32)))
    return out


@pytest.fixture
def tuned_folder(folder: Path) -> Path:
    write_manifest(folder, replace(read_manifest(folder), short_context=TUNED))
    return folder


def test_a_tuned_folder_runs_short_unless_told_otherwise(tuned_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    sound = speech_folder / "u0.wav"  # 0.75 s
    assert api.transcribe(tuned_folder, [sound]).transcripts[0].context == 38 + 16
    assert api.transcribe(tuned_folder, [sound], context="full").transcripts[0].context is None
    evaluated = api.evaluate(tuned_folder, speech_folder, against=tuned_folder, limit=2)
    assert str(evaluated.context) == "+16"
    assert evaluated.reference is not None
    assert evaluated.reference.context == FULL
    assert evaluated.reference.transcription.transcripts[0].context is None
    short = certify(tuned_folder, speech_folder, against=tuned_folder, ledger=tmp_path / "looks", seed=1)
    assert short.context == "+16"
    assert certify(tuned_folder, speech_folder, against=tuned_folder, context="full", ledger=tmp_path / "looks").context == "full"
    with pytest.raises(AudioError, match=r"u1: is 0.84 s long, which is 43 encoder positions, and the context is 40"):
        certify(tuned_folder, speech_folder, against=tuned_folder, context=40, ledger=tmp_path / "looks")


def test_a_stopped_run_does_not_mix_contexts(folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    """What another context had made stays, and is not taken for one's own."""
    kept = tmp_path / "t.jsonl"
    (tmp_path / "empty.wav").write_bytes(b"")
    sources = [speech_folder / "u0.wav", tmp_path / "empty.wav"]
    api.transcribe(folder, sources, context="+4", save=kept)
    with pytest.raises(OutputError, match="another model, other settings"):
        api.transcribe(folder, sources, context="+8", save=kept)
    assert read_transcripts(kept)[0].context == 42


def test_on_the_command_line(folder: Path, speech_folder: Path) -> None:
    sound = speech_folder / "u0.wav"
    code, printed, _ = run("transcribe", folder, sound, "--context", "+16", "--json")
    assert code == 0
    assert '"context": 54' in printed
    code, _, error = run("transcribe", folder, sound, "--context", "20")
    assert code == 1
    assert "is 0.75 s long, which is 38 encoder positions, and the context is 20" in error
    code, _, error = run("transcribe", folder, sound, "--context", "short")
    assert code == 2
    assert "'short' is no context" in error
    code, printed, _ = run("evaluate", folder, speech_folder, "--context", "+16", "--limit", "2")
    assert code == 0
    assert "encoder context of the model: the clip's length + 16 encoder positions" in printed


@pytest.mark.parametrize(("margin", "smallest", "taken"), [(0, 1, True), (-1, 1, False), (0, 0, False)])
def test_the_least_that_a_model_may_be_tuned_for(margin: int, smallest: int, taken: bool) -> None:
    if taken:
        assert ShortContext(margin=margin, smallest=smallest).smallest == smallest
        return
    with pytest.raises(RecipeError, match=f"a margin of {margin} and at least {smallest} positions make no context"):
        ShortContext(margin=margin, smallest=smallest)


def test_contexts_in_words() -> None:
    assert [as_context(text).in_words() for text in ("full", "auto", "640", "+16")] == [
        "the whole window", "as the model was tuned", "640 encoder positions (12.8 s)", "the clip's length + 16 encoder positions",
    ]  # fmt: skip
    assert Context(kind="margin", positions=16, smallest=2).in_words() == "the clip's length + 16 encoder positions, 2 at least"


def test_a_margin_has_its_smallest_whatever_the_length_of_the_clip() -> None:
    """And a clip without a sample has the margin alone; one position less than the window is not yet all of it."""
    context = Context(kind="margin", positions=3, smallest=10)
    assert [context.of(samples, WINDOW) for samples in (0, 6 * 320, 7 * 320, 7 * 320 + 1)] == [10, 10, 10, 11]
    assert as_context("+1").of(0, WINDOW) == 1
    assert [as_context(n).of(16000, WINDOW) for n in (1499, 1500)] == [1499, None]
    assert as_context("+1600").resolve(WINDOW, "model").of(16000, WINDOW) is None  # a margin may be larger than the window
    assert as_context("1").positions == 1
