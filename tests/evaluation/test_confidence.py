"""Confidences: the measures against their formulas, the fits against brute force, the way through the command."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sottovoce import api
from sottovoce.cli.main import main
from sottovoce.data.load import load_data
from sottovoce.errors import DataError, ModelError
from sottovoce.evaluation.confidence import (
    ConfidenceScaling,
    WordConfidence,
    confidence_metrics,
    fit_platt,
    fit_scalings,
    fit_temperature,
    fit_to_transcripts,
    label_words,
    log_odds,
    word_confidences,
)
from sottovoce.evaluation.recognizer import TorchRecognizer, WordlessRecognizer
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.evaluation.transcripts import Transcript
from tests.conftest import make_tiny


def sampled_confidences(n: int, slope: float, offset: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences whose true log-odds are `slope * z + offset`."""
    generator = np.random.default_rng(seed)
    confidences = generator.beta(4, 1.5, n)
    return confidences, generator.random(n) < ConfidenceScaling(slope, offset).apply(confidences)


def sampled_labels(words: list[WordConfidence], *_: object) -> tuple[np.ndarray, np.ndarray]:
    """Stands in for the alignment: a random model gets no word right."""
    return sampled_confidences(50, 0.5, -1.0, seed=len(words))


def test_metrics_by_hand() -> None:
    metrics = confidence_metrics(np.array([0.95, 0.91, 0.55, 1.0]), np.array([True, False, True, True]))
    assert metrics.accuracy == 0.75
    top, middle = abs((0.95 + 0.91 + 1.0) / 3 - 2 / 3), abs(0.55 - 1)
    assert metrics.expected_calibration_error == pytest.approx((3 * top + middle) / 4)
    entropy = -(math.log(0.95) + math.log(0.09) + math.log(0.55) + math.log(1 - 1e-6)) / 4
    whole = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.normalized_cross_entropy == pytest.approx((whole - entropy) / whole)
    assert [count for *_, count in metrics.bins] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]


def test_fits_minimize_the_cross_entropy() -> None:
    confidences, right = sampled_confidences(400, 0.4, -0.7)

    def loss(slope: float, offset: float) -> float:
        odds = slope * log_odds(confidences) + offset
        return float(np.logaddexp(0, np.where(right, -odds, odds)).mean())

    slopes = np.linspace(0, 2, 401)
    assert fit_temperature(confidences, right).slope == pytest.approx(slopes[np.argmin([loss(s, 0) for s in slopes])], abs=0.01)
    platt = fit_platt(confidences, right)
    grid = [(s, o) for s in np.linspace(0, 1, 51) for o in np.linspace(-2, 1, 61)]
    assert loss(platt.slope, platt.offset) <= min(loss(s, o) for s, o in grid) + 1e-6


def test_fits_find_the_truth_and_mend_the_confidences() -> None:
    confidences, right = sampled_confidences(40000, 0.5, -0.5)
    platt = fit_platt(confidences, right)
    assert (platt.slope, platt.offset) == pytest.approx((0.5, -0.5), abs=0.05)
    fitted = fit_scalings([(confidences[i::2], right[i::2]) for i in (0, 1)], [0, 1])
    assert fitted.platt_metrics.expected_calibration_error < 0.02 < fitted.raw_metrics.expected_calibration_error
    assert fitted.platt_metrics.normalized_cross_entropy > fitted.temperature_metrics.normalized_cross_entropy
    assert fitted.temperature_metrics.normalized_cross_entropy > fitted.raw_metrics.normalized_cross_entropy


def test_a_temperature_is_positive() -> None:
    """Wrong words are surer than right ones: no ranks are reversed, everything becomes about 0.5."""
    confidences, right = np.array([0.9, 0.8, 0.4, 0.3]), np.array([False, False, True, True])
    scaling = fit_temperature(confidences, right)
    assert scaling.slope > 0
    assert scaling.apply(confidences) == pytest.approx(0.5, abs=1e-5)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(DataError, match="all 2 words are right"):
        fit_platt(np.array([0.5, 0.9]), np.array([True, True]))
    with pytest.raises(DataError, match="no words"):
        confidence_metrics(np.array([]), np.array([], dtype=bool))
    with pytest.raises(DataError, match="too little speech"):
        fit_scalings([sampled_confidences(5, 1, 0)], [0])


def test_loops_take_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.evaluation.confidence.label_words", sampled_labels)
    model = make_tiny()

    def hypothesis(name: str, text: str, logs: bool = True) -> Transcript:
        tokens = tuple(model.tokens(text))
        return Transcript(id=name, text=text, tokens=tokens, duration_s=1.0, reference="x",
                          log_probabilities=tuple([-0.1] * len(tokens)) if logs else ())  # fmt: skip

    transcripts = [
        hypothesis("a", "one fine day"),
        hypothesis("b", "another"),
        hypothesis("loop", "navy " * 30),
        hypothesis("long", "x", logs=False),
    ]
    fitted = fit_to_transcripts(TorchRecognizer(model), transcripts, [0, 1, 1, 0])
    assert fitted.left_out == 2
    assert (fitted.fitted_words, fitted.raw_metrics.words) == (50, 50)


