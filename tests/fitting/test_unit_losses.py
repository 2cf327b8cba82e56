"""What a fit's choices rest on: replayed passes, units at full precision, and their losses, each against the plain computation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce.core.affine import Affine
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.fitting.attempt import install, layers_restored
from sottovoce.fitting.measuring import priced_units
from sottovoce.fitting.passes import Passes
from sottovoce.fitting.unit_losses import ChangeMeter, UnitLoss, layers_from, measure_unit_losses
from sottovoce.models.block_replay import BlockReplay, blocks_of
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.plan import PlannedLayer
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.schedule import PricedUnit, Unit
from sottovoce.system.devices import share_weights
from sottovoce.system.progress import silent
from tests.conftest import make_tiny, make_tiny_moonshine, quantized

EXACT = {"rtol": 0.0, "atol": 0.0}


@pytest.fixture(scope="module", params=[make_tiny, make_tiny_moonshine], ids=["whisper", "moonshine"])
def original(request: pytest.FixtureRequest) -> SpeechModel:
    model: SpeechModel = request.param()
    return model


@pytest.fixture(scope="module")
def speech(original: SpeechModel) -> HeldOutSpeech:
    """More than one batch, of unequal lengths."""
    generator = np.random.default_rng(0)
    recordings = [generator.standard_normal(6000 + 900 * i).astype("float32") * 0.1 for i in range(10)]
    transcripts = [[int(token) for token in generator.integers(5, 250, 3 + i % 4)] for i in range(10)]
    return HeldOutSpeech(original, recordings, transcripts, [None] * 10)


@pytest.fixture(scope="module")
def small(original: SpeechModel) -> SpeechModel:
    return quantized(original, Recipe(method=METHODS["rtn"], format=Affine(bits=4))).model


def plainly(model: SpeechModel, speech: HeldOutSpeech) -> Tensor:
    """Log-probabilities of a full forward pass."""
    return speech.log_probabilities(model, speech.states(model, speech.encode(model)))


def with_original(small: SpeechModel, original: SpeechModel, layers: Sequence[str]) -> SpeechModel:
    """A copy of `small` in which some layers have the original's weights, by the names of its parameters."""
    network: Any = share_weights(small.network)
    model = small.with_network(network)
    for name in layers:
        for kind, parameter in original.module(name).named_parameters(recurse=False):
            setattr(model.module(name), kind, torch.nn.Parameter(parameter.clone(), requires_grad=False))
        if name == original.head:
            model.module(original.embedding).weight = model.module(name).weight
    return model


def units_of(model: SpeechModel) -> dict[str, list[str]]:
    """Every layer, and one unit of several blocks and both halves."""
    names = [layer.name for layer in model.layers()]
    return {name: [name] for name in names} | {"several": [names[-2], names[1]]}


def test_replayed_passes_equal_full_ones_for_every_unit(original: SpeechModel, small: SpeechModel, speech: HeldOutSpeech) -> None:
    passes = Passes()
    meter = ChangeMeter(small, speech, passes)
    torch.testing.assert_close(meter.log_q, plainly(small, speech), **EXACT)
    for name, layers in units_of(original).items():
        with layers_from(original, small, layers):
            torch.testing.assert_close(
                meter.changed(layers), plainly(small, speech), **EXACT, msg=lambda text, name=name: f"{name}: {text}"
            )
    torch.testing.assert_close(plainly(small, speech), meter.log_q, **EXACT)
    count = len(units_of(original))
    assert 10 < passes.encoder < 10 * count
    assert 10 < passes.decoder < 10 * (count + 1)


def test_a_stale_replay_would_be_noticed(original: SpeechModel, small: SpeechModel, speech: HeldOutSpeech) -> None:
    """Told of the last block, a change of the first is not seen: blocks before the named one do not run."""
    layers = [layer.name for layer in original.layers() if layer.part == "encoder"]
    meter = ChangeMeter(small, speech, Passes())
    with layers_from(original, small, layers[:1]):
        stale = meter.changed(layers[-1:])
    torch.testing.assert_close(stale, meter.log_q, **EXACT)


