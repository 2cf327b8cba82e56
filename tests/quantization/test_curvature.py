"""Position weights by the curvature of the end loss, against finite differences and explicit sums."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.errors import RecipeError
from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.batches import PositionWeights, make_batches
from sottovoce.quantization.collect import collect_statistics
from sottovoce.quantization.curvature import PERCENTILE, _curvature, _factor, position_factors
from sottovoce.quantization.methods import FADE, GPTQ, method_named
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.devices import Placement
from sottovoce.system.progress import silent
from tests.conftest import make_tiny, make_tiny_moonshine, quantized, windows
from tests.models.zoo import make_speech_to_text
from tests.pretended_device import DEVICE, PretendedDevice

RECORDINGS = tuple((0.1 * np.random.default_rng(i).standard_normal(9000 + 3000 * i)).astype(np.float32) for i in range(4))
TRANSCRIPTS = ((5, 6, 7), (8, 9), (10, 11, 12, 13), (14, 15))


def batches_of(model: SpeechModel, batch_size: int = 2) -> list[Batch]:
    return make_batches(
        model,
        windows(RECORDINGS, TRANSCRIPTS, (0, 0, 1, 1)),
        batch_size=batch_size,
        positions=PositionWeights(padding=0.0, subsampling=1),
    )


def factors_of(model: SpeechModel, batches: Sequence[Batch], share: float = 1.0, layers: Sequence[Layer] | None = None) -> Any:
    return position_factors(model, batches, layers or model.layers(), share=share, seed=0, progress=silent)


@pytest.mark.parametrize("name", ["model.decoder.layers.0.fc1", "model.decoder.layers.0.encoder_attn.k_proj", "proj_out"])
def test_squared_gradients_agree_with_finite_differences(name: str) -> None:
    """Every output of the layer moved by itself, at some positions, with the targets that were drawn."""
    model = make_tiny(width=32, layers=1)
    model.network.double()
    batch = batches_of(model, 1)[2]
    predicted = batch.weights["tokens"][0] > 0
    inputs = {**batch.inputs, "input_features": batch.inputs["input_features"].double()}
    layer = next(layer for layer in model.layers() if layer.name == name)
    found = _curvature(model, inputs, predicted, [layer], torch.Generator().manual_seed(3))[name]
    log_p = torch.log_softmax(model.network(**inputs).logits[0][predicted].float(), -1)
    targets = torch.multinomial(log_p.exp(), 1, generator=torch.Generator().manual_seed(3))

    def objective(position: int, channel: int, step: float) -> float:
        def moved(_module: object, _args: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, position, channel] += step
            return output

        hook = model.module(name).register_forward_hook(moved)
        logits = model.network(**inputs).logits[0][predicted]
        hook.remove()
        return float(torch.log_softmax(logits, -1).gather(1, targets).sum())

    channels = range(0, model.module(name).weight.shape[0], 1 if name != "proj_out" else 7)
    for position in (0, len(found) - 2):
        gradients = [(objective(position, j, 1e-4) - objective(position, j, -1e-4)) / 2e-4 for j in channels]
        if name == "proj_out":  # only some of its channels were tried
            continue
        assert float(found[position]) == pytest.approx(np.mean(np.square(gradients)), rel=2e-3, abs=1e-12)
    if name == "proj_out":
        p = torch.softmax(model.network(**inputs).logits[0][predicted], -1)
        wanted = (torch.nn.functional.one_hot(targets.squeeze(1), p.shape[1]) - p).square().mean(-1)
        torch.testing.assert_close(found[predicted].double(), wanted, rtol=1e-4, atol=1e-9)
        assert not found[~predicted].any()


@pytest.mark.parametrize("make", [make_tiny, make_tiny_moonshine])
def test_factors_are_one_on_average_in_every_utterance(make: Any) -> None:
    model = make()
    batches = batches_of(model)
    found = factors_of(model, batches)
    assert set(found) == {layer.name for layer in model.layers()}
    for layer in model.layers():
        for factors, batch in zip(found[layer.name], batches, strict=True):
            for i, row in enumerate(factors):
                counted = torch.ones(len(row), dtype=torch.bool) if layer.positions == "all" else batch.weights[layer.positions][i] > 0
                assert float(row[counted].mean()) == pytest.approx(1.0, rel=1e-4)
                assert row[counted].std() > 0
                assert (row[~counted] == 1).all()


def test_layers_that_read_one_tensor_share_their_factors() -> None:
    model = make_tiny()
    found = factors_of(model, batches_of(model))
    for stem, members in (("model.encoder.layers.0.self_attn", "qkv"), ("model.decoder.layers.1.encoder_attn", "kv")):
        first, *others = (found[f"{stem}.{member}_proj"] for member in members)
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    assert not torch.equal(found["model.encoder.layers.0.fc1"][0], found["model.encoder.layers.0.fc2"][0])


def test_the_share_mixes_and_the_largest_are_capped() -> None:
    curvature = torch.cat([torch.linspace(1.0, 2.0, 200), torch.tensor([1e6])])
    counted = torch.ones(201, dtype=torch.bool)
    counted[:50] = False
    whole, half = _factor(curvature, counted, 1.0), _factor(curvature, counted, 0.5)
    own = curvature[counted].numpy()
    capped = np.minimum(own, np.quantile(own, PERCENTILE))
    np.testing.assert_allclose(whole[counted], capped / capped.mean(), rtol=1e-4)
    torch.testing.assert_close(half, 0.5 + 0.5 * whole)
    assert torch.equal(_factor(torch.zeros(3), torch.ones(3, dtype=torch.bool), 1.0), torch.ones(3))


def test_moments_are_sums_weighted_by_the_factors() -> None:
    """Hessian, mean and weight of a fold, position by position."""
    model = make_tiny(layers=1)
    batches = batches_of(model)
    (layer,) = [layer for layer in model.layers() if layer.name == "model.encoder.layers.0.fc2"]
    factors = factors_of(model, batches, share=0.7, layers=[layer])
    ((_, statistics),) = collect_statistics([model.network], batches, [layer], factors=factors)
    seen = list[Tensor]()
    hook = model.module(layer.name).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    for batch in batches:
        model.network(**batch.inputs)
    hook.remove()
    for fold in (0, 1):
        hessian, total, weight = torch.zeros(128, 128, dtype=torch.float64), torch.zeros(128, dtype=torch.float64), 0.0
        for inputs, batch, own in zip(seen, batches, factors[layer.name], strict=True):
            for i, of_fold in enumerate(batch.folds.tolist()):
                for x, w, c in zip(inputs[i].double(), batch.weights["frames"][i].tolist(), own[i].tolist(), strict=True):
                    if of_fold == fold:
                        hessian, total, weight = hessian + w * c * torch.outer(x, x), total + w * c * x, weight + w * c
        found = statistics.folds[fold]
        torch.testing.assert_close(found.moments.hessian.matrix, hessian, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.quantized_mean, total / weight, rtol=1e-4, atol=1e-5)
        assert found.weight == pytest.approx(weight, rel=1e-5)


def test_it_changes_codes_and_repeats(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    files = []
    for number, share in enumerate((0.0, 0.5, 0.5)):
        recipe = Recipe(method=FADE(curvature=share), format=Affine(bits=3, group_size=32))
        api.quantize(model_folder, tmp_path / str(number), recipe=recipe, calibration=speech_folder, utterances=6)
        files.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert files[0] != files[1] == files[2]
    assert api.inspect(tmp_path / "1").recipe.method == FADE(curvature=0.5)


def test_it_never_mixes_devices() -> None:
    model = make_tiny(width=32, layers=1)
    model.network.set_attn_implementation("eager")
    expected = factors_of(model, batches_of(model))
    with PretendedDevice():
        running = model.placed(Placement(device=DEVICE))
        found = factors_of(running, batches_of(running))
    for name, rows in expected.items():
        for a, b in zip(rows, found[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_gptq_with_curvature_of_a_single_network() -> None:
    from tests.system.test_devices import SPEECH

    model = make_tiny(width=32, layers=1)
    found = [quantized(model, Recipe(method=GPTQ(curvature=share)), SPEECH).weights["model.decoder.layers.0.fc2"].codes for share in (0, 1)]
    assert not torch.equal(*found)


def test_what_is_out_of_range_or_unforeseen_is_refused(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    for share in (-0.1, 1.5):
        with pytest.raises(RecipeError, match="out of range; 0 to 1"):
            method_named("fade", curvature=share)
    recipe = Recipe(method=replace(FADE(), curvature=0.5))
    with pytest.raises(RecipeError, match="leave out --max-memory or --curvature"):
        api.quantize(model_folder, tmp_path / "out", recipe=recipe, calibration=speech_folder, max_memory=1 << 40)


def test_the_model_is_left_as_it_was() -> None:
    model = make_tiny(layers=1)
    factors_of(model, batches_of(model))
    assert not any(module._forward_hooks or module._backward_hooks for module in model.network.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.network.parameters())


def test_families_that_say_nothing_of_their_positions() -> None:
    model = make_speech_to_text()
    batches = batches_of(model, 1)
    assert not batches[0].weights
    factors = factors_of(model, batches)
    assert factors.keys() == {layer.name for layer in model.layers()}
    assert all(float(row.mean()) == pytest.approx(1.0, abs=1e-5) for rows in factors.values() for row in rows)
    assert any(float(row.std()) > 0.01 for rows in factors.values() for row in rows)
