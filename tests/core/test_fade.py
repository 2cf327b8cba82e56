"""Propagation, cross-fitting and the diagnostics, against the formulas written out."""

import math
from dataclasses import astuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.affine import Affine
from sottovoce.core.error_metrics import outlier_ratio, output_energy, relative_output_error, relative_weight_error
from sottovoce.core.fade import (
    NO_CORRECTION,
    CrossFit,
    calibration_gain,
    cross_fit,
    diagnostic_strengths,
    held_out_choice,
    reliability_score,
)
from sottovoce.core.gptq import gptq
from sottovoce.core.hessian import Hessian
from sottovoce.core.qep import Moments, corrected_target, correction
from sottovoce.core.rtn import rtn
from tests.conftest import random_moments


def test_full_correction_without_ridge_is_least_squares() -> None:
    """`alpha = 1, ridge -> 0` gives the weights that best produce W X from X^."""
    moments, original, quantized = random_moments(24, seed=0, n=100)
    weight = torch.randn(5, 24, dtype=torch.float64)
    solution = torch.linalg.lstsq(quantized.T, (weight @ original).T).solution.T
    torch.testing.assert_close((weight + correction(weight, moments, 1e-12)).float(), solution.float(), rtol=1e-4, atol=1e-4)


def test_correction_equals_the_formula() -> None:
    moments, _, _ = random_moments(24, seed=1)
    weight, matrix = torch.randn(5, 24), moments.hessian.matrix
    damped = matrix + 0.3 * matrix.diagonal().mean() * torch.eye(24)
    expected = weight + 0.5 * weight.double() @ moments.cross @ torch.linalg.inv(damped)
    torch.testing.assert_close(corrected_target(weight, moments, strength=0.5, ridge=0.3), expected.float())
    assert torch.equal(corrected_target(weight, moments, strength=0, ridge=0.3), weight)


def slow_cross_fit(weight: torch.Tensor, folds: tuple[Moments, Moments], ridge: float, limit: float) -> tuple[float, float]:
    corrections = []
    for fold in folds:
        matrix = fold.hessian.matrix
        corrections.append(weight @ fold.cross @ torch.linalg.inv(matrix + ridge * matrix.diagonal().mean() * torch.eye(len(matrix))))
    (a, b), (c_a, c_b) = folds, corrections
    top = torch.trace(c_a @ (weight @ b.cross).T) + torch.trace(c_b @ (weight @ a.cross).T)
    bottom = torch.trace(c_a @ b.hessian.matrix @ c_a.T) + torch.trace(c_b @ a.hessian.matrix @ c_b.T)
    strength = min(max(float(top / bottom), 0.0), limit)
    return strength, float(2 * strength * top - strength**2 * bottom)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1.0, 2.0]))
def test_cross_fit_equals_the_formula(seed: int, limit: float) -> None:
    folds = (random_moments(16, seed, n=40)[0], random_moments(16, seed + 5000, n=60)[0])
    weight = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ridges = (0.01, 0.3, 3.0)
    found = cross_fit(weight, folds, ridges, limit=limit)
    slow = {ridge: slow_cross_fit(weight, folds, ridge, limit) for ridge in ridges}
    best = max(slow, key=lambda ridge: slow[ridge][1])
    energy = sum(output_energy(weight, fold.hessian.matrix) for fold in folds)
    if slow[best][1] <= 0:
        assert found.strength == 0
    else:
        assert found.ridge == best
        assert found.strength == pytest.approx(slow[best][0], rel=1e-6)
        assert found.gain == pytest.approx(slow[best][1] / energy, rel=1e-6)


@pytest.mark.parametrize(("contradiction", "ridge"), [(0.0, 0.1), (0.1, 0.3), (0.2, 1.0)])
def test_the_more_the_folds_contradict_each_other_the_greater_is_the_ridge(contradiction: float, ridge: float) -> None:
    """They agree about the strong channel and contradict each other about the weak one, which a ridge damps first."""
    hessian = Hessian(torch.diag(torch.tensor([1.9, 0.1], dtype=torch.float64)))
    folds = tuple(Moments(hessian, torch.diag(torch.tensor([1.0, sign * contradiction], dtype=torch.float64))) for sign in (1, -1))
    weight = torch.eye(2, dtype=torch.float64)
    assert cross_fit(weight, folds) == cross_fit(weight, folds, (ridge,))  # type: ignore[arg-type]


