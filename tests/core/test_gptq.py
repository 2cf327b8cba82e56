"""GPTQ against the slow algorithm of the paper: an explicit inverse, re-derived for every column (OBQ in a fixed order)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.affine import Affine
from sottovoce.core.error_metrics import output_energy
from sottovoce.core.gptq import gptq, round_columns
from sottovoce.core.hessian import Hessian, inverse_cholesky
from sottovoce.core.rtn import rtn
from sottovoce.errors import CalibrationError
from tests.conftest import random_moments


def slow_gptq(weight: torch.Tensor, hessian: torch.Tensor, grid: Affine, damping: float, act_order: bool) -> torch.Tensor:
    """Optimal brain quantization, one column after the other; the inverse Hessian of what is left is computed anew each time."""
    weight, n = weight.double().clone(), weight.shape[1]
    size = grid.group_size or n
    hessian = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(n)
    columns = list(range(n))
    if act_order:
        columns.sort(key=lambda j: (-float(hessian[j, j]), j))
    fixed = grid.fit(weight.float()) if act_order else None
    scales: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    result = torch.zeros_like(weight)
    for done, i in enumerate(columns):
        group = i // size
        if fixed is not None:
            scales[group] = (fixed["scale"][:, group].double(), fixed["zero_point"][:, group].double())
        elif i % size == 0:
            fitted = Affine(bits=grid.bits, group_size=None, observer=grid.observer).fit(weight[:, i : i + size].float())
            scales[group] = (fitted["scale"][:, 0].double(), fitted["zero_point"][:, 0].double())
        scale, zero = scales[group]
        left = columns[done:]
        inverse = torch.linalg.inv(hessian[left][:, left])
        code = (torch.round(weight[:, i] / scale) + zero).clamp(0, grid.max_code)
        result[:, i] = (code - zero) * scale
        error = (weight[:, i] - result[:, i]) / inverse[0, 0]
        weight[:, left[1:]] -= error[:, None] * inverse[0, 1:]
    return result


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("bits", "group", "width"), [(4, 32, 96), (3, 64, 128), (2, 128, 256), (3, None, 80)])
def test_equals_the_slow_reference(act_order: bool, bits: int, group: int | None, width: int) -> None:
    """Widths beyond one block of 32 columns, and groups across a block's border, take part in the comparison."""
    moments, _, _ = random_moments(width, seed=bits, n=3 * width)
    weight = torch.randn(6, width, generator=torch.Generator().manual_seed(7))
    grid = Affine(bits=bits, group_size=group)
    fast = gptq(weight, moments.hessian, grid, damping=0.05, act_order=act_order).weight.dequantize().double()
    slow = slow_gptq(weight, moments.hessian.matrix, grid, 0.05, act_order)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_worked_example() -> None:
    """Two perfectly correlated inputs: what the first column loses by rounding, the second makes good."""
    hessian = Hessian(torch.tensor([[1.0, 0.999], [0.999, 1.0]], dtype=torch.float64).kron(torch.eye(16, dtype=torch.float64)))
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 16] = 0.4, 0.4
    weight[0, 1], weight[0, 2] = -1.0, 2.0  # range -1 .. 2 at 2 bits: levels -1, 0, 1, 2
    grid = Affine(bits=2, group_size=32, observer="minmax")
    values = gptq(weight, hessian, grid, damping=1e-6, act_order=False).weight.dequantize()
    assert rtn(weight, grid).dequantize()[0, [0, 16]].tolist() == [0.0, 0.0]
    assert values[0, [0, 16]].tolist() == [
        0.0,
        1.0,
    ]  # 0.4 + 0.4 * 0.999 = 0.8 rounds to 1: the sum 0.8 becomes 1, not 0


def test_identity_hessian_is_rounding() -> None:
    weight = torch.randn(5, 64)
    grid = Affine(bits=3, group_size=32)
    values = gptq(weight, Hessian(torch.eye(64, dtype=torch.float64)), grid).weight
    assert torch.equal(values.codes, rtn(weight, grid).codes)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4]), st.booleans())
def test_output_error_is_not_worse_than_rounding(seed: int, bits: int, act_order: bool) -> None:
    moments, _, _ = random_moments(64, seed)
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))
    grid = Affine(bits=bits, group_size=32)
    values = gptq(weight, moments.hessian, grid, act_order=act_order).weight.dequantize()
    matrix = moments.hessian.matrix
    assert output_energy(weight - values, matrix) <= 1.2 * output_energy(weight - rtn(weight, grid).dequantize(), matrix)


def test_dead_columns_get_weight_zero() -> None:
    moments, _, _ = random_moments(32, seed=0)
    matrix = moments.hessian.matrix.clone()
    matrix[5], matrix[:, 5] = 0, 0
    result = gptq(torch.randn(3, 32), Hessian(matrix), Affine(bits=4, group_size=32))
    assert result.dead == 1
    assert bool((result.weight.dequantize()[:, 5] == 0).all())


def test_factor_is_that_of_the_inverse() -> None:
    matrix = random_moments(300, seed=3, n=900)[0].hessian.matrix
    hessian = Hessian(matrix)
    factor, used = hessian.factor(0.1, True)
    columns = hessian.columns(True)
    damped = matrix + 0.1 * matrix.diagonal().mean() * torch.eye(300)
    assert used == 0.1
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped[columns][:, columns]))
    right = torch.randn(4, 300, dtype=torch.float64)
    torch.testing.assert_close(hessian.solve(right, 0.1), right @ torch.linalg.inv(damped))


