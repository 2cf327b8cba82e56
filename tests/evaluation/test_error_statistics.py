"""The Gram matrix of errors: against a loop from its formula, and what must hold for it."""

import math

import numpy as np
import pytest
import torch

from sottovoce.core.affine import Affine
from sottovoce.evaluation.error_statistics import ROUNDING, ErrorStatistics, _Frame, error_statistics
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
    """At 8 bits KL is quadratic; of 260 tokens the 256 most probable are kept one by one, so next to nothing is left out."""
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


def slow_contribution(log_p: list[float], change: list[float], kept: int) -> list[float]:
    """`sqrt(p) * (D - <p, D>)` at one token of speech: of the most probable tokens, and of all others as if they were one."""
    p = [math.exp(value) for value in log_p]
    mean = sum(a * d for a, d in zip(p, change, strict=True))
    order = sorted(range(len(p)), key=lambda v: -p[v])
    found, rest = [math.sqrt(p[v]) * (change[v] - mean) for v in order[:kept]], order[kept:]
    share = sum(p[v] for v in rest)
    of_rest = sum(p[v] * change[v] for v in rest) / share if rest else mean
    return [*found, math.sqrt(share) * (of_rest - mean)]


@pytest.mark.parametrize("kept", [1, 3, 8, 9])
def test_what_is_not_kept_counts_as_one_token(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a vocabulary of eight; with all of it kept, there is no rest."""
    monkeypatch.setattr("sottovoce.evaluation.error_statistics.TOP_TOKENS", kept)
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(5, 8, dtype=torch.float64, generator=generator).log_softmax(-1)
    change = torch.randn(5, 8, dtype=torch.float64, generator=generator)
    wanted = [slow_contribution(p, d, kept) for p, d in zip(log_p.tolist(), change.tolist(), strict=True)]
    found = _Frame(log_p).contribution(change)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-7)
    # A constant added to all logits changes nothing.
    torch.testing.assert_close(_Frame(log_p).contribution(change + 3.0), found, rtol=1e-9, atol=1e-7)


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