def test_cross_fit_removes_that_much_held_out_error() -> None:
    """The gain is what it says: the drop of ||W X - Z X^||^2 on the other fold."""
    (a, x_a, q_a), (b, x_b, q_b) = random_moments(16, 1, n=60), random_moments(16, 1, n=60)
    noise = torch.randn(16, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) * 0.2
    x_b = x_b + noise
    b = Moments(b.hessian, (x_b - q_b) @ q_b.T)
    weight = torch.randn(4, 16, dtype=torch.float64)
    found = cross_fit(weight, (a, b), (0.1,))
    before, after = 0.0, 0.0
    for learnt, x, q in ((a, x_b, q_b), (b, x_a, q_a)):
        target = weight + found.strength * correction(weight, learnt, 0.1)
        before += float((weight @ x - weight @ q).square().sum())
        after += float((weight @ x - target @ q).square().sum())
    energy = output_energy(weight, a.hessian.matrix) + output_energy(weight, b.hessian.matrix)
    assert 0 < found.strength <= 1
    assert found.gain == pytest.approx((before - after) / energy, rel=1e-9)


def test_folds_that_contradict_each_other_get_no_strength() -> None:
    a = random_moments(16, 3)[0]
    weight = torch.randn(4, 16, dtype=torch.float64)
    found = cross_fit(weight, (a, Moments(a.hessian, -a.cross)), (0.1,))
    assert found.strength == 0
    assert found.gain == 0


def test_moments_seen_through_the_weight_give_the_same() -> None:
    folds = (random_moments(16, 1, n=40)[0], random_moments(16, 2, n=60)[0])
    weight = torch.randn(6, 16, dtype=torch.float64)
    seen = tuple(Moments(fold.hessian, weight @ fold.cross, projected=True) for fold in folds)
    some = slice(None, None, 2)
    of_rows = (seen[0].of_rows(some), seen[1].of_rows(some))
    assert astuple(cross_fit(weight, seen)) == pytest.approx(astuple(cross_fit(weight, folds)))
    assert astuple(cross_fit(weight[some], of_rows)) == pytest.approx(astuple(cross_fit(weight[some], folds)))
    torch.testing.assert_close(
        corrected_target(weight, seen[0] + seen[1], strength=0.7, ridge=0.3),
        corrected_target(weight, folds[0] + folds[1], strength=0.7, ridge=0.3),
    )


def test_nothing_heard_gets_no_strength() -> None:
    silent = Moments(Hessian(torch.zeros(8, 8)), torch.zeros(8, 8))
    assert cross_fit(torch.randn(3, 8), (silent, silent)).strength == 0


