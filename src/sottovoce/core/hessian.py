"""The second moment of a layer's inputs and its damped inverse factors, each computed once.

For `H` `[in, in]` and a damping, `U` is upper triangular with `U^T U = (H + damping * mean(diag H) * I)^-1`. It is the
inverse of the upper triangular `R` of `H = R R^T`, taken from a Cholesky factor of `H` with its columns reversed; no
explicit inverse of `H` is formed.
"""

import torch
from torch import Tensor

from sottovoce.errors import CalibrationError

DAMPING_STEP = 10.0  # factor by which the damping grows when a factorization fails
DAMPING_LIMIT = 1e4
LEAST_IMPORTANCE = 1e-3
LEAF = 128  # factors are built from matrix products above this size


class Hessian:
    """`matrix` `[in, in]`, symmetric, with its column orders and factors. Layers that share an input share this object."""

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise CalibrationError(f"a Hessian is square; got shape {tuple(matrix.shape)}")
        self.matrix = matrix
        self._columns: dict[tuple[bool, int], Tensor] = {}
        self._factors: dict[tuple[float, bool, int], tuple[Tensor, float]] = {}

    def __add__(self, other: "Hessian") -> "Hessian":
        return Hessian(self.matrix + other.matrix)

    @property
    def mean_diagonal(self) -> float:
        """The unit in which dampings and ridges are given."""
        return float(self.matrix.diagonal().mean())

    @property
    def importance(self) -> Tensor:
        """What a rounding error in each column costs, `[in]`: the diagonal in units of its mean, at least a thousandth."""
        diagonal = self.matrix.diagonal()
        return (diagonal / diagonal.mean().clamp(min=torch.finfo(diagonal.dtype).tiny)).clamp(min=LEAST_IMPORTANCE).float()

    @property
    def dead(self) -> Tensor:
        """Columns that never see an input, bool `[in]`."""
        return self.matrix.diagonal() <= 0

    def columns(self, act_order: bool, part: int = 1) -> Tensor:
        """Return the columns in the order they are rounded, int64 `[in]`: by decreasing diagonal, or as they stand.

        `part`: so many neighboring columns stay together; parts come by their largest diagonal.
        """
        key = (act_order, part)
        if key not in self._columns:
            diagonal = self.matrix.diagonal()
            order = (
                torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(len(diagonal), device=diagonal.device)
            )
            if act_order and part > 1:
                parts = torch.argsort(diagonal.reshape(-1, part).amax(-1), descending=True, stable=True)
                place = torch.empty_like(parts)
                place[parts] = torch.arange(len(parts), device=parts.device)
                order = order[torch.argsort(place[order // part], stable=True)]
            self._columns[key] = order
        return self._columns[key]

    def factor(self, damping: float, act_order: bool = False, part: int = 1) -> tuple[Tensor, float]:
        """Return `U` in the dtype of `matrix`, rows and columns in rounding order, and the damping that was used.

        The damping is raised tenfold until the factorization succeeds. Raises `CalibrationError` past 10^4.
        """
        key = (damping, act_order, part)
        if key not in self._factors:
            self._factors[key] = self._factorize(damping, self.columns(act_order, part))
        return self._factors[key]

    def damped(self, damping: float) -> Tensor:
        """Return `H + damping * mean(diag H) * I` in float32."""
        matrix = self.matrix.float().clone()
        matrix.diagonal().add_(damping * self.mean_diagonal)
        return matrix

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        """Return `right @ (H + ridge * mean(diag H) * I)^-1` for `right` `[rows, in]`."""
        columns = self.columns(True)
        factor, _ = self.factor(ridge, True)
        result = torch.empty_like(right, dtype=factor.dtype)
        result[:, columns] = (right.to(factor.dtype)[:, columns] @ factor.T) @ factor
        return result

    def _factorize(self, damping: float, columns: Tensor) -> tuple[Tensor, float]:
        mean = self.mean_diagonal
        if mean <= 0:  # nothing was ever seen: plain rounding, and every column is dead
            return torch.eye(len(columns), dtype=self.matrix.dtype, device=self.matrix.device), damping
        backwards = columns.flip(0)
        reordered = self.matrix.index_select(0, backwards).index_select(1, backwards)
        diagonal = reordered.diagonal().clone()
        diagonal[diagonal <= 0] = mean
        while damping <= DAMPING_LIMIT:
            reordered.diagonal().copy_(diagonal + damping * mean)
            inverse = inverse_cholesky(reordered)
            if inverse is not None:
                # Read backwards both ways, H = L L^T becomes H = R R^T, and L^-1 becomes R^-1 = U.
                return inverse.flip(0, 1), damping
            damping = max(damping, 1e-4) * DAMPING_STEP
        raise CalibrationError(
            f"the Hessian is not positive definite even with a damping of {DAMPING_LIMIT:g} times its mean diagonal "
            f"({mean:g}): check the calibration audio and the model's weights for NaN"
        )


def inverse_cholesky(matrix: Tensor) -> Tensor | None:
    """Return `L^-1` of `matrix = L L^T`, or None if the matrix is not positive definite.

    By halves, so that nearly all of the work is matrix products (twice as fast as LAPACK's factor and a triangular inverse):
    with `A11 = L11 L11^T`, `L21 = A21 L11^-T` and `A22 - L21 L21^T = L22 L22^T`, the inverse is
    `[[L11^-1, 0], [-L22^-1 L21 L11^-1, L22^-1]]`.
    """
    n = len(matrix)
    if n <= LEAF:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if failed or not bool(torch.isfinite(lower.diagonal()).all()):
            return None
        leaf: Tensor = torch.linalg.solve_triangular(lower, torch.eye(n, dtype=matrix.dtype, device=matrix.device), upper=False)
        return leaf
    half = n // 2
    first = inverse_cholesky(matrix[:half, :half])
    if first is None:
        return None
    below = matrix[half:, :half] @ first.T
    second = inverse_cholesky(torch.addmm(matrix[half:, half:], below, below.T, alpha=-1))
    if second is None:
        return None
    inverse = torch.zeros_like(matrix)
    inverse[:half, :half], inverse[half:, half:] = first, second
    torch.mm(second @ below, first, out=inverse[half:, :half]).neg_()
    return inverse
