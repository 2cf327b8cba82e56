"""Second moments of one layer's inputs, summed over positions, fold by fold.

Sums can be added: `MomentAccumulator.merge` joins what was seen on shards of the calibration speech.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sottovoce.core.hessian import Hessian
from sottovoce.core.qep import Moments
from sottovoce.system.ranks import Ranks

CONSTANT_SHARE = 1e-6  # least share of a channel's energy that is counted as variance
PRODUCT_ROWS = 2048  # positions multiplied at once: enough that adding up the products takes little of the time
SYMMETRIC_BLOCK = 256  # columns per block when only the upper triangle of a product is computed


@dataclass(frozen=True, eq=False)
class FoldStatistics:
    """Sums over one fold's counted positions, in float64.

    `moments`: second moments; `mean`, `quantized_mean` `[in]`: of the inputs in the original and in the quantized network; `weight`:
    sum of the positions' weights. `projection`: the one weight `[out, in]` that is applied to the cross-moment already, if it is;
    then the cross-moment and `mean_residual_error` `[out]` include what the residual stream lacks, where that is asked for (else
    `mean_residual_error` is the scalar zero). All of it is on one device, the solving device of the inputs.
    """

    moments: Moments
    mean: Tensor
    quantized_mean: Tensor
    weight: float
    projection: Tensor | None = None
    mean_residual_error: Tensor | float = 0.0

    @cached_property
    def centered(self) -> Moments:
        """The moments about the means. A channel that was active but constant keeps a trace of its energy: it is not dead."""
        raw = self.moments.hessian.matrix
        hessian = raw - self.weight * torch.outer(self.quantized_mean, self.quantized_mean)
        hessian.diagonal().copy_(torch.maximum(hessian.diagonal(), CONSTANT_SHARE * raw.diagonal()))
        error = self.mean - self.quantized_mean
        if self.projection is not None:
            error = self.projection.double() @ error
        shift = self.weight * torch.outer(error + self.mean_residual_error, self.quantized_mean)
        return Moments(Hessian(hessian), self.moments.cross - shift, self.moments.projected)


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What one layer sees.

    `folds`: sums over two halves of the utterances. `samples`, `quantized_samples` `[n, in]`: some of its inputs in the original and
    in the quantized network. `magnitude` `[in]`: mean absolute input of each channel in the quantized network (or `[0]`: not asked
    for). `residual_samples` `[n, out]`: what the quantized network's residual stream lacks at the samples (None: not asked for).
    Samples are multiplied by the square root of their position's weight, `sample_roots` `[n, 1]` (None: by 1).
    """

    folds: tuple[FoldStatistics, FoldStatistics]
    samples: Tensor
    quantized_samples: Tensor
    magnitude: Tensor
    residual_samples: Tensor | None = None
    sample_roots: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the sums are, and where the layer is solved."""
        return self.samples.device

    @cached_property
    def total(self) -> FoldStatistics:
        """Both folds together."""
        a, b = self.folds
        weight = a.weight + b.weight
        share = a.weight / weight if weight > 0 else 0.0
        return FoldStatistics(
            a.moments + b.moments,
            share * a.mean + (1 - share) * b.mean,
            share * a.quantized_mean + (1 - share) * b.quantized_mean,
            weight,
            a.projection,
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

    `total`: both folds, float64. `float32`: the same in float32, good enough where the Hessian is damped by a tenth of its mean
    diagonal or more. `folds`: the folds in float32, which steer choices.
    """

    def __init__(self, total: Moments, folds: tuple[Moments, Moments]) -> None:
        self.total = total
        self._folds = folds

    @cached_property
    def float32(self) -> Moments:
        return self.total.float32()

    @cached_property
    def folds(self) -> tuple[Moments, Moments]:
        return self._folds[0].float32(), self._folds[1].float32()


