"""A bench's evaluator: the words of `evaluate`, and the states of a plain forward pass on given transcripts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sottovoce import api
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.data.load import load_data
from sottovoce.errors import DataError
from sottovoce.evaluation.teacher_forced import TeacherForcedEvaluator, divergence_of_outputs
from tests.conftest import make_tiny


def test_words_and_states_are_those_of_plain_passes(speech_folder: Path) -> None:
    model, data = make_tiny(), load_data(speech_folder).take(3)
    own = TeacherForcedEvaluator(model, data).evaluate(model, "en")
    heard = api.transcribe(model, [speech_folder], language="en").transcripts
    words = {transcript.id: transcript.tokens for transcript in heard}
    assert [t.tokens for t in own.transcripts] == [words[next(key for key in words if key.endswith(t.id))] for t in own.transcripts]
    assert [t.id for t in own.transcripts] == [utterance.id for utterance in data]
    forced = [(5, 6, 7), (8,), (9, 10)]
    other = make_tiny(seed=3)
    found = TeacherForcedEvaluator(other, data).evaluate(other, "en", forced)
    for utterance, tokens, states in zip(data, forced, found.states, strict=True):
        encoded = other.encode(other.features([utterance.samples()]))
        inputs, _ = other.teacher_forcing([tokens], "en")
        wanted = other.decoder_states(encoded, inputs)[0, other.prompt_length("en") - 1 :]
        assert states.shape == (len(tokens) + 1, wanted.shape[-1])
        torch.testing.assert_close(states, wanted, rtol=1e-4, atol=1e-5)
    same = divergence_of_outputs(model, own, model, own)
    assert float(torch.as_tensor(same).abs().max()) == pytest.approx(0.0, abs=1e-6)


def test_what_a_bench_cannot_compare_is_refused(speech_folder: Path, tmp_path: Path) -> None:
    model, (first, *_) = make_tiny(), load_data(speech_folder).utterances
    with pytest.raises(DataError, match=f"{first.id}: has a language of its own"):
        TeacherForcedEvaluator(model, DataSet("x", (replace(first, language="de"),)))
    samples = 0.1 * np.random.default_rng(0).standard_normal(int(16000 * model.max_duration_s) + 16000)
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    with pytest.raises(DataError, match=r"long: .* s is longer than the .* of one forward pass"):
        TeacherForcedEvaluator(model, DataSet("x", (Utterance(id="long", audio=tmp_path / "long.wav"),)))
