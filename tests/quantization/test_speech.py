"""What calibration speech a quantization goes by: folds of speakers, the model's own transcripts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.sequential import diagnostic_pass
from tests.conftest import make_tiny, quantized

SMALL = Affine(bits=4, group_size=32)


def test_diagnostics_come_from_both_folds(speech_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[list[int]]()

    def look(model: SpeechModel, plan: Plan, layers: Sequence[Layer], few: Sequence[Batch]) -> dict[str, float]:
        seen.append([int(fold) for batch in few for fold in batch.folds])
        return diagnostic_pass(model, plan, layers, few)

    model, recipe = make_tiny(), Recipe(method=METHODS["fade-diagnostic"], format=SMALL, joined=0.0)
    monkeypatch.setattr("sottovoce.quantization.sequential.diagnostic_pass", look)
    monkeypatch.setattr("sottovoce.quantization.pipeline.DIAGNOSTIC_WINDOWS", 3)
    data = load_data(speech_folder)
    results = [quantized(model, recipe, prepare_speech(model, data.sample(10, seed))) for seed in (0, 1)]
    assert seen == [[0, 0, 0, 1, 1, 1]] * 2
    strengths = [[report.strength for report in result.reports] for result in results]
    assert strengths[0] != strengths[1]  # reliability follows the speech


def test_one_speaker_is_enough_and_is_said(speech_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, data = make_tiny(), load_data(speech_folder)
    alone = replace(data, utterances=tuple(replace(utterance, speaker="one") for utterance in data))
    result = quantized(model, Recipe(format=SMALL), prepare_speech(model, alone))
    assert ["by one speaker" in text for text in caplog.messages] == [True]
    assert any(report.strength > 0 for report in result.reports)
    assert result.calibration is not None
    assert result.calibration.one_speaker


def test_known_texts_change_nothing(speech_folder: Path) -> None:
    data = load_data(speech_folder)
    without = replace(data, utterances=tuple(replace(utterance, text=None) for utterance in data))
    model = make_tiny()
    assert prepare_speech(model, data).transcripts == prepare_speech(model, without).transcripts
