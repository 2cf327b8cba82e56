"""Second moments of one layer's inputs, summed over positions, fold by fold."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sottovoce.core.hessian import Hessian
from sottovoce.core.qep import Moments

CONSTANT_SHARE = 1e-6  # least share of a channel's energy that is counted as variance


PRODUCT_ROWS = 2048  # positions multiplied at once: enough that adding up the products takes little of the time


SYMMETRIC_BLOCK = 256  # columns per block when only the upper triangle of a product is computed


NO_GAP = torch.zeros((), dtype=torch.float64)  # of a stream that is not corrected


@dataclass(frozen=True, eq=False)
class FoldStatistics:
    """Sums over one fold's counted positions: second moments (float64), means `[in]` in both networks, total weight.

    `reader`: the one weight `[out, in]` through which the cross-moment is seen, if it is; then the cross-moment and `mean_residual_error`
    `[out]` hold what the residual stream lacks as well, where that is asked for (else `mean_residual_error` is the scalar zero).
    """

    moments: Moments
    mean: Tensor
    mean_hat: Tensor
    weight: float
    reader: Tensor | None = None
    mean_residual_error: Tensor = NO_GAP

    @cached_property
    def centered(self) -> Moments:
        """The moments about the means. A channel that was active but constant keeps a trace of its energy: it is not dead."""
        raw = self.moments.hessian.matrix
        hessian = raw - self.weight * torch.outer(self.mean_hat, self.mean_hat)
        hessian.diagonal().copy_(torch.maximum(hessian.diagonal(), CONSTANT_SHARE * raw.diagonal()))
        gap = self.mean - self.mean_hat
        if self.reader is not None:
            gap = self.reader.double() @ gap
        shift = self.weight * torch.outer(gap + self.mean_residual_error, self.mean_hat)
        return Moments(Hessian(hessian), self.moments.cross - shift, self.moments.through)


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What one layer sees: two folds; a sample of its inputs `[n, in]` in the original (`samples`) and quantized network
    (`quantized_samples`); the mean absolute input of each channel in the quantized network, `magnitude` `[in]` (or `[0]`: not asked for); and
    for the same sample what the quantized network's residual stream lacks, `residual_samples` `[n, out]` (None: not asked for)."""

    folds: tuple[FoldStatistics, FoldStatistics]
    samples: Tensor
    quantized_samples: Tensor
    magnitude: Tensor
    residual_samples: Tensor | None = None

    @cached_property
    def total(self) -> FoldStatistics:
        """Both folds together."""
        a, b = self.folds
        weight = a.weight + b.weight
        share = a.weight / weight if weight > 0 else 0.0
        return FoldStatistics(
            a.moments + b.moments,
            share * a.mean + (1 - share) * b.mean,
            share * a.mean_hat + (1 - share) * b.mean_hat,
            weight,
            a.reader,
            share * a.mean_residual_error + (1 - share) * b.mean_residual_error,
        )

    @cached_property
    def raw(self) -> "MomentViews":
        """The moments about zero."""
        return MomentViews(self.total.moments, (self.folds[0].moments, self.folds[1].moments))

    @cached_property
    def centered(self) -> "MomentViews":
        """The moments about the means."""
        return MomentViews(self.total.centered, (self.folds[0].centered, self.folds[1].centered))


class MomentViews:
    """The same moments for several purposes. Layers that share an input share these objects and the factors within.

    `total`: both folds, float64. `single`: the same in float32, good enough where the Hessian is damped by a tenth of its mean
    diagonal or more. `folds`: the folds in float32, which steer choices.
    """

    def __init__(self, total: Moments, folds: tuple[Moments, Moments]) -> None:
        self.total = total
        self._folds = folds

    @cached_property
    def single(self) -> Moments:
        return self.total.single()

    @cached_property
    def folds(self) -> tuple[Moments, Moments]:
        return self._folds[0].single(), self._folds[1].single()


class MomentAccumulator:
    """Running sums in float64 of float32 products over some thousand positions at a time."""

    def __init__(self, width: int, reader: Tensor | None) -> None:
        self.reader = reader
        self.hessian = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width if reader is None else len(reader), width, dtype=torch.float64)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.total_hat = torch.zeros(width, dtype=torch.float64)
        self.total_residual_error = NO_GAP
        self.weight = 0.0
        self.waiting: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def add(self, rows: Tensor, rows_hat: Tensor, root: Tensor, gap: Tensor | None = None) -> None:
        root = root.squeeze(1).double()
        self.total += root @ rows.double()
        self.total_hat += root @ rows_hat.double()
        if gap is not None:
            self.total_residual_error = self.total_residual_error + root @ gap.double()
        self.weight += float(root.square().sum())
        self.waiting.append((rows, rows_hat, gap))
        if sum(len(rows) for rows, _, _ in self.waiting) >= PRODUCT_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        same = all(rows is rows_hat and gap is None for rows, rows_hat, gap in self.waiting)
        rows_hat = torch.cat([rows_hat for _, rows_hat, _ in self.waiting])
        width = rows_hat.shape[1]
        for start in range(0, width, SYMMETRIC_BLOCK):
            block = slice(start, start + SYMMETRIC_BLOCK)
            self.hessian[block, start:] += rows_hat[:, block].T @ rows_hat[:, start:]
        if not same:
            difference = torch.cat([rows - rows_hat for rows, rows_hat, _ in self.waiting])
            if self.reader is not None:
                difference = difference @ self.reader.T
            gaps = [gap for _, _, gap in self.waiting if gap is not None]
            if gaps:
                difference += torch.cat(gaps)
            self.cross += difference.T @ rows_hat
        self.waiting = []

    def fold(self) -> FoldStatistics:
        upper = self.hessian.triu()
        hessian = upper + upper.triu(1).T
        mean, mean_hat, mean_residual_error = (
            total / self.weight if self.weight > 0 else total for total in (self.total, self.total_hat, self.total_residual_error)
        )
        moments = Moments(Hessian(hessian), self.cross, self.reader is not None)
        return FoldStatistics(moments, mean, mean_hat, self.weight, self.reader, mean_residual_error)
