"""Moments are those of the formula, and moments of shards are those of the whole."""

from collections.abc import Sequence

import pytest
import torch

from sottovoce.quantization.statistics import PRODUCT_ROWS, FoldStatistics, LayerStatistics, MomentAccumulator
from sottovoce.system.ranks import Ranks

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
        (torch.as_tensor(a.mean_residual_error), torch.as_tensor(b.mean_residual_error)),
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
    assert not full.finish().moments.projected


def test_moments_of_another_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        MomentAccumulator(WIDTH).merge(MomentAccumulator(WIDTH + 1))


def test_a_channel_that_never_changes_is_neither_dead_nor_of_weight() -> None:
    """All of its energy is in its mean. What is left of it must not be zero, which means dead, nor count beside what varies."""
    rows = positions(400, 3)[0]
    rows[:, 0], rows[:, 1] = 2.0, 0.0
    sums = MomentAccumulator(WIDTH)
    sums.add(rows, rows, torch.ones(400, 1))
    found = sums.finish().centered.hessian
    assert found.dead.tolist() == [False, True] + [False] * (WIDTH - 2)
    assert 0 < float(found.matrix[0, 0]) < 1e-5 * 400 * 2.0**2
    variance = (rows - rows.mean(0)).double().square().sum(0)
    torch.testing.assert_close(found.matrix.diagonal()[1:], variance[1:], rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [24, 300])
def test_sums_are_those_of_the_formula(width: int) -> None:
    """Position by position: moments, means, what the residual stream lacks, and the cross-moment about the means."""
    generator = torch.Generator().manual_seed(0)
    rows, quantized = (torch.randn(7, width, generator=generator) for _ in range(2))
    projection, residual = torch.randn(5, width, generator=generator), torch.randn(7, 5, generator=generator)
    root = torch.rand(7, 1, generator=generator) + 0.1
    sums = MomentAccumulator(width, projection)
    for part, lacks in ((slice(0, 3), True), (slice(3, 4), True), (slice(4, 7), False)):
        weights = root[part]
        sums.add(rows[part] * weights, quantized[part] * weights, weights, residual[part] * weights if lacks else None, group=part.start)
        sums.close_group()
    found = sums.finish()
    total = float(root.double().square().sum())
    hessian, cross = torch.zeros(width, width, dtype=torch.float64), torch.zeros(5, width, dtype=torch.float64)
    mean, quantized_mean, lacking = (torch.zeros(n, dtype=torch.float64) for n in (width, width, 5))
    errors = []
    for t in range(7):
        weight, x, x_hat = float(root[t]) ** 2, rows[t].double(), quantized[t].double()
        gap = residual[t].double() if t < 4 else torch.zeros(5, dtype=torch.float64)
        errors.append(projection.double() @ (x - x_hat) + gap)
        hessian, cross = hessian + weight * torch.outer(x_hat, x_hat), cross + weight * torch.outer(errors[-1], x_hat)
        mean, quantized_mean, lacking = mean + weight * x / total, quantized_mean + weight * x_hat / total, lacking + weight * gap / total
    assert found.weight == pytest.approx(total)
    assert found.moments.projected
    for one, other in (
        (found.moments.hessian.matrix, hessian), (found.moments.cross, cross), (found.mean, mean),
        (found.quantized_mean, quantized_mean), (found.mean_residual_error, lacking),
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    shift = sum(float(root[t]) ** 2 * errors[t] for t in range(7))
    torch.testing.assert_close(found.centered.cross, cross - torch.outer(shift, quantized_mean), rtol=1e-4, atol=1e-4)


def test_a_stream_that_lacks_something_counts_where_the_inputs_are_the_same() -> None:
    rows, _, root, residual = positions(9, 2)
    projection = torch.ones(OUT, WIDTH)
    sums = MomentAccumulator(WIDTH, projection)
    sums.add(rows, rows, root, residual)
    torch.testing.assert_close(sums.finish().moments.cross, (residual.T @ rows).double())


def test_products_wait_for_a_few_thousand_positions() -> None:
    """One product of many rows takes less time than many of few; what waits is counted at the end."""
    rows = torch.ones(PRODUCT_ROWS, 2)
    sums = MomentAccumulator(2)
    sums.add(rows[1:], rows[1:], torch.ones(PRODUCT_ROWS - 1, 1))
    assert not sums.hessian.any()
    sums.add(rows[:1], rows[:1], torch.ones(1, 1))
    assert float(sums.hessian[0, 0]) == PRODUCT_ROWS
    sums.add(rows[:1], rows[:1], torch.ones(1, 1))
    assert float(sums.finish().moments.hessian.matrix[1, 0]) == PRODUCT_ROWS + 1


def test_a_fold_without_positions_has_means_of_zero_and_leaves_the_other_alone() -> None:
    seen = MomentAccumulator(WIDTH)
    seen.add(*positions(50, 1)[:3])
    full, empty = seen.finish(), MomentAccumulator(WIDTH).finish()
    assert not empty.mean.any()
    assert not empty.quantized_mean.any()

    def total(*folds: FoldStatistics) -> FoldStatistics:
        return LayerStatistics((folds[0], folds[1]), torch.zeros(0), torch.zeros(0), torch.zeros(0)).total

    for both in (total(full, empty), total(empty, full)):
        assert_same(both, full)
    assert_same(total(empty, empty), empty)


def test_both_folds_together_are_the_sums_of_all() -> None:
    projection = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(0))
    whole, *halves = (MomentAccumulator(WIDTH, projection) for _ in range(3))
    for i, count in enumerate((50, 20)):
        given = positions(count, i)
        whole.add(*given)
        halves[i].add(*given)
    folds = halves[0].finish(), halves[1].finish()
    statistics = LayerStatistics(folds, torch.zeros(0), torch.zeros(0), torch.zeros(0))
    assert_same(statistics.total, whole.finish())
    for views, of_fold in ((statistics.raw, [fold.moments for fold in folds]), (statistics.centered, [fold.centered for fold in folds])):
        for found, wanted in zip(views.folds, of_fold, strict=True):
            assert torch.equal(found.hessian.matrix, wanted.hessian.matrix.float())
    assert torch.equal(statistics.raw.total.hessian.matrix, statistics.total.moments.hessian.matrix)
    assert torch.equal(statistics.centered.total.cross, statistics.total.centered.cross)


