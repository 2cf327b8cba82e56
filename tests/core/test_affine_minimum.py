"""Levels with a real minimum: several weights at once, and what is refused."""

import pytest
import torch

from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.errors import CheckpointError, RecipeError


def test_several_weights_at_once_are_rounded_as_each_alone() -> None:
    """`[2, 3, out, in]`, with groups of four: whatever stands before the rows and columns."""
    grid, weight = AffineMinimum(bits=3, group_size=4), torch.randn(2, 3, 5, 12, generator=torch.Generator().manual_seed(0))
    parameters = grid.fit(weight)
    assert parameters["scale"].shape == parameters["minimum"].shape == (2, 3, 5, 3)
    values = grid.decode(grid.encode(weight, parameters), parameters)
    for i in range(2):
        for j in range(3):
            own = grid.fit(weight[i, j])
            assert torch.equal(values[i, j], grid.decode(grid.encode(weight[i, j], own), own))
    scale, minimum = (expanded[1, 2, 4, 7] for expanded in grid.expand(parameters, 12))
    assert (scale, minimum) == (parameters["scale"][1, 2, 4, 1], parameters["minimum"][1, 2, 4, 1])


def test_what_a_grid_may_be_and_how_it_is_called() -> None:
    for bits, group_size in ((1, 32), (9, 32), (4, 0)):
        with pytest.raises(RecipeError, match="is not supported"):
            AffineMinimum(bits=bits, group_size=group_size)
    assert [AffineMinimum(bits=bits, group_size=1).max_code for bits in (2, 8)] == [3, 255]
    grid = AffineMinimum(bits=4, group_size=64)
    assert (grid.title, grid.levels) == ("4 bits, groups of 64 with a real minimum", "16 in even steps, real minimum")
    assert grid.bits_per_weight(128) == 4.5
    with pytest.raises(RecipeError, match="groups of 64 do not divide a row of 96"):
        grid.block_size(96)


def test_parameters_that_no_file_holds_are_refused() -> None:
    grid = AffineMinimum(bits=4, group_size=4)
    good = {"scale": torch.ones(2, 3).half(), "minimum": torch.zeros(2, 3).half()}
    grid.check(good, 2, 12)
    for name, tensor in (
        ("scale", torch.ones(2, 3)), ("minimum", torch.ones(2, 2).half()), ("minimum", torch.full((2, 3), float("inf")).half()),
        ("scale", torch.zeros(2, 3).half()), ("scale", -torch.ones(2, 3).half()),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"^{name} is|a scale is not a positive number"):
            grid.check(good | {name: tensor}, 2, 12)