@pytest.mark.parametrize("n", [7, 128, 333])
def test_inverse_cholesky(n: int) -> None:
    matrix = random_moments(n, seed=n, n=3 * n)[0].hessian.matrix
    lower = torch.linalg.cholesky(matrix)
    torch.testing.assert_close(inverse_cholesky(matrix), torch.linalg.inv(lower), rtol=1e-6, atol=1e-8)
    matrix[n // 2, n // 2] = -1.0
    assert inverse_cholesky(matrix) is None


def test_damping_is_raised_until_positive_definite_and_said_so() -> None:
    matrix = torch.eye(32, dtype=torch.float64)
    matrix[0, 1] = matrix[1, 0] = 3.0  # an eigenvalue of -2
    result = gptq(torch.randn(2, 32), Hessian(matrix), Affine(bits=4, group_size=32), damping=0.01)
    assert result.damping == pytest.approx(10.0)


@pytest.mark.parametrize("where", ["off the diagonal", "one input", "everywhere"])
def test_refuses_nan(where: str) -> None:
    matrix = torch.full((32, 32), float("nan"), dtype=torch.float64)
    if where == "off the diagonal":
        matrix.diagonal().fill_(1.0)
    elif where == "one input":
        matrix = torch.eye(32, dtype=torch.float64)
        matrix[5, 5] = float("nan")
    with pytest.raises(CalibrationError, match="not positive definite.*NaN"):
        gptq(torch.randn(2, 32), Hessian(matrix), Affine(bits=4, group_size=32))


def test_nothing_seen_is_plain_zero() -> None:
    result = gptq(torch.randn(2, 32), Hessian(torch.zeros(32, 32, dtype=torch.float64)), Affine(bits=4, group_size=32))
    assert result.dead == 32
    assert bool((result.weight.dequantize() == 0).all())


def explicit_refit(target: torch.Tensor, codes: torch.Tensor, zero: torch.Tensor, matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Least squares, row by row, over inputs `X` with `X X^T = H`."""
    inputs = torch.linalg.cholesky(matrix.double())
    rows, groups = codes.shape[0], codes.shape[1] // size
    scales = torch.empty(rows, groups, dtype=torch.float64)
    for r in range(rows):
        parts = []
        for g in range(groups):
            own = slice(g * size, (g + 1) * size)
            parts.append((codes[r, own].double() - zero[r, g].double()) @ inputs[own])
        scales[r] = torch.linalg.lstsq(torch.stack(parts, 1), target[r].double() @ inputs).solution
    return scales


@pytest.mark.parametrize(
    "grid", [Affine(bits=2, group_size=32), Affine(bits=3, group_size=None), Affine(bits=4, group_size=32, symmetric=True)]
)
def test_refitted_scales_are_those_of_least_squares(grid: Affine) -> None:
    matrix = random_moments(96, seed=1, n=300)[0].hessian.matrix
    target = torch.randn(7, 96, generator=torch.Generator().manual_seed(2))
    parameters = grid.fit(target)
    size = grid.block_size(96)
    codes, _ = round_columns(target, Hessian(matrix).factor(0.01)[0].float(), grid, torch.arange(96), parameters)
    wanted = explicit_refit(target, codes, parameters["zero_point"], matrix, size)
    got = grid.refit(target, codes, parameters, matrix)
    assert torch.equal(got["scale"], got["scale"].half().float())
    assert torch.equal(got["zero_point"], parameters["zero_point"])
    near = (wanted / parameters["scale"] > 0.5) & (wanted / parameters["scale"] < 2)
    assert bool(near.double().mean() > 0.9)
    torch.testing.assert_close(got["scale"].double()[near.all(1)], wanted[near.all(1)], rtol=2e-3, atol=1e-6)


def test_scales_of_groups_without_codes_stay() -> None:
    grid = Affine(bits=4, group_size=32)
    target = torch.randn(3, 96, generator=torch.Generator().manual_seed(3))
    target[:, 32:64] = 0
    target[2] = 0
    parameters = grid.fit(target)
    codes = grid.encode(target, parameters)
    got = grid.refit(target, codes, parameters, torch.eye(96))
    assert torch.equal(got["scale"][:, 1], parameters["scale"][:, 1])
    assert torch.equal(got["scale"][2], parameters["scale"][2])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4]), st.booleans(), st.booleans())
def test_refits_never_do_harm(seed: int, bits: int, act_order: bool, symmetric: bool) -> None:
    hessian = random_moments(64, seed)[0].hessian
    target = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))
    grid = Affine(bits=bits, group_size=32, symmetric=symmetric)
    errors = [
        output_energy(target - gptq(target, hessian, grid, act_order=act_order, scale_refits=n).weight.dequantize(), hessian.damped(0.01))
        for n in (0, 1, 3)
    ]
    assert errors[0] * (1 + 1e-6) >= errors[1]
    assert errors[1] * (1 + 1e-6) >= errors[2]


def test_refits_win_what_a_search_before_rounding_cannot() -> None:
    matrix = random_moments(128, seed=5, n=400)[0].hessian
    target = torch.randn(64, 128, generator=torch.Generator().manual_seed(6))
    grid = Affine(bits=2, group_size=32)
    plain, refitted = (
        output_energy(target - gptq(target, matrix, grid, scale_refits=n).weight.dequantize(), matrix.damped(0.01)) for n in (0, 4)
    )
    assert refitted < 0.93 * plain