class MomentAccumulator:
    """Running sums in float64 of float32 products over some thousand positions at a time.

    `width`: channels of the inputs. `projection` `[out, width]` (optional): applied to the error of the inputs before the
    cross-moment is taken. `device`: of the sums; products are taken where the rows are. Positions come in groups: no product reaches from
    one into another, so the same groups give the same sums on one process and on several. (Float64 holds sums of some hundred float32
    numbers exactly, unless they differ by more than a factor of 2^20; then the order of groups matters in the last of 53 binary digits.)
    """

    def __init__(self, width: int, projection: Tensor | None = None, device: torch.device | None = None) -> None:
        self.projection, self.device, self.width = projection, torch.device("cpu") if device is None else device, width
        self.out = width if projection is None else len(projection)
        self.hessian = self._zeros(width, width)
        self.cross = self._zeros(self.out, width)
        # By group: sums of the inputs, of the quantized network's, of the residual error, and of the weights.
        self.totals = dict[int, Tensor]()
        self.compensates = False
        self._waiting: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def add(
        self, rows: Tensor, quantized_rows: Tensor, root_weights: Tensor, residual_error: Tensor | None = None, *, group: int = 0
    ) -> None:
        """Add positions.

        `rows`, `quantized_rows` `[n, width]`: inputs in the original and in the quantized network, each times the square root of its
        position's weight, `root_weights` `[n, 1]`. `residual_error` `[n, out]`: what the residual stream lacks there, likewise.
        """
        root = root_weights.squeeze(1).to(self.device).double()
        if group not in self.totals:
            self.totals[group] = self._zeros(2 * self.width + self.out + 1)
        total, quantized_total, residual_total, weight = self._parts(self.totals[group])
        total += root @ rows.to(self.device).double()
        quantized_total += root @ quantized_rows.to(self.device).double()
        if residual_error is not None:
            self.compensates = True
            residual_total += root @ residual_error.to(self.device).double()
        weight += root.square().sum()
        self._waiting.append((rows, quantized_rows, residual_error))
        if sum(len(rows) for rows, _, _ in self._waiting) >= PRODUCT_ROWS:
            self.close_group()

    def close_group(self) -> None:
        """Take the products of what has been added and is waiting for more."""
        if self._waiting:
            self._multiply()
            self._waiting = []

    def merge(self, other: "MomentAccumulator") -> None:
        """Add what another accumulator of the same layer has seen, of other groups. Raises `ValueError` if it is of another shape."""
        if self.cross.shape != other.cross.shape or self.hessian.shape != other.hessian.shape:
            raise ValueError(f"moments of shape {tuple(other.cross.shape)} cannot be added to those of {tuple(self.cross.shape)}")
        self.close_group()
        other.close_group()
        self.hessian += other.hessian
        self.cross += other.cross
        for group, totals in other.totals.items():
            self.totals[group] = self.totals[group] + totals if group in self.totals else totals
        self.compensates = self.compensates or other.compensates

    def join(self, ranks: Ranks) -> None:
        """Let rank 0 have what all ranks have seen. Raises `MachineError`."""
        self.close_group()
        ranks.add_up([self.hessian, self.cross])
        none = {-1 - ranks.rank: self._zeros(1, 2 * self.width + self.out + 1)}  # a rank may have seen nothing of a fold
        gathered = ranks.gather_rows({**none, **{group: totals.unsqueeze(0) for group, totals in self.totals.items()}})
        self.totals = {group: totals[0] for group, totals in gathered.items()}

    def finish(self) -> FoldStatistics:
        """Return the statistics of all that was added."""
        self.close_group()
        upper = self.hessian.triu()
        hessian = upper + upper.triu(1).T
        whole = self._zeros(2 * self.width + self.out + 1)
        for _, totals in sorted(self.totals.items()):
            whole += totals
        total, quantized_total, residual_total, total_weight = self._parts(whole)
        weight = float(total_weight)
        count = weight if weight > 0 else 1.0
        moments = Moments(Hessian(hessian), self.cross, self.projection is not None)
        projection = None if self.projection is None else self.projection.to(self.device)
        residual = residual_total / count if self.compensates else 0.0
        return FoldStatistics(moments, total / count, quantized_total / count, weight, projection, residual)

    def _parts(self, totals: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.split(totals, [self.width, self.width, self.out, 1]))

    def _multiply(self) -> None:
        same = all(rows is quantized and residual is None for rows, quantized, residual in self._waiting)
        quantized_rows = torch.cat([quantized for _, quantized, _ in self._waiting])
        for start in range(0, self.width, SYMMETRIC_BLOCK):
            block = slice(start, start + SYMMETRIC_BLOCK)
            self.hessian[block, start:] += (quantized_rows[:, block].T @ quantized_rows[:, start:]).to(self.device)
        if not same:
            difference = torch.cat([rows - quantized for rows, quantized, _ in self._waiting])
            if self.projection is not None:
                difference = difference @ self.projection.T
            residuals = [residual for _, _, residual in self._waiting if residual is not None]
            if residuals:
                difference += torch.cat(residuals)
            self.cross += (difference.T @ quantized_rows).to(self.device)
