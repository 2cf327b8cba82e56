"""The price of a format against the error that GPTQ really makes, and against the formula with the steps written out."""

import pytest
import torch

from sottovoce.core.affine import Affine
from sottovoce.core.error_metrics import output_energy
from sottovoce.core.gptq import gptq
from sottovoce.core.pricing import column_weights, expected_error
from tests.conftest import random_moments

DAMPING = 0.01


def layer(width: int = 128, rows: int = 64) -> tuple[torch.Tensor, object]:
    moments, _, _ = random_moments(width, seed=3, n=4 * width)
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)), moments.hessian


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, None), (8, 64), (3, 32), (3, 128)])
def test_within_15_percent_of_gptq(bits: int, group: int | None, symmetric: bool, act_order: bool) -> None:
    """Min-max scales: nothing clips before compensation, and next to nothing after it."""
    weight, hessian = layer()
    number_format = Affine(bits=bits, group_size=group, symmetric=symmetric, observer="minmax")
    columns = column_weights(hessian, DAMPING, act_order=act_order, importance=False)
    priced = expected_error(weight, columns, number_format)
    parameters = number_format.fit(weight)
    values = gptq(weight, hessian, number_format, damping=DAMPING, act_order=act_order, parameters=parameters).weight.dequantize()
    measured = output_energy(weight - values, hessian.damped(DAMPING).double())
    assert priced == pytest.approx(measured, rel=0.15)


def test_equals_the_steps_over_12() -> None:
    """sum_i (1/U_ii^2) sum_r s^2/12, with an explicit inverse and a loop."""
    weight, hessian = layer(64, 400)
    number_format = Affine(bits=8, group_size=32, observer="minmax")
    damped = hessian.matrix + DAMPING * hessian.matrix.diagonal().mean() * torch.eye(64)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    scale = number_format.fit(weight)["scale"].double()
    written_out = sum(float(factor[i, i]) ** -2 * float((scale[:, i // 32] ** 2).sum()) / 12 for i in range(64))
    priced = expected_error(weight, column_weights(hessian, DAMPING, act_order=False, importance=False), number_format)
    assert priced == pytest.approx(written_out, rel=0.02)


def test_dead_columns_weigh_nothing() -> None:
    _, hessian = layer(64)
    hessian.matrix[5], hessian.matrix[:, 5] = 0, 0
    weights = column_weights(hessian, DAMPING, act_order=True, importance=True).weights
    assert weights[5] == 0
    assert int((weights > 0).sum()) == 63


def test_more_bits_cost_less() -> None:
    weight, hessian = layer()
    columns = column_weights(hessian, DAMPING, act_order=True, importance=True)
    prices = [expected_error(weight, columns, Affine(bits=bits)) for bits in (2, 3, 4, 8)]
    assert prices == sorted(prices, reverse=True)
    assert prices[0] > 3 * prices[1]


@pytest.mark.parametrize("act_order", [True, False])
def test_without_clipping_gptq_stays_below_the_worst_case(act_order: bool) -> None:
    """No weight is further than half a step from a code, so `tr(E H E^T) <= sum_i (1/U_ii^2) sum_r s^2/4`; a wrong order or damping
    would break this."""
    weight, hessian = layer(64, 400)
    number_format = Affine(bits=8, group_size=32, observer="minmax", symmetric=True)
    parameters = number_format.fit(weight)
    parameters["scale"] = 4 * parameters["scale"]  # room for what compensation adds to a weight
    columns = column_weights(hessian, DAMPING, act_order=act_order, importance=False)
    found = gptq(weight, hessian, number_format, damping=DAMPING, act_order=act_order, parameters=parameters)
    result = found.weight
    measured = output_energy(weight - result.dequantize(), hessian.damped(DAMPING).double())
    scale = parameters["scale"].double().repeat_interleave(32, 1)
    worst = float((columns.weights * scale.square().sum(0)).sum()) / 4
    assert worst / 12 < measured < worst
    assert found.worst_case == pytest.approx(worst, rel=1e-6)
    assert output_energy(weight - result.dequantize(), hessian.matrix.double()) < measured  # damping only adds
