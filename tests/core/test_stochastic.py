import math
from dataclasses import replace

import torch

from sottovoce.core.affine import Affine, AffineTensor
from sottovoce.core.gptq import gptq
from sottovoce.core.hessian import Hessian
from sottovoce.core.rtn import rtn
from sottovoce.core.stochastic import Stochastic, uniform

MASK = 0xFFFFFFFF


def slow_uniform(weight: float, scale: float, seed: int) -> float:
    """The hash written with whole numbers of any size."""

    def mix(value: int) -> int:
        value = ((value ^ (value >> 16)) * 0x21F0AAAD) & MASK
        value = ((value ^ (value >> 15)) * 0x735A2D97) & MASK
        return value ^ (value >> 15)

    def bits(number: float) -> int:
        return int(torch.tensor(number).view(torch.int32)) & MASK

    return (mix(bits(weight) ^ mix(bits(scale) ^ mix(seed))) >> 8) / 2**24


def test_chance_equals_the_slow_hash() -> None:
    torch.manual_seed(0)
    weight, scale = torch.randn(50), torch.rand(50)
    for seed in (0, 7, MASK):
        found = uniform(weight, scale, seed).tolist()
        assert found == [slow_uniform(w, s, seed) for w, s in zip(weight.tolist(), scale.tolist(), strict=True)]


def test_rounding_equals_the_formula() -> None:
    torch.manual_seed(1)
    weight, grid = torch.randn(4, 64), Stochastic(bits=3, symmetric=True, seed=3)
    quantized = rtn(weight, grid)
    parts = AffineTensor.of(quantized)  # codes are those of an affine format, for every writer of these
    assert parts is not None
    for row in range(4):
        for i in range(64):
            w, s = float(weight[row, i]), float(quantized.parameters["scale"][row, i // 32])
            q = math.floor(float(torch.tensor(w) / torch.tensor(s)) + slow_uniform(w, s, 3)) + 4
            assert int(quantized.codes[row, i]) == min(max(q, 0), 7)


def test_no_bias_and_twice_the_variance() -> None:
    """On a fixed grid the mean error is 0 and the mean squared error a sixth of the squared step, a twelfth by rounding to nearest."""
    torch.manual_seed(2)
    weight = torch.rand(200_000) * 6 + 0.5
    step, zero = torch.full_like(weight, 1.0), torch.zeros_like(weight)
    grid = Stochastic(bits=4)
    error = grid.nearest(weight, step, zero) - weight
    assert abs(float(error.mean())) < 4 * math.sqrt(1 / 6 / 200_000)
    assert abs(float(error.square().mean()) - 1 / 6) < 0.003
    plain = Affine(bits=4).nearest(weight, step, zero) - weight
    assert abs(float(plain.square().mean()) - 1 / 12) < 0.002
    chosen = torch.stack([Stochastic(seed=seed).nearest(torch.tensor(2.25), step[0], zero[0]) for seed in range(2000)])
    assert set(chosen.tolist()) == {2.0, 3.0}
    assert abs(float(chosen.mean()) - 2.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)


def test_seeds_differ_and_order_does_not_matter() -> None:
    torch.manual_seed(3)
    weight, grid = torch.randn(8, 64), Stochastic(bits=4)
    codes = rtn(weight, grid).codes
    assert torch.equal(codes, rtn(weight, grid).codes)
    assert torch.equal(codes.flip(0), rtn(weight.flip(0), grid).codes)
    assert not torch.equal(codes, rtn(weight, replace(grid, seed=1)).codes)
    identity = Hessian(torch.eye(64, dtype=torch.float64))
    assert torch.equal(gptq(weight, identity, grid).weight.codes, codes)
