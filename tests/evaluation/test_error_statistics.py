"""The Gram matrix of errors: against a loop from its formula, and what must hold for it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sottovoce.core.affine import Affine
from sottovoce.errors import DataError
from sottovoce.evaluation.error_statistics import ROUNDING, ErrorStatistics, _Frame, error_statistics, error_table
from sottovoce.evaluation.held_out import HeldOutSpeech, half_variance
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


def test_figures_of_a_matrix_by_hand() -> None:
    """A unit that does nothing has no correlation; parts are sums, halved; units without a part are their own."""
    matrix = np.array([[4.0, 2.0, 0.0], [2.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    found = ErrorStatistics(("a", "b", ROUNDING), matrix, 8.0, 7.0, 5, "telescoped")
    assert (found.predicted_kl, found.alone_kl, found.off_diagonal_share) == (8.5, 6.5, pytest.approx(4 / 17))
    np.testing.assert_allclose(found.correlation, [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]])
    names, parts = found.grouped({"a": "encoder", "b": "encoder"})
    assert names == ["encoder", ROUNDING]
    np.testing.assert_allclose(parts, [[8.5, 0], [0, 0]])
    assert ErrorStatistics(("a",), np.zeros((1, 1)), 0.0, 0.0, 5, "alone").off_diagonal_share == 0
    table = error_table(found, {"a": "encoder", "b": "head"})
    assert (table.half_sum, table.half_trace, table.half_sum_shuffled, table.measured_kl) == (8.5, 6.5, 7.0, 8.0)
    assert table.parts == ("encoder", "head", ROUNDING)
    assert table.half_sum_by_part == ((2.0, 1.0, 0.0), (1.0, 4.5, 0.0), (0.0, 0.0, 0.0))
    assert (table.matrix, table.tokens, table.mode, table.off_diagonal_share) == (
        tuple(map(tuple, matrix.tolist())), 5, "telescoped", found.off_diagonal_share,
    )  # fmt: skip
    for units, rows in ((("a",), matrix.tolist()), (("a", "b", "c"), matrix.tolist()[:2]), (("a", "b", "c"), [[0.0]] * 3)):
        with pytest.raises(DataError, match=f"has {len(rows)} rows for {len(units)} units"):
            replace(table, units=units, matrix=tuple(map(tuple, rows)))


@pytest.fixture(scope="module")
def few(model: Whisper) -> HeldOutSpeech:
    """Two utterances of three tokens and an end."""
    noise = 0.1 * np.random.default_rng(1).standard_normal((2, 8000)).astype("float32")
    return HeldOutSpeech(model, list(noise), [[5, 6, 7], [8, 9, 10]], [None] * 2)


def changed() -> Whisper:
    """Stands for a quantized model: every weight of every layer moved a little."""
    other, generator = make_tiny(layers=1), torch.Generator().manual_seed(0)
    for layer in other.layers():
        weight = other.module(layer.name).weight
        weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    return other


def test_telescoped_errors_are_changes_from_unit_to_unit(model: Whisper, few: HeldOutSpeech) -> None:
    """Two units of the encoder and one of the decoder, one by one; shuffled tokens by the seed."""
    names, small, told = [layer.name for layer in model.layers()], changed(), list[int]()
    units = {"first": names[:2], "second": names[2:4], "third": [next(name for name in names if ".decoder." in name)]}
    found = error_statistics(model, small, units, few, seed=2, progress=lambda _what, done, _of, *_rest: told.append(done))
    assert told == [0, 1, 2, 3]
    other, before, rows, frame = make_tiny(layers=1), few.log_p, [], _Frame(few.log_p)
    for members in units.values():
        for name in members:
            other.module(name).weight.data.copy_(small.module(name).weight)
        after = few.log_probabilities(other, few.states(other, few.encode(other)))
        rows.append(frame.contribution(after - before).double())
        before = after
    whole = few.log_probabilities(small, few.states(small, few.encode(small)))
    rows.append(frame.contribution(whole - before).double())
    assert (found.units, found.tokens, found.mode) == ((*units, ROUNDING), 8, "telescoped")
    for i, j in np.ndindex(4, 4):
        assert found.matrix[i, j] == pytest.approx(float((rows[i] * rows[j]).sum() / 8), rel=1e-3, abs=1e-7)
    assert found.measured_kl == pytest.approx(few.mean_divergence(small), rel=1e-6)
    generator = torch.Generator().manual_seed(2)
    mixed = torch.stack([row[torch.randperm(8, generator=generator)] for row in rows]).sum(0)
    assert found.shuffled_kl == pytest.approx(float(mixed.square().sum()) / 8 / 2, rel=1e-3)


def test_units_alone_are_quantized_in_the_original(model: Whisper, few: HeldOutSpeech) -> None:
    """After a unit of the encoder, one of the decoder hears the original's encoder again."""
    names, small = [layer.name for layer in model.layers()], changed()
    last = next(name for name in names if ".decoder." in name)
    both = error_statistics(model, small, {"a": names[:1], "b": [last]}, few, mode="alone")
    for unit, place in ((names[0], 0), (last, 1)):
        one = error_statistics(model, small, {"x": [unit]}, few, mode="alone")
        assert one.units == ("x",)
        assert both.matrix[place, place] == pytest.approx(one.matrix[0, 0], rel=1e-5)


def test_held_out_speech_numbers_its_tokens(model: Whisper, speech: HeldOutSpeech) -> None:
    assert (speech.n_utterances, speech.n_tokens) == (6, 6 * 10)
    assert speech.utterance.tolist() == [i for i in range(6) for _ in range(10)]
    noise = np.random.default_rng(0).standard_normal(16000).astype("float32") * 0.1
    two = HeldOutSpeech(model, [noise] * 2, [[5, 6], []], [None] * 2)
    assert two.utterance.tolist() == [0, 0, 0, 1]
    assert two.n_tokens == len(two.log_p) == 4
    with pytest.raises(DataError, match="there is no held-out speech"):
        HeldOutSpeech(model, [], [], [])


def test_half_the_variance_of_a_change() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (torch.randn(3, 7, dtype=torch.float64, generator=generator).log_softmax(-1) for _ in range(2))
    for t, found in enumerate(half_variance(log_p, log_q).tolist()):
        p = [math.exp(value) for value in log_p[t].tolist()]
        change = [b - a for a, b in zip(log_p[t].tolist(), log_q[t].tolist(), strict=True)]
        mean = sum(a * d for a, d in zip(p, change, strict=True))
        assert found == pytest.approx(sum(a * (d - mean) ** 2 for a, d in zip(p, change, strict=True)) / 2)