def slow_rounding(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int) -> torch.Tensor:
    """Each weight by itself at its nearest level, in float64; `scale`, `zero` `[out, groups]`."""
    values, size = torch.zeros_like(weight, dtype=torch.float64), weight.shape[1] // scale.shape[1]
    for i, row in enumerate(weight.tolist()):
        for j, value in enumerate(row):
            step, shift = float(scale[i, j // size]), float(zero[i, j // size])
            values[i, j] = (min(max(round(value / step) + shift, 0), top) - shift) * step
    return values


def halves(common: float) -> tuple[Moments, Moments]:
    """Two folds of the same speech: each channel has lost `common` times its neighbor, and noise that the folds do not share."""
    _, noisy, quantized = random_moments(64, 1, n=140, noise=1.0)
    lost = common * quantized.roll(1, 0) + noisy - quantized
    parts = (slice(0, 70), slice(70, 140))
    first, second = (Moments(Hessian(quantized[:, part] @ quantized[:, part].T), lost[:, part] @ quantized[:, part].T) for part in parts)
    return first, second


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize(("seed", "common"), [(0, 0.0), (1, 0.1), (2, 0.1)])
def test_held_out_choice_equals_doing_it_one_by_one(weigh: bool, seed: int, common: float) -> None:
    folds = halves(common)
    weight = torch.randn(6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    grid, dampings = Affine(bits=3, group_size=32), (0.01, 0.3, 3.0)
    fits = (cross_fit(weight, folds, (0.3,)), NO_CORRECTION)
    pairs = [(fit, damping) for fit in fits for damping in dampings]
    found = held_out_choice(weight, folds, grid, pairs=pairs, hessian_weighted_scales=weigh)
    losses, added, rounded = {}, {}, {}
    energy = sum(output_energy(weight, fold.hessian.matrix) for fold in folds)
    for fit in fits:
        for damping in dampings:
            loss = extra = plain = 0.0
            for learn, judge in (folds, folds[::-1]):
                target = corrected_target(weight, learn, strength=fit.strength, ridge=fit.ridge)
                importance = (learn.hessian.matrix.diagonal() / learn.hessian.mean_diagonal).float() if weigh else None
                parameters = grid.fit(target, importance)
                values = gptq(target, learn.hessian, grid, damping=damping, parameters=parameters).weight.dequantize().double()
                loss += output_energy(weight - values, judge.hessian.matrix) + 2 * float(((weight - values) * (weight @ judge.cross)).sum())
                extra += output_energy(target.double() - values, judge.hessian.matrix)
                nearest = slow_rounding(target, parameters["scale"], parameters["zero_point"], grid.max_code)
                plain += output_energy(target.double() - nearest, judge.hessian.matrix)
            losses[fit, damping], added[fit, damping], rounded[fit, damping] = loss, extra / energy, plain / energy
    best = min(losses, key=lambda pair: losses[pair])
    assert (found.fit, found.damping) == best
    assert (found.fit.strength > 0.5) == (common > 0)
    assert found.calibrated_error == pytest.approx(added[best], rel=1e-4)
    assert found.rounded_error == pytest.approx(rounded[best], rel=1e-4)


def test_a_correction_that_only_helps_before_rounding_is_dropped() -> None:
    """On a grid of four levels over whole rows, a strong correction of one column ruins the scale of all others."""
    generator = torch.Generator().manual_seed(3)
    hessian = Hessian(torch.eye(32, dtype=torch.float64))
    weight = 0.1 * torch.randn(8, 32, dtype=torch.float64, generator=generator)
    cross = torch.zeros(32, 32, dtype=torch.float64)
    cross[1, 0] = 0.01
    fold = Moments(hessian, cross)
    wild = CrossFit(1.0, 1e-6, 0.0)
    far = Moments(hessian, 100 * cross)
    pairs = [(wild, 0.1), (NO_CORRECTION, 0.1)]
    kept = held_out_choice(weight, (fold, fold), Affine(bits=2, group_size=32), pairs=pairs)
    dropped = held_out_choice(weight, (far, fold), Affine(bits=2, group_size=32), pairs=pairs)
    assert kept.fit in (wild, NO_CORRECTION)
    assert dropped.fit == NO_CORRECTION


def test_scores() -> None:
    assert reliability_score(0.1, 0.4) == pytest.approx(0.5)  # accuracies 0.9 and 0.6
    assert reliability_score(0.5, 1.5) == 0.0
    assert calibration_gain(0.1, 0.4) == pytest.approx(0.75)
    assert calibration_gain(0.0, 0.0) == 0.0


def test_diagnostic_strengths() -> None:
    assert diagnostic_strengths([0.3, 0.3], [0.1, 0.1]) == [0.5, 0.5]
    low, high = diagnostic_strengths([0.1, 0.3], [0.2, 0.2])
    assert low == pytest.approx(1 / (1 + math.e))
    assert high == pytest.approx(1 / (1 + 1 / math.e))


def test_measures() -> None:
    weight, other = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.0]])
    matrix = torch.diag(torch.tensor([1.0, 2.0]))
    assert output_energy(weight, matrix) == pytest.approx(9 + 32)
    assert relative_output_error(weight, other, matrix) == pytest.approx(2 / 41)
    assert relative_weight_error(weight, other) == pytest.approx(1 / 5)
    assert relative_output_error(torch.zeros(1, 2), other, matrix) == 0
    assert outlier_ratio(torch.tensor([[1.0, 1.0, 2.0, 0.0]]), 2) == pytest.approx((1 + math.sqrt(2)) / 2)
    assert relative_weight_error(weight, rtn(weight.repeat(1, 16), Affine(bits=8, group_size=32)).dequantize()[:, :2]) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_a_fixed_strength_gets_the_ridge_that_removes_most(seed: int) -> None:
    folds = (random_moments(16, seed, n=40)[0], random_moments(16, seed + 5000, n=60)[0])
    weight = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gains = {}
    for ridge in (0.01, 0.3, 3.0):
        from_a, from_b = (correction(weight, fold, ridge) for fold in folds)
        top = float((from_a * (weight @ folds[1].cross)).sum() + (from_b * (weight @ folds[0].cross)).sum())
        bottom = output_energy(from_a, folds[1].hessian.matrix) + output_energy(from_b, folds[0].hessian.matrix)
        gains[ridge] = 2 * 0.5 * top - 0.25 * bottom
    found = cross_fit(weight, folds, tuple(gains), fixed=0.5)
    energy = sum(output_energy(weight, fold.hessian.matrix) for fold in folds)
    assert (found.strength, found.ridge) == (0.5, max(gains, key=lambda ridge: gains[ridge]))
    assert found.gain == pytest.approx(max(gains.values()) / energy, rel=1e-9)
    silent = Moments(Hessian(torch.zeros(16, 16)), torch.zeros(16, 16))
    assert cross_fit(weight, (silent, silent), fixed=0.5).strength == 0.5
