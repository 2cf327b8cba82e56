"""The rows of a weight, in pieces small enough that everything made of them stays in the cache of a core."""

from collections.abc import Callable

import torch
from torch import Tensor

# Weights of a piece, when some tens of scales are tried for each. A GPU wants more, to be busy.
ON_CPU, ON_GPU = 1 << 13, 1 << 22


def pieces_of(rows: Tensor) -> tuple[Tensor, ...]:
    """Split `[rows, ...]` into pieces of about equal size, of one row at least."""
    most = ON_CPU if rows.device.type == "cpu" else ON_GPU
    return torch.split(rows, max(1, most // max(1, rows[:1].numel())))


def fit_in_pieces(fit: Callable[[Tensor], tuple[Tensor, ...]], blocks: Tensor, dims: int = 2) -> tuple[Tensor, ...]:
    """Return what `fit` makes of `blocks` `[..., blocks, size]`, some rows at a time: tensors `[..., blocks]`.

    The last `dims` dimensions are one row; `fit` takes `[rows, ..., size]` and returns tensors `[rows, ...]`.
    """
    fitted = [fit(piece) for piece in pieces_of(blocks.reshape(-1, *blocks.shape[-dims:]))]
    return tuple(torch.cat(parts).reshape(blocks.shape[:-1]) for parts in zip(*fitted, strict=True))
