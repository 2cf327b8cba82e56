"""One layer: what its codes and its report make of positions, and of inputs that are never active."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sottovoce.core.affine import Affine
from sottovoce.core.fade import CANDIDATES
from sottovoce.core.gptq import gptq
from sottovoce.core.hessian import Hessian
from sottovoce.core.rtn import rtn
from sottovoce.models.layers import Layer
from sottovoce.quantization.layer import LayerReport, _views, quantize_layer, with_final_statistics
from sottovoce.quantization.methods import FADE, GPTQ, METHODS, QEP
from sottovoce.quantization.statistics import LayerStatistics, MomentAccumulator

LAYER = Layer("fc1", "encoder", "frames")


def statistics(rows: torch.Tensor, quantized: torch.Tensor, roots: torch.Tensor) -> LayerStatistics:
    """Of inputs `[400, 32]` in both networks, the first half of them in fold 0; `roots` `[400, 1]`: of their weights."""
    rows, quantized, folds = rows * roots, quantized * roots, []
    for half in (slice(0, 200), slice(200, 400)):
        sums = MomentAccumulator(32)
        sums.add(rows[half], quantized[half], roots[half])
        folds.append(sums.finish())
    return LayerStatistics((folds[0], folds[1]), rows, quantized, torch.zeros(0), sample_roots=roots)


def test_a_shift_counts_as_much_as_its_position() -> None:
    """Samples come multiplied by the root of their weight, so a bias that makes up for everything leaves nothing at any weight."""
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(16, 32, generator=generator), torch.randn(400, 32, generator=generator) + 1
    roots = torch.rand(400, 1, generator=generator) + 0.1
    lost = torch.full((1, 32), 0.5)
    seen, method = statistics(rows, rows - lost, roots), GPTQ(absorb_bias=True)
    done = quantize_layer(LAYER, weight, torch.zeros(16), seen, Affine(bits=8, group_size=32), method)
    assert done.bias is not None
    torch.testing.assert_close(done.bias, (weight @ lost.T).squeeze(1), rtol=0, atol=6e-2)
    assert done.report.outgoing_error < 1e-3


def test_a_weight_that_nothing_comes_through_does_not_widen_its_group() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = 0.05 * torch.randn(16, 32, generator=generator), torch.randn(400, 32, generator=generator)
    rows[:, 3] = 0
    wide = weight.clone()
    wide[:, 3] = 2.0

    def codes(of: torch.Tensor) -> torch.Tensor:
        seen = statistics(rows, rows, torch.ones(400, 1))
        return quantize_layer(LAYER, of, None, seen, Affine(bits=4, group_size=32), METHODS["gptq"]).weight.dequantize()

    narrow = weight.clone()
    narrow[:, 3] = 0
    torch.testing.assert_close(codes(wide), codes(narrow), rtol=0, atol=0)


def share_lost(weight: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> float:
    """`||W X - Q X||^2 / ||W X||^2` over inputs `[n, in]`."""
    weight, values, rows = weight.double(), values.double(), rows.double()
    return float((rows @ (weight - values).T).square().sum() / (rows @ weight.T).square().sum())


def correlated() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight `[16, 32]`, and inputs `[400, 32]` whose channels have much in common, so that GPTQ wins over rounding."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(32, 32, generator=generator)
    return torch.randn(16, 32, generator=generator), torch.randn(400, 32, generator=generator) @ mixed


def test_gain_and_reliability_equal_the_formulas() -> None:
    """With E the share of the output that is lost: (E(RTN) - E(GPTQ)) / E(RTN), and over 1 - E(RTN)."""
    weight, rows = correlated()
    grid = Affine(bits=3, group_size=32)
    done = quantize_layer(LAYER, weight, None, statistics(rows, rows, torch.ones(400, 1)), grid, GPTQ())
    rounded = share_lost(weight, rtn(weight, grid).dequantize(), rows)
    added = share_lost(weight, done.weight.dequantize(), rows)
    assert added < 0.9 * rounded
    assert done.report.rounded_error == pytest.approx(rounded, rel=1e-4)
    assert done.report.added_error == pytest.approx(added, rel=1e-4)
    assert done.report.calibration_gain == pytest.approx((rounded - added) / rounded, rel=1e-3)
    assert done.report.reliability == pytest.approx((rounded - added) / (1 - rounded), rel=1e-3)


def test_held_out_reliability_equals_the_formula() -> None:
    """What is rounded by one half of the inputs is judged on the other."""
    weight, rows = correlated()
    grid, lost = Affine(bits=3, group_size=32), {"rtn": 0.0, "gptq": 0.0}
    method = GPTQ(damping="held-out", act_order=True)
    report = quantize_layer(LAYER, weight, None, statistics(rows, rows, torch.ones(400, 1)), grid, method).report
    assert report.damping is not None
    halves, whole = (rows[:200].double(), rows[200:].double()), float((rows.double() @ weight.double().T).square().sum())
    for learn, judge in (halves, halves[::-1]):
        found = gptq(weight, Hessian(learn.T @ learn), grid, damping=report.damping, parameters=grid.fit(weight)).weight
        for name, values in (("rtn", rtn(weight, grid).dequantize()), ("gptq", found.dequantize())):
            lost[name] += float((judge @ (weight - values).double().T).square().sum()) / whole
    assert lost["gptq"] < 0.9 * lost["rtn"]
    assert report.reliability == pytest.approx((lost["rtn"] - lost["gptq"]) / (1 - lost["rtn"]), rel=1e-3)


def report_of(method: GPTQ, *, rows: int = 16, drift: float = 0.3, layer: Layer = LAYER, strength: float | None = None) -> LayerReport:
    """The report of a layer of so many rows whose inputs have drifted."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(rows, 32, generator=generator), torch.randn(400, 32, generator=generator)
    seen = statistics(inputs, inputs - drift * inputs.roll(1, 1), torch.ones(400, 1))
    return quantize_layer(layer, weight, None, seen, Affine(bits=4, group_size=32), method, strength=strength).report