@pytest.mark.parametrize("room", ["enough", "one block", "nothing"])
def test_beyond_the_memory_everything_runs_again(original: SpeechModel, speech: HeldOutSpeech, room: str) -> None:
    model = original.with_network(share_weights(original.network))
    blocks = blocks_of([layer.name for layer in model.layers() if layer.part == "encoder"])
    assert len(blocks) > 1
    whole = [encoded.states for encoded in speech.encode(model)]
    one = sum(states.numel() * states.element_size() for states in whole)  # every block returns as much
    replay = BlockReplay(model.network, blocks, most_bytes={"enough": one * len(blocks), "one block": one, "nothing": 0}[room])
    with replay.record():
        speech.encode(model)
    ran = list[str]()
    hooks = [model.module(f"{name}.fc1" if hasattr(model.module(name), "fc1") else f"{name}.mlp").register_forward_hook(
        lambda *_args, name=name: ran.append(name)) for name in blocks]  # fmt: skip
    with replay.replay(blocks[-1]):
        again = [encoded.states for encoded in speech.encode(model)]
    for hook in hooks:
        hook.remove()
    for states, wanted in zip(again, whole, strict=True):
        torch.testing.assert_close(states, wanted, **EXACT)
    kept = room == "enough"
    assert set(ran) == ({blocks[-1]} if kept else set(blocks))
    assert replay.share_from(blocks[-1]) == (pytest.approx(1 / len(blocks)) if kept else 1.0)
    assert replay.share_from(None) == 1.0


def test_what_is_in_no_block_is_not_replayed(original: SpeechModel) -> None:
    blocks = blocks_of([layer.name for layer in original.layers() if layer.part == "encoder"])
    replay = BlockReplay(original.network, blocks)
    assert replay.first([f"{blocks[1]}.fc1", f"{blocks[0]}.fc2"]) == blocks[0]
    assert replay.first([f"{blocks[1]}.fc1", original.head]) is None


def test_sensitivities_are_those_of_the_original_with_one_unit_quantized(
    original: SpeechModel, small: SpeechModel, speech: HeldOutSpeech
) -> None:
    units, told, before = units_of(original), dict[str, UnitLoss](), UnitLoss(own=0.5, marginal=-0.5)
    first, meter = next(iter(units)), ChangeMeter(original, speech, Passes())
    found = measure_unit_losses(small, meter, units, known={first: before}, on_loss=told.__setitem__, progress=silent)
    assert found.pop(first) == before  # what an earlier run measured is not measured again
    assert found == told
    for name, loss in found.items():
        kl = meter.kl - loss.marginal
        model = with_original(original, small, units[name])
        assert kl == pytest.approx(float(speech.divergence(plainly(model, speech)).double().mean()), rel=1e-6), name
        assert kl > 0
    torch.testing.assert_close(plainly(original, speech), ChangeMeter(original, speech, Passes()).log_q, **EXACT)  # it is whole again


def test_full_precision_is_a_network_with_the_originals_weights(original: SpeechModel, small: SpeechModel, speech: HeldOutSpeech) -> None:
    before = {name: parameter.clone() for name, parameter in small.network.named_parameters()}
    for layers in units_of(original).values():
        wanted = with_original(small, original, layers)
        with layers_from(original, small, layers):
            assert small.tied == original.tied
            for name, parameter in wanted.network.named_parameters():
                assert torch.equal(small.network.get_parameter(name), parameter), name
            if layers == [original.head]:
                torch.testing.assert_close(plainly(small, speech), plainly(wanted, speech), **EXACT)
    assert small.tied == original.tied
    for name, parameter in small.network.named_parameters():
        assert torch.equal(before[name], parameter), name


