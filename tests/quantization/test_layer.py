"""One layer: what its codes and its report make of positions, and of inputs that are never active."""

import pytest
import torch

from sottovoce.core.affine import Affine
from sottovoce.core.gptq import gptq
from sottovoce.core.hessian import Hessian
from sottovoce.core.rtn import rtn
from sottovoce.models.layers import Layer
from sottovoce.quantization.layer import quantize_layer
from sottovoce.quantization.methods import GPTQ, METHODS
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