def test_groups_that_only_one_shard_has_seen_are_kept() -> None:
    whole, first, second = (MomentAccumulator(WIDTH) for _ in range(3))
    for group, sums in ((0, first), (3, second), (1, first)):
        rows, quantized, root, _ = positions(20 + group, group)
        for one in (whole, sums):
            one.add(rows, quantized, root, group=group)
    first.merge(second)
    assert_same(first.finish(), whole.finish())


def test_a_shard_that_has_seen_what_the_stream_lacks_brings_it_in() -> None:
    plain, other = (MomentAccumulator(WIDTH, torch.ones(OUT, WIDTH)) for _ in range(2))
    plain.add(*positions(5, 0)[:3])
    other.add(*positions(5, 1))
    lacking, weight = other.finish().mean_residual_error, other.finish().weight
    plain.merge(other)
    merged = plain.finish()
    torch.testing.assert_close(merged.mean_residual_error, lacking * weight / merged.weight)


def test_moments_of_other_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(7, 24\) cannot be added to those of \(6, 24\)"):
        MomentAccumulator(WIDTH, torch.ones(OUT, WIDTH)).merge(MomentAccumulator(WIDTH, torch.ones(OUT + 1, WIDTH)))


class Linked(Ranks):
    """One of two processes in this one: rank 1 leaves here what it sends, and rank 0 finds it."""

    def __init__(self, rank: int, sent: list[list[torch.Tensor] | dict[int, torch.Tensor]]) -> None:
        super().__init__(rank, 2)
        self.sent = sent

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        if self.rank:
            self.sent.append(list(tensors))
            return
        for own, arrived in zip(tensors, self.sent.pop(0), strict=True):
            own += arrived  # type: ignore[operator]

    def gather_rows(self, rows: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        torch.cat(list(rows.values()))  # as they travel: of one width, and there are some
        if self.rank:
            self.sent.append(rows)
            return rows
        found = dict(rows)
        found |= self.sent.pop(0)  # type: ignore[arg-type]
        return dict(sorted(found.items()))


@pytest.mark.parametrize("shares", [((0,), (1,)), ((0, 1), ()), ((), (0, 1))])
def test_ranks_that_have_seen_a_part_or_nothing_make_the_whole(shares: tuple[tuple[int, ...], ...]) -> None:
    projection = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(0))
    whole, *ranks = (MomentAccumulator(WIDTH, projection) for _ in range(3))
    for sums, groups in zip(ranks, shares, strict=True):
        for group in groups:
            rows, quantized, root, _ = positions(20 + group, group)
            for one in (whole, sums):
                one.add(rows, quantized, root, group=group)
    sent = list[list[torch.Tensor] | dict[int, torch.Tensor]]()
    ranks[1].join(Linked(1, sent))
    ranks[0].join(Linked(0, sent))
    assert_same(ranks[0].finish(), whole.finish())
