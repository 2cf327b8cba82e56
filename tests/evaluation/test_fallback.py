"""Decoding with fallback: thresholds by hand, seeded sampling, the same words alone and in a batch, for every family at hand."""

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sottovoce import api
from sottovoce.cli.main import main
from sottovoce.errors import RecipeError
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.recognizer import Recognition, TorchRecognizer
from sottovoce.evaluation.transcripts import read_transcripts
from sottovoce.models.batching import Encoded
from sottovoce.models.speech_model import SpeechModel
from tests.conftest import forced_logits, make_tiny, make_tiny_moonshine

ANYTHING = {"max_compression_ratio": 1e9, "min_log_probability": -1e9}
NOTHING = {"temperatures": (0.0, 1.0), "max_compression_ratio": 1e9, "min_log_probability": 1.0}


def noises(count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((count, 16000)).astype(np.float32))


def recognize(model: SpeechModel, recordings: Sequence[np.ndarray], **settings: object) -> list[Recognition]:
    return TorchRecognizer(model, fallback=Fallback(**settings)).recognize(recordings, None, confidence=True).recognitions


def mean_log_probability(model: SpeechModel, encoded: Encoded, tokens: list[int], ended: bool) -> float:
    """Of all tokens and the end, if it came, divided by one more than the tokens, by one pass over all of them."""
    prompt = model.teacher_forcing([[]], None)[0]["decoder_input_ids"][0].tolist()
    rows = forced_logits(model, encoded, [prompt + tokens])[0].double().log_softmax(-1)[len(prompt) - 1 :]
    wanted = tokens + [model.network.generation_config.eos_token_id] * ended
    return math.fsum(float(rows[i, token]) for i, token in enumerate(wanted)) / (len(tokens) + 1)


def test_thresholds_by_hand() -> None:
    fallback, loop = Fallback(), "thank you " * 20
    assert fallback.temperatures == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert fallback.accepts("a sentence of a few words", -0.99)
    assert not fallback.accepts("a sentence of a few words", -1.01)
    assert len(loop) / len(zlib.compress(loop.encode())) > 2.4
    assert not fallback.accepts(loop, -0.01)
    assert Fallback(max_compression_ratio=20.0).accepts(loop, -0.01)
    assert fallback.accepts("", -0.5)


@pytest.mark.parametrize("temperatures", [(), (0.2, 0.4), (0.0, 0.4, 0.2), (0.0, 0.0), (-1.0,)])
def test_temperatures_start_greedy_and_rise(temperatures: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match="start at 0 and rise"):
        Fallback(temperatures=temperatures)


@pytest.mark.parametrize("make", [make_tiny, make_tiny_moonshine])
def test_what_passes_is_greedy(make) -> None:
    model = make()
    greedy = TorchRecognizer(model).recognize(noises(), None, confidence=True).recognitions
    passed = recognize(model, noises(), **ANYTHING)
    assert [(r.tokens, r.log_probabilities, r.temperature) for r in passed] == [(r.tokens, r.log_probabilities, 0.0) for r in greedy]
    assert {r.decoding for r in passed} == {"fallback"}
    assert {r.decoding for r in greedy} == {"greedy"}


@pytest.mark.parametrize("make", [make_tiny, make_tiny_moonshine])
def test_what_fails_is_sampled_by_the_seed_and_does_not_depend_on_its_neighbors(make) -> None:
    model, recordings = make(), noises()
    first, again = recognize(model, recordings, **NOTHING), recognize(model, recordings, **NOTHING)
    assert first == again
    assert {r.temperature for r in first} == {1.0}  # none passed: the last one stands
    (alone,) = recognize(model, recordings[1:2], **NOTHING)
    assert (first[1].tokens, first[1].text) == (alone.tokens, alone.text)
    assert [r.tokens for r in first] != [r.tokens for r in recognize(model, recordings, **NOTHING, seed=1)]
    assert [r.tokens for r in first] != [r.tokens for r in recognize(model, recordings, **ANYTHING)]


def test_sampling_leaves_the_random_state_alone() -> None:
    model = make_tiny()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    recognize(model, noises(1), **NOTHING)
    assert torch.equal(torch.rand(3), wanted)


def test_the_first_temperature_that_passes_is_taken() -> None:
    """The threshold lies between what the temperatures reach: the walk through them by hand."""
    model, (recording,) = make_tiny(), noises(1)
    encoded = model.encode(model.features([recording]))
    temperatures = (0.0, 0.5, 1.0, 1.5)
    decoded = [model.greedy_decode(encoded, None)[0]]
    decoded += [model.sample_decode(encoded, None, temperature, seed=3)[0] for temperature in temperatures[1:]]
    means = [mean_log_probability(model, encoded, *one) for one in decoded]
    for limit in sorted(means):
        expected = next(i for i, value in enumerate(means) if value >= limit - 1e-3)
        (found,) = recognize(
            model, [recording], temperatures=temperatures, seed=3, max_compression_ratio=1e9, min_log_probability=limit - 1e-3
        )
        assert (found.temperature, list(found.tokens)) == (temperatures[expected], decoded[expected][0])


@pytest.mark.parametrize("ended", [True, False])
def test_a_transcript_that_did_not_end_is_divided_as_if_it_had(ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end counts as certain, and its tokens as one more, as in openai/whisper."""
    model, (recording,), tokens = make_tiny(), noises(1), [40, 50, 60]
    mean = mean_log_probability(model, model.encode(model.features([recording])), tokens, ended)
    monkeypatch.setattr(model, "greedy_decode", lambda *_: [(tokens, ended)])
    for limit, temperature in ((mean - 1e-3, 0.0), (mean + 1e-3, 1.0)):
        (found,) = recognize(model, [recording], temperatures=(0.0, 1.0), max_compression_ratio=1e9, min_log_probability=limit)
        assert found.temperature == temperature


def test_the_command_decodes_with_fallback_and_says_so(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        return result.exit_code, result.stdout, result.stderr

    saved = tmp_path / "t.jsonl"
    options = ("--limit", 2, "--json", "--save")
    code, printed, complaint = run("evaluate", model_folder, speech_folder, *options, saved, "--fallback", "--seed", 1)
    assert code == 0, complaint
    assert json.loads(printed)["decodings"] == ["fallback"]
    assert {transcript.decoding for transcript in read_transcripts(saved)} == {"fallback"}
    assert max(transcript.temperature for transcript in read_transcripts(saved)) > 0  # a random model is improbable
    assert run("evaluate", model_folder, speech_folder, *options, saved)[0] == 1  # they stay
    code, printed, _ = run("evaluate", model_folder, speech_folder, *options, tmp_path / "greedy.jsonl")
    assert json.loads(printed)["decodings"] == ["greedy"]
    code, printed, _ = run("score", tmp_path / "greedy.jsonl")
    assert "decoding: greedy" in printed
    texts = [run("transcribe", model_folder, speech_folder / "u0.wav", "--fallback", "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    code, _, complaint = run("transcribe", model_folder, speech_folder / "u0.wav", "--fallback", "--runtime", "onnxruntime")
    assert code == 1
    assert "decodes without fallback: only torch has it" in complaint


def test_a_recognizer_that_is_open_takes_no_fallback(speech_folder: Path) -> None:
    with pytest.raises(RecipeError, match="give runtime, fallback, tokens_per_second and placement to open_recognizer"):
        api.transcribe(TorchRecognizer(make_tiny()), [speech_folder], fallback=Fallback())
