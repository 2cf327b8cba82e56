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


def test_a_group_is_fitted_again_where_its_scale_stays_near() -> None:
    """The target lies on `codes * scale + minimum`, which least squares finds; beyond half and twice the old scale both old ones stay."""
    grid, found = AffineMinimum(bits=2, group_size=4), torch.tensor([0.4375, 0.5625, 1.5, 1.9375, 2.25, -1.0])
    codes = torch.tensor([0, 1, 2, 3]).repeat(6).reshape(1, 24)
    old = {"scale": torch.ones(1, 6), "minimum": torch.full((1, 6), -0.75)}
    target = codes * found.repeat_interleave(4) + 0.125
    fitted = grid.refit(target, codes, old, torch.eye(24))
    near = (found > 0.5) & (found < 2)
    assert near.tolist() == [False, True, True, True, False, False]
    torch.testing.assert_close(fitted["scale"], torch.where(near, found, 1.0).unsqueeze(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(fitted["minimum"], torch.where(near, 0.125, -0.75).unsqueeze(0), rtol=0, atol=2e-3)