def test_right_and_wrong_words() -> None:
    words = [
        WordConfidence("The", 0.9),
        WordConfidence("cat's", 0.8),
        WordConfidence("--", 0.1),
        WordConfidence("gone", 0.7),
        WordConfidence("away.", 0.6),
    ]
    confidences, right = label_words(words, "the cat's gone, astray")
    assert confidences.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert right.tolist() == [True, True, True, False]
    assert not label_words(words, "")[1].any()


@pytest.mark.parametrize(
    ("language", "heard", "said", "right"),
    [
        ("zh", "今天|天气|很好", "今天天气很好", [True, True, True]),
        ("yue", "今天|，|天气|很坏", "今天天气，很好。", [True, True, False]),
        ("ja", "今|日", "", [False, False]),
        ("th", "ที่|นี่|ดี", "ที่นี่ดี", [True, True, True]),
        ("en", "今天|天气|很好", "今天天气很好", [False, False, False]),
    ],
)
def test_without_spaces_characters_are_aligned(language: str, heard: str, said: str, right: list[bool]) -> None:
    assert label_words([WordConfidence(text, 0.5) for text in heard.split("|")], said, language)[1].tolist() == right


def test_words_without_spaces_are_what_tokens_hold() -> None:
    recognizer = TorchRecognizer(make_tiny())

    def hypothesis(text: str, said: str, language: str | None = "zh") -> Transcript:
        tokens = tuple(recognizer.model.tokens(text))
        logs = tuple(-0.1 * i for i in range(len(tokens)))
        return Transcript(id=text, text=text, tokens=tokens, duration_s=1.0, reference=said, language=language, log_probabilities=logs)

    # A space of the tokenizer's own, then three tokens for each of the two characters: their bytes.
    found = word_confidences(recognizer, hypothesis("今天b", "今天"))
    assert [word.text for word in found] == ["今", "天", "b"]
    assert [word.confidence for word in found] == pytest.approx([math.exp(-0.2), math.exp(-0.5), math.exp(-0.7)])
    assert [word.text for word in word_confidences(recognizer, hypothesis("今天b", "今天", None))] == ["今天b"]
    whole = hypothesis("今天", "今天")
    cut = replace(whole, tokens=whole.tokens[:-1], log_probabilities=whole.log_probabilities[:-1])
    assert [word.text for word in word_confidences(recognizer, cut)] == ["今", "\ufffd"]
    fitted = fit_to_transcripts(recognizer, [hypothesis("今天好", "今天坏"), hypothesis("天气坏", "天气好")], [0, 1])
    assert (fitted.fitted_words, fitted.raw_metrics.accuracy) == (3, pytest.approx(2 / 3))


def test_word_confidences_are_those_of_a_plain_forward_pass(speech_folder: Path) -> None:
    model, data = make_tiny(), load_data(speech_folder).take(3)
    recognizer = TorchRecognizer(model)
    made = transcribe_data(recognizer, data, confidence=True).transcripts
    for utterance, transcript in zip(data, made, strict=True):
        encoded = model.encode(model.features([utterance.samples()]))
        inputs, _ = model.teacher_forcing([transcript.tokens], None)
        logits = model.network.proj_out(model.decoder_states(encoded, inputs))[0].log_softmax(-1)
        wanted = [float(logits[model.prompt_length(None) - 1 + i, token]) for i, token in enumerate(transcript.tokens)]
        np.testing.assert_allclose(transcript.log_probabilities, wanted, atol=1e-4)
        words = word_confidences(recognizer, transcript)
        assert "".join(word.text for word in words).replace(" ", "") == transcript.text.replace(" ", "")
    assert transcribe_data(model, data).transcripts[0].tokens == made[0].tokens
    with pytest.raises(DataError, match="transcribe with confidences"):
        word_confidences(recognizer, transcribe_data(model, data).transcripts[0])


def test_split_words_at_spaces() -> None:
    model = make_tiny()
    tokens = model.tokens("to be")
    words, values = model.split_words(tokens, torch.arange(len(tokens)).tolist())
    assert [model.text(word) for word in words] == ["to", "be"]
    assert [len(v) for v in values] == [len(w) for w in words]