def test_layers_are_restored_after_an_error(original: SpeechModel) -> None:
    model = original.with_network(share_weights(original.network))
    names = [model.layers()[0].name, model.head]
    before = {name: dict(model.module(name).named_parameters()) for name in [*names, model.embedding]}
    with pytest.raises(KeyboardInterrupt), layers_restored(model, names):  # noqa: PT012 - what is changed inside is the point
        for name in names:
            install(original, model, name, None)
        assert model.module(model.head).weight is not before[model.head]["weight"]
        raise KeyboardInterrupt
    for name, parameters in before.items():
        assert all(getattr(model.module(name), kind) is parameter for kind, parameter in parameters.items())


def test_float16_is_installed_as_it_is_stored(original: SpeechModel) -> None:
    model = original.with_network(share_weights(original.network))
    for name in (model.layers()[0].name, model.head):
        install(original, model, name, None)
        assert torch.equal(model.module(name).weight, original.module(name).weight.half().float())
    assert model.tied == original.tied


def test_losses_equal_the_plain_computation(original: SpeechModel, small: SpeechModel, speech: HeldOutSpeech) -> None:
    """`marginal` is a difference of two KLs; `own` half the variance of the change, summed over the vocabulary."""
    units, told = units_of(original), dict[str, UnitLoss]()
    known = {"several": UnitLoss(own=1.0, marginal=2.0)}
    meter = ChangeMeter(small, speech, Passes())
    losses = measure_unit_losses(original, meter, units, known=known, on_loss=told.__setitem__, progress=silent)
    assert losses == known | told
    assert set(told) == set(units) - {"several"}
    log_p, log_q = plainly(original, speech).double(), plainly(small, speech).double()

    def kl(log_other: Tensor) -> float:
        return float(sum(row_p.exp() @ (row_p - row) for row_p, row in zip(log_p, log_other, strict=True))) / len(log_p)

    assert meter.kl == pytest.approx(kl(log_q), rel=1e-4)
    for name, loss in told.items():
        log_other = plainly(with_original(small, original, units[name]), speech).double()
        own = 0.0
        for row, other in zip(log_q, log_other, strict=True):
            weights, change = other.exp(), row - other
            own += 0.5 * float(weights @ (change - weights @ change).square()) / len(log_q)
        assert loss.own == pytest.approx(own, rel=1e-3, abs=1e-9)
        assert loss.marginal == pytest.approx(kl(log_q) - kl(log_other), rel=1e-3, abs=1e-6)


def test_prices_add_up_to_the_kl_and_float16_keeps_its_own() -> None:
    formats = (Affine(bits=4), Affine(bits=8), None)
    units = [
        Unit(
            name=name,
            layers=(PlannedLayer(name=name, part="encoder", format=Affine(bits=4), shape=(8, 32), tie_group=None),),
            menu=formats,
            bytes=(1, 2, 4),
        )
        for name in "abc"
    ]
    errors = {(name, number_format): 4.0 / number_format.bits for name in "abc" for number_format in formats if number_format is not None}
    losses = {"a": UnitLoss(own=1.0, marginal=9.0), "b": UnitLoss(own=3.0, marginal=-9.0), "c": UnitLoss(own=0.0, marginal=0.0)}
    priced = priced_units(units, (0, 0, 0), errors, losses, 0.2)
    assert [unit.base_loss for unit in priced] == pytest.approx([0.05, 0.15, 0.0])
    assert priced[1].losses == pytest.approx((0.15, 0.075, 0.0))
    before: list[PricedUnit] = priced
    again = priced_units(units, (1, 0, 2), errors, losses, 0.4, before)
    assert again[2] is before[2]
    assert (again[0].base, again[0].base_loss) == (1, pytest.approx(0.1))
    assert again[0].losses == pytest.approx((0.2, 0.1, 0.0))
    nothing = {name: UnitLoss(own=0.0, marginal=0.0) for name in "abc"}
    assert [unit.base_loss for unit in priced_units(units, (0, 0, 0), errors, nothing, 0.4)] == [0.0, 0.0, 0.0]
