"""Moves of scales and minima: none changes nothing, gradients are those of the formula, and a file holds what was trained."""

import math

import pytest
import torch

from sottovoce.core.affine import Affine
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.differentiable import decode_moved, first_moves, straight_through, with_moves
from sottovoce.core.formats import NAMED
from sottovoce.core.k_quants import KQuant
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn

WIDTH = 256


def a_weight(number_format: NumberFormat, rows: int = 3) -> QuantizedTensor:
    return rtn(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1)), number_format)


def random_moves(weight: QuantizedTensor, size: float = 0.2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: size * torch.randn(move.shape, generator=generator) for name, move in first_moves(weight).items()}


@pytest.mark.parametrize("name", NAMED)
def test_no_move_changes_nothing_and_codes_stay(name: str) -> None:
    weight = a_weight(NAMED[name])
    moves = first_moves(weight)
    assert torch.equal(decode_moved(weight, moves), weight.dequantize())
    same = with_moves(weight, moves)
    assert same.parameters.keys() == weight.parameters.keys()
    for key, tensor in weight.parameters.items():
        assert same.parameters[key].dtype == tensor.dtype
        assert torch.equal(same.parameters[key].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("name", NAMED)
def test_a_file_holds_what_was_trained(name: str) -> None:
    weight = a_weight(NAMED[name])
    moves = random_moves(weight)
    trained = decode_moved(weight, moves)
    stored = with_moves(weight, moves)  # its parameters are checked on construction
    assert torch.equal(stored.codes, weight.codes)
    read = QuantizedTensor.unpack(stored.pack(), weight.format)
    assert torch.equal(read.dequantize(), trained)
    assert torch.equal(trained, weight.dequantize()) == (not moves)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_powers_of_two_and_coarse_scales_stay(name: str) -> None:
    weight = a_weight(NAMED[name])
    assert first_moves(weight) == {}
    assert with_moves(weight, {}) is weight


def test_moves_of_a_real_minimum_are_in_units_of_the_scale() -> None:
    weight = a_weight(AffineMinimum(bits=3))
    shift = {"minimum": torch.full_like(weight.parameters["minimum"], 0.5, dtype=torch.float32)}
    change = decode_moved(weight, shift) - weight.dequantize()
    wanted = 0.5 * weight.parameters["scale"].float().repeat_interleave(32, -1)
    torch.testing.assert_close(change, wanted, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("number_format", [Affine(bits=3, group_size=64), Affine(bits=4, symmetric=True), Affine(float16_min=True)])
def test_gradients_of_affine_scales_are_those_of_the_formula(number_format: Affine) -> None:
    weight, loss_gradient = a_weight(number_format, rows=2), torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3))
    moves = {name: move.requires_grad_() for name, move in random_moves(weight).items()}
    with torch.enable_grad():
        (decode_moved(weight, moves) * loss_gradient).sum().backward()
    size = WIDTH // weight.parameters["scale"].shape[1]
    for row in range(2):
        for group in range(WIDTH // size):
            # d/dtheta of sum_j g_j s e^theta (q_j - z)
            scale, zero = float(weight.parameters["scale"][row, group]), int(weight.parameters["zero_point"][row, group])
            theta = float(moves["scale"].detach()[row, group])
            wanted = sum(
                float(loss_gradient[row, j]) * scale * math.exp(theta) * (int(weight.codes[row, j]) - zero)
                for j in range(group * size, (group + 1) * size)
            )
            assert float(moves["scale"].grad[row, group]) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "number_format", [Affine(bits=2), AffineMinimum(bits=4), KQuant(type="Q2_K"), KQuant(type="Q3_K"), NAMED["iq4_nl"]]
)
def test_gradients_agree_with_finite_differences(number_format: NumberFormat) -> None:
    weight, loss_gradient = a_weight(number_format), torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))
    moves = {name: move.requires_grad_() for name, move in random_moves(weight).items()}
    with torch.enable_grad():
        (decode_moved(weight, moves) * loss_gradient).sum().backward()

    def loss(name: str, step: float) -> float:
        changed = {key: move.detach().clone() for key, move in moves.items()}
        changed[name][1, 0] += step
        return float((decode_moved(weight, changed) * loss_gradient).double().sum())

    step = 0.05  # wide, since values move in steps of float16
    for name, move in moves.items():
        assert float(move.grad[1, 0]) == pytest.approx((loss(name, step) - loss(name, -step)) / (2 * step), rel=0.03, abs=0.02)


def test_straight_through_rounds_and_passes_gradients() -> None:
    value = torch.tensor([0.2, 1.7], requires_grad=True)
    with torch.enable_grad():
        rounded = straight_through(value, value.detach().round())
        (rounded * torch.tensor([3.0, 5.0])).sum().backward()
    assert rounded.tolist() == [0.0, 2.0]
    assert value.grad.tolist() == [3.0, 5.0]