@pytest.mark.parametrize(
    ("method", "drift", "layer", "given", "strength", "ridge"),
    [
        (GPTQ(), 0.3, LAYER, None, 0.0, None),
        (QEP(strength=0.7, ridge=0.2), 0.3, LAYER, None, 0.7, 0.2),
        (QEP(strength=0.7, ridge=0.2), 0.0, LAYER, None, 0.0, None),  # nothing to correct for
        (QEP(strength=0.0), 0.3, LAYER, None, 0.0, None),
        (QEP(strength=0.7), 0.3, replace(LAYER, mlp_output=True), None, 0.0, None),  # left alone, as in the paper
        (QEP(strength=0.7, correct_mlp_output=True), 0.3, replace(LAYER, mlp_output=True), None, 0.7, 0.01),
        (FADE(strength="diagnostic"), 0.3, LAYER, 0.4, 0.4, 0.3),  # a ridge between those that are tried
        (FADE(strength="diagnostic", ridge=0.2), 0.3, LAYER, 0.4, 0.4, 0.2),
    ],
)
def test_the_correction_is_what_the_method_says(
    method: GPTQ, drift: float, layer: Layer, given: float | None, strength: float, ridge: float | None
) -> None:
    found = report_of(method, drift=drift, layer=layer, strength=given)
    assert (found.strength, found.ridge) == (strength, ridge)
    assert found.held_out_gain is None


def test_strength_and_ridge_are_learnt_where_the_method_leaves_them_open() -> None:
    found = report_of(FADE(ridge=0.2))
    assert 0.5 < found.strength <= 1
    assert found.ridge == 0.2
    assert found.held_out_gain is not None
    assert found.held_out_gain > 0
    assert report_of(FADE()).ridge in CANDIDATES
    fixed = report_of(QEP(strength=0.7, ridge="held-out", damping="held-out", act_order=True))
    assert fixed.strength == 0.7
    assert fixed.ridge in CANDIDATES
    assert fixed.damping in CANDIDATES
    assert fixed.held_out_gain is None


def test_an_error_in_one_fold_is_reason_enough_to_correct() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(16, 32, generator=generator), torch.randn(400, 32, generator=generator)
    for half in (slice(0, 200), slice(200, 400)):
        drifted = rows.clone()
        drifted[half] *= 0.8
        seen = statistics(rows, drifted, torch.ones(400, 1))
        assert quantize_layer(LAYER, weight, None, seen, Affine(bits=4, group_size=32), QEP(strength=0.7)).report.strength == 0.7


