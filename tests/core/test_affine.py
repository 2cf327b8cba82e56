import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.affine import Affine
from sottovoce.core.rtn import rtn
from sottovoce.errors import RecipeError


def slow_rtn(row: list[float], grid: Affine, group: int) -> list[float]:
    """Rounding written out number by number, min-max, asymmetric or symmetric."""
    values = []
    for start in range(0, len(row), group):
        part = row[start : start + group]
        low, high = min([*part, 0.0]), max([*part, 0.0])
        top, middle = 2**grid.bits - 1, 2 ** (grid.bits - 1)
        span = (-high if high > -low else -low) / middle if grid.symmetric else (high - low) / top
        scale = float(torch.tensor(span).half()) if high > low else 1.0
        zero = middle if grid.symmetric else min(max(round(-low / scale), 0), top)
        values += [(min(max(round(w / scale) + zero, 0), top) - zero) * scale for w in part]
    return values


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, None])
def test_minmax_rounding_equals_the_formula(bits: int, symmetric: bool, group: int | None) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(3, 128)
    grid = Affine(bits=bits, group_size=group, symmetric=symmetric, observer="minmax")
    expected = torch.tensor([slow_rtn(row, grid, group or 128) for row in weight.tolist()])
    torch.testing.assert_close(rtn(weight, grid).dequantize(), expected, rtol=1e-5, atol=1e-6)


def test_worked_example() -> None:
    # Range -1 .. 2 at 2 bits: scale 1, zero point 1; levels -1, 0, 1, 2.
    weight = torch.tensor([[-1.0, 2.0, 0.4, 0.6] + [0.0] * 28])
    quantized = rtn(weight, Affine(bits=2, group_size=32, observer="minmax"))
    assert quantized.codes[0, :4].tolist() == [0, 3, 1, 2]
    assert quantized.parameters["scale"].item() == 1.0
    assert quantized.parameters["zero_point"].item() == 1


def test_search_is_the_best_of_its_candidates() -> None:
    """The scale found gives no larger error of norm 2.4 than any share of the range, tried one by one, or than their polish."""
    torch.manual_seed(1)
    weight = torch.randn(4, 64)
    weight[0, 3] = 9.0
    found = rtn(weight, Affine(bits=3, group_size=64))
    error = (found.dequantize() - weight).abs().pow(2.4).sum(1)
    for row, least in zip(weight, error, strict=True):
        tried = []
        for share in torch.linspace(1.2, 0.4, 25).tolist():
            low, high = row.min() * share, row.max() * share
            scale = ((high - low) / 7).half().float()
            tried.append((scale, torch.round(-low / scale).clamp(0, 7)))

        def codes(scale: torch.Tensor, zero: torch.Tensor, row: torch.Tensor = row) -> torch.Tensor:
            return (torch.round(row / scale) + zero).clamp(0, 7)

        def loss(pair: tuple[torch.Tensor, torch.Tensor], row: torch.Tensor = row) -> float:
            scale, zero = pair
            return float(((codes(scale, zero) - zero) * scale - row).abs().pow(2.4).sum())

        best = min(tried, key=loss)
        for _ in range(2):
            steps = codes(*best) - best[1]
            best = min([best, (((steps * row).sum() / steps.square().sum()).half().float(), best[1])], key=loss)
        assert float(least) == pytest.approx(loss(best), rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([2, 3, 4, 8]), st.booleans(), st.sampled_from(["minmax", "mse"]),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e4]),
)  # fmt: skip
def test_rounding_is_idempotent_and_never_far(seed: int, bits: int, symmetric: bool, observer: str, size: float) -> None:
    weight = size * torch.randn(2, 64, generator=torch.Generator().manual_seed(seed))
    weight[0, :32] = 0
    grid = Affine(bits=bits, group_size=32, symmetric=symmetric, observer=observer)
    quantized = rtn(weight, grid)
    values = quantized.dequantize()
    assert bool(torch.isfinite(values).all())
    assert bool((values[0, :32] == 0).all())
    if observer == "minmax" and size >= 1e-4:
        steps = quantized.parameters["scale"].float().abs().repeat_interleave(32, dim=1)
        assert bool(((values - weight).abs() <= steps * 1.01).all())


def test_symmetric_scales_take_the_sign_that_fits_best() -> None:
    """No scale of either sign, tried one by one, gives a smaller error of norm 2.4 in any group."""
    torch.manual_seed(2)
    weight = torch.randn(8, 64)
    weight[:4] = weight[:4].abs()
    found = rtn(weight, Affine(bits=2, group_size=64, symmetric=True))
    error = (found.dequantize() - weight).abs().pow(2.4).sum(1)
    for share in torch.linspace(1.2, 0.4, 25).tolist():
        for sign in (1, -1):
            scale = (sign * share * weight.abs().amax(1) / 2).half().float()
            codes = (torch.round(weight / scale[:, None]) + 2).clamp(0, 3)
            other = ((codes - 2) * scale[:, None] - weight).abs().pow(2.4).sum(1)
            assert bool((error <= other * (1 + 1e-4)).all())
    assert bool((found.parameters["scale"][:4] < 0).all())  # weights above zero want the longer side


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4]), st.sampled_from([1e-9, 1e-4, 1.0, 1e3]))
def test_exact_minima_are_float16_numbers(seed: int, bits: int, size: float) -> None:
    weight = size * torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    fitted = Affine(bits=bits, group_size=32, float16_min=True).fit(weight)
    minimum = -fitted["zero_point"].double() * fitted["scale"].double()
    assert bool((minimum.half().double() == minimum).all())
    assert bool((fitted["scale"].half().float() == fitted["scale"]).all())


def test_exact_minima_cost_little() -> None:
    torch.manual_seed(3)
    weight = torch.randn(64, 256)
    plain, exact = (rtn(weight, Affine(group_size=32, float16_min=e)).dequantize() for e in (False, True))
    assert float((exact - weight).square().sum() / (plain - weight).square().sum()) < 1.02


def test_zero_is_always_a_level() -> None:
    weight = torch.full((1, 32), 5.0)
    weight[0, 0] = 0
    assert rtn(weight, Affine(bits=4, group_size=32)).dequantize()[0, 0] == 0


def test_refusals() -> None:
    with pytest.raises(RecipeError, match=r"bits = 7"):
        Affine(bits=7)
    with pytest.raises(RecipeError, match="8 bits has no exact float16 minima"):
        Affine(bits=8, float16_min=True)
    with pytest.raises(RecipeError, match="group size 48"):
        Affine(group_size=48)
    with pytest.raises(RecipeError, match="observer = 'best'"):
        Affine(observer="best")
    with pytest.raises(RecipeError, match="groups of 128 do not divide a row of 288; these do: 32, a whole row"):
        Affine(group_size=128).fit(torch.zeros(2, 288))