def test_scaled_word_confidences(speech_folder: Path) -> None:
    recognizer = TorchRecognizer(make_tiny())
    transcript = transcribe_data(recognizer, load_data(speech_folder).take(1), confidence=True).transcripts[0]
    scaling = ConfidenceScaling(slope=0.5, offset=-1.0)
    raw, scaled = word_confidences(recognizer, transcript), word_confidences(recognizer, transcript, scaling)
    assert [word.text for word in raw] == [word.text for word in scaled]
    for before, after in zip(raw, scaled, strict=True):
        odds = 0.5 * math.log(before.confidence / (1 - before.confidence)) - 1
        assert after.confidence == pytest.approx(1 / (1 + math.exp(-odds)))


def test_a_runtime_without_word_boundaries_says_so() -> None:
    class Wordless(WordlessRecognizer, TorchRecognizer):
        runtime = "whisper.cpp"

    transcript = Transcript(id="a", text="x", tokens=(65,), duration_s=1.0, log_probabilities=(-0.1,))
    recognizer = Wordless(make_tiny())
    recognizer.source = "a.bin"
    with pytest.raises(ModelError, match=r"a\.bin: whisper\.cpp does not tell how its tokens make words; .* torch or onnxruntime"):
        word_confidences(recognizer, transcript)


def test_the_command_fits_stores_and_applies(
    model_folder: Path, speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        return result.exit_code, result.stdout, result.stderr

    out = tmp_path / "out"
    assert run("quantize", model_folder, out, "--method", "rtn", "--group-size", 32)[0] == 0
    monkeypatch.setattr("sottovoce.evaluation.confidence.label_words", sampled_labels)
    code, _, complaint = run("transcribe", out, speech_folder / "u0.wav", "--json", "--confidence", "platt")
    assert code == 1
    assert "carries no scaling" in complaint
    code, printed, _ = run("confidence", out, speech_folder, "--store", "--json")
    assert code == 0
    fitted = json.loads(printed)
    record = json.loads((out / "sottovoce.json").read_text())["confidence"]
    assert record["data"] == speech_folder.name  # its path would be published
    stored = record["fitted"]
    assert stored["platt"] == fitted["platt"]
    assert "words right" in run("confidence", out, speech_folder)[1]
    words = {}
    for name in ("raw", "temperature", "platt"):
        code, printed, complaint = run("transcribe", out, speech_folder / "u0.wav", "--json", "--confidence", name)
        assert code == 0, complaint
        words[name] = json.loads(printed)[0]["words"]
    raw = np.array([word["confidence"] for word in words["raw"]])
    scaled = ConfidenceScaling(**stored["platt"]).apply(raw)
    np.testing.assert_allclose([word["confidence"] for word in words["platt"]], scaled, atol=0.02)
    assert api.load(out).network is not None
    assert run("confidence", model_folder, speech_folder, "--store")[0] == 1
    assert run("transcribe", out, speech_folder / "u0.wav", "--confidence", "raw")[0] == 2


def test_each_half_needs_words_and_each_takes_its_own() -> None:
    kinds = [sampled_confidences(n, 0.5, -0.5, seed=n) for n in (30, 40, 50)]
    fitted = fit_scalings(kinds, [1, 0, 0])
    confidences, right = (np.concatenate([kinds[i][k] for i in (1, 2)]) for k in (0, 1))
    assert fitted.temperature == fit_temperature(confidences, right)
    assert fitted.platt == fit_platt(confidences, right)
    assert fitted.fitted_words == 90
    for found, scaled in (
        (fitted.raw_metrics, kinds[0][0]),
        (fitted.temperature_metrics, fitted.temperature.apply(kinds[0][0])),
        (fitted.platt_metrics, fitted.platt.apply(kinds[0][0])),
    ):
        assert found == confidence_metrics(scaled, kinds[0][1])
    for halves in ([0, 0, 0], [1, 1, 1]):
        with pytest.raises(DataError, match="too little speech"):
            fit_scalings(kinds, halves)
    with pytest.raises(DataError, match="all 2 words are wrong"):
        fit_platt(np.array([0.5, 0.9]), np.array([False, False]))


def test_bins_are_tenths_and_each_counts_by_its_size() -> None:
    confidences = np.array([0.0, 0.05, 0.1, 0.19, 0.5, 0.99, 1.0])
    right = np.array([False, True, False, True, True, True, True])
    found = confidence_metrics(confidences, right)
    assert [count for *_, count in found.bins] == [2, 2, 0, 0, 0, 1, 0, 0, 0, 2]
    assert found.bins[0] == (pytest.approx(0.025), 0.5, 2)
    assert found.bins[2] == (None, None, 0)
    assert found.bins[9] == (pytest.approx(0.995), 1.0, 2)
    distances = 2 * abs(0.025 - 0.5) + 2 * abs(0.145 - 0.5) + abs(0.5 - 1) + 2 * abs(0.995 - 1)
    assert found.expected_calibration_error == pytest.approx(distances / 7)
    assert (found.words, found.accuracy, found.mean_confidence) == (7, pytest.approx(5 / 7), pytest.approx(confidences.mean()))
    for outcome in (True, False):  # there is nothing to explain
        assert confidence_metrics(np.array([0.5, 0.9]), np.array([outcome, outcome])).normalized_cross_entropy is None


def test_certain_words_that_are_wrong_count_as_nearly_certain() -> None:
    """A millionth is kept from both ends, so that no logarithm is infinite."""
    assert log_odds(np.array([0.0, 0.5, 1.0])) == pytest.approx([-math.log(999999), 0.0, math.log(999999)])
    found = confidence_metrics(np.array([1.0, 0.0]), np.array([False, True])).normalized_cross_entropy
    assert found == pytest.approx(1 - 6 * math.log(10) / math.log(2))
    assert ConfidenceScaling(2.0, 0.5).apply(np.array([0.7])) == pytest.approx(1 / (1 + math.exp(-2 * math.log(0.7 / 0.3) - 0.5)))


def test_fits_are_where_the_gradient_is_zero() -> None:
    """Of the mean cross-entropy with a ridge of a millionth; also from confidences that are far off or separate perfectly."""
    for confidences, right in (
        sampled_confidences(300, 0.4, -0.7),
        sampled_confidences(50, 3.0, 2.0, seed=1),
        (np.array([0.999999, 0.999, 0.5, 0.001, 0.3]), np.array([False, True, True, False, True])),
        (np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False])),
    ):
        odds, platt = log_odds(confidences), fit_platt(confidences, right)
        off = platt.apply(confidences) - right
        assert abs((off * odds).mean() + 1e-6 * platt.slope) < 1e-5
        assert abs(off.mean() + 1e-6 * platt.offset) < 1e-5
        temperature = fit_temperature(confidences, right)
        if temperature.slope > 1e-5:
            assert abs(((temperature.apply(confidences) - right) * odds).mean() + 1e-6 * temperature.slope) < 1e-5


