"""Moments of shards are those of the whole."""

import pytest
import torch

from sottovoce.quantization.statistics import PRODUCT_ROWS, FoldStatistics, MomentAccumulator

WIDTH, OUT = 24, 6


def positions(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.rand(count, 1, generator=generator).sqrt()
    rows = torch.randn(count, WIDTH, generator=generator)
    quantized = rows + 0.1 * torch.randn(count, WIDTH, generator=generator)
    return rows * root, quantized * root, root, torch.randn(count, OUT, generator=generator) * root


def assert_same(a: FoldStatistics, b: FoldStatistics) -> None:
    assert a.weight == pytest.approx(b.weight)
    pairs = [
        (a.moments.hessian.matrix, b.moments.hessian.matrix),
        (a.moments.cross, b.moments.cross),
        (a.mean, b.mean),
        (a.quantized_mean, b.quantized_mean),
        (a.mean_residual_error, b.mean_residual_error),
        (a.centered.hessian.matrix, b.centered.hessian.matrix),
    ]
    for one, other in pairs:
        # Products are float32, and are added up in other pieces.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("projected", [False, True])
def test_the_merge_of_two_halves_equals_the_whole(projected: bool) -> None:
    projection = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(0)) if projected else None
    whole, first, second = (MomentAccumulator(WIDTH, projection) for _ in range(3))
    for i, count in enumerate((700, PRODUCT_ROWS, 5, 900)):
        rows, quantized, root, residual = positions(count, i)
        given = (rows, quantized, root, residual if projected else None)
        whole.add(*given)
        (first if i % 2 else second).add(*given)
    first.merge(second)
    assert_same(first.finish(), whole.finish())


def test_an_empty_shard_changes_nothing() -> None:
    full, empty = MomentAccumulator(WIDTH), MomentAccumulator(WIDTH)
    full.add(*positions(50, 1)[:3])
    before = full.finish().moments.hessian.matrix.clone()
    full.merge(empty)
    assert torch.equal(full.finish().moments.hessian.matrix, before)


def test_moments_of_another_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        MomentAccumulator(WIDTH).merge(MomentAccumulator(WIDTH + 1))
