"""The rows of a weight, in pieces small enough that everything made of them stays in the cache of a core."""

import torch
from torch import Tensor

# Weights of a piece, when some tens of scales are tried for each. A GPU wants more, to be busy.
ON_CPU, ON_GPU = 1 << 13, 1 << 22


def pieces_of(rows: Tensor) -> tuple[Tensor, ...]:
    """Split `[rows, ...]` into pieces of about equal size, of one row at least."""
    most = ON_CPU if rows.device.type == "cpu" else ON_GPU
    return torch.split(rows, max(1, most // max(1, rows[:1].numel())))
