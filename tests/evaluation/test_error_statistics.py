"""The Gram matrix of errors: against a loop from its formula, and what must hold for it."""

import numpy as np
import pytest
import torch

from sottovoce.core.affine import Affine
from sottovoce.evaluation.error_statistics import ROUNDING, ErrorStatistics, error_statistics
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from tests.conftest import make_tiny, quantized


@pytest.fixture(scope="module")
def model() -> Whisper:
    return make_tiny(layers=1)


@pytest.fixture(scope="module")
def speech(model: Whisper) -> HeldOutSpeech:
    generator = np.random.default_rng(0)
    recordings = [generator.standard_normal(16000).astype("float32") * 0.1 for _ in range(6)]
    transcripts = [list(generator.integers(0, 250, 9)) for _ in recordings]
    return HeldOutSpeech(model, recordings, [[int(t) for t in row] for row in transcripts], [None] * 6)


def statistics(model: Whisper, speech: HeldOutSpeech, bits: int, **settings: object) -> ErrorStatistics:
    small = quantized(model, Recipe(method=METHODS["rtn"], format=Affine(bits=bits))).model
    units = {layer.name: [layer.name] for layer in model.layers()}
    return error_statistics(model, small, units, speech, **settings)  # type: ignore[arg-type]


def test_half_the_sum_is_the_kl(model: Whisper, speech: HeldOutSpeech) -> None:
    """At 8 bits KL is quadratic; a vocabulary within the kept tokens leaves nothing out."""
    found = statistics(model, speech, 8)
    assert found.units[-1] == ROUNDING
    assert found.predicted_kl == pytest.approx(found.measured_kl, rel=0.05)
    assert np.linalg.eigvalsh(found.matrix).min() > -1e-12
    np.testing.assert_allclose(np.diag(found.correlation), 1)


def test_equals_a_loop_from_the_formula(model: Whisper, speech: HeldOutSpeech) -> None:
    small = quantized(model, Recipe(method=METHODS["rtn"], format=Affine(bits=4))).model
    names = [layer.name for layer in model.layers()][:2]
    found = error_statistics(model, small, {name: [name] for name in names}, speech, mode="alone")
    contributions = []
    for name in names:
        other = make_tiny(layers=1)
        other.module(name).weight.data.copy_(small.module(name).weight)
        change = speech.log_probabilities(other, speech.states(other, speech.encode(other))) - speech.log_p
        p = speech.log_p.exp()
        contributions.append(p.sqrt() * (change - (p * change).sum(-1, keepdim=True)))
    for i in range(2):
        for j in range(2):
            wanted = float((contributions[i] * contributions[j]).sum(-1).mean())
            assert found.matrix[i, j] == pytest.approx(wanted, rel=0.02, abs=1e-7)


def test_shuffled_tokens_leave_the_trace(model: Whisper, speech: HeldOutSpeech) -> None:
    """Shuffled, errors of different units have little in common."""
    found = statistics(model, speech, 4)
    assert abs(found.shuffled_kl - found.alone_kl) < 0.35 * found.alone_kl
    names, parts = found.grouped({layer.name: layer.part for layer in model.layers()})
    assert set(names) >= {"encoder", "head", ROUNDING}
    assert parts.sum() == pytest.approx(found.predicted_kl)


def test_the_same_error_twice_is_fully_correlated() -> None:
    twice = ErrorStatistics(("a", "b"), np.ones((2, 2)), 2.0, 1.0, 5, "alone")
    assert twice.correlation[0, 1] == 1
    assert twice.off_diagonal_share == 0.5
    assert torch.tensor(twice.alone_kl) == 1.0
