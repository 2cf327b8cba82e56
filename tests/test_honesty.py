"""Moments as unkind as they come: the result is finite, no worse than said, and what is wrong is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sottovoce import api
from sottovoce.cli.display_folder import WORSE_THAN_ROUNDED, notes
from sottovoce.core.affine import Affine
from sottovoce.core.hessian import Hessian
from sottovoce.core.qep import Moments
from sottovoce.data.load import load_data
from sottovoce.errors import CalibrationError
from sottovoce.models.layers import Layer
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.layer import quantize_layer
from sottovoce.quantization.methods import GPTQ, METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.statistics import FoldStatistics, LayerStatistics
from tests.conftest import make_tiny, planned, quantized

WIDTH, ROWS = 32, 8
GPTQ_LIKE = [name for name, method in METHODS.items() if isinstance(method, GPTQ)]
UNKIND = (
    "plain", "one position", "rank one", "all zero", "one fold silent", "constant", "dead channels", "one giant channel",
    "huge", "tiny",
)  # fmt: skip


def unkind_inputs(kind: str, seed: int) -> LayerStatistics:
    random = torch.Generator().manual_seed(seed)
    folds, samples, quantized_samples = [], [], []
    for fold in (0, 1):
        count = 1 if kind == "one position" else 60
        x = torch.randn(count, WIDTH, generator=random, dtype=torch.float64)
        noise = 0.2 * torch.randn(count, WIDTH, generator=random, dtype=torch.float64)
        if kind == "rank one":
            x = x[:, :1] @ torch.ones(1, WIDTH, dtype=torch.float64)
            noise = noise[:, :1] * torch.ones(1, WIDTH, dtype=torch.float64)
        if kind == "all zero" or (kind == "one fold silent" and fold == 1):
            x, noise = 0 * x, 0 * noise
        if kind == "constant":
            x = torch.ones_like(x)
        if kind == "dead channels":
            x[:, ::3], noise[:, ::3] = 0, 0
        if kind == "one giant channel":
            x[:, 5] *= 1e4
            noise[:, 5] *= 1e4
        scale = {"huge": 1e15, "tiny": 1e-15}.get(kind, 1.0)
        x, hat = scale * x, scale * (x + noise)
        folds.append(FoldStatistics(Moments(Hessian(hat.T @ hat), (x - hat).T @ hat), x.mean(0), hat.mean(0), float(count)))
        samples.append(x.float())
        quantized_samples.append(hat.float())
    return LayerStatistics((folds[0], folds[1]), torch.cat(samples), torch.cat(quantized_samples), torch.zeros(0))


@pytest.mark.parametrize("method", GPTQ_LIKE)
@pytest.mark.parametrize("kind", UNKIND)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4, 8]), biased=st.booleans())
def test_the_result_is_finite_and_no_worse_than_said(kind: str, method: str, seed: int, bits: int, biased: bool) -> None:
    weight = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed + 1))
    bias = torch.randn(ROWS, generator=torch.Generator().manual_seed(seed)) if biased else None
    solution = quantize_layer(
        Layer("fc1", "encoder", "frames"), weight, bias, unkind_inputs(kind, seed), Affine(bits=bits, group_size=32), METHODS[method],
        strength=0.5,
    )  # fmt: skip
    report = solution.report
    assert bool(torch.isfinite(solution.weight.dequantize()).all())
    assert solution.bias is None or bool(torch.isfinite(solution.bias).all())
    for name, value in vars(report).items():
        assert not isinstance(value, float) or np.isfinite(value), (name, value)
    assert report.added_error is not None
    assert report.rounded_error is not None
    worse = report.added_error > WORSE_THAN_ROUNDED * report.rounded_error
    assert worse == any("plain rounding" in note for note in notes(_with_report(report)))


def _with_report(report: object) -> object:
    class Result:
        calibration, reports, recipe, plan = None, (report,), Recipe(), planned(make_tiny(), Recipe())

    return Result()


@pytest.mark.parametrize("method", GPTQ_LIKE)
def test_calibration_on_two_copies_of_one_utterance(method: str, speech_folder: Path) -> None:
    model, data = make_tiny(), load_data(speech_folder).take(1)
    speech = prepare_speech(model, replace(data, utterances=data.utterances * 2))
    result = quantized(model, Recipe(method=METHODS[method], format=Affine(bits=3, group_size=32)), speech)
    for name, parameter in result.model.network.named_parameters():
        assert bool(torch.isfinite(parameter).all()), name


def test_the_utterance_that_breaks_a_layer_is_named(speech_folder: Path) -> None:
    model = make_tiny()
    speech = prepare_speech(model, load_data(speech_folder).take(6))
    odd = speech.recordings[3] * np.float32(1e-30)

    class Breaks(nn.Module):
        """As if a layer overflowed on what one recording makes of it."""

        def __init__(self, inner: nn.Module, features: torch.Tensor) -> None:
            super().__init__()
            self.inner, self.features, self.stride = inner, features, inner.stride

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.inner(x)
            same = (x[:, :, :50] == self.features[:, :, :50]).flatten(1).all(1)
            return torch.where(same[:, None, None], torch.nan, out)

    features = model.features([odd])["input_features"]
    model.network.model.encoder.conv1 = Breaks(model.network.model.encoder.conv1, features)
    speech = replace(speech, recordings=(*speech.recordings[:3], odd, *speech.recordings[4:]))
    with pytest.raises(CalibrationError, match=rf"NaN or infinite values in {speech.ids[3]};"):
        quantized(model, Recipe(format=Affine(bits=4, group_size=32)), speech)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype, speech_folder: Path, tmp_path: Path) -> None:
    """A model stored in half precision is worked on in float32: its quantized folder is that of the same numbers."""
    half, full = make_tiny(), make_tiny()
    half.network.to(dtype).save_pretrained(tmp_path / "half")
    half.processor.save_pretrained(tmp_path / "half")
    full.network.to(dtype).float().save_pretrained(tmp_path / "full")
    full.processor.save_pretrained(tmp_path / "full")
    recipe = Recipe(format=Affine(bits=3, group_size=32))
    for name in ("half", "full"):
        api.quantize(tmp_path / name, tmp_path / f"{name}-3bit", recipe=recipe, calibration=speech_folder)
    weights = [(tmp_path / f"{name}-3bit" / "model.safetensors").read_bytes() for name in ("half", "full")]
    assert weights[0] == weights[1]