class Letters(WordlessRecognizer):
    """Tokens are letters, and a word ends at a space (0); half of a character is 1, its other half 2."""

    source, runtime, max_duration_s, stored_bytes = "letters", "letters", 1.0, 0

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
        words, own = list[tuple[str, list[float]]](), list[tuple[int, float]]()
        for token, value in [*zip(tokens, values, strict=True), (0, 0.0)]:
            if token:
                own.append((token, value))
            elif own:
                text = "".join(chr(one) for one, _ in own if one > 2)
                text += {(1,): "\ufffd", (1, 2): "今"}.get(tuple(one for one, _ in own if one <= 2), "")
                words.append((text, [value for _, value in own]))
                own = []
        return words


def test_a_words_confidence_is_the_geometric_mean_of_its_tokens() -> None:
    spoken = Transcript(id="a", text="ab c", tokens=(97, 98, 0, 99), duration_s=1.0, log_probabilities=(-0.1, -0.5, -9.0, -0.2))
    found = word_confidences(Letters(), spoken)  # type: ignore[arg-type]
    assert [(word.text, word.confidence) for word in found] == [
        ("ab", pytest.approx(math.sqrt(math.exp(-0.1) * math.exp(-0.5)))), ("c", pytest.approx(math.exp(-0.2))),
    ]  # fmt: skip
    chinese = replace(spoken, language="zh", tokens=(97, 1, 2, 98), log_probabilities=(-0.1, -0.2, -0.4, -0.8))
    found = word_confidences(Letters(), chinese)  # type: ignore[arg-type]
    assert [(word.text, word.confidence) for word in found] == [
        ("a", pytest.approx(math.exp(-0.1))), ("今", pytest.approx(math.exp(-0.3))), ("b", pytest.approx(math.exp(-0.8))),
    ]  # fmt: skip
    for count in (3, 5):
        with pytest.raises(DataError, match=f"a: 4 tokens with {count} log-probabilities; transcribe with confidences"):
            word_confidences(Letters(), replace(spoken, log_probabilities=(-0.1,) * count))  # type: ignore[arg-type]


def test_utterances_without_confidences_and_loops_are_counted_as_left_out() -> None:
    def spoken(text: str, said: str | None) -> Transcript:
        tokens = tuple(0 if letter == " " else ord(letter) for letter in text)
        return Transcript(id=text, text=text, tokens=tokens, duration_s=1.0, reference=said, log_probabilities=(-0.1,) * len(tokens))

    given = [spoken("a b", "a c"), spoken("a b", None), spoken("a b", "b"), spoken("d d d d d", "d")]
    given.append(replace(spoken("e", "e"), log_probabilities=()))
    fitted = fit_to_transcripts(Letters(), given, [0, 0, 1, 1, 1])  # type: ignore[arg-type]
    assert (fitted.fitted_words, fitted.raw_metrics.words, fitted.left_out, fitted.unusable) == (4, 2, 2, 0)
    assert fitted.raw_metrics.accuracy == 0.5