@pytest.mark.parametrize(("rows", "every"), [(16, 1), (127, 1), (128, 2), (200, 3)])
def test_choices_are_made_on_an_even_sample_of_the_rows(rows: int, every: int) -> None:
    """Of 64 rows or more; what RTN loses on them stands in the report."""
    weight = torch.randn(rows, 32, generator=torch.Generator().manual_seed(0))
    grid = Affine(bits=4, group_size=32)
    lost = (rtn(weight, grid).dequantize() - weight)[::every].double().square().sum() / weight[::every].double().square().sum()
    assert report_of(GPTQ(), rows=rows).vulnerability == pytest.approx(math.sqrt(float(lost)), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        (QEP(damping=0.1, ridge=0.1), torch.float32),
        (QEP(damping=0.099, ridge=0.1), torch.float64),
        (QEP(damping=0.1, ridge=0.099), torch.float64),
        (GPTQ(damping=0.5), torch.float64),  # nothing was said of a ridge
    ],
)
def test_float32_will_do_where_both_dampings_are_large(method: GPTQ, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[torch.dtype]()

    def watched(target: torch.Tensor, hessian: Hessian, *arguments: Any, **settings: Any) -> Any:
        seen.append(hessian.matrix.dtype)
        return gptq(target, hessian, *arguments, **settings)

    monkeypatch.setattr("sottovoce.quantization.layer.gptq", watched)
    report_of(method)
    assert seen == [dtype]


def test_a_report_says_what_a_layer_is_and_what_it_has_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(16, 32, generator=generator), torch.randn(400, 32, generator=generator)
    rows[:, 3], roots = 0, torch.rand(400, 1, generator=generator) + 0.1
    seen = statistics(rows, 0.9 * rows, roots)
    grid = Affine(bits=3, group_size=32)
    done = quantize_layer(LAYER, weight, torch.zeros(16), seen, grid, GPTQ())
    report, values = done.report, done.weight.dequantize()
    assert (report.name, report.part, report.bits, report.weights, report.dead_columns) == ("fc1", "encoder", 3, 512, 1)
    assert report.bits_per_weight == 3 + (16 + 3) / 32
    assert report.positions == pytest.approx(float(roots.square().sum()), rel=1e-5)
    assert (report.bias_absorbed, done.bias) == (False, None)
    assert report.inherited_error == pytest.approx(0.01, rel=1e-4)
    wanted = rows * roots @ weight.T
    assert report.outgoing_error == pytest.approx(
        float((wanted - 0.9 * rows * roots @ values.T).square().sum() / wanted.square().sum()), rel=1e-3
    )
    assert report.outlier_ratio == pytest.approx(float((weight.abs().amax(1) / weight.square().mean(1).sqrt()).mean()), rel=1e-4)
    counts = torch.bincount(done.weight.codes.flatten().long()).double() / 512
    assert report.code_entropy == pytest.approx(-sum(float(p) * math.log2(float(p)) for p in counts if p > 0), rel=1e-4)
    assert report.worst_case is not None
    assert report.added_error is not None
    assert report.added_error <= report.worst_case
    later = with_final_statistics(done, weight, statistics(rows, rows, roots)).report
    assert later.inherited_error == 0
    assert later.outgoing_error == pytest.approx(float((wanted - rows * roots @ values.T).square().sum() / wanted.square().sum()), rel=1e-3)
    assert replace(later, inherited_error=0.0, outgoing_error=0.0) == replace(report, inherited_error=0.0, outgoing_error=0.0)


def test_a_layer_that_hears_nothing_has_errors_of_zero() -> None:
    nothing = torch.zeros(400, 32)
    report = quantize_layer(LAYER, torch.ones(4, 32), None, statistics(nothing, nothing, torch.ones(400, 1)), Affine(bits=4), GPTQ()).report
    assert (report.inherited_error, report.outgoing_error, report.worst_case, report.dead_columns) == (0.0, 0.0, None, 32)


@pytest.mark.parametrize(
    ("layer", "bias", "absorb", "about_the_mean"),
    [
        (LAYER, True, True, True),
        (LAYER, False, True, False),
        (LAYER, True, False, False),
        (replace(LAYER, shift_invariant=True), False, False, True),
    ],
)
def test_moments_are_about_the_mean_where_a_constant_does_no_harm(layer: Layer, bias: bool, absorb: bool, about_the_mean: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 32, generator=generator) + 3
    seen = statistics(rows, rows, torch.ones(400, 1))
    found = _views(layer, torch.zeros(16) if bias else None, seen, GPTQ(absorb_bias=absorb), 0.0)
    assert (found is seen.centered, found is seen.raw) == (about_the_mean, not about_the_mean)


def test_the_look_up_of_an_embedding_counts_on_the_diagonal() -> None:
    rows = torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
    seen = statistics(rows, rows, torch.ones(400, 1))
    found = _views(LAYER, None, seen, GPTQ(), 0.25)
    for views, plain in ((found.total, seen.raw.total), (found.folds[0], seen.raw.folds[0]), (found.folds[1], seen.raw.folds[1])):
        matrix = plain.hessian.matrix
        torch.testing.assert_close(views.hessian.matrix, matrix + 0.25 * matrix.diagonal().mean() * torch.eye(32))
        assert views.cross is plain.cross
